from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from reference import feasible_points, minimum, random_batch, random_feasible, random_problem, random_starts

from qubo_prune import dispatch
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo
from qubo_prune.solver import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    single_answer,
)


@dataclass(frozen=True)
class Saying(Solver):
    """Answers whatever a function of the request gives."""

    answer: Callable[[SolveRequest], Any]

    def solve(self, request: SolveRequest, /) -> Any:
        return self.answer(request)


@dataclass(frozen=True)
class SayingBatch(Solver):
    """The same for batches."""

    answer: Callable[[BatchRequest], Any]

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise NotImplementedError

    def solve_batch(self, request: BatchRequest, /) -> Any:
        return self.answer(request)


def answers(x: object, energies: object = (0.0,)) -> SolveResult:
    """A result that holds anything at all: set late, past the type checks of these tests."""
    result = SolveResult(np.zeros((0, 0), dtype=bool), np.zeros(0), Status.OPTIMAL)
    object.__setattr__(result, "assignments", x)
    object.__setattr__(result, "energies", np.asarray(energies))
    return result


def result(x: object, energies: object = (0.0,)) -> SolveResult:
    return answers(np.atleast_2d(np.asarray(x)), energies)


def boom(request: object) -> object:
    raise RuntimeError("the device is on fire")


def best_and_worst(problem: BlockQubo) -> tuple[np.ndarray, np.ndarray]:
    points = feasible_points(problem)
    energies = problem.energy(points)
    return points[energies.argmin()], points[energies.argmax()]


@pytest.fixture
def problem(rng) -> BlockQubo:
    return random_problem(rng, 6, (1, 2), [0, 0, 1, 1, 1, 0])


