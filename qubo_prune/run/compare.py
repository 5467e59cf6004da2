"""Methods side by side on one model: same calibration, same held-out text, one table."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from qubo_prune.arguments import as_count, as_names
from qubo_prune.data.evaluation import perplexity
from qubo_prune.data.text import Windows, check_length, check_source, check_windows, token_windows
from qubo_prune.errors import InputError
from qubo_prune.files.atomic import atomic_write
from qubo_prune.files.outputs import Needed, check_output
from qubo_prune.methods.chain import Entry
from qubo_prune.models.load import LoadedModel, check_name, load_model
from qubo_prune.plugins import method_names
from qubo_prune.precision import pinned
from qubo_prune.progress import Progress
from qubo_prune.ranks import check_alone
from qubo_prune.report.comparison import Comparison, ComparisonRow, Setting
from qubo_prune.report.report import Report, machine, reset_peak_memory
from qubo_prune.request import GROUPS, PruneRequest, PruneSettings
from qubo_prune.run.plan import Plan
from qubo_prune.run.prune import run_request, save_pruned, signature_of
from qubo_prune.seeds import checked_seed
from qubo_prune.tables import shown

logger = logging.getLogger(__name__)

#: What a comparison takes if no methods are named.
COMPARED = ("magnitude", "wanda", "sparsegpt", "admm", "gram", "compensated")
#: Settings of a run that a comparison has no use for.
_NOT_HERE = ("method", "hessian", "run_folder", "resume", "held_out", "tokenizer", "on_step")


@pinned()
def compare(
    model: str | LoadedModel,
    methods: str | Sequence[str] = COMPARED,
    *,
    calibration: str = "pydoc",
    text: str | Sequence[str] = "pydoc",
    density: float | str | Sequence[float | str] = 0.5,
    eval_samples: int = 24,
    seeds: int | str = 1,
    progress: bool = False,
    **settings: Unpack[PruneSettings],
) -> Comparison:
    """Prune a model by several methods, each from the dense weights, and evaluate each.

    Args:
        model: a name that :func:`qubo_prune.models.load.load_model` takes, or what it returned, which has its dense
            weights again in the end.
        methods: entries ``METHOD[+UPDATE][@NAME=VALUE]``, such as ``wanda``, ``admm+refit``, ``compensated``.
        calibration: text source for calibration.
        text: held-out text source, or several; methods are compared on each.
        density: kept share, or several; an entry such as ``"2:4"`` is a pattern of its own.
        eval_samples: windows of held-out text.
        seeds: how often each method runs, each time with a seed and calibration windows of its own (``seed`` and
            ``draw`` go up by one); the table has means and deviations.
        progress: show progress bars.
        **settings: those of :func:`qubo_prune.prune`, for all methods; ``output`` is where the model of the last method
            goes, with ``comparison.json`` and ``comparison.png``.

    Raises:
        InputError: a setting cannot be used, before anything is loaded.
        TypeError: there is no such setting; the message gives near ones.
    """
    check_alone("prune and compare the same models")
    given: dict[str, Any] = dict(settings)
    for name in _NOT_HERE:
        if name in given:
            raise InputError(f"{name} is given, which a comparison has no use for; name methods, and leave it out.")
    groups: dict[str, Any] = {name: given.pop(name) for name in GROUPS if name in given}
    asked = PruneRequest.of(model, calibration, groups=groups, settings=given, caller="compare")
    eval_samples, seeds = as_count("eval_samples", eval_samples), as_count("seeds", seeds)
    runs = _runs(asked, as_names("methods", methods), density, seeds)
    texts = [text] if isinstance(text, str) or not isinstance(text, Iterable) else list(text)
    target = _checked(asked, texts, eval_samples)
    bars, length = Progress(progress), int(asked.data.sequence_length)
    if isinstance(model, str):
        with bars.task(f"loading {model}", None):
            loaded = load_model(model, asked.place.dtype, asked.place.device, asked.place.trust_remote_code)
    else:
        loaded = model
    check_length(loaded.model, length)
    held_out = [token_windows(loaded.tokenizer, each, "evaluation", eval_samples, length) for each in texts]
    return _compared(loaded, runs, held_out, target, bars, progress)


compare.__signature__ = signature_of(compare)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _OneRun:
    """A method at a setting, and what is asked of it."""

    entry: Entry
    setting: Setting
    request: PruneRequest


def _runs(asked: PruneRequest, methods: Sequence[str], density: Any, seeds: int) -> list[_OneRun]:
    """All methods at all settings and seeds, each checked as far as it can be without the model."""
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; at least 1 is needed.")
    if asked.how.effort is not None:
        raise InputError(
            "effort is given, and a comparison names its methods and their settings; leave it out, or give it to prune."
        )
    if not methods:
        raise InputError(f"No method is given to compare; name one or more of {', '.join(method_names())}.")
    entries = [Entry.parse(method) for method in methods]
    several = list(density) if isinstance(density, Iterable) and not isinstance(density, str) else [density]
    if not several:
        raise InputError("No density is given to compare at; name one or more.")
    settings = [Setting.parse(each, asked.budget.pattern) for each in several]
    first, draw = checked_seed(asked.run.seed), int(asked.data.draw)
    checked_seed(first + seeds - 1)
    runs = [
        _OneRun(entry, setting, request_for(entry, setting, asked).changed({"seed": first + more, "draw": draw + more}))
        for more, setting, entry in itertools.product(range(seeds), settings, entries)
    ]
    for one in runs:
        Plan.of(one.request)
    return runs


def request_for(entry: Entry, setting: Setting, asked: PruneRequest) -> PruneRequest:
    """What is asked of a method at a setting."""
    changed = asked.changed({**entry.words(), "pattern": setting.pattern, "output": None})
    return replace(changed, density=setting.density)


def _checked(asked: PruneRequest, texts: Sequence[str], eval_samples: int) -> Path | None:
    """The folder for the result; raises :class:`InputError` if model, texts or folder cannot be used."""
    model, data = asked.model, asked.data
    if isinstance(model, str):
        check_name(model, asked.place.dtype, asked.place.device)
    if asked.place.weights != "memory":
        raise InputError("weights is 'disk', and a comparison evaluates a model in memory; leave weights out.")
    if not texts:
        raise InputError("No held-out text is given; name one or more.")
    if not isinstance(model, str | LoadedModel):
        raise InputError(
            f"The model is of type {type(model).__name__}; give a name, or what load_model of qubo_prune.models.load "
            "returns."
        )
    for source in (asked.calibration, *texts):
        if not isinstance(source, str):
            raise InputError(f"A text is of type {type(source).__name__}; give the source of one, such as a file.")
    for source in (asked.calibration, *texts):
        check_source(source)
    for count in (int(data.samples), eval_samples):
        check_windows(count, int(data.sequence_length))
    named = model if isinstance(model, str) else model.name
    needed: Needed = {"model": named, "calibration text": asked.calibration, "held-out text": texts}
    output = asked.run.output
    return None if output is None else check_output(output, asked.run.overwrite, needed)


def _compared(
    loaded: LoadedModel,
    runs: Sequence[_OneRun],
    held_out: Sequence[Windows],
    target: Path | None,
    bars: Progress,
    progress: bool,
) -> Comparison:
    """Prune and evaluate a model again and again."""

    def perplexities() -> tuple[float, ...]:
        return tuple(perplexity(loaded.model, each.tokens, each.source, bars).perplexity for each in held_out)

    rows = [ComparisonRow("dense", 1.0, perplexities())]
    calibrated: dict[str, Any] = {}
    with _dense_again(loaded) as restore:
        for one in runs:
            restore()
            reset_peak_memory()
            given = one.request.changed({"tokenizer": loaded.tokenizer})
            report = run_request(replace(given, model=loaded.model), progress=progress)
            calibrated = report.calibration
            rows.append(_row(one, report, perplexities()))
            logger.info(
                "%s, %s, seed %d: perplexity %s, layer error %s, %.0f s",
                one.entry,
                one.setting,
                one.request.run.seed,
                ", ".join(f"{value:.3f}" for value in rows[-1].perplexities),
                shown(report.relative_error, 6),
                report.seconds["total"],
            )
        evaluated = tuple(each.describe() | {"tokens": each.tokens[:, 1:].numel()} for each in held_out)
        result = Comparison(loaded.name, tuple(rows), calibrated, evaluated, machine(), time.strftime("%Y-%m-%d"))
        if target is not None:
            save_pruned(loaded, target, report, partial(_add_to, result))
    return result


def _add_to(result: Comparison, folder: Path) -> None:
    """Write ``comparison.json`` and ``comparison.png`` beside a model."""
    from qubo_prune.plot import comparison

    atomic_write(folder / "comparison.json", json.dumps(result.to_dict(), indent=1) + "\n")
    comparison(result, folder / "comparison.png")


@contextmanager
def _dense_again(loaded: LoadedModel) -> Iterator[Callable[[], None]]:
    """What gives a model the weights back that it has now; it is done in the end, too."""
    dense = {name: weight.detach().clone() for name, weight in loaded.model.named_parameters()}

    def restore() -> None:
        for name, weight in loaded.model.named_parameters():
            weight.data.copy_(dense[name])

    try:
        yield restore
    finally:
        restore()


def _row(one: _OneRun, report: Report, values: tuple[float, ...]) -> ComparisonRow:
    return ComparisonRow(
        method=str(one.entry),
        density=report.density,
        perplexities=values,
        layer_error=report.error_after,
        relative_error=report.relative_error,
        seconds=report.seconds["total"],
        forward_seconds=report.seconds["forward"],
        search_seconds=report.seconds["search"],
        peak_memory_bytes=report.peak_memory_bytes,
        setting=str(one.setting),
        seed=one.request.run.seed,
        warnings=tuple(report.warnings()),
        all_lost=report.all_blocks_lost,
    )
