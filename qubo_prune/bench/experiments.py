"""Methods on one model with true labels: quality after pruning, and quality against time while blocks are solved."""

from __future__ import annotations

import abc
import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from matplotlib.axes import Axes
from rich import box
from torch import nn

from qubo_prune.arguments import as_names
from qubo_prune.bench.spread import deviation, told
from qubo_prune.blocks.loss.trace import LossStep, LossTrace
from qubo_prune.choices import EXPERIMENT_METHODS as METHODS
from qubo_prune.clock import Stopwatch
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.files.atomic import atomic_write
from qubo_prune.files.outputs import check_output, written_aside
from qubo_prune.masks.keep import KeepMasks, Pattern, keep_highest, keep_highest_together
from qubo_prune.models.layers import find_layers
from qubo_prune.plot import quality, save_panels
from qubo_prune.precision import pinned
from qubo_prune.progress import Progress
from qubo_prune.ranks import check_alone
from qubo_prune.report.prunings import Pruning, Prunings
from qubo_prune.report.report import machine
from qubo_prune.run.prune import prune
from qubo_prune.seeds import checked_seed
from qubo_prune.tables import Table, rendered

_LABELS = {
    "magnitude": "magnitude",
    "wanda": "Wanda",
    "gram": "Gram blocks",
    "icbs": "iCBS",
    "icbs-paper": "iCBS, paper's settings, our annealer",
}


class Workload(abc.ABC):
    """A model with data and a way to tell how good it is.

    Attributes:
        name: of the experiment.
        metric: ``accuracy`` (a share, higher is better) or ``perplexity``.
        pattern: where the budget is balanced.
        warm_start: what the blocks of the loss begin from.
        together: one budget over all layers.
        loss_settings: of the descent on the loss, where they differ from the defaults for the model.
        train: samples, or the source of a text, to prune with.
        loss: what the samples' losses are.
        arguments: further ones of :func:`qubo_prune.prune`.
    """

    name: ClassVar[str]
    train: Any
    metric: ClassVar[Literal["accuracy", "perplexity"]] = "accuracy"
    pattern: str = "layer"
    warm_start: str = "magnitude"
    together: bool = False
    loss_settings: ClassVar[Mapping[str, Any]] = {}
    loss: Any = "classification"
    arguments: Mapping[str, Any] = MappingProxyType({})

    @abc.abstractmethod
    def model(self, seed: int) -> nn.Module:
        """The dense model; a new copy on each call."""

    @abc.abstractmethod
    def score(self, model: nn.Module) -> Score:
        """How good a model is on data that pruning never sees."""

    @property
    def excluded(self) -> Sequence[str]:
        """Patterns of layers that stay dense."""
        return ()


@dataclass(frozen=True)
class Score:
    """Quality of a model.

    Attributes:
        loss: mean, in nats.
        accuracy: share of right answers; NaN where there are none.
    """

    loss: float
    accuracy: float = math.nan

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True)
class Point:
    """The model at one moment of a descent on the loss."""

    blocks: int
    seconds: float
    score: Score


@dataclass(frozen=True, eq=False)
class Outcome(Pruning):
    """One pruned model.

    Attributes:
        method: one of :data:`~qubo_prune.choices.EXPERIMENT_METHODS`, or ``dense``.
        density: kept share, as it came out.
        asked: kept share that was asked for.
        seed: of everything random.
        score: of the model at the end.
        seconds: wall-clock time of the pruning, without scoring.
        cpu_seconds: processor time of the same, all threads.
        curve: for methods that go on: the model after each step, the warm start first.
        trace: for the same: what the steps did.
        warnings: how many blocks the solver lost and how many the clock cut, as sentences.
        all_lost: the solver lost every block.
    """

    method: str
    density: float
    asked: float
    seed: int
    score: Score
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    curve: tuple[Point, ...] = ()
    trace: LossTrace | None = None
    warnings: tuple[str, ...] = ()
    all_lost: bool = False

    @property
    def title(self) -> str:
        """Method, density and seed, for people."""
        return f"{_LABELS[self.method]}, density {self.asked:g}, seed {self.seed}"

    def after(self, blocks: int) -> Point | None:
        """The curve's first point with at least so many blocks."""
        return next((point for point in self.curve if point.blocks >= blocks), None)


