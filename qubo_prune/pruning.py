"""The main job: prune the linear and convolution layers of a model, layer by layer, through block QUBOs."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qubo_prune.allocation import (
    by_loss_change,
    check_allocation,
    check_protect,
    counts_of,
    densities_by_name,
    outlier_share,
    owl,
    predicted_rise,
    protected,
)
from qubo_prune.calibration import Calibration, Source, choose_loss, judged_by, read_calibration
from qubo_prune.compensated import DAMPING
from qubo_prune.compensated_descent import CompensatedDescent, descend_compensated
from qubo_prune.correction import CORRECTION_DAMPING, SHARE, corrected
from qubo_prune.data import Samples
from qubo_prune.descent import Descent, DescentResult, descend, warm_start
from qubo_prune.dispatch import Handling, check_size, workers_for
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.gradients import moments
from qubo_prune.hessian import Gram
from qubo_prune.layers import Layer, Removed, check_finite, find_layers
from qubo_prune.loss_descent import LossDescent, OnStep, descend_loss
from qubo_prune.loss_trace import LossTrace
from qubo_prune.masks import KeepMasks, Pattern, keep_highest
from qubo_prune.models import LoadedModel, check_output, load_model, save_model
from qubo_prune.network import Seconds, stream
from qubo_prune.objective import Loss, LossFunction, NextToken, Objective, make_loss
from qubo_prune.peers import PEERS, Choice, choose
from qubo_prune.progress import Progress
from qubo_prune.registry import make_solver
from qubo_prune.report import LayerReport, Report
from qubo_prune.scores import SCORES
from qubo_prune.solver import Deadline, Solver, derive_seed
from qubo_prune.update import UPDATES
from qubo_prune.update import update as update_weights

#: How a layer is pruned: by blocks, by a score alone, or as a published method does it.
METHODS = ("icbs", "magnitude", "wanda", *PEERS)
HESSIANS = ("gram", "compensated", "fisher")
WARM_STARTS = (*SCORES, "greedy", *PEERS)
#: Weights from which on the descent on the loss takes the settings for large networks.
LARGE = 2_000_000
#: Samples that the allocation by the loss takes its gradients from.
_FISHER_SAMPLES = 64
#: Warm starts of a descent on the loss besides those.
LOSS_WARM_STARTS = ("gradient", "gram")


def prune(
    model: str | nn.Module,
    calibration: Source = "pydoc",
    density: float = 0.5,
    *,
    pattern: str = "row",
    method: str = "icbs",
    hessian: str = "gram",
    solver: str | Solver = "greedy",
    solver_settings: Mapping[str, Any] | None = None,
    warm_start: str | Mapping[str, Tensor] | None = None,
    update: str | None = None,
    damping: float | None = None,
    correction: float | None = None,
    allocation: str = "uniform",
    densities: Mapping[str, float] | None = None,
    protect: float = 0.0,
    block_size: int | None = None,
    block_time: float | str | None = "60s",
    workers: int | None = None,
    polish: bool = True,
    max_sweeps: int | None = None,
    max_time: float | str | None = None,
    seed: int = 0,
    samples: int = 32,
    sequence_length: int = 512,
    loss: str | Loss | LossFunction | None = None,
    loss_length: int = 128,
    gram_samples: int = 1024,
    guard: int | None = None,
    held_out: Samples | Iterable[Any] | None = None,
    loss_settings: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    prune_head: bool = False,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Report:
    """Prune a model's linear and 2-D convolution layers to an exact density.

    The model is changed in place: pruned weights become zero, kept ones stay as they are unless ``update``
    says otherwise. If anything goes wrong, an interrupt included, it gets its weights back and nothing is
    written.

    Args:
        model: any ``nn.Module`` with such layers, or a name that :func:`qubo_prune.models.load_model`
            takes (then ``output`` is where the result goes).
        calibration: for language models, a text source (see :func:`qubo_prune.text.read_text`) or
            token ids ``(windows, length)``; for any model, an iterable of its inputs: a tensor, a
            tuple of positional or a dict of named arguments each. With ``hessian="fisher"``, batches
            with labels (or what ``loss`` takes), or :class:`~qubo_prune.data.Samples`.
        density: kept share of each budget, above 0 and at most 1.
        pattern: ``row``, ``layer`` or ``n:m``: where the budget is balanced.
        method: ``icbs`` (warm start, then blocks), a score alone (``magnitude``, ``wanda``), or a published
            method of :mod:`qubo_prune.peers`.
        hessian: what the blocks are emitted from: ``gram`` (each layer's inputs, layer by layer),
            ``compensated`` (the same for kept weights that adapt, which they then do), or ``fisher``
            (gradients of the loss, over the whole model, after the warm start).
        solver: decides the blocks: a registered name, ``package.module:Class``, an adapter such as
            ``dimod:dwave.samplers:TabuSampler``, or a ``Solver``.
        solver_settings: fields of a named solver.
        warm_start: ``magnitude``, ``wanda``, ``greedy``, ``random``, a method of :mod:`qubo_prune.peers`, or keep
            masks by parameter name; with ``fisher`` also ``gradient`` (``|w g|`` of the dense model) and ``gram``
            (the masks of ``hessian="gram"``). By default ``wanda``, with ``compensated`` ``admm``.
        update: what becomes of the kept weights: ``none``, or an update on the final mask, ``refit``, ``admm`` or
            ``sparsegpt`` (see :mod:`qubo_prune.update`). By default what the method itself does to
            them, with ``compensated`` ``refit``.
        damping: share of a Gram's mean diagonal that updates and compensated blocks add to its diagonal; by default
            0.01, with a correction 0.1.
        correction: how far a layer is to make up for the layers pruned before it, from 0 (it is to keep its outputs
            on the inputs that it has now) to 1 (it is to give the dense model's outputs); see
            :mod:`qubo_prune.correction`. By default 0, with ``compensated`` 0.5.
        allocation: density of each layer: ``uniform``; ``owl``, more where scores have outliers; ``fisher``, by the
            predicted change of the loss (see :mod:`qubo_prune.allocation`). The whole keeps ``density``.
        densities: kept shares by shell-style patterns of layer names, for those that differ from ``density``; of
            several patterns that match a layer the last counts.
        protect: share of each layer's weights, those of the highest Wanda scores, that nothing may prune
            (``compensated``, or a score alone); fewer where a budget does not hold them.
        block_size: weights per block; by default 64, with ``compensated`` 128, with ``fisher`` 1024, or the
            most that the solver takes if that is less.
        block_time: wall-clock limit of one block, in seconds or as ``"500ms"`` or ``"10s"``; a solver that
            ignores it is ended and loses that block. ``None`` for no limit.
        workers: processes for solvers that take one block at a time on one core; by default one per core.
        polish: swap within the blocks that the solver has decided. What the solver brought and what
            the swaps did stand apart in the report.
        max_sweeps: most blocks each row takes; by default 1, before the swaps over the whole row, and with
            ``compensated`` 2.
        max_time: wall-clock budget of the whole run, in seconds or as ``"90s"``, ``"5m"``, ``"1h"``.
            The passes over the calibration data always complete; the search gets what they leave.
        seed: every random choice follows from it.
        samples: calibration windows cut from a text source.
        sequence_length: tokens per window.
        loss: ``next-token``, ``classification``, or a function ``(model, batch) -> losses`` of one value per
            sample; by default the first for texts and token ids, else the second. With ``gram`` it
            only tells the labels in a batch from the inputs.
        loss_length: tokens of a window that the loss is taken over, if the calibration is a text.
        gram_samples: of :class:`~qubo_prune.data.Samples`, or of batches with a loss, how many the layers'
            inputs are taken from, at most.
        guard: inputs on which the errors of the layers are measured besides: windows of a text between the others,
            or the last of given batches. A layer whose error there rises against the warm start gets that
            back, and its report says so. By default 4 windows of a text if kept weights change, else none.
        held_out: with ``fisher``, samples or batches by which moves are judged; a fifth of the
            calibration, which is then left out there, if not given.
        loss_settings: with ``fisher``, fields of :class:`~qubo_prune.loss_descent.LossDescent`; ``preset``
            chooses where the others start from: ``measured`` or ``paper``.
        on_step: with ``fisher``, called after each step with its record; its time does not count.
        include: shell-style patterns of layer names to prune; all if empty.
        exclude: patterns of layers to leave dense.
        prune_head: prune the output head too (embeddings tied to it become sparse with it).
        tokenizer: needed if ``model`` is a module and ``calibration`` a text source.
        dtype: of the loaded weights, if ``model`` is a name.
        device: where a named model is loaded.
        trust_remote_code: run model code that comes with a named checkpoint.
        output: folder for the pruned model, its report and its masks (language models).
        overwrite: replace an output folder that is not empty.
        progress: show progress bars.

    Returns:
        The report, with the keep masks.

    Raises:
        InputError: an argument cannot be used; the message says why and what to do.
    """
    began = time.perf_counter()
    if gram_samples < 1:
        raise InputError(f"gram_samples is {gram_samples}; it must be at least 1.")
    if guard is not None and guard < 0:
        raise InputError(f"guard is {guard}; a number of windows or batches, or 0 for none, is needed.")
    check_method(method, hessian, update)
    task = _task(hessian, loss, calibration)
    if task is None and loss_settings:
        raise InputError(
            f"loss_settings are given but hessian is {hessian!r}, which takes no loss; give hessian='fisher'."
        )
    blocks = _Blocks(solver, solver_settings or {}, block_size, parse_seconds(block_time), polish)
    if task is not None:  # what was given is for the blocks of the loss; a warm start by Grams has its own
        given = blocks
        task = task.with_settings(loss_settings or {}, given, seed)
        blocks = _Blocks(block_time=blocks.block_time)
    plan = _Plan.checked(
        density=density, pattern=pattern, method=method, warm_start=warm_start, blocks=blocks, workers=workers,
        max_sweeps=max_sweeps, max_time=max_time, seed=seed, task=task, hessian=hessian, update=update, damping=damping,
        correction=correction, allocation=allocation, densities=densities, protect=protect,
    )  # fmt: skip
    target = None if output is None else check_output(output, overwrite)
    bars = Progress(progress)
    if isinstance(model, str):
        with bars.task(f"loading {model}", None):
            loaded = load_model(model, dtype, device, trust_remote_code)
    else:
        loaded = LoadedModel(model, tokenizer, type(model).__name__)
        if target is not None and (tokenizer is None or not hasattr(model, "save_pretrained")):
            raise InputError(
                "output is given, which takes a transformers model and its tokenizer; pass both, or leave output "
                "out and save the model and report.masks yourself."
            )
    layers = find_layers(loaded.model, include, exclude, prune_head)
    if task is not None:
        plan = replace(plan, task=task.with_settings(loss_settings or {}, given, seed, layers))
    reading = _loss(task, loss)
    if allocation == "fisher" and reading is None:
        reading = choose_loss(loss, calibration)
    data = read_calibration(
        calibration, loaded, samples, sequence_length, reading, loss_length, gram_samples,
        guard if plan.updates or guard is not None else 0,
    )  # fmt: skip
    run = _Run(plan, layers, began)
    with run.undone_on_failure():
        run.allocate(loaded.model, data, reading, bars)
        if task is not None:
            run.prepare_loss(loaded.model, data, held_out)
        run.all_layers(loaded.model, data, bars)
        trace = run.descend_loss(bars, on_step) if task is not None else None
        seconds = vars(run.seconds) | {"total": time.perf_counter() - began}
        report = Report(
            tuple(run.reports), loaded.name, plan.settings(), data.described, seconds, KeepMasks(run.masks), trace
        )
        if target is not None:
            save_pruned(loaded, target, report)
    return report


def save_pruned(loaded: LoadedModel, target: Path, report: Report, texts: Mapping[str, str] | None = None) -> None:
    """Write model, tokenizer, ``report.json``, ``masks.safetensors`` and ``texts``, all or nothing."""

    def write_rest(folder: Path) -> None:
        report.save(folder / "report.json")
        report.masks.save(folder / "masks.safetensors")
        for name, content in (texts or {}).items():
            (folder / name).write_text(content + "\n", encoding="utf-8")

    save_model(loaded, target, write_rest)


def parse_seconds(value: float | str | None) -> float | None:
    """Seconds from a number or from text such as ``90``, ``500ms``, ``90s``, ``5m``, ``1.5h``."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(ms|[smh]?)\s*", str(value))
    try:
        seconds = float(match[1]) * {"": 1, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InputError(f"The time {value!r} is not understood; give a positive number such as 90s, 5m or 1h.")
    return seconds


@dataclass(frozen=True)
class _Blocks:
    """What the caller says of blocks and who decides them."""

    solver: str | Solver = "greedy"
    solver_settings: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    block_time: float | None = None
    polish: bool = True


@dataclass(frozen=True)
class _Task:
    """What a run with the Fisher matrix descends, and how."""

    loss: Loss
    settings: LossDescent

    def with_settings(
        self, given: Mapping[str, Any], blocks: _Blocks, seed: int, layers: Sequence[Layer] = ()
    ) -> _Task:
        """The settings of a run: those of a preset for the kind of model, changed by what was given."""
        large = sum(layer.parameter.numel() for layer in layers) > LARGE
        kind = "language" if isinstance(self.loss, NextToken) else "large" if large else "classifier"
        changes: dict[str, Any] = {"block_time": blocks.block_time, "polish": blocks.polish, "seed": seed}
        if blocks.solver != "greedy" or blocks.solver_settings:
            changes |= {"solver": blocks.solver, "solver_settings": blocks.solver_settings}
        if blocks.size is not None:
            changes["block_size"] = blocks.size
        settings = LossDescent.preset(kind, **{**changes, **given})
        try:
            made = make_solver(settings.solver, **settings.solver_settings)
        except TypeError as error:
            raise InputError(f"solver_settings do not fit the solver: {error}.") from error
        most = made.capabilities.max_variables
        if most is not None and most < settings.block_size and "block_size" not in {**changes, **given}:
            settings = replace(settings, block_size=most)
        name = settings.solver if isinstance(settings.solver, str) else type(made).__name__
        check_size(made, name, settings.block_size)
        return replace(self, settings=settings)

    def check(self, pattern: Pattern) -> None:
        """Raise :class:`InputError` if the solver takes one count and the blocks will hold several groups."""
        made = make_solver(self.settings.solver, **self.settings.solver_settings)
        if made.capabilities.cardinality and not made.capabilities.groups and pattern.name != "layer":
            raise InputError(
                f"The solver {type(made).__name__!r} takes one count, and blocks of the loss hold several groups with "
                f"the pattern {pattern.name}; use the pattern 'layer', or another solver such as 'greedy'."
            )


def _task(hessian: str, loss: str | Loss | LossFunction | None, calibration: Source) -> _Task | None:
    """What the loss is, if the Hessian asks for one."""
    if hessian != "fisher":
        return None
    return _Task(choose_loss(loss, calibration), LossDescent())


def _loss(task: _Task | None, given: str | Loss | LossFunction | None) -> Loss | None:
    """What tells labels from inputs in a batch; ``None`` if batches are model inputs."""
    return task.loss if task is not None else None if given is None else make_loss(given)


@dataclass(frozen=True)
class _Plan:
    """The checked arguments of a run."""

    density: float
    pattern: Pattern
    method: str
    warm_start: str | Mapping[str, Tensor]
    descent: Descent | CompensatedDescent | None
    solver_name: str
    max_time: float | None
    seed: int
    hessian: str
    update: str | None
    damping: float
    correction: float
    allocation: str
    densities: Mapping[str, float]
    protect: float
    task: _Task | None = None

    @classmethod
    def checked(
        cls, *, density: float, pattern: str, method: str, warm_start: str | Mapping[str, Tensor] | None,
        blocks: _Blocks, workers: int | None, max_sweeps: int | None, max_time: float | str | None, seed: int,
        task: _Task | None, hessian: str, update: str | None, damping: float | None, correction: float | None,
        allocation: str, densities: Mapping[str, float] | None, protect: float,
    ) -> _Plan:  # fmt: skip
        chosen = Pattern.parse(pattern)
        chosen.check(density)
        check_allocation(allocation, chosen)
        if densities and allocation != "uniform":
            raise InputError(f"The allocation is {allocation!r} and densities are given by layer; give one of the two.")
        check_protect(protect, density)
        if protect and not (hessian == "compensated" or method in SCORES):
            raise InputError(
                f"protect is {protect:g}, which the method {method!r} with the Hessian {hessian!r} does not know; use "
                "the Hessian 'compensated', a score alone, or leave protect out."
            )
        compensated = hessian == "compensated"
        adapts = (compensated and update is None) or _updates(method, update)
        if correction is None:
            correction = SHARE if compensated and adapts else 0.0
        if not 0 <= correction <= 1:
            raise InputError(f"correction is {correction}; a share from 0 to 1 is needed, such as 0.5.")
        if correction and (not adapts or task is not None):
            raise InputError(
                f"correction is {correction:g}, which changes kept weights, and the method {method!r} with the Hessian "
                f"{hessian!r} and the update {update or 'none'!r} leaves them; give the update 'refit', or leave "
                "correction out."
            )
        if damping is None:
            damping = CORRECTION_DAMPING if correction else DAMPING
        if not (math.isfinite(damping) and damping >= 0):
            raise InputError(f"damping is {damping}; a share of the Gram's mean diagonal, from 0 on, is needed.")
        if task is not None:
            task.check(chosen)
        if warm_start is None:
            warm_start = "admm" if compensated else "wanda"
        starts = WARM_STARTS if task is None else (*WARM_STARTS, *LOSS_WARM_STARTS)
        if isinstance(warm_start, str) and warm_start not in starts:
            raise InputError(
                f"There is no warm start {warm_start!r}{did_you_mean(warm_start, starts)} for this Hessian; use one of "
                f"{', '.join(starts)}, or keep masks by parameter name."
            )
        made = make_solver(blocks.solver, **blocks.solver_settings)
        name = blocks.solver if isinstance(blocks.solver, str) else type(made).__name__
        usual = 128 if compensated else 64
        block_size = min(usual, made.capabilities.max_variables or usual) if blocks.size is None else blocks.size
        if max_sweeps is None:
            max_sweeps = 2 if compensated else 1
        if block_size < 2 or max_sweeps < 0:
            raise InputError(f"block_size is {block_size} and max_sweeps {max_sweeps}; at least 2 and 0 are needed.")
        if chosen.of and block_size < chosen.of:
            raise InputError(
                f"block_size is {block_size}, which holds no group of {chosen.name}; give {chosen.of} or more."
            )
        check_size(made, name, block_size)
        if workers is not None and workers < 0:
            raise InputError(f"workers is {workers}; pass a number of processes, or 0 to solve in this one.")
        handling = Handling(blocks.polish, workers=workers_for(made, workers))
        descent: Descent | CompensatedDescent | None = None
        if compensated:
            descent = CompensatedDescent(
                made, block_size, max_sweeps, damping, blocks.polish, seed, blocks.block_time, handling
            )
            update = update or "refit"
        elif method == "icbs" and (task is None or warm_start == "gram"):
            descent = Descent(made, block_size, max_sweeps, seed=seed, block_time=blocks.block_time, handling=handling)
        start = warm_start if method == "icbs" else method
        return cls(
            density, chosen, method, start, descent, name if descent else "", parse_seconds(max_time), seed, hessian,
            update, damping, correction, allocation, dict(densities or {}), protect, task,
        )  # fmt: skip

    @property
    def needs_inputs(self) -> bool:
        """True unless the layers' inputs decide nothing, since the loss comes after a start without them."""
        return self.task is None or self.warm_start in ("wanda", "greedy", "gram", *PEERS)

    @property
    def updates(self) -> bool:
        """True if kept weights change."""
        return _updates(self.method, self.update)

    def settings(self) -> dict[str, Any]:
        """The arguments for the report."""
        return {
            "density": self.density,
            "pattern": self.pattern.name,
            "method": self.method,
            "hessian": self.hessian,
            "update": self.update or ("own" if self.updates else "none"),
            "damping": self.damping,
            "correction": self.correction,
            "allocation": self.allocation,
            "densities": dict(self.densities),
            "protect": self.protect,
            "loss": type(self.task.loss).__name__ if self.task else None,
            "loss_settings": self.task.settings.to_dict() if self.task else None,
            "solver": self.solver_name,
            "warm_start": self.warm_start if isinstance(self.warm_start, str) else "given masks",
            "block_size": self.descent.block_size if self.descent else None,
            "solver_settings": str(self.descent.solver) if self.descent else None,
            "block_time": self.descent.block_time if self.descent else None,
            "polish": self.descent.handling.polish if self.descent else None,
            "max_sweeps": self.descent.max_sweeps if self.descent else None,
            "max_time": self.max_time,
            "seed": self.seed,
        }


class _Run:
    """One pass over the layers: what was decided, how to take it back, where the time went."""

    def __init__(self, plan: _Plan, layers: Sequence[Layer], began: float) -> None:
        self._plan, self._layers, self._began = plan, layers, began
        self._removed: list[Removed] = []
        self.reports: list[LayerReport] = []
        self.masks: dict[str, Tensor] = {}
        self.seconds = Seconds()
        self._densities = densities_by_name(plan.densities, [layer.name for layer in layers], plan.density)
        for layer in layers:
            plan.pattern.check(self._densities[layer.name], layer.name, layer.shape[1])
        self._left = sum(layer.parameter.numel() for layer in layers)
        self._gradient_masks: dict[str, Tensor] = {}
        self._dense: dict[str, Tensor] = {}
        check_finite(layers)

    @contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """Give the model its weights back if anything is raised, an interrupt included."""
        try:
            yield
        except BaseException:
            for removed in self._removed:
                removed.restore()
            for layer in self._layers:
                if layer.name in self._dense:
                    layer.assign(self._dense[layer.name])
            raise

    def prepare_loss(self, model: nn.Module, data: Calibration, held_out: Samples | Iterable[Any] | None) -> None:
        """Check the loss on the dense model before the long part; score its weights if that is the warm start."""
        assert self._plan.task is not None
        assert data.samples is not None
        task, seed = self._plan.task, derive_seed(self._plan.seed, len(self._layers))
        self._samples = judged_by(data.samples, held_out, task.settings.held_out, seed)
        self._objective = Objective(model, task.loss, task.settings.micro_batch)
        count = min(task.settings.samples, len(self._samples[0]))
        batch = torch.randperm(len(self._samples[0]), generator=torch.Generator().manual_seed(seed))[:count]
        self._objective.measure(self._samples[0], batch[: task.settings.micro_batch])
        if self._plan.warm_start == "gradient":
            found = moments(self._objective, self._samples[0], batch, self._layers)
            for layer in self._layers:
                scores = (layer.matrix() * found[layer.name].mean).abs()
                self._gradient_masks[layer.name] = keep_highest(scores, self._plan.pattern, self._densities[layer.name])

    def descend_loss(self, bars: Progress, on_step: OnStep | None) -> LossTrace:
        """Improve the masks so far by blocks of the loss; the layers' reports and masks follow."""
        plan, began = self._plan, time.perf_counter()
        assert plan.task is not None
        for removed in self._removed:
            self._dense[removed.layer.name] = removed.dense()
        keep = {layer.name: layer.as_matrix(self.masks[layer.parameter_name]) for layer in self._layers}
        left = None if plan.max_time is None else max(0.0, plan.max_time - (time.perf_counter() - self._began))
        trace = descend_loss(
            self._objective, self._layers, keep, *self._samples, plan.task.settings, plan.pattern, values=self._dense,
            deadline=Deadline(left), progress=bars, on_step=on_step,
        )  # fmt: skip
        for number, report in enumerate(self.reports):
            mask, before = trace.keep[report.name], keep[report.name]
            kept, changed = int(mask.sum()), int((mask.cpu() != before.cpu()).sum())
            self.reports[number] = replace(report, kept=kept, density=kept / mask.numel(), swapped=changed)
        for layer in self._layers:
            self.masks[layer.parameter_name] = layer.stored(trace.keep[layer.name]).cpu()
        self.seconds.loss = time.perf_counter() - began
        return trace

    def allocate(self, model: nn.Module, data: Calibration, loss: Loss | None, bars: Progress) -> None:
        """Give the layers densities of their own, if that is asked for; the whole keeps the plan's."""
        plan = self._plan
        if plan.allocation == "uniform":
            return
        shapes = {layer.name: layer.shape for layer in self._layers}
        with bars.task(f"budgets of the layers ({plan.allocation})", None):
            if plan.allocation == "owl":
                outliers: dict[str, float] = {}

                def visit(layer: Layer, gram: Gram) -> None:
                    outliers[layer.name] = outlier_share(layer.matrix().to(gram.matrix.device), gram)

                stream(model, self._layers, data.inputs, visit, self.seconds)
                shares = owl(outliers, plan.density, sizes={name: math.prod(shape) for name, shape in shapes.items()})
            else:
                assert loss is not None
                assert data.samples is not None
                objective = Objective(model, loss, LossDescent.preset("language").micro_batch)
                seed = derive_seed(plan.seed, len(self._layers))
                order = torch.randperm(len(data.samples), generator=torch.Generator().manual_seed(seed))
                found = moments(objective, data.samples, order[:_FISHER_SAMPLES], self._layers)
                shares = by_loss_change(
                    {
                        layer.name: predicted_rise(layer.matrix(), found[layer.name].mean, found[layer.name].square)
                        for layer in self._layers
                    },
                    plan.density,
                )
        kept = counts_of(shares, shapes, plan.density, plan.pattern)
        self._densities = {name: count / math.prod(shapes[name]) for name, count in kept.items()}

    def all_layers(self, model: nn.Module, data: Calibration, bars: Progress) -> None:
        """Stream the calibration data through the model and prune each layer when its turn comes."""
        with bars.task(f"pruning ({self._plan.method})", self._left) as advance:

            def visit(layer: Layer, gram: Gram) -> None:
                self._one_layer(layer, gram)
                advance(layer.parameter.numel(), layer.name)

            if self._plan.needs_inputs:
                dense = self._dense if self._plan.correction else None
                stream(model, self._layers, data.inputs, visit, self.seconds, data.held_out, dense)
            else:
                for layer in self._layers:
                    d_in, device = layer.shape[1], layer.parameter.device
                    visit(layer, Gram(torch.zeros(1, dtype=torch.float64, device=device).expand(d_in, d_in), 0))

    def _one_layer(self, layer: Layer, gram: Gram) -> None:
        plan, began = self._plan, time.perf_counter()
        weight, raised = layer.matrix().to(gram.matrix.device), Counter[str]()
        target = corrected(weight, gram, plan.correction, plan.damping, raised)
        if plan.correction and self._dense and gram.tokens and gram.drift is None:
            raised["The dense model does not send the same tokens to this layer, so nothing was corrected."] = 1
        stays, start = self._protected(layer, target, gram, self._warm_start(layer, target, gram))
        deadline = Deadline(self._allowance(layer))
        if isinstance(plan.descent, CompensatedDescent):
            result = descend_compensated(target, gram, start.keep, plan.pattern, plan.descent, deadline, stays)
        elif plan.descent is not None:
            result = descend(target, gram, start.keep, plan.pattern, plan.descent, deadline)
        else:
            result = DescentResult(start.keep, 0, 0, 0.0, False)
        final, notes = self._updated(target, gram, start, result)
        began_with, keep = weight * start.keep, result.keep
        if start.weight is not None and plan.updates:
            began_with = start.weight
        held_out = _held_out_errors(gram, weight, began_with, final)
        reverted = held_out[1] > held_out[0]
        if reverted:
            final, keep = began_with, start.keep
            notes = {**notes, "Its error on held-out inputs rose, so the layer has its warm start back.": 1}
        seconds = time.perf_counter() - began
        self.seconds.search += seconds
        # an unseen layer's Gram is zero throughout
        changes = (weight, weight - began_with, weight - final)
        power, before, after = (float(gram.output_error(change).sum()) if gram.tokens else 0.0 for change in changes)
        if plan.updates:
            self._dense[layer.name] = layer.matrix().clone()
            layer.assign(final)
        else:
            self._removed.append(layer.remember(keep))
            layer.prune(keep)
        self.masks[layer.parameter_name] = layer.stored(keep).cpu()
        self._left -= layer.parameter.numel()
        kept = int(keep.sum())
        notes = dict(raised + Counter(start.notes) + Counter(result.kept_start) + Counter(notes))
        if not plan.needs_inputs:
            notes["The output error of this layer was not measured; its warm start needs no inputs."] = 1
        elif gram.tokens == 0 and plan.warm_start in ("wanda", "greedy"):
            notes["No calibration token reached this layer; its weights were ranked by magnitude."] = 1
        self.reports.append(
            LayerReport(
                layer.name, layer.shape, kept, kept / weight.numel(), before, after, power, result.steps,
                result.accepted, result.solver_gain, result.polish_gain, seconds, plan.solver_name, gram.tokens,
                int(gram.dead.sum()), result.stopped_early, notes, result.trace, 0, *held_out, reverted,
            )
        )  # fmt: skip

    def _updated(
        self, weight: Tensor, gram: Gram, start: Choice, result: DescentResult
    ) -> tuple[Tensor, Mapping[str, int]]:
        """The weights of the final mask, and what was done otherwise than asked."""
        plan = self._plan
        if plan.update in (None, "none"):
            own = start.weight if plan.update is None and plan.method in PEERS else None
            return (weight * result.keep if own is None else own), {}
        if result.stopped_early and start.weight is not None and torch.equal(result.keep, start.keep):
            return start.weight, {"The time was over, so the layer has the weights of its warm start.": 1}
        updated = update_weights(plan.update, weight, gram, result.keep, plan.damping)
        return updated.weight, updated.notes

    def _warm_start(self, layer: Layer, weight: Tensor, gram: Gram) -> Choice:
        plan, density = self._plan, self._densities[layer.name]
        if plan.warm_start == "gradient":
            return Choice(self._gradient_masks[layer.name].to(weight.device), None, {})
        if not isinstance(plan.warm_start, str):
            return Choice(_given_mask(layer, plan, density).to(weight.device), None, {})
        kind = "wanda" if plan.warm_start == "gram" else plan.warm_start
        seed = derive_seed(plan.seed, len(self.reports))
        if kind in PEERS:
            return choose(kind, weight, gram, plan.pattern, density, seed, plan.damping)
        return Choice(warm_start(kind, weight, gram, plan.pattern, density, seed), None, {})

    def _protected(self, layer: Layer, weight: Tensor, gram: Gram, start: Choice) -> tuple[Tensor | None, Choice]:
        """The weights that stay, and a start that holds them: in their place the lowest of its budget go."""
        plan, density = self._plan, self._densities[layer.name]
        if not plan.protect:
            return None, start
        stays = protected(weight, gram, plan.protect, plan.pattern, density)
        if bool((start.keep | ~stays).all()):
            return stays, start
        score = weight.abs() * gram.for_rows(gram.diagonal.sqrt(), len(weight))
        order = (score / score.amax().clamp(min=1e-300)).double() + 2 * start.keep + 4 * stays
        return stays, Choice(keep_highest(order, plan.pattern, density), None, start.notes)

    def _allowance(self, layer: Layer) -> float | None:
        """Seconds for one layer: its share of what the passes still to come leave of the budget."""
        if self._plan.max_time is None:
            return None
        total = sum(other.parameter.numel() for other in self._layers)
        done = 1 - self._left / total
        passes = self.seconds.forward + self.seconds.hessian
        # before the first layer is done there is nothing to extrapolate from but the first pass
        ahead = passes * (1 - done) / done if done else passes * len(self._layers)
        left = self._plan.max_time - (time.perf_counter() - self._began) - ahead
        return max(0.0, left) * layer.parameter.numel() / self._left


def check_method(method: str, hessian: str = "gram", update: str | None = None) -> None:
    """Raise :class:`InputError` if there is no such method, Hessian or update, or they do not go together."""
    if method not in METHODS:
        raise InputError(
            f"There is no method {method!r}{did_you_mean(method, METHODS)}; use one of {', '.join(METHODS)}."
        )
    if hessian not in HESSIANS:
        raise InputError(
            f"There is no Hessian {hessian!r}{did_you_mean(hessian, HESSIANS)}; use one of {', '.join(HESSIANS)}."
        )
    if hessian != "gram" and method != "icbs":
        raise InputError(f"The method {method!r} takes no Hessian; leave hessian out, or give method 'icbs'.")
    if update is not None and update not in UPDATES:
        raise InputError(
            f"There is no update {update!r}{did_you_mean(update, UPDATES)}; use one of {', '.join(UPDATES)}."
        )
    if hessian == "fisher" and update not in (None, "none"):
        raise InputError(
            f"The update {update!r} needs the Grams of the layers' inputs, and hessian is 'fisher', whose blocks come "
            "after them; leave update out, or give hessian 'gram' or 'compensated'."
        )


def _updates(method: str, update: str | None) -> bool:
    """True if kept weights change by an update, or by the method itself where none is given."""
    if update is None:
        return method in PEERS and PEERS[method].updates
    return update != "none"


def _held_out_errors(gram: Gram, weight: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    """Of the warm start and of the result, relative to the layer's output; zeros without held-out inputs."""
    if gram.held_out is None:
        return 0.0, 0.0
    power = float(gram.held_out.output_error(weight).sum())
    errors = [float(gram.held_out.dense_output_error(weight, new).sum()) for new in (before, after)]
    return (errors[0] / power, errors[1] / power) if power else (0.0, 0.0)


def _given_mask(layer: Layer, plan: _Plan, density: float) -> Tensor:
    """The caller's keep mask of a layer as ``(d_out, d_in)``, with its counts checked."""
    assert not isinstance(plan.warm_start, str)
    if layer.parameter_name not in plan.warm_start:
        raise InputError(f"The warm start has no mask for {layer.parameter_name!r}; give one for every pruned layer.")
    mask = plan.warm_start[layer.parameter_name]
    if mask.shape != layer.parameter.shape or mask.dtype != torch.bool:
        raise InputError(
            f"The mask {layer.parameter_name!r} has shape {tuple(mask.shape)} and type {mask.dtype}; the weight's "
            f"shape {tuple(layer.parameter.shape)} and torch.bool (True = keep) are needed."
        )
    keep = layer.as_matrix(mask)
    wrong = plan.pattern.violations(keep, density)
    if wrong and not (plan.task and plan.task.settings.budget == "global"):
        raise InputError(
            f"The mask {layer.parameter_name!r} breaks the pattern {plan.pattern.name} at density {density:g} "
            f"in {wrong} groups; give masks with the exact counts, or the density they have."
        )
    return keep
