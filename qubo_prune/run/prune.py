"""The main job: prune the linear and convolution layers of a model, layer by layer, through block QUBOs."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qubo_prune.arguments import parse_seconds, plain_arguments
from qubo_prune.blocks.certificate import BlockOptima, block_optima, least_error
from qubo_prune.blocks.compensated_rows import CompensatedDescent, descend_compensated
from qubo_prune.blocks.loss.descent import LossDescent, OnStep, check_devices, descend_loss
from qubo_prune.blocks.loss.trace import LossTrace
from qubo_prune.blocks.rows import DescentResult, descend
from qubo_prune.choices import WEIGHTS
from qubo_prune.clock import Deadline
from qubo_prune.data.calibration import Calibration, Source, choose_loss, drawn_from, read_calibration, split_held_out
from qubo_prune.data.evaluation import perplexity
from qubo_prune.data.losses import Loss, LossFunction, Objective
from qubo_prune.data.samples import Samples
from qubo_prune.data.text import check_source, check_windows
from qubo_prune.devices import now, room, told_if_full
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.events import event, logged_to
from qubo_prune.files.outputs import Needed, check_output, made_output
from qubo_prune.files.parsing import expanded
from qubo_prune.files.safetensors import Checkpoint, is_checkpoint
from qubo_prune.hessian.gradients import Moments, moments, without_gradient
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.reach import NO_CALL, NO_GRADIENT, NO_INPUT, Uses, uses_of
from qubo_prune.hessian.stream import stream
from qubo_prune.masks.keep import KeepMasks, keep_highest
from qubo_prune.methods.allocation import (
    by_loss_change,
    counts_of,
    densities_by_name,
    outlier_share,
    owl,
    predicted_rise,
    protected,
)
from qubo_prune.methods.base import Choice
from qubo_prune.methods.correction import corrected
from qubo_prune.methods.registry import PEERS, choose
from qubo_prune.methods.scores import warm_start
from qubo_prune.methods.update import update as update_weights
from qubo_prune.models.coverage import Coverage, LeftDense
from qubo_prune.models.disk import load_on_disk
from qubo_prune.models.layers import Layer, Removed, check_finite, find_layers, tied_to_others
from qubo_prune.models.load import (
    DTYPES,
    LoadedModel,
    check_name,
    evaluating,
    load_model,
    module_as_given,
    save_model,
)
from qubo_prune.models.names import kinds
from qubo_prune.models.storage import InMemory, WeightStorage
from qubo_prune.precision import pinned
from qubo_prune.progress import Progress
from qubo_prune.ranks import check_alone
from qubo_prune.report.report import LayerReport, Report, versions
from qubo_prune.run.folder import EVENTS, RunFolder, check_free, opened
from qubo_prune.run.memory import MemoryEstimate, as_text, available_memory, estimate, resident_memory
from qubo_prune.run.plan import Blocks, Plan, check_method, reading_of, task_of
from qubo_prune.run.records import Decided, Records, Start, settings_of
from qubo_prune.solver.interface import Solver, derive_seed
from qubo_prune.tables import shown

_log = logging.getLogger(__name__)

#: What takes less memory of a device than a layer took.
_SMALLER = "give a smaller block_size, hessian='gram', update='none' or a device with more room, or exclude that layer"
#: Samples that the allocation by the loss takes its gradients from.
_FISHER_SAMPLES = 64
#: Why the error of a layer is not the one that was measured when it was pruned.
_IN_ANOTHER_ORDER = "It ran on other inputs once all was pruned, so its errors were measured again on those."
_TIED = (
    "A weight that was pruned is tied to one that other parts of the model use, so errors were measured again once all "
    "was pruned."
)


@pinned()
def prune(
    model: str | nn.Module,
    calibration: Source = "pydoc",
    density: float | str = 0.5,
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
    certify: str | None = None,
    block_size: int | None = None,
    block_time: float | str | None = "60s",
    workers: int | str | None = None,
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
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    prune_head: bool = False,
    tokenizer: Any = None,
    dtype: str = "auto",
    device: str = "cpu",
    gram_devices: str | Sequence[str] = (),
    trust_remote_code: bool = False,
    output: str | Path | None = None,
    overwrite: bool = False,
    run_folder: str | Path | None = None,
    resume: bool = False,
    weights: str = "memory",
    progress: bool = False,
) -> Report:
    """Prune a model's linear and 2-D convolution layers to an exact density.

    The model is changed in place: pruned weights become zero, kept ones stay as they are unless ``update``
    says otherwise. If anything goes wrong, an interrupt included, it gets its weights back and nothing is
    written.

    Args:
        model: any ``nn.Module`` with such layers, or a name that :func:`qubo_prune.models.load.load_model`
            takes (then ``output`` is where the result goes).
        calibration: what the layers' inputs come from:

            ========================================= ============================================================
            a text source                             windows of tokens, see :func:`qubo_prune.data.text.read_text`
            a tensor or array                         token ids ``(windows, length)``, or inputs of any model
            texts, or lists of ids                    one after another, of any length; texts need ``tokenizer``
            a dict, a ``BatchEncoding``               one batch of named inputs
            batches (a list, a data loader)           tensors, tuples of positional or dicts of named inputs
            a data set                                rows of ``datasets`` or PyTorch, by the model's arguments
            :class:`~qubo_prune.data.samples.Samples` drawn one by one
            ========================================= ============================================================

            Labels among them are left out; ``hessian="fisher"`` needs them (or what ``loss`` takes). Padding that a
            mask marks counts nowhere: padded samples go one by one, by their real positions.
        density: kept share of each budget, above 0 and at most 1; a number or text of one.
        pattern: ``row``, ``layer`` or ``n:m``: where the budget is balanced.
        method: ``icbs`` (warm start, then blocks), a score alone (``magnitude``, ``wanda``), or a published
            method of :mod:`qubo_prune.methods.registry`.
        hessian: what the blocks are emitted from: ``gram`` (each layer's inputs, layer by layer),
            ``compensated`` (the same for kept weights that adapt, which they then do), or ``fisher``
            (gradients of the loss, over the whole model, after the warm start).
        solver: decides the blocks: a registered name, ``package.module:Class``, an adapter such as
            ``dimod:dwave.samplers:TabuSampler``, or a ``Solver``.
        solver_settings: fields of a named solver.
        warm_start: ``magnitude``, ``wanda``, ``greedy``, ``random``, a method of :mod:`qubo_prune.methods.registry`, or
            keep masks by parameter name; with ``fisher`` also ``gradient`` (``|w g|`` of the dense model) and ``gram``
            (the masks of ``hessian="gram"``). By default ``wanda``, with ``compensated`` ``admm``.
        update: what becomes of the kept weights: ``none``, or an update on the final mask, ``refit``, ``admm`` or
            ``sparsegpt`` (see :mod:`qubo_prune.methods.update`). By default what the method itself does to
            them, with ``compensated`` ``refit``.
        damping: share of a Gram's mean diagonal that updates and compensated blocks add to its diagonal; by default
            0.01, with a correction 0.3.
        correction: how far a layer is to make up for the layers pruned before it, from 0 (it is to keep its outputs
            on the inputs that it has now) to 1 (it is to give the dense model's outputs); see
            :mod:`qubo_prune.methods.correction`. By default 0, with ``compensated`` 0.5.
        allocation: density of each layer: ``uniform``; ``owl``, more where scores have outliers; ``fisher``, by the
            predicted change of the loss (see :mod:`qubo_prune.methods.allocation`). The whole keeps ``density``.
        densities: kept shares by shell-style patterns of layer names, for those that differ from ``density``; of
            several patterns that match a layer the last counts.
        protect: share of each layer's weights, those of the highest Wanda scores, that nothing may prune
            (``compensated``, or a score alone); fewer where a budget does not hold them.
        certify: how to prove for every layer a lower bound of the error that any mask of its counts has, where kept
            weights hold their values: ``plain``, ``eigenvalue``, ``trace`` or ``row`` (see
            :mod:`qubo_prune.problem.bounds`), the tighter the slower; and, for a few random blocks of each, the
            optimum, within a second each (see :func:`qubo_prune.blocks.certificate.block_optima`). ``None`` for no
            proof.
        block_size: weights per block; by default 64, with ``compensated`` 128, with ``fisher`` 1024, or the
            most that the solver takes if that is less.
        block_time: wall-clock limit of one block, in seconds or as ``"500ms"`` or ``"10s"``; a solver that
            ignores it is ended and loses that block. ``None`` for no limit.
        workers: processes for solvers that take one block at a time on one core; by default one per core. Or a
            cluster for them: ``dask:ADDRESS`` or ``ray:ADDRESS`` (see :mod:`qubo_prune.solver.clusters`).
        polish: swap within the blocks that the solver has decided. What the solver brought and what
            the swaps did stand apart in the report.
        max_sweeps: most blocks each row takes, by default 1; without ``compensated``, swaps over the whole row follow.
        max_time: wall-clock budget of the whole run, in seconds or as ``"90s"``, ``"5m"``, ``"1h"``.
            The passes over the calibration data always complete; the search gets what they leave.
        seed: every random choice follows from it.
        samples: calibration windows cut from a text source.
        sequence_length: tokens per window.
        loss: ``next-token``, ``classification`` (of samples or of their positions), ``multi-label``, ``regression``, or
            a function ``(model, batch) -> losses`` of one value per sample; by default the one that fits the model and
            its labels. Labels of -100 do not count. With ``gram`` it only tells the labels in a batch from the inputs.
        loss_length: tokens of a window that the loss is taken over, if the calibration is a text.
        gram_samples: of :class:`~qubo_prune.data.samples.Samples`, or of batches with a loss, how many the layers'
            inputs are taken from, at most.
        guard: inputs on which the errors of the layers are measured besides: windows of a text between the others,
            or the last of given batches. A layer whose error there rises against the warm start gets that
            back, and its report says so. By default 4 windows of a text if kept weights change, else none.
        held_out: with ``fisher``, samples or batches by which moves are judged; a fifth of the
            calibration, which is then left out there, if not given.
        loss_settings: with ``fisher``, fields of :class:`~qubo_prune.blocks.loss.descent.LossDescent`; ``preset``
            chooses where the others start from: ``measured`` or ``paper``.
        on_step: with ``fisher``, called after each step with its record; its time does not count.
        include: shell-style pattern or patterns of layer names to prune; all if empty.
            A layer that no calibration input reaches stays dense, unless its full name is given here: then it is pruned
            by magnitude.
        exclude: patterns of layers to leave dense.
        prune_head: prune the output head too (embeddings tied to it become sparse with it).
        tokenizer: needed if ``model`` is a module and ``calibration`` a text source.
        dtype: of the loaded weights, if ``model`` is a name.
        device: where a named model is loaded.
        gram_devices: devices that multiply the layers' inputs, batch by batch in turn, such as
            ``("cuda:0", "cuda:1")``; the Grams do not depend on their number. By default each batch is multiplied
            where it is.
        trust_remote_code: run model code that comes with a named checkpoint.
        output: folder for the pruned model, its report and its masks (language models).
        overwrite: replace an output folder that is not empty.
        run_folder: where to keep what is decided, after every layer and every two minutes within one, and what
            happens, for ``qubo-prune watch``.
        resume: go on with the run that the folder holds, if it holds one; the result is that of a run that was never
            interrupted, bit-identical, unless a time limit cut it.
        weights: where they are: ``memory``, or ``disk`` for a model that is larger than it. Then one decoder layer is
            loaded at a time, hidden states are in a file, and ``output`` is written shard by shard; ``model`` is a
            folder of safetensors. The result is the same.
        progress: show progress bars.

    Returns:
        The report, with the keep masks.

    Raises:
        InputError: an argument cannot be used; the message says why and what to do.
    """
    given, began = plain_arguments(locals()), time.perf_counter()
    check_alone()
    checked = check_arguments(given)
    bars, target = Progress(progress), None if checked.output is None else made_output(checked.output)
    with taken(run_folder, resume, None if weights == "memory" else target) as folder:
        _identify(folder, "configuration", lambda: checked.configuration(given))
        _identify(folder, "software", _software)
        loaded = _loaded(
            model, tokenizer, dtype, device, trust_remote_code, target, bars, folder if weights == "disk" else None
        )
        plan, layers, reading, data = plan_layers(given, checked, loaded)
        _identify(folder, "model", lambda: {"sha256": loaded.shelf.digest()})
        _identify(folder, "calibration", lambda: data.described | {"sha256": data.digest()})
        foreseen = estimate(
            loaded.model, layers, plan, data.inputs, data.held_out, resident_memory(), loaded.shelf.blocks,
            torch.device(device),
        )  # fmt: skip
        coverage = Coverage.of(loaded.model, layers, given["include"], given["exclude"])
        records = Records(folder, layers)
        run = _Run(plan, layers, began, records, loaded.shelf, given["include"])
        _tell_memory(foreseen, bars)
        judges = data.held_out if isinstance(calibration, str) else []
        with run.undone_on_failure():
            before = records.once("perplexity", lambda: _perplexity(loaded.model, judges, bars))
            run.look(loaded.model, data)
            run.allocate(loaded.model, data, reading, bars)
            if plan.task is not None:
                judging = (
                    None
                    if held_out is None
                    else drawn_from(held_out, loaded, given["sequence_length"], given["gram_samples"], plan.task.loss)
                )
                run.prepare_loss(loaded.model, data, judging)
            run.all_layers(loaded.model, data, bars)
            trace = run.descend_loss(bars, on_step) if plan.task is not None else None
            run.measure_all(loaded.model, data, bars)
            after = _perplexity(loaded.model, judges, bars)
            judged = None if before is None or after is None else (before, after)
            seconds = vars(run.seconds) | {"total": run.elapsed, "checkpoints": folder.seconds if folder else 0.0}
            report = Report(
                tuple(run.reports), loaded.name, plan.settings(), data.described, seconds, run.masks, trace, judged,
                None if foreseen is None else foreseen.total, tuple(run.left_dense), coverage, loaded.source,
            )  # fmt: skip
            if target is not None:
                save_pruned(loaded, target, report)
        event(_log, "ended", "The run is done.", elapsed=run.elapsed, **report.totals())
    return report


@dataclass(frozen=True)
class Checked:
    """What was asked of a run, checked as far as it can be before a model is loaded.

    Attributes:
        plan: the run's, whose settings of the loss may still change with the model.
        blocks: what was said of blocks.
        output: folder for the result.
    """

    plan: Plan
    blocks: Blocks
    output: Path | None

    def configuration(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a run that goes on must have been begun with, from the arguments of :func:`prune`."""
        named, start = given["model"], given["warm_start"]
        same = (
            "dtype", "device", "include", "exclude", "prune_head", "samples", "guard", "sequence_length",
            "loss_length", "gram_samples",
        )  # fmt: skip
        asked = {
            "model": named if isinstance(named, str) else module_as_given(named).name,
            "given_masks": None if isinstance(start, str) else start,
        }
        return settings_of(self.plan.settings() | {name: given[name] for name in same} | asked)


def check_arguments(given: Mapping[str, Any]) -> Checked:
    """Check the arguments of :func:`prune`; nothing is loaded and nothing is written.

    Raises:
        InputError: one cannot be used.
    """
    model, hessian, weights = given["model"], given["hessian"], given["weights"]
    if given["gram_samples"] < 1:
        raise InputError(f"gram_samples is {given['gram_samples']}; it must be at least 1.")
    if given["guard"] is not None and given["guard"] < 0:
        raise InputError(f"guard is {given['guard']}; a number of windows or batches, or 0 for none, is needed.")
    check_method(given["method"], hessian, given["update"])
    task = task_of(hessian, given["loss"], given["calibration"])
    if task is None:
        _check_no_loss(given)
    if task is None and given["loss_settings"]:
        raise InputError(
            f"loss_settings are given but hessian is {hessian!r}, which takes no loss; give hessian='fisher'."
        )
    said = Blocks(
        given["solver"], given["solver_settings"] or {}, given["block_size"], parse_seconds(given["block_time"]),
        given["polish"],
    )  # fmt: skip
    blocks = said
    if task is not None:  # what was given is for the blocks of the loss; a warm start by Grams has its own
        task = task.with_settings(given["loss_settings"] or {}, said, given["seed"])
        blocks = Blocks(block_time=said.block_time)
    same = (
        "density", "pattern", "method", "warm_start", "workers", "max_sweeps", "max_time", "seed", "hessian", "update",
        "damping", "correction", "allocation", "densities", "protect", "certify", "gram_devices",
    )  # fmt: skip
    plan = Plan.checked(task=task, blocks=blocks, **{name: given[name] for name in same})
    if weights not in WEIGHTS:
        raise InputError(f"weights is {weights!r}{did_you_mean(weights, WEIGHTS)}; give 'memory' or 'disk'.")
    if isinstance(model, str):
        check_name(model, given["dtype"], given["device"])
    if isinstance(given["calibration"], str):
        check_source(given["calibration"])
        check_windows(given["samples"], given["sequence_length"])
    if weights == "disk":
        _check_disk(model, plan, given["dtype"], given["output"])
    output = None if given["output"] is None else check_output(given["output"], given["overwrite"], _needed(given))
    return Checked(plan, said, output)


def _check_no_loss(given: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` if something is given that a run without the loss would ignore."""
    for name, instead in (("held_out", "give guard=, a number of inputs to hold out,"), ("on_step", "leave it out")):
        if given[name] is not None:
            raise InputError(
                f"{name} is given and hessian is {given['hessian']!r}, which takes no loss; {instead} or "
                "hessian='fisher'."
            )


def _needed(given: Mapping[str, Any]) -> Needed:
    """What a run reads or keeps, and so may not be where its result goes."""
    model, source = given["model"], given["calibration"]
    named = model if isinstance(model, str) else getattr(getattr(model, "config", None), "name_or_path", None)
    text = source if isinstance(source, str) and source != "pydoc" else None
    run = None if given["run_folder"] is None else Path(given["run_folder"])
    return {
        "model": named, "calibration text": text, "run folder": run, "folder of images": getattr(source, "folder", None)
    }  # fmt: skip


def plan_layers(
    given: Mapping[str, Any], checked: Checked, loaded: LoadedModel
) -> tuple[Plan, list[Layer], Loss | None, Calibration]:
    """What the model says of a run: its plan, layers, what reads batches, and what it draws from.

    Args:
        given: the arguments of :func:`prune`.
        checked: what :func:`check_arguments` made of them.
        loaded: the model.

    Raises:
        InputError: they do not fit the model.
    """
    plan, calibration, loss = checked.plan, given["calibration"], given["loss"]
    layers = find_layers(loaded.model, given["include"], given["exclude"], given["prune_head"])
    loaded.shelf.check(layers)
    reading = reading_of(plan.task, loss)
    if plan.allocation == "fisher" and reading is None:
        reading = choose_loss(loss, calibration)
    data = read_calibration(
        calibration, loaded, given["samples"], given["sequence_length"], reading, given["loss_length"],
        given["gram_samples"], given["guard"] if plan.updates or given["guard"] is not None else 0, loss is not None,
    )  # fmt: skip
    if plan.task is not None and data.loss is not None:
        task = replace(plan.task, loss=data.loss)
        task = task.with_settings(given["loss_settings"] or {}, checked.blocks, given["seed"], layers)
        plan = replace(plan, task=task)
    return plan, layers, data.loss, data


def densities_of(plan: Plan, layers: Sequence[Layer]) -> dict[str, float]:
    """Kept shares of the layers before an allocation; raises :class:`InputError` if the pattern does not fit one."""
    found = densities_by_name(plan.densities, [layer.name for layer in layers], plan.density)
    for layer in layers:
        plan.pattern.check(found[layer.name], layer.name, layer.shape[1])
    return found


def named_in_full(plan: Plan, layers: Sequence[Layer], include: Sequence[str]) -> set[str]:
    """The layers that were asked for by their names, so that they are pruned even if nothing is known of them."""
    names, masks = set(include), () if isinstance(plan.warm_start, str) else plan.warm_start
    return {layer.name for layer in layers if layer.name in names or layer.parameter_name in masks}


@pinned()
def prune_alone(plan: Plan, layer: Layer, gram: Gram) -> LayerReport:
    """Prune one layer by its Gram, without the run around it."""
    run = _Run(plan, [layer], time.perf_counter(), Records(None, [layer]), InMemory(layer.module))
    run.one_layer(layer, gram)
    return run.reports[0]


@contextmanager
def taken(
    run_folder: str | Path | None, resume: bool, beside: Path | None = None, passing: bool = False
) -> Iterator[RunFolder | None]:
    """A run's folder, if there is to be one, with a log of events in it; how a run that fails ends is told there.

    Args:
        run_folder: the folder, if one was named.
        resume: go on with the run in it.
        beside: a run that needs a folder gets a temporary one beside this.
        passing: it is such a folder.
    """
    if run_folder is None:
        check_free(None, resume)
        if beside is None:
            yield None
            return
        with (
            tempfile.TemporaryDirectory(prefix=f".{beside.name}.run-", dir=beside.parent) as name,
            taken(name, False, passing=True) as folder,
        ):
            yield folder
        return
    with opened(run_folder, resume, passing) as folder, logged_to(folder.path / EVENTS, only_events=True):
        event(_log, "began", "The run goes on." if folder.resumed else "The run begins.", resumed=folder.resumed)
        try:
            yield folder
        except BaseException as error:
            event(_log, "failed", "The run ended before it was done.", error=f"{type(error).__name__}: {error}")
            raise


def _software() -> dict[str, str]:
    """Versions without which the bits may be others."""
    found = versions()
    return {package: found[package] for package in ("qubo-prune", "torch", "numpy", "transformers")}


def _tell_memory(foreseen: MemoryEstimate | None, bars: Progress) -> None:
    """Say how much memory the run will take, before it does."""
    if foreseen is None:
        return
    available = available_memory() + resident_memory()
    sentence = foreseen.sentence(available)
    short = foreseen.short(available)
    if short:
        sentence += " The run may end for it; fewer or shorter windows, or weights on the disk, take less."
    event(
        _log, "memory", sentence, logging.WARNING if short else logging.INFO,
        estimate_bytes=foreseen.total, available_bytes=available, **asdict(foreseen),
    )  # fmt: skip
    bars.say(sentence)


def _identify(folder: RunFolder | None, part: str, given: Callable[[], Mapping[str, Any]]) -> None:
    if folder is not None:
        folder.identify(part, given)


def _check_disk(model: str | nn.Module, plan: Plan, dtype: str, output: str | Path | None) -> None:
    """Raise :class:`InputError` if a run needs all weights in memory."""
    if not isinstance(model, str):
        raise InputError("weights is 'disk' and the model is a module, which is in memory; give a folder's name.")
    if output is None:
        raise InputError("weights is 'disk' and no output is given, where the pruned weights would go; name a folder.")
    if plan.task is not None or plan.allocation == "fisher":
        raise InputError(
            "weights is 'disk', and gradients of the loss need the whole model in memory; give the Hessian 'gram' or "
            "'compensated', and the allocation 'uniform' or 'owl'."
        )
    if dtype != "auto":
        raise InputError(
            f"weights is 'disk', which keeps the checkpoint's own type, and dtype is {dtype!r}; leave it out."
        )


def check_fits(model: str, dtype: str, device: str) -> None:
    """Raise :class:`InputError` if the weights in a local folder alone are more than there is memory for."""
    folder = expanded(model)
    if not is_checkpoint(folder):
        return
    wanted = DTYPES.get(dtype)
    places = Checkpoint(folder).places.values()
    size = sum(place.bytes if wanted is None else math.prod(place.shape) * wanted.itemsize for place in places)
    # on their way to an accelerator they are in memory too
    for where, available in (("memory", available_memory()), (device, room(torch.device(device)))):
        if available is not None and size > available:
            raise InputError(
                f"The weights in {model!r} take {as_text(size)} and {as_text(available)} of {where} are available; "
                "give weights='disk' (--weights disk) to have one decoder layer there at a time."
            )


def _loaded(
    model: str | nn.Module, tokenizer: Any, dtype: str, device: str, trust: bool, target: Path | None, bars: Progress,
    scratch: RunFolder | None,
) -> LoadedModel:  # fmt: skip
    """The model, loaded if it is a name; its weights stay on the disk if there is a folder for hidden states."""
    if isinstance(model, str):
        with bars.task(f"loading {model}", None):
            if scratch is not None:
                return load_on_disk(model, device, trust, scratch.path)
            check_fits(model, dtype, device)
            return load_model(model, dtype, device, trust)
    if target is not None and not hasattr(model, "save_pretrained"):
        raise InputError(
            "output is given, which takes a transformers model; leave output out and save the model and report.masks "
            "yourself."
        )
    return module_as_given(model, tokenizer)


def save_pruned(
    loaded: LoadedModel, target: Path, report: Report, write_more: Callable[[Path], None] | None = None
) -> None:
    """Write model, tokenizer, ``report.json``, ``masks.safetensors`` and what ``write_more`` writes, all or nothing."""

    def write_rest(folder: Path) -> None:
        report.save(folder / "report.json")
        report.masks.save(folder / "masks.safetensors")
        if write_more is not None:
            write_more(folder)

    save_model(loaded, target, write_rest)


class _Run:
    """One pass over the layers: what was decided, how to take it back, where the time went."""

    def __init__(
        self, plan: Plan, layers: Sequence[Layer], began: float, records: Records, shelf: WeightStorage,
        include: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._plan, self._layers, self._records, self._shelf = plan, layers, records, shelf
        self._named = named_in_full(plan, layers, include)
        self._uses = Uses()
        self._without_gradient: Collection[str] = ()
        self._uniform: Collection[str] = ()
        self.left_dense: list[LeftDense] = []
        self._began = began - records.elapsed
        self._removed: list[Removed] = []
        self.reports: list[LayerReport] = []
        self.masks = KeepMasks()
        self.seconds = records.seconds
        self._densities = densities_of(plan, layers)
        self._left = sum(layer.parameter.numel() for layer in layers)
        self._gradient_masks: Mapping[str, Tensor] = {}
        self._dense = shelf.dense_weights()
        self._starts: dict[str, Start] = {}
        #: The note of layers that are measured once more in the end; ``None`` if none is.
        self._measured_last: str | None = None
        check_finite(layers, shelf.resident)

    @property
    def elapsed(self) -> float:
        """Wall-clock seconds of the run, those before an interruption included."""
        return time.perf_counter() - self._began

    @contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """Give the model its weights back if anything is raised, an interrupt included."""
        try:
            yield
        except BaseException:
            if not self._shelf.in_memory:  # nothing of it was changed on the disk
                raise
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
        check_devices(self._layers, task.settings)
        self._samples = split_held_out(data.samples, held_out, task.settings.held_out, seed)
        self._objective = Objective(model, task.loss, task.settings.micro_batch)
        count = min(task.settings.samples, len(self._samples[0]))
        batch = torch.randperm(len(self._samples[0]), generator=torch.Generator().manual_seed(seed))[:count]
        self._objective.measure(self._samples[0], batch[: task.settings.micro_batch])
        if self._plan.warm_start == "gradient":
            self._gradient_masks = self._records.tensors_once("gradient-masks", lambda: self._by_gradient(batch))
            self._without_gradient = {layer.name for layer in self._layers} - self._gradient_masks.keys()
        else:
            self._without_gradient = self._records.once(
                "without-gradient",
                lambda: without_gradient(self._objective, self._samples[0], batch, self._layers),
            )
        if len(self._without_gradient) == len(self._layers):
            raise nothing_reached(self._layers, NO_GRADIENT, "hessian 'gram', or another loss")

    def _by_gradient(self, batch: Tensor) -> dict[str, Tensor]:
        """Masks of the highest ``|w g|``, of layers to which a gradient came back."""
        found, plan = moments(self._objective, self._samples[0], batch, self._layers), self._plan
        return {
            layer.name: keep_highest(
                _slopes(layer.matrix(), found[layer.name]), plan.pattern, self._densities[layer.name]
            )
            for layer in self._layers
            if found[layer.name].reached
        }

    def descend_loss(self, bars: Progress, on_step: OnStep | None) -> LossTrace:
        """Improve the masks so far by blocks of the loss; the layers' reports and masks follow."""
        plan, began = self._plan, time.perf_counter()
        assert plan.task is not None
        for removed in self._removed:
            self._dense[removed.layer.name] = removed.dense()
        layers = [
            layer
            for layer in self._layers
            if layer.parameter_name in self.masks and layer.name not in self._without_gradient
        ]
        if not layers:
            raise nothing_reached(self._layers, "not reached by both inputs and gradients", "more samples")
        keep = {layer.name: layer.as_matrix(self.masks[layer.parameter_name]) for layer in layers}
        keeper = self._records.loss_keeper()
        past = float(keeper.past.info["seconds"]) if keeper and keeper.past else 0.0
        self._began -= past
        left = None if plan.max_time is None else max(0.0, plan.max_time - self.elapsed)
        trace = descend_loss(
            self._objective, layers, keep, *self._samples, plan.task.settings, plan.pattern,
            values={layer.name: self._dense[layer.name] for layer in layers}, deadline=Deadline(left), progress=bars,
            on_step=on_step, keeper=keeper,
        )  # fmt: skip
        for number, report in enumerate(self.reports):
            if report.name not in keep:
                note = {"No gradient of the loss reached this layer, so it has the mask of its warm start.": 1}
                self.reports[number] = replace(report, notes={**report.notes, **note})
                continue
            mask, before = trace.keep[report.name], keep[report.name]
            kept, changed = int(mask.sum()), int((mask.cpu() != before.cpu()).sum())
            self.reports[number] = replace(report, kept=kept, density=kept / mask.numel(), swapped=changed)
        for layer in layers:
            self.masks[layer.parameter_name] = layer.stored(trace.keep[layer.name]).cpu()
        self.seconds.loss = past + time.perf_counter() - began
        return trace

    def look(self, model: nn.Module, data: Calibration) -> None:
        """See in one forward pass which layers' weights are used, and how."""
        if self._shelf.in_memory:
            found = self._records.once("uses", lambda: uses_of(model, self._layers, data.inputs[:1]).to_dict())
            self._uses = Uses.from_dict(found)

    def allocate(self, model: nn.Module, data: Calibration, loss: Loss | None, bars: Progress) -> None:
        """Give the layers densities of their own, if that is asked for; the whole keeps the plan's."""
        if self._plan.allocation != "uniform":
            found = self._records.once("budgets", lambda: self._allocated(model, data, loss, bars))
            self._uniform = self._densities.keys() - found.keys()
            self._densities |= found

    def _allocated(self, model: nn.Module, data: Calibration, loss: Loss | None, bars: Progress) -> dict[str, float]:
        """Densities of the layers of which something is known; the others take no part in the budget."""
        plan = self._plan
        with bars.task(f"budgets of the layers ({plan.allocation})", None):
            if plan.allocation == "owl":
                outliers: dict[str, float] = {}

                def visit(layer: Layer, gram: Gram) -> None:
                    if gram.tokens:
                        outliers[layer.name] = outlier_share(layer.matrix().to(gram.matrix.device), gram)

                stream(
                    model, self._layers, data.inputs, visit, self.seconds, shelf=self._shelf,
                    gram_devices=plan.gram_devices,
                )  # fmt: skip
                if not outliers:
                    raise nothing_reached(self._layers, NO_INPUT, "inputs that go through them")
                sizes = {layer.name: layer.parameter.numel() for layer in self._layers if layer.name in outliers}
                shares = owl(outliers, plan.density, sizes=sizes)
            else:
                assert loss is not None
                assert data.samples is not None
                objective = Objective(model, loss, LossDescent.preset("language").micro_batch)
                seed = derive_seed(plan.seed, len(self._layers))
                order = torch.randperm(len(data.samples), generator=torch.Generator().manual_seed(seed))
                found = moments(objective, data.samples, order[:_FISHER_SAMPLES], self._layers)
                rises = {
                    layer.name: predicted_rise(layer.matrix(), found[layer.name].mean, found[layer.name].square)
                    for layer in self._layers
                    if found[layer.name].reached
                }
                if not rises:
                    raise nothing_reached(self._layers, NO_GRADIENT, "the allocation 'owl' or 'uniform'")
                shares = by_loss_change(rises, plan.density)
        shapes = {layer.name: layer.shape for layer in self._layers if layer.name in shares}
        kept = counts_of(shares, shapes, plan.density, plan.pattern)
        return {name: count / math.prod(shapes[name]) for name, count in kept.items()}

    def all_layers(self, model: nn.Module, data: Calibration, bars: Progress) -> None:
        """Stream the calibration data through the model and prune each layer when its turn comes."""
        if self._plan.needs_inputs and self._shelf.in_memory:
            if tied_to_others(model, self._layers):
                self._measured_last = _TIED
            elif self._plan.task is not None:
                self._measured_last = ""
        with bars.task(f"pruning ({self._plan.method})", self._left) as advance:

            def visit(layer: Layer, gram: Gram) -> None:
                if self._records.lacks(layer):
                    reason = self._why_left_dense(layer, gram)
                    if reason is None:
                        self.one_layer(layer, gram)
                    else:
                        self._leave(layer, reason)
                else:
                    self._take(layer)
                advance(layer.parameter.numel(), layer.name)

            if self._plan.needs_inputs:
                dense = self._dense if self._plan.correction else None
                stream(
                    model, self._layers, data.inputs, visit, self.seconds, data.held_out, dense, self._records.lacks,
                    self._shelf, self._plan.gram_devices, self._settle,
                )  # fmt: skip
            else:
                for layer in self._layers:
                    visit(layer, Gram.of_nothing(layer.shape[1], layer.parameter.device))
        if not self.reports:
            raise nothing_reached(self._layers, self.left_dense[0].reason, "inputs that go through them")

    def _why_left_dense(self, layer: Layer, gram: Gram) -> str | None:
        """Why a layer stays as it is: nothing was seen of it, and it was not asked for by its full name."""
        if layer.name in self._named:
            return None
        if self._plan.needs_inputs:
            return None if gram.tokens else self._uses.why_not_reached(layer.name)
        if layer.name not in self._without_gradient:
            return None
        why = self._uses.why_not_reached(layer.name)
        return why if why == NO_CALL else NO_GRADIENT

    def _leave(self, layer: Layer, reason: str) -> None:
        """Leave a layer dense."""
        left = LeftDense(layer.name, layer.parameter.numel(), reason)
        self.left_dense.append(left)
        self._left -= left.weights
        self._records.put_left_dense(layer, reason)
        event(
            _log, "left-dense", f"{layer.name} stays dense: {reason}.", layer=layer.name, layers=len(self._layers),
            weights=left.weights, weights_left=self._left, reason=reason, elapsed=self.elapsed,
        )  # fmt: skip

    def one_layer(self, layer: Layer, gram: Gram) -> None:
        """Prune one layer.

        Raises:
            InputError: the memory of its device does not hold what that takes.
        """
        doing = f"while layer {layer.name!r} of {layer.shape[0]} x {layer.shape[1]} weights was pruned"
        with told_if_full(doing, _SMALLER):
            self._one_layer(layer, gram)

    def _one_layer(self, layer: Layer, gram: Gram) -> None:
        devices = {layer.parameter.device, gram.matrix.device}
        plan, began = self._plan, now(devices)
        event(_log, "layer-began", f"{layer.name} is pruned now.", layer=layer.name)
        weight, raised = layer.matrix().to(gram.matrix.device), Counter[str]()
        if self._records.was_damaged(layer):
            raised["Its record in the run's folder was damaged, so it was pruned again."] = 1
        target = corrected(weight, gram, plan.correction, plan.damping, raised)
        if plan.correction and self._dense and gram.tokens and gram.drift is None:
            raised["The dense model does not send the same tokens to this layer, so nothing was corrected."] = 1
        stays, start = self._protected(layer, target, gram, self._warm_start(layer, target, gram))
        result = self._descended(layer, target, gram, start.keep, stays)
        final, notes = self._updated(target, gram, start, result)
        began_with, keep = weight * start.keep, result.keep
        if start.weight is not None and plan.updates:
            began_with = start.weight
        held_out = _held_out_errors(gram, weight, began_with, final)
        reverted = held_out[0] is not None and held_out[1] is not None and held_out[1] > held_out[0]
        if reverted:
            final, keep = began_with, start.keep
            notes = {**notes, "Its error on held-out inputs rose, so the layer has its warm start back.": 1}
        seconds = now(devices) - began
        self.seconds.search += seconds
        proven = self._proven(weight, gram, keep)
        power, before = (_error(gram, change) for change in (weight, weight - began_with))
        after = before if torch.equal(began_with, final) else _error(gram, weight - final)
        self._put(layer, keep, final)
        kept = int(keep.sum())
        notes = dict(raised + Counter(start.notes) + Counter(result.kept_start) + Counter(notes))
        notes |= self._notes_on_reach(layer, gram)
        report = LayerReport(
            layer.name, layer.shape, kept, kept / weight.numel(), before, after, power, result.steps, result.accepted,
            result.solver_gain, result.polish_gain, seconds, plan.solver_name, gram.tokens, int(gram.dead.sum()),
            result.stopped_early, notes, result.trace, 0, *held_out, reverted, *proven,
            result.blocks,
        )  # fmt: skip
        self.reports.append(report)
        begun = self._starts[layer.name] = Start(start.keep, start.weight if plan.updates else None)
        decided = Decided(keep, layer.matrix() if plan.updates else None, report, begun)
        self._records.put(layer, decided, self.seconds, self.elapsed)
        self._records.forget_journal(layer)
        self._tell(report)

    def _notes_on_reach(self, layer: Layer, gram: Gram) -> dict[str, int]:
        """What was not seen of a layer that is pruned all the same."""
        plan, said = self._plan, list[str]()
        if not plan.needs_inputs:
            said.append("The output error of this layer was not measured; its warm start needs no inputs.")
            if plan.warm_start == "gradient" and layer.name in self._without_gradient:
                said.append("No gradient of the loss reached this layer; its weights were ranked by magnitude.")
        elif not gram.tokens:
            ranked = (
                "its weights were ranked by magnitude" if isinstance(plan.warm_start, str) else "its mask was given"
            )
            said.append(f"No calibration token reached this layer; {ranked}.")
        if layer.name in self._uniform:
            of = "No gradient of the loss" if plan.allocation == "fisher" else "No calibration token"
            said.append(f"{of} reached this layer when budgets were given out, so it has the density of the run.")
        if layer.name in self._uses.called & self._uses.beside:
            said.append("Its weight is also used without a call of its module, which its error leaves out.")
        return dict.fromkeys(said, 1)

    def _take(self, layer: Layer) -> None:
        """Put in place what an earlier call decided."""
        reason = self._records.reason_left_dense(layer)
        if reason is not None:
            self.left_dense.append(LeftDense(layer.name, layer.parameter.numel(), reason))
            self._left -= layer.parameter.numel()
            return
        decided = self._records.take(layer)
        self._put(layer, decided.keep.to(layer.parameter.device), decided.weight)
        self._starts[layer.name] = decided.start
        self.reports.append(decided.report)

    def _settle(
        self, layers: Sequence[Layer], moved: Callable[[], Sequence[Layer]], gram: Callable[[Layer], Gram]
    ) -> None:
        """Measure again those of a block's layers whose inputs have changed since they were pruned."""
        names = self._records.once(
            f"moved-{self._records.number(layers[0])}", lambda: [layer.name for layer in moved()]
        )
        for layer in layers:
            if layer.name in names and layer.name in self._starts:  # else it was left dense
                self._measure_again(layer, gram(layer), _IN_ANOTHER_ORDER)
        if self._measured_last is None:
            self._starts.clear()

    def measure_all(self, model: nn.Module, data: Calibration, bars: Progress) -> None:
        """Measure all layers once more if what came after a layer has changed its mask or its inputs."""
        why = self._measured_last
        if why is None:
            return
        with bars.task("measuring", sum(layer.parameter.numel() for layer in self._layers)) as advance:

            def visit(layer: Layer, gram: Gram) -> None:
                if layer.name in self._starts and gram.tokens:
                    self._measure_again(layer, gram, why)
                advance(layer.parameter.numel(), layer.name)

            stream(
                model, self._layers, data.inputs, visit, self.seconds, data.held_out, shelf=self._shelf,
                gram_devices=self._plan.gram_devices,
            )  # fmt: skip

    def _measure_again(self, layer: Layer, gram: Gram, why: str) -> None:
        """Put the errors on the inputs that a layer has now into its report."""
        if not self._shelf.in_memory:
            raise InputError(
                f"The layer {layer.name!r} runs several times, or not always in the same order, so its error has to be "
                "measured again with its dense weight, which is on the disk; give weights='memory', or exclude it."
            )
        start, final = self._starts[layer.name], layer.matrix().to(gram.matrix.device)
        dense = self._dense_of(layer).to(final.device)
        began_with = dense * start.keep.to(final.device) if start.weight is None else start.weight.to(final.device)
        power, before, after = (_error(gram, change) for change in (dense, dense - began_with, dense - final))
        number = next(number for number, report in enumerate(self.reports) if report.name == layer.name)
        old = self.reports[number]
        least, optima = self._proven(dense, gram, layer.as_matrix(self.masks[layer.parameter_name]).to(final.device))
        held_out = _held_out_errors(gram, dense, began_with, final)
        report = self.reports[number] = replace(
            old, error_before=before, error_after=after, output_power=power, tokens=gram.tokens,
            dead_inputs=int(gram.dead.sum()), notes=old.notes | ({why: 1} if why else {}), held_out_before=held_out[0],
            held_out_after=held_out[1], least_error=least, block_optima=optima,
        )  # fmt: skip
        self._tell(report)

    def _dense_of(self, layer: Layer) -> Tensor:
        if layer.name in self._dense:
            return self._dense[layer.name]
        return next(removed.dense() for removed in self._removed if removed.layer is layer)

    def _put(self, layer: Layer, keep: Tensor, weight: Tensor | None) -> None:
        """Prune the layer in the model, or give it new weights if the run changes those."""
        undoable = self._shelf.in_memory
        if self._plan.updates:
            assert weight is not None
            if undoable or self._plan.correction:
                self._dense[layer.name] = layer.matrix().clone()
            layer.assign(weight)
        else:
            if undoable:
                self._removed.append(layer.remember(keep))
            layer.prune(keep)
        self._shelf.changed(layer, lambda stored: self._again(layer, stored))
        self.masks[layer.parameter_name] = layer.stored(keep).cpu()
        self._left -= layer.parameter.numel()

    def _again(self, layer: Layer, stored: Tensor) -> Tensor:
        """What was decided of a layer, done to its weight as stored."""
        decided = self._records.take(layer)
        if decided.weight is not None:
            return layer.stored(decided.weight)
        return stored.masked_fill(~layer.stored(decided.keep), 0)

    def _tell(self, report: LayerReport) -> None:
        errors = f"{shown(report.relative_before, 5)} to {shown(report.relative_after, 5)}"
        sentence = f"{report.name}: relative error {errors}."
        event(
            _log, "layer", sentence, layer=report.name, number=len(self.reports), layers=len(self._layers),
            weights=report.shape[0] * report.shape[1], weights_left=self._left, kept=report.kept,
            relative_before=report.relative_before, relative_after=report.relative_after, seconds=report.seconds,
            blocks=report.blocks.asked, lost=report.blocks.num_lost, cut=report.blocks.num_cut,
            elapsed=self.elapsed,
        )  # fmt: skip

    def _is_blind(self, gram: Gram) -> bool:
        """True of a layer that was asked for by its full name and has no inputs to go by."""
        return self._plan.needs_inputs and not gram.tokens

    def _descended(self, layer: Layer, target: Tensor, gram: Gram, keep: Tensor, stays: Tensor | None) -> DescentResult:
        """What blocks make of a warm start."""
        descent, deadline = self._plan.descent, Deadline(self._allowance(layer))
        if descent is None or self._is_blind(gram):
            return DescentResult(keep, 0, 0, 0.0, False)
        journal = self._records.journal(layer)
        handling = replace(descent.handling, journal=journal)
        try:
            if isinstance(descent, CompensatedDescent):
                settings = replace(descent, handling=handling)
                return descend_compensated(target, gram, keep, self._plan.pattern, settings, deadline, stays)
            return descend(target, gram, keep, self._plan.pattern, replace(descent, handling=handling), deadline)
        except BaseException:
            if journal is not None:
                journal.keep()
            raise

    def _proven(self, weight: Tensor, gram: Gram, keep: Tensor) -> tuple[float | None, BlockOptima | None]:
        """A lower bound for masks of these counts, and optima of blocks, if they are asked for."""
        plan, devices = self._plan, {gram.matrix.device}
        began = now(devices)
        if plan.certify is None or not gram.tokens:
            return None, None
        least = least_error(weight, gram, keep, plan.pattern, plan.certify)
        optima = block_optima(weight, gram, keep, plan.pattern, derive_seed(plan.seed, len(self.reports)))
        self.seconds.bounds += now(devices) - began
        return least, optima

    def _updated(
        self, weight: Tensor, gram: Gram, start: Choice, result: DescentResult
    ) -> tuple[Tensor, Mapping[str, int]]:
        """The weights of the final mask, and what was done otherwise than asked."""
        plan = self._plan
        if self._is_blind(gram):
            return weight * result.keep, {}
        if plan.update in (None, "none"):
            own = start.weight if plan.update is None and plan.method in PEERS else None
            return (weight * result.keep if own is None else own), {}
        if result.stopped_early and start.weight is not None and torch.equal(result.keep, start.keep):
            return start.weight, {"The time was over, so the layer has the weights of its warm start.": 1}
        updated = update_weights(plan.update, weight, gram, result.keep, plan.damping)
        return updated.weight, updated.notes

    def _warm_start(self, layer: Layer, weight: Tensor, gram: Gram) -> Choice:
        plan, density = self._plan, self._densities[layer.name]
        if not isinstance(plan.warm_start, str):
            return Choice(_given_mask(layer, plan, density).to(weight.device), None, {})
        by_gradient = plan.warm_start == "gradient"
        if not (gram.tokens if plan.needs_inputs else layer.name in self._gradient_masks or not by_gradient):
            return Choice(keep_highest(weight.abs(), plan.pattern, density), None, {})
        if by_gradient:
            return Choice(self._gradient_masks[layer.name].to(weight.device), None, {})
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
        left = self._plan.max_time - self.elapsed - ahead
        return max(0.0, left) * layer.parameter.numel() / self._left


def _perplexity(model: nn.Module, windows: Sequence[Tensor], bars: Progress) -> float | None:
    """Of a transformers model on held-out windows; ``None`` for other models, and without windows to judge by."""
    if not windows or windows[0].shape[1] < 2 or not hasattr(model, "config"):
        return None
    with evaluating(model):
        return perplexity(model, torch.cat(list(windows)), progress=bars).perplexity


def _slopes(weight: Tensor, found: Moments) -> Tensor:
    """``|w g|``; weights whose gradient is zero come below the others, by their magnitude."""
    slopes = (weight * found.mean).abs().double()
    return torch.where(slopes > 0, slopes, -1 / (1 + weight.abs().double()))


def nothing_reached(layers: Sequence[Layer], reason: str, instead: str) -> InputError:
    """What is said if a run would leave all its layers dense."""
    names = ", ".join(kinds([layer.name for layer in layers])[:4])
    return InputError(
        f"All {len(layers)} layers that are to be pruned ({names}) are {reason}, so nothing would be pruned; give "
        f"{instead}."
    )


def _error(gram: Gram, change: Tensor) -> float | None:
    """Of the output, summed; ``None`` where no inputs were seen."""
    return float(gram.output_error(change).sum()) if gram.tokens else None


def _held_out_errors(gram: Gram, weight: Tensor, before: Tensor, after: Tensor) -> tuple[float | None, float | None]:
    """Of the warm start and of the result, relative to the layer's output; ``None`` without held-out inputs."""
    if gram.held_out is None:
        return None, None
    power = float(gram.held_out.output_error(weight).sum())
    errors = [float(gram.held_out.dense_output_error(weight, new).sum()) for new in (before, after)]
    return (errors[0] / power, errors[1] / power) if power else (None, None)


def _given_mask(layer: Layer, plan: Plan, density: float) -> Tensor:
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
