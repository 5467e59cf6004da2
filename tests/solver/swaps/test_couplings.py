from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import random_batch, random_starts

from qubo_prune.problem import BlockQubo
from qubo_prune.solver.swaps.couplings import of_batch

ROWS, N = 3, 6


@pytest.fixture(params=["shared", "dense"])
def case(request, rng):
    """Couplings, flip costs, problems and assignments, with the scale the couplings stand in."""
    batch = random_batch(rng, ROWS, N, [2], shared=request.param == "shared")
    x = random_starts(rng, batch)
    couplings, costs, size = of_batch(batch, x, torch.float64)
    return couplings, costs, size, [batch.problem(r) for r in range(ROWS)], x


def flip_costs(problem: BlockQubo, x: np.ndarray) -> np.ndarray:
    costs = []
    for i in range(len(x)):
        with_i, without = x.copy(), x.copy()
        with_i[i], without[i] = True, False
        costs.append(problem.energy(with_i) - problem.energy(without))
    return np.array(costs)


def scale_of(case) -> float:
    """The common factor between the problems' energies and the kernel's."""
    _, costs, _, problems, x = case
    true = np.array([flip_costs(p, point.numpy()) for p, point in zip(problems, x, strict=True)])
    return float(np.abs(true).max() / costs.abs().max())


def test_flip_costs_are_finite_differences_of_the_energy(case):
    _, costs, _, problems, x = case
    scale = scale_of(case)
    for row, problem in enumerate(problems):
        expected = flip_costs(problem, x[row].numpy())
        np.testing.assert_allclose(scale * costs[row].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_rows_pairs_and_lists_read_twice_q(case):
    couplings, costs, _, problems, _ = case
    scale, rows = scale_of(case), len(problems)
    twice = torch.tensor(np.array([2 * p.dense() for p in problems])) / scale
    chosen = torch.arange(rows) + 1
    read = couplings.rows(chosen, torch.empty_like(costs))
    first, second = torch.tensor([[0, 1, 2]] * rows), torch.tensor([[3, 4]] * rows)
    along = (torch.tensor([0, 0, 5]), torch.tensor([1, 4, 2]))
    for row in range(rows):
        others = torch.arange(N) != chosen[row]
        torch.testing.assert_close(read[row][others], twice[row][chosen[row]][others])
        torch.testing.assert_close(couplings.pairs(first, second)[row], twice[row][:3, 3:5])
        torch.testing.assert_close(couplings.listed(*along)[row], twice[row][along])


@pytest.mark.parametrize("shared", [True, False])
def test_taking_some_problems_leaves_theirs(rng, shared):
    chosen = torch.tensor([2, 0])
    batch = random_batch(rng, ROWS, N, [2], shared=shared)
    couplings, _, _ = of_batch(batch, random_starts(rng, batch), torch.float64)
    along = (torch.tensor([0, 2]), torch.tensor([1, 5]))
    taken = couplings.take(chosen)
    torch.testing.assert_close(taken.listed(*along), couplings.listed(*along)[chosen])
    first, second = torch.tensor([[0, 1]] * ROWS), torch.tensor([[3]] * ROWS)
    torch.testing.assert_close(taken.pairs(first[chosen], second[chosen]), couplings.pairs(first, second)[chosen])
    at, buffer = torch.tensor([1, 3]), torch.empty(ROWS, N, dtype=torch.float64)
    whole = couplings.rows(torch.full((ROWS,), 3), buffer.clone())[chosen]
    torch.testing.assert_close(taken.rows(at, buffer[:2].clone())[1], whole[1])


@pytest.mark.parametrize("shared", [True, False])
def test_parts_joined_again_are_in_the_order_of_the_parts(rng, shared):
    batch = random_batch(rng, ROWS, N, [2], shared=shared)
    couplings, _, _ = of_batch(batch, random_starts(rng, batch), torch.float64)
    along = (torch.tensor([0, 2]), torch.tensor([1, 5]))
    parts = [couplings.take(torch.tensor([2])), couplings.take(torch.tensor([0, 1]))]
    joined = couplings.joined(parts)
    torch.testing.assert_close(joined.listed(*along), couplings.listed(*along)[[2, 0, 1]])
    at = torch.tensor([4, 1, 3])
    torch.testing.assert_close(
        joined.rows(at, torch.empty(ROWS, N, dtype=torch.float64)),
        couplings.rows(at.roll(-1), torch.empty(ROWS, N, dtype=torch.float64))[[2, 0, 1]],
    )


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_single_precision_holds_problems_of_any_size(rng, size):
    plain = random_batch(rng, ROWS, N, [2], shared=False)
    x = random_starts(rng, plain)
    batch = type(plain)(
        plain.hessian * size,
        plain.values,
        plain.linear * size,
        plain.offset * size,
        plain.labels,
        plain.num_pruned,
    )
    _, costs, scale = of_batch(batch, x, torch.float32)
    _, expected, expected_scale = of_batch(plain, x, torch.float64)
    assert costs.dtype == torch.float32
    torch.testing.assert_close(costs.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scale.double(), expected_scale, rtol=1e-5, atol=1e-6)


def test_a_batch_of_zeros_has_finite_costs(rng):
    plain = random_batch(rng, 2, 4, [2])
    zeros = type(plain)(plain.hessian * 0, plain.values, plain.linear * 0, plain.offset, plain.labels, plain.num_pruned)
    _, costs, scale = of_batch(zeros, random_starts(rng, zeros), torch.float32)
    assert costs.abs().max() == 0
    assert scale.abs().max() == 0


def test_columns_read_twice_q(case):
    couplings, _, _, problems, _ = case
    chosen = torch.tensor([4, 0, 2])
    read = couplings.columns(chosen)
    others = ~torch.eye(len(problems[0].diagonal), dtype=torch.bool)[chosen]
    for row, problem in enumerate(problems):
        twice = torch.tensor(2 * problem.dense()) / scale_of(case)
        torch.testing.assert_close(read[row][others], twice[chosen][others])