@pinned()
def run(
    workload: Workload,
    methods: str | Sequence[str],
    densities: Sequence[float],
    seeds: Sequence[int],
    settings: Mapping[str, Any] | None = None,
    max_time: float | str | None = None,
    marks: Sequence[int] = (),
    progress: bool = False,
) -> Experiment:
    """Prune a workload's model by every method, density and seed.

    Args:
        workload: model and data.
        methods: some of :data:`~qubo_prune.choices.EXPERIMENT_METHODS`.
        densities: kept shares.
        seeds: each trains or draws anew where the workload has anything random.
        settings: of the descent on the loss.
        max_time: wall-clock budget of each pruning.
        marks: numbers of blocks after which the table shows a row.
        progress: show bars.

    Raises:
        InputError: a method is not known, or the workload cannot be had here.
    """
    check_alone("run the same experiment")
    methods = as_names("methods", methods)
    for share in densities:
        Pattern.parse(workload.pattern).check(share)
    for method in methods:
        if method not in METHODS:
            raise InputError(
                f"There is no method {method!r}{did_you_mean(method, METHODS)}; use some of {', '.join(METHODS)}."
            )
    if not methods:
        raise InputError(f"No method is given; use some of {', '.join(METHODS)}.")
    if workload.together and not set(methods) <= {"magnitude", "icbs", "icbs-paper"}:
        raise InputError(
            f"{workload.name} has one budget over all layers, which wanda and gram do not know; leave them out."
        )
    runner = _Runner(workload, settings or {}, max_time, progress)
    for seed in [checked_seed(seed) for seed in seeds]:
        runner.dense(seed)
        for density in densities:
            for method in methods:
                runner.outcome(method, density, seed)
    asked = [o for o in runner.outcomes if o.method in (*methods, "dense")]
    return Experiment(workload.name, workload.metric, tuple(asked), tuple(marks), dict(settings or {}))


class _Runner:
    """Makes outcomes; a method that starts from another one's masks takes them from here."""

    def __init__(
        self, workload: Workload, settings: Mapping[str, Any], max_time: float | str | None, progress: bool
    ) -> None:
        self._workload, self._settings, self._max_time, self._progress = workload, settings, max_time, progress
        self._masks: dict[tuple[str, float, int], KeepMasks] = {}
        self.outcomes: list[Outcome] = []

    def dense(self, seed: int) -> None:
        """Score the dense model."""
        score = self._workload.score(self._workload.model(seed))
        self.outcomes.append(Outcome("dense", 1.0, 1.0, seed, score))

    def outcome(self, method: str, density: float, seed: int) -> Outcome:
        """Prune by a method, unless that was done before."""
        for known in self.outcomes:
            if (known.method, known.asked, known.seed) == (method, density, seed):
                return known
        begins = method in ("icbs", "icbs-paper")
        start = self.outcome(self._workload.warm_start, density, seed) if begins else None
        with Progress(self._progress).task(f"{self._workload.name}: {method}, density {density:g}, seed {seed}", None):
            made = self._pruned(method, density, seed, start)
        self.outcomes.append(made)
        return made

    def _pruned(self, method: str, density: float, seed: int, start: Outcome | None) -> Outcome:
        workload, model, points = self._workload, self._workload.model(seed), []
        clock = Stopwatch()
        if method == "magnitude":
            masks = self._masks[method, density, seed] = magnitude_masks(workload, model, density)
            masks.apply(model)
            kept, sizes = zip(*((int(mask.sum()), mask.numel()) for mask in masks.values()), strict=True)
            share, times = sum(kept) / sum(sizes), (clock.wall, clock.cpu)
            return Outcome(method, share, density, seed, workload.score(model), *times)
        arguments: dict[str, Any] = {
            "calibration": workload.train,
            "density": density,
            "pattern": workload.pattern,
            "seed": seed,
            "exclude": workload.excluded,
            "loss": workload.loss,
            **workload.arguments,
        }
        if method == "wanda":
            arguments["method"] = method
        elif start is not None:
            points.append(Point(0, 0.0, start.score))

            def on_step(step: LossStep) -> None:
                with clock.stopped():
                    points.append(Point(points[-1].blocks + step.blocks, step.seconds, workload.score(model)))

            arguments |= {
                "method": "loss",
                "warm_start": self._masks[start.method, density, seed],
                "on_step": on_step,
                "loss_settings": self._descent(method),
                "max_time": self._max_time,
            }
        report = prune(model, **arguments)
        self._masks[method, density, seed] = report.masks
        seconds, cpu_seconds = clock.wall, clock.cpu
        if start is not None:  # what it began from is part of its price
            seconds, cpu_seconds = seconds + start.seconds, cpu_seconds + start.cpu_seconds
        score = workload.score(model)
        return Outcome(
            method,
            report.density,
            density,
            seed,
            score,
            seconds,
            cpu_seconds,
            tuple(points),
            report.loss,
            tuple(report.warnings()),
            report.all_blocks_lost,
        )

    def _descent(self, method: str) -> dict[str, Any]:
        if method == "icbs":
            chosen = {**self._workload.loss_settings, **self._settings}
        else:  # the published method with as many blocks; its other settings are its own
            chosen = {"preset": "paper"} | {k: v for k, v in self._settings.items() if k == "max_blocks"}
        return chosen | ({"budget": "global"} if self._workload.together else {})


