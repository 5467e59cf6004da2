"""What blocks cost and bring, on a tiny language model."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch

from qubo_prune.bench.block_study import SWAPS, WANDA, BlockStudy, LeftOut, Point, default_layers, study_blocks
from qubo_prune.bench.solvers import Entrant
from qubo_prune.blocks.gram_rows import descend
from qubo_prune.blocks.rows import Descent
from qubo_prune.data.text import token_windows
from qubo_prune.errors import InputError
from qubo_prune.hessian import Gram
from qubo_prune.hessian.stream import Seconds, stream
from qubo_prune.masks import Pattern
from qubo_prune.methods.registry import choose
from qubo_prune.models.layers import Layer, find_layers
from qubo_prune.solver import Capabilities, Solver, SolveRequest, SolveResult, Status, single_answer
from qubo_prune.solver.registry import make_solver
from qubo_prune.tables import rendered

QAOA = "qaoa(layers=1, maxiter=5)"
#: They read the same input, so that neither sees what became of the other; 24 rows of 16 weights.
LAYERS = ["*.layers.1.self_attn.q_proj", "*.layers.1.self_attn.v_proj"]
ROWS = 24


@dataclass(frozen=True)
class OneCount(Solver):
    """Gives back where it began, and knows no groups."""

    capabilities: ClassVar[Capabilities] = Capabilities(groups=False, stochastic=False, anytime=True)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        assert request.warm_start is not None
        return single_answer(request.problem, request.warm_start, Status.FEASIBLE)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The arguments that name a tiny model and a text, and keep the passes small."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "text.txt").write_text(tiny.text(), encoding="utf-8")
    text = str(folder / "text.txt")
    return {
        "model": str(tiny.save(folder / "model")),
        "calibration": text,
        "text": text,
        "samples": 4,
        "eval_samples": 3,
        "sequence_length": 16,
        "max_time": None,
        "block_times": ["none"],
        "workers": 0,
        "include": LAYERS,
    }


@pytest.fixture(scope="module")
def study(sources: dict[str, Any]) -> BlockStudy:
    """With swaps over whole rows after the blocks."""
    return study_blocks(**sources | {"solvers": f"greedy,exact,{QAOA}", "sizes": [4, 8, 16], "row_swaps": True})


@pytest.fixture(scope="module")
def alone(sources: dict[str, Any]) -> BlockStudy:
    """As it is by default, nothing behind the blocks; with whole rows and seeds."""
    fickle = "qaoa(layers=1, maxiter=0, shots=2)"
    return study_blocks(**sources | {"solvers": f"exact,{fickle}", "sizes": [8, "row"], "seeds": 3, "seed": 5})


def without_times(point: Point) -> Point:
    return dataclasses.replace(point, block_seconds=0.0, search_seconds=0.0, seconds=0.0, seed=0)


def timeless(study: BlockStudy) -> list[Point]:
    """The points, but for what the clock said, and their seeds."""
    return [without_times(point) for point in study.points]


def test_every_combination_is_a_point_and_what_does_not_fit_is_named(study: BlockStudy) -> None:
    assert [(p.solver, p.block_size) for p in study.points] == [
        (WANDA, None),
        (SWAPS, None),
        ("greedy", 4),
        ("greedy", 8),
        ("greedy", 16),
        ("exact", 4),
        ("exact", 8),
        ("exact", 16),
        (QAOA, 4),
        (QAOA, 8),
    ]
    assert study.left_out == (LeftOut(QAOA, 16, "it takes at most 14 variables"),)
    assert study.absent() == [f"{QAOA} is left out at 16: it takes at most 14 variables."]
    assert study.solvers == ["greedy", "exact", QAOA]
    assert [p.block_size for p in study.of("exact")] == [4, 8, 16]
    assert study.layers == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")


def test_counts_are_exact(study: BlockStudy) -> None:
    wanda, swaps, *others = study.points
    assert (wanda.steps, wanda.accepted) == (0, 0)
    assert (swaps.steps, 0 < swaps.accepted <= ROWS) == (ROWS, True)
    for point in others:  # a block for each row, then the row
        assert point.steps == 2 * ROWS
        assert 0 < point.accepted <= point.steps
        assert (point.stopped_early, point.block_time) == (0, None)
        assert 0 < point.block_seconds <= point.search_seconds <= point.seconds
    for optimal in study.of("exact", 16):  # rows that are optimal have nothing to swap
        assert optimal.accepted <= ROWS


def test_errors_are_shares_of_wandas(study: BlockStudy) -> None:
    wanda, swaps, *others = study.points
    assert (wanda.block_error, wanda.layer_error) == (1.0, 1.0)
    assert swaps.block_error == swaps.layer_error < 1
    for point in others:
        assert point.layer_error <= point.block_error * (1 + 1e-6) <= 1 + 1e-6
    found = {(p.solver, p.block_size): p.block_error for p in others}
    for solver, size in found:  # blocks are the same for all, begin at the same mask and are not mended by swaps
        assert found["exact", size] <= found[solver, size] * (1 + 1e-6)
    rows = found["exact", 16]
    assert min(p.layer_error for p in study.points) == pytest.approx(rows)
    assert len({p.perplexity for p in study.points}) > 2
    assert all(math.isfinite(p.perplexity) for p in study.points)


def test_the_error_after_the_blocks_is_that_of_their_masks(study: BlockStudy, sources: dict[str, Any]) -> None:
    model = tiny.llama()
    layers, pattern = find_layers(model, LAYERS), Pattern.parse("row")
    windows = token_windows(tiny.tokenizer(), sources["calibration"], "calibration", 4, 16).tokens
    errors = {WANDA: 0.0, "exact": 0.0, "swaps": 0.0}

    def visit(layer: Layer, gram: Gram) -> None:
        weight = layer.matrix()
        keep = choose("wanda", weight, gram, pattern, 0.5, 0).keep
        settings = Descent(make_solver("exact"), 8, row_swaps=False)
        blocks = descend(weight, gram, keep, pattern, settings).keep
        after = descend(weight, gram, blocks, pattern, Descent(make_solver("greedy"), max_sweeps=0)).keep
        for name, mask in ((WANDA, keep), ("exact", blocks), ("swaps", after)):
            errors[name] += float(gram.output_error(weight * ~mask).sum())

    stream(model, layers, list(torch.split(windows, 1)), visit, Seconds())
    (point,) = study.of("exact", 8)
    assert study.wanda_error == pytest.approx(errors[WANDA], rel=1e-5)
    assert point.block_error == pytest.approx(errors["exact"] / errors[WANDA], rel=1e-5)
    assert point.layer_error == pytest.approx(errors["swaps"] / errors[WANDA], rel=1e-5)


@pytest.mark.slow
def test_a_study_is_the_same_for_the_same_seed(sources: dict[str, Any]) -> None:
    asked = sources | {"solvers": "qaoa(layers=1, maxiter=0, shots=2)", "sizes": [8]}
    first, again, other = (study_blocks(**asked, seed=seed) for seed in (1, 1, 2))
    assert timeless(first) == timeless(again)
    assert timeless(first)[:2] == timeless(other)[:2]  # the baselines draw nothing
    assert first.points[2].block_error != other.points[2].block_error


def test_every_point_begins_with_the_dense_weights(study: BlockStudy, sources: dict[str, Any]) -> None:
    other = study_blocks(**sources | {"solvers": "exact,greedy", "sizes": [16, 4], "row_swaps": True})
    for point in other.points:
        (same,) = (p for p in study.points if (p.solver, p.block_size) == (point.solver, point.block_size))
        assert without_times(same) == without_times(point)
    assert other.dense_perplexity == study.dense_perplexity


@pytest.mark.slow
def test_swaps_within_blocks_hide_what_a_solver_is_worth(sources: dict[str, Any]) -> None:
    asked = sources | {"solvers": "qaoa(layers=1, maxiter=0, shots=2)", "sizes": [8]}
    plain, polished = (study_blocks(**asked, polish=polish) for polish in (False, True))
    assert polished.points[2].block_error < 0.95 * plain.points[2].block_error
    assert any("worse than the warm start" in note for note in plain.points[2].notes)
    assert "swaps within them" in " ".join(str(polished).split())


def test_more_sweeps_are_more_blocks(study: BlockStudy, sources: dict[str, Any]) -> None:
    more = study_blocks(**sources | {"solvers": "exact", "sizes": [4], "row_swaps": True}, max_sweeps=5).points[2]
    once = study.of("exact", 4)[0]
    assert 2 * ROWS < more.steps <= 6 * ROWS
    assert more.block_error < once.block_error


def test_a_budget_that_is_used_up_leaves_wandas_masks(sources: dict[str, Any]) -> None:
    asked = sources | {"solvers": "greedy", "sizes": [8], "block_times": ["1ms", 10.0], "max_time": "1ms"}
    study = study_blocks(**asked)
    assert [p.block_time for p in study.points] == [None, None, 0.001, 10.0]
    for point in study.points[1:]:
        assert (point.steps, point.stopped_early, point.block_error, point.layer_error) == (0, 2, 1.0, 1.0)
        assert point.perplexity == study.points[0].perplexity
    assert "0*" in str(study)
    assert "the budget ended the search" in " ".join(str(study).split())
    assert re.findall(r"^greedy +8 +([\d.]+ \w+) ", str(study), flags=re.M) == ["1 ms", "10 s"]


def test_blocks_wider_than_some_layers_are_told(sources: dict[str, Any]) -> None:
    include = ["*.layers.1.self_attn.v_proj", "*.layers.1.mlp.down_proj"]
    study = study_blocks(**sources | {"solvers": "greedy", "sizes": [20], "include": include})
    assert study.points[2].notes == {"The layer has rows shorter than a block, which was the whole row there.": 1}


def test_solvers_of_one_count_take_no_blocks_of_several_groups(sources: dict[str, Any]) -> None:
    own = Entrant("own", f"{__name__}:OneCount", {})
    study = study_blocks(**sources | {"solvers": [own], "sizes": [4, 8]}, pattern="2:4")
    assert study.left_out == (
        LeftOut("own", 8, "it takes one count, and blocks of this size hold several groups of 2:4"),
    )
    (point,) = study.of("own")
    assert (point.block_error, point.steps) == (pytest.approx(1), ROWS)
    rows = study_blocks(**sources | {"solvers": [own, Entrant("exact", "exact", {})], "sizes": ["row"]}, pattern="2:4")
    assert rows.left_out == (
        LeftOut("own", "row", "it takes one count, and blocks of this size hold several groups of 2:4"),
    )


def test_nothing_follows_the_blocks_unless_asked(alone: BlockStudy) -> None:
    for point in alone.points[2:]:
        assert point.layer_error == pytest.approx(point.block_error, rel=1e-5)
        assert point.steps == ROWS
    assert alone.settings["row_swaps"] is False
    text = " ".join(str(alone).split())
    assert "at the end" not in text
    assert "after the blocks; ppl" in text


def test_whole_rows_are_a_size_of_their_own(alone: BlockStudy) -> None:
    assert [(p.solver, p.block_size, p.seed) for p in alone.points[2:8]] == [
        ("exact", size, seed) for size in (8, "row") for seed in (5, 6, 7)
    ]
    assert alone.settings["sizes"] == [8, "row"]
    (fickle,) = alone.left_out
    assert (fickle.block_size, fickle.reason) == ("row", "it takes at most 14 variables")
    best = alone.of("exact", "row")[0].block_error
    assert all(best <= point.block_error * (1 + 1e-6) for point in alone.points)
    assert alone.points[2].title == "exact, blocks of 8, none"
    assert alone.points[5].title == "exact, whole rows, none"


def test_seeds_are_told_with_their_deviation(alone: BlockStudy, tmp_path: Path) -> None:
    wanda, swaps, exact, rows, fickle = alone.means
    assert [len(mean.points) for mean in alone.means] == [1, 1, 3, 3, 3]
    assert exact.deviation("block_error") == rows.deviation("perplexity") == wanda.deviation("seconds") == 0
    values = [point.block_error for point in fickle.points]
    mean = sum(values) / 3
    assert fickle.of("block_error") == pytest.approx(mean)
    assert fickle.deviation("block_error") == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5)
    assert fickle.deviation("block_error") > 0
    alone.save(tmp_path / "study")
    with (tmp_path / "study" / "means.csv").open(encoding="utf-8") as file:
        told = list(csv.DictReader(file))
    assert [row["solver"] for row in told] == [mean.solver for mean in alone.means]
    assert [float(row["block_error_deviation"]) for row in told] == [m.deviation("block_error") for m in alone.means]
    assert json.loads((tmp_path / "study" / "results.json").read_text())["means"] == [m.to_dict() for m in alone.means]
    table = str(alone)
    assert f"{fickle.of('block_error'):.4f} ±{fickle.deviation('block_error'):.4f}" in table
    assert "standard deviation over 3 seeds" in " ".join(table.split())
    assert max(map(len, rendered(alone.table(), 80).splitlines())) <= 80
    assert swaps.to_dict()["seeds"] == 1


def test_the_files_hold_the_points(study: BlockStudy, tmp_path: Path) -> None:
    study.save(tmp_path / "study")
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == [
        ".qubo-prune.json",
        "means.csv",
        "points.csv",
        "results.json",
        "study.png",
        "table.txt",
    ]
    saved = json.loads((tmp_path / "study" / "results.json").read_text(encoding="utf-8"))
    assert saved == json.loads(json.dumps(study.to_dict()))
    assert len(saved["points"]) == len(study.points)
    assert saved["settings"]["sizes"] == [4, 8, 16]
    assert saved["settings"]["held_out"]["tokens"] == 3 * 15
    assert saved["machine"]["processor"]
    with (tmp_path / "study" / "points.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [f.name for f in fields(Point)]
    assert [float(row["layer_error"]) for row in rows] == [p.layer_error for p in study.points]
    table = (tmp_path / "study" / "table.txt").read_text(encoding="utf-8")
    assert table == f"{study}\n"
    assert max(map(len, table.splitlines())) <= 80
    assert f"{QAOA} is left out at 16" in table
    assert (tmp_path / "study" / "study.png").stat().st_size > 10_000


def test_the_picture_names_solvers_sizes_and_baselines(study: BlockStudy, tmp_path: Path) -> None:
    study.plot(tmp_path / "study.svg")
    content = (tmp_path / "study.svg").read_text(encoding="utf-8")
    for name in ("greedy", "exact", QAOA, WANDA, SWAPS, "block of 4", "block of 16", "seconds of the blocks"):
        assert f"<!-- {name} -->" in content


def test_the_picture_of_blocks_alone_names_whole_rows_and_has_bars(alone: BlockStudy, tmp_path: Path) -> None:
    alone.plot(tmp_path / "study.svg")
    content = (tmp_path / "study.svg").read_text(encoding="utf-8")
    for name in ("exact", SWAPS, "block of 8", "whole rows", "seconds of the search", "perplexity"):
        assert f"<!-- {name} -->" in content
    assert "seconds of the blocks" not in content
    assert content.count('id="LineCollection') >= 2


def test_a_perplexity_without_bound_is_null_and_leaves_the_picture_whole(study: BlockStudy, tmp_path: Path) -> None:
    lost = dataclasses.replace(study, points=tuple(dataclasses.replace(p, perplexity=math.inf) for p in study.points))
    lost.save(tmp_path)
    data = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {point["perplexity"] for point in data["points"]} == {None}


def test_the_layers_that_are_taken_by_default() -> None:
    names = [layer.name for layer in default_layers(tiny.llama(num_hidden_layers=3))]
    assert names == [
        *(f"model.layers.1.self_attn.{which}_proj" for which in "qkvo"),
        "model.layers.1.mlp.down_proj",
    ]
    assert len(default_layers(tiny.mlp())) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"solvers": "gredy"}, "did you mean 'greedy'"),
        ({"solvers": "tabu(start=2)"}, "did you mean 'starts'"),
        ({"solvers": "qaoa(layers=0)"}, "setting layers of the solver 'qaoa' is 0; a whole number from 1"),
        ({"solvers": ""}, "No solver is given"),
        ({"solvers": "greedy,greedy"}, "The solver 'greedy' is given twice"),
        ({"sizes": [1]}, "block_size is 1"),
        ({"sizes": []}, "at least; name one of each"),
        ({"sizes": [8, 8]}, "The block size 8 is given twice"),
        ({"sizes": ["rows"]}, "block_size is 'rows' .*'row' for whole rows"),
        ({"seeds": 0}, "seeds is 0"),
        (
            {"solvers": "qaoa", "sizes": [64, 128]},
            r"\(qaoa at 64: it takes at most 14 variables; qaoa at 128: .*\); give other sizes",
        ),
        ({"block_times": ["soon"]}, "The time 'soon' is not understood"),
        ({"block_times": ["10ms", 0.01]}, "limit per block 0.01 is given twice"),
        ({"max_time": "-1s"}, "The time '-1s' is not understood"),
        ({"max_sweeps": 0}, "max_sweeps is 0"),
        ({"density": 1.5}, "density is 1.5"),
        ({"pattern": "rows"}, "There is no pattern 'rows'"),
        ({"pattern": "2:4", "sizes": [2]}, "holds no group of 2:4"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_loaded(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        study_blocks("no-such/model", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [4, 20]}, "A block of 20 fits no layer: of the 2 to prune, the widest has 16 inputs"),
        ({"include": ["*.nothing"]}, "matches none of the 14 prunable layers"),
        ({"solvers": "qaoa", "sizes": ["row"]}, r"\(qaoa at row: it takes at most 14 variables\); give other sizes"),
        ({"samples": 4000}, "give more text"),
        ({"sequence_length": 100}, "takes at most 64 tokens"),
    ],
)
def test_what_the_model_does_not_take_is_told_before_it_runs(
    sources: dict[str, Any], monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("qubo_prune.bench.block_study.perplexity", pytest.fail)
    with pytest.raises(InputError, match=message):
        study_blocks(**sources | {"solvers": "greedy", "sizes": [4]} | arguments)
