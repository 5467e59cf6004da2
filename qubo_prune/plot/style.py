"""One look for all pictures: colours that the colour-blind can tell apart, markers, fonts, legends, panels.

Nothing here changes matplotlib's settings: what is drawn is given its look piece by piece, so that an Axes of somebody
else's figure looks the same as one that is made here.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

#: Colours of series, in their order: those of M. Okabe and K. Ito (Color Universal Design, 2008), ordered so that each
#: differs from the one before in lightness as well.
PALETTE = ("#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#000000", "#CC79A7", "#F0E442")
#: Markers of series, so that no series is told by its colour alone.
MARKERS = "os^Dv*PX<>h"
LINES = ("-", "--", "-.", ":")
#: What does not change along x, and what others are compared with.
LEVEL = "0.35"
#: Lines of levels in their order.
_LEVEL_LINES = ("--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))
#: Colour map of what has a sign, with its middle at 0, and of what has none.
DIVERGING, SEQUENTIAL = "RdBu_r", "viridis"
#: Largest over smallest value from which on an axis is logarithmic.
WIDE = 20.0
#: Most entries of a legend within the axes; longer ones stand beside them.
_WITHIN = 5
_TITLE, _LABEL, _SMALL = 10, 9, 8
#: Width of a letter as a share of its height, and of the sample in a legend in inches.
_LETTER, _HANDLE = 0.62, 0.5


def axes(ax: Axes | None) -> Axes:
    """``ax``, or the Axes of a new figure, which a notebook shows."""
    if ax is not None:
        return ax
    # importing pyplot chooses where figures are shown, which is nobody's business before one is wanted
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def look(place: int) -> dict[str, Any]:
    """Colour, marker and line of the series of that number; those of the first 88 all differ."""
    return {
        "color": PALETTE[place % len(PALETTE)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place // len(PALETTE) % len(LINES)],
    }


def level_look(place: int) -> dict[str, Any]:
    """Line of the level of that number."""
    return {"color": LEVEL, "linestyle": _LEVEL_LINES[place % len(_LEVEL_LINES)], "linewidth": 1.1}


def plain(name: object) -> str:
    """A name as text: no formula between two dollar signs, and not left out of legends as those with ``_`` are."""
    text = str(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def shortened(name: str, most: int = 40) -> str:
    """A name of at most so many characters; its middle is left out."""
    half = (most - 3) // 2
    return name if len(name) <= most else f"{name[:half]}...{name[-half:]}"


def figure_of(ax: Axes) -> Figure:
    """The figure that an Axes is in."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def size_of(ax: Axes) -> tuple[float, float]:
    """Width and height of the place of an Axes, in inches, before a layout moves it."""
    place, figure = ax.get_position(original=True), figure_of(ax)
    return place.width * figure.get_figwidth(), place.height * figure.get_figheight()


def wrapped(text: str, inches: float, points: float = _LABEL) -> str:
    """A text in lines of at most so many inches, if words allow it."""
    letters = max(8, int(inches * 72 / (_LETTER * points)))
    return "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, letters) or [""])


def dress(
    ax: Axes,
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    grid: Literal["x", "y", "both"] | None = "both",
    beside: float = 0.0,
) -> None:
    """Titles, labels with their units, a light grid, no box.

    ``beside``: inches of the width that something else takes, such as names at the left.
    """
    width, height = size_of(ax)
    if not ax.get_autoscale_on() and ax.get_aspect() == 1.0:  # a picture fills a square
        width = min(width, height + 1.0)
    ax.set_title(wrapped(plain(title), width, _TITLE), fontsize=_TITLE)
    ax.set_xlabel(wrapped(plain(x_label), width - beside), fontsize=_LABEL)
    ax.set_ylabel(wrapped(plain(y_label), height), fontsize=_LABEL)
    ax.tick_params(which="both", labelsize=_SMALL, color="0.5")
    ax.xaxis.get_offset_text().set_fontsize(_SMALL)
    ax.yaxis.get_offset_text().set_fontsize(_SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["bottom", "left"]].set_color("0.5")
    ax.set_axisbelow(True)
    ax.grid(False, which="both")
    if grid is not None:
        ax.grid(True, axis=grid, color="0.9", linewidth=0.7)


def legend(ax: Axes, handles: Sequence[Any] | None = None, *, full: bool = False) -> None:
    """Names of what is drawn: within the axes if they are few, else beside or below, where the layout makes room.

    Args:
        ax: where; its labels are set already.
        handles: what is named; everything with a label if left out.
        full: never within the axes, if that can be.
    """
    shown = list(ax.get_legend_handles_labels()[0] if handles is None else handles)
    if not shown:
        return
    names = [str(handle.get_label()) for handle in shown]
    place: dict[str, Any] = {"loc": "best", "framealpha": 0.8, "edgecolor": "none"}
    if (full or len(names) > _WITHIN) and figure_of(ax).get_layout_engine() is not None:
        place |= _outside(ax, len(names), _HANDLE + _inches(max(names, key=len), _SMALL), full)
    ax.legend(shown, names, fontsize=_SMALL, handlelength=2.2, **place)


