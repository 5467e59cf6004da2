from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from reference import feasible_points, random_batch, random_problem, random_starts

from qubo_prune.solver import (
    BatchRequest,
    Deadline,
    Solver,
    SolveRequest,
    Status,
    derive_seed,
    ranked_answers,
    single_answer,
    to_numpy_bool,
)


@dataclass(frozen=True)
class Still(Solver):
    """Answers the warm start."""

    def solve(self, request: SolveRequest, /):
        return single_answer(request.problem, request.warm_start, Status.FEASIBLE)


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
    assert kept == {Status.NOT_IMPROVED, Status.INFEASIBLE, Status.FAILED, Status.OVERRAN}
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


def test_a_solver_without_batches_says_so(rng):
    batch = random_batch(rng, 2, 5, [2])
    with pytest.raises(NotImplementedError, match="Still declares 'batched' but has no solve_batch"):
        Still().solve_batch(BatchRequest(batch, random_starts(rng, batch)))


def test_ranked_answers_are_each_once_and_best_first(rng):
    problem = random_problem(rng, 5, 2)
    points = feasible_points(problem)
    result = ranked_answers(problem, [*points, *points[:4]], Status.FEASIBLE, seconds=2.0)
    assert len(result.assignments) == len(points)
    assert (np.diff(result.energies) >= 0).all()
    np.testing.assert_allclose(result.energies, problem.energy(result.assignments))
    assert (result.status, result.seconds) == (Status.FEASIBLE, 2.0)
    assert ranked_answers(problem, points[0], Status.FEASIBLE).assignments.tolist() == [points[0].tolist()]


def test_tensors_become_bool_arrays():
    assert to_numpy_bool(torch.tensor([0, 2])).tolist() == [False, True]


@pytest.mark.parametrize("wrong", [[-1, 1, -1, 1], [0.5, 0.5, 1, 0], [2, 0, 1, 0], [float("nan"), 1, 1, 0]])
def test_only_zeros_and_ones_are_answers(rng, wrong):
    problem = random_problem(rng, 4, 2)
    for answered in (np.array(wrong), np.array([[1, 1, 0, 0], wrong])):
        with pytest.raises(ValueError, match=r"it answered with .*only 0 and 1 are allowed, 1 = prune"):
            ranked_answers(problem, answered, Status.FEASIBLE)
    with pytest.raises(ValueError, match="only 0 and 1 are allowed"):
        single_answer(problem, np.array(wrong), Status.FEASIBLE)
    for allowed in ([1, 0, 1, 0], [1.0, 0.0, 1.0, 0.0], [True, False, True, False]):
        assert ranked_answers(problem, np.array(allowed), Status.FEASIBLE).assignment.tolist() == [1, 0, 1, 0]
        assert single_answer(problem, np.array(allowed), Status.FEASIBLE).assignment.dtype == np.bool_


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 1, 4), (0, 4), ()])
def test_answers_of_another_shape_are_rejected(rng, shape):
    problem = random_problem(rng, 4, 2)
    with pytest.raises(ValueError, match="it answered with"):
        ranked_answers(problem, np.zeros(shape, dtype=bool), Status.FEASIBLE)
    with pytest.raises(ValueError, match="it answered with shape"):
        single_answer(problem, np.zeros((*shape, 2), dtype=bool), Status.FEASIBLE)


def test_what_is_no_number_is_no_answer(rng):
    with pytest.raises(ValueError, match="values of type <U1"):
        ranked_answers(random_problem(rng, 2, 1), np.array(["a", "b"]), Status.FEASIBLE)
