"""SIGINT and SIGTERM: the first one ends work in order, a later one at once."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_ECHO_S = 2.0
"""A launcher passes on a Ctrl-C that the whole process group had already."""


class Interrupted(SystemExit):
    """A signal asked this process to end; its exit code is 128 + the signal's number.

    Attributes:
        note: what is there, and how to go on; may be added on the way up.
    """

    def __init__(self, signum: int, note: str = "") -> None:
        super().__init__(128 + signum)
        self.note = note


@contextmanager
def on_signals(react: Callable[[int], None]) -> Iterator[None]:
    """Call `react` once, with the number of the first SIGINT or SIGTERM.

    Signals within two seconds of it are its echo; a later one raises `Interrupted`. A signal that
    this process ignores, as under `nohup`, stays ignored. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            react(signum)
        elif now - first > _ECHO_S:
            raise Interrupted(signum)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` on the first SIGINT or SIGTERM, wherever the work is: it can be dropped.

    Libraries may turn it into an error of their own (numba, while it looks up types) or swallow it
    and stumble (torch, while it reads a file): whatever is raised after a signal is taken for it.
    """
    heard: list[int] = []

    def react(signum: int) -> None:
        heard.append(signum)
        raise Interrupted(signum)

    try:
        with on_signals(react):
            yield
    except Interrupted:
        raise
    except Exception as error:
        if heard:
            raise Interrupted(heard[0]) from error
        raise


@contextmanager
def stopping() -> Iterator[Callable[[], None]]:
    """Yield a function that raises `Interrupted` once SIGINT or SIGTERM came.

    To be called where work can stop. Raised anywhere else in the main thread, it may leave a lock
    of a library taken (that of HDF5, say), on which a writing thread would then wait for ever.
    """
    heard: list[int] = []

    def check() -> None:
        if heard:
            raise Interrupted(heard[0])

    with on_signals(heard.append):
        yield check
