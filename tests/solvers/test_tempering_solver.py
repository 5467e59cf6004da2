from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from qubo_prune_solvers._search import State
from qubo_prune_solvers.tempering import Ensemble, Tempering, change_places, force, relink
from reference import minimum, random_batch, random_feasible, random_problem, random_starts, swaps

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import BatchRequest, SolveRequest, Status
from qubo_prune.solver.dispatch import solve, solve_batch
from qubo_prune.solver.swaps.kernels import energy, flip_costs, form_of

SMALL = Tempering(replicas=4, rounds=10, threads=1)


def factor_problem(rng, n, num_pruned, labels=None):
    return BlockQubo(FactorForm(rng.normal(size=n), rng.normal(size=(n, 5))), num_pruned, 0.5, labels)


def problems_of_every_form(rng):
    labels = [0, 1, 2] * 4
    yield random_problem(rng, 12, 6)
    yield random_problem(rng, 12, (2, 1, 3), labels)
    yield factor_problem(rng, 12, 6)
    yield factor_problem(rng, 12, (1, 0, 4), labels)


def correlated_problem(rng, n):
    inputs = rng.normal(size=(200, n)) @ (np.eye(n) / 3 + rng.normal(size=(n, n)) / n**0.5)
    u = rng.normal(size=n)
    return BlockQubo(u[:, None] * (inputs.T @ inputs) * u, n // 2)


def ensemble_of(rng, problem, replicas=4, settings=SMALL):
    starts = [random_feasible(rng, problem) for _ in range(replicas)]
    return Ensemble(settings, form_of(problem, 100), starts, 3, 1)


def state_of(rng, problem):
    return State(form_of(problem, 100), random_feasible(rng, problem), 3)


def costs_at(form, x):
    return flip_costs(*form.couplings, form.own, x)


def test_small_problems_are_solved_to_the_optimum(rng):
    for _ in range(3):
        for problem in problems_of_every_form(rng):
            result = SMALL.solve(SolveRequest(problem, seed=3))
            assert problem.is_feasible(result.assignment)
            assert result.energy == pytest.approx(minimum(problem), rel=1e-12, abs=1e-12)
            assert result.status is Status.LOCAL_OPTIMUM


def test_no_single_swap_improves_an_answer(rng):
    for problem in (
        random_problem(rng, 40, 15),
        factor_problem(rng, 40, 20),
        random_problem(rng, 40, (4, 9), [0, 1] * 20),
    ):
        for x in Tempering(rounds=1).solve(SolveRequest(problem, random_feasible(rng, problem))).assignments:
            reached = problem.energy(x)
            assert min(problem.energy(other) for other in swaps(problem, x)) >= reached - 1e-9 * abs(reached)


def test_the_seed_decides_and_threads_do_not(rng):
    problem = correlated_problem(rng, 80)
    answers = [
        Tempering(rounds=3, walk=0.2, threads=threads).solve(SolveRequest(problem, seed=seed)).assignments
        for threads, seed in ((1, 5), (1, 5), (4, 5), (1, 6))
    ]
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])
    assert not np.array_equal(answers[0], answers[3])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("labels", [None, [0, 1] * 6])
def test_batches_are_solved_row_by_row(rng, shared, labels):
    batch = random_batch(rng, 4, 12, [6] if labels is None else [2, 4], labels, shared)
    request = BatchRequest(batch, random_starts(rng, batch), seed=2)
    answer = SMALL.solve_batch(request)
    assert torch.equal(answer.assignments, Tempering(replicas=4, rounds=10, threads=3).solve_batch(request).assignments)
    for row in range(4):
        problem, x = batch.problem(row), answer.assignments[row].numpy()
        assert problem.is_feasible(x)
        assert problem.energy(x) == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)
    assert answer.cut == frozenset()
    assert solve_batch(SMALL, request).failures == {}


@pytest.mark.parametrize("num_pruned", [0, 9])
def test_all_kept_or_all_pruned_leaves_nothing_to_do(rng, num_pruned):
    assert SMALL.solve(SolveRequest(random_problem(rng, 9, num_pruned))).assignment.sum() == num_pruned


