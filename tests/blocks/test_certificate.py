"""A layer's proven bound and its blocks' proven optima, against enumeration of masks."""

from __future__ import annotations

import itertools
import json
from dataclasses import astuple
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from qubo_prune import InputError, prune
from qubo_prune.blocks.certificate import SAMPLED_ROWS, BlockOptima, block_optima, least_error
from qubo_prune.hessian import Gram
from qubo_prune.masks import Pattern, keep_highest
from qubo_prune.report import Report


def layer(rows: int = 3, d: int = 6, groups: int = 1, seed: int = 4) -> tuple[Tensor, Gram]:
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(groups, 50, d, generator=draw, dtype=torch.float64) @ torch.randn(
        d, d, generator=draw, dtype=torch.float64
    )
    matrix = 2 / 50 * inputs.mT @ inputs
    return torch.randn(rows, d, generator=draw), Gram(matrix if groups > 1 else matrix[0], 50)


def least(weight: Tensor, gram: Gram, pattern: Pattern, density: float) -> float:
    """The least error over all masks of the pattern."""
    best = torch.inf
    masks = torch.tensor(list(itertools.product([False, True], repeat=weight.numel()))).reshape(-1, *weight.shape)
    for keep in masks:
        if pattern.violations(keep, density) == 0:
            best = min(best, float(gram.output_error(weight * ~keep).sum()))
    return best


@pytest.mark.parametrize("kind", ["plain", "trace", "row"])
@pytest.mark.parametrize("pattern", ["row", "layer", "1:2"])
def test_no_mask_of_the_counts_is_below(pattern: str, kind: str) -> None:
    weight, gram = layer(rows=2, d=4)
    chosen = Pattern.parse(pattern)
    keep = keep_highest(weight.abs(), chosen, 0.5)
    found = least_error(weight, gram, keep, chosen, kind)
    assert 0 <= found <= least(weight, gram, chosen, 0.5)
    if kind == "row":
        assert found > 0.5 * least(weight, gram, chosen, 0.5)


def test_groups_of_a_convolution_are_bounded_apart() -> None:
    weight, gram = layer(rows=4, groups=2)
    row = Pattern.parse("row")
    keep = keep_highest(weight.abs(), row, 0.5)
    parts = [
        least_error(weight[2 * k : 2 * k + 2], part, keep[2 * k : 2 * k + 2], row)
        for k, part in enumerate(gram.parts())
    ]
    assert least_error(weight, gram, keep, row) == pytest.approx(sum(parts), rel=1e-2)


def error(row: Tensor, keep: Tensor, gram: Gram) -> float:
    """Output error of one row."""
    return float(gram.output_error((row * ~keep)[None])[0])


def flip_costs(row: Tensor, keep: Tensor, gram: Gram) -> list[float]:
    """What each weight costs pruned rather than kept, the others as they are."""
    costs = []
    for i in range(len(keep)):
        pruned, kept = keep.clone(), keep.clone()
        pruned[i], kept[i] = False, True
        costs.append(error(row, pruned, gram) - error(row, kept, gram))
    return costs