def magnitude_masks(workload: Workload, model: nn.Module, density: float) -> KeepMasks:
    """Masks by magnitude: with the workload's pattern, or with one threshold over all layers."""
    layers = find_layers(model, exclude=workload.excluded)
    scores = {layer.name: layer.matrix().abs() for layer in layers}
    if workload.together:
        masks = keep_highest_together(scores, density)
    else:
        pattern = Pattern.parse(workload.pattern)
        for layer in layers:
            pattern.check(density, layer.name, layer.shape[1])
        masks = {name: keep_highest(score, pattern, density) for name, score in scores.items()}
    return KeepMasks({layer.parameter_name: layer.stored(masks[layer.name]) for layer in layers})


#: One seed in a row of the table: outcome, score, seconds, CPU seconds.
Entry = tuple[Outcome, Score, float, float]


@dataclass(frozen=True, eq=False)
class Experiment(Prunings):
    """All outcomes of an experiment.

    Attributes:
        name: of the workload.
        metric: ``accuracy`` or ``perplexity``.
        outcomes: in the order in which they were made, ``dense`` first for each seed.
        marks: numbers of blocks after which the table shows a row.
        settings: of the descent on the loss, as given.
    """

    name: str
    metric: str
    outcomes: tuple[Outcome, ...]
    marks: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=machine)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))

    @property
    def prunings(self) -> tuple[Outcome, ...]:
        """The outcomes."""
        return self.outcomes

    def of(self, method: str, density: float | None = None) -> list[Outcome]:
        """The outcomes of a method at a density that was asked for, one for each seed."""
        return [o for o in self.outcomes if o.method == method and (density is None or o.asked == density)]

    @property
    def densities(self) -> list[float]:
        """Those that were asked for."""
        return sorted({o.asked for o in self.outcomes if o.method != "dense"}, reverse=True)

    def quality(self, score: Score) -> float:
        """The metric of a score."""
        return float(getattr(score, self.metric))

    def recovered(self, score: Score, density: float, seed: int) -> float:
        """Share of the gap between magnitude pruning and the dense model that a model closes (NaN without the former).

        Of the accuracies, or of the losses where the metric is the perplexity.
        """
        ends = [o.score for o in (*self.of("dense"), *self.of("magnitude", density)) if o.seed == seed]
        if len(ends) < 2:
            return math.nan
        dense, low, now = (s.accuracy if self.metric == "accuracy" else s.loss for s in (*ends, score))
        return (now - low) / (dense - low) if dense != low else math.nan

    def lines(self) -> Iterator[tuple[str, float, int, list[Entry]]]:
        """Rows of the table: method, density, blocks, and (outcome, score, seconds, CPU seconds) per seed."""
        for density in self.densities:
            for method in METHODS:
                found = self.of(method, density)
                for mark in self.marks if found and found[0].curve else ():
                    points = [(o, o.after(mark)) for o in found]
                    if all(point for _, point in points):
                        yield method, density, mark, [(o, p.score, p.seconds, math.nan) for o, p in points if p]
                if found:
                    blocks = max(o.trace.blocks if o.trace else 0 for o in found)
                    yield method, density, blocks, [(o, o.score, o.seconds, o.cpu_seconds) for o in found]

    def table(self) -> Table:
        """Means over the seeds, of the metric and of the gap with their standard deviations."""
        table = Table(
            title=f"{self.name}, {self.date}",
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=0,
        )
        table.caption = self._caption()
        for column in ("method", "density", "blocks", self.metric, "of the gap", "loss", "seconds", "CPU s"):
            table.add_column(column, justify="left" if column == "method" else "right", no_wrap=column != "method")
        dense = self.of("dense")
        table.add_row(
            "dense",
            "1.0000",
            "",
            self._shown([o.score for o in dense]),
            "",
            f"{fmean(o.score.loss for o in dense):.4f}",
        )
        for method, density, blocks, entries in self.lines():
            cpu = fmean(entry[3] for entry in entries)
            table.add_row(
                _LABELS[method],
                f"{fmean(o.density for o, *_ in entries):.4f}",
                str(blocks or ""),
                self._shown([score for _, score, _, _ in entries]),
                told([100 * gap for gap in self._gaps(density, entries)], 1, "%"),
                f"{fmean(score.loss for _, score, _, _ in entries):.4f}",
                f"{fmean(entry[2] for entry in entries):.1f}",
                "" if math.isnan(cpu) else f"{cpu:.1f}",
            )
        return table

    def _shown(self, scores: Sequence[Score]) -> str:
        values = [self.quality(score) for score in scores]
        return told([100 * value for value in values], 2, "%") if self.metric == "accuracy" else told(values, 3)

    def _gaps(self, density: float, entries: Sequence[Entry]) -> list[float]:
        return [self.recovered(score, density, outcome.seed) for outcome, score, _, _ in entries]

    def means(self) -> list[dict[str, Any]]:
        """The rows of the table below ``dense`` as plain data.

        Each has ``method``, ``density`` as it was asked for, ``blocks``, ``seeds``, and of ``accuracy``, ``loss``,
        ``recovered`` (the share of the gap) and ``seconds`` the mean and, by the name with ``_deviation``, the standard
        deviation over the seeds, with ``n - 1``; ``None`` where there is none.
        """
        rows: list[dict[str, Any]] = []
        for method, density, blocks, entries in self.lines():
            row: dict[str, Any] = {"method": method, "density": density, "blocks": blocks, "seeds": len(entries)}
            measured = {
                "accuracy": [score.accuracy for _, score, _, _ in entries],
                "loss": [score.loss for _, score, _, _ in entries],
                "recovered": self._gaps(density, entries),
                "seconds": [seconds for _, _, seconds, _ in entries],
            }
            for name, values in measured.items():
                row |= {name: _number(fmean(values)), f"{name}_deviation": _number(deviation(values))}
            rows.append(row)
        return rows

    def _caption(self) -> str:
        seeds = len({o.seed for o in self.outcomes})
        traces = [o.trace for o in self.outcomes if o.trace is not None and o.method == "icbs"]
        known = [trace.correlation() for trace in traces if not math.isnan(trace.correlation())]
        correlation = f"; iCBS: predicted and held-out change correlate {fmean(known):.2f}" if known else ""
        means = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else f"mean of {seeds} seed"
        return (
            f"{means}; of the gap: between magnitude and dense{correlation}; "
            f"{self.machine['processor']}, {self.machine['threads']} threads"
        )

    def __str__(self) -> str:
        return rendered(self.__rich__(), 100)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without masks."""
        plain = {"name": self.name, "metric": self.metric, "date": self.date, "machine": self.machine}
        told_of = {"settings": self.settings, "outcomes": [_plain(o) for o in self.outcomes]}
        return plain | told_of | {"means": self.means()}

    def save(self, folder: str | Path) -> None:
        """Write ``results.json``, ``curves.csv``, ``table.txt`` and ``curves.png``.

        Args:
            folder: made, or an earlier experiment's, which is replaced.

        Raises:
            InputError: it holds something else, or cannot be written.
        """
        with written_aside(check_output(folder, True)) as target:
            atomic_write(target / "results.json", json.dumps(self.to_dict(), indent=1) + "\n")
            atomic_write(target / "table.txt", f"{self}\n")
            with (target / "curves.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["method", "density", "seed", "blocks", "seconds", "loss", "accuracy"])
                for o in self.outcomes:
                    for point in o.curve:
                        score = point.score
                        row = [o.method, o.asked, o.seed, point.blocks, point.seconds, score.loss, score.accuracy]
                        writer.writerow(row)
            if any(o.curve for o in self.outcomes):
                self.plot(target / "curves.png")

    def mean_curve(self, method: str, density: float) -> list[tuple[float, list[Score]]]:
        """Mean seconds, and the scores of all seeds, after each number of blocks after which every seed has a point."""
        curves = [{point.blocks: point for point in o.curve} for o in self.of(method, density)]
        shared = sorted(set.intersection(*map(set, curves))) if curves else []
        return [(fmean(c[blocks].seconds for c in curves), [c[blocks].score for c in curves]) for blocks in shared]

    def plot(self, path: str | Path) -> None:
        """Quality and loss against seconds, means over the seeds in their deviation, and the dense model as a level."""
        many = len(self.densities) > 1
        going = {
            f"{_LABELS[method]}{f', density {density:g}' if many else ''}": self.mean_curve(method, density)
            for density in self.densities
            for method in METHODS
            if any(o.curve for o in self.of(method, density))
        }
        still = [] if many else [name for name in ("magnitude", "wanda", "gram") if self.of(name)]
        # a magnitude-pruned language model is so bad that its level would flatten the curves
        if self.metric == "perplexity":
            still = [name for name in still if name != "magnitude"]

        def drawn(get: Callable[[Score], float], label: str) -> Callable[[Axes], Axes]:
            values = {name: [(at, [get(s) for s in scores]) for at, scores in line] for name, line in going.items()}
            curves = {name: [(at, fmean(found)) for at, found in line] for name, line in values.items()}
            spread = {name: [deviation(found) for _, found in line] for name, line in values.items()}
            told_as = {"dense": "dense"} | {name: _LABELS[name] for name in still}
            levels = {shown: fmean(get(o.score) for o in self.of(name)) for name, shown in told_as.items()}
            y_label = f"{self.name}: {label}"
            return lambda ax: quality(curves, ax=ax, levels=levels, deviations=spread, y_label=y_label)

        metric = f"{self.metric}, share of right answers" if self.metric == "accuracy" else self.metric
        loss = drawn(lambda score: score.loss, "loss, nats")
        save_panels(path, [drawn(self.quality, metric), loss], shared_legend=True)


def _plain(outcome: Outcome) -> dict[str, Any]:
    shown: dict[str, Any] = {
        name: getattr(outcome, name) for name in ("method", "density", "asked", "seed", "seconds", "cpu_seconds")
    }
    shown |= {
        "score": _finite(outcome.score),
        "curve": [asdict(p) | {"score": _finite(p.score)} for p in outcome.curve],
    }
    return shown | {"trace": outcome.trace.to_dict() if outcome.trace else None}


def _finite(score: Score) -> dict[str, float | None]:
    return {name: _number(value) for name, value in asdict(score).items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
