"""Fixtures of the data tests."""

import phantoms as tiny_heads
import pytest


@pytest.fixture(scope="session")
def phantoms():
    """Return the module `tests/phantoms.py`: tiny heads as NIfTI."""
    return tiny_heads
