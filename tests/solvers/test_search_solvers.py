"""What the compiled swap searches share: `tabu`, `local` and `anneal`."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from qubo_prune_solvers._relaxation import dual_bound, optimise, relaxed
from qubo_prune_solvers._starts import starts_of
from qubo_prune_solvers.anneal import Anneal
from qubo_prune_solvers.local import Local
from qubo_prune_solvers.tabu import Tabu
from reference import minimum, random_batch, random_feasible, random_problem, random_starts, swaps

from qubo_prune import solve
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import BatchRequest, SolveRequest, Status
from qubo_prune.solver.dispatch import solve_batch
from qubo_prune.solver.swaps.kernels import (
    best_swap,
    coupling,
    energy,
    exchange,
    flip_costs,
    form_of,
    forms_of,
    settle_form,
)

SEARCHES = [Tabu(threads=1), Local(threads=1), Anneal(threads=1)]
by_name = pytest.mark.parametrize("search", SEARCHES, ids=lambda s: type(s).__name__)


def factor_problem(rng, n, num_pruned, rank=5, labels=None):
    return BlockQubo(FactorForm(rng.normal(size=n), rng.normal(size=(n, rank))), num_pruned, 0.5, labels)


def problems_of_every_form(rng):
    labels = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    yield random_problem(rng, 12, 6)
    yield random_problem(rng, 12, (2, 1, 3), labels)
    yield factor_problem(rng, 12, 6)
    yield factor_problem(rng, 12, (1, 0, 4), labels=labels)


@by_name
def test_small_problems_are_solved_to_the_optimum(rng, search):
    for _ in range(3):
        for problem in problems_of_every_form(rng):
            result = search.solve(SolveRequest(problem, seed=3))
            assert problem.is_feasible(result.assignment)
            assert result.energy == pytest.approx(minimum(problem), rel=1e-12, abs=1e-12)


@by_name
@pytest.mark.parametrize("form", ["dense", "factor", "groups"])
def test_no_single_swap_improves_an_answer(rng, search, form):
    n = 40
    problem = {
        "dense": lambda: random_problem(rng, n, 15),
        "factor": lambda: factor_problem(rng, n, 20),
        "groups": lambda: random_problem(rng, n, (4, 9), [0, 1] * 20),
    }[form]()
    for x in search.solve(SolveRequest(problem, random_feasible(rng, problem))).assignments:
        reached = problem.energy(x)
        assert min(problem.energy(other) for other in swaps(problem, x)) >= reached - 1e-9 * abs(reached)


@by_name
def test_the_seed_decides_and_threads_do_not(rng, search):
    problem = random_problem(rng, 60, 30)
    first, again, threaded = (
        type(search)(threads=threads).solve(SolveRequest(problem, seed=5)).assignments for threads in (1, 1, 4)
    )
    assert np.array_equal(first, again)
    assert np.array_equal(first, threaded)


@by_name
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("labels", [None, [0, 1] * 6])
def test_batches_are_solved_row_by_row_in_any_form(rng, search, shared, labels):
    batch = random_batch(rng, 5, 12, [6] if labels is None else [2, 4], labels, shared)
    starts = random_starts(rng, batch)
    request = BatchRequest(batch, starts, seed=2)
    answer = search.solve_batch(request)
    assert torch.equal(answer.assignments, type(search)(threads=3).solve_batch(request).assignments)
    for row in range(5):
        problem, x = batch.problem(row), answer.assignments[row].numpy()
        assert problem.is_feasible(x)
        # a few hundred steps on 12 variables leave nothing to find
        assert problem.energy(x) == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)
    assert torch.equal(starts, request.warm_start)
    assert solve_batch(search, request).failures == {}


@by_name
def test_a_time_limit_ends_the_search_with_a_feasible_answer(rng, search):
    problem = random_problem(rng, 300, 100)
    endless = {Tabu: Tabu(steps=10**9), Local: Local(rounds=10**6), Anneal: Anneal(sweeps=10**6)}[type(search)]
    endless.solve(SolveRequest(random_problem(rng, 8, 4), time_limit=0.01))  # compiles
    began = time.monotonic()
    result = endless.solve(SolveRequest(problem, time_limit=0.2))
    assert time.monotonic() - began < 10
    assert result.status is Status.TIME_LIMIT
    assert problem.is_feasible(result.assignment)
    batch = random_batch(rng, 3, 30, [10])
    late = endless.solve_batch(BatchRequest(batch, random_starts(rng, batch), time_limit=1e-9))
    assert {status for status, _ in late.failures.values()} == {Status.TIME_LIMIT}
    each = endless.solve_batch(BatchRequest(batch, random_starts(rng, batch), row_time_limit=0.05))
    assert bool((batch.counts(each.assignments) == batch.num_pruned).all())


@by_name
@pytest.mark.parametrize("num_pruned", [0, 9])
def test_all_kept_or_all_pruned_leaves_nothing_to_do(rng, search, num_pruned):
    result = search.solve(SolveRequest(random_problem(rng, 9, num_pruned)))
    assert result.assignment.sum() == num_pruned


@by_name
def test_it_beats_a_plain_descent_on_correlated_rows(rng, search):
    inputs = rng.normal(size=(200, 120)) @ (np.eye(120) / 3 + rng.normal(size=(120, 120)) / 120**0.5)
    better = 0
    for _ in range(4):
        u = rng.normal(size=120)
        problem = BlockQubo(u[:, None] * (inputs.T @ inputs) * u, 60)
        start = np.zeros(120, dtype=bool)
        start[np.argsort(problem.diagonal)[:60]] = True
        plain = solve(problem, "greedy", warm_start=start).energy
        found = solve(problem, search, warm_start=start).energy
        assert found <= plain * 1.02
        better += found < plain * 0.999
    assert better >= 2


def test_cached_costs_stay_those_of_a_fresh_sum(rng):
    for problem in problems_of_every_form(rng):
        form, x = form_of(problem), random_feasible(rng, problem)
        costs = flip_costs(*form.couplings, form.own, x)
        assert costs == pytest.approx(problem.flip_costs(x))
        for _ in range(20):
            kept, pruned = np.flatnonzero(~x), np.flatnonzero(x)
            u, p = int(rng.choice(kept)), int(rng.choice(pruned))
            before = problem.energy(x)
            change = costs[u] - costs[p] - coupling(*form.couplings, u, p)
            exchange(*form.couplings, u, p, x, costs)
            assert problem.energy(x) - before == pytest.approx(change, rel=1e-9, abs=1e-9)
            assert costs == pytest.approx(problem.flip_costs(x))
            assert energy(form.own, costs, x) + problem.offset == pytest.approx(problem.energy(x))


def test_forms_of_a_batch_are_the_rows_problems(rng):
    for shared in (True, False):
        batch = random_batch(rng, 3, 7, [3], shared=shared)
        for row, form in enumerate(forms_of(batch)):
            problem = batch.problem(row)
            x = random_feasible(rng, problem)
            assert form.own == pytest.approx(problem.diagonal)
            assert flip_costs(*form.couplings, form.own, x) == pytest.approx(problem.flip_costs(x))


def test_couplings_stay_within_their_bounds(rng):
    batch = random_batch(rng, 2, 9, [4])
    zero_curvature = BlockQubo(np.array([[0.0, 1.0], [1.0, 0.0]]), 1)
    forms = [form_of(p) for p in (*problems_of_every_form(rng), zero_curvature)] + list(forms_of(batch))
    for form in forms:
        for i, j in np.ndindex(form.num_variables, form.num_variables):
            if i != j:
                assert abs(coupling(*form.couplings, i, j)) <= form.pull[i] * form.size[j] * (1 + 1e-12)


@pytest.mark.parametrize("width", [1, 8])
def test_settling_ends_where_no_pair_gains(rng, width):
    for problem in (*problems_of_every_form(rng), random_problem(rng, 50, 20), factor_problem(rng, 50, 25)):
        x = random_feasible(rng, problem)
        before = problem.energy(x)
        settle_form(form_of(problem), x, width)
        assert problem.is_feasible(x)
        assert problem.energy(x) <= before + 1e-9
        assert min(problem.energy(other) for other in swaps(problem, x)) >= problem.energy(x) - 1e-9


@pytest.mark.parametrize("width", [3, 12])
def test_the_best_swap_is_the_best_pair_of_the_candidates(rng, width):
    for problem in problems_of_every_form(rng):
        form, x = form_of(problem), random_feasible(rng, problem)
        costs = problem.flip_costs(x)
        barred = rng.random(12) < 0.2
        free = np.where(barred, 9, 0)
        room = np.empty((2, problem.num_groups, width), dtype=np.int64)
        best, u, p = best_swap(*form.couplings, form.labels, x, costs, free, 5, width, room[0], room[1])
        expected = np.inf
        for group in range(problem.num_groups):
            inside = (problem.labels == group) & ~barred
            kept = sorted(np.flatnonzero(inside & ~x), key=lambda i: costs[i])[:width]
            pruned = sorted(np.flatnonzero(inside & x), key=lambda i: -costs[i])[:width]
            for i in kept:
                for j in pruned:
                    expected = min(expected, costs[i] - costs[j] - problem.couplings(int(i))[j])
        assert best == pytest.approx(expected)
        if np.isfinite(expected):
            other = x.copy()
            other[u], other[p] = True, False
            assert problem.energy(other) - problem.energy(x) == pytest.approx(best)
        else:
            assert (u, p) == (-1, -1)


@pytest.mark.parametrize("n", [192, 250, 576])
@pytest.mark.parametrize("width", [1, 4, 16])
def test_candidates_of_many_weights_are_the_best_of_either_kind_by_cost_then_place(rng, n, width):
    # round costs have ties; where few weights are free there are fewer candidates than places for them
    for decimals, share in ((9, 0.9), (0, 0.9), (1, 0.5), (1, 0.01), (9, 0.0)):
        costs, x = np.round(rng.normal(size=n), decimals), rng.random(n) < 0.4
        free = np.where(rng.random(n) < share, rng.integers(0, 5, size=n), 9)
        room = np.full((2, 1, width), -1)
        nothing = np.zeros((n, n)), np.ones(n), np.zeros((0, 0))
        change, u, p = best_swap(*nothing, np.zeros(n, dtype=np.int64), x, costs, free, 5, width, room[0], room[1])
        expected = []
        for side, found in ((False, room[0, 0]), (True, room[1, 0])):
            able = np.flatnonzero((x == side) & (free <= 5))
            best = able[np.argsort(-costs[able] if side else costs[able], kind="stable")][:width]
            assert found.tolist() == best.tolist() + [-1] * (width - len(best))
            expected.append(best)
        if min(map(len, expected)):
            assert (change, u, p) == (costs[expected[0][0]] - costs[expected[1][0]], expected[0][0], expected[1][0])
        else:
            assert (change, u, p) == (np.inf, -1, -1)


def test_starts_are_feasible_and_begin_with_the_given_one(rng):
    for problem in problems_of_every_form(rng):
        form, warm = form_of(problem), random_feasible(rng, problem)
        starts = starts_of(form, warm, 6, seed=1)
        assert len(starts) == 6
        assert all(problem.is_feasible(x) for x in starts)
        assert np.array_equal(starts[0], warm)
        lowest = starts_of(form, None, 1, seed=1)[0]
        for group in range(problem.num_groups):
            inside = problem.labels == group
            assert problem.diagonal[inside & lowest].max(initial=-np.inf) <= problem.diagonal[inside & ~lowest].min(
                initial=np.inf
            )


def test_the_relaxation_is_optimal_and_its_dual_certifies_it(rng):
    labels = np.array([0, 1] * 6)
    factor = rng.normal(size=(12, 12))
    matrix, linear, counts = factor @ factor.T, rng.normal(size=12), np.array([2, 4])
    y = relaxed(matrix, linear, labels, counts, most=10_000)
    assert ((y >= 0) & (y <= 1)).all()
    assert np.bincount(labels, weights=y) == pytest.approx(counts)
    value, gradient = y @ matrix @ y + linear @ y, 2 * matrix @ y + linear
    free = np.zeros(12, dtype=np.int64)
    bound = dual_bound(labels, counts, free, y, gradient, value, np.empty(2))
    assert bound == pytest.approx(value, rel=1e-3)
    for _ in range(200):
        other = rng.random(12)
        for group in (0, 1):
            inside = labels == group
            other[inside] *= counts[group] / other[inside].sum()
        if (other <= 1).all():
            assert other @ matrix @ other + linear @ other >= bound - 1e-9
    # a bound holds at any point, not only at the optimum
    flat = (counts / 6)[labels]
    slope = 2 * matrix @ flat + linear
    early = dual_bound(labels, counts, free, flat, slope, flat @ matrix @ flat + linear @ flat, np.empty(2))
    assert early <= bound + 1e-9
    room = np.empty((2, 2), dtype=np.int64)
    change, _ = optimise(matrix, labels, 2, free, flat, slope, 1e-12, 10_000, room)
    assert change <= 0
    assert slope == pytest.approx(2 * matrix @ flat + linear)


@by_name
def test_whole_rows_never_form_their_matrix(rng, search, monkeypatch):
    batch = random_batch(rng, 3, 20, [10])
    monkeypatch.setattr(type(batch), "problem", lambda *_: pytest.fail("Q was formed"))
    search.solve_batch(BatchRequest(batch, torch.zeros(3, 20, dtype=torch.bool).index_fill_(1, torch.arange(10), True)))


@by_name
def test_factor_form_beyond_the_size_never_becomes_a_matrix(rng, search, monkeypatch):
    problem = factor_problem(rng, 30, 15)
    monkeypatch.setattr("qubo_prune_solvers._search.MATRIX_UP_TO", 29)
    monkeypatch.setattr(BlockQubo, "dense", lambda *_: pytest.fail("Q was formed"))
    assert problem.is_feasible(search.solve(SolveRequest(problem)).assignment)


def grouped_problem(rng, n: int, groups: int, form: str) -> BlockQubo:
    """Groups of different sizes, some with nothing kept or nothing pruned."""
    labels = np.sort(rng.integers(0, groups, n))
    labels[:groups] = np.arange(groups)
    labels = labels[rng.permutation(n)]
    sizes = np.bincount(labels, minlength=groups)
    counts = [int(rng.integers(0, size + 1)) for size in sizes]
    q = rng.normal(size=(n, n)) if form == "dense" else FactorForm(rng.normal(size=n), rng.normal(size=(n, 4)))
    return BlockQubo(q, counts, 0.0, labels)


@pytest.mark.parametrize("form", ["dense", "factor"])
@pytest.mark.parametrize("groups", [2, 7, 25])
def test_the_best_swap_of_many_groups_is_the_best_of_all_pairs(rng, form, groups):
    for _ in range(5):
        problem = grouped_problem(rng, 60, groups, form)
        x, view = random_feasible(rng, problem), form_of(problem)
        assert (view.matrix.size == 0) == (form == "factor")
        costs = problem.flip_costs(x)
        room = np.empty((2, groups, 60), dtype=np.int64)
        free = np.zeros(60, dtype=np.int64)
        best, u, p = best_swap(*view.couplings, view.labels, x, costs, free, 0, 60, room[0], room[1])
        energies = {tuple(np.flatnonzero(other != x)): problem.energy(other) for other in swaps(problem, x)}
        assert tuple(sorted((u, p))) == min(energies, key=energies.__getitem__)
        assert best == pytest.approx(min(energies.values()) - problem.energy(x), rel=1e-9)
        assert not x[u]
        assert x[p]
        # weights that rest are no candidates, whatever they would gain
        free[[u, p]] = 3
        less, v, q = best_swap(*view.couplings, view.labels, x, costs, free, 2, 60, room[0], room[1])
        rest = {pair: energy for pair, energy in energies.items() if not {u, p} & set(pair)}
        assert tuple(sorted((v, q))) == min(rest, key=rest.__getitem__)
        assert less >= best


@pytest.mark.parametrize("rank", [2, 9, 10, 30])
@pytest.mark.parametrize("groups", [1, 5])
def test_a_factor_is_multiplied_out_where_it_is_wide_and_that_changes_nothing(rng, rank, groups):
    counts, labels = [4 * 2 // groups] * groups, np.arange(40) % groups
    factor = FactorForm(rng.normal(size=40), rng.normal(size=(40, rank)))
    problem = BlockQubo(factor, counts, 0.5, labels)
    dense = BlockQubo(problem.dense(), counts, 0.5, labels)
    view, other = form_of(problem), form_of(dense)
    assert (view.matrix.size == 0) == (4 * rank < 40)
    for form in (view, other):
        assert form.own == pytest.approx(problem.diagonal)
    x = random_feasible(rng, problem)
    costs = [flip_costs(*form.couplings, form.own, x) for form in (view, other)]
    assert costs[0] == pytest.approx(problem.flip_costs(x), rel=1e-9, abs=1e-9)
    assert costs[1] == pytest.approx(costs[0], rel=1e-9, abs=1e-9)
    for i, j in rng.integers(0, 40, size=(30, 2)):
        if i != j:
            assert coupling(*view.couplings, i, j) == pytest.approx(coupling(*other.couplings, i, j), abs=1e-12)
    free, found = np.zeros(40, dtype=np.int64), []
    for form, own in zip((view, other), costs, strict=True):
        room = np.empty((2, groups, 8), dtype=np.int64)
        found.append(best_swap(*form.couplings, form.labels, x, own, free, 0, 8, room[0], room[1]))
    assert found[0][1:] == found[1][1:]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    # a whole descent takes the same way
    ends = []
    for form in (view, other):
        end = x.copy()
        settle_form(form, end, 8)
        ends.append(end)
    assert np.array_equal(*ends)
    assert problem.energy(ends[0]) < problem.energy(x)


def test_flip_costs_are_energies_of_single_flips(rng):
    for problem in (random_problem(rng, 15, 6), factor_problem(rng, 15, 6, rank=2), factor_problem(rng, 15, 6, rank=9)):
        form, x = form_of(problem), random_feasible(rng, problem)
        costs = flip_costs(*form.couplings, form.own, x)
        for i in range(15):
            kept, pruned = x.copy(), x.copy()
            kept[i], pruned[i] = False, True
            assert costs[i] == pytest.approx(problem.energy(pruned) - problem.energy(kept), rel=1e-9, abs=1e-9)
    assert flip_costs(*form.couplings, form.own, np.zeros(15, dtype=bool)) == pytest.approx(problem.diagonal)


@by_name
def test_factor_form_is_searched_as_a_matrix_where_that_fits(rng, search, monkeypatch):
    problem = BlockQubo(FactorForm(rng.normal(size=40), rng.normal(size=(40, 3))), 20)
    seen = []
    monkeypatch.setattr(type(search), "search", lambda self, state, clock: seen.append(state.form.matrix.size))
    search.solve(SolveRequest(problem))
    monkeypatch.setattr("qubo_prune_solvers._search.MATRIX_UP_TO", 39)
    search.solve(SolveRequest(problem))
    starts = len(seen) // 2
    assert seen == [1600] * starts + [0] * starts


@by_name
def test_both_forms_of_a_problem_end_where_no_swap_gains(rng, search, monkeypatch):
    problem = BlockQubo(FactorForm(rng.normal(size=40), rng.normal(size=(40, 3))), (8, 9), 1.5, np.arange(40) % 2)
    start = random_feasible(rng, problem)
    built = search.solve(SolveRequest(problem, start, seed=3))
    monkeypatch.setattr("qubo_prune_solvers._search.MATRIX_UP_TO", 0)
    plain = search.solve(SolveRequest(problem, start, seed=3))
    for result in (built, plain):
        assert problem.is_feasible(result.assignment)
        assert result.energy < problem.energy(start)
        others = swaps(problem, result.assignment)
        assert min(problem.energy(x) for x in others) >= result.energy - 1e-9 * abs(result.energy)


@pytest.mark.parametrize("rank", [0, 2, 7])
def test_the_matrix_of_factor_form_is_the_sum_of_its_parts(rng, rank):
    form = FactorForm(rng.normal(size=5), rng.normal(size=(5, rank)))
    assert BlockQubo(form, 2).dense() == pytest.approx(np.diag(form.diagonal) + form.factor @ form.factor.T, rel=1e-15)
