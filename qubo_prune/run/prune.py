"""The main job: prune the linear and convolution layers of a model, layer by layer, through block QUBOs."""

from __future__ import annotations

import inspect
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from qubo_prune.blocks.loss.descent import OnStep
from qubo_prune.choices import WEIGHTS
from qubo_prune.data.calibration import Calibration, Source, digest_of_samples, drawn_from, read_calibration
from qubo_prune.data.evaluation import perplexity
from qubo_prune.data.losses import Loss
from qubo_prune.data.samples import Samples
from qubo_prune.data.text import check_source, check_windows
from qubo_prune.devices import room
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.events import event, logged_to
from qubo_prune.files.outputs import Needed, check_output, made_output
from qubo_prune.files.parsing import expanded
from qubo_prune.files.safetensors import Checkpoint, is_checkpoint
from qubo_prune.methods.base import Method
from qubo_prune.methods.chain import Chain
from qubo_prune.models.coverage import Coverage
from qubo_prune.models.disk import load_on_disk
from qubo_prune.models.layers import Layer, find_layers
from qubo_prune.models.load import (
    DTYPES,
    LoadedModel,
    check_name,
    evaluating,
    load_model,
    module_as_given,
    save_model,
)
from qubo_prune.precision import pinned
from qubo_prune.progress import Progress
from qubo_prune.ranks import check_alone
from qubo_prune.report.report import Report, versions
from qubo_prune.request import (
    Budget,
    DataSettings,
    MethodSettings,
    Placement,
    PruneRequest,
    PruneSettings,
    RunSettings,
    all_fields,
)
from qubo_prune.run.folder import EVENTS, RunFolder, check_free, opened
from qubo_prune.run.layerwise import LayerRun
from qubo_prune.run.memory import MemoryEstimate, as_text, available_memory, estimate, resident_memory
from qubo_prune.run.plan import Plan, for_model
from qubo_prune.run.records import Records, settings_of

_log = logging.getLogger(__name__)


@pinned()
def prune(
    model: str | nn.Module,
    calibration: Source = "pydoc",
    density: float | str = 0.5,
    *,
    method: str | Method | Chain | MethodSettings = "gram",
    budget: Budget | None = None,
    data: DataSettings | None = None,
    place: Placement | None = None,
    run: RunSettings | None = None,
    on_step: OnStep | None = None,
    progress: bool = False,
    **settings: Unpack[PruneSettings],
) -> Report:
    """Prune a model's linear and 2-D convolution layers to an exact density.

    The model is changed in place: pruned weights become zero, kept ones stay as they are unless the method or an update
    changes them. If anything goes wrong, an interrupt included, it gets its weights back and nothing is written.

    Settings are keywords, or come in groups: ``prune(model, pattern="2:4")`` is ``prune(model,
    budget=Budget(pattern="2:4"))``; a keyword comes before the group's field.

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

            Labels among them are left out; blocks of the loss need them (or what ``loss`` takes). Padding that a
            mask marks counts nowhere: padded samples go one by one, by their real positions.
        density: kept share of each budget, above 0 and at most 1; a number or text of one.
        method: the name of blocks (``gram``, ``compensated``, ``loss`` = ``icbs``), of a score or of a published method
            (see :func:`qubo_prune.describe_methods`); an object of ``qubo_prune.methods``; a
            :class:`~qubo_prune.Chain` of them; or a :class:`~qubo_prune.MethodSettings`.
        budget: how many weights are kept, and where.
        data: what is drawn from the calibration.
        place: where the model is.
        run: where results go, seed and limits.
        on_step: with blocks of the loss, called after each step with its record; its time does not count.
        progress: show progress bars.
        **settings: the fields of these groups and of :class:`~qubo_prune.request.MethodSettings` by their names.

    Returns:
        The report, with the keep masks.

    Raises:
        InputError: a setting cannot be used; the message says why and what to do.
        TypeError: there is no such setting; the message gives near ones.
    """
    groups = {"budget": budget, "data": data, "place": place, "run": run}
    return run_request(request_of(model, calibration, density, method, groups, settings), on_step, progress)


