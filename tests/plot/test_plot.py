"""Pictures: what is drawn is what the data say, in the Axes that is given, in colours that everybody can tell apart."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from qubo_prune import BlockQubo, FactorForm, InputError, Report, SolveResult, Status, plot
from qubo_prune.blocks.loss.trace import LossStep, LossTrace
from qubo_prune.blocks.rows import TracePoint
from qubo_prune.plot.problems import MOST_VARIABLES
from qubo_prune.plot.runs import without_common
from qubo_prune.plot.style import LEVEL, look
from qubo_prune.report import LayerReport
from qubo_prune.report.comparison import Comparison, ComparisonRow

STRANGE = "a $name$ with _signs_ & <script>"


# --- what is drawn -----------------------------------------------------------------------------------


def block(n: int = 12, groups: int = 1, seed: int = 0) -> BlockQubo:
    """Two clusters of strongly coupled variables, in turn."""
    rng = np.random.default_rng(seed)
    cluster = np.arange(n) % 2
    q = rng.standard_normal((n, n)) * np.where(cluster[:, None] == cluster[None, :], 1e-3, 1e-6)
    return BlockQubo(q, [1] * groups, labels=np.arange(n) % groups)


def result(problem: BlockQubo, count: int = 8, seed: int = 0, **changes: Any) -> SolveResult:
    rng = np.random.default_rng(seed)
    x = np.zeros((count, problem.num_variables), dtype=bool)
    for row in x:
        row[rng.permutation(len(row))[:4]] = True
    energies = np.asarray(problem.energy(x))
    order = energies.argsort()
    return SolveResult(x[order], energies[order], **{"status": Status.FEASIBLE, "solver": "tabu", **changes})


def layer(name: str = "model.layers.0.mlp.up_proj", error: float = 0.5, **changes: Any) -> LayerReport:
    trace = (TracePoint(0.0, 1.0, 0, 0), TracePoint(0.5, 0.6, 30, 40), TracePoint(1.0, error, 30, 80))
    made = LayerReport(name, (8, 16), 64, 0.5, 1.0, error, 10.0, 80, 30, 0.4, 0.1, 1.0, "greedy", 100, 0, trace=trace)
    return replace(made, **changes)


def report(*layers: LayerReport, loss: LossTrace | None = None) -> Report:
    return Report(layers or (layer(), layer("model.layers.0.mlp.down_proj", 0.2)), "tiny", {}, {}, {}, loss=loss)


def deep(kinds: int = 3, depth: int = 12) -> Report:
    return report(
        *(layer(f"model.layers.{n}.part{k}.proj", 0.1 + 0.01 * n + 0.1 * k) for n in range(depth) for k in range(kinds))
    )


def loss_trace() -> LossTrace:
    outcomes = ("accepted", "halved", "rolled back", "idle", "accepted")
    losses = (2.0, 1.5, 1.5, 1.5, 1.2)
    steps = tuple(
        LossStep(at, 1, ("a",), 8, 2, -0.1, -0.1, -0.1, 0.01, loss, outcome, 0.0, 8, 0.1, 0.5 * (at + 1))
        for at, (outcome, loss) in enumerate(zip(outcomes, losses, strict=True))
    )
    return LossTrace({}, steps, 2.5, 1.2, "It is done.", {}, 2.5)


def comparison(texts: int = 1, settings: tuple[str, ...] = ("0.5 row", "2:4")) -> Comparison:
    rows = [ComparisonRow("dense", 1.0, (20.0, 22.0)[:texts])]
    for number, setting in enumerate(settings, 1):
        for place, method in enumerate(("wanda", "gram", "compensated@allocation=fisher@max_sweeps=1"), 1):
            values = (20.0 + 10 * number / place, 22.0 + 9 * number / place)[:texts]
            rows.append(ComparisonRow(method, 0.5, values, 1.0, 0.01 / place, 10.0**place, setting=setting))
    evaluation = tuple({"source": name, "tokens": 100} for name in ("pydoc", "/some/where/a wiki.txt")[:texts])
    return Comparison("tiny", tuple(rows), {}, evaluation, {}, "2026-01-01")


MASKS = (torch.rand(24, 16, generator=torch.Generator().manual_seed(0)) > 0.5, np.eye(24, 16, dtype=bool))
CURVES = {STRANGE: [(0.1, 0.5), (1.0, 0.8)], "other": [(0.2, 0.4), (2.0, 0.6)], "nothing yet": []}
MARKS = {STRANGE: [(1.0, 0.4, "of 64"), (0.01, 0.5, "of 12")], "qaoa": [(3.0, 20.0, "of 12"), (4.0, np.inf, "of 64")]}

DRAW: Mapping[str, Callable[[Axes | None], Axes]] = {
    "couplings": lambda ax: plot.couplings(block(), ax=ax),
    "couplings, groups": lambda ax: plot.couplings(block(groups=3), ax=ax),
    "couplings, many groups": lambda ax: plot.couplings(block(30, groups=10), ax=ax),
    "couplings, factors": lambda ax: plot.couplings(
        BlockQubo(FactorForm(np.ones(900), np.random.default_rng(0).random((900, 2))), 5), ax=ax
    ),
    "couplings, none": lambda ax: plot.couplings(BlockQubo(np.eye(2), 1), ax=ax),
    "samples": lambda ax: plot.samples(result(block()), ax=ax),
    "samples, two": lambda ax: plot.samples({STRANGE: result(block()), "b": result(block(), 5, 1)}, ax=ax),
    "samples, one answer": lambda ax: plot.samples(result(block(), 1, status=Status.OPTIMAL), ax=ax),
    "descent": lambda ax: plot.descent(layer(), ax=ax),
    "descent, loss": lambda ax: plot.descent(loss_trace(), ax=ax),
    "descent, long name": lambda ax: plot.descent(layer("a.very." * 20 + "long.name"), ax=ax),
    "masks": lambda ax: plot.masks(*MASKS, ax=ax),
    "masks, large": lambda ax: plot.masks(np.ones((500, 300), bool), np.eye(500, 300, dtype=bool), ax=ax),
    "layers": lambda ax: plot.layers(report(), ax=ax),
    "layers, density": lambda ax: plot.layers(deep(), "density", ax=ax),
    "layers, many": lambda ax: plot.layers(deep(), ax=ax),
    "layers, two": lambda ax: plot.layers({STRANGE: report(), "b": report()}, ax=ax),
    "layers, two of many": lambda ax: plot.layers({STRANGE: deep(), "b": deep()}, ax=ax),
    "methods": lambda ax: plot.methods(comparison(), ax=ax),
    "methods, rise": lambda ax: plot.methods(comparison(2), "rise", ax=ax),
    "methods, error": lambda ax: plot.methods(comparison(), "error", ax=ax),
    "methods, seconds": lambda ax: plot.methods(comparison(), "seconds", ax=ax),
    "quality": lambda ax: plot.quality(CURVES, ax=ax, levels={"dense": 0.9}, y_label="accuracy, share", log_x=True),
    "quality, many": lambda ax: plot.quality(
        {f"solver number {n}": [(1.0, n), (2.0, n)] for n in range(12)}, ax=ax, y_label="gap, %"
    ),
    "trade_offs": lambda ax: plot.trade_offs(MARKS, ax=ax, levels={"Wanda": 1.0}, y_label="error, share"),
    "bars": lambda ax: plot.bars(["Wanda", "ADMM"], {STRANGE: [0.3, np.nan]}, ax=ax, label="seconds"),
}


@pytest.fixture(params=DRAW)
def draw(request: pytest.FixtureRequest) -> Callable[[Axes | None], Axes]:
    return DRAW[request.param]


@pytest.fixture
def pyplot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Figures without a display, closed in the end."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def figure(width: float = 6.4, height: float = 4.8, **options: Any) -> Figure:
    made = Figure((width, height), **{"layout": "constrained", **options})
    FigureCanvasAgg(made)
    return made


# --- what holds for every picture --------------------------------------------------------------------


def test_it_draws_in_the_axes_that_it_is_given_and_in_no_other(draw: Callable[[Axes | None], Axes]) -> None:
    made = figure(9)
    ours, other = made.subplots(1, 2)
    assert draw(ours) is ours
    assert ours.has_data()
    assert not other.has_data()
    assert not other.texts
    assert other.get_legend() is None
    assert ours.get_xlabel()
    assert ours.get_ylabel() or [text.get_text() for text in ours.get_yticklabels()]


def test_without_axes_it_makes_a_figure(draw: Callable[[Axes | None], Axes], pyplot: Any) -> None:
    before = dict(matplotlib.rcParams)
    ax = draw(None)
    assert pyplot.get_fignums() == [1]
    assert pyplot.figure(1).axes[0] is ax
    assert dict(matplotlib.rcParams) == before


def visible_texts(made: Figure) -> list[Text]:
    return [
        text for text in made.findobj(Text) if isinstance(text, Text) and text.get_visible() and text.get_text().strip()
    ]


def within_view(text: Text) -> bool:
    """False for the labels of ticks that lie beyond the axes and are not drawn."""
    for axis in (a for ax in text.figure.axes for a in (ax.xaxis, ax.yaxis)):  # type: ignore[union-attr]
        drawn = {id(label) for tick in axis._update_ticks() for label in (tick.label1, tick.label2)}
        if any(text in (tick.label1, tick.label2) for tick in (*axis.majorTicks, *axis.minorTicks)):
            return id(text) in drawn
    return True


@pytest.mark.gate(18)
@pytest.mark.parametrize("size", [(6.4, 4.8), (3.6, 2.8)], ids=["notebook", "panel"])
def test_no_text_is_cut_off_or_small(draw: Callable[[Axes | None], Axes], size: tuple[float, float]) -> None:
    made = figure(*size)
    draw(made.subplots())
    made.canvas.draw()
    width, height = made.bbox.width, made.bbox.height
    for text in visible_texts(made):
        box = text.get_window_extent()
        if not within_view(text):
            continue
        assert text.get_fontsize() >= (5 if "mathdefault" in text.get_text() else 8), text
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text


def test_somebody_elses_figure_without_a_layout_is_drawn_as_well(draw: Callable[[Axes | None], Axes]) -> None:
    made = figure(layout=None)
    draw(made.subplots())
    made.canvas.draw()


# --- the style ---------------------------------------------------------------------------------------

#: G. Machado, M. Oliveira, L. Fernandes, IEEE Trans. Visualization and Computer Graphics 15 (2009), severity 1.
SIGHTS = {
    "all colours": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colours: Any, sight: str) -> np.ndarray:
    """CIELAB of sRGB colours as people of that sight see them."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SIGHTS[sight]).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_can_be_told_apart(sight: str) -> None:
    seen = lab([*plot.PALETTE, "white"], sight)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 15  # 2.3 is just noticeable
    assert all(abs(a - b) > 8 for a, b in itertools.pairwise(seen[:-1, 0]))


