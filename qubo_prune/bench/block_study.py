"""What blocks cost and bring: solvers, block sizes and times per block inside :func:`qubo_prune.prune`.

One loaded model and one calibration are pruned once for every combination and seed, each time from the same dense
weights and from Wanda's masks. Two baselines stand beside them: Wanda alone, and swaps over whole rows without any
block.

The swaps over whole rows that end a run of ``prune`` by default find much of what a worse solver left, so they are left
out here unless they are asked for. Each point has its layer error twice: after the blocks, which is the solver's own
merit, and at the end, which differs where something follows the blocks: those swaps, or the exchange of budget between
rows with the pattern ``layer``. The perplexity is that of the model as ``prune`` gives it, at the end.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from matplotlib.axes import Axes
from rich.console import Group
from rich.markup import escape
from rich.text import Text
from torch import Tensor, nn

from qubo_prune.arguments import parse_seconds
from qubo_prune.bench.solvers import Entrant, parse_entrants
from qubo_prune.bench.spread import deviation
from qubo_prune.blocks.rows import TracePoint
from qubo_prune.choices import WholeRow
from qubo_prune.data.evaluation import perplexity
from qubo_prune.data.text import check_length, token_windows
from qubo_prune.errors import InputError
from qubo_prune.files.atomic import atomic_write
from qubo_prune.files.outputs import check_output, written_aside
from qubo_prune.masks.keep import Pattern
from qubo_prune.models.layers import Layer, find_layers, within
from qubo_prune.models.load import LoadedModel, load_model
from qubo_prune.models.stack import find_stack
from qubo_prune.plot import save_panels, trade_offs
from qubo_prune.plot.series import Mark
from qubo_prune.precision import pinned
from qubo_prune.progress import Progress
from qubo_prune.ranks import check_alone
from qubo_prune.report.prunings import Pruning, Prunings
from qubo_prune.report.report import LayerReport, Report, machine
from qubo_prune.request import PruneRequest
from qubo_prune.run.plan import Plan
from qubo_prune.run.prune import prune
from qubo_prune.seeds import checked_seed
from qubo_prune.solver.dispatch import workers_for
from qubo_prune.solver.interface import Solver
from qubo_prune.tables import Table, rendered

logger = logging.getLogger(__name__)

#: Weights per block, or whole rows.
BlockSize: TypeAlias = int | WholeRow
#: What a study takes if it is told nothing else; about a quarter of an hour on two cores with smollm2-135m.
SOLVERS = "greedy,tabu,neal,qaoa(layers=1)"
SIZES = (12, 64, 128)
BLOCK_TIMES = ("1ms", "10ms", "100ms")
MAX_TIME = "60s"
#: Names of the two baselines.
WANDA, SWAPS = "Wanda", "whole-row swaps"
#: Fields of a point in which less is better, with the digits that the table shows.
_QUALITIES = {"block_error": 4, "layer_error": 4, "perplexity": 3}
#: Fields of a point of which the seeds have a mean and a deviation.
_MEASURED = (*_QUALITIES, "block_seconds", "search_seconds", "seconds")
#: Energies that agree to this share of the first one are the same but for rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Point(Pruning):
    """One pruning of the model.

    Errors are mean squared output errors, summed over the pruned layers, as shares of those of Wanda's masks; a
    layer's error is that on the inputs which the layers pruned before it leave.

    Attributes:
        solver: label of the entrant, or :data:`WANDA` or :data:`SWAPS`.
        block_size: weights per block, or ``"row"`` for whole rows; ``None`` for the baselines.
        block_time: wall-clock limit of a block in seconds, or ``None``.
        seed: of the pruning.
        block_error: error after the blocks, before the swaps over whole rows (for those alone: after them).
        layer_error: error of the result.
        perplexity: of the result, on held-out text.
        block_seconds: wall-clock seconds for the blocks (for the swaps alone: for those).
        search_seconds: for all that chooses masks: warm start, blocks, swaps over whole rows.
        seconds: for the whole pruning, passes over the calibration data included.
        steps: problems solved: blocks, and the whole rows of the swaps.
        accepted: those of them that lowered the error.
        stopped_early: layers whose search the time budget ended.
        notes: what was done instead of what was asked, as sentences, each with its number.
        warnings: how many blocks the solver lost and how many the clock cut, as sentences.
        all_lost: the solver lost every block.
    """

    solver: str
    block_size: BlockSize | None
    block_time: float | None
    seed: int
    block_error: float
    layer_error: float
    perplexity: float
    block_seconds: float
    search_seconds: float
    seconds: float
    steps: int
    accepted: int
    stopped_early: int
    notes: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    all_lost: bool = False

    @property
    def title(self) -> str:
        """Solver, block size and limit, for people."""
        return f"{self.solver}, {_blocks(self.block_size)}, {_limit(self.block_time)}"


@dataclass(frozen=True)
class Mean:
    """One combination over its seeds.

    Attributes:
        solver: as in :class:`Point`.
        block_size: likewise.
        block_time: likewise.
        points: one for each seed.
    """

    solver: str
    block_size: BlockSize | None
    block_time: float | None
    points: tuple[Point, ...]

    def of(self, name: str) -> float:
        """The mean of a number of the points."""
        return statistics.fmean(self._values(name))

    def deviation(self, name: str) -> float:
        """Its standard deviation over the seeds, with ``n - 1``; 0 for one seed, NaN if the mean is not finite."""
        return deviation(self._values(name))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: each measured number as its mean and, by the name with ``_deviation``, its deviation."""
        found: dict[str, Any] = {"solver": self.solver, "block_size": self.block_size, "block_time": self.block_time}
        found["seeds"] = len(self.points)
        for name in _MEASURED:
            found |= {name: _finite(self.of(name)), f"{name}_deviation": _finite(self.deviation(name))}
        return found

    def _values(self, name: str) -> list[float]:
        return [float(getattr(point, name)) for point in self.points]


