"""Pictures of runs, drawn without a display."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

Line = Sequence[tuple[float, float]]
#: A point ``(x, y)`` and its kind.
Mark = tuple[float, float, str]


def curves(
    path: str | Path, panels: Sequence[Mapping[str, Line]], titles: Sequence[str], x_label: str,
    levels: Sequence[Mapping[str, float]] = (), log_x: bool = False,
) -> None:  # fmt: skip
    """One panel beside the other, each with named lines and dashed levels.

    Args:
        path: a .png, .svg or .pdf file.
        panels: points ``(x, y)`` by the name of their line.
        titles: what y is, per panel.
        x_label: what x is.
        levels: values of y that stay, by name, per panel.
        log_x: logarithmic x.
    """
    figure = Figure(figsize=(5.2 * len(panels), 3.9), layout="constrained")
    axes: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, (axis, lines, title) in enumerate(zip(axes, panels, titles, strict=True)):
        for place, (name, points) in enumerate(lines.items()):
            xs, ys = zip(*points, strict=True) if points else ((), ())
            axis.plot(xs, ys, label=name, color=f"C{place}", linewidth=1.6)
        for place, (name, value) in enumerate(levels[number].items() if levels else ()):
            axis.axhline(value, color="0.45", linestyle=("--", ":", "-.")[place % 3], linewidth=1, label=name)
        axis.set(xlabel=x_label, title=title)
        if log_x:
            axis.set_xscale("log")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def bar_panels(path: str | Path, names: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Values of named things side by side: one panel for each quantity, one colour for each series.

    Bars, or points on a logarithmic axis where the values differ more than twentyfold.

    Args:
        path: a .png, .svg or .pdf file.
        names: what the values belong to, from top to bottom.
        panels: by the quantity's name, series of one value per name (NaN for none) by their own names.
    """
    figure = Figure(figsize=(1.8 + 3.4 * len(panels), 1.4 + 0.32 * len(names)), layout="constrained")
    axes: Any = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, series) in zip(axes, panels.items(), strict=True):
        height = 0.8 / max(1, len(series))
        positive = [value for values in series.values() for value in values if value > 0]
        wide = bool(positive) and max(positive) > 20 * min(positive)
        for place, (name, values) in enumerate(series.items()):
            at = [row - 0.4 + height * (place + 0.5) for row in range(len(names))]
            if wide:  # a bar has no beginning on a logarithmic axis
                axis.plot(values, at, "o", label=name, color=f"C{place}")
            else:
                axis.barh(at, values, height=0.9 * height, label=name, color=f"C{place}")
        axis.set(title=title, yticks=range(len(names)), yticklabels=names)
        if wide:
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
        else:
            axis.locator_params(axis="x", nbins=4)
        axis.grid(axis="x", alpha=0.25)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def trade_offs(
    path: str | Path, panels: Sequence[Mapping[str, Sequence[Mark]]], titles: Sequence[str],
    x_labels: Sequence[str], levels: Sequence[Mapping[str, float]] = (),
) -> None:  # fmt: skip
    """What each series reached for what it cost: its points, and as a line the lowest y by each x.

    x is logarithmic, and y where its values differ more than twentyfold. Points that are not finite are left out.

    Args:
        path: a .png, .svg or .pdf file.
        panels: points by the name of their series, which has one colour throughout; each kind has its marker.
        titles: what y is, per panel.
        x_labels: what x is, per panel.
        levels: values of y that cost next to nothing, by name, per panel.
    """
    names = list(dict.fromkeys(name for series in panels for name in series))
    kinds = list(dict.fromkeys(kind for series in panels for marks in series.values() for *_, kind in marks))
    colours = {name: f"C{place % 10}" for place, name in enumerate(names)}
    level_names = dict.fromkeys(name for panel in levels for name in panel)
    styles: dict[str, Any] = {name: ("--", ":", "-.")[place % 3] for place, name in enumerate(level_names)}
    markers = {kind: "os^Dv*PX"[place % 8] for place, kind in enumerate(kinds)}
    figure = Figure(figsize=(5.2 * len(panels), 4.4), layout="constrained")
    axes: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, (axis, series, title, x_label) in enumerate(zip(axes, panels, titles, x_labels, strict=True)):
        seen = []
        for name, marks in series.items():
            shown = sorted(mark for mark in marks if math.isfinite(mark[1]))
            seen += [y for _, y, _ in shown]
            lowest = list(itertools.accumulate((y for _, y, _ in shown), min))
            axis.step([x for x, *_ in shown], lowest, where="post", color=colours[name], linewidth=1.4)
            for x, y, kind in shown:
                axis.plot(x, y, markers[kind], color=colours[name], markersize=6, alpha=0.85)
        for name, value in (levels[number] if levels else {}).items():
            axis.axhline(value, color="0.45", linestyle=styles[name], linewidth=1)
        axis.set(xlabel=x_label, title=title, xscale="log")
        if seen and min(seen) > 0 and max(seen) > 20 * min(seen):
            axis.set_yscale("log")
        axis.grid(alpha=0.25)
    lines = [Line2D([], [], color=colours[name], label=name) for name in names]
    lines += [Line2D([], [], color="0.3", marker=mark, linestyle="", label=kind) for kind, mark in markers.items()]
    lines += [Line2D([], [], color="0.45", linestyle=style, linewidth=1, label=name) for name, style in styles.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=min(5, len(lines)), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
