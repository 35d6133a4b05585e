"""Fixtures of the data tests."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def phantoms():
    """Return the module `phantoms.py` beside this file: tiny heads as NIfTI."""
    spec = spec_from_file_location("phantoms", Path(__file__).with_name("phantoms.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
