"""Whether this process is one of several that were started to do the same, as ``torchrun`` starts them."""

from __future__ import annotations

import os

import torch

from qubo_prune.errors import InputError


def check_alone(doing: str = "prune the whole model") -> None:
    """Raise :class:`InputError` if several processes would each do all of the work, and write to the same place.

    ``WORLD_SIZE`` says how many there are; without it the process group of ``torch.distributed`` does. So
    ``WORLD_SIZE=1`` is how a process among others says that it works on its own.

    Args:
        doing: what every process would do.
    """
    size, rank = _group()
    if size > 1:
        raise InputError(
            f"This is rank {rank} of {size} processes that were started together, and each of them would {doing}; "
            "start one process without torchrun or accelerate launch, or, where only one of them does this or each has "
            "an output of its own, set the environment variable WORLD_SIZE=1 in it."
        )


def _group() -> tuple[int, str]:
    """How many processes there are, and which this is."""
    told = os.environ.get("WORLD_SIZE", "").strip()
    if told.isdigit():
        return int(told), os.environ.get("RANK", "").strip() or "?"
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), str(distributed.get_rank())
    return 1, "0"
