"""The pictures of a run: each draws in one Axes, and figures put some of them side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

from qubo_prune.bench.metrics import SUCCESS, Results
from qubo_prune.bench.runs import BASELINES
from qubo_prune.plot.style import axes, dress, legend, look, panels, plain, written_out

#: Percent up to which a mean gap counts as none: it has a place of its own below the logarithmic axis.
_NONE = 100 * SUCCESS
#: Height of the band for curves without a gap, each at a height of its own, as a share of the axis above it.
_BAND = 0.32
#: Curves whose values differ by no more than this share lie on one another.
_TOGETHER = 0.03
#: Most panels in a row.
_COLUMNS = 3
_GAP = "mean gap to best known, %"

Points = list[tuple[float, float]]


def _look(results: Results, solver: str) -> dict[str, Any]:
    """Colour, marker and line of a solver, the same in all pictures; baselines are grey."""
    baselines = [name for name in results.solvers if name in BASELINES]
    if solver in baselines:
        place = baselines.index(solver)
        return {"color": ("0.25", "0.6")[place % 2], "linestyle": "--", "marker": "+x"[place % 2]}
    return look([name for name in results.solvers if name not in BASELINES].index(solver))


def gap_against_limit(
    results: Results, solves: pd.DataFrame | None = None, *, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Mean gap to the best known against the time limit, of some solves or of all.

    Shown are the solvers that take all instances of these: means over others could not be compared.
    """
    solves = results.solves if solves is None else solves
    ax, curves = axes(ax), results.anytime(solves)
    taken = solves.groupby("solver").instance.nunique()
    complete = curves.columns[taken[curves.columns] == solves.instance.nunique()]
    dress(ax, title=title, x_label="time limit, s", y_label=_GAP)
    _draw_gaps(ax, results, {solver: curves[solver].dropna() for solver in complete})
    written_out(ax, results.limits)
    return ax


def gap_against_size(results: Results, hessian: str, *, ax: Axes | None = None) -> Axes:
    """Mean gap at the longest limit against n, of the instances with one local Hessian."""
    last, ax = results.at(), axes(ax)
    table = last[last.hessian == hessian]
    means = {solver: table[table.solver == solver].groupby("n").gap.mean() * 100 for solver in results.solvers}
    dress(ax, title=hessian, x_label="n, variables", y_label=_GAP)
    _draw_gaps(ax, results, {solver: own for solver, own in means.items() if len(own)})
    written_out(ax, sorted(table.n.unique().tolist()))
    return ax


def _draw_gaps(ax: Axes, results: Results, curves: Mapping[str, pd.Series]) -> None:
    """Curves of gaps on a logarithmic axis, none of which hides another.

    Where there is no gap, up to :data:`_NONE`, curves run side by side below the axis, in a band that is marked 0.
    Curves that lie on one another are the thinner the later they are drawn, so that all of them are seen.
    """
    ax.set_yscale("log")
    gaps = [gap for own in curves.values() for gap in own if gap > _NONE]
    floor = math.floor(math.log10(min(gaps, default=1.0)))
    below = _BAND * max(1.0, math.log10(max(gaps, default=1.0)) - floor)
    without = [solver for solver, own in curves.items() if (own <= _NONE).any()]
    heights = {
        solver: 10.0 ** (floor - below * (0.2 + 0.75 * (place + 0.5) / len(without)))
        for place, solver in enumerate(without)
    }
    for place, (solver, own) in enumerate(curves.items()):
        drawn = own.where(own > _NONE, heights.get(solver, 1.0))
        later = list(curves.values())[place + 1 :]
        style = _look(results, solver) | _width(sum(_lie_together(own, other) for other in later))
        ax.plot(drawn.index, drawn, label=plain(solver), zorder=2 + place / 100, **style)
    if without:
        _mark_none(ax, floor, below)
    legend(ax, [Line2D([], [], label=plain(solver), **_look(results, solver), **_width(0)) for solver in curves])


def _width(above: int) -> dict[str, Any]:
    """Of a line and its markers that so many later ones lie on."""
    return {"linewidth": 1.3 + 1.7 * min(above, 3), "markersize": 4 + 2.0 * min(above, 3)}