def _outside(ax: Axes, entries: int, width: float, below: bool) -> dict[str, Any]:
    """Where a legend of so many entries of that width in inches leaves most to the axes; nothing if nowhere."""
    wide, high = size_of(ax)
    columns = max(1, int(wide / width))
    fits_below = 0.2 * math.ceil(entries / columns) < 0.4 * high
    if fits_below and (below or width > 0.42 * wide):
        return _below(ax, columns)
    if width < 0.65 * wide:
        return {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False}
    return {}


def _below(ax: Axes, columns: int) -> dict[str, Any]:
    """Below the label of x, at a distance that does not depend on how high the axes are."""
    down = 0.3 + 0.16 * len(ax.get_xlabel().split("\n"))
    anchor = ax.transAxes + ScaledTranslation(0.0, -down, figure_of(ax).dpi_scale_trans)
    return {
        "loc": "upper center",
        "bbox_to_anchor": (0.5, 0.0),
        "bbox_transform": anchor,
        "ncols": columns,
        "frameon": False,
        "borderaxespad": 0.0,
        "columnspacing": 1.2,
    }


def _inches(text: str, points: float) -> float:
    """About how wide a text is."""
    return max(map(len, text.split("\n"))) * _LETTER * points / 72


def draw_levels(ax: Axes, levels: Mapping[str, float] | None) -> None:
    """Dashed lines at values of y, with their names for the legend; those that are not finite are left out."""
    for place, (name, value) in enumerate((levels or {}).items()):
        if math.isfinite(value):
            ax.axhline(value, label=plain(name), zorder=1.5, **level_look(place))


def whole_numbers(axis: Axis) -> None:
    """No ticks between whole numbers."""
    axis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def is_wide(values: Iterable[float], least: float = WIDE) -> bool:
    """True if positive values differ so much that a logarithmic axis is needed, and there are no others."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > least * min(finite)


def logarithmic(ax: Axes, which: str) -> None:
    """A logarithmic axis ``x`` or ``y`` that names its decades, or more where it spans less than two."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    low, high = axis.get_view_interval()
    if low > 0 and high / low < 100:
        axis.set_major_formatter("{x:g}")  # as the figures between the decades
        axis.set_minor_formatter(_Thinned(minor_thresholds=(3, 0.6)))
    else:
        axis.set_minor_formatter(NullFormatter())


class _Thinned(LogFormatterSciNotation):
    """Numbers of a short logarithmic axis as plain figures, at 2 and 5 only."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        first = x / 10 ** math.floor(math.log10(x)) if x > 0 else 0.0
        return f"{x:g}" if round(first, 6) in (2, 5) else ""


def written_out(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with these values written out, every second one where they are many."""
    ax.set_xscale("log")
    shown = list(values)[:: 1 + len(values) // 7]
    ax.set_xticks(shown, [f"{value:g}" for value in shown])
    ax.xaxis.set_minor_formatter(NullFormatter())


def panels(
    draw: Sequence[Callable[[Axes], object]],
    *,
    width: float = 4.6,
    height: float = 3.6,
    columns: int | None = None,
    shared_legend: bool = False,
) -> Figure:
    """A figure without a display, of one Axes function beside the other.

    Args:
        draw: each draws one panel in the Axes that it is given.
        width, height: of a panel, in inches.
        columns: most panels in a row; all in one if left out.
        shared_legend: one legend below for all panels, with each name once, instead of their own.
    """
    across = min(len(draw), columns or len(draw))
    down = math.ceil(len(draw) / across)
    figure = Figure(figsize=(0.4 + width * across, height * down), layout="constrained")
    places = figure.subplots(down, across, squeeze=False).ravel()
    for ax in places[len(draw) :]:
        ax.remove()
    for ax, one in zip(places, draw, strict=False):
        one(ax)
    if shared_legend:
        _share_legend(figure, places[: len(draw)], width * across)
    return figure


def save_panels(
    path: str | Path,
    draw: Sequence[Callable[[Axes], object]],
    *,
    width: float = 4.6,
    height: float = 3.6,
    columns: int | None = None,
    shared_legend: bool = False,
) -> None:
    """:func:`panels` as a file.

    Args:
        path: a .png, .svg or .pdf file.
        draw, width, height, columns, shared_legend: as for :func:`panels`.

    Such as ``save_panels("two.png", [lambda ax: couplings(block, ax=ax), lambda ax: samples(found, ax=ax)])``.
    """
    panels(draw, width=width, height=height, columns=columns, shared_legend=shared_legend).savefig(path, dpi=110)


def _share_legend(figure: Figure, places: Iterable[Axes], width: float) -> None:
    known: dict[str, Any] = {}
    for ax in places:
        own = ax.get_legend()
        if isinstance(own, Legend):
            for handle, text in zip(own.legend_handles, own.get_texts(), strict=True):
                known.setdefault(text.get_text(), handle)
            own.remove()
    if known:
        columns = max(1, min(len(known), int(width / (_HANDLE + 0.1 + _inches(max(known, key=len), _SMALL)))))
        figure.legend(
            list(known.values()),
            list(known),
            loc="outside lower center",
            ncols=columns,
            fontsize=_SMALL,
            frameon=False,
            handlelength=2.2,
        )
