from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from reference import BUDGETS, budgeted_problem, feasible_points, meets

from qubo_prune import BlockQubo, solve
from qubo_prune.errors import InputError
from qubo_prune.problem.budget_bounds import lower_bound
from qubo_prune.problem.budgets import highest_sums, lowest_of_groups
from qubo_prune.tables import rendered


@pytest.mark.parametrize("kind", BUDGETS)
def test_an_assignment_is_feasible_if_counts_and_sums_are_met(rng, kind):
    problem = budgeted_problem(rng, 9, kind)
    points = np.array(list(itertools.product((False, True), repeat=9)))
    said = [problem.is_feasible(x) for x in points]
    assert said == [meets(problem, x) for x in points]
    assert any(said)
    assert not all(said)


def test_whole_numbers_are_met_exactly_and_fractions_to_rounding():
    costs = [1e9, 1.0, 1.0]
    assert BlockQubo(np.eye(3), None, costs=costs, budget=1e9 + 2).is_feasible([1, 1, 1])
    assert not BlockQubo(np.eye(3), None, costs=costs, budget=1e9 + 2).is_feasible([1, 1, 0])
    tenths = BlockQubo(np.eye(3), None, costs=[0.1, 0.2, 0.7], budget=0.1 + 0.2)
    assert tenths.is_feasible([1, 1, 0])
    assert BlockQubo(np.eye(3), None, costs=[0.1] * 3, budget=0.3).is_feasible([1, 1, 1])


def test_the_other_sense_is_the_negative_of_both_sides():
    problem = BlockQubo(np.eye(3), None, costs=[-1.0, -2.0, -4.0], budget=-3.0)
    assert [problem.is_feasible(x) for x in ([1, 1, 0], [0, 0, 1], [0, 0, 0])] == [True, False, True]


@pytest.mark.parametrize("counts", [(), (2, 1)])
def test_the_highest_sums_are_those_of_enumeration(rng, counts):
    costs = rng.normal(size=(3, 6))
    labels = np.array([0, 1, 0, 1, 0, 1]) if counts else np.full(6, -1)
    points = feasible_points(BlockQubo(np.eye(6), counts or None, labels=labels if counts else None))
    if not counts:
        points = np.array(list(itertools.product((False, True), repeat=6)))
    np.testing.assert_allclose(highest_sums(costs, labels, counts), (points @ costs.T).max(axis=0), rtol=1e-12)


def test_the_lowest_of_groups_minimise_linear_energies_with_ties_by_position(rng):
    labels, counts = np.array([0, 1, 0, 1, 0, -1, -1]), (1, 2)
    linear = np.array([3.0, 1.0, 2.0, 1.0, 2.0, -0.5, 0.0])
    assert lowest_of_groups(linear, labels, counts).tolist() == [False, True, True, True, False, True, False]
    for _ in range(20):
        linear = rng.normal(size=7)
        y = lowest_of_groups(linear, labels, counts)
        least = math.inf
        for x in map(np.array, itertools.product((False, True), repeat=7)):
            if x[labels == 0].sum() == 1 and x[labels == 1].sum() == 2:
                least = min(least, float(linear[x].sum()))
        assert linear[y].sum() == pytest.approx(least)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"costs": [1.0, 2.0, 3.0]}, "costs is given without budget"),
        ({"budget": 1.0}, "budget is given without costs"),
        ({"costs": [1.0, 2.0], "budget": 1.0}, r"pass \(3,\) and a number"),
        ({"costs": [1.0, 2.0, 3.0], "budget": [1.0, 2.0]}, r"or \(k, 3\) and \(k,\)"),
        ({"costs": [[1.0, 2.0, 3.0]], "budget": 1.0}, r"costs have shape \(1, 3\) and budget \(\)"),
        ({"costs": [1.0, np.nan, 3.0], "budget": 1.0}, "costs holds NaN or infinite values"),
        ({"costs": [1.0, 2.0, 3.0], "budget": np.inf}, "budget holds NaN or infinite values"),
        ({"costs": [1e301, 2.0, 3.0], "budget": 1.0}, "divide both sides"),
        ({"costs": [1.0, 2.0, 3.0], "budget": 6.5}, "add up to 6 at most and 6.5 is asked"),
        ({"costs": [[1.0, 2.0, 3.0]] * 2, "budget": [1.0, 7.0]}, "meets budget 1"),
        ({"num_pruned": 1, "costs": [1.0, 2.0, 3.0], "budget": 4.0}, "with these counts meets the budget"),
    ],
)
def test_what_cannot_be_a_budget_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        BlockQubo(np.eye(3), **{"num_pruned": None} | arguments)


@pytest.mark.parametrize("kind", BUDGETS)
def test_other_energies_keep_the_constraints(rng, kind):
    problem = budgeted_problem(rng, 6, kind)
    other = problem.replaced(np.eye(6), 2.0)
    for x in map(np.array, itertools.product((False, True), repeat=6)):
        assert other.is_feasible(x) == problem.is_feasible(x)
    assert other.energy(np.ones(6)) == 8.0
    bare = problem.without_budgets(np.eye(6))
    assert (bare.num_budgets, bare.num_pruned) == (0, problem.num_pruned)


def test_a_problem_with_budgets_alone_is_not_free_and_says_what_it_asks():
    problem = BlockQubo(np.eye(3), None, costs=np.ones((2, 3)), budget=[1.0, 2.0])
    assert not problem.free
    assert "prune any number, 2 budgets" in repr(problem)
    shown = rendered(problem.__rich__(), 100)
    assert "budget 1" in shown
    assert "at least 2" in shown


def test_whole_numbers_are_exact_up_to_the_end_of_their_range():
    problem = BlockQubo(np.diag([1.0, 1000.0]), None, costs=[2.0**41, 1.0], budget=2.0**41 + 1)
    assert not problem.is_feasible([1, 0])
    assert problem.is_feasible([1, 1])
    for solver in ("greedy", "cpsat"):
        assert solve(problem, solver).energy == 1001.0
    assert lower_bound(problem, most=60).lower <= 1001.0


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ([[1], [2, 3]], "costs is .* pass numbers in rows of one length"),
        (["1", "2", "3"], "pass numbers"),
        ({1: 2}, "pass numbers"),
        ([1j, 2, 3], "pass numbers"),
        ([10**400, 1, 1], "pass numbers"),
        ([2**53 + 1, 1, 1], r"whole numbers of 2\^53 and more"),
        ([1e-300, 1.0, 1.0], "multiply or divide both sides"),
    ],
)
def test_what_are_no_costs_is_one_sentence(costs, said):
    with pytest.raises(InputError, match=said):
        BlockQubo(np.eye(3), None, costs=costs, budget=1.0)


def test_tensors_are_costs_wherever_they_come_from():
    costs = torch.ones(3, requires_grad=True)
    assert BlockQubo(np.eye(3), None, costs=costs, budget=torch.tensor(2.0)).is_feasible([1, 1, 0])


@pytest.mark.parametrize("solver", ["greedy", "local", "tabu", "tempering", "cpsat", "neal"])
def test_no_variables_meet_a_budget_of_nothing(solver):
    assert solve(BlockQubo(np.zeros((0, 0)), None, 1.5, costs=[], budget=0.0), solver).energy == 1.5
