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
import torch
from torch import Tensor, nn

from qubo_prune.devices import room
from qubo_prune.methods.row_blocks import RowBlocks
from qubo_prune.models.layers import Layer, within
from qubo_prune.models.stack import find_stack
from qubo_prune.models.storage import WeightStorage
from qubo_prune.run.plan import Plan

_CPU = torch.device("cpu")
#: Float64 entries that batches of rows take at most at a time on the CPU, in each of a few arrays.
_ENTRIES, _ARRAYS = 2**23, 4
#: Bytes of a float32.
_FLOAT = 4
#: Bytes of Python, torch and transformers at least, and of the compiled searches that are loaded when they are used.
_LIBRARIES, _KERNELS = 350 * 2**20, 100 * 2**20


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of an accelerator that a run is expected to have at its peak there.

    Attributes:
        device: its name.
        weights: weights that are on it at a time.
        undo: what the weights before pruning are given back from.
        states: hidden states, and activations of one forward pass.
        layer: Gram and work of the largest of its layers.
        available: bytes that the process can have, what it has included; ``None`` if the device does not tell.
    """

    device: str
    weights: int
    undo: int
    states: int
    layer: int
    available: int | None

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.undo + self.states + self.layer

    @property
    def short(self) -> bool:
        """Whether more is expected than there is."""
        return self.available is not None and self.total > self.available

    def sentence(self) -> str:
        """The estimate in words."""
        parts = {
            "weights": self.weights,
            "undoing": self.undo,
            "hidden states": self.states,
            "work on a layer": self.layer,
        }
        told = ", ".join(f"{name} {as_text(count)}" for name, count in parts.items())
        there = "" if self.available is None else f"; {as_text(self.available)} are available there"
        return f"About {as_text(self.total)} of {self.device} will be needed ({told}){there}."


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of the host's memory that a run is expected to have resident at its peak, and of accelerators.

    Attributes:
        process: what the process has besides the model, and libraries that it has still to load.
        weights: weights that are in memory at a time.
        undo: what the weights before pruning are given back from, and masks.
        states: hidden states, and activations of one forward pass.
        layer: Gram and work of the largest layer.
        devices: what is on accelerators, which is not in the other figures.
    """

    process: int
    weights: int
    undo: int
    states: int
    layer: int
    devices: tuple[DeviceMemory, ...] = ()

    @property
    def total(self) -> int:
        """All of the host's together."""
        return self.process + self.weights + self.undo + self.states + self.layer

    def sentence(self, available: int) -> str:
        """The estimate in words, against what is available besides what the process has."""
        parts = {
            "process": self.process,
            "weights": self.weights,
            "undoing and masks": self.undo,
            "hidden states": self.states,
            "work on a layer": self.layer,
        }
        told = ", ".join(f"{name} {as_text(count)}" for name, count in parts.items())
        own = f"About {as_text(self.total)} of memory will be needed ({told}); {as_text(available)} are available."
        return " ".join([own, *(each.sentence() for each in self.devices)])

    def short(self, available: int) -> bool:
        """Whether more is expected than there is, of the host's or of an accelerator."""
        return self.total > available or any(each.short for each in self.devices)


def estimate(
    model: nn.Module,
    layers: Sequence[Layer],
    plan: Plan,
    inputs: Sequence[Any],
    held_out: Sequence[Any],
    process: int,
    blocks: Sequence[nn.Module] | None,
    device: torch.device = _CPU,
) -> MemoryEstimate | None:
    """Of a run that streams a language model; ``None`` where inputs or blocks of the loss make it another thing.

    Args:
        model: the model, with a ``config`` that tells its sizes.
        layers: to be pruned.
        plan: of the run.
        inputs: windows of token ids.
        held_out: more of them.
        process: bytes that the process has now.
        blocks: decoder layers, if weights are on the disk.
        device: where weights come that are not there yet.
    """
    config = getattr(model, "config", None)
    width, vocabulary = getattr(config, "hidden_size", None), getattr(config, "vocab_size", None)
    windows = [window for window in (*inputs, *held_out) if isinstance(window, Tensor) and window.ndim == 2]
    if (
        plan.chain.whole is not None
        or width is None
        or vocabulary is None
        or len(windows) < len(inputs) + len(held_out)
    ):
        return None
    # "cuda" is the device on which parameters are already, as "cuda:0"
    device = next((each.device for each in model.parameters() if each.device.type == device.type), device)
    item = layers[0].parameter.dtype.itemsize
    tokens, longest = sum(window.numel() for window in windows), max(window.numel() for window in windows)
    widest = max(max(layer.shape) for layer in layers)
    held = (2 if plan.correction else 1) * (2 * longest if blocks is not None else tokens)
    states = held * width * item + longest * max(vocabulary * item, 4 * widest * max(item, 4))

    def parts(place: torch.device) -> _Parts:
        """What is on one device: hidden states are on each that has layers, as they come through it."""
        own = [layer for layer in layers if _place(layer.parameter, device) == place]
        here, weights, undo = _resident(model, own, plan, blocks, place, device)
        work = max((_work(layer, plan, bool(held_out)) for layer in own), default=0)
        if own and plan.chain.joints:
            logits = longest * vocabulary * item
            work = max(
                work, _fitting(plan, own, find_stack(model, layers) or [model], tokens * width * item, longest, logits)
            )
        return _Parts(here, weights, undo, states if own else 0, work)

    host = parts(_CPU)
    # of weights that were just mapped from their file, not all need be there yet
    besides = max(process - host.here, min(process, _LIBRARIES)) + _KERNELS
    masks = sum(layer.parameter.numel() for layer in layers) // 8
    places = dict.fromkeys(_place(parameter, device) for parameter in model.parameters())
    others = tuple(
        DeviceMemory(str(place), found.weights, found.undo, found.states, found.work, room(place))
        for place in places
        if place != _CPU
        for found in [parts(place)]
    )
    return MemoryEstimate(besides, host.weights, host.undo + masks, host.states, host.work, others)