def borderline(row: Tensor, keep: Tensor, gram: Gram, of: int, size: int) -> list[int]:
    """The columns of a row's block, from one cost after another; ``of`` is 0 without groups."""
    costs, columns = flip_costs(row, keep, gram), range(len(keep))
    if of:

        def promise(group: int) -> float:
            members = columns[group * of : (group + 1) * of]
            return min(costs[i] for i in members if keep[i]) - max(costs[i] for i in members if not keep[i])

        chosen = sorted(range(len(keep) // of), key=promise)[: size // of]
        return [i for group in chosen for i in columns[group * of : (group + 1) * of]]
    kept = sorted((i for i in columns if keep[i]), key=lambda i: costs[i])[: size // 2]
    pruned = sorted((i for i in columns if not keep[i]), key=lambda i: -costs[i])[: size - size // 2]
    return [*kept, *pruned]


def best_row(row: Tensor, keep: Tensor, gram: Gram, of: int = 0, size: int | None = None) -> Tensor:
    """The mask of the least error of all that differ within the row's block and keep the counts of its groups."""
    block = torch.tensor(borderline(row, keep, gram, of, size or len(keep) * 2))
    best = keep
    for values in itertools.product([False, True], repeat=len(block)):
        other = keep.clone()
        other[block] = torch.tensor(values)
        same = torch.equal(other.reshape(-1, of or len(keep)).sum(1), keep.reshape(-1, of or len(keep)).sum(1))
        if same and error(row, other, gram) < error(row, best, gram):
            best = other
    return best


PATTERNS = [("row", 0), ("layer", 0), ("2:4", 4)]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("size", [4, 8, None])
@pytest.mark.parametrize(("pattern", "of"), PATTERNS)
def test_the_gain_of_blocks_is_the_enumerated_one(pattern: str, of: int, size: int | None, seed: int) -> None:
    weight, gram = layer(d=12 if size else 8, seed=seed)
    chosen = Pattern.parse(pattern)
    keep = keep_highest(weight.abs(), chosen, 0.5)
    bests = torch.stack([best_row(row, mask, gram, of, size) for row, mask in zip(weight, keep, strict=True)])
    found = block_optima(weight, gram, keep, chosen, **({} if size is None else {"size": size}))
    before, after = gram.output_error(weight * ~keep), gram.output_error(weight * ~bests)
    assert (found.blocks, found.skipped, found.proven) == (3, 0, 3)
    assert found.optimal == int((keep == bests).all(1).sum())
    assert found.gain == pytest.approx(float((before - after).sum()), rel=1e-9)
    assert found.row_error == pytest.approx(float(before.sum()))
    assert found.gain_share == found.gain / found.row_error


@pytest.mark.parametrize(("pattern", "of"), PATTERNS)
def test_a_mask_of_optimal_rows_has_nothing_to_gain(pattern: str, of: int) -> None:
    weight, gram = layer(d=8)
    chosen = Pattern.parse(pattern)
    keep = keep_highest(weight.abs(), chosen, 0.5)
    keep = torch.stack([best_row(row, mask, gram, of) for row, mask in zip(weight, keep, strict=True)])
    found = block_optima(weight, gram, keep, chosen)
    assert (found.blocks, found.proven, found.optimal, found.gain, found.gain_share) == (3, 3, 3, 0.0, 0.0)


def test_a_planted_exchange_is_what_there_is_to_gain() -> None:
    # without couplings the best mask prunes the smallest weights
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    gram = Gram(torch.eye(4, dtype=torch.float64), 10)
    keep = torch.tensor([[False, False, True, True], [False, True, False, True]])
    found = block_optima(weight, gram, keep, Pattern.parse("row"))
    assert (found.proven, found.optimal) == (2, 1)
    assert found.gain == pytest.approx((9 - 4) / 2)
    assert found.row_error == pytest.approx((1 + 4 + 1 + 9) / 2)


def test_inputs_that_are_never_there_and_groups_of_a_convolution() -> None:
    weight, gram = layer(rows=4, d=8, groups=2)
    gram.matrix[0, 2], gram.matrix[0, :, 2] = 0, 0
    row = Pattern.parse("row")
    keep = keep_highest(weight.abs(), row, 0.5)
    parts = [
        block_optima(weight[2 * k : 2 * k + 2], part, keep[2 * k : 2 * k + 2], row)
        for k, part in enumerate(gram.parts())
    ]
    assert astuple(block_optima(weight, gram, keep, row)) == pytest.approx(astuple(parts[0] + parts[1]))
    dead = Gram(torch.zeros(8, 8, dtype=torch.float64), 10)
    for pattern in ("row", "2:4"):
        assert block_optima(weight, dead, keep, Pattern.parse(pattern)) == BlockOptima(skipped=4)


def test_rows_that_hold_no_exchange_are_skipped() -> None:
    weight, gram = layer(rows=3, d=8)
    keep = keep_highest(weight.abs(), Pattern("layer"), 0.5)
    keep[0], keep[2] = True, False
    found = block_optima(weight, gram, keep, Pattern("layer"))
    assert (found.blocks, found.skipped) == (1, 2)
    whole = block_optima(weight, gram, torch.ones_like(keep), Pattern.parse("4:4"))
    assert whole == BlockOptima(skipped=3)
    assert whole.gain_share is None


def test_a_group_larger_than_a_block_is_one_all_the_same() -> None:
    weight, gram = layer(d=16)
    chosen = Pattern.parse("4:8")
    keep = keep_highest(weight.abs(), chosen, 0.5)
    assert block_optima(weight, gram, keep, chosen, size=4) == block_optima(weight, gram, keep, chosen, size=8)


def test_what_is_not_proven_in_time_is_no_optimum() -> None:
    weight, gram = layer(d=40)
    row = Pattern.parse("row")
    keep = keep_highest(weight.abs(), row, 0.5)
    assert block_optima(weight, gram, keep, row, seconds=1e-9) == BlockOptima(blocks=3)


def test_the_draw_of_rows_follows_the_seed() -> None:
    weight, gram = layer(rows=30)
    row = Pattern.parse("row")
    keep = keep_highest(weight.abs(), row, 0.5)
    first, again, other = (block_optima(weight, gram, keep, row, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.row_error != other.row_error
    assert first.blocks == other.blocks == SAMPLED_ROWS
    rows = gram.output_error(weight * ~keep).tolist()
    drawn = [sum(four) for four in itertools.combinations(rows, SAMPLED_ROWS)]
    assert min(abs(total - first.row_error) for total in drawn) < 1e-9 * first.row_error


@pytest.mark.gate(1)
@pytest.mark.parametrize("pattern", ["row", "layer", "2:4"])
def test_a_run_reports_what_was_proven(pattern: str) -> None:
    report = prune(tiny.llama(num_hidden_layers=1), tiny.tokens(), 0.5, pattern=pattern, certify="trace")
    assert all(0 < layer.least_error <= layer.error_after for layer in report.layers)
    assert 0 <= report.gap < 0.7
    assert report.gap == report.totals()["gap"]
    assert "proven: no masks of these counts" in " ".join(str(report).split())
    assert report.seconds["bounds"] > 0
    assert report.layers[0].to_dict()["gap"] == report.layers[0].gap
    without = prune(tiny.llama(num_hidden_layers=1), tiny.tokens(), 0.5, pattern=pattern)
    assert without.gap is None
    assert without.layers[0].gap is None
    assert without.block_optima is None
    assert without.layers[0].to_dict()["block_optima"] is without.totals()["block_optima"] is None
    assert "sampled blocks" not in str(without)


@pytest.mark.parametrize("pattern", ["row", "layer", "2:4"])
def test_a_run_reports_how_many_sampled_blocks_are_optimal(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # the bounds, tested above, take far longer than the blocks
    monkeypatch.setattr("qubo_prune.run.layerwise.least_error", lambda *_: 0.0)

    def run(method: str, seed: int = 0) -> Report:
        return prune(
            tiny.llama(num_hidden_layers=1),
            tiny.tokens(),
            0.5,
            pattern=pattern,
            method=method,
            certify="trace",
            seed=seed,
        )

    scored, searched = run("wanda"), run("gram")
    for report in (scored, searched):
        whole = report.block_optima
        assert whole is not None
        assert whole == sum((layer.block_optima or BlockOptima() for layer in report.layers), BlockOptima())
        assert whole.blocks + whole.skipped == SAMPLED_ROWS * len(report.layers)
        assert whole.optimal <= whole.proven == whole.blocks
        data = json.loads(json.dumps(report.to_dict()))
        assert data["totals"]["block_optima"] == whole.to_dict()
        assert data["layers"][0]["block_optima"]["gain_share"] == report.layers[0].block_optima.gain_share
        told = " ".join(str(report).split())
        assert f"optima were proven in {whole.blocks} of {whole.blocks} sampled blocks" in told
        assert f"the masks have {whole.optimal} of them" in told
    # the rows of these layers are no longer than a block, so that swaps leave little of them to gain
    assert searched.block_optima.gain_share < 0.5 * scored.block_optima.gain_share
    assert searched.block_optima.optimal > scored.block_optima.optimal
    other = run("wanda", seed=1)
    assert other.error_after == scored.error_after
    assert other.block_optima.row_error != scored.block_optima.row_error


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"certify": "trac"}, "did you mean 'trace'"),
        ({"certify": "trace", "method": "compensated"}, "'compensated'"),
        ({"certify": "trace", "method": "admm"}, "'admm'"),
        ({"certify": "trace", "update": "refit"}, "'refit'"),
        ({"certify": "trace", "method": "loss"}, "'loss'"),
    ],
)
def test_what_cannot_be_certified_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        prune(tiny.llama(), tiny.tokens(), 0.5, **settings)


def test_a_bound_that_needs_each_rows_counts_is_refused_with_one_budget_for_the_layer() -> None:
    with pytest.raises(InputError, match="'semidefinite' needs the counts of each row"):
        prune(tiny.llama(num_hidden_layers=1), tiny.tokens(), 0.5, pattern="layer", certify="semidefinite")
