"""Methods beside each other: data and a table."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape

from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.chain import Entry
from qubo_prune.report.prunings import Pruning, Prunings
from qubo_prune.tables import Table, rendered, shown


@dataclass(frozen=True)
class Setting:
    """How much is kept, and where the budget is balanced."""

    density: float
    pattern: str

    @classmethod
    def parse(cls, text: str | float, pattern: str) -> Setting:
        """A kept share, or a pattern n:m such as ``2:4``, which says it itself."""
        try:
            chosen, density = Pattern.parse(pattern), float(text)
        except ValueError:
            chosen = Pattern.parse(str(text))
            density = chosen.keep / chosen.of if chosen.of else math.nan
        chosen.check(density)
        return cls(density, chosen.name)

    def __str__(self) -> str:
        return self.pattern if ":" in self.pattern else f"{self.density:g} {self.pattern}"


@dataclass(frozen=True)
class ComparisonRow(Pruning):
    """One model of a comparison.

    Attributes:
        method: ``dense``, or an entry as :class:`Entry` reads it.
        density: kept share of the pruned layers.
        perplexities: on each of the held-out texts.
        layer_error: mean squared output error, summed over the layers; ``None`` where it was not measured.
        relative_error: the same as a share of the summed output power.
        seconds: wall-clock time of the pruning, calibration passes included.
        forward_seconds: of it, forward passes over the calibration data.
        search_seconds: of it, choosing masks and weights.
        peak_memory_bytes: highest resident memory while it ran.
        setting: what was asked for.
        warnings: how many blocks the solver lost and how many the clock cut, as sentences.
        all_lost: the solver lost every block.
        seed: of the run; its calibration windows were drawn anew with each.
    """

    method: str
    density: float
    perplexities: tuple[float, ...]
    layer_error: float | None = 0.0
    relative_error: float | None = 0.0
    seconds: float = 0.0
    forward_seconds: float = 0.0
    search_seconds: float = 0.0
    peak_memory_bytes: int = 0
    setting: str = ""
    warnings: tuple[str, ...] = ()
    all_lost: bool = False
    seed: int = 0

    @property
    def perplexity(self) -> float:
        """On the first of the held-out texts."""
        return self.perplexities[0]

    @property
    def title(self) -> str:
        """Method and setting, for people."""
        again = f", seed {self.seed}" if self.seed else ""
        return f"{Entry.parse(self.method).label}, {self.setting}{again}"


@dataclass(frozen=True, eq=False)
class Comparison(Prunings):
    """Rows in the order they were asked for, ``dense`` first; ``evaluation`` describes the held-out texts."""

    model: str
    rows: tuple[ComparisonRow, ...]
    calibration: dict[str, Any]
    evaluation: tuple[dict[str, Any], ...]
    machine: dict[str, Any]
    date: str

    @property
    def prunings(self) -> tuple[ComparisonRow, ...]:
        """The rows."""
        return self.rows

    @property
    def settings(self) -> list[str]:
        """What was asked for, in order."""
        return list(dict.fromkeys(row.setting for row in self.rows if row.method != "dense"))

    @property
    def seeds(self) -> list[int]:
        """Those that every method ran with, in order."""
        return list(dict.fromkeys(row.seed for row in self.rows if row.method != "dense"))

    def row(self, method: str, setting: str | None = None) -> ComparisonRow:
        """The first row of a method, in the first setting if none is named."""
        return next(row for row in self.rows if row.method == method and setting in (None, row.setting))

    def repeated(self, method: str, setting: str | None = None) -> list[ComparisonRow]:
        """The rows of a method in one setting, one for each seed."""
        setting = self.row(method, setting).setting
        return [row for row in self.rows if row.method == method and row.setting == setting]

    def rises(self, method: str, setting: str | None = None, text: int = 0) -> list[float]:
        """Rise of the log-perplexity over the dense model, on the held-out text of that number, for each seed."""
        dense = self.row("dense").perplexities[text]
        return [math.log(row.perplexities[text] / dense) for row in self.repeated(method, setting)]

    def rise(self, method: str, setting: str | None = None, text: int = 0) -> float:
        """Its mean over the seeds."""
        return statistics.fmean(self.rises(method, setting, text))

    def deviation(self, method: str, setting: str | None = None, text: int = 0) -> float:
        """Its standard deviation over the seeds; 0 for one."""
        rises = self.rises(method, setting, text)
        return statistics.stdev(rises) if len(rises) > 1 else 0.0

    @property
    def texts(self) -> list[str]:
        """Short names of the held-out texts, with their places where those are the same."""
        short = [Path(each["source"]).stem[:10] for each in self.evaluation]
        return [name if short.count(name) == 1 else f"{name} {at}" for at, name in enumerate(short, 1)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """The comparison as a table of at most 80 columns."""
        several, many = len(self.evaluation) > 1, len(self.evaluation) > 2
        table = Table(
            title=escape(f"{self.model}, {self.date}"),
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=0,
        )
        clock = "s: seconds" if several else "seconds: of them, search for masks and weights"
        table.caption = escape(
            f"ppl: perplexity on {self._evaluated()}; calibration {self.calibration['windows']} x "
            f"{self.calibration['length']} tokens ({self.calibration['source']}); rise: of log-perplexity; error: "
            f"summed over layers, relative to their outputs; {clock}; GiB: peak; {self._repeated()}"
            f"{self.machine['processor']}, {self.machine['threads']} threads"
        )
        table.add_column("kept", no_wrap=True)
        table.add_column("method")
        for name in self.texts:
            table.add_column(f"{name}\nppl" if several else "ppl", justify="right", no_wrap=True)
            table.add_column("\nrise" if several else "rise", justify="right", no_wrap=True)
        others = ("\nerror", "\ns", "\nGiB") if several else ("error", "seconds", "search", "GiB")
        for column in () if many else others:  # there is no room for them beside many texts
            table.add_column(column, justify="right", no_wrap=True)
        dense = self.row("dense")
        table.add_row("", "dense", *itertools.chain(*((f"{value:.2f}", "") for value in dense.perplexities)))
        for setting in self.settings:
            table.add_section()
            for method in dict.fromkeys(row.method for row in self.rows if row.setting == setting):
                values = [self._judged(method, setting, at) for at in range(len(self.texts))]
                numbers = () if many else self._measured(method, setting, several)
                table.add_row(setting, Entry.parse(method).label, *itertools.chain(*values), *numbers)
        return table

    def _judged(self, method: str, setting: str, text: int) -> tuple[str, str]:
        """Perplexity and rise on a text; of several seeds the means, and the deviation of the rise."""
        perplexities = [row.perplexities[text] for row in self.repeated(method, setting)]
        spread = f" ±{self.deviation(method, setting, text):.3f}" if len(perplexities) > 1 else ""
        return f"{statistics.fmean(perplexities):.2f}", f"{self.rise(method, setting, text):.3f}{spread}"

    def _measured(self, method: str, setting: str, several: bool) -> tuple[str, ...]:
        """Layer error, seconds and memory: means over the seeds, and the peak of all."""
        rows = self.repeated(method, setting)
        errors = [row.relative_error for row in rows if row.relative_error is not None]
        seconds = f"{statistics.fmean(row.seconds for row in rows):.0f}"
        search = () if several else (f"{statistics.fmean(row.search_seconds for row in rows):.0f}",)
        peak = f"{max(row.peak_memory_bytes for row in rows) / 2**30:.1f}"
        return (shown(statistics.fmean(errors) if errors else None, 5), seconds, *search, peak)

    def _repeated(self) -> str:
        """What stands behind the numbers, if that is more than one run."""
        if len(self.seeds) < 2:
            return ""
        return f"means and ± standard deviation over {len(self.seeds)} seeds and draws of calibration windows; "

    def _evaluated(self) -> str:
        return " and ".join(f"{each['tokens']} held-out tokens ({each['source']})" for each in self.evaluation)

    def __str__(self) -> str:
        return rendered(self.__rich__(), 80)
