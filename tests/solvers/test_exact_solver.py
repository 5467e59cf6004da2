from __future__ import annotations

import numpy as np
import pytest
from qubo_prune_solvers.exact import Exact
from reference import minimum, random_feasible, random_problem

from qubo_prune import solve
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import SolveRequest, Status


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
        assert result.lower_bound == result.energy


def test_factor_form_is_solved_alike(rng):
    problem = BlockQubo(FactorForm(rng.normal(size=8), rng.normal(size=(8, 2))), 3, 1.0)
    assert solve(problem, "exact").energy == pytest.approx(minimum(problem), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_energies_are_solved_alike(rng, scale):
    q = rng.normal(size=(8, 8))
    plain, scaled = BlockQubo(q, 4), BlockQubo(scale * q, 4)
    assert np.array_equal(solve(plain, "exact").assignment, solve(scaled, "exact").assignment)


def test_problems_above_its_size_are_refused():
    problem = BlockQubo(np.eye(29), 2)
    with pytest.raises(InputError, match="28 variables and the problem has 29"):
        Exact().solve(SolveRequest(problem))
    assert Exact.capabilities.max_variables == 28
    assert Exact.capabilities.exact


def test_when_time_is_over_the_warm_start_comes_back_without_a_bound(rng):
    problem = random_problem(rng, 16, 8)
    start = random_feasible(rng, problem)
    result = solve(problem, Exact(), time_limit=1e-9, warm_start=start)
    assert result.status is Status.TIME_LIMIT
    assert result.energy <= problem.energy(start)
    assert result.lower_bound is None
    with pytest.raises(SolverError, match="time limit"):
        solve(problem, Exact(), time_limit=1e-9)


def test_a_limit_in_the_middle_gives_the_best_so_far(rng):
    problem = random_problem(rng, 26, 13)
    result = solve(problem, Exact(), time_limit=0.1, warm_start=random_feasible(rng, problem))
    assert problem.is_feasible(result.assignment)
    assert result.seconds < 20
    assert (result.status is Status.OPTIMAL) == (result.lower_bound is not None)
