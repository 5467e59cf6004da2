"""The pictures hold the numbers of the metrics."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tiny_runs import instance, results, row

from qubo_prune.bench import run_plots
from qubo_prune.bench.metrics import Results
from qubo_prune.bench.run_report import classes_in
from qubo_prune.plot import PALETTE

SOLVERS = ("wanda+swaps", "random+swaps", "good", "<weak> & $co")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    instances = [instance("a", 8), instance("b", 64, hessian="fisher"), instance("c", 96, hessian="fisher")]
    rows = [
        row(name, solver, 2.0 + place * 0.1 / (1 if limit == 0.1 else 2), limit)
        for name in "abc"
        for place, solver in enumerate(SOLVERS)
        for limit in (0.1, 1.0)
        if (name, solver) != ("c", "good")
    ]
    return results(tmp_path_factory.mktemp("run"), instances, rows)


def name_of(label: object) -> str:
    """The solver that a label stands for, whose dollar signs are no formula."""
    return str(label).replace(r"\$", "$")


def curves(figure: Figure, panel: int) -> dict[str, tuple[list[float], list[float]]]:
    """``(x, y)`` of every line of a panel, by its label."""
    axis = figure.axes[panel]
    return {name_of(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


def test_energy_against_time_is_the_mean_gap_of_each_class(found: Results) -> None:
    classes = classes_in(found)
    figure = run_plots.anytime(found, classes)
    assert [axis.get_title() for axis in figure.axes] == [title for title, _ in classes] == ["n up to 32", "33 to 128"]
    for panel, (_, solves) in enumerate(classes):
        drawn = curves(figure, panel)
        # "good" does not take c, so it cannot be compared in the second class
        assert set(drawn) == set(SOLVERS) - ({"good"} if panel else set())
        for solver, (limits, gaps) in drawn.items():
            assert limits == [0.1, 1.0]
            for limit, gap in zip(limits, gaps, strict=True):
                own = solves[(solves.solver == solver) & (solves.time_limit == limit)]
                if own.gap.mean() > 1e-6:
                    assert gap == pytest.approx(100 * own.gap.mean())
                else:
                    assert is_in_the_band(figure, panel, gap)


def is_in_the_band(figure: Figure, panel: int, height: float) -> bool:
    """Whether a height is in the band of what has no gap, where the axis says 0 and no decade is."""
    axis = figure.axes[panel]
    (band,) = axis.patches
    low, high = sorted(band.get_extents().transformed(axis.transData.inverted()).intervaly)
    ticks = dict(zip(axis.get_yticks(), (text.get_text() for text in axis.get_yticklabels()), strict=True))
    assert [text for tick, text in ticks.items() if low <= tick <= high] == ["0"]
    return bool(low < height < high)


def zeros(folder: Path, energies: dict[str, tuple[float, float]]) -> Figure:
    """A run of one instance whose best known energy is 2, at two limits."""
    rows = [
        row("a", solver, energy, limit)
        for solver, both in energies.items()
        for limit, energy in zip((0.1, 1.0), both, strict=True)
    ]
    found = results(folder, [instance("a", best=2.0)], rows)
    return run_plots.anytime(found, classes_in(found))


def test_curves_without_a_gap_run_side_by_side_in_a_place_of_their_own(tmp_path: Path) -> None:
    figure = zeros(
        tmp_path, {"one": (2.0, 2.0), "two": (2.0, 2.0), "late": (2.5, 2.0), "near": (2.0 + 1e-6, 2.0 + 1e-6)}
    )
    drawn = {solver: ys for solver, (_, ys) in curves(figure, 0).items()}
    heights = [drawn["one"][0], drawn["two"][0], drawn["late"][1], drawn["near"][0]]
    assert len(set(heights)) == 4
    assert all(is_in_the_band(figure, 0, height) for height in heights)  # half of what counts as success, too
    assert drawn["late"][0] == pytest.approx(25.0)
    assert not is_in_the_band(figure, 0, 25.0)


def test_where_nobody_has_a_gap_the_axis_still_says_where_gaps_would_be(tmp_path: Path) -> None:
    figure = zeros(tmp_path, {"one": (2.0, 2.0), "two": (2.0, 2.0)})
    assert all(is_in_the_band(figure, 0, height) for _, ys in curves(figure, 0).values() for height in ys)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0", "$10^{0}$"]
    assert axis.get_ylim()[0] < axis.get_yticks()[0] < axis.get_yticks()[1] < axis.get_ylim()[1]


def test_without_a_zero_there_is_no_place_for_it(tmp_path: Path) -> None:
    (axis,) = zeros(tmp_path, {"one": (2.5, 2.2), "two": (3.0, 3.0)}).axes
    assert not axis.patches
    assert "0" not in [text.get_text() for text in axis.get_yticklabels()]


def test_of_curves_that_lie_on_one_another_the_lower_one_is_the_wider(tmp_path: Path) -> None:
    figure = zeros(tmp_path, {"one": (3.0, 2.5), "two": (3.0, 2.5), "three": (3.0, 2.51), "other": (3.0, 2.1)})
    lines = {name_of(line.get_label()): line for line in figure.axes[0].get_lines()}
    widths = [lines[name].get_linewidth() for name in ("one", "two", "three", "other")]
    assert widths[0] > widths[1] > widths[2] == widths[3]  # one point in common hides nothing
    orders = [lines[name].get_zorder() for name in ("one", "two", "three", "other")]
    assert orders == sorted(orders)
    assert lines["one"].get_markersize() > lines["two"].get_markersize()
    # the legend shows all alike
    (legend,) = figure.legends
    assert len({handle.get_linewidth() for handle in legend.get_lines()}) == 1


def test_sizes_have_a_panel_for_each_hessian(found: Results) -> None:
    figure = run_plots.by_size(found)
    assert [axis.get_title() for axis in figure.axes] == ["gram", "fisher"]
    assert curves(figure, 0)["random+swaps"] == ([8], [pytest.approx(2.5)])
    sizes, gaps = curves(figure, 1)["<weak> & $co"]
    assert (sizes, gaps) == ([64, 96], [pytest.approx(7.5), pytest.approx(7.5)])
    assert curves(figure, 1)["good"][0] == [64]


def test_distributions_are_those_of_the_metrics(found: Results) -> None:
    figure = run_plots.distributions(found)
    for panel, points in ((0, found.ecdf), (1, found.profile)):
        drawn = curves(figure, panel)
        for solver in SOLVERS:
            expected = points(solver)
            assert (solver in drawn) == bool(expected)
            if expected:
                for coordinates, wanted in zip(drawn[solver], zip(*expected, strict=True), strict=True):
                    assert coordinates == pytest.approx(list(wanted))
    assert found.profile("wanda+swaps")
    assert not found.profile("<weak> & $co")


def test_baselines_are_grey_and_others_have_a_colour_of_their_own(found: Results) -> None:
    figure = run_plots.anytime(found, classes_in(found))
    looks = {name_of(line.get_label()): (line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(set(looks.values())) == len(SOLVERS)
    assert {looks[name][0] for name in SOLVERS[:2]} == {"0.25", "0.6"}
    assert {looks[name][0] for name in SOLVERS[2:]} <= set(PALETTE)


def test_one_legend_names_every_solver_once(found: Results) -> None:
    for figure in (run_plots.anytime(found, classes_in(found)), run_plots.by_size(found)):
        (legend,) = figure.legends
        assert sorted(name_of(text.get_text()) for text in legend.get_texts()) == sorted(SOLVERS)


def test_a_picture_is_one_element_and_the_same_again(found: Results) -> None:
    text = run_plots.svg(run_plots.by_size(found))
    assert text == run_plots.svg(run_plots.by_size(found))
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"<weak> & $co", "good", "fisher"} <= words


def test_many_solvers_can_be_told_apart(tmp_path: Path) -> None:
    rows = [row("a", f"solver {place:02d}", 2.0 + place / 10) for place in range(23)]
    found = results(tmp_path, [instance("a")], rows)
    (axis,) = run_plots.anytime(found, classes_in(found)).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.get_lines()}) == 23


def test_a_run_in_which_nobody_solves_anything_is_drawn(tmp_path: Path) -> None:
    found = results(tmp_path, [instance("a")], [row("a", "wanda+swaps", 3.0)])
    for figure in (
        run_plots.anytime(found, classes_in(found)),
        run_plots.by_size(found),
        run_plots.distributions(found),
    ):
        assert run_plots.svg(figure).startswith("<svg")


def test_each_picture_draws_in_the_axes_that_it_is_given(found: Results) -> None:
    figure = Figure(layout="constrained")
    axes = figure.subplots(1, 4)
    assert run_plots.gap_against_limit(found, ax=axes[0]) is axes[0]
    assert run_plots.gap_against_size(found, "gram", ax=axes[1]) is axes[1]
    assert run_plots.gap_distribution(found, ax=axes[2]) is axes[2]
    assert run_plots.performance_profile(found, ax=axes[3]) is axes[3]
    assert all(axis.get_lines() and axis.get_xlabel() and axis.get_ylabel() for axis in axes)
    assert len(figure.axes) == 4
