"""A store of four tiny heads, a generated dataset, and a prepared benchmark of them."""

import pytest
from discs import tiny_recipe, write_disc_dataset, write_disc_store

from synthgen.benchmark.spec import Request, plan_benchmark


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """The folder of a store."""
    return write_disc_store(tmp_path_factory.mktemp("discs") / "store")


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """The folder of eight generated maps in two styles."""
    return write_disc_dataset(tmp_path_factory.mktemp("discs"))


@pytest.fixture
def plan(real, synthetic):
    """Plan a benchmark of some arms."""

    def planned(*kinds, recipe=None, network=None, **wanted):
        named = {"real": real, "synthetic": synthetic, "recipe": network}
        request = Request(kinds, **named | wanted)
        return plan_benchmark(request, recipe or tiny_recipe())

    return planned
