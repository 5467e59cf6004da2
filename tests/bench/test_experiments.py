"""Methods on a small model with true labels, and what an experiment tells of them."""

from __future__ import annotations

import csv
import html
import json
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import digits
import pytest
import torch
from torch import nn

from qubo_prune.bench.experiments import METHODS, Experiment, Score, Workload, magnitude_masks, run
from qubo_prune.bench.networks import accuracy_and_loss
from qubo_prune.data import Samples
from qubo_prune.errors import InputError
from qubo_prune.masks import Pattern
from qubo_prune.models.layers import find_layers
from qubo_prune.tables import rendered


class Digits(Workload):
    """A 64-32-10 network on handwritten digits."""

    name = "digits"
    loss_settings: ClassVar[Mapping[str, Any]] = {
        "block_size": 64,
        "blocks_per_step": 2,
        "samples": 300,
        "scoring_samples": 300,
        "max_samples": 600,
    }

    def __init__(self) -> None:
        self.scored: list[dict[str, torch.Tensor]] = []

    @property
    def train(self) -> Samples:
        return digits.digits()[0]

    def model(self, seed: int) -> nn.Module:
        return digits.reader()

    def score(self, model: nn.Module) -> Score:
        self.scored.append({layer.name: layer.matrix() != 0 for layer in find_layers(model)})
        accuracy, loss = accuracy_and_loss(model, digits.digits()[1])
        return Score(loss, accuracy)


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return run(Digits(), METHODS, [0.2, 0.3], [0], {"max_blocks": 6}, marks=(2, 3, 100))


def outcome(experiment: Experiment, method: str, density: float | None = None) -> Any:
    (found,) = experiment.of(method, density)
    return found


def test_every_method_and_density_has_its_outcome(experiment: Experiment) -> None:
    asked = [(o.method, o.asked) for o in experiment.outcomes]
    assert asked == [("dense", 1.0), *((method, density) for density in (0.2, 0.3) for method in METHODS)]
    assert experiment.densities == [0.3, 0.2]
    dense = outcome(experiment, "dense")
    assert dense.score == Digits().score(digits.reader())
    for o in experiment.outcomes[1:]:
        # each layer keeps its whole number of weights
        assert o.density == (round(o.asked * 2048) + round(o.asked * 320)) / 2368
        assert o.score.loss > dense.score.loss
        assert o.cpu_seconds > 0
        assert 0 < o.seconds < 60
        assert (o.trace is None) == (not o.curve) == (o.method not in ("icbs", "icbs-paper"))
    for density in (0.2, 0.3):
        accuracy = {method: outcome(experiment, method, density).score.accuracy for method in METHODS}
        assert accuracy["magnitude"] < accuracy["icbs"]
        assert accuracy["magnitude"] < accuracy["gram"]


@pytest.mark.parametrize("method", ["icbs", "icbs-paper"])
def test_curves_go_from_the_warm_start_step_by_step(experiment: Experiment, method: str) -> None:
    start, end = outcome(experiment, "magnitude", 0.2), outcome(experiment, method, 0.2)
    curve = end.curve
    assert (curve[0].blocks, curve[0].seconds, curve[0].score) == (0, 0.0, start.score)
    assert len(curve) == len(end.trace.steps) + 1
    for point, step in zip(curve[1:], end.trace.steps, strict=True):
        assert point.seconds == step.seconds
    blocks = [point.blocks for point in curve]
    assert blocks == ([0, 2, 4, 6] if method == "icbs" else list(range(7)))
    seconds = [point.seconds for point in curve]
    assert seconds == sorted(seconds)
    # the warm start is part of the price
    assert end.seconds > start.seconds
    assert end.after(3) is curve[2 if method == "icbs" else 3]
    assert end.after(0) is curve[0]
    assert end.after(7) is None


def test_the_papers_settings_are_its_own(experiment: Experiment) -> None:
    own, published = (outcome(experiment, method, 0.2).trace.steps for method in ("icbs", "icbs-paper"))
    assert {step.weights for step in own} <= {128}
    assert {step.outcome for step in published} <= {"accepted", "idle"}
    assert max(step.weights for step in published) > 128
    assert {step.caution for step in published} == {0.0}


