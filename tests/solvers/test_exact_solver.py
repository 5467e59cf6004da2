from __future__ import annotations

import numpy as np
import pytest
import torch
from qubo_prune_solvers._branching import Tree
from qubo_prune_solvers._convex import convex_diagonal
from qubo_prune_solvers.exact import Exact
from reference import feasible_points, minimum, random_batch, random_feasible, random_problem, random_starts

from qubo_prune import solve
from qubo_prune.errors import InputError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import BatchRequest, SolveRequest, Status


@pytest.mark.parametrize(
    ("n", "counts", "labels"),
    [
        (0, 0, None),
        (0, (), None),
        (1, 0, None),
        (1, 1, None),
        (2, 1, None),
        (6, 0, None),
        (6, 6, None),
        (9, 4, None),
        (10, 5, None),
        (8, (2, 1), [0, 1, 0, 1, 0, 1, 0, 1]),
        (8, (2, 1), [1, 1, 1, 1, 0, 0, 0, 0]),
        (8, (0, 4), [0, 0, 0, 0, 1, 1, 1, 1]),
        (9, (1, 0, 2), [2, 0, 1, 2, 0, 1, 2, 0, 2]),
        (7, (1, 0, 1, 1), [0, 0, 2, 2, 3, 3, 3]),
        (6, (2, 0), [0, 0, 0, 0, 0, 0]),
    ],
)
def test_the_optimum_is_that_of_enumeration(rng, n, counts, labels):
    for _ in range(3):
        problem = random_problem(rng, n, counts, labels)
        result = Exact().solve(SolveRequest(problem))
        assert problem.is_feasible(result.assignment)
        assert result.status is Status.OPTIMAL
        assert result.energy == pytest.approx(minimum(problem), rel=1e-12, abs=1e-12)
        assert result.energy == pytest.approx(problem.energy(result.assignment), rel=1e-12, abs=1e-12)
        assert result.lower_bound <= result.energy
        assert result.lower_bound == pytest.approx(result.energy, rel=1e-8, abs=1e-8)


def test_factor_form_is_solved_alike(rng):
    problem = BlockQubo(FactorForm(rng.normal(size=8), rng.normal(size=(8, 2))), 3, 1.0)
    assert solve(problem, "exact").energy == pytest.approx(minimum(problem), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_energies_are_solved_alike(rng, scale):
    q = rng.normal(size=(8, 8))
    plain, scaled = BlockQubo(q, 4), BlockQubo(scale * q, 4)
    assert np.array_equal(solve(plain, "exact").assignment, solve(scaled, "exact").assignment)


def test_problems_above_its_size_are_refused():
    problem = BlockQubo(np.eye(513), 2)
    with pytest.raises(InputError, match="512 variables and the problem has 513"):
        Exact().solve(SolveRequest(problem))
    assert Exact.capabilities.max_variables == 512
    assert Exact.capabilities.exact


def gram_problem(rng: np.random.Generator, n: int, tokens: int = 0) -> BlockQubo:
    """Couplings as a correlated layer has them: a few strong directions."""
    inputs = rng.normal(size=(tokens or 2 * n, n)) @ (np.eye(n) + 3 * rng.normal(size=(n, n)) / n**0.5)
    u = rng.normal(size=n)
    return BlockQubo(u[:, None] * (inputs.T @ inputs) * u / n, n // 2)


def test_a_limit_keeps_the_best_and_a_bound_that_holds(rng):
    problem = gram_problem(rng, 160)
    start = random_feasible(rng, problem)
    result = solve(problem, Exact(), time_limit=0.3, warm_start=start)
    assert result.status is Status.TIME_LIMIT
    assert problem.is_feasible(result.assignment)
    assert result.energy <= problem.energy(start)
    assert result.lower_bound < result.energy
    # the convex relaxation without any shift is a weaker certificate, but a certificate
    assert result.lower_bound > 0
    long = solve(problem, "tabu", warm_start=result.assignment)
    assert result.lower_bound <= long.energy


def test_a_limit_that_is_over_at_once_gives_what_there_is(rng):
    problem = random_problem(rng, 40, 20)
    start = random_feasible(rng, problem)
    result = solve(problem, Exact(), time_limit=1e-9, warm_start=start)
    assert result.status is Status.TIME_LIMIT
    assert result.energy <= problem.energy(start)
    assert result.lower_bound is None or result.lower_bound <= result.energy


@pytest.mark.parametrize("n", [24, 40])
def test_the_bound_of_a_finished_search_is_the_energy(rng, n):
    problem = gram_problem(rng, n)
    result = solve(problem, "exact")
    assert result.status is Status.OPTIMAL
    assert result.lower_bound == pytest.approx(result.energy, rel=1e-8)
    assert result.lower_bound <= result.energy


def test_no_search_finds_anything_below_a_proven_optimum(rng):
    for _ in range(3):
        problem = gram_problem(rng, 48)
        proven = solve(problem, "exact")
        assert proven.status is Status.OPTIMAL
        found = min(solve(problem, "tabu", seed=seed, threads=1).energy for seed in range(3))
        assert proven.energy <= found + 1e-9 * found


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("labels", [None, [0, 1, 0, 1, 1, 0, 0, 1, 1, 0]])
def test_every_row_of_a_batch_is_proven(rng, shared, labels):
    counts = [5] if labels is None else [2, 3]
    batch = random_batch(rng, 6, 10, counts, labels, shared)
    x = Exact().solve_batch(BatchRequest(batch, random_starts(rng, batch))).assignments
    for row in range(6):
        problem = batch.problem(row)
        assert problem.is_feasible(x[row].numpy())
        assert problem.energy(x[row].numpy()) == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)


def test_rows_that_the_time_limit_leaves_out_keep_their_start(rng):
    batch = random_batch(rng, 3, 12, [6])
    starts = random_starts(rng, batch)
    result = Exact(threads=1).solve_batch(BatchRequest(batch, starts, time_limit=1e-9))
    assert torch.equal(result.assignments, starts)
    assert {status for status, _ in result.failures.values()} == {Status.TIME_LIMIT}


def test_a_false_incumbent_cannot_hide_the_optimum(rng):
    """The tree alone, from the worst assignment there is."""
    for _ in range(5):
        problem = random_problem(rng, 11, 5)
        points = feasible_points(problem)
        worst = points[int(np.argmax(problem.energy(points)))]
        needed = convex_diagonal(problem.dense(), np.ones(11))
        shift = problem.diagonal - needed
        tree = Tree(
            problem.dense() - np.diag(shift),
            shift,
            np.array(problem.labels),
            np.array([5]),
            worst,
            problem.energy(worst) - problem.offset,
            1e-9,
        )
        while not tree.finished:
            assert tree.lower <= minimum(problem) - problem.offset + 1e-9
            tree.grow(1)
        assert tree.upper + problem.offset == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)
        assert problem.energy(tree.best) == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)
