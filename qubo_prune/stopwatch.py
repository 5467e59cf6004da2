"""Time of a run, wall clock and processor, without its pauses."""

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