@dataclass(frozen=True)
class LeftOut:
    """A solver that did not take part at a block size, and why not."""

    solver: str
    block_size: BlockSize
    reason: str


@dataclass(frozen=True, eq=False)
class BlockStudy(Prunings):
    """Outcome of :func:`study_blocks`.

    Attributes:
        model: as it was named.
        layers: names of the pruned layers.
        points: the two baselines, then the combinations in the order they were asked for, each seed by seed.
        left_out: solvers that do not take a block size.
        dense_perplexity: of the model before pruning, on the same held-out text.
        wanda_error: error of Wanda's masks, of which the points' errors are shares, in units of the layers' outputs.
        settings: those of the study; what the calibration and the held-out text are.
        machine: processor and operating system.
        date: the day.
    """

    model: str
    layers: tuple[str, ...]
    points: tuple[Point, ...]
    left_out: tuple[LeftOut, ...]
    dense_perplexity: float
    wanda_error: float
    settings: Mapping[str, Any]
    machine: Mapping[str, Any] = field(default_factory=machine)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))

    @property
    def prunings(self) -> tuple[Point, ...]:
        """The points."""
        return self.points

    def of(self, solver: str, block_size: BlockSize | None = None) -> list[Point]:
        """The points of a solver, of all block sizes or of one."""
        return [p for p in self.points if p.solver == solver and block_size in (None, p.block_size)]

    @property
    def means(self) -> list[Mean]:
        """The combinations over their seeds, the baselines first."""
        found: dict[tuple[str, BlockSize | None, float | None], list[Point]] = {}
        for point in self.points:
            found.setdefault((point.solver, point.block_size, point.block_time), []).append(point)
        return [Mean(*key, tuple(points)) for key, points in found.items()]

    @property
    def followed(self) -> bool:
        """True if something follows the blocks, so that the end is not what the solver left."""
        return bool(self.settings["row_swaps"]) or self.settings["pattern"] == "layer"

    @property
    def solvers(self) -> list[str]:
        """Labels of the solvers that have points, without the baselines."""
        return list(dict.fromkeys(p.solver for p in self.points if p.solver not in (WANDA, SWAPS)))

    def table(self) -> Table:
        """One line per combination, the best of a column of errors or perplexities in bold."""
        table = Table(
            box=None,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            header_style="bold",
            title=escape(f"{self.model}, {self.date}"),
            title_justify="left",
            caption=escape(self._caption()),
            caption_justify="left",
        )
        means = self.means
        best = {name: min(mean.of(name) for mean in means) for name in _QUALITIES}
        rows = [self._cells(mean, best) for mean in means]
        for column in rows[0]:
            first = column.strip() == "solver"
            table.add_column(column, justify="left" if first else "right", no_wrap=not first, overflow="fold")
        before = WANDA
        for mean, row in zip(means, rows, strict=True):
            if mean.solver not in (before, SWAPS):
                table.add_row()
            before = mean.solver
            table.add_row(*row.values())
        return table

    def _cells(self, mean: Mean, best: Mapping[str, float]) -> dict[str, str]:
        """A line of the table, by the names of its columns."""
        several = self.settings["seeds"] > 1

        def quality(name: str) -> str:
            value, digits = mean.of(name), _QUALITIES[name]
            told = f"{value:.{digits}f}"
            told = f"[bold]{told}[/bold]" if value == best[name] else told
            spread = f" ±{mean.deviation(name):.{digits}f}" if len(mean.points) > 1 else " " * (digits + 4)
            return f"{told}{spread}" if several else told

        early = "*" if any(point.stopped_early for point in mean.points) else ""
        steps = {"\nsteps": f"{mean.of('steps'):.0f}{early}", "\naccepted": f"{mean.of('accepted'):.0f}"}
        after = {"blocks\ns": f"{mean.of('block_seconds'):.2f}"} if self.followed else {}
        return {
            "\nsolver": escape(mean.solver),
            "\nblock": str(mean.block_size or ""),
            "block\nlimit": _limit(mean.block_time) if mean.block_size else "",
            **after,
            "search\ns": f"{mean.of('search_seconds'):.2f}{early if several else ''}",
            **({} if several else steps),
            "blocks\nerror": quality("block_error"),
            **({"end\nerror": quality("layer_error")} if self.followed else {}),
            "end\nppl": quality("perplexity"),
        }

    def _caption(self) -> str:
        asked, held_out = self.settings, self.settings["held_out"]
        early = "; * the budget ended the search in some layers" if any(p.stopped_early for p in self.points) else ""
        polished = " and swaps within them" if asked["polish"] else ""
        behind = [name for name, there in (("swaps over whole rows", asked["row_swaps"]),) if there]
        behind += ["an exchange of budget between rows"] if asked["pattern"] == "layer" else []
        end = f", and at the end, after {' and '.join(behind)}" if behind else ""
        seeds = f"; mean ± standard deviation over {asked['seeds']} seeds" if asked["seeds"] > 1 else ""
        return (
            f"error: summed over {len(self.layers)} layers, as a share of Wanda's, after the blocks{polished}{end}; "
            f"ppl: perplexity on {held_out['tokens']} held-out tokens ({held_out['source']}), dense "
            f"{self.dense_perplexity:.3f}; density {asked['density']:g}, pattern {asked['pattern']}{seeds}{early}; "
            f"{self.machine.get('processor', '')}, {self.machine.get('threads', '')} threads"
        )

    def absent(self) -> list[str]:
        """What was left out, one sentence for each solver and reason."""
        sizes: dict[tuple[str, str], list[str]] = {}
        for each in self.left_out:
            sizes.setdefault((each.solver, each.reason), []).append(str(each.block_size))
        return [f"{solver} is left out at {', '.join(found)}: {reason}." for (solver, reason), found in sizes.items()]

    def __rich__(self) -> Group:
        return Group(super().__rich__(), *(Text(sentence) for sentence in self.absent()))

    def __str__(self) -> str:
        return "\n".join([rendered(self.table(), 80), *self.warnings(), *self.absent()])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "date": self.date,
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "layers": list(self.layers),
            "dense_perplexity": _finite(self.dense_perplexity),
            "wanda_error": self.wanda_error,
            "points": [asdict(p) | {"perplexity": _finite(p.perplexity)} for p in self.points],
            "means": [mean.to_dict() for mean in self.means],
            "left_out": [asdict(each) for each in self.left_out],
        }

    def save(self, folder: str | Path) -> None:
        """Write ``results.json``, ``points.csv``, ``means.csv``, ``table.txt`` and ``study.png``.

        Args:
            folder: made, or an earlier study's, which is replaced.

        Raises:
            InputError: it holds something else, or cannot be written.
        """
        with written_aside(check_output(folder, True)) as target:
            atomic_write(target / "results.json", json.dumps(self.to_dict(), indent=1) + "\n")
            atomic_write(target / "table.txt", f"{self}\n")
            with (target / "points.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [f.name for f in fields(Point)])
                writer.writeheader()
                for point in self.points:
                    notes = " ".join(f"{sentence} ({count})" for sentence, count in point.notes.items())
                    writer.writerow(asdict(point) | {"notes": notes, "warnings": " ".join(point.warnings)})
            means = [mean.to_dict() for mean in self.means]
            with (target / "means.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(means[0]))
                writer.writeheader()
                writer.writerows(means)
            self.plot(target / "study.png")

    def plot(self, path: str | Path) -> None:
        """Layer error and perplexity against the seconds of the search; one line per solver.

        A line is the best that a solver had by then, over its block sizes and limits. Marks are means over the seeds,
        bars their deviations. Where something follows the blocks, the error is that before it, against the seconds of
        the blocks.
        """
        (wanda,) = self.of(WANDA)
        seconds = "block_seconds" if self.followed else "search_seconds"

        def panel(cost: str, quality: str, level: float, x_label: str, y_label: str, ax: Axes) -> Axes:
            series: dict[str, list[Mark]] = {name: [] for name in (*self.solvers, SWAPS)}
            spread: dict[str, list[tuple[float, float]]] = {name: [] for name in series}
            for mean in self.means:
                if mean.solver in series:
                    # a logarithmic axis has no zero
                    at = max(mean.of(cost), 1e-3)
                    series[mean.solver].append((at, mean.of(quality), _blocks(mean.block_size, "block of {}")))
                    spread[mean.solver].append((mean.deviation(cost), mean.deviation(quality)))
            return trade_offs(series, ax=ax, levels={WANDA: level}, deviations=spread, x_label=x_label, y_label=y_label)

        errors = f"{Path(self.model).name}: layer error, share of Wanda's"
        on_left = "seconds of the blocks" if self.followed else "seconds of the search"
        perplexity = "perplexity, after whole-row swaps" if self.settings["row_swaps"] else "perplexity"
        panels = [
            partial(panel, seconds, "block_error", 1.0, on_left, errors),
            partial(panel, "search_seconds", "perplexity", wanda.perplexity, "seconds of the search", perplexity),
        ]
        save_panels(path, panels, height=4.2, shared_legend=True)


def _blocks(size: BlockSize | None, told: str = "blocks of {}") -> str:
    """Blocks of a size in words; those of the swaps are whole rows, too."""
    return "whole rows" if size in (None, "row") else told.format(size)


def _limit(seconds: float | None) -> str:
    """A block's limit in words."""
    if seconds is None:
        return "none"
    return f"{1e3 * seconds:g} ms" if seconds < 1 else f"{seconds:g} s"


def _finite(value: float) -> float | None:
    """For JSON, which knows no infinity."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class StudySettings:
    """What :func:`study_blocks` compares, and on what.

    Attributes:
        solvers: entrants, or their text for :func:`~qubo_prune.bench.solvers.parse_entrants`. As in ``prune``, all
            processor cores work: in threads of the solver, or in processes of one block each.
        sizes: weights per block, ``"row"`` for whole rows. A solver that does not take one is left out there, with the
            reason.
        block_times: wall-clock limits of one block, in seconds or as ``"10ms"``; ``None`` or ``"none"`` for no limit.
        density: kept share of the pruned layers, as in :func:`qubo_prune.prune`.
        pattern: where the budget is balanced.
        max_time: wall-clock budget of each pruning, passes over the calibration data included; rows that are not
            reached keep Wanda's mask.
        max_sweeps: most blocks per row.
        polish: swap within the blocks that the solver has decided. Off by default, since it hides what the solvers
            themselves are worth.
        row_swaps: swap over whole rows after the blocks, as ``prune`` does by default. Off by default for the same
            reason.
        workers: processes for solvers that take one block at a time; one per core if left out.
        include: shell-style patterns of layer names to prune; if there are none, :func:`default_layers`.
        exclude: patterns of layers to leave dense.
        calibration: source of the calibration text.
        text: held-out text.
        samples: calibration windows.
        eval_samples: windows of the held-out text.
        sequence_length: tokens per window.
        seed: of everything random; the calibration does not depend on it.
        seeds: prunings of each combination, with seeds from ``seed`` on.
        dtype: of the loaded weights.
        device: where the model lives.
    """

    solvers: str | Sequence[Entrant] = SOLVERS
    sizes: Sequence[BlockSize] = SIZES
    block_times: Sequence[float | str | None] = BLOCK_TIMES
    density: float = 0.5
    pattern: str = "row"
    max_time: float | str | None = MAX_TIME
    max_sweeps: int = 1
    polish: bool = False
    row_swaps: bool = False
    workers: int | None = None
    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()
    calibration: str = "pydoc"
    text: str = "pydoc"
    samples: int = 32
    eval_samples: int = 8
    sequence_length: int = 512
    seed: int = 0
    seeds: int = 1
    dtype: str = "auto"
    device: str = "cpu"

    @cached_property
    def budget(self) -> float | None:
        """Seconds for each pruning."""
        return _seconds(self.max_time)

    @cached_property
    def entrants(self) -> list[Entrant]:
        """The solvers."""
        return parse_entrants(self.solvers) if isinstance(self.solvers, str) else list(self.solvers)

    @cached_property
    def limits(self) -> list[float | None]:
        """Seconds for a block."""
        return [_seconds(limit) for limit in self.block_times]

    def recorded(self) -> dict[str, Any]:
        """Those that a result keeps, as they are understood.

        Raises:
            InputError: one of them is not.
        """
        return {
            "density": self.density,
            "pattern": self.pattern,
            "max_time": self.budget,
            "max_sweeps": self.max_sweeps,
            "polish": self.polish,
            "row_swaps": self.row_swaps,
            "workers": self.workers,
            "seed": checked_seed(self.seed),
            "seeds": self.seeds,
            "solvers": [entrant.label for entrant in self.entrants],
            "sizes": list(self.sizes),
            "block_times": self.limits,
            "dtype": self.dtype,
            "device": self.device,
        }

    def check(self, entrant: Entrant, size: BlockSize, limit: float | None) -> None:
        """Raise :class:`InputError` if :func:`qubo_prune.prune` would not take this combination."""
        settings = self.arguments() | self.of_blocks(entrant, size, limit)
        density = settings.pop("density")
        Plan.of(PruneRequest.of(None, density=density, settings=settings))

    def of_blocks(self, entrant: Entrant, size: BlockSize, limit: float | None) -> dict[str, Any]:
        """For :func:`qubo_prune.prune`: what the blocks are, who decides them and what follows them."""
        return {
            "solver": entrant.name,
            "solver_settings": entrant.settings,
            "block_size": size,
            "block_time": limit,
            "polish": self.polish,
            "row_swaps": self.row_swaps,
            "workers": self.workers,
            "max_sweeps": self.max_sweeps,
        }

    def arguments(self) -> dict[str, Any]:
        """For :func:`qubo_prune.prune`, but for what the blocks are and who decides them."""
        return {"density": self.density, "pattern": self.pattern, "max_time": self.budget, "seed": self.seed}

    def layers(self, model: nn.Module) -> list[Layer]:
        """Those to prune."""
        if self.include or self.exclude:
            return find_layers(model, self.include, self.exclude)
        return default_layers(model)


Combination = tuple[Entrant, BlockSize, float | None]


@pinned()
def study_blocks(
    model: str = "smollm2-135m", settings: StudySettings | None = None, *, progress: bool = False, **changes: Any
) -> BlockStudy:
    """Prune some layers of a language model by every combination of solver, block size and time per block.

    Args:
        model: a name that :func:`qubo_prune.models.load.load_model` takes.
        settings: what is compared, and on what; the defaults if left out.
        progress: show a progress bar.
        changes: fields of :class:`StudySettings` to take instead, such as ``sizes=[64]``.

    Raises:
        InputError: a setting cannot be used; found out before the model is loaded where that is possible, and
            always before it is run.
    """
    check_alone("run the same study")
    asked = replace(settings or StudySettings(), **changes)
    recorded = asked.recorded()
    combinations, left_out = _planned(asked)
    bars = Progress(progress)
    with bars.task(f"loading {model}", None):
        loaded = load_model(model, asked.dtype, asked.device)
    layers = asked.layers(loaded.model)
    widest = max(layer.shape[1] for layer in layers)
    _check_sizes([size for _, size, _ in combinations], len(layers), widest)
    combinations, left_out = _planned(asked, widest)
    runner = _Runner(loaded, layers, asked)
    with bars.task("warming up", None):
        dense = runner.perplexity()
        for entrant in {entrant.label: entrant for entrant, *_ in combinations}.values():
            _warm_up(entrant, asked.workers, asked.device)
    # seed by seed, so that what disturbs the machine for a while does not disturb one combination alone
    rounds = list(itertools.product(range(asked.seed, asked.seed + asked.seeds), combinations))
    with bars.task("pruning", 2 + len(rounds)) as advance:
        advance(0, WANDA)
        runner.wanda()
        advance(1, SWAPS)
        runner.swaps()
        for seed, (entrant, size, limit) in rounds:
            advance(1, f"{entrant.label}, {_blocks(size)}")
            runner.blocks(entrant, size, limit, seed)
    baselines, found = runner.points[:2], runner.points[2:]
    found = [point for place in range(len(combinations)) for point in found[place :: len(combinations)]]
    names, points = tuple(layer.name for layer in layers), (*baselines, *found)
    told = recorded | runner.sources()
    return BlockStudy(model, names, points, tuple(left_out), dense, runner.wanda_error, told)


def default_layers(model: nn.Module) -> list[Layer]:
    """Of the second decoder layer, those with no more outputs than inputs; all of the model if it has no such layers.

    Each row takes its own blocks, so layers with few rows are cheap; and little of the model runs before these.
    """
    layers = find_layers(model)
    stack = find_stack(model, layers)
    if stack is None:
        return layers
    inside = list(within(layers, stack[1]))
    return [layer for layer in inside if layer.shape[0] <= layer.shape[1]] or inside or layers


def _seconds(limit: float | str | None) -> float | None:
    return parse_seconds(None if limit == "none" else limit)


def _planned(asked: StudySettings, widest: int | None = None) -> tuple[list[Combination], list[LeftOut]]:
    """The combinations that can be run, each checked, and those that cannot.

    Args:
        asked: what is to be compared.
        widest: inputs of the widest layer, by which whole rows are judged; they pass where that is not known yet.
    """
    if asked.max_sweeps < 1:
        raise InputError(f"max_sweeps is {asked.max_sweeps}; blocks take at least 1 sweep.")
    if asked.seeds < 1:
        raise InputError(f"seeds is {asked.seeds}; each combination is pruned with at least 1 seed.")
    entrants, sizes, limits = asked.entrants, asked.sizes, asked.limits
    if not entrants or not sizes or not limits:
        raise InputError("A study needs a solver, a block size and a limit per block at least; name one of each.")
    labels = [entrant.label for entrant in entrants]
    for name, given in (("solver", labels), ("block size", sizes), ("limit per block", limits)):
        twice = [value for value, count in Counter(given).items() if count > 1]
        if twice:
            raise InputError(f"The {name} {twice[0]!r} is given twice; give each one once.")
    chosen, left_out = Pattern.parse(asked.pattern), []
    combinations: list[Combination] = []
    for entrant in entrants:
        solver = entrant.solver()
        for size in sizes:
            reason = _refusal(solver, widest if size == "row" else size, chosen)
            if reason is not None:
                left_out.append(LeftOut(entrant.label, size, reason))
                continue
            for limit in limits:
                asked.check(entrant, size, limit)
                combinations.append((entrant, size, limit))
    if not combinations:
        reasons = "; ".join(f"{each.solver} at {each.block_size}: {each.reason}" for each in left_out)
        raise InputError(f"No solver takes any of the block sizes ({reasons}); give other sizes or solvers.")
    return combinations, left_out


def _refusal(solver: Solver, size: int | None, pattern: Pattern) -> str | None:
    """Why a solver does not take blocks of that size, if it does not; nothing is known of one that is ``None``."""
    can = solver.capabilities
    if size is None:
        return None
    if can.max_variables is not None and size > can.max_variables:
        return f"it takes at most {can.max_variables} variables"
    if pattern.of and size >= 2 * pattern.of and can.cardinality and not can.groups:
        return f"it takes one count, and blocks of this size hold several groups of {pattern.name}"
    return None


def _check_sizes(sizes: Sequence[BlockSize], layers: int, widest: int) -> None:
    """Raise :class:`InputError` for a block that is wider than every layer."""
    for size in sorted(size for size in sizes if isinstance(size, int)):
        if size > widest:
            raise InputError(
                f"A block of {size} fits no layer: of the {layers} to prune, the widest has {widest} inputs; give "
                f"sizes up to {widest}, 'row' for whole rows, or other layers."
            )


def _warm_up(entrant: Entrant, workers: int | None, device: str) -> None:
    """Prune a small matrix, so that no point pays for compiling, importing and starting processes."""
    solver, draw = entrant.solver(), torch.Generator().manual_seed(0)
    rows = 2 * max(1, workers_for(solver, workers))  # enough for every process to get one
    module = nn.Linear(16, rows, bias=False)
    module.weight.detach().copy_(torch.randn(rows, 16, generator=draw))
    prune(
        module.to(device),
        torch.randn(64, 16, generator=draw).to(device),
        0.5,
        solver=entrant.name,
        solver_settings=entrant.settings,
        block_size=min(8, solver.capabilities.max_variables or 8),
        polish=False,
        workers=workers,
    )


class _Runner:
    """One model, pruned again and again from its dense weights."""

    def __init__(self, loaded: LoadedModel, layers: Sequence[Layer], asked: StudySettings) -> None:
        self._model, self._layers, self._asked = loaded.model, layers, asked
        check_length(loaded.model, asked.sequence_length)
        cut = partial(token_windows, loaded.tokenizer, length=asked.sequence_length)
        self._windows = cut(asked.calibration, "calibration", asked.samples)
        self._held_out = cut(asked.text, "evaluation", asked.eval_samples)
        self._dense: list[Tensor] = [layer.parameter.detach().clone() for layer in layers]
        self.points: list[Point] = []
        self.wanda_error = 0.0

    def sources(self) -> dict[str, Any]:
        """The calibration and the held-out text, in plain data."""
        # every window predicts all its tokens but the first
        tokens = self._held_out.tokens[:, 1:].numel()
        return {"calibration": self._windows.describe(), "held_out": self._held_out.describe() | {"tokens": tokens}}

    def perplexity(self) -> float:
        """Of the model as it is now, on the held-out text."""
        return perplexity(self._model, self._held_out.tokens, self._held_out.source).perplexity

    def wanda(self) -> None:
        """The baseline that everything begins from."""
        self._run(WANDA, method="wanda")

    def swaps(self) -> None:
        """The baseline without blocks: swaps over whole rows from Wanda's masks."""
        self._run(SWAPS, max_sweeps=0)

    def blocks(self, entrant: Entrant, size: BlockSize, limit: float | None, seed: int) -> None:
        """One combination with one seed."""
        self._run(entrant.label, size, limit, seed=seed, **self._asked.of_blocks(entrant, size, limit))

    def _run(self, label: str, size: BlockSize | None = None, limit: float | None = None, **arguments: Any) -> None:
        asked = {**self._asked.arguments(), **arguments}
        try:
            report = prune(self._model, self._windows.tokens, include=[layer.name for layer in self._layers], **asked)
            value = self.perplexity()
        finally:
            for layer, weight in zip(self._layers, self._dense, strict=True):
                layer.parameter.detach().copy_(weight)
        if label == WANDA:
            self.wanda_error = _measured(report.error_after)
        point = self._point(label, size, limit, asked["seed"], report, value)
        self.points.append(point)
        logger.info(
            "%s: error %.4f and %.4f of Wanda's, perplexity %.3f, search %.1f s",
            label if size is None else f"{label}, {_blocks(size)}",
            point.block_error,
            point.layer_error,
            value,
            point.search_seconds,
        )

    def _point(
        self, label: str, size: BlockSize | None, limit: float | None, seed: int, report: Report, value: float
    ) -> Point:
        notes = Counter[str]()
        for layer in report.layers:
            notes.update(layer.notes)
        narrow = sum(layer.shape[1] < size for layer in self._layers) if isinstance(size, int) else 0
        if narrow:
            notes["The layer has rows shorter than a block, which was the whole row there."] = narrow
        after = error = _measured(report.error_after)
        seconds = sum((layer.trace[-1].seconds for layer in report.layers if layer.trace), 0.0)
        if size is not None:  # else there are no blocks but the whole rows
            error = sum(_error_after_blocks(layer) for layer in report.layers)
            seconds = sum(_blocks_end(layer, self._asked.max_sweeps).seconds for layer in report.layers)
        return Point(
            label,
            size,
            limit,
            seed,
            self._share(error),
            self._share(after),
            value,
            seconds,
            report.seconds["search"],
            report.seconds["total"],
            sum(layer.steps for layer in report.layers),
            sum(layer.accepted for layer in report.layers),
            sum(layer.stopped_early for layer in report.layers),
            dict(notes),
            tuple(report.warnings()),
            report.all_blocks_lost,
        )

    def _share(self, error: float) -> float:
        """Of Wanda's error; 1 if there is none."""
        return error / self.wanda_error if self.wanda_error else 1.0


def _measured(error: float | None) -> float:
    """An error of layers that are pruned by their inputs, which is always measured."""
    assert error is not None
    return error


def _error_after_blocks(layer: LayerReport) -> float:
    """What the solver's answers, and the swaps on its blocks, left of a layer's error before the whole-row swaps."""
    return _measured(layer.error_before) - layer.solver_gain - layer.polish_gain


def _blocks_end(layer: LayerReport, max_sweeps: int) -> TracePoint:
    """Where the blocks of a layer were done: the last sweep's point of its trace.

    After the sweeps come the whole-row swaps, which change the energy unless there is nothing to gain from them.
    """
    start = layer.trace[0]
    after = start.energy - layer.solver_gain - layer.polish_gain
    sweeps = [p for p in layer.trace[: max_sweeps + 1] if abs(p.energy - after) <= _ROUNDING * start.energy]
    return sweeps[-1] if sweeps else start
