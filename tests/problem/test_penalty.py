from __future__ import annotations

import doctest
from itertools import product

import numpy as np
import pytest
from reference import BUDGETS, budgeted_problem, energy, feasible_points, random_feasible, random_problem, swaps

import qubo_prune.problem.penalty
from qubo_prune import solve
from qubo_prune.errors import InputError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.problem.penalty import (
    SLACK_BITS,
    budget_multipliers,
    cost_scales,
    least_strength,
    multipliers,
    num_slack,
    penalised,
    relaxed,
    temperature_range,
)

LABELS = [0, 1, 0, 2, 1, 0, 2]


@pytest.fixture(params=["one group", "three groups", "factor form", "factor form in groups", "one variable", "empty"])
def problem(request, rng) -> BlockQubo:
    form = FactorForm(rng.normal(size=7), rng.normal(size=(7, 2)))
    return {
        "one group": random_problem(rng, 7, 3),
        "three groups": random_problem(rng, 7, (1, 2, 0), LABELS),
        "factor form": BlockQubo(form, 3, -1.0),
        "factor form in groups": BlockQubo(form, (2, 1, 1), 0.5, LABELS),
        "one variable": BlockQubo([[2.0]], 1, 0.5),
        "empty": BlockQubo(np.zeros((0, 0)), 0, 1.5),
    }[request.param]


def all_points(n: int) -> np.ndarray:
    return np.array(list(product((0, 1), repeat=n)), dtype=bool).reshape(2**n, n)


