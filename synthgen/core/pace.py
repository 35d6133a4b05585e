"""How fast a long run goes, and how long the rest will take."""

from __future__ import annotations

from collections import deque


class Pace:
    """The speed of a run over the last third of its time.

    Machines are shared, and cases differ: the mean over hours would miss for as many hours more
    that a neighbour came or went. What was done before the first mark does not count.

    Examples:
        >>> pace = Pace()
        >>> for now, done in ((0.0, 100), (10.0, 110), (20.0, 120), (30.0, 160)):
        ...     pace.mark(now, done)
        >>> pace.rate, pace.left_s(200)
        (4.0, 10.0)
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self._first = 0.0

    def mark(self, now: float, done: int) -> None:
        """Note that so many are done; `now` in seconds of a clock that never goes back."""
        if not self._marks:
            self._first = now
        self._marks.append((now, done))
        since = now - (now - self._first) / 3
        while len(self._marks) > 2 and self._marks[1][0] <= since:
            self._marks.popleft()

    @property
    def rate(self) -> float:
        """How many are done in a second; 0 before anything was."""
        if len(self._marks) < 2:
            return 0.0
        (began, before), (now, done) = self._marks[0], self._marks[-1]
        return (done - before) / max(now - began, 1e-9)

    def left_s(self, total: int) -> float | None:
        """Return the seconds until `total` are done; None while nobody can tell."""
        return (total - self._marks[-1][1]) / self.rate if self.rate else None
