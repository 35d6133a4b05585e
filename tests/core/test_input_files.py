"""JSON objects that others may have written: read, or refused with the file's name."""

import pytest

from synthgen.core.errors import StoreError
from synthgen.core.input_files import read_object


def test_an_object_is_read(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text('{"name": "demo", "numTraining": 2}')
    assert read_object(path) == {"name": "demo", "numTraining": 2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1, 2]", "expected a JSON object, got list"),
        ("null", "expected a JSON object, got NoneType"),
        ("{", r"not readable as JSON \(Expecting property name"),
        (None, r"not readable as JSON \(\[Errno 2\]"),
    ],
)
def test_what_is_no_object_is_named(tmp_path, text, problem):
    path = tmp_path / "dataset.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(StoreError, match=rf"dataset\.json: {problem}"):
        read_object(path)
