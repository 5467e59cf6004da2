"""The pictures of a run: each draws in one Axes, and figures put some of them side by side."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubo_prune.bench.metrics import Results
from qubo_prune.bench.runs import BASELINES
from qubo_prune.plot.style import axes, dress, legend, look, panels, plain, written_out

#: Percent below which a logarithmic axis of gaps does not go.
_FLOOR = 1e-3
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
    for solver in curves.columns[taken[curves.columns] == solves.instance.nunique()]:
        values = curves[solver].clip(lower=_FLOOR)
        ax.plot(values.index, values, label=plain(solver), markersize=4, linewidth=1.4, **_look(results, solver))
    dress(ax, title=title, x_label="time limit, s", y_label=_GAP)
    ax.set_yscale("log")
    written_out(ax, results.limits)
    legend(ax)
    return ax


def gap_against_size(results: Results, hessian: str, *, ax: Axes | None = None) -> Axes:
    """Mean gap at the longest limit against n, of the instances with one local Hessian."""
    last, ax = results.at(), axes(ax)
    table = last[last.hessian == hessian]
    for solver in results.solvers:
        own = table[table.solver == solver].groupby("n").gap.mean() * 100
        if len(own):
            values = own.clip(lower=_FLOOR)
            ax.plot(own.index, values, label=plain(solver), markersize=4, linewidth=1.4, **_look(results, solver))
    dress(ax, title=hessian, x_label="n, variables", y_label=_GAP)
    ax.set_yscale("log")
    written_out(ax, sorted(table.n.unique().tolist()))
    legend(ax)
    return ax


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
