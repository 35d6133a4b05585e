"""SIGINT and SIGTERM: the first is heard once, its echo is not, a later one ends at once."""

import os
import signal
import threading
import time

import pytest

from synthgen.core.interrupt import Interrupted, interrupt, on_signals, through_libraries


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal that is not ignored, as it is in tests that a shell starts in the background."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_raises_with_the_exit_code_of_a_shell(number):
    with pytest.raises(Interrupted) as stop, on_signals(interrupt):
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
    with on_signals(interrupt):
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_IGN


def test_other_threads_leave_signals_alone(number):
    seen = []

    def work():
        with on_signals(interrupt):
            seen.append(signal.getsignal(number))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_an_interruption_that_a_library_wrapped_is_one_all_the_same():
    with pytest.raises(Interrupted) as stop, through_libraries():
        raise SystemError("returned a result with an exception set") from Interrupted(15)
    assert stop.value.code == 143
    with pytest.raises(SystemError, match="other"), through_libraries():
        raise SystemError("other")
