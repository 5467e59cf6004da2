"""Pictures of block QUBOs and of their answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, ListedColormap
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from qubo_prune.errors import InputError
from qubo_prune.plot.style import (
    DIVERGING,
    PALETTE,
    axes,
    draw_levels,
    dress,
    figure_of,
    legend,
    look,
    plain,
    size_of,
    whole_numbers,
    wrapped,
)
from qubo_prune.problem.qubo import BlockQubo, evenly_spread
from qubo_prune.solver.interface import SolveResult, Status

#: The unit of energies.
ENERGY = "units of the layer's loss"
#: Most variables of a heat map; a picture has no more points, and their order takes cubic time.
MOST_VARIABLES = 768
#: Most variables that are named along the axes, and most groups that a legend names.
_NAMED, _GROUPS = 24, 6
#: Inches of the axes from which on there is room for that legend.
_LEGEND_FROM = 2.6
#: Share of the couplings within the colour bar; a few may be so large that the others would be one colour.
_WITHIN = 0.995
#: Largest over smallest positive gap from which on energies are on a logarithmic axis with a zero.
_WIDE = 50.0


def coupling_order(strengths: NDArray[np.float64]) -> NDArray[np.int64]:
    """An order of variables in which strongly coupled ones stand together.

    The leaves of an average-linkage clustering with ``1 - |c| / max |c|`` as distance, turned so that neighbours are as
    near as can be (Z. Bar-Joseph, D. Gifford, T. Jaakkola, Bioinformatics 17, 2001); a second for 700 variables.

    Args:
        strengths: couplings ``(n, n)``, symmetric, of either sign; the diagonal is ignored.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    size = np.abs(strengths)
    np.fill_diagonal(size, 0.0)
    if len(size) < 3 or not size.any():
        return np.arange(len(size))
    distance = 1 - size / size.max()
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return np.asarray(leaves_list(tree), dtype=np.int64)


def couplings(problem: BlockQubo, *, ax: Axes | None = None) -> Axes:
    """The couplings ``2 Q_ij`` as a heat map, in an order in which strongly coupled variables stand together.

    Blue is negative: pruning both costs less than the sum; red is positive. The diagonal is left out, since linear
    terms are no couplings. The colour bar is symmetric around 0 and ends where 99.5 % of the couplings lie within it.
    A strip at the left shows groups, where there are several. Of more than 768 variables, evenly spread ones are
    drawn, as the title then says; Q is not built for them.

    Args:
        problem: the block QUBO, in either form.
        ax: where to draw; a new figure if left out.

    >>> from qubo_prune import BlockQubo, plot
    >>> block = BlockQubo([[1.0, -2.0, 0.0], [-2.0, 3.0, 0.5], [0.0, 0.5, 1.0]], num_pruned=1)
    >>> shown = plot.couplings(block)
    """
    n = problem.num_variables
    places = evenly_spread(n, MOST_VARIABLES)
    if not len(places):
        raise InputError("The problem has no variables, so there is nothing to draw.")
    among = problem.couplings_among(places)
    order = coupling_order(among)
    places, among = places[order], among[np.ix_(order, order)]
    ax = axes(ax)
    limit = _limit(among)
    shown = np.ma.masked_array(among, np.eye(len(places), dtype=bool))
    image = ax.imshow(shown, cmap=_without_diagonal(), norm=CenteredNorm(0, limit), interpolation="none")
    part = f"{len(places)} evenly spread of " if len(places) < n else ""
    label = "variable" if len(places) <= _NAMED else "place in the order"
    dress(ax, title=f"couplings of {part}{n} variables, by strength", x_label=label, y_label=label, grid=None)
    if len(places) <= _NAMED:
        names = [str(place) for place in places]
        ax.set_xticks(range(len(places)), names, rotation=90 if len(places) > 12 else 0)
        ax.set_yticks(range(len(places)), names)
    if problem.num_groups > 1:
        _draw_groups(ax, problem, places)
    _draw_bar(ax, image, limit, bool(np.abs(among).max() > limit))
    return ax


def _draw_bar(ax: Axes, image: AxesImage, high: float, over: bool) -> None:
    """The colour bar; a power of ten stands in its label, since there is no place for it above."""
    power = 3 * math.floor(math.log10(high) / 3)
    power = 0 if -1 < math.log10(high) < 4 else power
    bar = figure_of(ax).colorbar(image, ax=ax, extend="both" if over else "neither", fraction=0.046, pad=0.03)
    bar.formatter = FuncFormatter(lambda value, _: f"{value / 10**power:g}")
    unit = f"1e{power} units of the layer's loss" if power else ENERGY
    bar.set_label(wrapped(f"coupling: energy, {unit}", 0.9 * min(size_of(ax)), 8), fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)


def _without_diagonal() -> Any:
    import matplotlib

    return matplotlib.colormaps[DIVERGING].with_extremes(bad="0.8")