def test_the_gap_is_shared_out_between_magnitude_and_dense(experiment: Experiment) -> None:
    dense, low = (outcome(experiment, "dense").score, outcome(experiment, "magnitude", 0.2).score)
    assert experiment.recovered(dense, 0.2, 0) == 1
    assert experiment.recovered(low, 0.2, 0) == 0
    middle = Score(1.0, (dense.accuracy + 3 * low.accuracy) / 4)
    assert experiment.recovered(middle, 0.2, 0) == pytest.approx(0.25)
    assert experiment.recovered(outcome(experiment, "icbs", 0.2).score, 0.2, 0) > 0.2
    # of another density or seed there is no magnitude pruning
    assert math.isnan(experiment.recovered(middle, 0.7, 0))
    assert math.isnan(experiment.recovered(middle, 0.2, 1))


def test_losses_share_the_gap_where_the_metric_is_the_perplexity(experiment: Experiment) -> None:
    other = Experiment("digits", "perplexity", experiment.outcomes)
    dense, low = (outcome(experiment, "dense").score, outcome(experiment, "magnitude", 0.2).score)
    assert other.recovered(Score((dense.loss + low.loss) / 2), 0.2, 0) == pytest.approx(0.5)
    assert other.quality(Score(2.0)) == pytest.approx(math.exp(2))
    assert Score(1e9).perplexity < math.inf
    assert f"{math.exp(dense.loss):.3f}" in str(other)


def test_rows_are_those_of_the_marks_and_the_end(experiment: Experiment) -> None:
    rows = [(method, density, blocks) for method, density, blocks, _ in experiment.lines()]
    ends = {"icbs": [2, 3, 6], "icbs-paper": [2, 3, 6]}
    expected = [
        (method, density, mark) for density in (0.3, 0.2) for method in METHODS for mark in ends.get(method, [0])
    ]
    assert rows == expected
    for method, density, blocks, entries in experiment.lines():
        ((found, score, seconds, cpu),) = entries
        assert found is outcome(experiment, method, density)
        at = found.after(blocks) if blocks in (2, 3) else None
        assert (score, seconds) == ((at.score, at.seconds) if at else (found.score, found.seconds))
        assert math.isnan(cpu) == (at is not None)


@pytest.mark.parametrize("width", [80, 95, 110])
def test_tables_fit_terminals(experiment: Experiment, width: int) -> None:
    text = rendered(experiment.table(), width)
    assert max(map(len, text.splitlines())) <= width
    assert width < 90 or "…" not in text
    words = " ".join(text.split())
    for word in ("digits", "method", "density", "blocks", "accuracy", "of the gap", "loss", "seconds", "CPU s"):
        assert word in words
    for label in ("dense", "magnitu", "Wanda", "Gram", "iCBS"):
        assert label in words
    assert "0.2002" in words
    assert f"{100 * outcome(experiment, 'icbs', 0.2).score.accuracy:.2f} %" in words
    assert "mean of 1 seed;" in words


def test_lost_and_cut_blocks_stand_below_the_table(experiment: Experiment) -> None:
    assert experiment.warnings() == []
    warned = replace(experiment.outcomes[-1], warnings=("The clock cut 3 of 3 blocks of anneal.",), all_lost=True)
    found = replace(experiment, outcomes=(*experiment.outcomes[:-1], warned))
    (said,) = found.warnings()
    assert said.endswith(f"density {warned.asked:g}, seed 0: The clock cut 3 of 3 blocks of anneal.")
    assert said in " ".join(str(found).split())
    assert said in html.unescape(found._repr_html_())
    assert found.all_lost > experiment.all_lost


def test_a_method_whose_blocks_are_cut_says_so(tmp_path: Path) -> None:
    """Annealing, with a clock that leaves it no time."""
    settings = {"max_blocks": 2, "block_time": 1e-4, "solver": "anneal"}
    found = run(Digits(), ["magnitude", "icbs"], [0.2], [0], settings)
    assert any("The clock cut 2 of 2 blocks of anneal" in said for said in found.warnings())


