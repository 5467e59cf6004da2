from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import dimod
import numpy as np
import pytest
import torch
from qubo_prune_solvers.function import CallableSolver
from reference import (
    BUDGETS,
    budgeted_problem,
    feasible_points,
    minimum,
    random_batch,
    random_feasible,
    random_problem,
    random_starts,
    swaps,
)
from reference import energy as energy_of
from unchecked import without_type_checks

from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.problem.repair import repair
from qubo_prune.solver import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    derive_seed,
    dispatch,
    ranked_answers,
    single_answer,
)
from qubo_prune.solver.dispatch import Handling, solve
from qubo_prune.solver.registry import make_solver, solver_class


@dataclass(frozen=True)
class Saying(Solver):
    """Answers whatever a function of the request gives."""

    answer: Callable[[SolveRequest], Any]

    def solve(self, request: SolveRequest, /) -> Any:
        return self.answer(request)


@dataclass(frozen=True)
class Watching(Saying):
    """The same for a solver that stops at the time limit by itself, so that it runs in this process."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True)


@dataclass(frozen=True)
class SayingBatch(Solver):
    """The same for batches."""

    capabilities: ClassVar[Capabilities] = Capabilities(batched=True)

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
    kept = dispatch.solve(problem, Saying(answer), warm_start=start, polish=False)
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
    answer = dispatch.solve(problem, Saying(lambda r: result(mixed, lies)), num_answers=1000, polish=False)
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

    solver = Watching(answer)
    dispatch.solve(problem, solver, 5, 9.0, start.astype(int).tolist(), num_answers=3)
    assert seen[0].problem is problem
    assert seen[0].warm_start.tolist() == start.tolist()
    assert (seen[0].seed, seen[0].time_limit, seen[0].num_answers) == (5, 9.0, 3)
    assert seen[0].temperatures is None


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
    most = solver_class("exact").capabilities.max_variables
    with pytest.raises(InputError, match=f"'exact' takes at most {most} variables"):
        dispatch.solve(BlockQubo(np.eye(most + 1), 3), "exact")


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
    answer = dispatch.solve_batch(
        SayingBatch(lambda r: BatchResult(said)), BatchRequest(batch, start), Handling(polish=False)
    )
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
    assert torch.equal(answer.assignments[3], request_of_rows.warm_start[3])
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


def sampler(**declared: Any) -> type[Saying]:
    """A kind of :class:`Saying` that declares what is given."""

    class Declared(Saying):
        capabilities: ClassVar[Capabilities] = Capabilities(**declared)

    return Declared


def test_every_row_has_its_own_problem_seed_and_share_of_the_time(request_of_rows):
    seen: list[SolveRequest] = []

    def take_all(request: SolveRequest) -> SolveResult:
        seen.append(request)
        time.sleep(request.time_limit)
        return result(request.warm_start)

    began = time.perf_counter()
    rows = dataclasses.replace(request_of_rows, seed=7, time_limit=0.8)
    assert dispatch.solve_batch(Watching(take_all), rows).failures == {}
    assert 0.7 < time.perf_counter() - began < 2.0
    assert [request.seed for request in seen] == [derive_seed(7, row) for row in range(4)]
    for row, request in enumerate(seen):
        np.testing.assert_allclose(request.problem.dense(), rows.problems.problem(row).dense())
        assert request.warm_start.tolist() == rows.warm_start[row].tolist()
        assert 0.1 < request.time_limit <= 0.2001


def test_time_that_a_row_leaves_goes_to_the_others(request_of_rows):
    limits: list[float] = []

    def quick(request: SolveRequest) -> SolveResult:
        limits.append(request.time_limit)
        return result(request.warm_start)

    dispatch.solve_batch(Watching(quick), dataclasses.replace(request_of_rows, time_limit=60.0))
    assert limits == pytest.approx([15.0, 20.0, 30.0, 60.0], rel=0.1)
    limits.clear()
    dispatch.solve_batch(Watching(quick), dataclasses.replace(request_of_rows, time_limit=60.0, row_time_limit=18.0))
    assert limits == pytest.approx([15.0, 18.0, 18.0, 18.0], rel=0.1)


def test_rows_that_the_time_limit_leaves_out_keep_their_start(request_of_rows):
    def slow(request: SolveRequest) -> SolveResult:
        time.sleep(0.1)
        return result(best_and_worst(request.problem)[0])

    answer = dispatch.solve_batch(Watching(slow), dataclasses.replace(request_of_rows, time_limit=0.05))
    assert answer.failures == dict.fromkeys((1, 2, 3), (Status.TIME_LIMIT, ""))
    assert torch.equal(answer.assignments[1:], request_of_rows.warm_start[1:])
    best = best_and_worst(request_of_rows.problems.problem(0))[0]
    assert answer.assignments[0].tolist() == best.tolist()


def test_a_row_that_raises_costs_no_other(request_of_rows):
    def some(request: SolveRequest) -> SolveResult:
        if request.seed == derive_seed(0, 1):
            raise InputError("only even blocks")
        if request.seed == derive_seed(0, 2):
            raise SystemExit(3)
        return result(best_and_worst(request.problem)[0])

    answer = dispatch.solve_batch(Saying(some), request_of_rows)
    assert answer.failures == {
        1: (Status.FAILED, "InputError: only even blocks"),
        2: (Status.FAILED, "SystemExit: 3"),
    }
    assert torch.equal(answer.assignments[1:3], request_of_rows.warm_start[1:3])
    for row in (0, 3):
        assert answer.assignments[row].tolist() == best_and_worst(request_of_rows.problems.problem(row))[0].tolist()


def test_a_solver_that_leaves_the_interpreter_is_a_failure(problem):
    def leave(request: SolveRequest) -> SolveResult:
        raise SystemExit(1)

    with pytest.raises(SolverError, match="SystemExit: 1"):
        dispatch.solve(problem, Saying(leave))


STRANGE_FAILURES = {
    "no mapping": [(1, "late")],
    "rows that are not there": {7: (Status.TIME_LIMIT, "")},
    "no status": {1: ("late", "")},
    "no pair": {1: Status.FAILED},
}


@pytest.mark.parametrize("case", STRANGE_FAILURES)
def test_failures_that_make_no_sense_cost_the_batch_and_not_the_run(request_of_rows, case):
    def strange(request: BatchRequest) -> BatchResult:
        result = BatchResult(request.warm_start)
        object.__setattr__(result, "failures", STRANGE_FAILURES[case])
        return result

    answer = dispatch.solve_batch(SayingBatch(strange), request_of_rows)
    assert {status for status, _ in answer.failures.values()} == {Status.FAILED}
    assert torch.equal(answer.assignments, request_of_rows.warm_start)


@pytest.mark.parametrize(("field", "value"), [("status", None), ("lower_bound", "low"), ("info", 5)])
def test_a_result_whose_parts_are_not_what_they_should_be_is_a_failure(problem, field, value):
    def strange(request: SolveRequest) -> SolveResult:
        answer = result(best_and_worst(problem)[0])
        object.__setattr__(answer, field, value)
        return answer

    start = best_and_worst(problem)[1]
    kept = dispatch.solve(problem, Saying(strange), warm_start=start)
    assert kept.status is Status.FAILED
    assert kept.assignment.tolist() == start.tolist()


def test_nobody_calls_an_answer_optimal_without_declaring_to_be_exact(problem):
    best = best_and_worst(problem)[0]
    told = dispatch.solve(problem, Saying(lambda r: result(best)), polish=False)
    assert told.status is Status.FEASIBLE
    assert "without declaring" in told.info["disbelieved"]
    assert dispatch.solve(problem, sampler(exact=True)(lambda r: result(best))).status is Status.OPTIMAL


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e20])
def test_a_lower_bound_above_the_energy_is_not_believed(problem, scale):
    scaled = BlockQubo(scale * problem.dense(), problem.num_pruned, scale * problem.offset, problem.labels)
    best = best_and_worst(scaled)[0]

    def say(above: float) -> SolveResult:
        """``above`` the energy, in units of the problem."""

        def answer(r: SolveRequest) -> SolveResult:
            bound = float(r.problem.energy(best)) + above * scale / r.unit
            return single_answer(r.problem, best, Status.OPTIMAL, lower_bound=bound)

        return dispatch.solve(scaled, sampler(exact=True)(answer))

    energy = scaled.energy(best)
    high = say(0.01)
    assert (high.status, high.lower_bound) == (Status.FEASIBLE, None)
    assert "above the energy" in high.info["disbelieved"]
    for above in (0.0, 1e-14, -1e-9):
        assert say(above).status is Status.OPTIMAL
        assert say(above).lower_bound == pytest.approx(energy + above * scale, rel=1e-12)
    low = say(-1.0)
    assert low.status is Status.FEASIBLE
    assert low.lower_bound == pytest.approx(energy - scale, rel=1e-12)
    assert "leaves a gap" in low.info["disbelieved"]
    assert say(float("nan")).lower_bound is None
    assert say(-float("inf")).lower_bound is None


def test_the_ledger_keeps_what_the_solver_did_apart_from_the_polish(rng):
    problem = random_problem(rng, 12, 6)
    start, x = random_feasible(rng, problem), random_feasible(rng, problem)
    answer = dispatch.solve(problem, Saying(lambda r: result([x, np.ones(12)])), warm_start=start)
    ledger = answer.ledger
    assert ledger.start == pytest.approx(problem.energy(start))
    assert ledger.raw == ledger.repaired == pytest.approx(problem.energy(x))
    assert ledger.feasible == 0.5
    assert ledger.polished == answer.energy < ledger.repaired
    assert not any(problem.energy(other) < answer.energy - 1e-9 for other in swaps(problem, answer.assignment))
    plain = dispatch.solve(problem, Saying(lambda r: result(x)), polish=False)
    assert plain.energy == plain.ledger.polished == plain.ledger.repaired == pytest.approx(problem.energy(x))
    assert plain.ledger.start is None


def test_swap_optima_and_proven_optima_are_not_polished(rng):
    problem = random_problem(rng, 12, 6)
    x = random_feasible(rng, problem)
    for solver in (sampler(swap_optimal=True), sampler(exact=True)):
        assert dispatch.solve(problem, solver(lambda r: result(x))).energy == pytest.approx(problem.energy(x))


def test_a_solver_without_counts_gets_penalties_and_its_answers_are_mended(rng):
    problem = random_problem(rng, 9, (2, 1, 2), [0, 1, 0, 2, 1, 0, 2, 2, 1])
    seen: list[SolveRequest] = []

    def ground_state(request: SolveRequest) -> SolveResult:
        seen.append(request)
        points = np.array(list(product((False, True), repeat=9)))
        return result(points[np.atleast_1d(request.problem.energy(points)).argmin()])

    free = sampler(cardinality=False)
    answer = dispatch.solve(problem, free(ground_state), polish=False)
    assert problem.is_feasible(answer.assignment)
    given = seen[0]
    assert given.problem.free
    points = feasible_points(problem)
    np.testing.assert_allclose(given.problem.energy(points), problem.energy(points), rtol=1e-9, atol=1e-9)
    assert given.temperatures[0] > given.temperatures[1] > 0

    misses = free(lambda r: result(np.ones(9)))
    mended = dispatch.solve(problem, misses, polish=False)
    assert mended.energy == mended.ledger.repaired == pytest.approx(problem.energy(repair(problem, np.ones(9, bool))))
    assert (mended.ledger.raw, mended.ledger.feasible) == (None, 0.0)
    strong = dispatch.solve(problem, free(ground_state), penalty=1000.0, polish=False)
    assert strong.ledger.feasible == 1.0
    assert strong.ledger.raw == pytest.approx(minimum(problem))


def test_an_optimum_of_the_penalised_problem_that_misses_a_count_is_no_proof(rng):
    problem = random_problem(rng, 8, 4)
    solver = sampler(cardinality=False, exact=True)(lambda r: result(np.ones(8)))
    answer = dispatch.solve(problem, solver, polish=False)
    assert answer.status is Status.FEASIBLE
    assert "misses a count" in answer.info["disbelieved"]


def test_free_problems_are_for_solvers_without_counts(rng):
    free = BlockQubo(np.diag([1.0, -1.0, 2.0]), None)
    with pytest.raises(InputError, match="no counts, which 'greedy' needs"):
        dispatch.solve(free, "greedy")
    answer = dispatch.solve(free, sampler(cardinality=False)(lambda r: result([False, True, False])))
    assert answer.energy == -1.0
    assert answer.assignment.tolist() == [False, True, False]


def test_several_groups_are_refused_for_a_solver_of_one(problem, request_of_rows):
    single = sampler(groups=False)(boom)
    with pytest.raises(InputError, match="takes one count and the block has 2; use pattern 'row'"):
        dispatch.solve(problem, single)
    with pytest.raises(InputError, match="takes one count"):
        dispatch.solve_batch(single, request_of_rows)

    class Batched(SayingBatch):
        capabilities: ClassVar[Capabilities] = Capabilities(batched=True, groups=False)

    with pytest.raises(InputError, match="takes one count"):
        dispatch.solve_batch(Batched(boom), request_of_rows)


@pytest.mark.parametrize("labels", [None, [0, 0, 1, 1, 1, 0]])
def test_factor_form_is_densified_only_for_solvers_that_lack_it(rng, labels):
    counts = 3 if labels is None else (1, 2)
    problem = BlockQubo(FactorForm(rng.normal(size=6), rng.normal(size=(6, 2))), counts, 0.5, labels)
    seen: list[BlockQubo] = []

    def answer(request: SolveRequest) -> SolveResult:
        seen.append(request.problem)
        return result(random_feasible(np.random.default_rng(0), problem))

    for can in ({"factor_form": True}, {}, {"factor_form": True, "cardinality": False}, {"cardinality": False}):
        dispatch.solve(problem, sampler(**can)(answer))
    assert seen[0] is problem
    assert [isinstance(given.q, FactorForm) for given in seen] == [True, False, True, False]
    x = random_feasible(rng, problem)
    assert [given.energy(x) for given in seen] == pytest.approx([problem.energy(x)] * 4, rel=1e-9)


def test_as_many_answers_come_back_as_are_wanted_and_there_are(problem):
    points = feasible_points(problem)
    everything = Saying(lambda r: result(points))
    assert len(dispatch.solve(problem, everything).assignments) == 1
    three = dispatch.solve(problem, everything, num_answers=3, polish=False)
    assert three.energies.tolist() == pytest.approx(sorted(problem.energy(points))[:3])
    assert len(dispatch.solve(problem, everything, num_answers=1000, polish=False).assignments) == len(points)
    with pytest.raises(InputError, match="num_answers is 0"):
        dispatch.solve(problem, everything, num_answers=0)


def starts_and_answers(request: BatchRequest, rng: np.random.Generator) -> torch.Tensor:
    return torch.tensor(np.array([random_feasible(rng, request.problems.problem(row)) for row in range(4)]))


@pytest.mark.parametrize("batched", [True, False])
def test_in_a_batch_the_change_of_the_solver_stands_apart_from_the_polish(rng, batched):
    problems = random_batch(rng, 4, 12, [6])
    request = BatchRequest(problems, random_starts(rng, problems))
    said = starts_and_answers(request, rng)
    rows = {derive_seed(0, row): said[row].numpy() for row in range(4)}
    solver = SayingBatch(lambda r: BatchResult(said)) if batched else Saying(lambda r: result(rows[r.seed]))
    polished = dispatch.solve_batch(solver, request)
    plain = dispatch.solve_batch(solver, request, Handling(polish=False))
    for row in range(4):
        problem = problems.problem(row)
        brought = problem.energy(said[row].numpy()) - problem.energy(request.warm_start[row].numpy())
        assert float(polished.solver_change[row]) == pytest.approx(min(0.0, brought), rel=1e-9)
        gained = problem.energy(polished.assignments[row].numpy()) - problem.energy(request.warm_start[row].numpy())
        assert float(polished.change[row]) == pytest.approx(gained, rel=1e-9)
        # an answer that is worse than the start is polished too
        assert float(polished.change[row]) <= float(plain.change[row]) <= 0
        assert float(plain.change[row]) == pytest.approx(min(0.0, brought), rel=1e-9)
    assert (polished.change < plain.change).any()
    assert polished.failures == {}
    worse = {row for row in range(4) if plain.change[row] == 0}
    assert worse
    assert set(plain.failures) == worse


def test_rows_in_which_the_solver_failed_are_not_polished(request_of_rows):
    for solver in (Saying(boom), SayingBatch(boom)):
        answer = dispatch.solve_batch(solver, request_of_rows)
        assert answer.change.tolist() == [0] * 4
        assert answer.solver_change.tolist() == [0] * 4
        assert torch.equal(answer.assignments, request_of_rows.warm_start)


def test_batches_without_counts_go_row_by_row(request_of_rows):
    @dataclass(frozen=True)
    class FreeBatches(SayingBatch):
        capabilities: ClassVar[Capabilities] = Capabilities(batched=True, cardinality=False)

        def solve(self, request: SolveRequest, /) -> SolveResult:
            assert request.problem.free
            return result(np.ones(6))

    answer = dispatch.solve_batch(FreeBatches(boom), request_of_rows, Handling(polish=False))
    counts = request_of_rows.problems.counts(answer.assignments)
    assert counts.tolist() == [[1, 2]] * 4
    assert Status.FAILED not in {status for status, _ in answer.failures.values()}


def test_how_many_processes_a_solver_gets():
    assert dispatch.workers_for(SayingBatch(boom), 4) == 0
    assert dispatch.workers_for(Saying(boom), 4) == 4
    assert dispatch.workers_for(Saying(boom), 0) == 0
    assert dispatch.workers_for(Saying(boom), None) == os.cpu_count()
    parallel = sampler(parallel=True)(boom)
    assert [dispatch.workers_for(parallel, count) for count in (None, 0, 1, 8)] == [1, 0, 1, 1]


def test_spins_are_no_answer_and_the_sentence_says_so(problem):
    start = best_and_worst(problem)[0]
    spins = np.where(start, 1, -1)
    kept = dispatch.solve(problem, Saying(lambda r: result(spins)), warm_start=start)
    assert kept.status is Status.INFEASIBLE
    assert kept.info["detail"] == "it answered with [-1, 1]; only 0 and 1 are allowed, 1 = prune"
    with pytest.raises(SolverError, match="only 0 and 1 are allowed"):
        dispatch.solve(problem, Saying(lambda r: ranked_answers(r.problem, spins, Status.FEASIBLE)))


def test_answers_beside_usable_ones_are_left_out_with_a_note(problem):
    best = best_and_worst(problem)[0]
    mixed = answers([best.astype(int), np.where(best, 1, -1)])
    found = dispatch.solve(problem, Saying(lambda r: mixed), num_answers=2, polish=False)
    assert found.assignments.tolist() == [best.tolist()]
    assert "only 0 and 1 are allowed" in found.info["disbelieved"]


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_a_bound_that_is_no_bound_is_disbelieved(problem, bound):
    def boast(request: SolveRequest) -> SolveResult:
        best = best_and_worst(request.problem)[0]
        return single_answer(request.problem, best, Status.FEASIBLE, lower_bound=bound)

    found = dispatch.solve(problem, Watching(boast))
    assert found.lower_bound is None
    assert f"its lower bound {bound}" in found.info["disbelieved"]


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [("status", "optimal", r"'optimal' instead of a Status, such as"), ("lower_bound", "3", "'3' instead of a number")],
)
def test_parts_of_other_types_are_named(problem, part, value, message):
    spoilt = result(best_and_worst(problem)[0])
    object.__setattr__(spoilt, part, value)
    with pytest.raises(SolverError, match=message):
        dispatch.solve(problem, Saying(lambda r: spoilt))


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 1.5, True, "1"])
def test_seeds_are_whole_numbers_that_every_generator_takes(problem, seed):
    with (
        without_type_checks(),
        pytest.raises(InputError, match=r"seed is .*; pass a whole number from 0 to 2\*\*63 - 1"),
    ):
        dispatch.solve(problem, "greedy", seed)


def test_the_highest_seed_works_with_every_solver(problem):
    for name in ("greedy", "tabu", "neal", "steepest", "dwave-tabu", "cpsat", "exact", "qaoa"):
        assert problem.is_feasible(dispatch.solve(problem, name, 2**63 - 1).assignment)


NO_MEMORY = {
    "a device": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines."),
    "torch's own words": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9e9 bytes"),
}


@pytest.mark.parametrize("case", NO_MEMORY)
@pytest.mark.parametrize("alone", [True, False])
def test_memory_that_is_used_up_ends_the_run_with_the_way_out(problem, request_of_rows, case, alone):
    error = NO_MEMORY[case]

    def fail(request: object) -> object:
        raise error

    def call() -> object:
        if alone:
            return dispatch.solve(problem, Saying(fail), warm_start=best_and_worst(problem)[0])
        return dispatch.solve_batch(SayingBatch(fail), request_of_rows)

    told = "Memory was used up while the solver 'Saying.*' solved .* 6 variables.*use smaller blocks"
    with pytest.raises(SolverError, match=told) as caught:
        call()
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)
    with pytest.raises(SolverError, match="Memory was used up"):
        dispatch.solve_batch(Saying(fail), request_of_rows)


def test_memory_that_is_used_up_in_a_workers_process_ends_the_run_too(problem):
    def fail(request: object) -> object:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(SolverError, match="Memory was used up"):
        dispatch.solve(problem, Saying(fail), time_limit=30.0, warm_start=best_and_worst(problem)[0])


def test_an_array_that_is_too_large_costs_its_block(problem, request_of_rows):
    def fail(request: object) -> object:
        raise MemoryError("Unable to allocate 9.00 GiB for an array")

    result = dispatch.solve(problem, Saying(fail), warm_start=best_and_worst(problem)[0])
    assert result.status is Status.FAILED
    found = dispatch.solve_batch(SayingBatch(fail), request_of_rows)
    assert all("MemoryError: Unable to allocate" in reason for _, reason in found.failures.values())
    assert len(found.failures) == len(request_of_rows.warm_start)


@pytest.mark.parametrize("solver", ["exact", "cpsat"])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_an_optimum_that_costs_nothing_is_believed(solver: str, scale: float) -> None:
    # as blocks with more dead inputs than weights to prune are
    q = np.zeros((6, 6))
    q[:4, :4] = np.diag([1.0, 2.0, 3.0, 4.0]) + 0.5
    result = dispatch.solve(BlockQubo(scale * q, 2), solver)
    assert (result.status, result.energy, "disbelieved" in result.info) == (Status.OPTIMAL, 0, False)


@pytest.mark.parametrize("kind", BUDGETS)
@pytest.mark.parametrize("name", ["greedy", "local", "tabu", "exact", "neal", "steepest", "callable"])
def test_budgets_are_met_by_whatever_solver_and_nobody_falls_below_the_optimum(rng, kind, name):
    problem = budgeted_problem(rng, 9, kind)
    solver = CallableSolver(lambda q, num_pruned: q.diagonal().argsort().argsort() < num_pruned)
    solver = solver if name == "callable" else make_solver(name)
    if solver.capabilities.cardinality and not solver.capabilities.budgets and not problem.num_groups:
        with pytest.raises(InputError, match=r"has no counts.*budgets such as 'local'"):
            dispatch.solve(problem, solver)
        return
    if name == "callable" and problem.num_groups > 1:
        return  # it reads one count
    best = min(energy_of(problem, x) for x in feasible_points(problem))
    result = dispatch.solve(problem, solver, seed=1)
    assert problem.is_feasible(result.assignment)
    assert result.energy >= best - 1e-9
    assert result.lower_bound is None or result.lower_bound <= best + 1e-9
    assert result.status is not Status.OPTIMAL
    if name in ("local", "tabu"):
        assert result.energy == pytest.approx(best)
    if name == "exact":
        assert result.info["budgets"] == "as linear terms"
        assert result.info["proof"] == "of the problem with relaxed budgets"
        assert result.lower_bound is not None
    if name == "neal":
        assert result.info["budgets"] == "as penalties with slack"
    start = feasible_points(problem)[0]
    assert dispatch.solve(problem, solver, warm_start=start).energy <= energy_of(problem, start) + 1e-9


def test_a_start_that_misses_a_budget_is_refused(rng):
    problem = budgeted_problem(rng, 9, "count")
    with pytest.raises(InputError, match="ones in the groups and every budget met"):
        dispatch.solve(problem, warm_start=np.argsort(np.argsort(problem.costs[0])) < problem.num_pruned[0])


def test_budgets_that_no_assignment_meets_at_once_are_refused_whoever_solves():
    problem = BlockQubo(np.eye(4), 2, costs=[[1, 1, 0, 0], [0, 0, 1, 1]], budget=[2, 2])
    for solver in ("greedy", "local", "cpsat", "exact", "neal"):
        with pytest.raises(InputError, match="No assignment meets the 2 budgets and the counts at once"):
            dispatch.solve(problem, solver)


def test_slack_counts_among_the_variables_that_a_solver_takes(rng):
    class Small(Solver):
        capabilities = Capabilities(cardinality=False, max_variables=12)

        def solve(self, request: SolveRequest, /) -> SolveResult:
            raise AssertionError("never asked")

    with pytest.raises(InputError, match=r"slack variables for budgets,. takes at most 12 variables.*14"):
        dispatch.solve(budgeted_problem(rng, 9, "alone"), Small())


def test_an_answer_that_misses_a_budget_is_none_of_a_solver_that_declares_them(rng):
    class Careless(Solver):
        capabilities = Capabilities(budgets=True)

        def solve(self, request: SolveRequest, /) -> SolveResult:
            x = np.argsort(np.argsort(request.problem.costs[0])) < request.problem.num_pruned[0]
            return single_answer(request.problem, x, Status.FEASIBLE)

    problem = budgeted_problem(rng, 9, "count")
    start = feasible_points(problem)[0]
    result = dispatch.solve(problem, Careless(), warm_start=start)
    assert result.status is Status.INFEASIBLE
    assert result.info["detail"] == "no answer meets the counts and budgets"
    assert np.array_equal(result.assignment, start)


# --- models and dicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["exact", "neal"])
@pytest.mark.parametrize("vartype", ["BINARY", "SPIN"])
def test_a_dimod_model_is_solved_and_its_answer_is_by_name(rng, vartype, solver):
    bqm = dimod.BinaryQuadraticModel(rng.normal(size=(6, 6)), vartype).relabel_variables(
        dict(enumerate("fedcba")), inplace=False
    )
    start = dict.fromkeys("abcdef", 0) | {"a": 1, "c": 1}
    result = solve(bqm, solver, num_pruned=2, warm_start=start)
    values = result.sample if vartype == "BINARY" else {name: 2 * x - 1 for name, x in result.sample.items()}
    assert sum(result.sample.values()) == 2
    assert float(bqm.energy(values)) == pytest.approx(result.energy)
    problem = BlockQubo.from_bqm(bqm, 2)
    assert result.energy <= problem.energy([start[name] for name in problem.names]) + 1e-12
    if solver == "exact":
        assert result.energy == pytest.approx(problem.energy(feasible_points(problem)).min())


def test_a_dict_is_solved_with_its_groups_by_name():
    qubo = {("a", "a"): 1.0, ("b", "b"): -1.0, ("c", "c"): 0.5, ("d", "d"): -3.0, ("a", "c"): -9.0}
    result = solve(qubo, "exact", num_pruned=[1, 1], labels={"a": 0, "b": 0, "c": 1, "d": 1})
    assert result.sample == {"a": 1, "b": 0, "c": 1, "d": 0}
    assert result.energy == -7.5
    free = solve(qubo, "neal", num_pruned=None)
    assert free.energy == pytest.approx(-11.5)


def test_names_do_not_reach_the_solver():
    class Name:
        def __reduce__(self):
            raise TypeError("a name that cannot be copied")

    names = [Name(), Name()]
    result = solve(BlockQubo([[1.0, 0.0], [0.0, 2.0]], 1, names=names), "cpsat", time_limit="20s")
    assert result.sample == {names[0]: 1, names[1]: 0}
    assert "isolation" not in result.info


def test_of_a_model_the_count_is_said_and_of_a_problem_it_is_not():
    with pytest.raises(InputError, match="give num_pruned=m"):
        solve({("a", "a"): 1.0})
    with pytest.raises(InputError, match="A BlockQubo has its own counts"):
        solve(BlockQubo(np.eye(2), 1), num_pruned=1)
    with pytest.raises(InputError, match="A BlockQubo has its own counts"):
        solve(BlockQubo(np.eye(2), 1), labels=[0, 0])
    with without_type_checks(), pytest.raises(InputError, match="The problem is of type ndarray; give a BlockQubo"):
        solve(np.eye(2), num_pruned=1)
    with pytest.raises(InputError, match=r"^warm_start lacks 'b'"):
        solve({("a", "b"): 1.0}, num_pruned=1, warm_start={"a": 1})


def test_a_bound_above_what_the_polish_or_the_start_has_is_disbelieved(rng):
    problem = random_problem(rng, 10, 5)
    points = feasible_points(problem)
    worst = points[np.argmax(problem.energy(points))]

    def claims_the_worst(request: SolveRequest) -> SolveResult:
        return single_answer(problem, worst, Status.FEASIBLE, lower_bound=problem.energy(worst) - 1e-6)

    for arguments in ({}, {"polish": False, "warm_start": points[np.argmin(problem.energy(points))]}):
        result = solve(problem, Watching(claims_the_worst), **arguments)
        assert result.lower_bound is None
        assert result.status is Status.NOT_IMPROVED or "is above the energy found" in result.info["disbelieved"]
    assert solve(problem, Watching(claims_the_worst), polish=False).lower_bound is not None


def test_a_list_with_relaxed_budgets_is_not_called_proven():
    problem = BlockQubo(np.diag(np.arange(6.0)), 3, costs=[1, 1, 1, 5, 5, 5], budget=11)
    result = solve(problem, "exact", num_answers=4)
    assert "proven" not in result.info
    assert result.status is not Status.OPTIMAL


def test_budgets_that_are_hard_to_meet_cost_no_more_than_the_limit_and_fall_back_on_the_start():
    rng = np.random.default_rng(1)
    costs = rng.integers(0, 100, size=(4, 30))
    x = rng.random(30) < 0.5
    met = costs @ x
    both = {"costs": np.vstack([costs, -costs]), "budget": np.concatenate([met, -met])}
    problem = BlockQubo(np.diag(rng.normal(size=30)), None, **both)
    with pytest.raises(SolverError, match="more time"):
        solve(problem, "greedy", time_limit=0.2)
    for solver in ("local", "neal"):
        result = solve(problem, solver, time_limit=0.5, warm_start=x)
        assert problem.is_feasible(result.assignment)
