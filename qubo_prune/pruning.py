"""The main job: prune the linear layers of a model, layer by layer, through block QUBOs."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qubo_prune.descent import Descent, DescentResult, descend, warm_start
from qubo_prune.dispatch import Handling, check_size, workers_for
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.hessian import Gram
from qubo_prune.layers import Layer, Removed, check_finite, find_layers
from qubo_prune.masks import KeepMasks, Pattern
from qubo_prune.models import LoadedModel, check_output, load_model, save_model
from qubo_prune.network import Seconds, stream
from qubo_prune.progress import Progress
from qubo_prune.registry import make_solver
from qubo_prune.report import LayerReport, Report
from qubo_prune.scores import SCORES
from qubo_prune.solver import Deadline, Solver, derive_seed
from qubo_prune.text import check_length, token_windows

#: How a mask is chosen: by blocks, or by a score alone.
METHODS = ("icbs", "magnitude", "wanda")
WARM_STARTS = (*SCORES, "greedy")


def prune(
    model: str | nn.Module,
    calibration: str | Tensor | Iterable[Any] = "pydoc",
    density: float = 0.5,
    *,
    pattern: str = "row",
    method: str = "icbs",
    solver: str | Solver = "greedy",
    solver_settings: Mapping[str, Any] | None = None,
    warm_start: str | Mapping[str, Tensor] = "wanda",
    block_size: int | None = None,
    block_time: float | str | None = "60s",
    workers: int | None = None,
    polish: bool = True,
    max_sweeps: int = 1,
    max_time: float | str | None = None,
    seed: int = 0,
    samples: int = 32,
    sequence_length: int = 512,
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
    """Prune a model's linear layers to an exact density.

    The model is changed in place: pruned weights become zero, kept ones stay as they are. If
    anything goes wrong, an interrupt included, it gets its weights back and nothing is written.

    Args:
        model: any ``nn.Module`` with linear layers, or a name that :func:`qubo_prune.models.load_model`
            takes (then ``output`` is where the result goes).
        calibration: for language models, a text source (see :func:`qubo_prune.text.read_text`) or
            token ids ``(windows, length)``; for any model, an iterable of its inputs: a tensor, a
            tuple of positional or a dict of named arguments each.
        density: kept share of each budget, above 0 and at most 1.
        pattern: ``row``, ``layer`` or ``n:m``: where the budget is balanced.
        method: ``icbs`` (warm start, then blocks), or a score alone: ``magnitude``, ``wanda``.
        solver: decides the blocks: a registered name, ``package.module:Class``, an adapter such as
            ``dimod:dwave.samplers:TabuSampler``, or a ``Solver``.
        solver_settings: fields of a named solver.
        warm_start: ``magnitude``, ``wanda``, ``greedy``, ``random``, or keep masks by parameter name.
        block_size: weights per block; by default 64, or the most that the solver takes if that is less.
        block_time: wall-clock limit of one block, in seconds or as ``"500ms"`` or ``"10s"``; a solver that
            ignores it is ended and loses that block. ``None`` for no limit.
        workers: processes for solvers that take one block at a time on one core; by default one per core.
        polish: swap within the blocks that the solver has decided. What the solver brought and what
            the swaps did stand apart in the report.
        max_sweeps: most blocks each row takes before the swaps over the whole row.
        max_time: wall-clock budget of the whole run, in seconds or as ``"90s"``, ``"5m"``, ``"1h"``.
            The passes over the calibration data always complete; the search gets what they leave.
        seed: every random choice follows from it.
        samples: calibration windows cut from a text source.
        sequence_length: tokens per window.
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
    plan = _Plan.checked(
        density=density, pattern=pattern, method=method, solver=solver, solver_settings=solver_settings or {},
        warm_start=warm_start, block_size=block_size, block_time=block_time, workers=workers, polish=polish,
        max_sweeps=max_sweeps, max_time=max_time, seed=seed,
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
    batches, described = _batches(calibration, loaded, samples, sequence_length)
    layers = find_layers(loaded.model, include, exclude, prune_head)
    run = _Run(plan, layers, began)
    with run.undone_on_failure():
        run.all_layers(loaded.model, batches, bars)
        seconds = vars(run.seconds) | {"total": time.perf_counter() - began}
        report = Report(tuple(run.reports), loaded.name, plan.settings(), described, seconds, KeepMasks(run.masks))
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


def _batches(
    calibration: str | Tensor | Iterable[Any], loaded: LoadedModel, samples: int, length: int
) -> tuple[list[Any], dict[str, Any]]:
    """Model inputs, one batch each, and their description for the report."""
    device = next((p.device for p in loaded.model.parameters()), torch.device("cpu"))
    if isinstance(calibration, str):
        if loaded.tokenizer is None:
            raise InputError(
                f"The calibration {calibration!r} is a text source, which needs a tokenizer; pass tokenizer=, "
                "or give token ids or model inputs instead."
            )
        check_length(loaded.model, length)
        windows = token_windows(loaded.tokenizer, calibration, "calibration", samples, length)
        return list(torch.split(windows.tokens.to(device), 1)), windows.describe()
    if isinstance(calibration, Tensor):
        # token windows go one by one, other inputs in batches that a layer takes at once
        size = 128 if calibration.is_floating_point() else 1
        batches: list[Any] = list(torch.split(calibration.to(device), size))
    else:
        batches = [_to(batch, device) for batch in calibration]
    if not batches:
        raise InputError("The calibration holds no batch; give at least one model input.")
    return batches, {"source": "given inputs", "batches": len(batches)}


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: _to(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_to(value, device) for value in batch)
    return batch


@dataclass(frozen=True)
class _Plan:
    """The checked arguments of a run."""

    density: float
    pattern: Pattern
    method: str
    warm_start: str | Mapping[str, Tensor]
    descent: Descent | None
    solver_name: str
    max_time: float | None
    seed: int

    @classmethod
    def checked(
        cls, *, density: float, pattern: str, method: str, solver: str | Solver, solver_settings: Mapping[str, Any],
        warm_start: str | Mapping[str, Tensor], block_size: int | None, block_time: float | str | None,
        workers: int | None, polish: bool, max_sweeps: int, max_time: float | str | None, seed: int,
    ) -> _Plan:  # fmt: skip
        chosen = Pattern.parse(pattern)
        chosen.check(density)
        if method not in METHODS:
            raise InputError(
                f"There is no method {method!r}{did_you_mean(method, METHODS)}; use one of {', '.join(METHODS)}."
            )
        if isinstance(warm_start, str) and warm_start not in WARM_STARTS:
            raise InputError(
                f"There is no warm start {warm_start!r}{did_you_mean(warm_start, WARM_STARTS)}; use one of "
                f"{', '.join(WARM_STARTS)}, or keep masks by parameter name."
            )
        made, name = (
            make_solver(solver, **solver_settings),
            solver if isinstance(solver, str) else type(solver).__name__,
        )
        if block_size is None:
            block_size = min(64, made.capabilities.max_variables or 64)
        if block_size < 2 or max_sweeps < 0:
            raise InputError(f"block_size is {block_size} and max_sweeps {max_sweeps}; at least 2 and 0 are needed.")
        if chosen.of and block_size < chosen.of:
            raise InputError(
                f"block_size is {block_size}, which holds no group of {chosen.name}; give {chosen.of} or more."
            )
        check_size(made, name, block_size)
        if workers is not None and workers < 0:
            raise InputError(f"workers is {workers}; pass a number of processes, or 0 to solve in this one.")
        handling = Handling(polish, workers=workers_for(made, workers))
        descent = Descent(
            made, block_size, max_sweeps, seed=seed, block_time=parse_seconds(block_time), handling=handling
        ) if method == "icbs" else None  # fmt: skip
        start = warm_start if method == "icbs" else method
        return cls(density, chosen, method, start, descent, name if descent else "", parse_seconds(max_time), seed)

    def settings(self) -> dict[str, Any]:
        """The arguments for the report."""
        return {
            "density": self.density,
            "pattern": self.pattern.name,
            "method": self.method,
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
        for layer in layers:
            plan.pattern.check(plan.density, layer.name, layer.shape[1])
        self._left = sum(layer.parameter.numel() for layer in layers)
        check_finite(layers)

    @contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """Give the model its weights back if anything is raised, an interrupt included."""
        try:
            yield
        except BaseException:
            for removed in self._removed:
                removed.restore()
            raise

    def all_layers(self, model: nn.Module, batches: list[Any], bars: Progress) -> None:
        """Stream the calibration data through the model and prune each layer when its turn comes."""
        with bars.task(f"pruning ({self._plan.method})", self._left) as advance:

            def visit(layer: Layer, gram: Gram) -> None:
                self._one_layer(layer, gram)
                advance(layer.parameter.numel(), layer.name)

            stream(model, self._layers, batches, visit, self.seconds)

    def _one_layer(self, layer: Layer, gram: Gram) -> None:
        plan, began = self._plan, time.perf_counter()
        weight = layer.matrix().to(gram.matrix.device)
        start = self._warm_start(layer, weight, gram)
        if plan.descent is not None:
            deadline = Deadline(self._allowance(layer))
            result = descend(weight, gram, start, plan.pattern, plan.descent, deadline)
        else:
            result = DescentResult(start, 0, 0, 0.0, False)
        seconds = time.perf_counter() - began
        self.seconds.search += seconds
        after = float(gram.output_error(weight * ~result.keep).sum())
        before = result.trace[0].energy if result.trace else after
        power = float(gram.output_error(weight).sum())
        self._removed.append(layer.remember(result.keep))
        layer.prune(result.keep)
        self.masks[layer.parameter_name] = layer.stored(result.keep).cpu()
        self._left -= layer.parameter.numel()
        kept = int(result.keep.sum())
        notes = dict(result.kept_start)
        if gram.tokens == 0 and plan.warm_start in ("wanda", "greedy"):
            notes["No calibration token reached this layer; its weights were ranked by magnitude."] = 1
        self.reports.append(
            LayerReport(
                layer.name, layer.shape, kept, kept / weight.numel(), before, after, power, result.steps,
                result.accepted, result.solver_gain, result.polish_gain, seconds, plan.solver_name, gram.tokens,
                int(gram.dead.sum()), result.stopped_early, notes, result.trace,
            )
        )  # fmt: skip

    def _warm_start(self, layer: Layer, weight: Tensor, gram: Gram) -> Tensor:
        plan = self._plan
        if isinstance(plan.warm_start, str):
            seed = derive_seed(plan.seed, len(self.reports))
            return warm_start(plan.warm_start, weight, gram, plan.pattern, plan.density, seed)
        return _given_mask(layer, plan).to(weight.device)

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


def _given_mask(layer: Layer, plan: _Plan) -> Tensor:
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
    wrong = plan.pattern.violations(keep, plan.density)
    if wrong:
        raise InputError(
            f"The mask {layer.parameter_name!r} breaks the pattern {plan.pattern.name} at density {plan.density:g} "
            f"in {wrong} groups; give masks with the exact counts, or the density they have."
        )
    return keep