def test_what_is_saved(experiment: Experiment, tmp_path: Path) -> None:
    experiment.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".qubo-prune.json",
        "curves.csv",
        "curves.png",
        "results.json",
        "table.txt",
    ]
    assert (tmp_path / "out/table.txt").read_text() == f"{experiment}\n"
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out/curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    points = [(o, point) for o in experiment.outcomes for point in o.curve]
    assert len(rows) == len(points) == 2 * (4 + 7)
    for row, (o, point) in zip(rows, points, strict=True):
        assert (row["method"], float(row["density"]), int(row["seed"])) == (o.method, o.asked, o.seed)
        assert (int(row["blocks"]), float(row["seconds"])) == (point.blocks, point.seconds)
        assert (float(row["loss"]), float(row["accuracy"])) == (point.score.loss, point.score.accuracy)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    data = json.loads((tmp_path / "out/results.json").read_text(), parse_constant=refuse)
    assert (data["name"], data["metric"], data["settings"]) == ("digits", "accuracy", {"max_blocks": 6})
    assert len(data["outcomes"]) == len(experiment.outcomes)
    icbs = next(o for o in data["outcomes"] if o["method"] == "icbs" and o["asked"] == 0.2)
    assert icbs["score"]["accuracy"] == outcome(experiment, "icbs", 0.2).score.accuracy
    assert len(icbs["trace"]["steps"]) == 3
    assert len(icbs["curve"]) == 4


class Varied(Digits):
    """Another network for each seed."""

    def model(self, seed: int) -> nn.Module:
        model = super().model(seed)
        with torch.no_grad():
            next(model.parameters()).mul_(1 + seed / 10)
        return model


@pytest.fixture(scope="module")
def varied() -> Experiment:
    return run(Varied(), ["magnitude", "icbs", "icbs-paper"], [0.2], [0, 1, 2], {"max_blocks": 4}, marks=(2,))


def test_means_and_deviations_are_those_of_the_seeds(varied: Experiment) -> None:
    text = " ".join(rendered(varied.table(), 120).split())
    assert [(row["method"], row["blocks"], row["seeds"]) for row in varied.means()] == [
        ("magnitude", 0, 3),
        ("icbs", 2, 3),
        ("icbs", 4, 3),
        ("icbs-paper", 2, 3),
        ("icbs-paper", 4, 3),
    ]
    for row in varied.means():
        found = varied.of(row["method"])
        if row["blocks"] == 2:
            scores = [next(p.score for p in o.curve if p.blocks == 2) for o in found]
        else:
            scores = [o.score for o in found]
        accuracies = [score.accuracy for score in scores]
        assert len(set(accuracies)) > 1
        gaps = [varied.recovered(score, 0.2, seed) for seed, score in enumerate(scores)]
        for name, values in (
            ("accuracy", accuracies),
            ("loss", [score.loss for score in scores]),
            ("recovered", gaps),
        ):
            assert row[name] == pytest.approx(statistics.fmean(values))
            assert row[f"{name}_deviation"] == pytest.approx(statistics.stdev(values))
        shown = f"{100 * statistics.fmean(accuracies):.2f} ±{100 * statistics.stdev(accuracies):.2f} %"
        gap = f"{100 * statistics.fmean(gaps):.1f} ±{100 * statistics.stdev(gaps):.1f} %"
        assert f"{shown} {gap}" in text
    assert "iCBS, paper's settings, our annealer" in text


def test_a_mean_curve_has_the_points_that_all_seeds_have(varied: Experiment) -> None:
    curves = [o.curve for o in varied.of("icbs-paper")]
    line = varied.mean_curve("icbs-paper", 0.2)
    assert [scores for _, scores in line] == [[curve[n].score for curve in curves] for n in range(5)]
    assert [at for at, _ in line] == pytest.approx([statistics.fmean(c[n].seconds for c in curves) for n in range(5)])
    (first, *rest) = varied.of("icbs-paper")
    shorter = replace(varied, outcomes=(replace(first, curve=first.curve[::2]), *rest))
    assert shorter.mean_curve("icbs-paper", 0.2) == [line[0], line[2], line[4]]
    assert varied.mean_curve("wanda", 0.2) == []


def test_scores_alone_have_no_curves(tmp_path: Path) -> None:
    result = run(Digits(), ["magnitude"], [0.5], [0, 1])
    assert [(o.method, o.seed) for o in result.outcomes] == [
        ("dense", 0),
        ("magnitude", 0),
        ("dense", 1),
        ("magnitude", 1),
    ]
    result.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".qubo-prune.json",
        "curves.csv",
        "results.json",
        "table.txt",
    ]
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == 1
    assert "mean ± standard deviation of 2 seeds;" in " ".join(str(result).split())


