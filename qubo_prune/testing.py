"""The conformance suites for solvers and methods: what each is held to, for pytest and without it.

A plug-in's author inherits :class:`SolverContract` and gives one fixture::

    class TestMine(SolverContract):
        @pytest.fixture
        def solver(self):
            return Mine()

``qubo-prune check-solver NAME`` and :func:`check_solver` run the same checks without pytest. Solvers
are called as they are, with what their capabilities ask for (:func:`qubo_prune.solver.dispatch.prepared`),
so that neither repair nor polish nor a fallback hides what they answer. :class:`MethodContract` does the same for
methods; see :mod:`qubo_prune.methods.contract`.
"""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle
import numpy as np
import torch
from jaxtyping import Bool
from numpy.typing import NDArray

from qubo_prune.checks import CheckOutcome, NotApplicable, outcome_of, require
from qubo_prune.errors import InputError
from qubo_prune.methods.contract import MethodContract as MethodContract
from qubo_prune.methods.contract import check_method as check_method
from qubo_prune.problem.penalty import SLACK_BITS
from qubo_prune.problem.qubo import BlockBatch, BlockQubo, FactorForm
from qubo_prune.solver import dispatch
from qubo_prune.solver.interface import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
)
from qubo_prune.solver.registry import make_solver
from qubo_prune.solver.swaps.feasible import feasible_start
from qubo_prune.solver.workers import Overrun, Workers

#: Relative error that energies of a solver may have; it may compute in single precision.
CLAIMED = 1e-5
#: Relative error of our own arithmetic.
ROUNDING = 1e-9
#: Seconds that the time-limited checks give.
TIME_LIMIT = 0.5


def check_solver(solver: str | Solver, **settings: Any) -> list[CheckOutcome]:
    """Run every check of :class:`SolverContract` on a solver.

    Args:
        solver: a name as for :func:`qubo_prune.solve`, or a solver.
        **settings: fields of a named solver.

    Raises:
        InputError: there is no such solver.
        SolverError: it cannot be loaded.
    """
    return list(run_checks(make_solver(solver, **settings)))


def check_names() -> list[str]:
    """Names of the checks in their order, such as ``empty_problem``."""
    return [name.removeprefix("test_") for name in vars(SolverContract) if name.startswith("test_")]


def run_checks(solver: Solver) -> Iterator[CheckOutcome]:
    """The same, one outcome after another."""
    return (run_check(name, solver) for name in check_names())


def run_check(name: str, solver: Solver) -> CheckOutcome:
    """Run one check by its name."""
    check: Callable[[Solver], None] = getattr(SolverContract(), f"test_{name}")
    return outcome_of(name, lambda: check(solver))


