"""The torch form of `tabu` against the compiled one."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from qubo_prune_solvers import _batched_tabu
from qubo_prune_solvers._batched_tabu import Rules, Searches, always_free, candidates
from qubo_prune_solvers.tabu import Tabu
from reference import random_batch, random_starts, swaps

from qubo_prune.solver import BatchRequest, Status
from qubo_prune.solver.dispatch import solve_batch
from qubo_prune.solver.swaps.kernels import below

GROUPS = [([12], None), ([3, 7], [0, 1] * 12), ([1] * 12, [i // 2 for i in range(24)])]


def both(request, **settings):
    return tuple(
        Tabu(kernel=kernel, threads=1, **settings).solve_batch(request).assignments for kernel in ("compiled", "torch")
    )


@pytest.mark.gate(3)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("counts", "labels"), GROUPS)
def test_both_forms_make_the_same_moves(rng, shared, counts, labels):
    batch = random_batch(rng, 6, 24, counts, labels, shared)
    starts = random_starts(rng, batch)
    before = starts.clone()
    # little patience, so that searches restart, each when its own time has come
    for settings in ({}, {"patience": 7, "kick": 3, "steps": 6}, {"starts": 1, "candidates": 30, "tenure": (0, 2)}):
        compiled, torched = both(BatchRequest(batch, starts, seed=4), **settings)
        assert torch.equal(compiled, torched)
    assert torch.equal(starts, before)
    assert not torch.equal(starts, torched)


def test_searches_that_are_cut_short_are_where_the_compiled_ones_are(rng):
    # without the last descent, and long before every search has ended in the same optimum
    batch = random_batch(rng, 5, 60, [30])
    request = BatchRequest(batch, random_starts(rng, batch), seed=1)
    for steps in (1, 2):
        compiled, torched = both(request, steps=steps, patience=9)
        assert torch.equal(compiled, torched)


def test_rows_have_their_own_counts_and_some_have_nothing_to_choose(rng):
    batch = random_batch(rng, 6, 12, [0])
    batch.num_pruned[:, 0] = torch.tensor([0, 3, 12, 6, 1, 11])
    compiled, torched = both(BatchRequest(batch, random_starts(rng, batch), seed=2))
    assert torched.sum(1).tolist() == [0, 3, 12, 6, 1, 11]
    assert torch.equal(compiled, torched)


def test_groups_of_a_row_may_be_all_kept_or_all_pruned(rng):
    labels = [0, 1, 2] * 5
    batch = random_batch(rng, 3, 15, [1, 1, 1], labels)
    batch.num_pruned[:] = torch.tensor([[0, 5, 2], [5, 2, 0], [0, 5, 0]])
    compiled, torched = both(BatchRequest(batch, random_starts(rng, batch), seed=2))
    assert torch.equal(batch.counts(torched), batch.num_pruned)
    assert torch.equal(compiled, torched)


def test_nothing_to_solve_is_answered_with_nothing(rng):
    batch = random_batch(rng, 2, 8, [4]).rows(slice(0, 0))
    answer = Tabu(kernel="torch").solve_batch(BatchRequest(batch, torch.zeros(0, 8, dtype=torch.bool)))
    assert answer.assignments.shape == (0, 8)


def test_parts_of_rows_bound_the_memory_and_change_nothing(rng, monkeypatch):
    batch = random_batch(rng, 7, 16, [8], shared=False)
    request = BatchRequest(batch, random_starts(rng, batch), seed=3)
    solver, sizes, real = Tabu(kernel="torch"), [], _batched_tabu.Searches
    whole = solver.solve_batch(request).assignments

    def counted(batch, x, seeds, thresholds):
        sizes.append(x.numel())
        return real(batch, x, seeds, thresholds)

    monkeypatch.setattr(_batched_tabu, "Searches", counted)
    monkeypatch.setattr(_batched_tabu, "_ENTRIES_CPU", 200)
    assert torch.equal(solver.solve_batch(request).assignments, whole)
    assert sizes == [3 * 4 * 16, 3 * 4 * 16, 1 * 4 * 16]


def test_answers_are_swap_optimal_and_pass_the_checks_around_a_solver(rng):
    batch = random_batch(rng, 4, 30, [10, 4], [0, 0, 1] * 10)
    answer = solve_batch(Tabu(kernel="torch", steps=2), BatchRequest(batch, random_starts(rng, batch)))
    assert answer.failures == {}
    assert (answer.change < 0).all()
    for row in range(4):
        problem, x = batch.problem(row), answer.assignments[row].numpy()
        reached = problem.energy(x)
        assert min(problem.energy(other) for other in swaps(problem, x)) >= reached - 1e-9 * abs(reached)


def test_limits_end_the_search_and_are_reported(rng, monkeypatch):
    batch = random_batch(rng, 5, 30, [10])
    starts = random_starts(rng, batch)
    endless = Tabu(kernel="torch", steps=10**8)
    late = endless.solve_batch(BatchRequest(batch, starts, time_limit=1e-9))
    assert {row: status for row, (status, _) in late.failures.items()} == dict.fromkeys(range(5), Status.TIME_LIMIT)
    assert torch.equal(late.assignments, starts)
    began = time.monotonic()
    each = endless.solve_batch(BatchRequest(batch, starts, row_time_limit=0.05))
    assert time.monotonic() - began < 60
    assert each.cut == frozenset(range(5))
    assert each.failures == {}
    assert torch.equal(batch.counts(each.assignments), batch.num_pruned)
    # the parts after the one in which time ran out keep their warm start
    monkeypatch.setattr(_batched_tabu, "_ENTRIES_CPU", 2 * 4 * 30)
    some = endless.solve_batch(BatchRequest(batch, starts, time_limit=0.05))
    assert some.cut == {0, 1}
    assert set(some.failures) == {2, 3, 4}
    assert torch.equal(some.assignments[2:], starts[2:])
    done = Tabu(kernel="torch", steps=1).solve_batch(BatchRequest(batch, starts))
    assert done.cut == frozenset()


def searches(rng, labels=None, counts=(6,)):
    batch = random_batch(rng, 3, 12, list(counts), labels)
    x = random_starts(rng, batch)
    return batch, Searches(batch, x, torch.tensor([5, 2**62, 7]), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("most", [1, 6, 1000])
def test_random_numbers_are_those_of_the_compiled_form(rng, most):
    _, state = searches(rng)
    streams = [np.array([seed], dtype=np.uint64) for seed in (5, 2**62, 7)]
    for some in ([0, 1, 2], [1], [0, 2], [0, 1, 2]):
        drawn = state.below(torch.tensor(some), most)
        assert drawn.tolist() == [below(streams[number], most) for number in some]


def test_costs_and_energies_follow_the_swaps(rng):
    batch, state = searches(rng)
    for _ in range(5):
        kept = (~state.x).float().multinomial(1)[:, 0]
        pruned = state.x.float().multinomial(1)[:, 0]
        every = torch.arange(3)
        change = state.costs[every, kept] - state.costs[every, pruned] - state.couplings(every, kept, pruned)
        before = batch.energy(state.x)
        state.swap(every, kept, pruned, change)
        torch.testing.assert_close(batch.energy(state.x) - before, change)
        torch.testing.assert_close(state.costs, batch.flip_costs(state.x).double())
        torch.testing.assert_close(state.energy + batch.offset, batch.energy(state.x))


def test_candidates_are_the_first_of_equals(rng):
    _, state = searches(rng, [0] * 5 + [1] * 7, (2, 3))
    state.costs[:] = 1.0
    state.free[0, 0] = 9
    kept, cost, pruned, gain = candidates(state, torch.arange(3), 3, 2)
    for row in range(3):
        for group, members in enumerate((range(5), range(5, 12))):
            for side, places, keys, key in ((False, kept, cost, 1.0), (True, pruned, gain, -1.0)):
                known = [i for i in members if bool(state.x[row, i]) == side and state.free[row, i] <= 3][:2]
                assert places[row, group, : len(known)].tolist() == known
                assert keys[row, group].tolist() == [key] * len(known) + [np.inf] * (2 - len(known))


def test_rows_with_more_weights_than_can_rest_always_have_a_swap(rng, monkeypatch):
    batch = random_batch(rng, 4, 24, [10])
    rules = Rules(steps=100, candidates=4, tenure=(3, 5), patience=9, kick=4)
    assert always_free(batch, rules)
    assert not always_free(batch, Rules(100, 4, (3, 6), 9, 4))
    assert not always_free(batch, Rules(100, 4, (3, 5), 4, 4))
    assert not always_free(random_batch(rng, 4, 24, [20]), rules)
    # nor did any search of such rows ever lack one
    request = BatchRequest(batch, random_starts(rng, batch), seed=1)
    settings = {"tenure": (3, 5), "patience": 9, "kick": 4}
    compiled, torched = both(request, **settings)
    monkeypatch.setattr(_batched_tabu, "always_free", lambda *_: False)
    assert torch.equal(both(request, **settings)[1], torched)
    assert torch.equal(compiled, torched)
