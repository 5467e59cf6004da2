"""How much memory a run will take, and how much there is.

The estimate is a sum of what is in memory together at the worst moment: the process before, the weights that are
resident, what it takes to undo the run, hidden states, and the work on the largest layer. Factors of the last are those
of the arrays that exist side by side there, rounded up.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from torch import Tensor, nn

from qubo_prune.layers import Layer, within
from qubo_prune.plan import Plan

#: Float64 entries that batches of rows take at most at a time on the CPU, in each of a few arrays.
_ENTRIES, _ARRAYS = 2**23, 4
#: Bytes of Python, torch and transformers at least, and of the compiled searches that are loaded when they are used.
_LIBRARIES, _KERNELS = 350 * 2**20, 100 * 2**20


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of memory that a run is expected to have resident at its peak.

    Attributes:
        process: what the process has besides the model, and libraries that it has still to load.
        weights: weights that are in memory at a time.
        undo: what the weights before pruning are given back from, and masks.
        states: hidden states, and activations of one forward pass.
        layer: Gram and work of the largest layer.
    """

    process: int
    weights: int
    undo: int
    states: int
    layer: int

    @property
    def total(self) -> int:
        """All together."""
        return self.process + self.weights + self.undo + self.states + self.layer

    def sentence(self, available: int) -> str:
        """The estimate in words, against what is available besides what the process has."""
        parts = {
            "process": self.process, "weights": self.weights, "undoing and masks": self.undo,
            "hidden states": self.states, "work on a layer": self.layer,
        }  # fmt: skip
        told = ", ".join(f"{name} {as_text(count)}" for name, count in parts.items())
        return f"About {as_text(self.total)} of memory will be needed ({told}); {as_text(available)} are available."


def estimate(
    model: nn.Module, layers: Sequence[Layer], plan: Plan, inputs: Sequence[Any], held_out: Sequence[Any], process: int,
    blocks: Sequence[nn.Module] | None,
) -> MemoryEstimate | None:  # fmt: skip
    """Of a run that streams a language model; ``None`` where inputs or blocks of the loss make it another thing.

    Args:
        model: the model, with a ``config`` that tells its sizes.
        layers: to be pruned.
        plan: of the run.
        inputs: windows of token ids.
        held_out: more of them.
        process: bytes that the process has now.
        blocks: decoder layers, if weights are on the disk.
    """
    config = getattr(model, "config", None)
    width, vocabulary = getattr(config, "hidden_size", None), getattr(config, "vocab_size", None)
    windows = [window for window in (*inputs, *held_out) if isinstance(window, Tensor) and window.ndim == 2]
    if plan.task is not None or width is None or vocabulary is None or len(windows) < len(inputs) + len(held_out):
        return None
    item = layers[0].parameter.dtype.itemsize
    pruned = sum(layer.parameter.numel() for layer in layers)
    if blocks is None:
        weights = here = _bytes(model.parameters())
        undo = pruned * item if plan.updates else round(pruned * (1 + (1 - plan.density) * item))
    else:
        inside = {id(parameter) for block in blocks for parameter in block.parameters()}
        outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]
        here = _bytes(outside)
        weights = here + max(_bytes(block.parameters()) for block in blocks)
        undo = 0
        if plan.correction:
            undo = max(sum(layer.parameter.numel() for layer in within(layers, block)) for block in blocks) * item
    tokens, longest = sum(window.numel() for window in windows), max(window.numel() for window in windows)
    widest = max(max(layer.shape) for layer in layers)
    held = (2 if plan.correction else 1) * (2 * longest if blocks is not None else tokens)
    states = held * width * item + longest * max(vocabulary * item, 4 * widest * max(item, 4))
    work = max(_work(layer, plan, bool(held_out)) for layer in layers)
    # of weights that were just mapped from their file, not all need be there yet
    besides = max(process - here, min(process, _LIBRARIES)) + _KERNELS
    return MemoryEstimate(besides, weights, undo + pruned // 8, states, work)


def _work(layer: Layer, plan: Plan, guarded: bool) -> int:
    """Bytes that it takes to prune a layer, its weight aside."""
    d_out, d_in = layer.shape
    square, matrix = d_in * d_in, d_out * d_in
    # a sum in float64, the product that is added to it, in two types, and at last its transpose
    gram = (8 + 8 + 4) * square
    if guarded:
        gram += 8 * square
    if plan.correction:  # and the sums of the drift, the product again; held-out ones have its own besides
        rows = d_in + d_out
        gram += (8 + 4) * rows * d_in + (8 * rows * d_in + 12 * rows * rows if guarded else 0)
    item = layer.parameter.dtype.itemsize
    # changes of the weight, and float64 products for the error of one
    work = 4 * item * matrix + 3 * 8 * matrix
    if plan.updates:  # factors of the Gram, inverses for batches of rows
        work += 4 * 8 * square + _ARRAYS * 8 * min(_ENTRIES, d_out * square)
    elif plan.descent is not None:  # fields and costs of flips
        work += 4 * 8 * matrix
    return gram + work


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.dtype.itemsize for parameter in parameters)


def resident_memory() -> int:
    """Bytes that this process has in memory now."""
    return int(psutil.Process().memory_info().rss)


def available_memory() -> int:
    """Bytes that this process can still take: what is free, swap included, within its cgroup and its limits."""
    system = psutil.virtual_memory().available + psutil.swap_memory().free
    bounds = [system, *_left_in_groups()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        bounds.append(limit - psutil.Process().memory_info().vms)
    return max(0, int(min(bounds)))


def _left_in_groups() -> list[int]:
    """What control groups of Linux, of either version, leave."""
    left = []
    for folder, most, now in _groups():
        try:
            limit, used = (folder / most).read_text().strip(), int((folder / now).read_text())
            # pages of files go when memory is asked for
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit != "max":
            left.append(int(limit) - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))
    return left


def _groups() -> Iterable[tuple[Path, str, str]]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # in a container the group is mounted as the root
        if controllers == "":
            for folder in {Path("/sys/fs/cgroup"), Path(f"/sys/fs/cgroup{path}")}:
                yield folder, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            for folder in {Path("/sys/fs/cgroup/memory"), Path(f"/sys/fs/cgroup/memory{path}")}:
                yield folder, "memory.limit_in_bytes", "memory.usage_in_bytes"


def as_text(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
