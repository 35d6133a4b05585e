"""Absurd headers, decompression bombs, links out of a file, pipes: refused before believed."""

import sys

import pytest
from fuzz_bombs import BOMBS
from fuzz_readers import outcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")


@pytest.mark.parametrize("name", BOMBS)
def test_what_claims_too_much_is_refused_in_one_line(name, tmp_path, bounded):
    folder = tmp_path / "in"
    folder.mkdir()
    assert outcome(lambda: BOMBS[name](folder), folder).endswith("Error")
