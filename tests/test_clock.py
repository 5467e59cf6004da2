from __future__ import annotations

import time
from contextlib import suppress

from qubo_prune.clock import Stopwatch


def work(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_wall_clock_and_processor_seconds() -> None:
    watch = Stopwatch()
    time.sleep(0.1)
    work(0.05)
    assert 0.05 <= watch.cpu < watch.wall


def test_a_pause_does_not_count_even_if_it_fails() -> None:
    watch, began = Stopwatch(), time.perf_counter()
    with suppress(KeyError), watch.stopped():
        time.sleep(0.1)
        work(0.1)
        raise KeyError
    assert 0 <= watch.wall <= time.perf_counter() - began - 0.1
    assert 0 <= watch.cpu < 0.1
