"""Methods side by side on one model: same calibration, same held-out text, one table."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.evaluation import perplexity
from qubo_prune.models import check_output, load_model
from qubo_prune.progress import Progress
from qubo_prune.pruning import METHODS, prune, save_pruned
from qubo_prune.report import Report, machine
from qubo_prune.tables import rendered
from qubo_prune.text import check_length, token_windows

_LABELS = {"magnitude": "magnitude", "wanda": "Wanda", "icbs": "iCBS blocks"}


@dataclass(frozen=True)
class ComparisonRow:
    """One model of a comparison.

    Attributes:
        method: ``dense`` or a method's name.
        density: kept share of the pruned layers.
        perplexity: on the held-out text.
        layer_error: mean squared output error, summed over the layers.
        relative_error: the same as a share of the summed output power.
        seconds: wall-clock time of the pruning, calibration passes included.
        forward_seconds: of it, forward passes over the calibration data.
        search_seconds: of it, choosing the masks.
    """

    method: str
    density: float
    perplexity: float
    layer_error: float = 0.0
    relative_error: float = 0.0
    seconds: float = 0.0
    forward_seconds: float = 0.0
    search_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows in the order they were asked for, ``dense`` first."""

    model: str
    rows: tuple[ComparisonRow, ...]
    calibration: dict[str, Any]
    evaluation: dict[str, Any]
    machine: dict[str, Any]
    date: str

    def row(self, method: str) -> ComparisonRow:
        """The row of a method."""
        return next(row for row in self.rows if row.method == method)

    def rise(self, method: str) -> float:
        """Rise of the log-perplexity over the dense model."""
        return math.log(self.row(method).perplexity / self.row("dense").perplexity)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """The comparison as a table of at most 80 columns."""
        table = Table(title=f"{self.model}, {self.date}", title_justify="left", caption_justify="left")
        table.caption = (
            f"perplexity on {self.evaluation['tokens']} held-out tokens ({self.evaluation['source']}); "
            f"calibration {self.calibration['windows']} x {self.calibration['length']} tokens "
            f"({self.calibration['source']}); error: summed over layers, relative to their outputs; "
            f"{self.machine['processor']}, {self.machine['threads']} threads"
        )
        table.add_column("method")
        for column in ("density", "perplexity", "layer error", "seconds", "of it search"):
            table.add_column(column, justify="right")
        for row in self.rows:
            label = _LABELS.get(row.method, row.method)
            if row.method == "dense":
                table.add_row(label, "1.0000", f"{row.perplexity:.2f}", "0", "-", "-")
            else:
                table.add_row(
                    label, f"{row.density:.4f}", f"{row.perplexity:.2f}", f"{row.relative_error:.5f}",
                    f"{row.seconds:.0f}", f"{row.search_seconds:.0f}",
                )  # fmt: skip
        return table

    def __str__(self) -> str:
        return rendered(self.table(), 80)

    def __rich__(self) -> Table:
        return self.table()


def compare(
    model: str,
    methods: Sequence[str] = METHODS,
    *,
    calibration: str = "pydoc",
    text: str = "pydoc",
    density: float = 0.5,
    pattern: str = "row",
    solver: str = "greedy",
    max_time: float | str | None = None,
    seed: int = 0,
    samples: int = 32,
    eval_samples: int = 24,
    sequence_length: int = 512,
    device: str = "cpu",
    dtype: str = "auto",
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Comparison:
    """Prune a model by several methods, each from the dense weights, and evaluate each.

    Args:
        model: a name that :func:`qubo_prune.models.load_model` takes.
        methods: any of ``magnitude``, ``wanda``, ``icbs``.
        calibration: text source for calibration.
        text: held-out text source.
        density, pattern, solver, max_time, seed, samples, sequence_length, device, dtype:
            see :func:`qubo_prune.prune`.
        eval_samples: windows of held-out text.
        output: folder for the model of the last method, with the comparison in ``comparison.json``.
        overwrite: replace an output folder that is not empty.
        progress: show progress bars.
    """
    if not methods:
        raise InputError(f"No method is given to compare; name one or more of {', '.join(METHODS)}.")
    for method in methods:
        if method not in METHODS:
            raise InputError(f"There is no method {method!r}{did_you_mean(method, METHODS)}; use {', '.join(METHODS)}.")
    target = None if output is None else check_output(output, overwrite)
    bars = Progress(progress)
    with bars.task(f"loading {model}", None):
        loaded = load_model(model, dtype, device)
    check_length(loaded.model, sequence_length)
    held_out = token_windows(loaded.tokenizer, text, "evaluation", eval_samples, sequence_length)
    dense = perplexity(loaded.model, held_out.tokens, text, bars)
    rows = [ComparisonRow("dense", 1.0, dense.perplexity)]
    original = {name: weight.detach().clone() for name, weight in loaded.model.named_parameters()}
    calibrated: dict[str, Any] = {}
    for number, method in enumerate(methods):
        report = prune(
            loaded.model, calibration, density, pattern=pattern, method=method, solver=solver, max_time=max_time,
            seed=seed, samples=samples, sequence_length=sequence_length, tokenizer=loaded.tokenizer, progress=progress,
        )  # fmt: skip
        calibrated = report.calibration
        rows.append(_row(report, perplexity(loaded.model, held_out.tokens, text, bars).perplexity))
        if number < len(methods) - 1:
            for name, weight in loaded.model.named_parameters():
                weight.data.copy_(original[name])
    evaluated = held_out.describe() | {"tokens": dense.tokens}
    result = Comparison(model, tuple(rows), calibrated, evaluated, machine(), time.strftime("%Y-%m-%d"))
    if target is not None:
        save_pruned(loaded, target, report, {"comparison.json": json.dumps(result.to_dict(), indent=1)})
    return result


def _row(report: Report, value: float) -> ComparisonRow:
    return ComparisonRow(
        method=str(report.settings["method"]),
        density=report.density,
        perplexity=value,
        layer_error=report.error_after,
        relative_error=report.relative_error,
        seconds=report.seconds["total"],
        forward_seconds=report.seconds["forward"],
        search_seconds=report.seconds["search"],
    )