def request_of(
    model: Any,
    calibration: Any,
    density: Any,
    method: Any,
    groups: Mapping[str, Any],
    settings: Mapping[str, Any],
    caller: str = "prune",
) -> PruneRequest:
    """What the arguments of :func:`prune` ask for; groups may be ``None``."""
    given = {name: group for name, group in groups.items() if group is not None}
    if isinstance(method, MethodSettings):
        given["how"] = method
    else:
        settings = {**settings, "method": method}
    return PruneRequest.of(model, calibration, density, caller=caller, groups=given, settings=settings)


def signature_of(function: Any) -> inspect.Signature:
    """The signature of a function that takes settings as keywords, with every one of them."""
    found = inspect.signature(function)
    own = [each for each in found.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if callable(each.default_factory) else each.default,
            annotation=each.type,
        )
        for each in all_fields()
        if each.name not in found.parameters
    ]
    return found.replace(parameters=[*own, *more])


prune.__signature__ = signature_of(prune)  # type: ignore[attr-defined]


def run_request(request: PruneRequest, on_step: OnStep | None = None, progress: bool = False) -> Report:
    """Do what a request asks for; see :func:`prune`."""
    began = time.perf_counter()
    check_alone()
    request = request.with_effort()
    checked = check_request(request, on_step)
    bars, where = Progress(progress), request.run
    target = None if checked.output is None else made_output(checked.output)
    on_disk = request.place.weights == "disk"
    with taken(where.run_folder, where.resume, target if on_disk else None) as folder:
        _identify(folder, "configuration", checked.configuration)
        _identify(folder, "software", _software)
        loaded = _loaded(request, target, bars, folder if on_disk else None)
        planned = plan_layers(checked, loaded)
        _identify(folder, "model", lambda: {"sha256": loaded.shelf.digest()})
        _identify(folder, "calibration", lambda: planned.data.described | {"sha256": planned.data.digest()})
        records = Records(folder, planned.layers)
        passed = LayerRun(planned.plan, planned.layers, began, records, loaded.shelf)
        judging = _judging(planned.plan, loaded)
        if judging is not None and not isinstance(judging, str):
            _identify(folder, "held-out samples", lambda: {"sha256": digest_of_samples(judging)})
        report = _pruned(planned, loaded, passed, records, bars, on_step, judging)
        if folder is not None:
            report.seconds["checkpoints"] = folder.seconds
        if target is not None:
            with passed.undone_on_failure():
                save_pruned(loaded, target, report)
        event(_log, "ended", "The run is done.", elapsed=passed.elapsed, **report.totals())
    return report


def _pruned(
    planned: Planned,
    loaded: LoadedModel,
    passed: LayerRun,
    records: Records,
    bars: Progress,
    on_step: OnStep | None,
    judging: Samples | str | None,
) -> Report:
    """Prune a model as planned, or leave it as it was."""
    plan, data, request = planned.plan, planned.data, planned.plan.request
    foreseen = estimate(
        loaded.model,
        planned.layers,
        plan,
        data.inputs,
        data.held_out,
        resident_memory(),
        loaded.shelf.blocks,
        torch.device(request.place.device),
    )
    coverage = Coverage.of(loaded.model, planned.layers, request.budget.include, request.budget.exclude)
    _tell_memory(foreseen, bars)
    _check_fitting(plan, foreseen)
    judges = data.held_out if isinstance(request.calibration, str) else []
    with passed.undone_on_failure():
        before = records.once("perplexity", lambda: _perplexity(loaded.model, judges, bars))
        passed.reorder(loaded.model, data, bars)
        passed.look(loaded.model, data)
        passed.weigh_outputs(loaded.model, data, planned.reading, bars)
        passed.allocate(loaded.model, data, planned.reading, bars)
        if plan.chain.whole is not None:
            passed.prepare_loss(loaded.model, data, judging)
        passed.all_layers(loaded.model, data, bars)
        passed.fit_all(loaded.model, data, bars)
        trace = passed.decide_all(bars, on_step) if plan.chain.whole is not None else None
        passed.measure_all(loaded.model, data, bars)
        after = _perplexity(loaded.model, judges, bars)
    return Report(
        layers=tuple(passed.reports),
        model=loaded.name,
        settings=plan.settings() | ({"reordered": passed.reordered} if request.budget.reorder else {}),
        calibration=data.described,
        seconds=vars(passed.seconds) | {"total": passed.elapsed, "checkpoints": 0.0},
        masks=passed.masks,
        loss=trace,
        budgets=passed.budgets,
        held_out_perplexity=None if before is None or after is None else (before, after),
        memory_estimate_bytes=None if foreseen is None else foreseen.total,
        left_dense=tuple(passed.left_dense),
        coverage=coverage,
        model_source=loaded.source,
    )