@pytest.mark.parametrize("settings", [{"rounds": 10**9}, {"rounds": 0, "fill": True}])
def test_a_time_limit_ends_it_with_a_feasible_answer(rng, settings):
    problem, endless = random_problem(rng, 300, 100), Tempering(threads=1, **settings)
    began = time.monotonic()
    result = endless.solve(SolveRequest(problem, time_limit=0.2))
    assert time.monotonic() - began < 60
    assert result.status is Status.TIME_LIMIT
    assert problem.is_feasible(result.assignment)
    batch = random_batch(rng, 3, 30, [10])
    starts = random_starts(rng, batch)
    late = endless.solve_batch(BatchRequest(batch, starts, time_limit=1e-9))
    assert {status for status, _ in late.failures.values()} == {Status.TIME_LIMIT}
    each = endless.solve_batch(BatchRequest(batch, starts, row_time_limit=0.02))
    assert each.cut == {0, 1, 2}
    assert torch.equal(batch.counts(each.assignments), batch.num_pruned)


def test_without_a_limit_there_is_nothing_to_fill(rng):
    problem = random_problem(rng, 30, 10)
    answers = [
        Tempering(rounds=2, fill=fill).solve(SolveRequest(problem, time_limit=limit)).assignments
        for fill, limit in ((True, None), (False, 1000.0))
    ]
    assert np.array_equal(*answers)


def test_it_is_no_worse_than_a_short_tabu_search_on_correlated_rows(rng):
    for _ in range(3):
        problem = correlated_problem(rng, 120)
        start = random_feasible(rng, problem)
        short = solve(problem, "tabu", warm_start=start, starts=1, steps=1).energy
        assert SMALL.solve(SolveRequest(problem, start)).energy <= short * (1 + 1e-9)


