"""Supports, compensated blocks and exact swaps against dense least squares."""

from __future__ import annotations

import itertools

import pytest
import torch
from least_squares import gram, refitted
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.hessian import Gram
from qubo_prune.hessian.compensated import Blocks, Curvature, Support, Swaps

D, ROWS = 14, 4


class Case:
    """Rows with masks of different counts, in float64."""

    def __init__(self, counts: tuple[int, ...] = (6, 7, 8, 6), seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.curvature = Curvature.of(gram(seed, D), 0.01, torch.float64)
        self.hessian = self.curvature.hessian
        weight = torch.randn(len(counts), D, generator=draw, dtype=torch.float64)
        self.weight = weight * self.curvature.scale
        self.x = torch.zeros(len(counts), D, dtype=torch.bool)
        for row, count in enumerate(counts):
            self.x[row, torch.randperm(D, generator=draw)[:count]] = True
        self.support = Support.of(self.weight, self.curvature, self.x)

    def energy(self, row: int, x: Tensor) -> float:
        return refitted(self.weight[row], self.hessian, x)[1]

    def blocks(self, a: int = 4, b: int = 5) -> Blocks:
        kept = torch.stack([(~x).nonzero()[:a, 0] for x in self.x])
        places = torch.stack([torch.randperm(int(x.sum()))[:b] for x in self.x])
        return Blocks.of(self.support, kept, places, torch.zeros(a + b, dtype=torch.long))

    def with_block(self, row: int, blocks: Blocks, x: Tensor) -> Tensor:
        mask = self.x[row].clone()
        mask[blocks.columns[row]] = x
        return mask


def test_the_curvature_is_damped_scaled_and_inverted() -> None:
    given = gram(0, D)
    found = Curvature.of(given, 0.1, torch.float64)
    damped = given.matrix + 0.1 * given.diagonal.mean() * torch.eye(D, dtype=torch.float64)
    scaled = found.hessian * found.scale * found.scale[:, None]
    torch.testing.assert_close(scaled, damped)
    torch.testing.assert_close(found.hessian.diagonal(), torch.ones(D, dtype=torch.float64))
    torch.testing.assert_close(found.hessian @ found.inverse, torch.eye(D, dtype=torch.float64))
    assert (found.damping, found.raised) == (0.1, 0)
    assert Curvature.of(given, 0.1).inverse.dtype == torch.float32


def test_damping_is_raised_until_the_gram_can_be_factored() -> None:
    duplicate = torch.ones(3, 3, dtype=torch.float64)
    found = Curvature.of(Gram(duplicate, 5), 0.0)
    assert found.raised > 0
    assert 0 < found.damping <= 1
    assert torch.isfinite(found.inverse).all()


def test_a_gram_of_zeros_is_refused() -> None:
    with pytest.raises(InputError, match="no calibration token"):
        Curvature.of(Gram(torch.zeros(3, 3, dtype=torch.float64), 0))


def test_a_support_is_the_least_squares_optimum_of_every_row() -> None:
    case = Case()
    for row in range(ROWS):
        values, energy = refitted(case.weight[row], case.hessian, case.x[row])
        torch.testing.assert_close(case.support.values[row], values)
        assert float(case.support.energy[row]) == pytest.approx(energy, rel=1e-9)
    assert torch.equal(case.support.x, case.x)


def test_restoring_one_weight_gains_what_the_support_says() -> None:
    case = Case()
    for row, place in itertools.product(range(ROWS), range(6)):
        mask = case.x[row].clone()
        mask[case.support.pruned[row, place]] = False
        gain = float(case.support.energy[row]) - case.energy(row, mask)
        assert float(case.support.restore_gains[row, place]) == pytest.approx(gain, rel=1e-8)
    assert (case.support.restore_gains[~case.support.valid] == -torch.inf).all()


def test_pruning_one_weight_costs_at_least_what_orders_the_kept_ones() -> None:
    case = Case()
    for row in range(ROWS):
        for column in (~case.x[row]).nonzero()[:, 0]:
            mask = case.x[row].clone()
            mask[column] = True
            cost = case.energy(row, mask) - float(case.support.energy[row])
            assert float(case.support.prune_costs[row, column]) <= cost * (1 + 1e-9)
    assert torch.equal(case.support.prune_costs == torch.inf, case.x)


def test_the_block_holds_the_curvature_that_remains_once_the_others_adapt() -> None:
    case = Case()
    blocks = case.blocks()
    for row in range(ROWS):
        free = ~case.with_block(row, blocks, torch.zeros(9, dtype=torch.bool))
        inverse = torch.linalg.inv(case.hessian[free][:, free])
        position = {int(column): at for at, column in enumerate(free.nonzero()[:, 0])}
        at = [position[int(column)] for column in blocks.columns[row]]
        torch.testing.assert_close(blocks.curvature[row], torch.linalg.inv(inverse[at][:, at]))
        everything, _ = refitted(case.weight[row], case.hessian, ~free)
        torch.testing.assert_close(blocks.values[row], everything[blocks.columns[row]])


def test_the_qubo_bounds_the_exact_energy_which_is_that_of_the_refit() -> None:
    case = Case()
    blocks = case.blocks()
    batch = blocks.batch()
    none = [case.energy(row, case.with_block(row, blocks, torch.zeros(9, dtype=torch.bool))) for row in range(ROWS)]
    torch.testing.assert_close(batch.energy(blocks.x), torch.zeros(ROWS, dtype=torch.float64), atol=1e-9, rtol=0)
    for chosen in itertools.combinations(range(9), 5):
        x = torch.zeros(ROWS, 9, dtype=torch.bool)
        x[:, list(chosen)] = True
        exact = blocks.energy(x)
        quadratic = batch.energy(x) - batch.offset
        for row in range(ROWS):
            real = case.energy(row, case.with_block(row, blocks, x[row])) - none[row]
            assert float(exact[row]) == pytest.approx(real, rel=1e-7, abs=1e-9)
            assert float(quadratic[row]) >= real * (1 - 1e-7)


def test_every_swap_changes_the_energy_as_predicted_many_times_over() -> None:
    case = Case()
    blocks = case.blocks()
    swaps, draw = Swaps.of(blocks, blocks.x), torch.Generator().manual_seed(3)
    at = torch.arange(ROWS)
    for _ in range(12):
        predicted = swaps.changes()
        p, i = torch.randint(5, (ROWS,), generator=draw), torch.randint(4, (ROWS,), generator=draw)
        before = swaps.energy(blocks.values)
        swaps.swap(p, i)
        after = swaps.energy(blocks.values)
        torch.testing.assert_close(after - before, predicted[at, p, i], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(after, blocks.energy(swaps.x))
        fresh = Swaps.of(blocks, swaps.x)
        torch.testing.assert_close(swaps.prune_costs.sort(1).values, fresh.prune_costs.sort(1).values)
        torch.testing.assert_close(swaps.restore_gains.sort(1).values, fresh.restore_gains.sort(1).values)


def test_single_changes_in_a_block_are_exact() -> None:
    case = Case()
    blocks = case.blocks()
    swaps = Swaps.of(blocks, blocks.x)
    for row in range(ROWS):
        now = case.energy(row, case.x[row])
        for slot in range(4):
            mask = case.x[row].clone()
            mask[blocks.columns[row, swaps.columns[row, slot]]] = True
            assert float(swaps.prune_costs[row, slot]) == pytest.approx(case.energy(row, mask) - now, rel=1e-7)


def test_the_descent_ends_where_no_swap_gains() -> None:
    case = Case(seed=5)
    blocks = case.blocks()
    swaps = Swaps.of(blocks, blocks.x)
    before = swaps.energy(blocks.values)
    done = swaps.descend(100)
    assert done > 0
    after = swaps.energy(blocks.values)
    assert (after <= before).all()
    for row in range(ROWS):
        x = swaps.x[row]
        assert int(x.sum()) == 5
        for p, i in itertools.product(x.nonzero()[:, 0], (~x).nonzero()[:, 0]):
            other = x.clone()
            other[p], other[i] = False, True
            best = case.energy(row, case.with_block(row, blocks, x))
            assert case.energy(row, case.with_block(row, blocks, other)) > best * (1 - 1e-3)


def test_swaps_stay_within_their_groups() -> None:
    case = Case((6, 6, 6, 6))
    kept = torch.stack([(~x).nonzero()[:4, 0] for x in case.x])
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])
    blocks = Blocks.of(case.support, kept, torch.arange(4).expand(4, -1).contiguous(), labels)
    swaps = Swaps.of(blocks, blocks.x)
    swaps.descend(100)
    for row in range(4):
        assert sorted(labels[swaps.x[row]].tolist()) == [0, 0, 1, 1]
        assert torch.isinf(swaps.changes()[row]).sum() == 8
