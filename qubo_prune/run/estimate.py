"""Estimate a run's layers, time and memory without running it.

Sizes and counts follow from the model's shapes, memory from :mod:`qubo_prune.run.memory`. Time is measured here and now
on a small part of the run: one decoder layer sees a few windows, and some rows of each kind of its layers are pruned
as they would be; the rest is taken to be like that part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Group
from rich.text import Text
from torch import nn

from qubo_prune.blocks.loss.descent import OnStep
from qubo_prune.data.calibration import Calibration
from qubo_prune.errors import InputError
from qubo_prune.files.parsing import expanded
from qubo_prune.files.safetensors import is_checkpoint
from qubo_prune.hessian.gram import Drift, Gram
from qubo_prune.hessian.reach import NO_INPUT, nothing_reached, uses_of
from qubo_prune.hessian.stream import Sampled, sample
from qubo_prune.models.coverage import Coverage, LeftDense, percent
from qubo_prune.models.coverage import sentences as lines_of
from qubo_prune.models.disk import load_on_disk
from qubo_prune.models.layers import Layer, check_finite
from qubo_prune.models.load import DTYPES, LoadedModel, load_model, module_as_given
from qubo_prune.models.names import DottedName, folded
from qubo_prune.precision import pinned
from qubo_prune.progress import Progress
from qubo_prune.request import PruneRequest
from qubo_prune.run.folder import check_free
from qubo_prune.run.layerwise import densities_of, named_in_full, prune_alone
from qubo_prune.run.memory import MemoryEstimate, available_memory, estimate, resident_memory, room_for_passes
from qubo_prune.run.plan import Plan
from qubo_prune.run.prune import Checked, check_fits, check_request, plan_layers, request_of
from qubo_prune.solver.block_counts import NONE
from qubo_prune.tables import Shown, Table, rendered

#: Windows that the sampled decoder layer sees.
_WINDOWS = 8
#: Rows of a layer that are pruned first, and by what factor more of them next.
_ROWS, _MORE = 8, 4
#: Seconds of a sample that are enough for one kind of layer, and for all kinds together.
_ENOUGH, _ALL = 1.0, 15.0


@dataclass(frozen=True)
class LayerGroup:
    """Layers of one kind and shape.

    Attributes:
        name: of the kind, numbers left open.
        layers: how many.
        shape: ``(d_out, d_in)`` of each.
        kept: weights that all of them together keep.
        blocks: most blocks of a row; ``None`` where no row has blocks of its own.
        block_size: weights of one.
    """

    name: str
    layers: int
    shape: tuple[int, int]
    kept: int
    blocks: int | None
    block_size: int | None

    @property
    def weights(self) -> int:
        """Of all of them together."""
        return self.layers * self.shape[0] * self.shape[1]

    @property
    def density(self) -> float:
        """Kept share."""
        return self.kept / self.weights


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds that a run is expected to take.

    Attributes:
        loading: reading the weights.
        passes: forward passes over the calibration data, and Grams.
        search: choosing masks and weights.
        measured: how that was found, as a sentence.
    """

    loading: float
    passes: float
    search: float
    measured: str

    @property
    def total(self) -> float:
        """All together."""
        return self.loading + self.passes + self.search


