"""Bounds against enumeration, semidefinite optimality and brute projection."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.problem import BlockBatch
from qubo_prune.problem.bounds import KINDS, _Counts, lower_bounds, trace_shift
from qubo_prune.solver import Deadline, to_numpy_bool


def gram(n: int, seed: int, tokens: int = 40, batch: tuple[int, ...] = ()) -> Tensor:
    """A correlated Gram."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(*batch, tokens, n, generator=draw, dtype=torch.float64)
    inputs = inputs @ (torch.eye(n) + 0.6 * torch.randn(n, n, generator=draw, dtype=torch.float64) / n**0.5)
    return 2 / tokens * inputs.mT @ inputs


def problems(n: int = 9, rows: int = 6, seed: int = 0, shared: bool = True, groups: int = 1) -> BlockBatch:
    draw = torch.Generator().manual_seed(seed + 100)
    labels = torch.arange(groups).repeat_interleave(n // groups)
    return BlockBatch(
        gram(n, seed) if shared else gram(n, seed, batch=(rows,)),
        torch.randn(rows, n, generator=draw, dtype=torch.float64),
        0.3 * torch.randn(rows, n, generator=draw, dtype=torch.float64),
        torch.randn(rows, generator=draw, dtype=torch.float64),
        labels,
        torch.randint(0, n // groups + 1, (rows, groups), generator=draw),
    )


def least_energies(batch: BlockBatch) -> Tensor:
    """The optimum of every problem, by enumeration."""
    points = torch.tensor(list(itertools.product([False, True], repeat=batch.num_variables)))
    sums = torch.stack([points[:, batch.labels == g].sum(1) for g in range(batch.num_groups)], 1)
    found = []
    for row in range(batch.num_rows):
        allowed = points[(sums == batch.num_pruned[row]).all(1)]
        one = batch.problem(row)
        found.append(min(one.energy(x.numpy()) for x in allowed))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.gate(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_no_mask_is_below_the_bound(kind: str, shared: bool, groups: int) -> None:
    for seed in range(4):
        batch = problems(seed=seed, shared=shared, groups=groups)
        found = lower_bounds(batch, kind, most=150 if kind == "semidefinite" else 2000)
        assert found.kind == kind
        assert bool((found.lower <= least_energies(batch)).all())


def test_the_kinds_are_the_tighter_the_more_they_cost() -> None:
    batch = problems(n=10, rows=12, seed=3)
    plain, eigenvalue, trace, row = (lower_bounds(batch, kind, tolerance=1e-6).lower for kind in KINDS[:-1])
    lifted = lower_bounds(batch, "semidefinite", most=200).lower
    assert float(plain.sum()) < float(eigenvalue.sum()) < float(trace.sum())
    assert bool((row >= trace).all())
    assert float(row.sum()) > float(trace.sum())
    assert float(lifted.sum()) > float(row.sum())


@pytest.mark.parametrize("most", [1, 3, 2000])
def test_bounds_hold_wherever_the_optimiser_stops(most: int) -> None:
    batch = problems(seed=7)
    found = lower_bounds(batch, "trace", most=most)
    assert bool((found.lower <= least_energies(batch)).all())
    assert found.steps <= 2 * most  # two shifts are tried
    hurried = lower_bounds(batch, "row", deadline=Deadline(1e-9))
    assert hurried.stopped_early
    assert bool((hurried.lower <= least_energies(batch)).all())
    assert bool(torch.isfinite(hurried.lower).all())


@pytest.mark.gate(1)
@pytest.mark.parametrize("groups", [1, 3])
def test_semidefinite_bounds_hold_wherever_the_method_stops_and_close_most_gaps(groups: int) -> None:
    gaps = [0.0, 0.0]
    for seed in range(2):
        batch = problems(n=12, rows=3, seed=seed, groups=groups)
        best = least_energies(batch)
        shared = lower_bounds(batch, "trace").lower
        for most in (1, 60, 200):
            found = lower_bounds(batch, "semidefinite", most=most)
            assert bool((found.lower <= best).all())
            assert bool((found.lower >= lower_bounds(batch, "trace", most=most).lower).all())
        full = lower_bounds(batch, "semidefinite", tolerance=1e-4, most=400)
        assert bool((full.lower <= best).all())
        gaps = [gaps[0] + float((best - full.lower).sum()), gaps[1] + float((best - shared).sum())]
        hurried = lower_bounds(batch, "semidefinite", deadline=Deadline(1e-9))
        assert hurried.stopped_early
        assert bool((hurried.lower <= best).all())
    assert 0 < gaps[0] < 0.5 * gaps[1]


def test_where_weights_do_not_interact_the_bound_is_the_optimum() -> None:
    batch = problems(seed=1)
    apart = BlockBatch(
        batch.hessian.diagonal().diag(), batch.values, batch.linear, batch.offset, batch.labels, batch.num_pruned
    )
    torch.testing.assert_close(lower_bounds(apart, "trace").lower, least_energies(apart), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("total", [0, 5, 17, 24])
def test_one_count_for_all_rows(total: int) -> None:
    batch = problems(n=8, rows=3, seed=2)
    best = np.full(25, np.inf)
    best[0] = 0.0
    points = np.array(list(itertools.product([False, True], repeat=8)))
    for row in range(3):
        one, least = batch.problem(row), np.full(9, np.inf)
        for x in points:  # an energy asks for the row's own count, which does not hold here
            y = x.astype(float)
            least[x.sum()] = min(least[x.sum()], float(y @ one.dense() @ y) + one.offset)
        sums = [
            min((best[done] + least[k] for done in range(25) if 0 <= (k := count - done) <= 8), default=np.inf)
            for count in range(25)
        ]
        best = np.array(sums)
    for kind in KINDS[:-1]:
        assert float(lower_bounds(batch, kind, total=total).lower.sum()) <= best[total]
    with pytest.raises(InputError, match="needs the counts of each row"):
        lower_bounds(batch, "semidefinite", total=total)
    assert float(lower_bounds(batch, "row", total=total).lower.sum()) >= float(
        lower_bounds(batch, "plain", total=total).lower.sum()
    )


def test_the_trace_shift_is_feasible_and_nearly_the_largest() -> None:
    # duality: for unit rows V, sum w_i d_i <= <sqrt(w) C sqrt(w), V V'>, and at the optimum the two meet
    for seed in range(3):
        unit = gram(12, seed)
        scale = unit.diagonal().sqrt()
        unit = unit / scale[:, None] / scale
        weights = torch.rand(12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
        shift = trace_shift(unit, weights)
        assert float(torch.linalg.eigvalsh(unit - shift.diag())[0]) > 0
        scaled = weights.sqrt()[:, None] * unit * weights.sqrt()
        vectors = torch.nn.functional.normalize(torch.randn(12, 12, dtype=torch.float64), dim=1)
        for _ in range(3000):
            for i in range(12):
                pull = scaled[i] @ vectors - scaled[i, i] * vectors[i]
                vectors[i] = -pull / pull.norm()
        best = float((scaled * (vectors @ vectors.T)).sum())
        found = float((weights * shift).sum())
        assert found <= best + 1e-9
        assert found >= best - 2e-3 * float(weights.sum())


def test_batches_of_shifts_are_those_of_one_by_one() -> None:
    unit = torch.stack([gram(7, seed) for seed in range(3)])
    scale = unit.diagonal(dim1=1, dim2=2).sqrt()
    unit = unit / scale[:, :, None] / scale[:, None, :]
    weights = torch.rand(3, 7, dtype=torch.float64) + 0.1
    together = trace_shift(unit, weights)
    for number in range(3):
        alone = trace_shift(unit[number], weights[number])
        share = weights[number] / weights[number].sum()
        assert float((share * (together[number] - alone)).sum().abs()) < 2e-3


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("joint", [False, True])
def test_projections_meet_the_counts_and_are_nearest(groups: int, joint: bool) -> None:
    batch = problems(rows=5, groups=groups, seed=4)
    counts = _Counts.of(batch, 20 if joint else None)
    draw = torch.Generator().manual_seed(0)
    target = 3 * torch.randn(5, 9, generator=draw, dtype=torch.float64)
    metric = torch.rand(5, 9, generator=draw, dtype=torch.float64) + 0.1
    y, _ = counts.nearest(target, metric)
    torch.testing.assert_close(counts.sums(y), counts.counts, rtol=0, atol=1e-5)
    assert bool(((y >= 0) & (y <= 1)).all())
    # a point is nearest if no direction into the polytope goes nearer
    pull = metric * (y - target)
    for _ in range(50):
        vertex = counts.least(torch.randn(5, 9, generator=draw, dtype=torch.float64))
        torch.testing.assert_close(counts.sums(vertex), counts.counts, rtol=0, atol=0)
        assert float((pull * (vertex - y)).sum()) > -1e-4
    best = counts.least(pull)
    assert float((pull * (best - y)).sum()) > -1e-4


@pytest.mark.slow
def test_dead_weights_and_singular_grams_have_bounds() -> None:
    batch = problems(seed=5)
    hessian, values = batch.hessian.clone(), batch.values.clone()
    hessian[:, 4] = hessian[4] = 0
    hessian[:, 6], hessian[6] = hessian[:, 5], hessian[5]
    hessian[6, 6] = hessian[5, 5]
    values[:, 2] = 0
    dead = BlockBatch(hessian, values, batch.linear, batch.offset, batch.labels, batch.num_pruned)
    for kind in KINDS:
        lower = lower_bounds(dead, kind).lower
        assert bool(torch.isfinite(lower).all())
        assert bool((lower <= least_energies(dead)).all())


def test_what_has_no_bound_is_refused() -> None:
    batch = problems()
    with pytest.raises(InputError, match="did you mean 'trace'"):
        lower_bounds(batch, "trac")
    with pytest.raises(InputError, match="total is 99"):
        lower_bounds(batch, total=99)
    for matrix in (-batch.hessian, batch.hessian - 2 * torch.eye(9) * batch.hessian.diagonal().mean()):
        wrong = BlockBatch(matrix, batch.values, batch.linear, batch.offset, batch.labels, batch.num_pruned)
        for kind in KINDS:
            with pytest.raises(InputError, match="not positive semidefinite"):
                lower_bounds(wrong, kind)


def test_one_dear_weight_spoils_no_bound() -> None:
    """As behind massive activations: d is negative there for some Grams, a reward for pruning a little of it."""
    draw = torch.Generator().manual_seed(11)
    spoilt = 0
    for _ in range(20):
        inputs = torch.randn(10, 8, generator=draw, dtype=torch.float64) @ torch.randn(
            8, 8, generator=draw, dtype=torch.float64
        )
        hessian = inputs.T @ inputs
        values = torch.rand(6, 8, generator=draw, dtype=torch.float64)
        values[:, 0] *= 1e3
        x = torch.zeros(6, 8, dtype=torch.bool)
        x[:, 4:] = True
        nothing = torch.zeros_like(values)
        labels = torch.zeros(8, dtype=torch.long)
        batch = BlockBatch(hessian, values, nothing, nothing[:, 0], labels, x.sum(1, keepdim=True))
        plain, trace = lower_bounds(batch, "plain").lower, lower_bounds(batch, "trace").lower
        energies = torch.tensor([batch.problem(row).energy(to_numpy_bool(x[row])) for row in range(6)])
        assert (trace <= energies * (1 + 1e-9)).all()
        assert (trace >= plain - 2e-3 * plain.abs() - 1e-9).all()
        # without the care it would not be so
        spoilt += bool((trace_shift(_unit(hessian), torch.ones(8, dtype=torch.float64)) < -0.01)[0])
    assert spoilt


def _unit(hessian: torch.Tensor) -> torch.Tensor:
    scale = hessian.diagonal().rsqrt()
    return hessian * scale * scale[:, None]
