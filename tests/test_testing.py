"""The contract is met by good solvers, and each of its checks catches a solver that breaks it."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from qubo_prune_solvers.exact import Exact
from qubo_prune_solvers.greedy import Greedy
from reference import minimum as slow_minimum
from reference import random_problem

from qubo_prune.errors import InputError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    dispatch,
    ranked_answers,
)
from qubo_prune.testing import SolverContract, check_names, check_solver, minimum, run_check


class TestGreedy(SolverContract):
    @pytest.fixture
    def solver(self) -> Solver:
        return Greedy()


class TestExact(SolverContract):
    @pytest.fixture
    def solver(self) -> Solver:
        return Exact()


def points_of(problem: BlockQubo) -> np.ndarray:
    points = np.array(list(product((False, True), repeat=problem.num_variables)), dtype=bool)
    points = points.reshape(2**problem.num_variables, problem.num_variables)
    return points[[problem.is_feasible(x) for x in points]]


@dataclass(frozen=True)
class Brute(Solver):
    """Every assignment in turn: meets the contract."""

    capabilities = Capabilities(exact=True, stochastic=False, factor_form=True, max_variables=12)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        best = ranked_answers(request.problem, points_of(request.problem), Status.OPTIMAL)
        count = request.num_answers
        return SolveResult(best.assignments[:count], best.energies[:count], best.status, lower_bound=best.energy)


@dataclass(frozen=True)
class FreeBrute(Brute):
    """The same for a solver that knows no counts."""

    capabilities = Capabilities(exact=True, cardinality=False, stochastic=False, max_variables=12)


@dataclass(frozen=True)
class Lottery(Solver):
    """Draws a feasible assignment: meets the contract, too."""

    capabilities = Capabilities(anytime=True)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        return ranked_answers(request.problem, draw(request.problem, request.seed), Status.FEASIBLE)


@dataclass(frozen=True)
class NarrowBrute(Brute):
    """The same for one count and two variables at most."""

    capabilities = Capabilities(exact=True, groups=False, stochastic=False, max_variables=2)


def draw(problem: BlockQubo, seed: int | None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.zeros(problem.num_variables, dtype=bool)
    for group, count in enumerate(problem.num_pruned):
        x[rng.permutation(np.flatnonzero(problem.labels == group))[:count]] = True
    return x


@pytest.mark.parametrize("solver", [Brute(), FreeBrute(), Lottery(), NarrowBrute(), "exact"])
def test_good_solvers_pass(solver):
    outcomes = check_solver(solver)
    assert [outcome.name for outcome in outcomes] == check_names()
    assert [(o.name, o.message) for o in outcomes if o.passed is False] == []
    assert all(outcome.message for outcome in outcomes if outcome.passed is None)
    assert all(outcome.seconds >= 0 for outcome in outcomes)


def test_checks_that_do_not_apply_say_why():
    reasons = {outcome.name: outcome.message for outcome in check_solver(NarrowBrute()) if outcome.passed is None}
    assert set(reasons) >= {"several_groups", "frustrated_triangle", "swap_optimal", "batches"}
    assert reasons["several_groups"] == "it declares to take one count only"
    assert "no largest size" in run_check("size", Lottery()).message


Answering = Callable[[Solver, SolveRequest], Any]


def broken(answer: Answering, base: type[Solver] = Brute, **declared: Any) -> Solver:
    """A solver that answers like that, and declares what its base does and what is given."""

    @dataclass(frozen=True)
    class Broken(base):  # type: ignore[valid-type, misc]
        capabilities = dataclasses.replace(base.capabilities, **declared)

        def solve(self, request: SolveRequest, /) -> SolveResult:
            return answer(self, request)

    return Broken()


def good(request: SolveRequest, problem: BlockQubo | None = None) -> SolveResult:
    """The true answer, or that of another problem with the energies of this one."""
    found = Brute().solve(dataclasses.replace(request, problem=problem or request.problem))
    bound = found.lower_bound if problem is None else None
    return spoilt(found, energies=np.atleast_1d(request.problem.energy(found.assignments)), lower_bound=bound)


def spoilt(result: SolveResult, **parts: Any) -> SolveResult:
    """A result with other parts: set late, past the type checks of these tests."""
    result = dataclasses.replace(result)
    for name, value in parts.items():
        object.__setattr__(result, name, value)
    return result


def changed(problem: BlockQubo, q: Any) -> BlockQubo:
    return BlockQubo(q, problem.num_pruned, problem.offset, problem.labels)


def raises_on_nothing(self: Solver, request: SolveRequest) -> SolveResult:
    request.problem.labels[0]
    return good(request)


def prunes_the_first(self: Solver, request: SolveRequest) -> SolveResult:
    x = good(request).assignments.copy()
    x[:, :1] = True
    return spoilt(good(request), assignments=x)


def one_of_each(self: Solver, request: SolveRequest) -> SolveResult:
    """Takes for granted that there is a kept and a pruned weight."""
    x = good(request).assignment
    np.flatnonzero(x)[0], np.flatnonzero(~x)[0]
    return good(request)


def without_negative(self: Solver, request: SolveRequest) -> SolveResult:
    return good(request, changed(request.problem, np.maximum(request.problem.dense(), 0)))


def without_couplings(self: Solver, request: SolveRequest) -> SolveResult:
    return good(request, changed(request.problem, np.diag(request.problem.diagonal)))


def without_linear(self: Solver, request: SolveRequest) -> SolveResult:
    q = request.problem.dense()
    return good(request, changed(request.problem, q - np.diag(np.diag(q))))


def in_half_precision(self: Solver, request: SolveRequest) -> SolveResult:
    with np.errstate(over="ignore"):
        q = request.problem.dense().astype(np.float16)
    return good(request, changed(request.problem, np.nan_to_num(q, posinf=0, neginf=0)))


def one_count_for_all(self: Solver, request: SolveRequest) -> SolveResult:
    return good(request, BlockQubo(request.problem.dense(), sum(request.problem.num_pruned)))


def reads_a_matrix(self: Solver, request: SolveRequest) -> SolveResult:
    assert not isinstance(request.problem.q, FactorForm), "no matrix"
    return good(request)


def needs_a_start(self: Solver, request: SolveRequest) -> SolveResult:
    return ranked_answers(request.problem, request.warm_start.copy(), Status.FEASIBLE)


def writes_to_the_start(self: Solver, request: SolveRequest) -> SolveResult:
    if request.warm_start is not None:
        request.warm_start[:] = False
    return good(request)


def writes_to_the_problem(self: Solver, request: SolveRequest) -> SolveResult:
    request.problem.diagonal[:] = 0
    return good(request)


def draws_without_the_seed(self: Solver, request: SolveRequest) -> SolveResult:
    return ranked_answers(request.problem, draw(request.problem, None), Status.FEASIBLE)


def runs_on(self: Solver, request: SolveRequest) -> SolveResult:
    if request.time_limit is not None:
        time.sleep(60)
    return Lottery().solve(request)


def raises(self: Solver, request: SolveRequest) -> SolveResult:
    raise RuntimeError("the device is on fire")


def leaves(self: Solver, request: SolveRequest) -> SolveResult:
    raise SystemExit(1)


def sees_no_budgets(self: Solver, request: SolveRequest) -> SolveResult:
    problem = request.problem
    return good(dataclasses.replace(request, problem=problem.without_budgets(problem.q)))


def relaxes(self: Solver, request: SolveRequest) -> SolveResult:
    """The feasible assignment of the largest sum, which is the one that budgets ask for least."""
    problem = request.problem
    points = points_of(problem)
    best = points[np.argmax([problem.amounts(x)[0] if problem.num_budgets else -problem.energy(x) for x in points])]
    return ranked_answers(problem, best, Status.OPTIMAL)


BROKEN = {
    "boasts of batches": ("capabilities", broken(lambda s, r: good(r), batched=True), "solve_batch"),
    "takes no largest size": ("capabilities", broken(lambda s, r: good(r), max_variables=0), "max_variables is 0"),
    "raises on nothing": ("empty_problem", broken(raises_on_nothing), "IndexError"),
    "prunes the first": ("one_variable", broken(prunes_the_first), r"misses a count: \[1\] are pruned"),
    "raises": ("zero_matrix", broken(raises), "it raised RuntimeError: the device is on fire"),
    "leaves": ("zero_matrix", broken(leaves), "SystemExit"),
    "answers nothing": ("diagonal", broken(lambda s, r: None), "NoneType"),
    "no answers": ("diagonal", broken(lambda s, r: spoilt(good(r), assignments=[])), "gave no answer"),
    "too short": ("diagonal", broken(lambda s, r: spoilt(good(r), assignments=[[True]])), "shape"),
    "NaN": ("diagonal", broken(lambda s, r: spoilt(good(r), assignments=[[np.nan] * 8])), "not binary"),
    "no status": ("diagonal", broken(lambda s, r: spoilt(good(r), status="fine")), "its status is 'fine'"),
    "without linear terms": ("diagonal", broken(without_linear), "declared exact and found"),
    "without couplings": ("positive_couplings", broken(without_couplings), "declared exact and found"),
    "without negative couplings": ("negative_couplings", broken(without_negative), "declared exact and found"),
    "ignores the triangle": ("frustrated_triangle", broken(without_couplings), "declared exact and found"),
    "in half precision": ("huge_and_tiny_scales", broken(in_half_precision), "declared exact and found"),
    "one weight of each kind": ("nothing_or_all_pruned", broken(one_of_each), "IndexError"),
    "wrong for none": ("nothing_or_all_pruned", broken(prunes_the_first), "misses a count"),
    "linear terms lost": ("linear_terms_and_offset", broken(without_linear), "declared exact and found"),
    "sees no budgets": ("budgets", broken(sees_no_budgets, budgets=True), "misses a count or a budget"),
    "calls what is relaxed optimal": ("budgets", broken(relaxes, budgets=True), "is declared exact and found"),
    "one count for all": ("several_groups", broken(one_count_for_all), "misses a count"),
    "needs a matrix": ("factor_form", broken(reads_a_matrix), "no matrix"),
    "needs a start": ("warm_start", broken(needs_a_start, exact=False), "AttributeError"),
    "lies about energies": (
        "energies_are_those_of_the_answers",
        broken(lambda s, r: spoilt(good(r), energies=good(r).energies + 1.0)),
        "it claims energies",
    ),
    "puts the worst first": (
        "energies_are_those_of_the_answers",
        broken(
            lambda s, r: spoilt(good(r), assignments=good(r).assignments[::-1], energies=good(r).energies[::-1]),
            exact=False,
        ),
        "not best first",
    ),
    "claims less than there is": (
        "optimum",
        broken(lambda s, r: spoilt(good(r), energies=good(r).energies - 1.0)),
        "it claims the energy",
    ),
    "not exact": ("optimum", broken(lambda s, r: Lottery().solve(r)), "declared exact and found"),
    "does not say so": (
        "optimum",
        broken(lambda s, r: spoilt(good(r), status=Status.FEASIBLE)),
        "its status is FEASIBLE",
    ),
    "not exact without counts": (
        "optimum",
        broken(lambda s, r: Lottery().solve(r), base=FreeBrute),
        "declared exact and found",
    ),
    "spins as bools": (
        "answers_follow_the_problem",
        broken(lambda s, r: ranked_answers(r.problem, [True] * r.problem.num_variables, Status.FEASIBLE), FreeBrute),
        "one constant answer",
    ),
    "nothing pruned": (
        "answers_follow_the_problem",
        broken(lambda s, r: ranked_answers(r.problem, [False] * r.problem.num_variables, Status.FEASIBLE), FreeBrute),
        "one constant answer",
    ),
    "always the same": (
        "answers_follow_the_problem",
        broken(lambda s, r: ranked_answers(r.problem, np.arange(r.problem.num_variables) % 2 == 1, Status.FEASIBLE)),
        "one constant answer",
    ),
    "bound too high": (
        "lower_bound",
        broken(lambda s, r: spoilt(good(r), lower_bound=good(r).energy + 1e-3)),
        "above the optimum",
    ),
    "no swap optimum": (
        "swap_optimal",
        broken(lambda s, r: Lottery().solve(r), base=Lottery, swap_optimal=True),
        "a swap improves",
    ),
    "writes to the start": ("inputs_are_left_alone", broken(writes_to_the_start), "it wrote to"),
    "writes to the problem": ("inputs_are_left_alone", broken(writes_to_the_problem), "read-only"),
    "ignores the seed": ("same_seed_same_answer", broken(draws_without_the_seed, base=Lottery), "one seed"),
    "hides its seed": (
        "same_seed_same_answer",
        broken(lambda s, r: Lottery().solve(r), base=Lottery, stochastic=False),
        "depends on the seed",
    ),
    "runs on": ("time_limit", broken(runs_on, base=Lottery), "0.5 s given"),
    "unusable in time": (
        "time_limit",
        broken(lambda s, r: spoilt(Lottery().solve(r), assignments=[]), base=Lottery),
        "gave no answer",
    ),
    "keeps a lock in its answer": (
        "other_processes",
        broken(lambda s, r: spoilt(good(r), info={"lock": threading.Lock()})),
        "its result cannot be sent",
    ),
    "boasts": ("dispatch", broken(lambda s, r: good(r), exact=False), "without declaring to be exact"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_solver_that_breaks_the_contract_is_caught(case):
    check, solver, message = BROKEN[case]
    outcome = run_check(check, solver)
    assert outcome.passed is False
    assert re.search(message, outcome.message), outcome.message


def test_every_check_but_one_has_a_solver_that_breaks_it():
    caught = {check for check, _, _ in BROKEN.values()} | {"batches"}
    # that too large a problem is refused and that answers to relaxed budgets are mended is the framework's doing
    assert set(check_names()) - caught == {"size", "relaxed_budgets"}


@dataclass(frozen=True)
class Remembering(Lottery):
    """Its answer depends on the calls before."""

    calls: list[int] = dataclasses.field(default_factory=list)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        self.calls.append(1)
        return super().solve(dataclasses.replace(request, seed=len(self.calls)))


def test_state_between_calls_is_caught():
    assert "one seed" in run_check("same_seed_same_answer", Remembering()).message


@dataclass(frozen=True)
class Held(Lottery):
    """Holds what cannot be sent."""

    lock: Any = dataclasses.field(default_factory=threading.Lock)


@dataclass(frozen=True)
class HeldBrute(Brute):
    """The same, and does not watch the clock."""

    lock: Any = dataclasses.field(default_factory=threading.Lock)


@pytest.mark.parametrize("solver", [Held(), HeldBrute()])
def test_a_solver_that_cannot_be_sent_passes_and_stays_in_the_callers_process(solver):
    outcomes = {outcome.name: outcome for outcome in check_solver(solver)}
    assert [outcome for outcome in outcomes.values() if outcome.passed is False] == []
    for name in ("other_processes", "time_limit"):
        assert outcomes[name].passed is None
        assert "it cannot be sent to another process: TypeError" in outcomes[name].message
    problem = random_problem(np.random.default_rng(0), 6, 3)
    result = dispatch.solve(problem, solver, time_limit="20s")
    assert ("isolation" in result.info) == (not solver.capabilities.anytime)


def fail_to_return() -> Solver:
    raise ZeroDivisionError("it does not come back")


@dataclass(frozen=True)
class Lost(Lottery):
    """Can be sent, and cannot be made again there."""

    def __reduce__(self):
        return fail_to_return, ()


def test_a_solver_that_is_lost_on_the_way_is_caught():
    outcome = run_check("other_processes", Lost())
    assert outcome.passed is False
    assert "the solver cannot be sent to another process: ZeroDivisionError" in outcome.message


def numbers(request: BatchRequest) -> BatchResult:
    result = BatchResult(request.warm_start)
    object.__setattr__(result, "assignments", request.warm_start.double())
    return result


def write_to_starts(request: BatchRequest) -> BatchResult:
    return BatchResult(request.warm_start.logical_not_())


def shuffle(request: BatchRequest) -> BatchResult:
    order = torch.randperm(request.warm_start.shape[1])
    return BatchResult(request.warm_start[:, order])


BROKEN_BATCHES = {
    "misses counts": (lambda r: BatchResult(torch.ones_like(r.warm_start)), "a row misses a count"),
    "writes to its input": (write_to_starts, "it wrote to the batch"),
    "ignores the seed": (shuffle, "one seed"),
    "numbers": (numbers, "float64"),
    "nothing": (lambda r: None, "NoneType"),
    "not exact": (lambda r: BatchResult(r.warm_start.clone()), "where the optimum is"),
}


@pytest.mark.parametrize("case", BROKEN_BATCHES)
def test_a_batched_solver_that_breaks_the_contract_is_caught(case):
    answer, message = BROKEN_BATCHES[case]

    @dataclass(frozen=True)
    class Batched(Brute):
        capabilities = Capabilities(exact=True, batched=True, stochastic=False)

        def solve_batch(self, request: BatchRequest, /) -> BatchResult:
            return answer(request)

    outcome = run_check("batches", Batched())
    assert outcome.passed is False
    assert message in outcome.message


def test_a_batch_that_runs_on_is_caught():
    @dataclass(frozen=True)
    class Slow(Lottery):
        capabilities = Capabilities(anytime=True, batched=True)

        def solve_batch(self, request: BatchRequest, /) -> BatchResult:
            time.sleep(2)
            return BatchResult(request.warm_start.clone())

    assert "a batch that was given 0.5 s took" in run_check("time_limit", Slow()).message


def test_the_minimum_is_that_of_the_slow_reference(rng):
    for problem in (random_problem(rng, 7, 3), random_problem(rng, 6, (1, 2), [0, 1, 1, 0, 1, 0])):
        assert minimum(problem) == pytest.approx(slow_minimum(problem), rel=1e-12)
    assert minimum(BlockQubo(np.diag([-1.0, 2.0, -3.0]), None, 0.5)) == -3.5
    assert minimum(BlockQubo(np.zeros((0, 0)), 0, 0.5)) == 0.5


def test_unknown_solvers_are_refused():
    with pytest.raises(InputError, match="did you mean 'greedy'"):
        check_solver("gredy")


def test_the_suite_needs_no_pytest():
    code = "import sys; sys.modules['pytest'] = None; import qubo_prune.testing; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "imported"
