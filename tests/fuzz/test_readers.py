"""Some hundred changed files for each kind of reader; `benchmarks/fuzz.py` does ten thousand."""

import sys

import pytest
from fuzz_readers import READERS, attack, outcome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")

INPUTS = 30
"""Of a reader whose share is 1."""


@pytest.fixture(scope="module", params=list(READERS))
def valid(request, tmp_path_factory):
    """Return a reader's name, and a folder of valid files."""
    folder = tmp_path_factory.mktemp("valid") / "in"
    folder.mkdir()
    READERS[request.param].make(folder)
    return request.param, folder


def test_valid_files_are_read(valid):
    name, folder = valid
    reader = READERS[name]
    files = sorted({p for t in reader.targets for p in folder.glob(t) if p.is_file()})
    assert files
    assert outcome(lambda: reader.read(folder, files), folder) == "read"


def test_changed_files_are_read_or_refused_in_one_line(valid, tmp_path, bounded):
    name, template = valid
    count = max(1, round(INPUTS * READERS[name].share))
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]

    @settings(
        max_examples=count, derandomize=True, deadline=None, database=None,
        suppress_health_check=checks,
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def attacked(random):
        attack(name, random, template, tmp_path / "changed" / "in")

    attacked()
