"""SIGINT and SIGTERM: the first is heard once, its echo is not, a later one ends at once."""

import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from synthgen.core.interrupt import Interrupted, interruptible, on_signals, stopping


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal that is not ignored, as it is in tests that a shell starts in the background."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_raises_with_the_exit_code_of_a_shell(number):
    with pytest.raises(Interrupted) as stop, interruptible():
        os.kill(os.getpid(), number)
    assert stop.value.code == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_an_echo_is_not_heard_and_a_later_signal_ends_at_once(number, monkeypatch):
    now, heard = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with on_signals(heard.append):
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert heard == [number]
        now[0] += 3
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)
    assert heard == [number]


def test_an_ignored_signal_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with interruptible():
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN


def test_other_threads_leave_signals_alone(number):
    seen = []

    def work():
        with interruptible():
            seen.append(signal.getsignal(number))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_what_a_library_makes_of_an_interruption_is_one_all_the_same(number):
    def stumble():
        with suppress(SystemExit):
            os.kill(os.getpid(), number)
        raise ValueError("could not determine the shape")

    with pytest.raises(Interrupted) as stop, interruptible():
        stumble()
    assert stop.value.code == 128 + number
    with pytest.raises(ValueError, match="of its own"), interruptible():
        raise ValueError("of its own")


def test_work_stops_where_it_can(number):
    done = []
    with pytest.raises(Interrupted) as stop, stopping() as check:  # noqa: PT012 - as in use
        for part in range(3):
            check()
            done.append(part)
            os.kill(os.getpid(), number)
            done.append("to its end")
    assert done == [0, "to its end"]
    assert stop.value.code == 128 + number
