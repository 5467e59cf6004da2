"""Methods side by side on one model: same calibration, same held-out text, one table."""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qubo_prune.arguments import as_count, as_names, parse_seconds
from qubo_prune.choices import METHODS
from qubo_prune.data.evaluation import perplexity
from qubo_prune.data.text import check_length, check_source, check_windows, token_windows
from qubo_prune.errors import InputError
from qubo_prune.files.atomic import atomic_write
from qubo_prune.files.outputs import check_output
from qubo_prune.methods.chain import Entry
from qubo_prune.models.load import LoadedModel, check_name, load_model
from qubo_prune.precision import pinned
from qubo_prune.progress import Progress
from qubo_prune.ranks import check_alone
from qubo_prune.report.comparison import Comparison, ComparisonRow, Setting
from qubo_prune.report.report import Report, machine, reset_peak_memory
from qubo_prune.run.plan import Blocks, Plan, check_method
from qubo_prune.run.prune import prune, save_pruned
from qubo_prune.seeds import checked_seed
from qubo_prune.settings import Given, checked, kinds_of
from qubo_prune.tables import shown

logger = logging.getLogger(__name__)

#: What a comparison takes if no methods are named.
COMPARED = ("magnitude", "wanda", "sparsegpt", "admm", "icbs", "icbs:compensated")


@pinned()
def compare(
    model: str | LoadedModel,
    methods: str | Sequence[str] = COMPARED,
    *,
    calibration: str = "pydoc",
    text: str | Sequence[str] = "pydoc",
    density: float | str | Sequence[float | str] = 0.5,
    pattern: str = "row",
    solver: str = "greedy",
    max_time: float | str | None = None,
    seed: int = 0,
    samples: int = 32,
    eval_samples: int = 24,
    sequence_length: int = 512,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    device: str = "cpu",
    dtype: str = "auto",
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Comparison:
    """Prune a model by several methods, each from the dense weights, and evaluate each.

    Args:
        model: a name that :func:`qubo_prune.models.load.load_model` takes, or what it returned, which has its dense
            weights again in the end.
        methods: entries ``METHOD[:HESSIAN][+UPDATE]``, such as ``wanda``, ``admm+refit``, ``icbs:compensated``.
        calibration: text source for calibration.
        text: held-out text source, or several; methods are compared on each.
        density: kept share, or several; an entry such as ``"2:4"`` is a pattern of its own.
        pattern, solver, max_time, seed, samples, sequence_length, include, exclude, device, dtype:
            see :func:`qubo_prune.prune`.
        eval_samples: windows of held-out text.
        output: folder for the model of the last method, with ``comparison.json`` and ``comparison.png``.
        overwrite: replace an output folder that is not empty.
        progress: show progress bars.
    """
    check_alone("prune and compare the same models")
    methods = as_names("methods", methods)
    samples, eval_samples = as_count("samples", samples), as_count("eval_samples", eval_samples)
    sequence_length = as_count("sequence_length", sequence_length)
    if not methods:
        raise InputError(f"No method is given to compare; name one or more of {', '.join(METHODS)}.")
    entries = [parse_entry(method) for method in methods]
    asked = list(density) if isinstance(density, Iterable) and not isinstance(density, str) else [density]
    settings = [Setting.parse(each, pattern) for each in asked]
    for entry, setting in itertools.product(entries, settings):
        check_entry(entry, setting, solver)
    parse_seconds(max_time)
    checked_seed(seed)
    if isinstance(model, str):
        check_name(model, dtype, device)
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise InputError("No held-out text is given; name one or more.")
    for source in (calibration, *texts):
        check_source(source)
    for count in (samples, eval_samples):
        check_windows(count, sequence_length)
    named = model if isinstance(model, str) else model.name
    needed = {"model": named, "calibration text": calibration, "held-out text": texts}
    target = None if output is None else check_output(output, overwrite, needed)
    bars = Progress(progress)
    if isinstance(model, str):
        with bars.task(f"loading {model}", None):
            loaded = load_model(model, dtype, device)
    else:
        loaded = model
    check_length(loaded.model, sequence_length)
    held_out = [token_windows(loaded.tokenizer, each, "evaluation", eval_samples, sequence_length) for each in texts]

    def perplexities() -> tuple[float, ...]:
        return tuple(perplexity(loaded.model, each.tokens, each.source, bars).perplexity for each in held_out)

    rows = [ComparisonRow("dense", 1.0, perplexities())]
    calibrated: dict[str, Any] = {}
    with _dense_again(loaded) as restore:
        for setting, entry in itertools.product(settings, entries):
            restore()
            reset_peak_memory()
            report = prune(
                loaded.model, calibration, setting.density, pattern=setting.pattern, method=entry.method,
                hessian=entry.hessian, update=entry.update, max_time=max_time, seed=seed, samples=samples,
                sequence_length=sequence_length, include=include, exclude=exclude, tokenizer=loaded.tokenizer,
                progress=progress, **{"solver": solver, **dict(entry.settings)},
            )  # fmt: skip
            calibrated = report.calibration
            rows.append(_row(entry, setting, report, perplexities()))
            logger.info(
                "%s, %s: perplexity %s, layer error %s, %.0f s", entry, setting,
                ", ".join(f"{value:.3f}" for value in rows[-1].perplexities), shown(report.relative_error, 6),
                report.seconds["total"],
            )  # fmt: skip
        evaluated = tuple(each.describe() | {"tokens": each.tokens[:, 1:].numel()} for each in held_out)
        result = Comparison(loaded.name, tuple(rows), calibrated, evaluated, machine(), time.strftime("%Y-%m-%d"))
        if target is not None:
            save_pruned(loaded, target, report, partial(_add_to, result))
    return result


def parse_entry(text: str) -> Entry:
    """Read an entry with its values in the types of the arguments of :func:`qubo_prune.prune`."""
    entry, kinds = Entry.parse(text), kinds_of(prune)
    values = (
        (name, checked(f"The setting {name} of {text!r}", Given(value), kinds[name])) for name, value in entry.settings
    )
    return replace(entry, settings=tuple(values))


def check_entry(entry: Entry, setting: Setting, solver: str = "greedy") -> None:
    """Raise :class:`InputError` if :func:`qubo_prune.prune` would not take this entry at that setting."""
    check_method(entry.method, entry.hessian, entry.update)
    given = dict(entry.settings)
    blocks = Blocks(given.pop("solver", solver), {}, given.pop("block_size", None), None, given.pop("polish", True))
    given.pop("guard", None)
    Plan.checked(
        density=setting.density, pattern=setting.pattern, method=entry.method, hessian=entry.hessian,
        update=entry.update, blocks=blocks, **given,
    )  # fmt: skip


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


def _row(entry: Entry, setting: Setting, report: Report, values: tuple[float, ...]) -> ComparisonRow:
    return ComparisonRow(
        method=str(entry),
        density=report.density,
        perplexities=values,
        layer_error=report.error_after,
        relative_error=report.relative_error,
        seconds=report.seconds["total"],
        forward_seconds=report.seconds["forward"],
        search_seconds=report.seconds["search"],
        peak_memory_bytes=report.peak_memory_bytes,
        setting=str(setting),
        warnings=tuple(report.warnings()),
        all_lost=report.all_blocks_lost,
    )