@pytest.mark.parametrize("sight", SIGHTS)
def test_the_diverging_map_has_its_middle_at_the_lightest(sight: str) -> None:
    lightness = lab(matplotlib.colormaps[plot.DIVERGING](np.linspace(0, 1, 41))[:, :3], sight)[:, 0]
    assert (np.diff(lightness)[:20] > 0).all()
    assert (np.diff(lightness)[20:] < 0).all()


def test_series_differ_in_more_than_their_colour() -> None:
    looks = [look(place) for place in range(40)]
    assert len({tuple(each.values()) for each in looks}) == 40
    for a, b in itertools.pairwise(looks):
        assert a["marker"] != b["marker"]


# --- problems and answers ----------------------------------------------------------------------------


def drawn_matrix(ax: Axes) -> np.ma.MaskedArray:
    return np.ma.masked_array(ax.images[0].get_array())


@pytest.mark.parametrize("groups", [1, 4])
def test_the_heat_map_is_a_permutation_of_the_couplings(groups: int) -> None:
    problem = block(12, groups)
    ax = plot.couplings(problem, ax=figure().subplots())
    shown = drawn_matrix(ax)
    assert shown.mask.diagonal().all()
    assert not shown.mask[~np.eye(12, dtype=bool)].any()
    order = [int(label.get_text()) for label in ax.get_yticklabels()]
    assert order == [int(label.get_text()) for label in ax.get_xticklabels()]
    assert sorted(order) == list(range(12))
    wanted = 2 * problem.dense()[np.ix_(order, order)]
    np.testing.assert_array_equal(shown.filled(0), wanted - np.diag(wanted.diagonal()))
    low, high = ax.images[0].get_clim()
    assert low == -high < 0
    assert len(ax.images) == (2 if groups > 1 else 1)
    if groups > 1:
        assert ax.images[1].get_array()[:, 0].tolist() == problem.labels[order].tolist()