class SolverContract:
    """What every solver is held to; see the module. One method is one check."""

    def test_capabilities(self, solver: Solver) -> None:
        """They are declared as data, and are possible."""
        can = solver.capabilities
        require(isinstance(can, Capabilities), f"capabilities is a {type(can).__name__}, not a Capabilities")
        most = can.max_variables
        require(most is None or (isinstance(most, int) and most >= 1), f"max_variables is {most!r}")
        require(bool(can.devices), "no device is declared")
        require(can.cardinality or not can.budgets, "'budgets' is declared without 'cardinality'")
        if can.batched:
            overridden = type(solver).solve_batch is not Solver.solve_batch
            require(overridden, "'batched' is declared and solve_batch is not implemented")

    def test_empty_problem(self, solver: Solver) -> None:
        """No variables at all."""
        _answer(solver, BlockQubo(np.zeros((0, 0)), 0, offset=1.5))

    def test_one_variable(self, solver: Solver) -> None:
        """One variable, kept or pruned."""
        for count in (0, 1):
            _answer(solver, BlockQubo([[-2.0]], count, offset=0.5))

    def test_zero_matrix(self, solver: Solver) -> None:
        """Every assignment is as good as any other."""
        n = _size(solver)
        _answer(solver, BlockQubo(np.zeros((n, n)), n // 2, offset=-1.0))

    def test_diagonal(self, solver: Solver) -> None:
        """No couplings."""
        n = _size(solver)
        _answer(solver, BlockQubo(np.diag(_rng().normal(size=n)), n // 2))

    def test_positive_couplings(self, solver: Solver) -> None:
        """Weights that add up."""
        n = _size(solver)
        _answer(solver, BlockQubo(np.abs(_rng().normal(size=(n, n))), n // 2))

    def test_negative_couplings(self, solver: Solver) -> None:
        """Weights that cancel one another."""
        n = _size(solver)
        q = -np.abs(_rng().normal(size=(n, n)))
        _answer(solver, BlockQubo(q - np.diag(q.sum(1)), n // 2))

    def test_frustrated_triangle(self, solver: Solver) -> None:
        """Three couplings that cannot all be satisfied."""
        n = _size(solver, 3, least=3)
        q = np.array([[-1.0, -1.0, 1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
        for count in range(n + 1):
            _answer(solver, BlockQubo(q, count))

    def test_huge_and_tiny_scales(self, solver: Solver) -> None:
        """Energies of 1e30 and of 1e-30."""
        n = _size(solver)
        for scale in (1e30, 1e-30):
            _answer(solver, _random(n, n // 2, scale=scale))

    def test_nothing_or_all_pruned(self, solver: Solver) -> None:
        """Counts that leave no choice."""
        n = _size(solver)
        for count in (0, n):
            _answer(solver, _random(n, count))

    def test_linear_terms_and_offset(self, solver: Solver) -> None:
        """Linear terms that outweigh the couplings, of both signs, and a large constant."""
        n = _size(solver)
        linear = np.diag(10 * _rng(1).normal(size=n))
        plain = _random(n, n // 2)
        _answer(solver, BlockQubo(plain.dense() + linear, n // 2, offset=-123.0))

    def test_several_groups(self, solver: Solver) -> None:
        """Counts of several groups, one of which leaves no choice."""
        if solver.capabilities.cardinality and not solver.capabilities.groups:
            raise NotApplicable("it declares to take one count only")
        n = _size(solver, least=3)
        labels = np.arange(n) % 3
        sizes = np.bincount(labels)
        for counts in ((1, int(sizes[1]), 0), tuple(int(size) // 2 for size in sizes)):
            _answer(solver, _random(n, counts, labels=labels))

    def test_factor_form(self, solver: Solver) -> None:
        """``Q = diag(d) + F F'``, handed over as it is if that is declared, as a matrix otherwise."""
        n, rng = _size(solver), _rng()
        form = FactorForm(rng.normal(size=n), rng.normal(size=(n, 2)))
        given, _ = _answer(solver, BlockQubo(form, n // 2, offset=0.5))
        require(isinstance(given.problem.q, FactorForm) == solver.capabilities.factor_form, "the form was changed")

    def test_warm_start(self, solver: Solver) -> None:
        """A start is taken, and needed by nobody."""
        n = _size(solver)
        problem = _random(n, n // 2)
        _answer(solver, problem)
        _answer(solver, problem, warm_start=_start(problem))

    def test_energies_are_those_of_the_answers(self, solver: Solver) -> None:
        """What is said of each answer is its energy, to single precision, best first."""
        n = _size(solver)
        given, result = _answer(solver, _random(n, n // 2), num_answers=4)
        claimed = np.asarray(result.energies, dtype=np.float64)
        if not claimed.size or np.isnan(claimed).all():
            raise NotApplicable("it gives no energies; they are computed for it")
        require(claimed.shape == (len(result.assignments),), f"energies has shape {claimed.shape}")
        energies = np.atleast_1d(given.problem.energy(np.asarray(result.assignments)))
        error = float(np.abs(claimed - energies).max())
        require(
            error <= CLAIMED * _scale(given.problem),
            f"it claims energies {_list(claimed)} for answers that have {_list(energies)}",
        )
        slack = CLAIMED * _scale(given.problem)
        require(bool((np.diff(energies) >= -slack).all()), f"energies {_list(energies)} are not best first")

    def test_optimum(self, solver: Solver) -> None:
        """An exact solver finds the enumerated optimum and says so; nobody claims less than that."""
        n = _size(solver, 10)
        for seed in range(4):
            _answer(solver, _random(n, n // 2 if seed % 2 else n // 3, seed))

    def test_answers_follow_the_problem(self, solver: Solver) -> None:
        """It reads its problem: problems whose optima share no value are not all answered with one constant."""
        answers = set()
        for seed, problem in enumerate(_opposites(_size(solver))):
            result = solver.solve(_request(solver, problem, seed=seed))
            answers |= {np.asarray(x).astype(np.float64).tobytes() for x in result.assignments}
        require(
            len(answers) > 1,
            "it gives one constant answer, whatever the problem: look at how its samples become 0 and 1",
        )

    def test_lower_bound(self, solver: Solver) -> None:
        """A bound, if there is one, is below the optimum."""
        n, given = _size(solver, 10), 0
        for seed in range(4, 8):
            _, result = _answer(solver, _random(n, n // 2, seed))
            given += result.lower_bound is not None
        if not given:
            raise NotApplicable("it gives no lower bound")

    def test_swap_optimal(self, solver: Solver) -> None:
        """No swap improves the answers of a solver that says so."""
        if not solver.capabilities.swap_optimal:
            raise NotApplicable("it does not declare to be")
        n = _size(solver, 12)
        for seed in range(4):
            problem = _random(n, n // 2, seed)
            _, result = _answer(solver, problem)
            x = np.asarray(result.assignments[0], dtype=bool)
            costs = problem.flip_costs(x)
            for u in np.flatnonzero(~x):
                change = costs[u] - costs[x] - problem.couplings(int(u))[x]
                require(bool((change >= -CLAIMED * _scale(problem)).all()), "a swap improves its answer")

    def test_budgets(self, solver: Solver) -> None:
        """Linear budgets: beside a count, beside groups of one choice each, several, met with equality, and alone."""
        if not solver.capabilities.budgets:
            raise NotApplicable("it does not declare to take budgets")
        n = _size(solver, 10, least=4)
        for problem in _budgeted(n, solver.capabilities.groups):
            _answer(solver, problem)
            _answer(solver, problem, warm_start=feasible_start(problem), num_answers=3, seed=5)

    def test_relaxed_budgets(self, solver: Solver) -> None:
        """Budgets, relaxed for a solver that knows none: its answer is mended, and its bound holds."""
        if solver.capabilities.budgets:
            raise NotApplicable("it takes budgets itself")
        n = _size(solver, 10, least=4)
        if not solver.capabilities.cardinality:
            n = _size(solver, n + SLACK_BITS) - SLACK_BITS
        if n < 4:
            raise NotApplicable(f"it takes {n + SLACK_BITS} variables, too few for a budget and its slack")
        problem = _budgeted(n, False)[0]
        result = dispatch.solve(problem, solver)
        require(problem.is_feasible(result.assignment), "the framework's answer misses a budget")
        best, slack = minimum(problem), ROUNDING * _scale(problem)
        require(result.energy >= best - slack, f"{result.energy:.9g} is below the optimum {best:.9g}")
        bound = result.lower_bound
        require(bound is None or bound <= best + slack, f"its bound {bound} is above the optimum {best:.9g}")

    def test_inputs_are_left_alone(self, solver: Solver) -> None:
        """Neither the problem nor the start is written to."""
        n, rng = _size(solver), _rng()
        forms = (_random(n, n // 2), BlockQubo(FactorForm(rng.normal(size=n), rng.normal(size=(n, 2))), n // 2))
        for problem in forms:
            given = _request(solver, problem, _start(problem))
            before = [array.copy() for array in _arrays(given)]
            solver.solve(given)
            for old, new in zip(before, _arrays(given), strict=True):
                require(np.array_equal(old, new), "it wrote to the problem or to the warm start")

    def test_same_seed_same_answer(self, solver: Solver) -> None:
        """An answer follows from the request: the seed decides, and nothing is left from the call before."""
        can = solver.capabilities
        n = 40 if can.max_variables is None and not can.exact else _size(solver, 10)
        problem = _random(n, n // 2)
        first, other, again = (
            np.asarray(solver.solve(_request(solver, problem, seed=seed)).assignments) for seed in (1, 2, 1)
        )
        require(np.array_equal(first, again), "two runs with one seed gave different answers")
        if not can.stochastic:
            require(np.array_equal(first, other), "the answer depends on the seed; declare it as stochastic")

    def test_time_limit(self, solver: Solver) -> None:
        """A solver that declares to be anytime stops by itself; any other is ended."""
        n = _size(solver, 64)
        problem = _random(n, n // 2)
        start = _start(problem)
        if not solver.capabilities.anytime:
            result = dispatch.solve(problem, solver, time_limit=TIME_LIMIT, warm_start=start)
            if "isolation" in result.info:
                raise NotApplicable(str(result.info["isolation"]))
            return
        given = _request(solver, problem, start, time_limit=TIME_LIMIT)
        try:
            process = Workers(solver, 1)
        except TypeError as error:
            raise NotApplicable(f"{error}, so that nothing could end it") from None
        # what is compiled at the first call is compiled here
        process.submit(_request(solver, _random(_size(solver), 1)))()
        try:
            result = process.submit(given)()
        except Overrun:
            raise AssertionError(
                f"it declares to stop at its time limit and ran on: {TIME_LIMIT} s given, "
                f"ended after {1.5 * TIME_LIMIT + 1:g} s"
            ) from None
        _judged(solver, given, result, limited=True)
        if solver.capabilities.batched:
            _check_batch_time(solver, n)

    def test_other_processes(self, solver: Solver) -> None:
        """It answers alike in another process, and its result comes back; one that cannot be sent stays in this one."""
        n = _size(solver)
        given = _request(solver, _random(n, n // 2))
        try:
            Workers(solver, 1)
        except TypeError as error:
            raise NotApplicable(f"{error}; it runs in the caller's process, which no time limit ends") from None
        copy = _copied(solver, "the solver")
        require(isinstance(copy, Solver), "a copy of the solver is none")
        there, here = _copied(copy.solve(_copied(given, "the request")), "its result"), solver.solve(given)
        require(np.array_equal(there.assignments, here.assignments), "a copy of it answers otherwise")

    def test_size(self, solver: Solver) -> None:
        """Problems above the declared size are refused."""
        most = solver.capabilities.max_variables
        if most is None:
            raise NotApplicable("it declares no largest size")
        try:
            dispatch.solve(BlockQubo(FactorForm(np.ones(most + 1), np.zeros((most + 1, 1))), 1), solver)
        except InputError:
            return
        raise AssertionError(f"{most + 1} variables were not refused")

    def test_dispatch(self, solver: Solver) -> None:
        """All in all: the framework takes its answer, and the result is none of the framework's own."""
        n = _size(solver)
        problem = _random(n, n // 2)
        result = dispatch.solve(problem, solver, polish=False)
        require(problem.is_feasible(result.assignment), "a count is missed")
        require("disbelieved" not in result.info, str(result.info.get("disbelieved")))

    def test_batches(self, solver: Solver) -> None:
        """Many rows at once, with a shared or their own Hessians: counts met, inputs left alone."""
        if not solver.capabilities.batched:
            raise NotApplicable("it does not declare to take batches")
        n = _size(solver)
        for shared, count in ((True, n // 2), (False, n // 2), (True, 0), (True, n)):
            _check_batch(solver, _batch(5, n, [count], np.zeros(n, dtype=np.int64), shared))
        if solver.capabilities.groups and n >= 4:
            _check_batch(solver, _batch(5, n, [n // 4, n // 4], np.arange(n) * 2 // n, True))


def _check_batch(solver: Solver, problems: BlockBatch) -> None:
    start = torch.tensor(np.array([_start(problems.problem(row)) for row in range(problems.num_rows)]))
    request = BatchRequest(problems, start, seed=3)
    before = [tensor.clone() for tensor in _tensors(request)]
    result = solver.solve_batch(request)
    require(isinstance(result, BatchResult), f"it answers a batch with a {type(result).__name__}")
    for old, new in zip(before, _tensors(request), strict=True):
        require(torch.equal(old, new), "it wrote to the batch or to the warm starts")
    answer = result.assignments
    require(answer.shape == start.shape and answer.dtype == torch.bool, f"{answer.dtype} of {tuple(answer.shape)}")
    require(torch.equal(problems.counts(answer), problems.num_pruned), "a row misses a count")
    again = solver.solve_batch(request).assignments
    require(torch.equal(answer, again), "two runs with one seed gave different answers")
    changed = dispatch.solve_batch(solver, request, dispatch.Handling(polish=False))
    for row in range(problems.num_rows):
        problem = problems.problem(row)
        best, slack = minimum(problem), CLAIMED * _scale(problem)
        energy = float(np.float64(problem.energy(start[row].numpy()))) + float(changed.change[row])
        require(energy >= best - slack, f"row {row}: {energy:.9g} is below the optimum {best:.9g}")
        if solver.capabilities.exact:
            require(energy <= best + slack, f"row {row}: {energy:.9g} where the optimum is {best:.9g}")


def _check_batch_time(solver: Solver, n: int) -> None:
    """In this process: 64 rows, once to warm up and once against the clock."""
    problems = _batch(64, n, [n // 2], np.zeros(n, dtype=np.int64), True)
    start = torch.tensor(np.array([_start(problems.problem(row)) for row in range(64)]))
    for _ in range(2):
        began = time.perf_counter()
        solver.solve_batch(BatchRequest(problems, start, time_limit=TIME_LIMIT))
        seconds = time.perf_counter() - began
    most = 1.5 * TIME_LIMIT + 1
    require(seconds <= most, f"a batch that was given {TIME_LIMIT} s took {seconds:.2f} s")


def _answer(solver: Solver, problem: BlockQubo, **asked: Any) -> tuple[SolveRequest, SolveResult]:
    """What the solver is given for a problem and what it answers, judged."""
    given = _request(solver, problem, **asked)
    return given, _judged(solver, given, solver.solve(given))


def _judged(solver: Solver, given: SolveRequest, result: object, limited: bool = False) -> SolveResult:
    """The result; ``AssertionError`` if it breaks the contract on the problem as it was given."""
    problem, can = given.problem, solver.capabilities
    if not isinstance(result, SolveResult):
        raise AssertionError(f"it answered with a {type(result).__name__}, not a SolveResult")
    require(isinstance(result.status, Status), f"its status is {result.status!r}")
    points = [np.asarray(x) for x in result.assignments]
    require(bool(points), "it gave no answer")
    for x in points:
        shape = (problem.num_variables,)
        require(x.shape == shape, f"an answer has shape {x.shape}; {shape} is needed")
        require(bool(np.isin(x, (0, 1)).all()), f"an answer is not binary: {_list(x)}")
        met = f"{problem.counts(x).tolist()} are pruned; the counts are {list(problem.num_pruned)}"
        missed = "a count or a budget" if problem.num_budgets else "a count"
        if problem.num_budgets:
            met += f"; it brings {problem.amounts(x).tolist()}, the budgets are {problem.budget.tolist()}"
        require(not can.cardinality or problem.is_feasible(x), f"an answer misses {missed}: {met}")
    energy = float(np.float64(problem.energy(points[0])))
    if problem.num_variables > 14:  # too many to enumerate
        return result
    best, slack = minimum(problem), ROUNDING * _scale(problem)
    claims = np.asarray(result.energies, dtype=np.float64)
    lowest = float(np.nanmin(claims)) if claims.size and not np.isnan(claims).all() else energy
    require(lowest >= best - CLAIMED * _scale(problem), f"it claims the energy {lowest:.9g}; the lowest is {best:.9g}")
    bound = result.lower_bound
    require(bound is None or bound <= best + slack, f"its lower bound {bound} is above the optimum {best:.9g}")
    if can.exact and not limited:
        require(energy <= best + slack, f"it is declared exact and found {energy:.9g}; the optimum is {best:.9g}")
        require(result.status is Status.OPTIMAL, f"it is declared exact and its status is {result.status.name}")
    return result


def minimum(problem: BlockQubo) -> float:
    """The lowest energy of a small problem, by enumeration of all ``2^n`` points."""
    points = np.array(list(itertools.product((False, True), repeat=problem.num_variables)), dtype=bool)
    points = points.reshape(2**problem.num_variables, problem.num_variables)
    if problem.num_groups:
        member = problem.labels[:, None] == np.arange(problem.num_groups)
        points = points[(points.astype(np.int64) @ member == problem.num_pruned).all(axis=1)]
    if problem.num_budgets:
        points = points[[problem.is_feasible(x) for x in points]]
    return float(np.atleast_1d(problem.energy(points)).min())


def _request(
    solver: Solver,
    problem: BlockQubo,
    warm_start: NDArray[np.bool_] | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    num_answers: int = 1,
) -> SolveRequest:
    form, temperatures = dispatch.prepared(problem, solver, warm_start, None, seed)
    start = None if warm_start is None else warm_start.copy()
    return SolveRequest(form, start, seed, time_limit, num_answers, temperatures)


def _copied(thing: Any, what: str) -> Any:
    try:
        return pickle.loads(cloudpickle.dumps(thing))
    except Exception as error:
        raise AssertionError(f"{what} cannot be sent to another process: {type(error).__name__}: {error}") from error


def _size(solver: Solver, wanted: int = 8, least: int = 1) -> int:
    """How many variables to try: as many as wanted, or the most that the solver takes."""
    most = solver.capabilities.max_variables
    size = wanted if most is None else min(wanted, most)
    if size < least:
        raise NotApplicable(f"it takes {size} variables, and {least} are needed")
    return size


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng([2024, seed])


def _random(
    n: int, counts: int | Sequence[int], seed: int = 0, labels: NDArray[np.int64] | None = None, scale: float = 1.0
) -> BlockQubo:
    """A block as layers emit them: weights on correlated inputs, with linear terms and an offset."""
    rng = _rng(seed)
    inputs = rng.normal(size=(n + 3, n)) @ (np.eye(n) + rng.normal(size=(n, n)) / 2)
    weights = rng.normal(size=n)
    q = weights[:, None] * (inputs.T @ inputs) * weights / n + np.diag(rng.normal(size=n))
    return BlockQubo(scale * q, counts, scale * float(rng.normal()), labels)


def _budgeted(n: int, groups: bool) -> list[BlockQubo]:
    """Problems with budgets that bind: one and two of them, beside counts and, for solvers of groups, choices."""
    rng, q = _rng(n), _random(n, 0).q
    costs = rng.integers(1, 20, size=(2, n)).astype(np.float64)
    half, third = n // 2, np.sort(costs, axis=1)[:, -(n // 2) :].sum(axis=1)
    one, other = rng.permutation(np.arange(n) < half), -costs[1]
    problems = [
        BlockQubo(q, half, costs=costs[0], budget=np.floor(0.9 * third[0])),
        # met with equality by some assignment: at least and at most what that one brings
        BlockQubo(q, half, 0.5, costs=np.stack([costs[0], other]), budget=[costs[0][one].sum(), other[one].sum()]),
        BlockQubo(q, None, costs=costs[0], budget=costs[0].sum() / 2),
        BlockQubo(q, None, costs=costs / 7, budget=costs.sum(axis=1) / 21),
    ]
    if groups:
        labels = np.arange(n) % (n // 2)
        least = np.array([costs[0][labels == g].max() for g in range(n // 2)]).sum()
        problems.append(BlockQubo(q, [1] * (n // 2), 0.0, labels, costs=costs[0], budget=np.floor(0.85 * least)))
    return problems


def _opposites(n: int) -> list[BlockQubo]:
    """Problems without couplings, each with the optimum of the one before it reversed."""
    if n == 1:
        return [BlockQubo([[-1.0 if count else 1.0]], count) for count in (0, 1, 0, 1)]
    gains = np.where(_rng().permutation(n) < n // 2, -1.0, 1.0)
    return [BlockQubo(np.diag(sign * gains), int((sign * gains < 0).sum())) for sign in (1.0, -1.0, 1.0, -1.0)]


def _start(problem: BlockQubo) -> Bool[np.ndarray, " n"]:
    """A random assignment that meets the counts."""
    x, rng = np.zeros(problem.num_variables, dtype=bool), _rng(9)
    for group, count in enumerate(problem.num_pruned):
        x[rng.permutation(np.flatnonzero(problem.labels == group))[:count]] = True
    return x


def _batch(rows: int, n: int, counts: list[int], labels: NDArray[np.int64], shared: bool) -> BlockBatch:
    rng = _rng(rows)
    inputs = rng.normal(size=(n + 3, n) if shared else (rows, n + 3, n))
    return BlockBatch(
        hessian=torch.tensor(np.swapaxes(inputs, -1, -2) @ inputs / n),
        values=torch.tensor(rng.normal(size=(rows, n))),
        linear=torch.tensor(rng.normal(size=(rows, n))),
        offset=torch.tensor(rng.normal(size=rows)),
        labels=torch.tensor(labels),
        num_pruned=torch.tensor([counts] * rows),
    )


def _arrays(given: SolveRequest) -> list[NDArray[Any]]:
    form = given.problem.q
    own = [form.diagonal, form.factor] if isinstance(form, FactorForm) else [form]
    start = [] if given.warm_start is None else [given.warm_start]
    return [*own, given.problem.labels, given.problem.diagonal, *start]


def _tensors(request: BatchRequest) -> list[torch.Tensor]:
    parts = (getattr(request.problems, field.name) for field in dataclasses.fields(request.problems))
    return [request.warm_start, *parts]


def _scale(problem: BlockQubo) -> float:
    return abs(problem.offset) + float(np.abs(problem.dense()).sum())


def _list(values: NDArray[Any]) -> str:
    shown = ", ".join(f"{value:.6g}" for value in values[:4])
    return f"[{shown}{', ...' if len(values) > 4 else ''}]"
