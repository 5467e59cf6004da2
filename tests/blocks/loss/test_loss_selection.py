"""Pairs and blocks, held against sorting by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from qubo_prune.blocks.loss.selection import Block, Pairs, Pool, Tabu, best_pairs, flip_costs, salience_costs
from qubo_prune.hessian.gradients import Moments
from qubo_prune.masks import Pattern, keep_highest
from qubo_prune.models.layers import Layer

PATTERNS = ["row", "layer", "2:4"]


def state(d_out: int, d_in: int, pattern: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct costs of both signs, a mask at half density, and which weights may take part."""
    generator = torch.Generator().manual_seed(seed)
    costs = torch.randn(d_out, d_in, generator=generator)
    keep = keep_highest(torch.rand(d_out, d_in, generator=generator), Pattern.parse(pattern), 0.5)
    return costs, keep, torch.rand(d_out, d_in, generator=generator) < 0.7


def group_of(place: int, d_in: int, pattern: str) -> int:
    return {"layer": 0, "row": place // d_in, "2:4": place // 4}[pattern]


def pairs_by_hand(
    costs: Tensor, keep: Tensor, eligible: Tensor, pattern: str, most: int
) -> list[tuple[float, int, int, int]]:
    """(cost, kept, pruned, group), cheapest first: in each group the k-th best of one kind with that of the other."""
    sides: dict[tuple[int, bool], list[tuple[float, int]]] = {}
    for place, (cost, kept, free) in enumerate(
        zip(costs.flatten().tolist(), keep.flatten().tolist(), eligible.flatten().tolist(), strict=True)
    ):
        if free:
            sides.setdefault((group_of(place, costs.shape[1], pattern), kept), []).append((cost, place))
    found = []
    for group in {group for group, _ in sides}:
        best = zip(sorted(sides.get((group, True), [])), sorted(sides.get((group, False), [])), strict=False)
        found += [(a + b, kept, pruned, group) for (a, kept), (b, pruned) in best]
    return sorted(found)[:most]


@pytest.mark.parametrize("most", [1, 3, 7, 1000])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pairs_are_the_cheapest_of_the_best_of_every_group(pattern: str, most: int) -> None:
    for seed in range(3):
        costs, keep, eligible = state(5, 12, pattern, seed)
        found = best_pairs(costs, keep, eligible, Pattern.parse(pattern), most)
        expected = pairs_by_hand(costs, keep, eligible, pattern, most)
        assert len(found) == len(expected) > 0
        assert found.kept.tolist() == [kept for _, kept, _, _ in expected]
        assert found.pruned.tolist() == [pruned for _, _, pruned, _ in expected]
        assert found.group.tolist() == [group for *_, group in expected]
        assert found.cost.tolist() == pytest.approx([cost for cost, *_ in expected], abs=1e-6)
        assert torch.equal(found.prune_cost, costs.flatten()[found.kept])
        assert torch.equal(found.restore_cost, costs.flatten()[found.pruned])
        assert keep.flatten()[found.kept].all()
        assert not keep.flatten()[found.pruned].any()
        assert eligible.flatten()[found.kept].all()
        assert eligible.flatten()[found.pruned].all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_where_one_kind_is_missing_there_are_no_pairs(pattern: str) -> None:
    costs, keep, _ = state(3, 8, pattern)
    everything = torch.ones_like(keep)
    for kept, free in ((everything, everything), (~everything, everything), (keep, ~everything), (keep, keep)):
        assert len(best_pairs(costs, kept, free, Pattern.parse(pattern), 5)) == 0
    # one group alone
    free = torch.zeros_like(keep)
    free[1, 4:] = True
    found = best_pairs(costs, keep, free, Pattern.parse(pattern), 5)
    assert set(found.kept.tolist() + found.pruned.tolist()) <= {12, 13, 14, 15}
    assert len(found) == min(int((free & keep).sum()), int((free & ~keep).sum()))


def test_taking_some_pairs_and_what_they_gain() -> None:
    costs, keep, eligible = state(4, 8, "row")
    pairs = best_pairs(costs, keep, eligible, Pattern("row"), 9)
    some = pairs.take(torch.tensor([4, 1]))
    assert some.kept.tolist() == [int(pairs.kept[4]), int(pairs.kept[1])]
    assert some.cost.tolist() == [float(pairs.cost[4]), float(pairs.cost[1])]
    assert pairs.take(slice(2, 5)).pruned.tolist() == pairs.pruned[2:5].tolist()
    assert some.best(1).kept.tolist() == [int(pairs.kept[1])]
    assert len(pairs.best(100)) == len(pairs)
    assert pairs.gain == pytest.approx(-sum(cost for cost in pairs.cost.tolist() if cost < 0), rel=1e-6)
    assert pairs.gain > 0
    assert pairs.take(pairs.cost > 0).gain == 0


def moments_of(each: Tensor) -> Moments:
    """Moments of per-sample gradients, with inputs and returning gradients that tell their place."""
    _, d_out, d_in = each.shape
    read, returned = torch.arange(1.0, d_in + 1)[None] / 10, torch.arange(1.0, d_out + 1)
    return Moments(each.mean(0), each.square().mean(0), len(each), read, returned)


@pytest.mark.parametrize(
    ("caution", "scale", "damping"), [(0.0, 1.0, 0.0), (1.5, 1.0, 0.0), (2.0, 0.75, 0.0), (1.0, 1.0, 3.0)]
)
def test_flip_costs_are_the_model_of_one_flip_and_its_price(caution: float, scale: float, damping: float) -> None:
    generator = torch.Generator().manual_seed(4)
    each, value = torch.randn(9, 3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    keep = torch.rand(3, 4, generator=generator) < 0.5
    found = flip_costs(moments_of(each), value, keep, caution, scale, damping)
    for row in range(3):
        for column in range(4):
            g, u = each[:, row, column].double(), float(value[row, column])
            delta = -u if keep[row, column] else u
            price = caution * float((g * u).std(unbiased=False)) / 3
            curvature = float(g.square().mean()) + damping * (row + 1) * (column + 1) / 10
            expected = scale * float(g.mean()) * delta + curvature * delta**2 / 2 + price
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_salience_takes_the_lowest_kept_and_the_highest_pruned() -> None:
    generator = torch.Generator().manual_seed(4)
    each, value = torch.randn(9, 3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    keep = keep_highest(value.abs(), Pattern("layer"), 0.5)
    costs = salience_costs(moments_of(each), value, keep)
    salience = (each.mean(0) * value).abs().flatten()
    pairs = best_pairs(costs, keep, torch.ones_like(keep), Pattern("layer"), 3)
    kept, pruned = keep.flatten().nonzero()[:, 0].tolist(), (~keep).flatten().nonzero()[:, 0].tolist()
    assert pairs.kept.tolist() == sorted(kept, key=lambda place: float(salience[place]))[:3]
    assert pairs.pruned.tolist() == sorted(pruned, key=lambda place: -float(salience[place]))[:3]


def layer(name: str, d_out: int, d_in: int) -> Layer:
    return Layer(name, nn.Linear(d_in, d_out, bias=False))


def test_a_pool_lays_its_layers_out_one_after_another() -> None:
    pool = Pool((layer("a", 2, 3), layer("b", 4, 2), layer("c", 1, 5)))
    assert pool.starts == [0, 6, 14, 19]
    assert (pool.name, Pool(pool.layers[:1]).name) == ("3 layers", "a")
    places = torch.tensor([18, 0, 13, 5, 14, 6])
    found = pool.entries(places)
    assert [entries.layer.name for entries, _ in found] == ["a", "b", "c"]
    assert [positions.tolist() for _, positions in found] == [[1, 3], [2, 5], [0, 4]]
    flat = torch.cat([part.matrix().flatten() for part in pool.layers])
    for entries, positions in found:
        assert torch.equal(entries.of(entries.layer.matrix()), flat[places[positions]])
    assert [entries.layer.name for entries, _ in pool.entries(torch.tensor([7, 6]))] == ["b"]


def laid_out(*parts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Costs, masks and eligibility of several layers as one row, as a global budget sees them."""
    costs, keep, eligible = (torch.cat([part[side].flatten() for part in parts])[None] for side in range(3))
    return costs, keep, eligible


def test_pairs_of_layers_laid_out_in_one_row_go_across_them() -> None:
    parts = [state(4, 6, "layer", seed=1), state(3, 8, "layer", seed=2)]
    # layer b's weights are cheaper to prune, so pairs go across the layers
    parts[1][0].sub_(torch.where(parts[1][1], 1.0, -1.0))
    row = laid_out(*parts)
    for most in (1, 5, 24, 100):
        found = best_pairs(*row, Pattern("layer"), most)
        expected = pairs_by_hand(*row, "layer", most)
        assert list(zip(found.kept.tolist(), found.pruned.tolist(), strict=True)) == [pair[1:3] for pair in expected]
        assert found.cost.tolist() == pytest.approx([pair[0] for pair in expected], abs=1e-6)
        assert not found.group.any()
    # a block of 10 holds weights of both layers, and some pair goes across
    assert ((found.kept[:5] < 24) != (found.pruned[:5] < 24)).any()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_block_is_made_of_its_pairs(pattern: str) -> None:
    only = layer("a", 6, 8)
    costs, keep, eligible = state(6, 8, pattern)
    pairs = best_pairs(costs, keep, eligible, Pattern.parse(pattern), 7)
    block = Block.of(Pool((only,)), pairs)
    check_block(block, pairs)
    (part,) = block.parts
    assert torch.equal(part.of(keep), ~block.x)
    groups = [group_of(place, 8, pattern) for place in block.places.tolist()]
    assert (
        len(set(zip(groups, block.labels.tolist(), strict=True))) == len(set(groups)) == len(set(pairs.group.tolist()))
    )


def test_a_block_of_several_layers_is_grouped_by_layer() -> None:
    pool = Pool((layer("a", 4, 6), layer("b", 3, 8)))
    parts = [state(4, 6, "layer", seed=1), state(3, 8, "layer", seed=2)]
    pairs = best_pairs(*laid_out(*parts), Pattern("layer"), 9)
    block = Block.of(pool, pairs)
    check_block(block, pairs)
    assert [part.layer.name for part in block.parts] == ["a", "b"]
    assert torch.equal(
        torch.cat([part.of(keep) for part, (_, keep, _) in zip(block.parts, parts, strict=True)]), ~block.x
    )


def check_block(block: Block, pairs: Pairs) -> None:
    """Places, parts, assignment and groups tell the same of every weight."""
    assert len(block) == 2 * len(pairs)
    assert sorted(block.places.tolist()) == sorted(pairs.kept.tolist() + pairs.pruned.tolist())
    assert len(set(block.places.tolist())) == len(block)
    assert set(block.places[block.x].tolist()) == set(pairs.pruned.tolist())
    starts, names = block.pool.starts, [layer.name for layer in block.pool.layers]
    from_parts = [
        starts[names.index(part.layer.name)] + row * part.layer.shape[1] + column
        for part in block.parts
        for row, column in zip(part.rows.tolist(), part.columns.tolist(), strict=True)
    ]
    assert from_parts == block.places.tolist()
    label = dict(zip(block.places.tolist(), block.labels.tolist(), strict=True))
    for kept, pruned in zip(pairs.kept.tolist(), pairs.pruned.tolist(), strict=True):
        assert label[kept] == label[pruned]
    assert set(label.values()) == set(range(len(set(pairs.group.tolist()))))
    # as many kept as pruned weights in every group, so each can be swapped
    counts = [Counter(block.labels[side].tolist()) for side in (block.x, ~block.x)]
    assert counts[0] == counts[1]
    assert block.expected == pairs.gain


def test_tabu_frees_the_oldest_blocks_first() -> None:
    tabu = Tabu(5)

    def resting() -> list[int]:
        return tabu.resting(12, torch.device("cpu")).nonzero()[:, 0].tolist()

    assert resting() == []
    tabu.add(torch.tensor([3, 1]))
    tabu.add(torch.tensor([7, 0, 8]))
    assert resting() == [0, 1, 3, 7, 8]
    tabu.add(torch.tensor([10]))
    assert resting() == [0, 7, 8, 10]
    tabu.add(torch.tensor([2, 10]))
    assert resting() == [2, 10]
    assert tabu.release()
    # the oldest that was left was the single 10, which the last block holds too
    assert resting() == [2, 10]
    assert tabu.release()
    assert resting() == []
    assert not tabu.release()


def test_a_block_that_is_larger_than_the_tabu_list_does_not_rest() -> None:
    for most in (0, 2):
        tabu = Tabu(most)
        tabu.add(torch.tensor([1, 2, 3]))
        assert not tabu.resting(4, torch.device("cpu")).any()
        assert not tabu.release()
    first, second = Tabu(3), Tabu(3)
    first.add(torch.tensor([1]))
    assert not second.resting(4, torch.device("cpu")).any()