UNUSABLE = {
    "raises": (boom, Status.FAILED),
    "nothing": (lambda r: None, Status.FAILED),
    "no assignments": (lambda r: answers(None), Status.FAILED),
    "too short": (lambda r: result([True, False]), Status.INFEASIBLE),
    "too long": (lambda r: result(np.ones(7, dtype=bool)), Status.INFEASIBLE),
    "wrong counts": (lambda r: result(np.ones(6, dtype=bool)), Status.INFEASIBLE),
    "counts of the other group": (lambda r: result([1, 1, 1, 0, 0, 0]), Status.INFEASIBLE),
    "NaN": (lambda r: result(np.full(6, np.nan)), Status.INFEASIBLE),
    "fractions": (lambda r: result([0.5, 0.5, 1, 1, 0, 0]), Status.INFEASIBLE),
    "no answer": (lambda r: answers(np.zeros((0, 6), bool)), Status.INFEASIBLE),
    "ragged": (lambda r: answers([np.ones(3, bool), np.ones(5, bool)]), Status.INFEASIBLE),
    "one answer, not a list": (lambda r: answers(np.array([1, 0, 1, 1, 0, 0], bool)), Status.INFEASIBLE),
    "worse": (lambda r: result(best_and_worst(r.problem)[1]), Status.NOT_IMPROVED),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_answer_keeps_the_warm_start_and_says_why(problem, case):
    answer, status = UNUSABLE[case]
    start = best_and_worst(problem)[0]
    kept = dispatch.solve(problem, Saying(answer), warm_start=start)
    assert kept.status is status
    assert kept.assignments.tolist() == [start.tolist()]
    assert kept.energy == problem.energy(start)
    assert kept.info["detail"]
    assert kept.solver == "Saying"


@pytest.mark.parametrize("case", [name for name in UNUSABLE if name != "worse"])
def test_without_a_warm_start_an_unusable_answer_is_an_error(problem, case):
    with pytest.raises(SolverError, match="'Saying' gave no usable answer"):
        dispatch.solve(problem, Saying(UNUSABLE[case][0]))


def test_the_error_carries_its_cause(problem):
    with pytest.raises(SolverError, match="RuntimeError: the device is on fire") as caught:
        dispatch.solve(problem, Saying(boom))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_energies_are_recomputed_and_answers_put_in_order(problem):
    points = feasible_points(problem)
    mixed = np.vstack([points, np.ones((1, 6), dtype=bool)])
    lies = -np.arange(len(mixed), dtype=float) * 1e6
    answer = dispatch.solve(problem, Saying(lambda r: result(mixed, lies)))
    assert len(answer.assignments) == len(points)
    assert answer.energy == pytest.approx(minimum(problem), rel=1e-12)
    assert (np.diff(answer.energies) >= 0).all()
    np.testing.assert_allclose(answer.energies, problem.energy(answer.assignments), rtol=1e-12)


def test_an_answer_of_zeros_and_ones_is_as_good_as_one_of_bools(problem):
    x = best_and_worst(problem)[0]
    answer = dispatch.solve(problem, Saying(lambda r: result(x.astype(float))))
    assert answer.assignment.dtype == np.bool_
    assert answer.assignment.tolist() == x.tolist()


def test_the_warm_start_given_back_is_no_failure(rng):
    for n in [30] * 20 + [301] * 5:
        problem = random_problem(rng, n, n // 2)
        start = random_feasible(rng, problem)
        echoed = dispatch.solve(
            problem,
            Saying(lambda r: single_answer(r.problem, r.warm_start, Status.FEASIBLE)),
            warm_start=start,
        )
        assert echoed.status is Status.FEASIBLE


def test_a_solver_cannot_spoil_the_warm_start(problem):
    def spoil(request: SolveRequest) -> SolveResult:
        request.warm_start[:] = True
        return result(request.warm_start)

    start = best_and_worst(problem)[0]
    before = start.copy()
    kept = dispatch.solve(problem, Saying(spoil), warm_start=start)
    assert kept.status is Status.INFEASIBLE
    assert kept.assignment.tolist() == before.tolist() == start.tolist()


def test_the_request_reaches_the_solver(problem):
    seen: list[SolveRequest] = []
    start = random_feasible(np.random.default_rng(1), problem)

    def answer(request: SolveRequest) -> SolveResult:
        seen.append(request)
        return single_answer(request.problem, request.warm_start, Status.FEASIBLE)

    dispatch.solve(problem, Saying(answer), seed=5, time_limit=9.0, warm_start=start.astype(int).tolist())
    assert seen[0].problem is problem
    assert seen[0].warm_start.tolist() == start.tolist()
    assert (seen[0].seed, seen[0].time_limit) == (5, 9.0)


def test_the_result_names_its_solver_and_its_time(problem):
    named = dispatch.solve(problem, "exact")
    assert named.solver == "exact"
    assert named.energy == pytest.approx(minimum(problem))

    def slow(request: SolveRequest) -> SolveResult:
        time.sleep(0.02)
        return result(best_and_worst(request.problem)[0])

    assert 0.02 <= dispatch.solve(problem, Saying(slow)).seconds < 10


@pytest.mark.parametrize("time_limit", [0.0, -1.0, float("nan")])
def test_a_time_limit_is_positive(problem, time_limit):
    with pytest.raises(InputError, match="time_limit"):
        dispatch.solve(problem, "greedy", time_limit=time_limit)


@pytest.mark.parametrize("start", [[1, 0, 1, 1, 1, 0], [1, 0, 1], [2, 0, 1, 1, 0, 0], [np.nan] * 6])
def test_an_infeasible_warm_start_is_refused(problem, start):
    with pytest.raises(InputError, match=r"\[1, 2\] ones"):
        dispatch.solve(problem, "greedy", warm_start=start)


def test_names_and_settings_are_checked(problem):
    with pytest.raises(InputError, match="did you mean 'greedy'"):
        dispatch.solve(problem, "gredy")
    with pytest.raises(TypeError, match="did you mean 'candidates'"):
        dispatch.solve(problem, "greedy", candiates=3)


def test_blocks_beyond_a_solvers_size_are_refused(problem):
    class Small(Saying):
        capabilities: ClassVar[Capabilities] = Capabilities(max_variables=5)

    with pytest.raises(InputError, match="'Small' takes at most 5 variables and the block has 6"):
        dispatch.solve(problem, Small(boom))
    with pytest.raises(InputError, match="at most 28"):
        dispatch.solve(BlockQubo(np.eye(29), 3), "exact")


def test_an_input_error_of_a_solver_is_the_callers_and_passes(problem):
    def refuse(request: SolveRequest) -> SolveResult:
        raise InputError("only even blocks")

    with pytest.raises(InputError, match="only even blocks"):
        dispatch.solve(problem, Saying(refuse), warm_start=best_and_worst(problem)[0])


def interrupt(request: object) -> object:
    raise KeyboardInterrupt


def test_an_interrupt_passes_through(rng, problem):
    with pytest.raises(KeyboardInterrupt):
        dispatch.solve(problem, Saying(interrupt), warm_start=best_and_worst(problem)[0])
    batch = random_batch(rng, 2, 4, [2])
    request = BatchRequest(batch, random_starts(rng, batch))
    for solver in (Saying(interrupt), SayingBatch(interrupt)):
        with pytest.raises(KeyboardInterrupt):
            dispatch.solve_batch(solver, request)


BATCH_FAILURES = {
    "raises": boom,
    "nothing": lambda r: None,
    "numpy": lambda r: BatchResult(r.warm_start.numpy()),
    "too few rows": lambda r: BatchResult(r.warm_start[:-1]),
    "too few columns": lambda r: BatchResult(r.warm_start[:, :-1]),
    "numbers": lambda r: BatchResult(r.warm_start.double()),
    "NaN": lambda r: BatchResult(r.warm_start.double() * torch.nan),
}


@pytest.fixture
def request_of_rows(rng) -> BatchRequest:
    batch = random_batch(rng, 4, 6, [1, 2], [0, 0, 1, 1, 1, 0])
    return BatchRequest(batch, random_starts(rng, batch))


@pytest.mark.parametrize("case", BATCH_FAILURES)
def test_a_batch_without_usable_answers_keeps_every_warm_start(request_of_rows, case):
    answer = dispatch.solve_batch(SayingBatch(BATCH_FAILURES[case]), request_of_rows)
    assert torch.equal(answer.assignments, request_of_rows.warm_start)
    assert sorted(answer.failures) == [0, 1, 2, 3]
    assert all(status is Status.FAILED and detail for status, detail in answer.failures.values())
    assert answer.change.tolist() == [0] * 4


def test_each_row_of_a_batch_is_judged_alone(request_of_rows):
    batch, start = request_of_rows.problems, request_of_rows.warm_start.clone()
    best, worst = zip(*(best_and_worst(batch.problem(row)) for row in range(4)), strict=True)
    start[1], start[2] = torch.tensor(best[1]), torch.tensor(worst[2])
    said = start.clone()
    said[0] = True
    said[1] = torch.tensor(worst[1])
    said[2] = torch.tensor(best[2])
    answer = dispatch.solve_batch(SayingBatch(lambda r: BatchResult(said)), BatchRequest(batch, start))
    assert answer.failures[0][0] is Status.INFEASIBLE
    assert answer.failures[1][0] is Status.NOT_IMPROVED
    assert sorted(answer.failures) == [0, 1]
    assert torch.equal(answer.assignments[[0, 1, 3]], start[[0, 1, 3]])
    assert torch.equal(answer.assignments[2], said[2])
    problem = batch.problem(2)
    gain = problem.energy(best[2]) - problem.energy(worst[2])
    assert answer.change.tolist() == pytest.approx([0, 0, gain, 0], rel=1e-9)


def test_failures_that_a_solver_reports_are_kept(request_of_rows):
    told = {3: (Status.TIME_LIMIT, "")}
    answer = dispatch.solve_batch(SayingBatch(lambda r: BatchResult(r.warm_start, told)), request_of_rows)
    assert answer.failures == told


def test_energies_that_are_not_numbers_keep_the_warm_start(request_of_rows):
    batch = request_of_rows.problems
    spoilt = type(batch)(
        batch.hessian * torch.nan, batch.values, batch.linear, batch.offset, batch.labels, batch.num_pruned
    )
    request = BatchRequest(spoilt, request_of_rows.warm_start)
    answer = dispatch.solve_batch(SayingBatch(lambda r: BatchResult(r.warm_start)), request)
    assert torch.equal(answer.assignments, request.warm_start)
    assert {status for status, _ in answer.failures.values()} == {Status.NOT_IMPROVED}


def test_a_solver_cannot_spoil_the_warm_starts_of_a_batch(request_of_rows):
    def spoil(request: BatchRequest) -> BatchResult:
        return BatchResult(request.warm_start.fill_(True))

    before = request_of_rows.warm_start.clone()
    answer = dispatch.solve_batch(SayingBatch(spoil), request_of_rows)
    assert torch.equal(request_of_rows.warm_start, before)
    assert torch.equal(answer.assignments, before)


def test_a_solver_of_single_problems_serves_batches(request_of_rows):
    answer = dispatch.solve_batch(Saying(lambda r: result(best_and_worst(r.problem)[0])), request_of_rows)
    for row in range(4):
        problem = request_of_rows.problems.problem(row)
        assert problem.energy(answer.assignments[row].numpy()) == pytest.approx(minimum(problem))
    assert (answer.change <= 0).all()
