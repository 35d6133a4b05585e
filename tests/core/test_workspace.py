from pathlib import Path

import pytest

from synthgen.core.errors import RequestError
from synthgen.core.workspace import Workspace


def test_folders_of_the_convention():
    workspace = Workspace()
    assert workspace.store == Path("work/store")
    assert workspace.model("labels") == Path("work/models/labels")
    assert workspace.run("tiny") == Path("work/runs/tiny")
    assert workspace.images("oasis_flair") == Path("work/images/oasis_flair")
    assert workspace.labels == Path("work/labels")
    assert workspace.reports == Path("work/reports")


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "a\0b", "x" * 201])
def test_names_that_leave_their_folder_are_refused(name):
    with pytest.raises(RequestError, match="not a usable name"):
        Workspace().model(name)
