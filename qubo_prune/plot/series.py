"""Pictures of several things side by side: methods, quality against time, quality against cost."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from qubo_prune.errors import InputError
from qubo_prune.methods.chain import Entry
from qubo_prune.plot.style import (
    MARKERS,
    axes,
    draw_levels,
    dress,
    is_wide,
    legend,
    level_look,
    logarithmic,
    look,
    plain,
    save_panels,
    shortened,
    size_of,
    wrapped,
)
from qubo_prune.report.comparison import Comparison, ComparisonRow

Line = Sequence[tuple[float, float]]
#: A point ``(x, y)`` and its kind.
Mark = tuple[float, float, str]
_LABELS = {
    "perplexity": "perplexity on held-out text",
    "rise": "rise of log-perplexity over dense",
    "error": "layer error, share of the outputs' power",
    "seconds": "seconds for the pruning",
}


def quality(
    curves: Mapping[str, Line],
    *,
    ax: Axes | None = None,
    levels: Mapping[str, float] | None = None,
    deviations: Mapping[str, Sequence[float]] | None = None,
    x_label: str = "seconds",
    y_label: str = "",
    log_x: bool = False,
) -> Axes:
    """Quality against time: one line per name, and dashed levels.

    Args:
        curves: points ``(x, y)`` by name, in the order of x.
        ax: where to draw; a new figure if left out.
        levels: values of y that stay, by name; those that are not finite are left out.
        deviations: of y at each point, by name, drawn as a band around the line where any of them is above 0.
        x_label, y_label: what x and y are, with their units.
        log_x: logarithmic x.

    >>> from qubo_prune import plot
    >>> curve = {"tabu": [(0.1, 3.2), (1.0, 2.9)], "greedy": [(0.1, 3.1)]}
    >>> shown = plot.quality(curve, levels={"best known": 2.8}, y_label="energy, units of the loss", log_x=True)
    """
    ax = axes(ax)
    for place, (name, points) in enumerate(curves.items()):
        xs, ys = zip(*points, strict=True) if points else ((), ())
        ax.plot(
            xs,
            ys,
            label=plain(name),
            linewidth=1.5,
            markersize=4.5,
            markevery=max(1, math.ceil(len(xs) / 12)),
            **look(place),
        )
        spread = (deviations or {}).get(name, ())
        if any(width > 0 for width in spread):
            low, high = zip(*((y - width, y + width) for y, width in zip(ys, spread, strict=True)), strict=True)
            ax.fill_between(xs, low, high, color=look(place)["color"], alpha=0.15, linewidth=0)
    draw_levels(ax, levels)
    dress(ax, x_label=x_label, y_label=y_label)
    if log_x:
        logarithmic(ax, "x")
    legend(ax)
    return ax


def bars(
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    ax: Axes | None = None,
    label: str = "",
    levels: Mapping[str, float] | None = None,
    deviations: Mapping[str, Sequence[float]] | None = None,
) -> Axes:
    """Values of named things, from top to bottom, one colour for each series.

    Bars, or points on a logarithmic axis where the values differ more than twentyfold or begin far from 0.

    Args:
        names: what the values belong to.
        series: one value per name (NaN for none) by the name of the series.
        ax: where to draw; a new figure if left out.
        label: what the values are, with their unit.
        levels: values to compare with, by name, as dashed lines.
        deviations: of the values, by the name of their series, drawn as error bars where they are above 0.

    >>> from qubo_prune import plot
    >>> shown = plot.bars(["Wanda", "iCBS"], {"50 %": [0.31, 0.22]}, label="rise of log-perplexity")
    """
    ax = axes(ax)
    finite = [value for values in series.values() for value in values if math.isfinite(value)]
    wide = is_wide([value for value in finite if value > 0])
    # a bar has no beginning on a logarithmic axis, and shows nothing where all end at nearly the same length
    dots = wide or (bool(finite) and min(finite) > 0.7 * max(finite) > 0)
    height = 0.8 / max(1, len(series))
    for place, (name, values) in enumerate(series.items()):
        at = [row - 0.4 + height * (place + 0.5) for row in range(len(names))]
        style = look(place)
        if dots:
            ax.plot(values, at, label=plain(name), markersize=6, **(style | {"linestyle": ""}))
        else:
            ax.barh(at, values, height=0.88 * height, label=plain(name), color=style["color"])
        for x, y, spread in zip(values, at, (deviations or {}).get(name, ()), strict=False):
            if spread > 0 and math.isfinite(x):
                ax.errorbar(x, y, xerr=spread, fmt="none", ecolor="0.25", elinewidth=0.9, capsize=2)
    handles = ax.get_legend_handles_labels()[0]
    for place, (name, value) in enumerate((levels or {}).items()):
        if math.isfinite(value):
            handles.append(ax.axvline(value, label=plain(name), zorder=1.5, **level_look(place)))
    # names take a third of the width at most, in as many lines as there is room for
    room, height = size_of(ax)[0] / 3, size_of(ax)[1] / max(1, len(names))
    lines = max(1, min(3, int(height / 0.14)))
    shown = [wrapped(plain(shortened(name, int(14 * room * lines))), room, 8) for name in names]
    ax.set_yticks(range(len(names)), shown)
    ax.set_ylim(len(names) - 0.5, -0.5)
    dress(ax, x_label=label, grid="x", beside=room)
    ax.tick_params(axis="y", length=0)
    if wide:
        logarithmic(ax, "x")
    else:
        ax.locator_params(axis="x", nbins=5)
    if len(handles) > 1:
        legend(ax, handles, full=True)
    return ax


def methods(
    comparison: Comparison, quantity: str = "perplexity", *, text: int | None = None, ax: Axes | None = None
) -> Axes:
    """Methods side by side; several settings and held-out texts stand in groups, the dense model is a dashed line.

    Args:
        comparison: what :func:`qubo_prune.run.compare.compare` returned.
        quantity: ``perplexity``, ``rise`` (of the log-perplexity over the dense model), ``error`` (of the layers'
            outputs, as a share of their power) or ``seconds`` (of the pruning, calibration included).
        text: the place of the held-out text, from 0 on; all of them if left out.
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: the quantity is another one.

    Such as ``plot.methods(compare("smollm2-135m", ["wanda", "gram"]), "rise")``.
    """
    if quantity not in _LABELS:
        raise InputError(f"The quantity {quantity!r} is not known; use one of {', '.join(_LABELS)}.")
    entries = list(dict.fromkeys(row.method for row in comparison.rows if row.method != "dense"))
    found = {(row.method, row.setting) for row in comparison.rows if row.method != "dense"}
    judged = quantity in ("perplexity", "rise")
    texts = range(len(comparison.texts)) if judged and text is None else [text or 0]

    def value(row: ComparisonRow, text: int) -> float:
        if quantity == "perplexity":
            return row.perplexities[text]
        if quantity == "error":
            return math.nan if row.relative_error is None else row.relative_error
        return row.seconds

    def values(entry: str, setting: str, text: int) -> list[float]:
        if (entry, setting) not in found:
            return [math.nan]
        if quantity == "rise":
            return comparison.rises(entry, setting, text)
        return [value(row, text) for row in comparison.repeated(entry, setting)]

    series, deviations = dict[str, list[float]](), dict[str, list[float]]()
    for setting, at in itertools.product(comparison.settings, texts):
        name = f"{setting}, {comparison.texts[at]}" if len(texts) > 1 else setting
        drawn = [values(entry, setting, at) for entry in entries]
        series[name] = [statistics.fmean(each) for each in drawn]
        deviations[name] = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in drawn]
    dense = {
        f"dense, {comparison.texts[text]}" if len(texts) > 1 else "dense": comparison.row("dense").perplexities[text]
        for text in texts
    }
    levels = {"perplexity": dense, "rise": {"dense": 0.0}}.get(quantity)
    source = Path(comparison.evaluation[texts[0]]["source"]).stem
    label = _LABELS[quantity] + (f" ({source})" if judged and len(texts) == 1 else "")
    labels = [Entry.parse(entry).label for entry in entries]
    return bars(labels, series, ax=ax, label=label, levels=levels, deviations=deviations)


def trade_offs(
    series: Mapping[str, Sequence[Mark]],
    *,
    ax: Axes | None = None,
    levels: Mapping[str, float] | None = None,
    deviations: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    x_label: str = "seconds",
    y_label: str = "",
) -> Axes:
    """What each series reached for what it cost: its points, and as a line the lowest y by each x.

    x is logarithmic, and y where its values differ more than twentyfold. Points that are not finite are left out.

    Args:
        series: points ``(x, y, kind)`` by the name of their series; each series has its colour and line, each kind its
            marker.
        ax: where to draw; a new figure if left out.
        levels: values of y that cost next to nothing, by name.
        deviations: of x and y of each point, in the order of its series, drawn as bars where they are above 0.
        x_label, y_label: what x and y are, with their units.

    >>> from qubo_prune import plot
    >>> shown = plot.trade_offs({"tabu": [(0.1, 0.9, "block of 12"), (2.0, 0.7, "block of 64")]}, y_label="error")
    """
    ax = axes(ax)
    kinds = list(dict.fromkeys(kind for marks in series.values() for *_, kind in marks))
    markers = {kind: MARKERS[place % len(MARKERS)] for place, kind in enumerate(kinds)}
    seen: list[float] = []
    for place, (name, marks) in enumerate(series.items()):
        _deviation_bars(ax, marks, (deviations or {}).get(name, ()), look(place)["color"])
        style = {name: value for name, value in look(place).items() if name != "marker"}
        shown = sorted(mark for mark in marks if math.isfinite(mark[1]))
        seen += [y for _, y, _ in shown]
        lowest = list(itertools.accumulate((y for _, y, _ in shown), min))
        ax.step([x for x, *_ in shown], lowest, where="post", linewidth=1.3, **style)
        for x, y, kind in shown:
            ax.plot(x, y, markers[kind], color=style["color"], markersize=6, alpha=0.85)
    draw_levels(ax, levels)
    dress(ax, x_label=x_label, y_label=y_label)
    ax.set_xscale("log")
    if is_wide(seen):
        logarithmic(ax, "y")
    lines = [
        Line2D([], [], color=look(place)["color"], linestyle=look(place)["linestyle"], lw=1.8, label=plain(name))
        for place, name in enumerate(series)
    ]
    lines += [
        Line2D([], [], color="0.3", marker=mark, linestyle="", label=plain(kind)) for kind, mark in markers.items()
    ]
    legend(ax, [*lines, *ax.get_legend_handles_labels()[0]])
    return ax


def _deviation_bars(ax: Axes, marks: Sequence[Mark], deviations: Sequence[tuple[float, float]], color: str) -> None:
    """Bars of some points, in x to the left no further than to a tenth, since a logarithmic axis has no zero."""
    for (x, y, _), (across, along) in zip(marks, deviations, strict=False):
        if math.isfinite(y) and (across > 0 or along > 0):
            width = [[min(across, 0.9 * x)], [across]]
            ax.errorbar(x, y, xerr=width, yerr=along, fmt="none", ecolor=color, elinewidth=0.9, capsize=2)


def comparison(result: Comparison, path: str | Path) -> None:
    """Rise of log-perplexity on each text, layer error and seconds of every method, one panel each, as a file.

    Args:
        result: of :func:`qubo_prune.run.compare.compare`.
        path: where to write; its suffix says the format.
    """
    panels: list[tuple[str, int | None]] = [("rise", at) for at in range(len(result.texts))]
    panels += [("error", None), ("seconds", None)]

    def drawn(place: int, ax: Axes) -> None:
        quantity, text = panels[place]
        methods(result, quantity, text=text, ax=ax).tick_params(axis="y", labelleft=place % columns == 0)

    columns = 2 if len(panels) > 3 else len(panels)
    entries = len({row.method for row in result.rows})
    save_panels(
        path,
        [partial(drawn, place) for place in range(len(panels))],
        width=4.2,
        height=1.2 + 0.4 * entries,
        columns=columns,
        shared_legend=True,
    )
