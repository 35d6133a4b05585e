"""One server and one world for all tests of faults."""

import pytest

from faults import world
from faults.driver import Driver


@pytest.fixture(scope="session")
def driver():
    with Driver() as started:
        yield started


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, driver):
    """A world with models, a store, scans, label maps and images; only read it."""
    return world.build(tmp_path_factory.mktemp("tiny"), driver)


@pytest.fixture(scope="session")
def whole(tiny, driver):
    """The same world with what the other commands read: a segmenter, masks, a quarantine."""
    return world.build_more(tiny, driver)
