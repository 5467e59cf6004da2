from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from reference import random_batch, random_problem, random_starts

from qubo_prune.solver import (
    BatchRequest,
    Deadline,
    Solver,
    SolveRequest,
    Status,
    derive_seed,
    single_answer,
    to_numpy_bool,
)


@dataclass(frozen=True)
class Reversed(Solver):
    """Answers the warm start turned round, and remembers what it was asked."""

    fail_on: int = -1
    pause: float = 0.0
    seen: list[SolveRequest] = field(default_factory=list)

    def solve(self, request: SolveRequest, /):
        self.seen.append(request)
        time.sleep(self.pause)
        if len(self.seen) - 1 == self.fail_on:
            raise RuntimeError("out of annealers")
        return single_answer(request.problem, request.warm_start[::-1], Status.FEASIBLE)


def test_a_deadline_counts_down_to_zero():
    never, soon, past = Deadline(None), Deadline(60.0), Deadline(0.0)
    assert never.remaining is None
    assert not never.expired
    assert 0 < soon.remaining <= 60
    assert not soon.expired
    assert past.remaining == 0
    assert past.expired


def test_derived_seeds_are_stable_and_distinct():
    seeds = [derive_seed(seed, *path) for seed in (0, 1) for path in ((), (0,), (1,), (0, 1), (1, 0))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, 1, 4) == derive_seed(3, 1, 4)


def test_statuses_are_sentences_and_say_whether_the_start_was_kept():
    assert all(status.value.endswith(".") for status in Status)
    kept = {status for status in Status if status.kept_warm_start}
    assert kept == {Status.NOT_IMPROVED, Status.INFEASIBLE, Status.FAILED}
    assert all("warm start" in status.value for status in kept)


def test_a_result_reads_its_best_answer(rng):
    problem = random_problem(rng, 4, 2)
    x = np.array([True, False, True, False])
    result = single_answer(problem, x, Status.FEASIBLE, lower_bound=-9.0, solver="mine")
    assert result.energy == pytest.approx(problem.energy(x))
    assert result.assignment.tolist() == x.tolist()
    assert result.assignments.shape == (1, 4)
    for part in ("prunes 2 of 4", "lower bound -9", "mine", Status.FEASIBLE.value, " s,"):
        assert part in repr(result)


def test_a_solver_must_say_how_to_solve():
    with pytest.raises(TypeError, match="solve"):
        Solver()


def test_the_default_batch_solves_row_by_row(rng):
    batch = random_batch(rng, 3, 5, [2])
    start = random_starts(rng, batch)
    solver = Reversed()
    result = solver.solve_batch(BatchRequest(batch, start, seed=7))
    assert torch.equal(result.assignments, start.flip(1))
    assert result.failures == {}
    assert len({request.seed for request in solver.seen}) == 3
    for row, request in enumerate(solver.seen):
        np.testing.assert_allclose(request.problem.dense(), batch.problem(row).dense())
        assert request.time_limit is None


def test_a_row_that_raises_keeps_its_start_and_costs_no_other(rng):
    batch = random_batch(rng, 3, 5, [2])
    start = random_starts(rng, batch)
    result = Reversed(fail_on=1).solve_batch(BatchRequest(batch, start))
    assert torch.equal(result.assignments[1], start[1])
    assert torch.equal(result.assignments[[0, 2]], start[[0, 2]].flip(1))
    assert result.failures == {1: (Status.FAILED, "RuntimeError: out of annealers")}


def test_rows_that_the_time_limit_leaves_out_keep_their_start(rng):
    batch = random_batch(rng, 4, 5, [2])
    start = random_starts(rng, batch)
    solver = Reversed(pause=0.1)
    result = solver.solve_batch(BatchRequest(batch, start, time_limit=0.05))
    assert len(solver.seen) == 1
    assert 0 < solver.seen[0].time_limit <= 0.05 / 4
    assert result.failures == dict.fromkeys((1, 2, 3), (Status.TIME_LIMIT, ""))
    assert torch.equal(result.assignments[1:], start[1:])


def test_a_batch_leaves_the_warm_start_as_it_was(rng):
    batch = random_batch(rng, 2, 5, [2])
    start = random_starts(rng, batch)
    before = start.clone()
    Reversed().solve_batch(BatchRequest(batch, start))
    assert torch.equal(start, before)


def test_tensors_become_bool_arrays():
    assert to_numpy_bool(torch.tensor([0, 2])).tolist() == [False, True]