def _judging(plan: Plan, loaded: LoadedModel) -> Samples | str | None:
    """The samples by which moves on the loss are judged, if they were given."""
    data = plan.request.data
    if data.held_out is None:
        return None
    assert plan.loss is not None
    return drawn_from(data.held_out, loaded, int(data.sequence_length), int(data.gram_samples), plan.loss)


@dataclass(frozen=True)
class Checked:
    """What was asked of a run, checked as far as it can be before a model is loaded.

    Attributes:
        plan: the run's, whose last step may still change with the model.
        output: folder for the result.
    """

    plan: Plan
    output: Path | None

    def configuration(self) -> dict[str, Any]:
        """What a run that goes on must have been begun with."""
        named = self.plan.request.model
        name = named if isinstance(named, str) else module_as_given(named).name
        return settings_of(self.plan.compared() | {"model": name})


@dataclass(frozen=True, eq=False)
class Planned:
    """What the model says of a run.

    Attributes:
        plan: of the run, in full.
        layers: that are to be pruned.
        reading: what tells labels from inputs in a batch.
        data: what is drawn from.
    """

    plan: Plan
    layers: list[Layer]
    reading: Loss | None
    data: Calibration


def check_request(request: PruneRequest, on_step: OnStep | None = None) -> Checked:
    """Check what is asked for; nothing is loaded and nothing is written.

    Raises:
        InputError: something cannot be done.
    """
    model, data, place = request.model, request.data, request.place
    if on_step is not None and not callable(on_step):
        raise InputError(f"on_step is of type {type(on_step).__name__}; give a function of a step.")
    if int(data.loss_length) < 1:
        raise InputError(f"loss_length is {data.loss_length}; it must be at least 1.")
    if int(data.draw) < 0:
        raise InputError(f"draw is {data.draw}; it must be 0, for windows that are evenly spread, or a number above.")
    if int(data.gram_samples) < 1:
        raise InputError(f"gram_samples is {data.gram_samples}; it must be at least 1.")
    if data.guard is not None and data.guard < 0:
        raise InputError(f"guard is {data.guard}; a number of windows or batches, or 0 for none, is needed.")
    plan = Plan.of(request)
    _check_no_loss(plan, on_step)
    if place.weights not in WEIGHTS:
        near = did_you_mean(place.weights, WEIGHTS)
        raise InputError(f"weights is {place.weights!r}{near}; give 'memory' or 'disk'.")
    if isinstance(model, str):
        check_name(model, place.dtype, place.device)
    if isinstance(request.calibration, str):
        check_source(request.calibration)
        check_windows(int(data.samples), int(data.sequence_length))
    if place.weights == "disk":
        _check_disk(plan)
    output, replaces = request.run.output, request.run.overwrite
    return Checked(plan, None if output is None else check_output(output, replaces, _needed(request)))


def _check_no_loss(plan: Plan, on_step: OnStep | None) -> None:
    """Raise :class:`InputError` if something is given that a run without the loss would ignore."""
    if plan.chain.whole is not None:
        return
    given = (
        ("held_out", plan.request.data.held_out, "give guard=, a number of inputs to hold out,"),
        ("on_step", on_step, "leave it out"),
    )
    for name, value, instead in given:
        if value is not None:
            raise InputError(
                f"{name} is given and the method {plan.chain.name!r} takes no loss; {instead} or method='loss'."
            )


def _needed(request: PruneRequest) -> Needed:
    """What a run reads or keeps, and so may not be where its result goes."""
    model, source, run = request.model, request.calibration, request.run.run_folder
    named = model if isinstance(model, str) else getattr(getattr(model, "config", None), "name_or_path", None)
    return {
        "model": named,
        "calibration text": source if isinstance(source, str) and source != "pydoc" else None,
        "run folder": None if run is None else Path(run),
        "folder of images": getattr(source, "folder", None),
    }