def test_a_warm_start_that_was_not_asked_for_is_made_but_not_told_of() -> None:
    workload = Digits()
    workload.warm_start = "gram"
    result = run(workload, ["icbs"], [0.2], [0], {"max_blocks": 2})
    assert [o.method for o in result.outcomes] == ["dense", "icbs"]
    (made,) = result.of("icbs")
    # dense, Gram blocks, one step, the end
    assert len(workload.scored) == 4
    asked = run(Digits(), ["gram"], [0.2], [0])
    assert made.curve[0].score == outcome(asked, "gram").score
    assert math.isnan(result.recovered(made.score, 0.2, 0))
    assert "nan" not in str(result)


def test_all_budgets_together_keep_their_total() -> None:
    workload = Digits()
    workload.together = True
    result = run(workload, ["magnitude", "icbs"], [0.2], [0], {"max_blocks": 6})
    start, end = outcome(result, "magnitude"), outcome(result, "icbs")
    masks = magnitude_masks(workload, digits.reader(), 0.2)
    kept = [int(mask.sum()) for mask in masks.values()]
    assert sum(kept) == round(0.2 * 2368)
    assert kept != [round(0.2 * 2048), round(0.2 * 320)]
    magnitude, *steps, last = workload.scored[1:]
    assert all(torch.equal(masks[f"{name}.weight"], mask) for name, mask in magnitude.items())
    assert {sum(int(mask.sum()) for mask in held.values()) for held in (*steps, last)} == {sum(kept)}
    assert [int(mask.sum()) for mask in last.values()] != kept
    assert end.density == sum(kept) / 2368
    assert end.curve[0].score == start.score
    assert end.score.accuracy > start.score.accuracy


def test_layers_that_are_excluded_stay_dense() -> None:
    class Partly(Digits):
        excluded = ("2",)

    workload = Partly()
    result = run(workload, METHODS, [0.3], [0], {"max_blocks": 2})
    for held in workload.scored:
        assert bool(held["2"].all())
    pruned = workload.scored[1:]
    assert all(Pattern("layer").violations(held["0"], 0.3) == 0 for held in pruned)
    assert {round(o.density, 3) for o in result.outcomes[1:]} == {0.3}


def test_scoring_takes_none_of_a_methods_time() -> None:
    class Slow(Digits):
        def score(self, model: nn.Module) -> Score:
            time.sleep(0.3)
            return super().score(model)

    result = run(Slow(), ["magnitude", "icbs"], [0.2], [0], {"max_blocks": 6})
    began = time.perf_counter()
    quick = run(Digits(), ["magnitude", "icbs"], [0.2], [0], {"max_blocks": 6})
    allowed = time.perf_counter() - began + 0.5
    # four scores would be 1.2 seconds
    assert outcome(result, "icbs").seconds < allowed
    assert outcome(result, "icbs").curve[-1].seconds < allowed
    assert outcome(result, "icbs").score == outcome(quick, "icbs").score


def test_the_time_limit_is_that_of_each_pruning() -> None:
    result = run(Digits(), ["magnitude", "icbs"], [0.2], [0], {"max_blocks": 10**6}, max_time="2s")
    made = outcome(result, "icbs")
    assert made.trace.stopped == "The time was over." or "brought nothing" in made.trace.stopped
    assert made.trace.blocks < 10**6
    # a busy machine may not get to the first step
    better = made.score.accuracy > outcome(result, "magnitude").score.accuracy
    assert better == any(step.outcome in ("accepted", "halved") for step in made.trace.steps)


@pytest.mark.parametrize(
    ("methods", "settings", "message"),
    [
        (["magnitud"], {}, r"no method 'magnitud' \(did you mean 'magnitude'\?\); use some of magnitude, wanda, gram"),
        (["icbs"], {"blocksize": 3}, r"no setting 'blocksize'.*\(did you mean 'block_size'"),
    ],
)
def test_what_cannot_be_compared(methods: list[str], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(Digits(), methods, [0.2], [0], settings)


def test_density_one_closes_the_gap() -> None:
    assert outcome(run(Digits(), ["magnitude"], [1.0], [0]), "magnitude").density == 1.0
