"""Pictures of runs, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Line = Sequence[tuple[float, float]]


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