def plan_layers(checked: Checked, loaded: LoadedModel) -> Planned:
    """What the model says of a run that was checked.

    Raises:
        InputError: they do not fit each other.
    """
    plan, request = checked.plan, checked.plan.request
    data, budget = request.data, request.budget
    layers = find_layers(loaded.model, budget.include, budget.exclude, budget.prune_head)
    loaded.shelf.check(layers)
    drawn = read_calibration(
        request.calibration,
        loaded,
        int(data.samples),
        int(data.sequence_length),
        plan.reading(),
        int(data.loss_length),
        int(data.gram_samples),
        data.guard if plan.updates or data.guard is not None else 0,
        data.loss is not None,
        int(data.draw),
    )
    if plan.loss is not None and drawn.loss is not None:
        plan = replace(plan, loss=drawn.loss, chain=for_model(plan.chain, drawn.loss, plan.seed, layers))
    return Planned(plan, layers, drawn.loss, drawn)


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
        _log,
        "memory",
        sentence,
        logging.WARNING if short else logging.INFO,
        estimate_bytes=foreseen.total,
        available_bytes=available,
        **asdict(foreseen),
    )
    bars.say(sentence)


def _check_fitting(plan: Plan, foreseen: MemoryEstimate | None) -> None:
    """Raise :class:`InputError` if layers are to be fitted together and the memory will not hold that."""
    available = available_memory() + resident_memory()
    if foreseen is not None and plan.chain.joints and foreseen.short(available):
        raise InputError(
            f"{foreseen.sentence(available)} Layers are to be fitted together (update {plan.chain.update_name!r}), and "
            "that would not come to its end; give shorter or fewer windows, the update 'refit' (or 'block' in place of "
            "'distill'), or a device with more room."
        )


def _identify(folder: RunFolder | None, part: str, given: Callable[[], Mapping[str, Any]]) -> None:
    if folder is not None:
        folder.identify(part, given)


def _check_disk(plan: Plan) -> None:
    """Raise :class:`InputError` if a run needs all weights in memory."""
    request = plan.request
    if not isinstance(request.model, str):
        raise InputError("weights is 'disk' and the model is a module, which is in memory; give a folder's name.")
    if request.run.output is None:
        raise InputError("weights is 'disk' and no output is given, where the pruned weights would go; name a folder.")
    if plan.chain.whole is not None or plan.needs_gradients:
        raise InputError(
            "weights is 'disk', and gradients of the loss need the whole model in memory; give the method 'gram' or "
            "'compensated', the allocation 'uniform' or 'owl', and no hessian 'kron'."
        )
    if request.budget.reorder:
        raise InputError("weights is 'disk' and reorder is given, which needs the model in memory; leave it out.")
    if plan.chain.joints:
        raise InputError(
            "weights is 'disk', and the updates 'block' and 'distill' fit layers to the dense ones beside them, which "
            "needs both in memory; give the update 'refit', or weights='memory'."
        )
    if request.place.dtype != "auto":
        raise InputError(
            f"weights is 'disk', which keeps the checkpoint's own type, and dtype is {request.place.dtype!r}; leave "
            "it out."
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


def _loaded(request: PruneRequest, target: Path | None, bars: Progress, scratch: RunFolder | None) -> LoadedModel:
    """The model, loaded if it is a name; its weights stay on the disk if there is a folder for hidden states."""
    model, place = request.model, request.place
    if isinstance(model, str):
        with bars.task(f"loading {model}", None):
            if scratch is not None:
                return load_on_disk(model, place.device, place.trust_remote_code, scratch.path)
            check_fits(model, place.dtype, place.device)
            return load_model(model, place.dtype, place.device, place.trust_remote_code)
    if target is not None and not hasattr(model, "save_pretrained"):
        raise InputError(
            "output is given, which takes a transformers model; leave output out and save the model and report.masks "
            "yourself."
        )
    return module_as_given(model, request.data.tokenizer)


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


def _perplexity(model: nn.Module, windows: Sequence[Tensor], bars: Progress) -> float | None:
    """Of a transformers model on held-out windows; ``None`` for other models, and without windows to judge by."""
    if not windows or windows[0].shape[1] < 2 or not hasattr(model, "config"):
        return None
    with evaluating(model):
        return perplexity(model, torch.cat(list(windows)), progress=bars).perplexity
