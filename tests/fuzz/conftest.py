"""Fixtures of the tests with hostile files."""

import resource
import signal
from pathlib import Path

import pytest
from fuzz_bombs import MEMORY, SECONDS


@pytest.fixture
def bounded():
    """Let this process set aside no more than `MEMORY` further bytes, and compute for `SECONDS`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.signal(signal.SIGVTALRM, before)


def _too_long(_signal, _frame):
    raise AssertionError(f"computed for {SECONDS} s")
