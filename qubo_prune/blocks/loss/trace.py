"""What a descent on the loss did, step by step: predicted against measured, loss against time."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.text import Text
from torch import Tensor

from qubo_prune.blocks.notes import folded_notes
from qubo_prune.solver.block_counts import NONE, BlockCounts
from qubo_prune.tables import Shown, Table, rendered

#: Correlation of predicted and held-out change above which the predictions count as good.
_TRUSTED = 0.7


@dataclass(frozen=True)
class LossStep:
    """One step: the blocks of one gradient pass, decided, measured, accepted or not.

    Attributes:
        number: from 0 on.
        blocks: blocks solved.
        pools: the layer of each block (or how many layers share one budget).
        weights: weights in the blocks.
        swaps: kept weights that were pruned, as many as pruned ones that were restored, as measured.
        predicted: loss change by the quadratic model, without the price of caution.
        batch_change: mean loss change on the samples that the model was made of.
        held_out_change: mean loss change on held-out samples, of the move as measured last.
        held_out_error: standard error of that mean.
        held_out_loss: loss on the held-out samples after the step.
        outcome: ``accepted``, ``halved`` (accepted after halving), ``rolled back`` or ``idle`` (no swap).
        caution: price of a change in standard errors of its gain.
        samples: B.
        solver_seconds: time in the solver.
        seconds: since the start of the descent, at the end of the step.
    """

    number: int
    blocks: int
    pools: tuple[str, ...]
    weights: int
    swaps: int
    predicted: float
    batch_change: float
    held_out_change: float
    held_out_error: float
    held_out_loss: float
    outcome: str
    caution: float
    samples: int
    solver_seconds: float
    seconds: float

    @property
    def ratio(self) -> float:
        """Held-out change as a share of the predicted one; 0 if nothing was predicted."""
        return self.held_out_change / self.predicted if self.predicted < 0 else 0.0


@dataclass(frozen=True, eq=False)
class LossTrace(Shown):
    """Outcome of :func:`qubo_prune.blocks.loss.descent.descend_loss`.

    Attributes:
        keep: the best masks seen, by layer name, ``(d_out, d_in)``, True = keep.
        steps: what each step did.
        start_loss: held-out loss of the warm start.
        best_loss: held-out loss of ``keep``.
        stopped: why it ended, as a sentence.
        notes: what was done otherwise than asked, with how often.
        seconds: wall-clock time.
        counts: how many blocks the solver was given, lost, and was cut in by the clock.
    """

    keep: dict[str, Tensor] = field(repr=False)
    steps: tuple[LossStep, ...]
    start_loss: float
    best_loss: float
    stopped: str
    notes: dict[str, int]
    seconds: float
    counts: BlockCounts = NONE

    def correlation(self, first: int = 100, held_out: bool = True) -> float:
        """Correlation of predicted with measured change over the first steps that moved.

        NaN for fewer than 3 of them, and where all changes are equal.
        """
        moved = [step for step in self.steps[:first] if step.swaps]
        measured = [step.held_out_change if held_out else step.batch_change for step in moved]
        predicted = [step.predicted for step in moved]
        if len(moved) < 3 or min(np.ptp(predicted), np.ptp(measured)) == 0:
            return float("nan")
        return float(np.corrcoef(predicted, measured)[0, 1])

    @property
    def doubt(self) -> str:
        """Why predictions were poor and what was done about it, as a sentence; empty if they correlate above 0.7."""
        correlation, moved = self.correlation(), [step for step in self.steps[:100] if step.swaps]
        if np.isnan(correlation) or correlation > _TRUSTED:
            return ""
        failed = [step.swaps for step in moved if step.outcome == "rolled back"]
        share = sum(step.held_out_change for step in moved) / min(sum(step.predicted for step in moved), -1e-300)
        said = f"{len(failed)} of {len(moved)} moves raised the held-out loss" + (
            f", of {min(failed)} swaps and more"
            if failed
            else f"; together they did {100 * share:.0f} % of the promise"
        )
        return (
            f"Predictions did not hold: {said}, so steps went from {moved[0].swaps} to {moved[-1].swaps} swaps and B "
            f"from {moved[0].samples} to {moved[-1].samples}; such moves leave what the quadratic model describes."
        )

    @property
    def blocks(self) -> int:
        """Blocks solved."""
        return sum(step.blocks for step in self.steps)

    @property
    def accepted(self) -> int:
        """Steps whose move, whole or halved, was kept."""
        return sum(step.outcome in ("accepted", "halved") for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the masks."""
        correlations = {
            name: None if np.isnan(value) else value
            for name, value in (
                ("correlation_held_out", self.correlation()),
                ("correlation_batch", self.correlation(held_out=False)),
            )
        }
        plain = {
            "start_loss": self.start_loss,
            "best_loss": self.best_loss,
            "blocks": self.blocks,
            "accepted": self.accepted,
            "stopped": self.stopped,
            "doubt": self.doubt,
            "notes": self.notes,
            "seconds": self.seconds,
            "solver_blocks": self.counts.to_dict(),
        }
        return plain | correlations | {"steps": [dataclasses.asdict(step) for step in self.steps]}

    def save_csv(self, path: str | Path) -> None:
        """One line per step."""
        names = [entry.name for entry in dataclasses.fields(LossStep)]
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            for step in self.steps:
                values = [getattr(step, name) for name in names]
                writer.writerow([" ".join(value) if isinstance(value, tuple) else value for value in values])

    def table(self, most: int = 12) -> Table:
        """Some steps, evenly spread, and what they come to."""
        table = Table(title="Descent on the loss", title_justify="left", caption_justify="left")
        table.caption = self._caption()
        table.add_column("step", justify="right")
        for column in ("blocks", "swaps", "predicted", "on its batch", "held out", "held-out loss", "seconds"):
            table.add_column(column, justify="right")
        table.add_column("outcome")
        chosen = sorted({round(at) for at in np.linspace(0, len(self.steps) - 1, min(most, len(self.steps)))})
        for step in (self.steps[number] for number in chosen):
            table.add_row(
                str(step.number),
                str(step.blocks),
                str(step.swaps),
                f"{step.predicted:.5f}",
                f"{step.batch_change:.5f}",
                f"{step.held_out_change:.5f}",
                f"{step.held_out_loss:.5f}",
                f"{step.seconds:.1f}",
                step.outcome,
            )
        return table

    def _caption(self) -> str:
        known = self.correlation()
        correlation = "" if np.isnan(known) else f"; predicted and held-out change correlate {known:.2f}"
        return (
            f"held-out loss {self.start_loss:.5f} to {self.best_loss:.5f} in {self.blocks} blocks, {self.accepted} of "
            f"{len(self.steps)} steps accepted, {self.seconds:.1f} s{correlation}. {self.stopped}"
        ) + (f" {self.doubt}" if self.doubt else "")

    def __str__(self) -> str:
        return rendered(self.__rich__(), 110)

    def __rich__(self) -> Group:
        said = [Text(sentence, style="bold") for sentence in self.counts.sentences()]
        return Group(self.table(), *said, *map(Text, folded_notes([("loss", self.notes)])))
