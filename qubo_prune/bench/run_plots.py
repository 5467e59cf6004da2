"""The pictures of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from qubo_prune.bench.metrics import Results
from qubo_prune.bench.runs import BASELINES

_STYLES = ("-", "--", ":", "-.")
#: Percent below which a logarithmic axis of gaps does not go.
_FLOOR = 1e-3


def _figure(panels: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(0.6 + 3.5 * panels, 3.5), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _look(results: Results, solver: str) -> dict[str, Any]:
    """Colour and line of a solver, the same in all pictures; baselines are grey."""
    place = list(results.solvers).index(solver)
    baselines = [name for name in results.solvers if name in BASELINES]
    if solver in baselines:
        return {"color": ("0.25", "0.6")[baselines.index(solver) % 2], "linestyle": "--", "linewidth": 1.3}
    return {"color": f"C{(place - len(baselines)) % 10}", "linestyle": _STYLES[(place - len(baselines)) // 10 % 4]}


def _plain(name: str) -> str:
    """A name as text: no formula between two dollar signs, and not left out of the legend as those with ``_`` are."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _plain_axis(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic x axis with these values written out, every second one where they are many."""
    axis.set_xscale("log")
    shown = list(values)[:: 1 + len(values) // 7]
    axis.set_xticks(shown, [f"{value:g}" for value in shown])
    axis.xaxis.set_minor_formatter(NullFormatter())


def _finish(figure: Figure, axes: Any) -> Figure:
    known: dict[str, Any] = {}
    for axis in axes:
        axis.grid(alpha=0.25)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def anytime(results: Results, classes: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """Mean gap to the best known against the time limit, one panel for each class of instances.

    A panel has the solvers that take all instances of its class: means over others could not be compared.
    """
    figure, axes = _figure(len(classes))
    for axis, (title, solves) in zip(axes, classes, strict=True):
        curves = results.anytime(solves)
        taken = solves.groupby("solver").instance.nunique()
        for solver in curves.columns[taken[curves.columns] == solves.instance.nunique()]:
            values = curves[solver].clip(lower=_FLOOR)
            axis.plot(values.index, values, label=_plain(solver), marker="o", markersize=3, **_look(results, solver))
        axis.set(title=title, xlabel="time limit, s", yscale="log")
        _plain_axis(axis, results.limits)
    axes[0].set_ylabel("mean gap to the best known, %")
    return _finish(figure, axes)


def by_size(results: Results) -> Figure:
    """Mean gap at the longest limit against n, one panel for each local Hessian."""
    last = results.at()
    kinds = [kind for kind in ("gram", "compensated", "fisher") if (last.hessian == kind).any()]
    figure, axes = _figure(len(kinds))
    for axis, kind in zip(axes, kinds, strict=True):
        table = last[last.hessian == kind]
        for solver in results.solvers:
            own = table[table.solver == solver].groupby("n").gap.mean() * 100
            if len(own):
                axis.plot(
                    own.index,
                    own.clip(lower=_FLOOR),
                    label=_plain(solver),
                    marker="o",
                    markersize=3,
                    **_look(results, solver),
                )
        axis.set(title=kind, xlabel="n", yscale="log")
        _plain_axis(axis, sorted(table.n.unique().tolist()))
    axes[0].set_ylabel("mean gap to the best known, %")
    return _finish(figure, axes)


def distributions(results: Results) -> Figure:
    """ECDF of the gaps, and performance profile."""
    figure, axes = _figure(2)
    for solver in results.solvers:
        for axis, points in zip(axes, (results.ecdf(solver), results.profile(solver)), strict=True):
            if points:
                xs, ys = zip(*points, strict=True)
                axis.step(xs, ys, where="post", label=_plain(solver), **_look(results, solver))
    axes[0].set(
        title="share of solves with at most this gap", xlabel="gap to the best known", xlim=(0, 0.3), ylim=(0, 1.02)
    )
    axes[1].set(
        title="performance profile: within 1 %", xlabel="seconds / fastest solver's", xscale="log", ylim=(0, 1.02)
    )
    return _finish(figure, axes)


def svg(figure: Figure) -> str:
    """The picture as an element of a page, the same for the same data."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "qubo_prune", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