@pytest.mark.parametrize("n", [10, 60])
def test_the_order_puts_clusters_together(n: int) -> None:
    among = block(n).couplings_among(np.arange(n))
    order = plot.coupling_order(among)
    assert sorted(order) == list(range(n))
    clusters = (order % 2).tolist()
    assert clusters in ([0] * (n // 2) + [1] * (n // 2), [1] * (n // 2) + [0] * (n // 2))


def test_of_many_variables_some_are_drawn_and_the_title_says_so() -> None:
    rng = np.random.default_rng(0)
    problem = BlockQubo(FactorForm(np.ones(5000), rng.standard_normal((5000, 2))), 5)
    ax = plot.couplings(problem, ax=figure().subplots())
    assert drawn_matrix(ax).shape == (MOST_VARIABLES, MOST_VARIABLES)
    assert f"{MOST_VARIABLES} evenly spread of 5000" in " ".join(ax.get_title().split())


def test_samples_stand_at_their_distance_and_energy() -> None:
    problem = block()
    found = result(problem, lower_bound=-5.0)
    ax = plot.samples(found, ax=figure().subplots())
    (points,) = ax.collections
    for (away, above), x in zip(np.asarray(points.get_offsets()), found.assignments, strict=True):
        assert away == (x & ~found.assignment).sum()
        assert above == pytest.approx(float(problem.energy(x)) - found.energy)
    (level,) = ax.get_lines()
    assert level.get_ydata()[0] == pytest.approx(-5.0 - found.energy)
    assert "swaps" in ax.get_xlabel()
    assert "units" in ax.get_ylabel()


def test_samples_of_several_are_compared_with_the_best_of_all() -> None:
    problem = block()
    several = {"a": result(problem, 4), "b": result(problem, 30, 3)}
    ax = plot.samples(several, ax=figure().subplots())
    best = min(each.energy for each in several.values())
    for points, each in zip(ax.collections, several.values(), strict=True):
        np.testing.assert_allclose(np.asarray(points.get_offsets())[:, 1], each.energies - best)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a (4)", "b (30)"]


def test_results_of_different_problems_are_refused() -> None:
    with pytest.raises(InputError, match=r"problems with \[12, 14\] variables"):
        plot.samples({"a": result(block()), "b": result(block(14))})
    with pytest.raises(InputError, match="no answers"):
        plot.samples({})


# --- runs --------------------------------------------------------------------------------------------


def legend_of(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_layers_descent_shows_what_was_accepted_and_rejected() -> None:
    ax = plot.descent(layer(), ax=figure().subplots())
    line = ax.get_lines()[0]
    assert list(line.get_xdata()) == [0.0, 0.5, 1.0]
    assert list(line.get_ydata()) == [1.0, 0.6, 0.5]
    assert legend_of(ax) == ["warm start", "accepted: 30 blocks", "rejected: 50 blocks"]
    # the first sweep is a disc of 30 of 40 within its ring, the second an empty ring
    sizes = [line.get_markersize() for line in ax.get_lines()[1:-1]]
    assert sizes[0] == sizes[2]
    assert (sizes[1] / sizes[0]) ** 2 == pytest.approx(30 / 40)
    assert len(sizes) == 3


def test_records_that_do_not_tell_what_was_tried_are_drawn() -> None:
    old = LayerReport.from_dict(
        layer().to_dict()
        | {"trace": [{"seconds": 0.5 * n, "energy": 1.0 - n / 4, "accepted": 3 * n} for n in range(3)]}
    )
    assert legend_of(plot.descent(old, ax=figure().subplots()))[1:] == ["accepted: 6 blocks", "rejected"]


def test_a_descent_on_the_loss_shows_every_outcome() -> None:
    ax = plot.descent(report(loss=loss_trace()), ax=figure().subplots())
    assert legend_of(ax) == [
        "warm start",
        "accepted: 2 steps",
        "halved: 1 step",
        "rolled back: 1 step",
        "idle: 1 step",
        "best: 1.2",
    ]
    assert list(ax.get_lines()[0].get_ydata()) == [2.5, 2.0, 1.5, 1.5, 1.5, 1.2]


def test_what_had_no_descent_is_refused() -> None:
    with pytest.raises(InputError, match="pruned without a descent"):
        plot.descent(layer(trace=()))
    with pytest.raises(InputError, match=r"report\.layers\[0\]"):
        plot.descent(report())


def test_masks_are_counted_and_shown_cell_by_cell() -> None:
    before, after = MASKS
    ax = plot.masks(before, after, ax=figure().subplots())
    old, new = before.numpy(), after
    counts = [(old & new).sum(), (~old & ~new).sum(), (old & ~new).sum(), (~old & new).sum()]
    names = ("kept in both", "pruned in both", "pruned now", "restored now")
    assert legend_of(ax) == [f"{name}: {count}" for name, count in zip(names, counts, strict=True)]
    shown = np.asarray(ax.images[0].get_array())
    np.testing.assert_array_equal(shown == 2, old & ~new)
    np.testing.assert_array_equal(shown == 3, ~old & new)


def test_of_large_masks_the_window_with_most_changes_is_shown_and_all_is_counted() -> None:
    before = np.ones((300, 700), dtype=bool)
    after = before.copy()
    after[130:140, 260:300] = False
    after[0, 0] = False
    ax = plot.masks(before, after, ax=figure().subplots())
    assert legend_of(ax)[2] == "pruned now: 401"
    assert "rows 128 to 255, columns 256 to 383" in " ".join(ax.get_title().split())
    assert np.asarray(ax.images[0].get_array()).shape == (128, 128)
    assert (np.asarray(ax.images[0].get_array()) == 2).sum() == 400


def test_masks_must_be_bool_matrices_of_one_shape() -> None:
    with pytest.raises(InputError, match="of the same layer"):
        plot.masks(np.eye(3, dtype=bool), np.eye(4, dtype=bool))
    with pytest.raises(InputError, match="pass a bool matrix"):
        plot.masks(np.eye(3), np.eye(3, dtype=bool))


def test_layers_have_their_values_in_the_order_of_the_model() -> None:
    found = report()
    ax = plot.layers(found, ax=figure().subplots())
    (line,) = ax.get_lines()
    assert list(line.get_xdata()) == [each.relative_after for each in found.layers]
    assert list(line.get_ydata()) == [0, 1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["up_proj", "down_proj"]
    assert ax.get_title() == "model.layers.0.mlp"
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_many_layers_are_drawn_by_their_number_one_line_for_each_kind() -> None:
    found = deep(kinds=3, depth=12)
    ax = plot.layers(found, "density", ax=figure().subplots())
    assert legend_of(ax) == ["part0", "part1", "part2"]
    for line in ax.get_lines():
        assert list(line.get_xdata()) == list(range(12))
        assert list(line.get_ydata()) == [0.5] * 12
    with pytest.raises(InputError, match="'error' or 'density'"):
        plot.layers(found, "speed")


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.b.c", "a.b.d"], ["c", "d"]),
        (["a.x.w", "a.y.w"], ["x", "y"]),
        (["a.b", "a.b.c"], ["b", "b.c"]),
        (["only.one"], ["one"]),
        (["0", "2"], ["0", "2"]),
    ],
)
def test_what_names_have_in_common_is_left_out(names: list[str], short: list[str]) -> None:
    assert without_common(names) == short


# --- things side by side -----------------------------------------------------------------------------


def test_methods_stand_with_the_dense_model() -> None:
    found = comparison(texts=2)
    ax = plot.methods(found, ax=figure().subplots())
    labels = ["0.5 row, pydoc", "0.5 row, a wiki", "2:4, pydoc", "2:4, a wiki"]
    assert legend_of(ax) == [*labels, "dense, pydoc", "dense, a wiki"]
    assert [line.get_xdata()[0] for line in ax.get_lines() if line.get_color() == LEVEL] == [20.0, 22.0]
    widths = [[bar.get_width() for bar in bars] for bars in ax.containers]
    methods = list(dict.fromkeys(row.method for row in found.rows[1:]))
    wanted = [[found.row(m, s).perplexities[t] for m in methods] for s in found.settings for t in (0, 1)]
    assert widths == wanted
    rise = plot.methods(found, "rise", ax=figure().subplots())
    assert [bar.get_width() for bar in rise.containers[1]] == [found.rise(m, "0.5 row", 1) for m in methods]
    one = plot.methods(found, "rise", text=1, ax=figure().subplots())
    assert "(a wiki)" in one.get_xlabel()
    assert legend_of(one) == [*found.settings, "dense"]
    assert [bar.get_width() for bar in one.containers[0]] == [found.rise(m, "0.5 row", 1) for m in methods]
    with pytest.raises(InputError, match="perplexity, rise, error, seconds"):
        plot.methods(found, "speed")


def test_values_that_differ_much_are_points_on_a_logarithmic_axis() -> None:
    ax = plot.methods(comparison(), "seconds", ax=figure().subplots())
    assert ax.get_xscale() == "log"
    assert not ax.containers
    assert [list(line.get_xdata()) for line in ax.get_lines()] == [[10.0, 100.0, 1000.0]] * 2


def test_quality_shows_lines_and_levels() -> None:
    curves = {"iCBS": [(0.5, 0.5), (1.5, 0.8)], "nothing yet": []}
    levels = {"dense": 0.9, "unknown": float("nan")}
    ax = plot.quality(curves, ax=figure().subplots(), levels=levels, y_label="accuracy, share", log_x=True)
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert set(lines) == {"iCBS", "nothing yet", "dense"}
    assert list(lines["iCBS"].get_ydata()) == [0.5, 0.8]
    assert lines["dense"].get_linestyle() == "--"
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "seconds", "accuracy, share")


def test_quality_has_a_band_where_it_deviates() -> None:
    curves = {"iCBS": [(0.5, 0.5), (1.5, 0.8)], "alone": [(1.0, 0.7)]}
    ax = plot.quality(curves, ax=figure().subplots(), deviations={"iCBS": [0.0, 0.1], "alone": [0.0]})
    (band,) = ax.collections
    corners = {(float(x), round(float(y), 9)) for x, y in band.get_paths()[0].vertices}
    assert corners == {(0.5, 0.5), (1.5, 0.7), (1.5, 0.9)}
    assert not plot.quality(curves, ax=figure().subplots()).collections


def test_trade_offs_have_bars_of_their_deviations() -> None:
    marks = {"tabu": [(1.0, 0.8, "a"), (4.0, 0.5, "b"), (5.0, math.inf, "b")], "neal": [(2.0, 0.6, "a")]}
    spread = {"tabu": [(2.0, 0.1), (0.0, 0.0), (1.0, math.nan)]}
    ax = plot.trade_offs(marks, ax=figure().subplots(), deviations=spread)
    (bar,) = ax.containers  # of the one point that has a deviation and is drawn
    (across, along) = (line.get_segments()[0] for line in bar.lines[2])
    assert across.tolist() == [pytest.approx([0.1, 0.8]), [3.0, 0.8]]  # a logarithmic axis has no zero
    assert along.tolist() == [pytest.approx([1.0, 0.7]), pytest.approx([1.0, 0.9])]
    assert not plot.trade_offs(marks, ax=figure().subplots()).containers


def test_trade_offs_have_the_lowest_by_each_cost() -> None:
    marks = {"tabu": [(1.0, 0.4, "of 64"), (0.01, 0.5, "of 12"), (2.0, 0.6, "of 64")]}
    ax = plot.trade_offs(marks, ax=figure().subplots(), levels={"Wanda": 1.0})
    line = ax.get_lines()[0]
    assert list(line.get_xdata()) == [0.01, 1.0, 2.0]
    assert list(line.get_ydata()) == [0.5, 0.4, 0.4]
    assert legend_of(ax) == ["tabu", "of 64", "of 12", "Wanda"]


# --- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_panels_are_saved_side_by_side(tmp_path: Path, shared: bool) -> None:
    draw = [lambda ax: plot.quality(CURVES, ax=ax), lambda ax: plot.quality(CURVES, ax=ax, levels={"dense": 1.0})]
    plot.save_panels(tmp_path / "two.png", draw, shared_legend=shared)
    with Image.open(tmp_path / "two.png") as image:
        assert image.format == "PNG"
        assert image.width > 2 * image.height > 500
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=2**20) or ()}
    assert tuple(round(255 * part) for part in to_rgb(plot.PALETTE[0])) in colours
    made = plot.panels(draw, shared_legend=shared)
    assert len(made.axes) == 2
    assert len(made.legends) == shared
    if shared:
        names = [text.get_text() for text in made.legends[0].get_texts()]
        assert names == [STRANGE.replace("$", r"\$"), "other", "nothing yet", "dense"]
        assert all(ax.get_legend() is None for ax in made.axes)


def test_panels_go_on_in_another_row() -> None:
    made = plot.panels([lambda ax: plot.quality(CURVES, ax=ax)] * 5, columns=3, shared_legend=True)
    assert len(made.axes) == 5
    tops = [ax.get_position(original=True).y1 for ax in made.axes]
    assert tops[0] == tops[1] == tops[2] > tops[3] == tops[4]


def test_importing_the_pictures_opens_nothing() -> None:
    import subprocess
    import sys

    code = "import sys, qubo_prune.plot; print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_short_logarithmic_axis_has_one_kind_of_figures() -> None:
    ax = plot.quality({"one": [(10.0, 1.0), (60.0, 2.0), (400.0, 3.0)]}, log_x=True, ax=figure().subplots())
    ax.get_figure().canvas.draw()
    shown = [tick.get_text() for tick in ax.get_xticklabels(which="both") if tick.get_text()]
    assert shown
    assert all(re.fullmatch(r"\d+", text) for text in shown)