def _limit(among: NDArray[np.float64]) -> float:
    """Where the colour bar ends; 1 where nothing is coupled."""
    sizes = np.abs(among[~np.eye(len(among), dtype=bool)])
    sizes = sizes[sizes > 0]
    return float(np.quantile(sizes, _WITHIN)) if len(sizes) else 1.0


def _draw_groups(ax: Axes, problem: BlockQubo, places: NDArray[np.int64]) -> None:
    """A strip left of the heat map with a colour for each group; colours repeat where there are many."""
    n, groups = len(places), problem.num_groups
    wide = max(1.0, 0.035 * n)
    labels = problem.labels[places]
    colours = PALETTE[: min(groups, len(PALETTE))]
    ax.imshow(
        (labels % len(colours))[:, None],
        extent=(-0.5 - 1.4 * wide, -0.5 - 0.4 * wide, n - 0.5, -0.5),
        aspect="equal",
        cmap=ListedColormap(list(colours)),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        interpolation="none",
    )
    ax.set(xlim=(-0.5 - 1.4 * wide, n - 0.5), ylim=(n - 0.5, -0.5))
    ax.spines[["left", "bottom"]].set_visible(False)
    if groups > _GROUPS or min(size_of(ax)) < _LEGEND_FROM:
        ax.set_ylabel(f"{ax.get_ylabel()}\n(colours: {groups} groups)")
        return
    sizes = np.bincount(problem.labels, minlength=groups)
    legend(
        ax,
        [
            Patch(color=colours[group], label=f"group {group}: prune {count} of {sizes[group]}")
            for group, count in enumerate(problem.num_pruned)
        ],
        full=True,
    )


def samples(results: SolveResult | Mapping[str, SolveResult], *, ax: Axes | None = None) -> Axes:
    """The energy landscape that repeated samples saw: energy above the best against the distance to the best.

    The distance counts swaps: kept weights that the best assignment prunes, as many as pruned ones that it keeps (for a
    free problem: weights that differ). The energy is above the lowest of all results, on an axis that is logarithmic
    above its smallest steps where gaps differ more than fiftyfold. A proven bound is a dashed line.

    Args:
        results: of one problem, with as many answers as wanted (``solve(..., num_answers=200)``), or several by name.
        ax: where to draw; a new figure if left out.

    Raises:
        InputError: there are no results, or they are of problems of different sizes.

    >>> from qubo_prune import BlockQubo, plot, solve
    >>> block = BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1)
    >>> shown = plot.samples(solve(block, "greedy", num_answers=2))
    """
    named = {results.solver or "answers": results} if isinstance(results, SolveResult) else dict(results)
    sizes = {result.assignments.shape[1] for result in named.values() if len(result.assignments)}
    if len(sizes) != 1:
        raise InputError(
            f"Got results of problems with {sorted(sizes)} variables; pass results of one problem."
            if sizes
            else "There are no answers to draw; pass a SolveResult, or several by name."
        )
    best = min((result for result in named.values() if len(result.energies)), key=lambda result: result.energy)
    counts = {int(count) for result in named.values() for count in result.assignments.sum(axis=1)}
    per_step, steps = (2, "swaps") if len(counts) == 1 else (1, "weights that differ")
    ax = axes(ax)
    gaps: list[float] = []
    reach: list[float] = []
    for place, (name, result) in enumerate(named.items()):
        above = result.energies - best.energy
        away = (result.assignments != best.assignment).sum(axis=1) / per_step
        style = {key: look(place)[key] for key in ("color", "marker")}
        label, order = f"{plain(name)} ({len(above)})", 2 + 1 / (1 + len(above))
        ax.scatter(away, above, s=22, alpha=0.75, linewidths=0, label=label, zorder=order, **style)
        gaps += above.tolist()
        reach += away.tolist()
    draw_levels(ax, _bound(named, best.energy))
    ax.set_xlim(-0.5, max(1.0, max(reach)) + 0.5)
    dress(
        ax,
        title="answers around the best one",
        x_label=f"{steps} to the best assignment",
        y_label=f"energy above the best, {ENERGY}",
    )
    _scale_of_gaps(ax, gaps)
    whole_numbers(ax.xaxis)
    legend(ax)
    return ax


def _bound(results: Mapping[str, SolveResult], best: float) -> dict[str, float]:
    """The highest proven bound, as energy above the best, by its name."""
    if any(result.status is Status.OPTIMAL for result in results.values()):
        return {"proven optimum": 0.0}
    bounds = [result.lower_bound for result in results.values() if result.lower_bound is not None]
    return {"proven lower bound": max(bounds) - best} if bounds else {}


def _scale_of_gaps(ax: Axes, gaps: list[float]) -> None:
    positive = [gap for gap in gaps if gap > 0]
    if positive and max(positive) > _WIDE * min(positive):
        # a step of rounding would stretch the axis over decades in which nothing is
        least = max(min(positive), 1e-6 * max(positive))
        ax.set_yscale("symlog", linthresh=10 ** math.floor(math.log10(least)))
    elif not positive:
        ax.set_ylim(-1, 1)
