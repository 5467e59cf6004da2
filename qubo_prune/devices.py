"""Accelerators: waiting for what they still compute, the memory they have left, what to say when there is none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from qubo_prune.errors import InputError
from qubo_prune.files.parsing import one_line


def of_model(model: nn.Module) -> tuple[torch.device, ...]:
    """The devices of its parameters, each once, in their order."""
    return tuple(dict.fromkeys(parameter.device for parameter in model.parameters()))


def synchronise(devices: Iterable[torch.device]) -> None:
    """Wait until everything that was begun on the devices is done, as a clock is to be read; nothing on the CPU."""
    for device in devices:
        wait = getattr(getattr(torch, device.type, None), "synchronize", None)
        if device.type not in ("cpu", "meta") and wait is not None:
            wait() if device.type == "mps" else wait(device)


def now(devices: Iterable[torch.device]) -> float:
    """The clock in seconds, once the devices have done what was begun on them."""
    synchronise(devices)
    return time.perf_counter()


def room(device: torch.device) -> int | None:
    """Bytes of an accelerator that this process can have, what it has of them included.

    ``None`` for the CPU, and for devices that do not tell.
    """
    module: Any = getattr(torch, device.type, None)
    if device.type in ("cpu", "meta") or not hasattr(module, "mem_get_info"):
        return None
    own = module.memory_reserved(device) if hasattr(module, "memory_reserved") else 0
    return int(module.mem_get_info(device)[0]) + int(own)


@contextmanager
def told_if_full(doing: str, way_out: str) -> Iterator[None]:
    """Turn an error of a device, or of the host, that has no memory left into an :class:`InputError`.

    Args:
        doing: what was done, as a clause such as ``while the Gram of layer 'x' was computed``.
        way_out: what takes less memory, as a clause.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = one_line(str(error), 160)
        raise InputError(f"The memory ran out {doing}{f' ({reason})' if reason else ''}; {way_out}.") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # the allocators of the CPU and of Apple's GPU raise plain errors
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _FULL)


_FULL = ("can't allocate memory", "out of memory", "not enough memory")
