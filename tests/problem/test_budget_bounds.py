from __future__ import annotations

import doctest

import numpy as np
import pytest
from reference import BUDGETS, budgeted_problem, energy, feasible_points

import qubo_prune.problem.budget_bounds
from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.problem import BlockBatch, BlockQubo
from qubo_prune.problem.bounds import lower_bounds
from qubo_prune.problem.budget_bounds import lower_bound


@pytest.mark.parametrize("kind", BUDGETS)
def test_no_feasible_assignment_is_below_the_bound(rng, kind):
    problem = budgeted_problem(rng, 9, kind)
    best = min(energy(problem, x) for x in feasible_points(problem))
    few, many = lower_bound(problem, most=1), lower_bound(problem, most=12)
    assert few.lower <= many.lower + 1e-12 <= best + 1e-9
    assert (few.tried, many.tried) == (1, 12)
    assert (many.multipliers >= 0).all()


def test_a_budget_that_binds_lifts_the_bound(rng):
    problem = budgeted_problem(rng, 9, "alone")
    assert lower_bound(problem).lower > lower_bound(problem.replaced(problem.q).without_budgets(problem.q)).lower + 0.01


def test_without_budgets_it_is_the_bound_of_the_batch(rng):
    inputs = rng.normal(size=(8, 10))
    problem = BlockQubo(inputs @ inputs.T, 3, 0.5)
    assert lower_bound(problem).lower == float(lower_bounds(BlockBatch.of(problem), "trace").lower[0])


def test_one_that_has_no_time_still_holds(rng):
    problem = budgeted_problem(rng, 9, "groups")
    best = min(energy(problem, x) for x in feasible_points(problem))
    found = lower_bound(problem, deadline=Deadline(0.0))
    assert found.tried == 1
    assert found.lower <= best


def test_what_is_not_convex_is_refused():
    # of a couple without curvature of its own too, whose couplings must not be left out
    for q in ([[0.0, -1.0], [-1.0, 0.0]], [[1.0, 2.0], [2.0, 1.0]]):
        with pytest.raises(InputError, match="not positive semidefinite"):
            lower_bounds(BlockBatch.of(BlockQubo(q, 1)))
    with pytest.raises(InputError, match="not positive semidefinite"):
        lower_bound(BlockQubo([[0.0, 1.0], [1.0, 0.0]], None, costs=np.ones(2), budget=1.0))


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(qubo_prune.problem.budget_bounds).failed == 0
