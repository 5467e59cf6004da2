from __future__ import annotations

import numpy as np
import pytest
from reference import BUDGETS, budgeted_problem, feasible_points, meets

from qubo_prune import BlockQubo
from qubo_prune.errors import InputError
from qubo_prune.solver.swaps.feasible import feasible_start, made_feasible


@pytest.mark.parametrize("kind", BUDGETS)
def test_whatever_is_given_is_mended(rng, kind):
    problem = budgeted_problem(rng, 9, kind)
    assert meets(problem, feasible_start(problem))
    for _ in range(20):
        assert meets(problem, made_feasible(problem, rng.random(9) < rng.random()))


@pytest.mark.parametrize("kind", BUDGETS)
def test_what_is_feasible_stays(rng, kind):
    problem = budgeted_problem(rng, 9, kind)
    for x in feasible_points(problem)[:20]:
        assert np.array_equal(made_feasible(problem, x), x)


def test_where_no_move_brings_anything_a_program_finds_what_there_is(rng):
    """Several budgets of both signs beside a count: swaps alone get stuck, and most such problems have no answer."""
    solved = refused = 0
    for _ in range(60):
        costs = rng.integers(-9, 10, size=(4, 9)).astype(float)
        try:
            problem = BlockQubo(np.diag(rng.normal(size=9)), 4, costs=costs, budget=rng.integers(-4, 12, size=4))
        except InputError:
            continue
        if len(feasible_points(problem)):
            assert meets(problem, feasible_start(problem))
            solved += 1
        else:
            with pytest.raises(InputError, match="No assignment meets the 4 budgets and the counts at once"):
                feasible_start(problem)
            refused += 1
    assert solved > 5
    assert refused > 5


def test_thousands_of_choices_are_begun_in_moments(rng):
    layers, levels = 100, 12
    labels = np.repeat(np.arange(layers), levels)
    costs = np.tile(np.arange(levels, dtype=float), layers) * rng.integers(1, 5, size=layers)[labels]
    problem = BlockQubo(np.diag(costs**2), [1] * layers, labels=labels, costs=costs, budget=0.6 * costs.sum() / levels)
    assert problem.is_feasible(feasible_start(problem))
