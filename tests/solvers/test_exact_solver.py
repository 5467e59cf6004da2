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
            worst[None],
            np.array([problem.energy(worst) - problem.offset]),
            1e-9,
        )
        while not tree.finished:
            assert tree.lower <= minimum(problem) - problem.offset + 1e-9
            tree.grow(1)
        assert tree.upper + problem.offset == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)
        assert problem.energy(tree.found[0]) == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)


def listed(problem: BlockQubo, most: int) -> np.ndarray:
    """The lowest energies, by enumeration."""
    return np.sort(problem.energy(feasible_points(problem)))[:most]


@pytest.mark.gate(8)
@pytest.mark.parametrize("wanted", [2, 7, 40, 1000])
@pytest.mark.parametrize(
    ("n", "counts", "labels"),
    [
        (1, 0, None),
        (1, 1, None),
        (5, 5, None),
        (6, 0, None),
        (7, 1, None),
        (9, 4, None),
        (9, 8, None),
        (8, (2, 1), [0, 1, 0, 1, 0, 1, 0, 1]),
        (8, (0, 3), [0, 0, 0, 0, 1, 1, 1, 1]),
        (9, (1, 0, 2), [2, 0, 1, 2, 0, 1, 2, 0, 2]),
    ],
)
def test_the_list_is_that_of_enumeration(rng, n, counts, labels, wanted):
    for _ in range(3):
        problem = random_problem(rng, n, counts, labels)
        expected = listed(problem, wanted)
        result = solve(problem, "exact", num_answers=wanted)
        assert result.status is Status.OPTIMAL
        assert len(result.energies) == len(expected)
        assert len({x.tobytes() for x in result.assignments}) == len(expected)
        assert all(problem.is_feasible(x) for x in result.assignments)
        assert np.array_equal(result.energies, problem.energy(result.assignments))
        np.testing.assert_allclose(result.energies, expected, rtol=1e-9, atol=1e-9)
        assert result.info["proven"] == len(expected)
        assert result.lower_bound <= expected[0] + 1e-9


@pytest.mark.parametrize("wanted", [3, 12, 300])
def test_equal_energies_are_listed_each_once_and_by_position(rng, wanted):
    half = rng.integers(-2, 3, size=(5, 5)).astype(float)
    twins = BlockQubo(np.kron(half + half.T, np.ones((2, 2))), 4)  # each variable twice
    small = BlockQubo(np.round(rng.normal(size=(9, 9))), (3, 1), 0.5, [0] * 6 + [1] * 3)
    for problem in (twins, small, BlockQubo(np.zeros((6, 6)), 3)):
        result = solve(problem, "exact", num_answers=wanted)
        np.testing.assert_allclose(result.energies, listed(problem, wanted), rtol=1e-9, atol=1e-9)
        assert result.status is Status.OPTIMAL
        order = [(energy, *(~x).tolist()) for energy, x in zip(result.energies, result.assignments, strict=True)]
        assert order == sorted(order)
        assert len(set(order)) == len(order)


@pytest.mark.parametrize("kind", ["gram", "negative", "linear"])
def test_lists_of_other_problems(rng, kind):
    for _ in range(3):
        inputs, tilt = rng.normal(size=(12, 11)), np.diag(10 * rng.normal(size=11))
        gram = inputs.T @ inputs
        problem = BlockQubo({"gram": gram, "negative": -gram, "linear": gram + tilt}[kind], 5, -3.0)
        result = solve(problem, "exact", num_answers=25)
        np.testing.assert_allclose(result.energies, listed(problem, 25), rtol=1e-9, atol=1e-9)
        assert result.info["proven"] == 25


def test_a_list_of_one_is_the_optimum_alone(rng):
    problem = gram_problem(rng, 32)
    one, ten = solve(problem, "exact"), solve(problem, "exact", num_answers=10)
    assert "proven" not in one.info
    assert np.array_equal(one.assignment, ten.assignment)
    assert len(one.energies) == 1
    assert len(ten.energies) == 10
    found = solve(problem, "tabu", num_answers=10, starts=10, threads=1)
    for x, energy in zip(found.assignments, found.energies, strict=True):
        known = any(np.array_equal(x, other) for other in ten.assignments)
        assert known or energy >= ten.energies[-1] - 1e-9 * abs(energy)


def test_a_list_whose_entries_differ_widely_keeps_what_the_optimum_decides(rng):
    q = rng.normal(size=(8, 8))
    q[0, 0] = 2.0**40  # pruned in no optimum, but further down the list
    problem = BlockQubo(q, 4)
    result = solve(problem, "exact", num_answers=70)
    np.testing.assert_allclose(result.energies, listed(problem, 70), rtol=1e-9, atol=1e-2)
    assert solve(problem, "exact").info["decided"].startswith("1 of 8")


def test_a_list_that_time_cuts_says_how_much_of_it_is_proven(rng):
    problem = gram_problem(rng, 160)
    result = solve(problem, "exact", num_answers=5, time_limit=0.3)
    assert result.status is Status.TIME_LIMIT
    assert len(result.energies) == 5
    assert result.info["proven"] < 5
    assert result.lower_bound < result.energy
    assert solve(problem, "exact", num_answers=5, time_limit=1e-9).info["proven"] == 0


def test_what_a_tree_calls_proven_is(rng):
    """The tree alone, node by node, from the worst assignments there are."""
    for _ in range(4):
        problem = random_problem(rng, 9, 4)
        points = feasible_points(problem)
        energies = problem.energy(points) - problem.offset
        order = np.argsort(energies)
        shift = problem.diagonal - convex_diagonal(problem.dense(), np.ones(9))
        matrix = problem.dense() - np.diag(shift)
        worst, labels = order[-6:], np.array(problem.labels)
        tree = Tree(matrix, shift, labels, np.array([4]), points[worst], energies[worst], 1e-9)
        steps = 0
        while not tree.finished:
            tree.grow(1)
            proven, steps = tree.num_proven, steps + 1
            listed_now = np.sort(tree.energies)[:proven]
            np.testing.assert_allclose(listed_now, energies[order[:proven]], atol=1e-7)
        assert proven == 6
        assert steps > 6


def test_no_list_is_longer_than_it_takes():
    with pytest.raises(InputError, match="num_answers is 10001; 'exact' lists at most 10000"):
        Exact().solve(SolveRequest(BlockQubo(np.eye(30), 15), num_answers=10_001))