def _lie_together(one: pd.Series, other: pd.Series) -> bool:
    """Whether two curves have a piece in common: two neighbouring points, or all of them if they are fewer."""
    both = pd.concat([one, other], axis=1, join="inner")
    low, high = both.min(axis=1), both.max(axis=1)
    near = ((low > _NONE) & (high - low <= _TOGETHER * high)).tolist()
    return any(map(all, pairwise(near))) if len(near) > 1 else any(near)


def _mark_none(ax: Axes, floor: int, below: float) -> None:
    """The band of curves without a gap, with a tick of its own beside those of the decades above it."""
    bottom, border = 10.0 ** (floor - below), 10.0 ** (floor - 0.2 * below)
    ax.axhspan(bottom, border, color="0.93", zorder=0, linewidth=0)
    ax.set_ylim(bottom=bottom)
    top = max(ax.get_ylim()[1], 10.0 ** (floor + 0.3))  # a decade is seen even if no curve has a gap
    last = math.floor(math.log10(top) + 1e-9)
    decades = range(floor, last + 1, 1 + (last - floor) // 6)
    ticks = {10.0 ** (floor - 0.575 * below): "0", **{10.0**n: f"$10^{{{n}}}$" for n in decades}}
    ax.yaxis.set_major_locator(FixedLocator(list(ticks)))
    ax.yaxis.set_major_formatter(FixedFormatter(list(ticks.values())))
    between = [m * 10.0**n for n in range(floor, last + 1) for m in range(2, 10)] if last - floor < 6 else []
    ax.yaxis.set_minor_locator(FixedLocator(between))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(bottom, top)


def gap_distribution(results: Results, *, ax: Axes | None = None) -> Axes:
    """Empirical distribution function of the gaps at the longest limit."""
    title, x_label = "share of solves with at most this gap", "gap to the best known, relative"
    ax = _shares(results, results.ecdf, ax, "solves", title=title, x_label=x_label)
    ax.set_xlim(0, 0.3)
    return ax


def performance_profile(results: Results, *, ax: Axes | None = None) -> Axes:
    """Share of the instances that a solver brings to within 1 % of the best known, by its time over the fastest's."""
    title, x_label = "performance profile: within 1 %", "seconds / fastest solver's"
    ax = _shares(results, results.profile, ax, "instances", title=title, x_label=x_label)
    ax.set_xscale("log")
    return ax


def _shares(
    results: Results, points: Callable[[str], Points], ax: Axes | None, of: str, *, title: str, x_label: str
) -> Axes:
    """A share of something that grows with x, as steps: one line for each solver that has points."""
    ax = axes(ax)
    for solver in results.solvers:
        own = points(solver)
        if own:
            xs, ys = zip(*own, strict=True)
            style = _look(results, solver) | {"markersize": 4, "markevery": max(1, len(xs) // 6)}
            ax.step(xs, ys, where="post", label=plain(solver), linewidth=1.4, **style)
    dress(ax, title=title, x_label=x_label, y_label=f"share of {of}")
    ax.set_ylim(0, 1.02)
    legend(ax)
    return ax


def anytime(results: Results, classes: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """:func:`gap_against_limit`, one panel for each class of instances."""
    return _side_by_side([partial(_class, results, solves, title) for title, solves in classes])


def _class(results: Results, solves: pd.DataFrame, title: str, ax: Axes) -> Axes:
    return gap_against_limit(results, solves, ax=ax, title=title)


def by_size(results: Results) -> Figure:
    """:func:`gap_against_size`, one panel for each local Hessian."""
    found = set(results.at().hessian)
    kinds = [kind for kind in ("gram", "compensated", "fisher") if kind in found]
    return _side_by_side([lambda ax, kind=kind: gap_against_size(results, kind, ax=ax) for kind in kinds])


def distributions(results: Results) -> Figure:
    """:func:`gap_distribution` and :func:`performance_profile`."""
    return _side_by_side(
        [lambda ax: gap_distribution(results, ax=ax), lambda ax: performance_profile(results, ax=ax)], alike=False
    )


def _side_by_side(draw: Sequence[Any], alike: bool = True) -> Figure:
    """Panels with one legend; what y is stands at the left only if it is the same in all."""
    figure = panels(draw, width=3.6, height=3.2, columns=_COLUMNS, shared_legend=True)
    for place, ax in enumerate(figure.axes):
        if alike and place % _COLUMNS:
            ax.set_ylabel("")
    return figure


def svg(figure: Figure) -> str:
    """The picture as an element of a page, the same for the same data."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "qubo_prune", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
