"""Pictures of what a run did: descents, masks, layers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from qubo_prune.blocks.loss.trace import LossTrace
from qubo_prune.blocks.rows import TracePoint
from qubo_prune.errors import InputError
from qubo_prune.plot.style import (
    MARKERS,
    PALETTE,
    axes,
    draw_levels,
    dress,
    is_wide,
    legend,
    logarithmic,
    look,
    plain,
    shortened,
    size_of,
    whole_numbers,
)
from qubo_prune.report.report import LayerReport, Report

_ACCEPTED, _REJECTED = PALETTE[0], PALETTE[2]
#: How steps of a descent on the loss are drawn: colour, marker, filled.
_OUTCOMES = {
    "accepted": (_ACCEPTED, "o", True),
    "halved": (PALETTE[3], "D", True),
    "rolled back": (_REJECTED, "X", True),
    "idle": ("0.5", "o", False),
}
#: Largest number of rows or columns of masks that are shown whole; of larger ones a window of the second size is.
_WHOLE, _WINDOW = 256, 128
#: What masks may say of a weight before and after, and its colour.
_STATES = (
    ("kept in both", "0.62"),
    ("pruned in both", "0.94"),
    ("pruned now", PALETTE[2]),
    ("restored now", PALETTE[0]),
)
#: Layers up to which each has a line of its own with its name.
_NAMED = 16
_SINCE = "seconds since the descent began"


def descent(trace: LayerReport | LossTrace | Report, *, ax: Axes | None = None) -> Axes:
    """A descent's energy against time, with what was accepted and what was rejected.

    Of a layer: its energy, the mean squared output error, after each sweep. A sweep tries one block in every row, so
    each point is a disc within a ring, and their areas are as the accepted to the tried blocks: a full disc was
    accepted altogether, an empty ring brought nothing. Of the loss: the loss on held-out samples after each step, and
    each step with its outcome: accepted, accepted after halving, rolled back, or idle (nothing to swap).

    Args:
        trace: a layer of a report, a descent on the loss, or the report of a run with one.
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: there was no descent.

    >>> from qubo_prune import plot, prune
    >>> from torch import nn, randn
    >>> report = prune(nn.Linear(16, 8), [randn(32, 16)], 0.5)
    >>> shown = plot.descent(report.layers[0])
    """
    if isinstance(trace, LayerReport):
        if not trace.trace:
            raise InputError(f"The layer {trace.name!r} was pruned without a descent; there is no energy to draw.")
        return _layer_descent(trace.name, trace.trace, axes(ax))
    found = trace.loss if isinstance(trace, Report) else trace
    if found is None:
        raise InputError("The run had no descent on the loss; pass one of its layers, such as report.layers[0].")
    return _loss_descent(found, axes(ax))


def _layer_descent(name: str, points: Sequence[TracePoint], ax: Axes) -> Axes:
    seconds, energies = [p.seconds for p in points], [p.energy for p in points]
    ax.step(seconds, energies, where="post", color="0.55", linewidth=1.3, zorder=2)
    for before, after in itertools.pairwise(points):
        accepted, tried = after.accepted - before.accepted, max(after.steps - before.steps, 0)
        share = min(1.0, accepted / tried) if tried else float(accepted > 0)
        if share < 1:
            ax.plot(after.seconds, after.energy, "o", ms=9, mfc="white", mec=_REJECTED, mew=1.3, zorder=3)
        if share > 0:
            ax.plot(after.seconds, after.energy, "o", ms=9 * share**0.5, mfc=_ACCEPTED, mec="none", zorder=4)
    ax.plot(seconds[0], energies[0], "s", ms=6, color="0.25", zorder=3)
    accepted, steps = points[-1].accepted, points[-1].steps
    rejected = f"rejected: {steps - accepted:,} blocks" if steps >= accepted and steps else "rejected"
    handles = [
        _point("s", "warm start", ms=6, color="0.25"),
        _point("o", f"accepted: {accepted:,} blocks", ms=8, mfc=_ACCEPTED, mec="none"),
        _point("o", rejected, ms=8, mfc="white", mec=_REJECTED, mew=1.3),
    ]
    ax.margins(x=0.08, y=0.12)
    title = shortened(name, int(11 * size_of(ax)[0]))
    dress(ax, title=title, x_label=_SINCE, y_label="energy: mean squared output error")
    legend(ax, handles)
    return ax


def _point(marker: str, label: str, **style: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], marker=marker, linestyle="", label=label, **style)


def _loss_descent(trace: LossTrace, ax: Axes) -> Axes:
    steps = trace.steps
    seconds = [0.0, *(step.seconds for step in steps)]
    losses = [trace.start_loss, *(step.held_out_loss for step in steps)]
    ax.step(seconds, losses, where="post", color="0.55", linewidth=1.2, zorder=2)
    ax.plot(0.0, trace.start_loss, "s", ms=6, color="0.25", linestyle="", label="warm start", zorder=3)
    for outcome, (colour, marker, filled) in _OUTCOMES.items():
        own = [step for step in steps if step.outcome == outcome]
        if own:
            ax.plot(
                [step.seconds for step in own],
                [step.held_out_loss for step in own],
                marker,
                ms=5.5,
                color=colour,
                mfc=colour if filled else "white",
                mew=0 if filled else 1.2,
                zorder=3 + filled,
                label=f"{outcome}: {len(own)} {'step' if len(own) == 1 else 'steps'}",
            )
    draw_levels(ax, {f"best: {trace.best_loss:.4g}": trace.best_loss})
    dress(ax, title="descent on the loss", x_label=_SINCE, y_label="held-out loss, mean per sample")
    legend(ax)
    return ax


def masks(before: Tensor | NDArray[Any], after: Tensor | NDArray[Any], *, ax: Axes | None = None) -> Axes:
    """Two keep masks of one layer: what is kept and pruned in both, what was pruned now, what was restored.

    The legend counts the whole matrix. Of one with more than 256 rows or columns, the window of at most 128 x 128 with
    the most changes is shown, as the title then says.

    Args:
        before, after: ``(d_out, d_in)``, bool, True = keep; tensors or arrays.
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: they are no bool matrices of one shape.

    >>> import numpy as np
    >>> from qubo_prune import plot
    >>> keep = np.eye(4, dtype=bool)
    >>> shown = plot.masks(keep, ~keep)
    """
    old, new = _matrix(before, "before"), _matrix(after, "after")
    if old.shape != new.shape:
        raise InputError(f"The masks have the shapes {old.shape} and {new.shape}; pass two of the same layer.")
    states = np.where(old == new, np.where(new, 0, 1), np.where(old, 2, 3))
    counts = np.bincount(states.ravel(), minlength=len(_STATES))
    (rows, columns), (d_out, d_in) = _window(old != new), states.shape
    ax = axes(ax)
    extent = (columns.start - 0.5, columns.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
    part = states[rows, columns]
    lengthy = max(part.shape) > 4 * min(part.shape)
    ax.imshow(
        part,
        cmap=ListedColormap([colour for _, colour in _STATES]),
        vmin=-0.5,
        vmax=len(_STATES) - 0.5,
        interpolation="none",
        extent=extent,
        aspect="auto" if lengthy else "equal",
    )
    cut = ""
    if part.size != states.size:
        columns_shown = f"columns {columns.start} to {columns.stop - 1}"
        cut = f"\nshown: rows {rows.start} to {rows.stop - 1}, {columns_shown} (most changes)"
    dress(
        ax, title=f"masks of {d_out} x {d_in} weights{cut}", x_label="input (column)", y_label="output (row)", grid=None
    )
    whole_numbers(ax.xaxis)
    whole_numbers(ax.yaxis)
    handles = [
        Patch(facecolor=colour, edgecolor="0.7", linewidth=0.5, label=f"{name}: {count:,}")
        for (name, colour), count in zip(_STATES, counts, strict=True)
    ]
    legend(ax, handles, full=True)
    return ax


def _matrix(mask: Tensor | NDArray[Any], name: str) -> NDArray[np.bool_]:
    found = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if found.ndim != 2 or found.dtype != np.bool_ or not found.size:
        raise InputError(
            f"{name} has shape {found.shape} and type {found.dtype}; pass a bool matrix (d_out, d_in), True = keep."
        )
    return found


def _window(changed: NDArray[np.bool_]) -> tuple[slice, slice]:
    """All rows and columns, or the window with the most changes among those side by side."""
    if max(changed.shape) <= _WHOLE:
        return slice(0, changed.shape[0]), slice(0, changed.shape[1])
    high, wide = (min(size, _WINDOW) for size in changed.shape)
    tops, lefts = (range(0, size - step + 1, step) for size, step in zip(changed.shape, (high, wide), strict=True))
    top, left = max(
        ((top, left) for top in tops for left in lefts),
        key=lambda at: int(changed[at[0] : at[0] + high, at[1] : at[1] + wide].sum()),
    )
    return slice(top, top + high), slice(left, left + wide)


def layers(report: Report | Mapping[str, Report], quantity: str = "error", *, ax: Axes | None = None) -> Axes:
    """Error or density of every layer, in the order of the model.

    Up to 16 layers stand below one another with their names, without what these have in common. More are drawn against
    the number of their decoder layer, one line for each kind of layer.

    Args:
        report: of one run, or several by name.
        quantity: ``error`` (mean squared output error of the result, as a share of the output's mean square) or
            ``density`` (kept share of the weights).
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: there are no layers, or the quantity is another one.

    >>> from qubo_prune import plot, prune
    >>> from torch import nn, randn
    >>> report = prune(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)), [randn(32, 16)], 0.5)
    >>> shown = plot.layers(report, "density")
    """
    if quantity not in ("error", "density"):
        raise InputError(f"The quantity {quantity!r} is not known; use 'error' or 'density'.")
    reports = {"": report} if isinstance(report, Report) else dict(report)
    series = {name: _by_layer(one, quantity) for name, one in reports.items()}
    names = list(dict.fromkeys(layer for values in series.values() for layer in values))
    if not names:
        missing = "layers whose error was measured" if quantity == "error" else "layers"
        raise InputError(f"The report has no {missing}, so there is nothing to draw.")
    label = {"error": "layer error, share of the output's power", "density": "density: kept share of the weights"}
    numbered = {name: _numbered(name) for name in names}
    by_number = len(names) > _NAMED and all(number is not None for _, number in numbered.values())
    ax = axes(ax)
    if by_number:
        _draw_by_number(ax, series, numbered, label[quantity])
    else:
        _draw_by_name(ax, series, names, label[quantity])
    values = [value for own in series.values() for value in own.values()]
    if quantity == "error" and is_wide(values):
        logarithmic(ax, "y" if by_number else "x")
    elif quantity == "density":
        room = max(0.02, 0.1 * (max(values) - min(values)))
        (ax.set_ylim if by_number else ax.set_xlim)(min(values) - room, max(values) + room)
    return ax


def _by_layer(report: Report, quantity: str) -> dict[str, float]:
    """What is to be drawn of every layer where it is known."""
    values = {each.name: each.relative_after if quantity == "error" else each.density for each in report.layers}
    return {name: value for name, value in values.items() if value is not None}


def _numbered(name: str) -> tuple[str, int | None]:
    """A layer's name with its first number left out, and that number."""
    match = re.search(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return (name, None) if match is None else (f"{name[: match.start(1)]}*{name[match.end(1) :]}", int(match[1]))


def _draw_by_number(
    ax: Axes, series: Mapping[str, Mapping[str, float]], numbered: Mapping[str, tuple[str, int | None]], label: str
) -> None:
    kinds = list(dict.fromkeys(kind for kind, _ in numbered.values()))
    short = dict(zip(kinds, without_common(kinds), strict=True))
    for place, (name, values) in enumerate(series.items()):
        for at, kind in enumerate(kinds):
            own = sorted(
                (numbered[layer][1] or 0, value) for layer, value in values.items() if numbered[layer][0] == kind
            )
            if own:
                style = look(at) if len(series) == 1 else look(place) | {"marker": MARKERS[at % len(MARKERS)]}
                ax.plot(*zip(*own, strict=True), linewidth=1.2, markersize=4, label=plain(short[kind] or name), **style)
    dress(ax, title=f"{len(numbered)} layers", x_label="number of the decoder layer", y_label=label)
    whole_numbers(ax.xaxis)
    if len(series) == 1:
        legend(ax)
        return
    shapes = [
        _point(MARKERS[at % len(MARKERS)], plain(short[kind]), color="0.4", ms=5) for at, kind in enumerate(kinds)
    ]
    colours = [
        Line2D([], [], color=look(place)["color"], linestyle=look(place)["linestyle"], lw=2, label=plain(name))
        for place, name in enumerate(series)
    ]
    legend(ax, [*colours, *shapes])


def _draw_by_name(ax: Axes, series: Mapping[str, Mapping[str, float]], names: Sequence[str], label: str) -> None:
    rows = {name: row for row, name in enumerate(names)}
    for place, (name, values) in enumerate(series.items()):
        own = [(value, rows[layer]) for layer, value in values.items()]
        style = look(place) | {"linestyle": ""}
        ax.plot(*zip(*own, strict=True), markersize=6, label=plain(name), alpha=0.9, **style)
    every = 1 + len(names) // 32
    shown = without_common(names)
    ax.set_yticks(range(0, len(names), every), [plain(shortened(name)) for name in shown[::every]])
    ax.set_ylim(len(names) - 0.5, -0.5)
    beside = 0.07 * max(map(len, shown))
    dress(ax, title=_common(names), x_label=label, y_label="layer", beside=beside)
    if len(series) > 1:
        legend(ax)


def _common(names: Sequence[str]) -> str:
    """The leading parts of dotted names that all share, as a title."""
    parts = [name.split(".") for name in names]
    shared = 0
    while all(len(own) > shared + 1 and own[shared] == parts[0][shared] for own in parts):
        shared += 1
    return shortened(".".join(parts[0][:shared]))


def without_common(names: Sequence[str]) -> list[str]:
    """Dotted names without the leading and trailing parts that all of them share; one part of each stays."""
    parts = [name.split(".") for name in names]
    for end in (0, -1):
        while all(len(own) > 1 and own[end] == parts[0][end] for own in parts):
            parts = [own[1:] if end == 0 else own[:-1] for own in parts]
    return [".".join(own) for own in parts]
