from __future__ import annotations

import numpy as np
import pytest
import torch

from qubo_prune.blocks.selection import borderline_block, borderline_groups, borderline_weights


def case(rng, rows: int = 4, d: int = 12, pruned: int = 6):
    """Distinct costs of both signs and masks with equal counts."""
    costs = torch.tensor(rng.permuted(np.tile(np.arange(d) - d / 2 + 0.25, (rows, 1)), axis=1))
    x = torch.zeros(rows, d, dtype=torch.float64)
    for row in range(rows):
        x[row, rng.permutation(d)[:pruned]] = 1
    return costs, x


def cheapest(costs: torch.Tensor, x: torch.Tensor, row: int, kept: int, pruned: int) -> set[int]:
    order = costs[row].argsort().tolist()
    kept_side = [c for c in order if x[row, c] == 0][:kept]
    pruned_side = [c for c in reversed(order) if x[row, c] == 1][:pruned]
    return {*kept_side, *pruned_side}


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("kept", "pruned"), [(3, 3), (2, 4), (0, 3), (6, 6)])
def test_a_block_holds_the_cheapest_kept_and_the_dearest_pruned(rng, scale, kept, pruned):
    costs, x = case(rng)
    columns = borderline_weights(costs * scale, x, kept, pruned)
    assert columns.shape == (4, kept + pruned)
    for row in range(4):
        assert set(columns[row].tolist()) == cheapest(costs, x, row, kept, pruned)
        assert x[row, columns[row, :kept]].sum() == 0
        assert x[row, columns[row, kept:]].sum() == pruned


def test_rows_without_misses_take_the_best_while_others_draw_from_a_wider_pool(rng):
    costs, x = case(rng, rows=3)
    misses = torch.tensor([0, 1, 5])
    drawn: list[set[int]] = [set(), set(), set()]
    for seed in range(60):
        columns = borderline_weights(costs, x, 2, 2, misses, torch.Generator().manual_seed(seed))
        assert set(columns[0].tolist()) == cheapest(costs, x, 0, 2, 2)
        for row in range(3):
            assert len(set(columns[row].tolist())) == 4
            assert x[row, columns[row]].tolist() == [0, 0, 1, 1]
            drawn[row] |= set(columns[row].tolist())
    assert drawn[1] == cheapest(costs, x, 1, 4, 4)
    assert drawn[2] == set(range(12))


def test_a_draw_follows_its_generator(rng):
    costs, x = case(rng)
    misses = torch.full((4,), 2)
    first, again, other = (
        borderline_weights(costs, x, 2, 2, misses, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_selection_writes_to_nothing(rng):
    costs, x = case(rng)
    before = costs.clone(), x.clone()
    groups = torch.arange(12).reshape(3, 4)
    borderline_weights(costs, x, 2, 2, torch.ones(4, dtype=torch.long), torch.Generator())
    borderline_groups(costs, x, groups, 2)
    assert torch.equal(costs, before[0])
    assert torch.equal(x, before[1])


def promise(costs: torch.Tensor, x: torch.Tensor, row: int, group: list[int]) -> float:
    kept = [float(costs[row, c]) for c in group if x[row, c] == 0]
    pruned = [float(costs[row, c]) for c in group if x[row, c] == 1]
    return min(kept) - max(pruned)


def test_groups_are_taken_whole_and_by_their_best_exchange(rng):
    costs = torch.tensor(rng.normal(size=(5, 12)))
    x = torch.tensor([[1.0, 0.0, 1.0, 0.0] * 3] * 5, dtype=torch.float64)
    groups = torch.arange(12).reshape(3, 4)
    columns = borderline_groups(costs, x, groups, 2)
    assert columns.shape == (5, 8)
    for row in range(5):
        by_promise = sorted(groups.tolist(), key=lambda group, row=row: promise(costs, x, row, group))
        chosen = columns[row].reshape(2, 4).tolist()
        assert sorted(chosen) == sorted(by_promise[:2])


def test_groups_are_drawn_from_a_wider_pool_after_a_miss(rng):
    costs = torch.tensor(rng.normal(size=(1, 16)))
    x = torch.tensor([[1.0, 0.0] * 8], dtype=torch.float64)
    groups = torch.arange(16).reshape(4, 4)
    seen = set()
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        columns = borderline_groups(costs, x, groups, 1, torch.tensor([1]), draw)
        seen.add(int(columns[0, 0]) // 4)
    best = sorted(range(4), key=lambda g: promise(costs, x, 0, groups[g].tolist()))
    assert seen == set(best[:2])


def test_a_block_is_half_of_either_kind_or_of_whole_groups(rng):
    costs, x = case(rng)
    columns, labels = borderline_block(costs, x, None, 6)
    assert torch.equal(columns, borderline_weights(costs, x, 3, 3))
    assert labels.tolist() == [0] * 6
    groups = torch.arange(12).reshape(3, 4)
    columns, labels = borderline_block(costs, x, groups, 11)
    assert torch.equal(columns, borderline_groups(costs, x, groups, 2))
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("pruned", "size", "of_each"), [(2, 8, (4, 2)), (11, 8, (1, 4)), (12, 8, (0, 4)), (6, 3, (1, 2))]
)
def test_a_block_has_fewer_of_a_kind_that_a_row_is_short_of(rng, pruned, size, of_each):
    costs, x = case(rng, pruned=pruned)
    columns, labels = borderline_block(costs, x, None, size)
    found = x.gather(1, columns)
    assert columns.shape[1] == len(labels) == sum(of_each)
    assert (found.sum(1) == of_each[1]).all()


def test_a_group_that_is_larger_than_a_block_makes_none(rng):
    costs, x = case(rng)
    for misses in (None, torch.ones(4, dtype=torch.long)):
        columns, labels = borderline_block(costs, x, torch.arange(12).reshape(3, 4), 3, misses, torch.Generator())
        assert columns.shape == (4, 0)
        assert len(labels) == 0