@pytest.mark.parametrize(("strength", "shift"), [(0.0, 0.0), (1.5, 0.0), (0.7, -2.0), (0.0, 3.0)])
def test_the_penalised_energy_is_the_formula_at_every_point(problem, strength, shift):
    free = penalised(problem, strength, shift)
    assert free.free
    assert isinstance(free.q, FactorForm) == isinstance(problem.q, FactorForm)
    for x in all_points(problem.num_variables):
        missed = problem.counts(x) - np.array(problem.num_pruned)
        expected = energy(problem, x) + sum(strength * s**2 - shift * s for s in missed)
        assert free.energy(x) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_each_group_has_its_own_penalty(rng):
    problem = random_problem(rng, 7, (1, 2, 0), LABELS)
    strength, shift = [1.0, 0.5, 3.0], [-1.0, 0.0, 2.0]
    free = penalised(problem, strength, shift)
    for x in all_points(7):
        missed = problem.counts(x) - np.array(problem.num_pruned)
        expected = energy(problem, x) + float(strength @ missed**2 - shift @ missed)
        assert free.energy(x) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_where_the_counts_are_met_it_is_the_energy(problem):
    free = penalised(problem, 2.5, -0.3)
    points = feasible_points(problem)
    np.testing.assert_allclose(free.energy(points), problem.energy(points), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf"), [1.0, -1.0, 1.0]])
def test_a_penalty_must_be_finite_and_not_negative(rng, strength):
    with pytest.raises(InputError, match="The penalty is"):
        penalised(random_problem(rng, 7, (1, 2, 0), LABELS), strength)


def test_a_multiplier_lies_between_the_cheapest_kept_and_the_dearest_pruned(rng):
    problem = random_problem(rng, 7, (1, 2, 1), LABELS)
    x = solve(problem, "exact").assignment
    for group, mu in enumerate(multipliers(problem, x)):
        costs = {True: [], False: []}
        for i in np.flatnonzero(problem.labels == group):
            pruned, kept = x.copy(), x.copy()
            pruned[i], kept[i] = True, False
            costs[bool(x[i])].append(energy(problem, pruned) - energy(problem, kept))
        sides = [*([min(costs[False])] if costs[False] else []), *([max(costs[True])] if costs[True] else [])]
        assert mu == pytest.approx(np.mean(sides), rel=1e-9, abs=1e-9)


def test_groups_of_one_kind_and_empty_groups_have_multipliers():
    problem = BlockQubo(np.diag([1.0, 2.0, 3.0, 4.0]), (0, 2, 0), labels=[0, 0, 1, 1])
    x = np.array([False, False, True, True])
    assert multipliers(problem, x).tolist() == [1.0, 4.0, 0.0]


def test_the_multiplier_makes_one_more_pruned_weight_cost_nothing():
    problem = BlockQubo(np.diag([1.0, 2.0, 3.0, 4.0]), 2)
    x = np.array([True, True, False, False])
    mu = multipliers(problem, x)
    assert mu.tolist() == [2.5]
    free = penalised(problem, 0.5 * np.abs(mu), mu)
    assert min(all_points(4), key=free.energy).tolist() == x.tolist()


def test_counts_that_cost_nothing_get_a_penalty_of_the_size_of_the_flip_costs():
    flat = BlockQubo(np.array([[0.0, 2.0], [2.0, 0.0]]), 1)
    x = np.array([True, False])
    assert least_strength(flat, np.zeros(1), x) == 4.0
    assert least_strength(flat, np.ones(1), x) == 0.0
    assert least_strength(BlockQubo(np.zeros((2, 2)), 1), np.zeros(1), x) == 1.0


def test_the_hot_end_is_the_median_change_of_a_swap(rng):
    for labels, counts in ((None, 3), (LABELS, (1, 1, 1))):
        problem = random_problem(rng, 7, counts, labels)
        x = random_feasible(rng, problem)
        changes = [abs(energy(problem, other) - energy(problem, x)) for other in swaps(problem, x)]
        hot, cold = temperature_range(problem, x)
        assert hot == pytest.approx(np.median(changes), rel=1e-9)
        assert cold == pytest.approx(hot / 1000)


def test_without_swaps_the_hot_end_is_the_median_change_of_a_flip(rng):
    problem = BlockQubo(np.diag([1.0, -5.0, 3.0]), 0)
    assert temperature_range(problem, np.zeros(3, dtype=bool))[0] == 3.0


def test_there_are_temperatures_for_every_problem(problem):
    hot, cold = temperature_range(problem, feasible_points(problem)[0])
    assert hot > cold > 0
    assert temperature_range(BlockQubo(np.zeros((3, 3)), 1), np.array([True, False, False]))[0] == 1.0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_everything_follows_the_scale_of_the_energies(rng, scale):
    problem = random_problem(rng, 9, 4)
    scaled = BlockQubo(scale * problem.dense(), 4)
    x = random_feasible(rng, problem)
    np.testing.assert_allclose(multipliers(scaled, x), scale * multipliers(problem, x), rtol=1e-9)
    np.testing.assert_allclose(temperature_range(scaled, x), scale * np.array(temperature_range(problem, x)), rtol=1e-9)


def test_large_problems_sample_their_swaps_by_the_seed(rng):
    problem = random_problem(rng, 80, 40)
    x = random_feasible(rng, problem)
    assert temperature_range(problem, x, 1) == temperature_range(problem, x, 1)
    assert temperature_range(problem, x, 1) != temperature_range(problem, x, 2)


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(qubo_prune.problem.penalty).failed == 0


@pytest.mark.parametrize("kind", BUDGETS)
def test_budgets_are_penalties_with_slack_at_every_point(rng, kind):
    problem = budgeted_problem(rng, 6, kind)
    g, k = problem.num_groups, problem.num_budgets
    strength, shift = rng.random(g + k), rng.normal(size=g + k)
    free, scale = penalised(problem, strength, shift), cost_scales(problem)
    assert free.free
    assert free.num_variables == 6 + num_slack(problem) == 6 + SLACK_BITS * k
    # with all of a budget's slack it is the most that is worth having; each variable has twice the one before
    highest = (np.where(problem.costs > 0, problem.costs, 0).sum(axis=1) - problem.budget) / scale
    for z in rng.random((200, free.num_variables)) < 0.5:
        x, slack = z[:6], z[6:].reshape(k, SLACK_BITS)
        missed = problem.counts(x) - np.array(problem.num_pruned)
        expected = energy(problem, x) + float(strength[:g] @ missed**2 - shift[:g] @ missed)
        # read from two points, the weights of the slack are what the formula leaves open
        over = (problem.amounts(x) - problem.budget) / scale
        for r in range(k):
            reach = _reach(problem, r)
            assert reach <= highest[r] + 1e-9
            t = over[r] - reach * float(slack[r] @ 2.0 ** np.arange(SLACK_BITS)) / (2.0**SLACK_BITS - 1)
            expected += strength[g + r] * t**2 - shift[g + r] * t
        assert free.energy(z) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def _reach(problem: BlockQubo, row: int) -> float:
    """Twice the largest cost, or what the sum can exceed the budget by, in units of the mean cost."""
    points = all_points(problem.num_variables)
    allowed = [x for x in points if (problem.counts(x) == problem.num_pruned).all()]
    most = max(float(problem.costs[row] @ x) for x in allowed) - problem.budget[row]
    return min(2 * np.abs(problem.costs[row]).max(), most) / cost_scales(problem)[row]


@pytest.mark.parametrize("kind", BUDGETS)
def test_relaxed_energies_bound_those_of_the_feasible(rng, kind):
    problem = budgeted_problem(rng, 9, kind)
    points = feasible_points(problem)
    for nu in (budget_multipliers(problem, points[0]), rng.random(problem.num_budgets)):
        linear = relaxed(problem, nu)
        assert linear.num_pruned == problem.num_pruned
        assert not linear.num_budgets
        for x in points[:50]:
            over = problem.amounts(x) - problem.budget
            assert linear.energy(x) == pytest.approx(energy(problem, x) - float(nu @ over), abs=1e-9)
            assert linear.energy(x) <= energy(problem, x) + 1e-9


@pytest.mark.parametrize("kind", ["count", "groups", "alone", "fractions"])
def test_the_multiplier_of_a_budget_maximises_the_dual_of_linear_energies(rng, kind):
    problem = budgeted_problem(rng, 9, kind)
    linear = problem.replaced(np.diag(problem.diagonal))
    unbudgeted = [x for x in all_points(9) if (problem.counts(x) == problem.num_pruned).all()]

    def dual(nu: float) -> float:
        return min(energy(linear, x) - nu * (problem.amounts(x)[0] - problem.budget[0]) for x in unbudgeted)

    (nu,) = budget_multipliers(linear, np.zeros(9, dtype=bool))
    assert nu >= 0
    assert dual(nu) >= max(dual(tried) for tried in np.linspace(0, 2 * nu + 0.1, 101)) - 1e-9