@dataclass(frozen=True, eq=False)
class RunEstimate(Shown):
    """What :func:`qubo_prune.prune` would do with the same arguments.

    Attributes:
        model: its name.
        settings: the arguments of the run that matter, checked.
        calibration: source, windows and token count.
        groups: the layers by kind, in the order of the model.
        memory: bytes at the peak; ``None`` where they are not foreseen.
        available_bytes: that this process can have.
        time: ``None`` where it was not measured.
        notes: sentences on what was not foreseen.
        left_dense: layers that the first inputs do not reach, and which would not be pruned if no other does.
        coverage: the weights of the whole model, and large parameters that are in no layer of the run.
    """

    model: str
    settings: dict[str, Any]
    calibration: dict[str, Any]
    groups: tuple[LayerGroup, ...]
    memory: MemoryEstimate | None
    available_bytes: int
    time: TimeEstimate | None
    notes: tuple[str, ...] = ()
    left_dense: tuple[LeftDense, ...] = ()
    coverage: Coverage | None = None

    @property
    def share(self) -> float | None:
        """The share of all weights of the model that is in layers that would be pruned."""
        return None if self.coverage is None else self.weights / self.coverage.weights

    @property
    def layers(self) -> int:
        """How many would be pruned."""
        return sum(group.layers for group in self.groups)

    @property
    def weights(self) -> int:
        """Of all of them."""
        return sum(group.weights for group in self.groups)

    @property
    def kept(self) -> int:
        """Weights that would be kept, of those."""
        return sum(group.kept for group in self.groups)

    @property
    def density(self) -> float:
        """The kept share of all of them."""
        return self.kept / self.weights

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        memory, seconds = self.memory, self.time
        return {
            "model": self.model,
            "settings": self.settings,
            "calibration": self.calibration,
            "totals": {
                "layers": self.layers,
                "weights": self.weights,
                "kept": self.kept,
                "density": self.density,
                "share": self.share,
                "left_dense": len(self.left_dense),
            },
            "groups": [asdict(group) | {"weights": group.weights, "density": group.density} for group in self.groups],
            "memory_estimate_bytes": None if memory is None else asdict(memory) | {"total": memory.total},
            "available_bytes": self.available_bytes,
            "seconds_estimate": None if seconds is None else asdict(seconds) | {"total": seconds.total},
            "notes": list(self.notes),
            "left_dense": [asdict(layer) for layer in self.left_dense],
            "coverage": self.coverage.to_dict() if self.coverage else None,
        }

    def table(self) -> Table:
        """The layers by kind, at most 80 columns."""
        table = Table(title=self._title(), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
        table.add_column("\nlayer", min_width=12)
        for column in ("\nlayers", "\nshape", "\nweights", "\nkept", "\ndensity", "blocks\na row"):
            table.add_column(column, justify="right", no_wrap=True)
        for group in self.groups:
            blocks = "-" if group.blocks is None else f"{group.blocks} x {group.block_size}"
            table.add_row(
                DottedName(group.name),
                str(group.layers),
                "x".join(map(str, group.shape)),
                f"{group.weights:,}",
                f"{group.kept:,}",
                f"{group.density:.4f}",
                blocks,
            )
        table.add_section()
        table.add_row("all", str(self.layers), "", f"{self.weights:,}", f"{self.kept:,}", f"{self.density:.4f}", "")
        return table

    def sentences(self) -> list[str]:
        """Calibration, memory, time, and what was not foreseen."""
        said = [f"Calibration: {_drawn(self.calibration)}."]
        if self.share is not None:
            said.append(f"The layers hold {percent(self.share)} of the model's weights.")
        said += [f"{line[0].upper()}{line[1:]}." for line in lines_of(self.coverage, self.left_dense)]
        if self.memory is not None:
            said.append(self.memory.sentence(self.available_bytes))
        if self.time is not None:
            parts = {"loading": self.time.loading, "passes": self.time.passes, "search": self.time.search}
            told = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
            said.append(f"It will take about {duration(self.time.total)} ({told}); {self.time.measured}")
        return [*said, *self.notes, "Nothing was pruned and nothing was written."]

    def _title(self) -> str:
        asked = self.settings
        blocks = f" blocks by {asked['solver']}" if asked["solver"] else ""
        return f"{self.model}: {asked['method']}{blocks}, pattern {asked['pattern']}"

    def __rich__(self) -> Group:
        return Group(self.table(), *map(Text, self.sentences()))

    def __str__(self) -> str:
        return rendered(self, 80)


def duration(seconds: float) -> str:
    """A rough time for people: two digits at most.

    >>> [duration(each) for each in (0.4, 7.2, 61, 1000, 20000)]
    ['1 s', '7 s', '1 min', '17 min', '5.6 h']
    """
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 99.5 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def _drawn(calibration: Mapping[str, Any]) -> str:
    """What a run is calibrated on, in words; of what is no text, all that is known of it."""
    if {"windows", "length", "tokens", "tokens_available"} <= calibration.keys():
        return (
            f"{calibration['windows']} windows of {calibration['length']} tokens, {calibration['tokens']} of the "
            f"{calibration['tokens_available']} of {calibration['source']}"
        )
    return ", ".join(f"{name} {value}" for name, value in calibration.items() if name != "sha256")


@pinned()
def estimate_run(
    model: str | nn.Module, calibration: Any = "pydoc", density: float = 0.5, **arguments: Any
) -> RunEstimate:
    """Tell what :func:`qubo_prune.prune` would do with these arguments, and what it would take.

    All is checked that a run checks, but for the values of weights that stay on the disk. Of a checkpoint of
    safetensors only shapes and one decoder layer are loaded. Nothing is pruned and nothing is written.

    Args:
        model: as :func:`qubo_prune.prune` takes it.
        calibration: likewise.
        density: likewise.
        arguments: the other ones of :func:`qubo_prune.prune`.

    Raises:
        InputError: as a run would.
        TypeError: there is no such argument.
    """
    own = {name: arguments.pop(name) for name in ("on_step", "progress") if name in arguments}
    groups = {name: arguments.pop(name, None) for name in ("budget", "data", "place", "run")}
    method = arguments.pop("method", "gram")
    request = request_of(model, calibration, density, method, groups, arguments, caller="estimate_run")
    return estimate_request(request, own.get("on_step"), bool(own.get("progress", False)))


def estimate_request(request: PruneRequest, on_step: OnStep | None = None, progress: bool = False) -> RunEstimate:
    """Tell what a request asks for; see :func:`estimate_run`."""
    request = request.with_effort()
    checked, model = check_request(request, on_step), request.model
    check_free(request.run.run_folder, request.run.resume)
    bars = Progress(progress)
    with bars.task(f"looking at {model if isinstance(model, str) else type(model).__name__}", None):
        began = time.perf_counter()
        loaded = _looked_at(request)
        loading = time.perf_counter() - began
        planned = plan_layers(checked, loaded)
        plan, layers, data = planned.plan, planned.layers, planned.data
        coverage = Coverage.of(loaded.model, layers, request.budget.include, request.budget.exclude)
        left = _left_dense(plan, loaded, layers, data)
        names = {layer.name for layer in left}
        every, layers = layers, [layer for layer in layers if layer.name not in names]
        if not layers:
            raise nothing_reached(every, left[0].reason, "inputs that go through them")
        densities = densities_of(plan, layers)
        if loaded.shelf.in_memory and not _is_hollow(loaded.model):
            check_finite(layers)
        memory = _memory(request, loaded, layers, plan, data)
        available = available_memory() + resident_memory()
    with bars.task("measuring a part of the run", None):
        seconds, warnings = None, list[str]()
        if plan.needs_inputs and not _is_hollow(loaded.model):
            measured = _Measured(plan, loaded, layers, data, densities)
            seconds, warnings = measured.estimate(loading), measured.warnings()
    return RunEstimate(
        loaded.name,
        plan.settings(),
        data.described,
        _groups(plan, layers, densities),
        memory,
        available,
        seconds,
        (*warnings, *_unforeseen(checked, plan, loaded)),
        tuple(left),
        coverage,
    )


def _left_dense(plan: Plan, loaded: LoadedModel, layers: Sequence[Layer], data: Calibration) -> list[LeftDense]:
    """Layers that some of the inputs do not reach, where the model can be run as a whole."""
    if not loaded.shelf.in_memory or _is_hollow(loaded.model):
        return []
    inputs = data.inputs[:_WINDOWS]
    uses, named = uses_of(loaded.model, layers, inputs), named_in_full(plan, layers)
    missing = [layer for layer in layers if layer.name not in uses.called and layer.name not in named]
    tried = f"not reached by the first {len(inputs)} calibration inputs, and dense unless others reach it"

    def why(layer: Layer) -> str:
        reason = uses.why_not_reached(layer.name)
        return tried if reason == NO_INPUT and len(inputs) < len(data.inputs) else reason

    return [LeftDense(layer.name, layer.parameter.numel(), why(layer)) for layer in missing]


def _looked_at(request: PruneRequest) -> LoadedModel:
    """The model, with no more of its weights in memory than have to be."""
    model, place = request.model, request.place
    dtype, device, trust = place.dtype, place.device, place.trust_remote_code
    if not isinstance(model, str):
        return module_as_given(model, request.data.tokenizer)
    folder = expanded(model)
    if not is_checkpoint(folder):
        return load_model(model, dtype, device, trust)
    nowhere = Path("no-folder")  # hidden states would be there
    if place.weights == "disk":
        return load_on_disk(model, device, trust, nowhere)
    check_fits(model, dtype, device)
    try:
        return load_on_disk(model, device, trust, nowhere, DTYPES[dtype])
    except InputError:  # it can only be loaded as a whole
        return load_model(model, dtype, device, trust)


def _is_hollow(model: nn.Module) -> bool:
    """True if no weight is there at all."""
    return all(parameter.is_meta for parameter in model.parameters())


def _memory(
    request: PruneRequest, loaded: LoadedModel, layers: Sequence[Layer], plan: Plan, data: Calibration
) -> MemoryEstimate | None:
    """What a run would have at its peak, whose weights may be in memory where these are not."""
    blocks, process, device = None, resident_memory(), torch.device(request.place.device)
    if request.place.weights == "disk":
        blocks = loaded.shelf.blocks
    elif device.type == "cpu":
        process += sum(p.numel() * p.dtype.itemsize for p in loaded.model.parameters() if p.is_meta)
    return estimate(loaded.model, layers, plan, data.inputs, data.held_out, process, blocks, device)


def _groups(plan: Plan, layers: Sequence[Layer], densities: Mapping[str, float]) -> tuple[LayerGroup, ...]:
    members: dict[tuple[str, tuple[int, int]], list[Layer]] = {}
    for layer in layers:
        members.setdefault((folded(layer.name), layer.shape), []).append(layer)
    groups = []
    for (name, shape), found in members.items():
        kept = sum(plan.pattern.num_kept(shape, densities[layer.name]) for layer in found)
        descent = plan.chain.blocks
        blocks = None if descent is None else descent.max_sweeps
        size = None if descent is None else descent.size_in(shape[1])
        groups.append(LayerGroup(name, len(found), shape, kept, blocks, size))
    return tuple(groups)


def _unforeseen(checked: Checked, plan: Plan, loaded: LoadedModel) -> list[str]:
    said = []
    if not loaded.shelf.in_memory or _is_hollow(loaded.model):
        said.append("Which layers the calibration reaches is seen in the run only; those that it does not stay dense.")
    if plan.allocation != "uniform":
        said.append(f"The allocation {plan.allocation!r} decides the densities of the layers in the run.")
    if plan.chain.whole is not None:
        limit = "" if plan.max_time is None else duration(plan.max_time)
        said.append(f"{plan.chain.whole.foreseen(limit)}; their time and memory are not foreseen.")
    if plan.chain.joints:
        said.append("The time of fitting layers together is not foreseen.")
    if plan.needs_gradients:
        said.append("The time of the gradients of the loss is not foreseen.")
    if checked.output is not None:
        said.append(f"The result would go to {checked.output}.")
    return said


class _Measured:
    """Times of a part of a run, and what follows for the whole of it."""

    def __init__(
        self,
        plan: Plan,
        loaded: LoadedModel,
        layers: Sequence[Layer],
        data: Calibration,
        densities: Mapping[str, float],
    ) -> None:
        self._plan, self._loaded, self._layers, self._data = plan, loaded, layers, data
        self._densities = densities
        self._kinds = {(folded(layer.name), layer.shape) for layer in layers}
        self._seconds: dict[tuple[str, tuple[int, int]], float] = {}
        self._rows = 0
        self._blocks = NONE

    def warnings(self) -> list[str]:
        """How many of the blocks that were measured the solver lost, and how many the clock cut, as sentences."""
        return [f"Among the rows that were measured: {said}" for said in self._blocks.sentences(self._plan.solver_name)]

    def estimate(self, loading: float) -> TimeEstimate:
        """Of the whole run, where loading took so long."""
        windows = [*self._data.inputs, *self._data.held_out]
        held_out = self._data.held_out[:1]
        inputs = self._data.inputs[: max(1, _WINDOWS - len(held_out))]
        self._sample(inputs[:1], [], _ignore)  # loads and compiles what it takes
        one = self._sample(inputs[:1], [], _ignore)
        some = self._sample(inputs, held_out, self._time_some_rows)
        seen = len(inputs) + len(held_out)
        pairs = ((one.passes, some.passes), (one.onward, some.onward), (one.advance, some.advance))
        passes, onward, advance = (_extended([(1, first), (seen, more)], len(windows)) for first, more in pairs)
        both = 2 if self._plan.correction else 1
        times = 2 if self._plan.allocation == "owl" else 1
        forward = times * (some.blocks * passes + some.behind * onward)
        # the first window goes through the whole model, and those by which the result is judged do so twice
        whole = both * times + 2 * len(self._data.held_out)
        forward += whole * some.stack * advance / len(windows)
        if not self._loaded.shelf.in_memory:
            loading = some.loading * some.behind
        return TimeEstimate(loading, forward, self._limited(forward + loading), self._told(some, seen))

    def _sample(self, inputs: Sequence[Any], held_out: Sequence[Any], visit: Callable[[Layer, Gram], None]) -> Sampled:
        plan, loaded = self._plan, self._loaded
        return sample(
            loaded.model,
            self._layers,
            inputs,
            visit,
            held_out,
            bool(plan.correction),
            loaded.shelf,
            plan.gram_devices,
            room_for_passes(self._layers, loaded.shelf),
        )

    def _told(self, some: Sampled, seen: int) -> str:
        of = f"{seen} of {len(self._data.inputs) + len(self._data.held_out)} batches"
        block = "the model" if some.stack == 1 else f"one of {some.stack} decoder layers"
        return f"measured on this machine, with {of} through {block} and {self._rows} rows pruned, and scaled."

    def _limited(self, rest: float) -> float:
        """Seconds of the search over all layers, within the run's budget."""
        total = sum(self._of_layer(layer) for layer in self._layers)
        return total if self._plan.max_time is None else min(total, max(0.0, self._plan.max_time - rest))

    def _of_layer(self, layer: Layer) -> float:
        """Seconds of one layer; of a kind that was not sampled, by the weights of those of its width, or of all."""
        measured = self._seconds.get((folded(layer.name), layer.shape))
        if measured is not None:
            return measured
        like = [shape for _, shape in self._seconds if shape[1] == layer.shape[1]]
        taken = [(shape, seconds) for (_, shape), seconds in self._seconds.items() if not like or shape in like]
        weights = sum(shape[0] * shape[1] for shape, _ in taken)
        return sum(seconds for _, seconds in taken) * layer.shape[0] * layer.shape[1] / max(1, weights)

    def _time_some_rows(self, layer: Layer, gram: Gram) -> None:
        """Prune more and more rows of a layer until that takes long enough to tell."""
        kind = (folded(layer.name), layer.shape)
        if kind in self._seconds:
            return
        rows, enough = layer.shape[0], min(_ENOUGH, _ALL / len(self._kinds))
        count = rows if gram.groups > 1 else min(rows, _ROWS)
        self._prune(layer, gram, count)  # loads and compiles what it takes
        spent: list[tuple[int, float]] = []
        # one point alone does not tell what is there once from what each row takes
        while not spent or (spent[-1][0] < rows and (len(spent) < 2 or spent[-1][1] < enough)):
            spent.append((count, self._prune(layer, gram, count)))
            count = min(rows, _MORE * count)
        self._rows += spent[-1][0]
        self._seconds[kind] = _extended(spent[-2:], rows)

    def _prune(self, layer: Layer, gram: Gram, count: int) -> float:
        """Seconds that so many rows of a layer take."""
        part, alone = _some_rows(layer, count), self._plan.alone(self._densities[layer.name])
        began = time.perf_counter()
        self._blocks += prune_alone(alone, part, _gram_of_rows(gram, count)).blocks
        return time.perf_counter() - began


def _ignore(layer: Layer, gram: Gram) -> None:
    """A visit that does nothing."""


def _extended(spent: Sequence[tuple[int, float]], count: int) -> float:
    """The line through one or two points ``(count, seconds)``, the second from below, at another count."""
    (last, seconds), *before = reversed(spent)
    if last == count:
        return seconds
    if not before or before[0][0] == last:
        return seconds * count / last
    first, least = before[0]
    # what is there once does not make the others slower: whatever disturbed one of the two, the slope is within these
    slope = min(max(0.0, seconds - least) / (last - first), least / first)
    return seconds + slope * (count - last)


def _some_rows(layer: Layer, count: int) -> Layer:
    """The first rows of a layer as a linear one of its own."""
    weight = layer.matrix()[:count].clone()
    module = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    return Layer(layer.name, module)


def _gram_of_rows(gram: Gram, count: int) -> Gram:
    """A Gram whose drift is that of the first outputs only."""
    held_out = None if gram.held_out is None else _gram_of_rows(gram.held_out, count)
    drift, d_in = gram.drift, gram.matrix.shape[-1]
    if drift is not None and drift.cross.shape[-2] > d_in:
        reach = d_in + count
        own = None if drift.own is None else drift.own[..., :reach, :reach]
        drift = Drift(drift.cross[..., :reach, :], own)
    return replace(gram, held_out=held_out, drift=drift)
