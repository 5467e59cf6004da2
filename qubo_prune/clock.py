"""Deadlines, and the time of a run without its pauses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds since it was made, less those in :meth:`stopped`."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def add(self, wall: float) -> None:
        """Count wall-clock seconds that went by elsewhere, such as before an interruption."""
        self._wall -= wall

    @property
    def wall(self) -> float:
        """Wall-clock seconds."""
        return time.perf_counter() - self._wall

    @property
    def cpu(self) -> float:
        """Processor seconds of all threads."""
        return time.process_time() - self._cpu

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A context whose time does not count."""
        wall, cpu = self.wall, self.cpu
        try:
            yield
        finally:
            self._wall += self.wall - wall
            self._cpu += self.cpu - cpu


class Deadline:
    """A wall-clock budget in seconds that starts when it is made; ``None`` never expires.

    Args:
        seconds: the budget, or ``None``.
        within: a budget that this one is a part of; it ends with that one at the latest.
    """

    def __init__(self, seconds: float | None, within: Deadline | None = None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._within = within
        self._cancelled = False

    def cancel(self) -> None:
        """End it now, for an interrupt: whoever looks at the clock stops, in whatever thread."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """True once it, or what it is within, was cancelled."""
        return self._cancelled or (self._within is not None and self._within.cancelled)

    @property
    def remaining(self) -> float | None:
        """Seconds left, never negative; ``None`` without a limit."""
        if self.cancelled:
            return 0.0
        own = None if self._end is None else max(0.0, self._end - time.monotonic())
        return shortest(own, None if self._within is None else self._within.remaining)

    @property
    def expired(self) -> bool:
        """True once the budget is used up."""
        if self._cancelled or (self._end is not None and time.monotonic() >= self._end):
            return True
        return self._within is not None and self._within.expired


def shortest(*limits: float | None) -> float | None:
    """The shortest of several limits in seconds; ``None`` is none."""
    return min((limit for limit in limits if limit is not None), default=None)