@pytest.mark.parametrize(("settings", "word"), [({"tenure": (5, 2)}, "tenure"), ({"cold": 0.5}, "cold")])
def test_settings_that_contradict_are_refused(settings, word):
    with pytest.raises(InputError, match=word):
        Tempering(**settings)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_path_ends_between_the_two_and_keeps_every_count(rng, groups):
    labels = np.arange(40) % groups
    problem = random_problem(rng, 40, [16 // groups] * groups, labels)
    state = state_of(rng, problem)
    start, target = state.x.copy(), random_feasible(rng, problem)
    distance = int((start & ~target).sum())
    room = np.empty((2, groups, 4), dtype=np.int64)
    arguments = (*state.form.couplings, state.form.labels, state.x, state.costs, state.energies, state.best)
    assert relink(*arguments, target, state.free, room[0], room[1])
    assert problem.is_feasible(state.x)
    # weights in which they agree stay; a quarter to three quarters of the others have moved
    assert np.array_equal(state.x[start == target], start[start == target])
    assert distance / 4 <= (start & ~state.x).sum() <= 3 * distance / 4
    assert state.costs == pytest.approx(costs_at(state.form, state.x))
    assert state.energies[0] == pytest.approx(energy(state.form.own, state.costs, state.x))
    assert not state.free.any()


def test_there_is_no_path_between_neighbours(rng):
    problem = random_problem(rng, 20, 8)
    state = state_of(rng, problem)
    target, before = state.x.copy(), state.x.copy()
    target[np.flatnonzero(target)[0]], target[np.flatnonzero(~target)[0]] = False, True
    room = np.empty((2, 1, 4), dtype=np.int64)
    arguments = (*state.form.couplings, state.form.labels, state.x, state.costs, state.energies, state.best)
    assert not relink(*arguments, target, state.free, room[0], room[1])
    assert np.array_equal(state.x, before)


def test_forced_weights_are_flipped_by_their_best_swap_and_rest(rng):
    for problem in problems_of_every_form(rng):
        state = state_of(rng, problem)
        before = state.x.copy()
        arguments = (*state.form.couplings, state.form.labels, state.x, state.costs, state.energies)
        force(*arguments, state.free, state.random, 1, 6)
        assert problem.is_feasible(state.x)
        moved, held = np.flatnonzero(state.x != before), np.flatnonzero(state.free)
        # a weight of a group that is all kept or all pruned has no partner
        assert len(moved) in (0, 2)
        assert len(held) == len(moved) // 2
        if len(held):
            assert held[0] in moved
            assert state.free[held[0]] == 7
            others = [x for x in swaps(problem, before) if x[held[0]] != before[held[0]]]
            assert problem.energy(state.x) == pytest.approx(min(problem.energy(x) for x in others))
        assert state.costs == pytest.approx(costs_at(state.form, state.x))
        assert state.energies[0] + problem.offset == pytest.approx(problem.energy(state.x))


def test_exchanges_follow_metropolis_rule(rng):
    places, energies, temperatures = np.array([0, 1]), np.array([3.0, 1.0]), np.array([1.0, 2.0])
    random = np.array([5], dtype=np.uint64)
    change_places(places, energies, temperatures, 0, random)
    assert places.tolist() == [1, 0]
    # now the colder one is the lower by 2: exp(-2 (1 - 1/2)) of the exchanges are made
    made = 0
    for _ in range(4000):
        places[:] = 1, 0
        change_places(places, energies, temperatures, 0, random)
        made += places.tolist() == [0, 1]
    assert made / 4000 == pytest.approx(np.exp(-1.0), abs=0.04)
    # odd turns have other pairs
    places[:] = 0, 1
    change_places(places, energies, temperatures, 1, random)
    assert places.tolist() == [0, 1]


def test_rounds_keep_energies_and_the_best_of_each_replica(rng):
    problem, clock = correlated_problem(rng, 60), Deadline(None)
    ensemble = ensemble_of(rng, problem, settings=Tempering(walk=0.3, hot=5.0))
    replicas = ensemble.replicas
    ensemble.begin(clock)
    # the best replica is the coldest, and temperatures are the instance's
    assert replicas.places[int(np.argmin(replicas.energies[:, 0]))] == 0
    lowest = replicas.lowest.copy()
    for _ in range(12):
        ensemble.rounds(1, clock)
        assert sorted(replicas.places) == list(range(4))
        for x, costs, reached in zip(replicas.x, replicas.costs, replicas.energies[:, 0], strict=True):
            assert reached == pytest.approx(problem.energy(x) - problem.offset, rel=1e-9)
            assert costs == pytest.approx(problem.flip_costs(x), rel=1e-7, abs=1e-7)
        lowest = np.minimum(lowest, replicas.energies[:, 0])
    assert np.array_equal(replicas.lowest, lowest)
    assert replicas.lowest == pytest.approx([problem.energy(x) - problem.offset for x in replicas.found])
    assert replicas.temperatures == pytest.approx(replicas.temperatures[-1] / 5 * np.geomspace(0.02, 5.0, 4))
    assert replicas.temperatures[0] > 0
    ends = ensemble.finish(clock)
    assert problem.energy(ends[0]) <= lowest.min() + problem.offset + 1e-9


@pytest.mark.parametrize("groups", [1, 3])
def test_rounds_by_hand_are_the_compiled_rounds(rng, groups, monkeypatch):
    problem = random_problem(rng, 30, [12 // groups] * groups, np.arange(30) % groups)
    starts = [random_feasible(rng, problem) for _ in range(5)]
    ends = []
    for chunk in (1000, 1):  # so little that every replica is moved from Python
        monkeypatch.setattr("qubo_prune_solvers.tempering._CHUNK", chunk)
        ensemble = Ensemble(SMALL, form_of(problem, 100), starts, 3, 2)
        assert (ensemble.at_once > 1) == (chunk > 1)
        ensemble.begin(Deadline(None))
        for _ in range(3):
            ensemble.rounds(7, Deadline(None))
        ends.append(ensemble.replicas)
    for one, other in zip(*ends, strict=True):
        assert np.array_equal(one, other)
