"""Many small factorisations side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_threads(work: Callable[[Part], Result], parts: Iterable[Part], device: torch.device) -> list[Result]:
    """``work`` of every part, in their order; on the CPU one part per core at a time.

    A batch of small matrices is factored one by one, where torch's own threads, which share the work on
    each, cost more than they bring (measured: tenfold and more when another process wants a core).
    """
    count = torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(count)  # a worker's number is taken over by every thread that starts later