@dataclass(frozen=True)
class _Parts:
    """Bytes on one device; ``here`` are those of weights that are there all the time."""

    here: int
    weights: int
    undo: int
    states: int
    work: int


def _place(parameter: nn.Parameter, device: torch.device) -> torch.device:
    """Where a parameter is, or will be."""
    return device if parameter.is_meta else parameter.device


def _resident(
    model: nn.Module,
    own: Sequence[Layer],
    plan: Plan,
    blocks: Sequence[nn.Module] | None,
    place: torch.device,
    device: torch.device,
) -> tuple[int, int, int]:
    """Bytes of weights that stay on a device, of those on it at a time, and of what undoes the run."""

    def there(parameters: Iterable[nn.Parameter]) -> int:
        return _bytes(parameter for parameter in parameters if _place(parameter, device) == place)

    item = own[0].parameter.dtype.itemsize if own else 0
    if blocks is None:
        here, pruned = there(model.parameters()), sum(layer.parameter.numel() for layer in own)
        return here, here, pruned * item if plan.updates else round(pruned * (1 + (1 - plan.density) * item))
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    here = there(parameter for parameter in model.parameters() if id(parameter) not in inside)
    undo = 0
    if plan.correction:
        undo = max(sum(layer.parameter.numel() for layer in within(own, block)) for block in blocks) * item
    return here, here + max(there(block.parameters()) for block in blocks), undo


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
    elif plan.chain.blocks is not None:  # fields and costs of flips
        work += 4 * 8 * matrix + _row_problems(plan.chain.blocks, square)
    return gram + work


def _fitting(
    plan: Plan, own: Sequence[Layer], blocks: Sequence[nn.Module], states: int, longest: int, logits: int
) -> int:
    """Bytes that it takes to fit layers together: weights in float32, gradients, Adam's moments, activations.

    Args:
        plan: of the run.
        own: the layers on a device.
        blocks: the decoder layers.
        states: bytes of the calibration's hidden states, the targets of a decoder layer.
        longest: tokens of the longest window.
        logits: bytes of its predictions.
    """
    held = [list(within(own, block)) for block in blocks]
    # what a layer reads and gives is kept for the backward pass, and about as much between layers
    activations = [sum(2 * sum(layer.shape) * longest * _FLOAT for layer in block) for block in held]
    weights = [4 * _FLOAT * sum(layer.parameter.numel() for layer in block) for block in held]
    need = 0
    for joint in plan.chain.joints:
        if joint.whole_model:
            need = max(need, sum(weights) + sum(activations) + 6 * logits)
        else:
            need = max(need, max(map(sum, zip(weights, activations, strict=True)), default=0) + states)
    return need


def _row_problems(blocks: RowBlocks, square: int) -> int:
    """Bytes of the matrices of whole rows, where blocks are these and the solver does not take them in batches."""
    can = blocks.made.capabilities
    if blocks.size != "row" or (can.batched and can.cardinality):
        return 0
    # each process has one and the next waits for it: the matrix, what the solver makes of it, and what is sent
    return _ARRAYS * 8 * square * 2 * max(1, blocks.handling.workers)


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


def room_for_passes(layers: Sequence[Layer], shelf: WeightStorage) -> int:
    """Bytes that passes may keep for later ones: a quarter of what is there, none if weights are on the disk."""
    if not shelf.in_memory:
        return 0
    devices = {layer.parameter.device for layer in layers}
    return min([available_memory(), *filter(None, map(room, devices))]) // 4


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
