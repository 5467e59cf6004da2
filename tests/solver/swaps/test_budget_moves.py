from __future__ import annotations

import numpy as np
import pytest
from reference import BUDGETS, budgeted_problem, elementary_moves, energy, feasible_points, meets

from qubo_prune.solver.swaps.budgets import (
    BudgetState,
    best_move,
    change_of,
    make_move,
    random_move,
    settle_budgets,
)
from qubo_prune.solver.swaps.kernels import form_of


@pytest.fixture(params=BUDGETS)
def problem(request, rng):
    return budgeted_problem(rng, 9, request.param)


def state_at(problem, x) -> BudgetState:
    return BudgetState(problem, form_of(problem), x, 3)


def test_a_descent_ends_where_no_allowed_elementary_move_gains(problem, rng):
    points = feasible_points(problem)
    for x in points[rng.permutation(len(points))[:10]]:
        settled = settle_budgets(problem, x)
        assert meets(problem, settled)
        assert energy(problem, settled) <= energy(problem, x) + 1e-9
        reached = min(energy(problem, other) for other in elementary_moves(problem, settled))
        assert reached >= energy(problem, settled) - 1e-9


def test_a_descent_finds_most_optima_of_small_problems(rng):
    found = []
    for kind in BUDGETS:
        for _ in range(4):
            problem = budgeted_problem(rng, 9, kind)
            points = feasible_points(problem)
            best = min(energy(problem, x) for x in points)
            found.append(min(energy(problem, settle_budgets(problem, x)) for x in points[:3]) <= best + 1e-9)
    assert np.mean(found) > 0.8


def test_moves_keep_what_binds_and_change_the_energy_by_what_they_say(problem):
    state = state_at(problem, feasible_points(problem)[0])
    c, rules, place = state.arguments
    total = energy(problem, place.x)
    kinds = set()
    for _ in range(300):
        if not random_move(rules, place, state.random):
            continue
        total += change_of(c, place)
        kinds.add(tuple((place.move >= 0).tolist()))
        make_move(c, rules, place)
        assert meets(problem, place.x)
        assert energy(problem, place.x) == pytest.approx(total, abs=1e-9)
    np.testing.assert_allclose(place.flips, problem.flip_costs(place.x), atol=1e-9)
    np.testing.assert_allclose(place.spare, problem.amounts(place.x) - rules.least, atol=1e-9)
    assert len(kinds) > 1  # single moves, and pairs of them where one alone is not allowed


def test_the_best_move_is_the_best_of_enumeration(problem):
    for x in feasible_points(problem)[:20]:
        state = state_at(problem, x)
        change = best_move(*state.arguments, 0, 9, 0)
        reached = [energy(problem, other) for other in elementary_moves(problem, x)]
        expected = min(reached, default=np.inf) - (energy(problem, x) if reached else 0.0)
        assert change == pytest.approx(expected, abs=1e-9)
        # pairs can only add to it
        assert best_move(*state.arguments, 0, 9, 32) <= change + 1e-12


def test_what_may_not_move_yet_takes_no_part(problem):
    state = state_at(problem, feasible_points(problem)[0])
    state.place.free[:] = 5
    assert best_move(*state.arguments, 4, 9, 32) == np.inf
    assert best_move(*state.arguments, 5, 9, 32) < np.inf
    state.place.free[:4] = 6
    best_move(*state.arguments, 5, 9, 32)
    assert not {0, 1, 2, 3} & set(state.place.move.tolist())
