"""Hands problems to solvers as their capabilities ask, and verifies every answer.

What a solver cannot do itself is done around it: counts become penalties for one that knows none,
factor form becomes a matrix, answers are repaired, polished by swaps and re-scored in float64, and a
solver that does not watch the clock runs in a process that is ended at the limit.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from qubo_prune.arguments import as_limit
from qubo_prune.clock import Deadline, shortest
from qubo_prune.devices import out_of_memory
from qubo_prune.errors import InputError, SolverError, as_sentence
from qubo_prune.precision import pinned
from qubo_prune.problem.named import Unsaid, by_position
from qubo_prune.problem.penalty import (
    budget_multipliers,
    least_strength,
    multipliers,
    num_slack,
    penalised,
    relaxed,
    temperature_range,
)
from qubo_prune.problem.qubo import BlockQubo, FactorForm, binary
from qubo_prune.problem.reduction import WIDE, Reduction, careful_swaps, reduced, wide
from qubo_prune.seeds import checked_seed
from qubo_prune.solver.answer_log import AnswerLog, Answers
from qubo_prune.solver.clusters import Cluster, connect, split_name
from qubo_prune.solver.interface import (
    BatchRequest,
    BatchResult,
    Ledger,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    best_first,
    derive_seed,
    single_answer,
    solved,
    to_numpy_bool,
)
from qubo_prune.solver.registry import make_solver
from qubo_prune.solver.swaps.feasible import made_feasible
from qubo_prune.solver.swaps.greedy import Greedy
from qubo_prune.solver.workers import Crash, NotBegun, Overrun, Workers

if TYPE_CHECKING:
    import dimod

#: ``lambda`` in multiples of ``|mu|`` where no penalty is given; see :mod:`qubo_prune.problem.penalty`.
PENALTY_FACTOR = 0.25
#: By how much the energy of a proven optimum and its lower bound may differ, in parts of the terms of the energy,
#: ``|offset| + sum over pruned i, j of |Q_ij|``.
PROVEN_SHARE = 1e-6
#: The swap search that polishes answers.
_POLISH = Greedy()
#: What a result's ``info`` says of how it came about, which reports repeat.
_TOLD = ("isolation", "disbelieved", "workers")
#: What it says of the use of hardware, which stays true of an answer that is not taken.
_OF_HARDWARE = ("qpu_seconds", "timing")


@dataclass(frozen=True)
class Handling:
    """What the framework does around a solver.

    Attributes:
        polish: try swaps on answers that are not swap optima already.
        penalty: ``lambda`` for solvers without counts, in units of energy; estimated if ``None``.
        workers: processes for solvers that use one core and know no batches; 0 for this process.
        journal: keeps the answers to batches, and knows those of a run that goes on.
        cluster: where such solvers run instead; ``workers`` is then how many solves it takes at a time.
    """

    polish: bool = True
    penalty: float | None = None
    workers: int = 0
    journal: AnswerLog | None = field(default=None, repr=False, compare=False)
    cluster: Cluster | None = None


@pinned()
def solve(
    problem: BlockQubo | dimod.BinaryQuadraticModel | Mapping[tuple[Hashable, Hashable], float],
    solver: str | Solver = "greedy",
    seed: int = 0,
    time_limit: float | str | None = None,
    warm_start: ArrayLike | Mapping[Hashable, int] | None = None,
    *,
    num_pruned: int | Sequence[int] | Unsaid | None = Unsaid.COUNT,
    labels: ArrayLike | Mapping[Hashable, int] | None = None,
    num_answers: int = 1,
    polish: bool = True,
    penalty: float | None = None,
    **settings: Any,
) -> SolveResult:
    """Solve one block QUBO and verify the answer.

    Args:
        problem: the block QUBO; or a dimod binary quadratic model, or a dict ``{(i, j): value}``, for which
            ``num_pruned`` has to be given. Of those, ``result.sample`` and ``result.to_sampleset()`` are by name.
        solver: a registered name, ``package.module:Class``, ``dimod:package.module:Sampler`` or
            another adapter, or a :class:`Solver`.
        seed: every random choice follows from it.
        time_limit: wall-clock seconds, also as text such as ``"5s"``, or ``None``. A solver that does not watch it is
            ended then.
        warm_start: a feasible assignment ``(n,)``, or a dict from names; the result is never worse than it.
        num_pruned: the counts of a model or dict, as in :meth:`BlockQubo.from_bqm`: ``None`` for any number.
        labels: the groups of its variables, likewise.
        num_answers: how many assignments are wanted at most, best first.
        polish: improve answers that are no swap optima by best swaps; ``ledger`` keeps the energies
            before and after apart.
        penalty: ``lambda`` for solvers that know no counts, in units of energy; estimated from the
            problem if left out.
        **settings: fields of the solver's class.

    Returns:
        The verified result: counts exact, energies recomputed in float64, best first.

    Raises:
        InputError: unknown solver, infeasible warm start, more variables than the solver takes, or a model of which
            nothing is said how many variables are to be 1.
        SolverError: the solver failed and there is no warm start to fall back on.

    >>> from qubo_prune import BlockQubo, solve
    >>> solve(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1), solver="exact").energy
    1.0
    """
    named = _block_qubo(problem, num_pruned, labels)
    problem = named.without_names()
    chosen = make_solver(solver, **settings)
    name = solver if isinstance(solver, str) else type(chosen).__name__
    check_size(chosen, name, problem.num_variables)
    if isinstance(warm_start, Mapping):
        warm_start = by_position(warm_start, named.names, "warm_start")
    start = None if warm_start is None else _checked_start(problem, warm_start)
    limit = as_limit("time_limit", time_limit)
    seed = checked_seed(seed)
    if not num_answers >= 1:
        raise InputError(f"num_answers is {num_answers}; pass a whole number from 1 on.")
    began = time.perf_counter()
    handling = Handling(polish, penalty)
    call = _Call(chosen, name, handling)
    # what the optimum decides, the rest of a proven list need not share
    listed = chosen.capabilities.exact and num_answers > 1
    asked = _Asked.of(SolveRequest(problem, start, seed, limit, num_answers), decide=not listed)
    result = call.finish(asked, call.start(asked))
    names = None if problem is named else named.names
    return dataclasses.replace(result, solver=name, seconds=time.perf_counter() - began, names=names)


def _block_qubo(
    problem: Any,
    num_pruned: int | Sequence[int] | Unsaid | None,
    labels: ArrayLike | Mapping[Hashable, int] | None,
) -> BlockQubo:
    """The problem, made of a model or a dict if it is one."""
    if isinstance(problem, BlockQubo):
        if labels is not None or not isinstance(num_pruned, Unsaid):
            raise InputError("A BlockQubo has its own counts; leave out num_pruned and labels, or give them to it.")
        return problem
    if isinstance(problem, Mapping):
        return BlockQubo.from_qubo(problem, num_pruned, labels)
    if not hasattr(problem, "vartype"):
        raise InputError(
            f"The problem is of type {type(problem).__name__}; give a BlockQubo, a dimod.BinaryQuadraticModel, or a "
            "dict {(i, j): value}."
        )
    return BlockQubo.from_bqm(problem, num_pruned, labels)


def workers_for(solver: Solver, workers: int | None) -> int:
    """How many processes a run gives to a solver: one per core unless told, none for batched ones."""
    if solver.capabilities.batched:
        return 0
    if solver.capabilities.parallel:
        return min(1, 1 if workers is None else workers)
    return (os.cpu_count() or 1) if workers is None else workers


def parse_workers(given: int | str | None) -> int | str | None:
    """A number of processes, the name of a cluster, or ``None`` for as many processes as there are cores.

    Args:
        given: what a caller or the command line said: a number, ``local``, or a cluster's name.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(given, str) and re.fullmatch(r"-?\d+", given):
        given = int(given)
    if given is None or given == "local":
        return None
    if (isinstance(given, int) and given < 0) or (isinstance(given, str) and split_name(given) is None):
        raise InputError(
            f"workers is {given!r}; pass a number of processes, 0 to solve in this one, local for one per core, or a "
            "cluster: dask, dask:ADDRESS, ray or ray:ADDRESS."
        )
    return given


def handling_of(solver: Solver, name: str, workers: int | str | None, polish: bool) -> Handling:
    """The handling that a run asks for, connected to its cluster if it names one.

    Raises:
        InputError: the cluster cannot be used, or there is nothing that it could do.
    """
    asked = parse_workers(workers)
    if not isinstance(asked, str):
        return Handling(polish, workers=workers_for(solver, asked))
    if solver.capabilities.batched:
        raise InputError(
            f"workers is {asked!r}, and the solver {name!r} decides many blocks at once in this process, which leaves "
            "nothing to a cluster; leave workers out, or take a solver of single blocks such as 'neal'."
        )
    cluster = connect(asked)
    return Handling(polish, workers=cluster.count, cluster=cluster)


def check_size(solver: Solver, name: str, num_variables: int) -> None:
    """Raise :class:`InputError` if the solver does not take blocks of that size."""
    limit = solver.capabilities.max_variables
    if limit is not None and num_variables > limit:
        raise InputError(
            f"The solver {name!r} takes at most {limit} variables and the block has {num_variables}; "
            "use a smaller block or another solver such as 'greedy'."
        )


def check_groups(solver: Solver, name: str, num_groups: int, num_variables: int, num_budgets: int = 0) -> None:
    """Raise :class:`InputError` if the solver does not take so many counts."""
    can = solver.capabilities
    if can.cardinality and not num_groups and num_variables and not (can.budgets and num_budgets):
        raise InputError(
            f"The problem has no counts, which {name!r} needs; give num_pruned, or take "
            + ("a solver with budgets such as 'local'." if num_budgets else "a solver without counts such as 'neal'.")
        )
    if can.cardinality and not can.groups and num_groups > 1:
        raise InputError(
            f"The solver {name!r} takes one count and the block has {num_groups}; "
            "use pattern 'row', or another solver such as 'greedy'."
        )


def _checked_start(problem: BlockQubo, warm_start: ArrayLike) -> NDArray[np.bool_]:
    point = np.asarray(warm_start)
    if not problem.is_feasible(point):
        asked = [f"exactly {list(problem.num_pruned)} ones in the groups"] if problem.num_groups else []
        asked += ["every budget met"] if problem.num_budgets else []
        told = f" with {' and '.join(asked)}" if asked else ""
        raise InputError(f"warm_start is not feasible: pass {problem.num_variables} values 0 or 1{told}.")
    return point.astype(bool)


def prepared(
    problem: BlockQubo, solver: Solver, start: NDArray[np.bool_] | None, penalty: float | None, seed: int = 0
) -> tuple[BlockQubo, tuple[float, float] | None]:
    """The problem as the solver's capabilities ask for it, and the temperatures that suit it.

    Counts stay counts for solvers that know them. For others they become penalties around the
    multiplier at a swap optimum, ``lambda = PENALTY_FACTOR |mu|`` unless ``penalty`` is given. Budgets
    stay budgets for solvers that know them; for others they become penalties likewise, or, beside counts that stay,
    linear terms by their multipliers.
    """
    can = solver.capabilities
    form = problem
    if isinstance(problem.q, FactorForm) and not can.factor_form:
        form = problem.replaced(problem.dense(), problem.offset)
    if problem.free or takes_as_given(solver, problem):
        return form, None
    if can.cardinality:
        return relaxed(form, budget_multipliers(problem, _swap_optimum(problem, start))), None
    strength, mu, optimum = penalties(problem, start, penalty)
    return penalised(form, strength, mu), temperature_range(problem, optimum, seed)


def takes_as_given(solver: Solver, problem: BlockQubo) -> bool:
    """True if the solver is given the problem's counts and budgets as they are, and has to meet them."""
    can = solver.capabilities
    return can.cardinality and (can.budgets or not problem.num_budgets)


def penalties(
    problem: BlockQubo, start: NDArray[np.bool_] | None, penalty: float | None
) -> tuple[float | NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """``lambda`` and ``mu`` for counts and budgets, and the swap optimum next to ``start`` that they were read from.

    ``lambda = PENALTY_FACTOR |mu|`` for each group unless ``penalty`` is given.
    """
    optimum = _swap_optimum(problem, start)
    mu = multipliers(problem, optimum)
    strength = np.abs(mu) * PENALTY_FACTOR + least_strength(problem, mu, optimum) if penalty is None else penalty
    return strength, mu, optimum


def _swap_optimum(problem: BlockQubo, start: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    return np.asarray(_POLISH.solve(SolveRequest(problem, start)).assignment)


@dataclass(frozen=True, eq=False)
class _Asked:
    """A request as it came, and as the solver is given it: reduced, if its entries differ too widely."""

    whole: SolveRequest
    inner: SolveRequest
    reduction: Reduction | None = None

    @classmethod
    def of(cls, request: SolveRequest, decide: bool = True) -> _Asked:
        reduction = reduced(request.problem, decide)
        if reduction is None:
            return cls(request, request)
        start = None if request.warm_start is None else reduction.forth(request.warm_start)
        inner = dataclasses.replace(request, problem=reduction.problem, warm_start=start, unit=reduction.unit)
        return cls(request, inner, reduction)

    def whole_result(self, result: SolveResult, alone: bool) -> SolveResult:
        """The result in terms of the request as it came, energies computed anew."""
        reduction, start = self.reduction, self.whole.warm_start
        if reduction is None:
            return result
        problem, ledger, bound = self.whole.problem, result.ledger, result.lower_bound
        points, energies = best_first(problem, reduction.back(result.assignments))
        if start is not None:
            energy = float(np.float64(problem.energy(start)))
            ledger = None if ledger is None else dataclasses.replace(ledger, start=energy)
            if result.status.kept_warm_start or (alone and energies[0] > energy):
                points, energies = start[None, :], np.array([energy])
                result = result if result.status.kept_warm_start else _not_improved(result)
        if ledger is not None:
            raw = None if ledger.raw is None else reduction.energy(ledger.raw)
            repaired = reduction.energy(ledger.repaired)
            ledger = dataclasses.replace(ledger, raw=raw, repaired=repaired, polished=float(energies[0]))
        if bound is not None:
            bound = min(reduction.energy(bound), float(energies[0]))
        info = dict(result.info)
        if reduction.num_decided:
            info["decided"] = f"{reduction.num_decided} of {problem.num_variables} variables, by far larger entries"
        return dataclasses.replace(
            result, assignments=points, energies=energies, ledger=ledger, lower_bound=bound, info=info
        )


def _not_improved(result: SolveResult) -> SolveResult:
    return dataclasses.replace(result, status=Status.NOT_IMPROVED, info={**dict(result.info), "instead": "warm start"})


class _Call:
    """One solver as the framework calls it: where it runs, what it is given, what is kept of it."""

    def __init__(self, solver: Solver, name: str, handling: Handling) -> None:
        self._solver, self._name, self._handling = solver, name, handling
        self._workers: Workers | None = None
        self._not_isolated: str | None = None

    def start(self, asked: _Asked, clock: Deadline | None = None) -> Callable[[], SolveResult]:
        """Begin one solve; the returned function waits for the solver's own answer.

        ``clock`` is a budget that the solve shares with others.
        """
        whole, request, penalty = asked.whole.problem, asked.inner, self._handling.penalty
        check_groups(self._solver, self._name, whole.num_groups, whole.num_variables, whole.num_budgets)
        if not request.problem.num_variables and whole.num_variables:
            nothing = np.zeros(0, dtype=bool)
            return lambda: single_answer(request.problem, nothing, Status.OPTIMAL, lower_bound=0.0)
        form, temperatures = prepared(
            request.problem,
            self._solver,
            request.warm_start,
            None if penalty is None else penalty / request.unit,
            request.seed,
        )
        if form.num_variables > whole.num_variables:
            check_size(self._solver, f"{self._name}, which gets slack variables for budgets,", form.num_variables)
        start = _given_start(form, request.warm_start)
        given = dataclasses.replace(request, problem=form, warm_start=start, temperatures=temperatures)
        workers = self._isolation(request.time_limit)
        if workers is not None:
            return workers.submit(given, clock)
        return lambda: solved(self._solver, given)

    def _isolation(self, limit: float | None) -> Workers | None:
        """The processes that this solver is to run in, or ``None`` for this one."""
        wanted = self._handling.workers or (0 if self._solver.capabilities.anytime or limit is None else 1)
        if wanted and self._workers is None and self._not_isolated is None:
            try:
                self._workers = Workers(self._solver, wanted, self._handling.cluster)
            except TypeError as error:
                self._not_isolated = f"{error}; it ran in this process, without a limit"
        return self._workers if wanted else None

    @property
    def ahead(self) -> int:
        """How many solves are worth beginning before the first of them is waited for."""
        return 1 if self._workers is None else 2 * self._workers.count

    def stop(self) -> None:
        """End what was begun and not waited for."""
        if self._workers is not None:
            self._workers.cancel()

    def row_limit(self, request: BatchRequest, clock: Deadline, rows_left: int) -> float | None:
        """Seconds for one row: its own limit, and of the batch's what is left.

        A solver that watches the clock may well use all it gets, so it gets its share only; another
        one is merely ended there.
        """
        left = clock.remaining
        if left is not None and self._solver.capabilities.anytime:
            left = left * min(1.0, max(1, self._handling.workers) / rows_left)
        return shortest(request.row_time_limit, left)

    def finish(self, asked: _Asked, wait: Callable[[], SolveResult], alone: bool = True) -> SolveResult:
        """Wait for the answer and verify it; the warm start where it cannot be used.

        One of many rows (not ``alone``) costs no more than its row if it refuses its input, and is
        compared with its warm start by the caller, who may polish it first.
        """
        if not asked.inner.problem.num_variables and asked.whole.problem.num_variables:
            return asked.whole_result(wait(), alone)  # every variable was decided, and no solver asked
        return asked.whole_result(self._finished(asked.inner, wait, alone), alone)

    def _finished(self, request: SolveRequest, wait: Callable[[], SolveResult], alone: bool) -> SolveResult:
        """Wait for the answer to the problem as the solver was given it, and verify it."""
        problem, start = request.problem, request.warm_start
        try:
            result = _sound(wait())
            if problem.num_budgets and not takes_as_given(self._solver, problem):
                result = _of_relaxed(problem, result, self._solver.capabilities.cardinality)
            answers, unusable = _binary_answers(problem, result)
        except Overrun as error:
            return self._fallback(problem, start, Status.OVERRAN, str(error), error)
        except Crash as error:
            return self._fallback(problem, start, Status.FAILED, str(error), error)
        except NotBegun:
            raise
        except (Exception, SystemExit) as error:  # a stranger's solver may raise anything
            if alone and isinstance(error, InputError):
                raise
            _raise_if_machine_failed(error, self._name, f"a problem of {problem.num_variables} variables")
            return self._fallback(problem, start, Status.FAILED, f"{type(error).__name__}: {error}", error)
        if not len(answers):
            return self._fallback(problem, start, Status.INFEASIBLE, unusable, told=result.info)
        if unusable:
            told = {**dict(result.info), "disbelieved": unusable}
            result = dataclasses.replace(result, assignments=answers, info=told)
        return self._verified(request, result, answers, alone)

    def _verified(
        self, request: SolveRequest, result: SolveResult, answers: NDArray[np.bool_], alone: bool
    ) -> SolveResult:
        """Mend and polish the answers, score them in float64, order them, fall back on the start."""
        problem, start, can = request.problem, request.warm_start, self._solver.capabilities
        as_given = takes_as_given(self._solver, problem)
        feasible = np.array([problem.is_feasible(x) for x in answers], dtype=bool)
        if as_given and not feasible.any():
            missed = "counts and budgets" if problem.num_budgets else "counts"
            return self._fallback(problem, start, Status.INFEASIBLE, f"no answer meets the {missed}", told=result.info)
        # what misses a count is repaired only for solvers that were not asked to meet it
        try:
            corrected = answers[feasible] if as_given else _repaired(problem, answers, request.time_limit)
        except SolverError as error:
            return self._fallback(problem, start, Status.INFEASIBLE, str(error), error, told=result.info)
        corrected, energies = best_first(problem, corrected, request.num_answers)
        repaired = float(energies[0])
        raw: float | None = repaired
        if not feasible.all() and not as_given:
            raw = float(np.min(problem.energy(answers[feasible]))) if feasible.any() else None
        status, bound, info = self._believed(problem, result, corrected[0], repaired, as_given=bool(feasible[0]))
        swap_optimal = can.swap_optimal and as_given
        if self._handling.polish and not (swap_optimal or problem.free) and status is not Status.OPTIMAL:
            corrected, energies = best_first(
                problem, np.stack([_swap_optimum(problem, x) for x in corrected]), request.num_answers
            )
        if status is not Status.OPTIMAL and not problem.free and wide(problem):
            corrected, energies, status = self._carefully(problem, corrected, energies, status, info)
        energy_start = None if start is None else float(np.float64(problem.energy(start)))
        ledger = Ledger(energy_start, raw, float(feasible.mean()), repaired, float(energies[0]))
        worse = energy_start is not None and energies[0] > energy_start
        lowest = float(energies[0]) if energy_start is None else min(float(energies[0]), energy_start)
        if bound is not None and (doubt := _too_high(bound, lowest, _terms(problem, corrected[0]))):
            bound, info["disbelieved"] = None, _joined(info, [doubt])
        # the start itself, given back, may differ in its last digits
        if alone and worse and start is not None and not np.array_equal(corrected[0], start):
            detail = f"answer had energy {energies[0]:.6g}"
            kept = self._fallback(problem, start, Status.NOT_IMPROVED, detail, told=info)
            return dataclasses.replace(kept, ledger=ledger, lower_bound=bound)
        return dataclasses.replace(
            result, assignments=corrected, energies=energies, status=status, lower_bound=bound, ledger=ledger, info=info
        )

    def _carefully(
        self,
        problem: BlockQubo,
        points: NDArray[np.bool_],
        energies: NDArray[np.float64],
        status: Status,
        info: dict[str, Any],
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64], Status]:
        """Swaps where rounding may have hidden some; without the polish, a claim that there are none is checked."""
        settled = np.stack([careful_swaps(problem, x) for x in points])
        if self._handling.polish:
            # a proven list holds assignments that a swap leads on to the next
            listed = points if self._solver.capabilities.exact else points[:0]
            return *best_first(problem, np.concatenate([settled, listed]), len(points)), status
        if status is Status.LOCAL_OPTIMUM and not np.array_equal(settled, points):
            info["disbelieved"] = "it called an answer a local optimum that a swap improves"
            status = Status.FEASIBLE
        return points, energies, status

    def _believed(
        self, problem: BlockQubo, result: SolveResult, x: NDArray[np.bool_], energy: float, as_given: bool
    ) -> tuple[Status, float | None, dict[str, Any]]:
        """Status, bound and info of a result, without the claims that cannot be true.

        An optimum is one if its energy and the bound, which is the energy that it claims where it gives none, agree
        to ``PROVEN_SHARE`` of the terms that the energy consists of.

        ``as_given``: its first answer met the counts, so that a proof for the penalised problem holds.
        """
        info, status, doubts = dict(result.info), result.status, []
        # minus infinity proves nothing
        bound = None if result.lower_bound in (None, -np.inf) else float(result.lower_bound)
        if self._not_isolated is not None:
            info["isolation"] = self._not_isolated
        if status is Status.OPTIMAL and not self._solver.capabilities.exact:
            doubts.append("it called its answer optimal without declaring to be exact")
        elif status is Status.OPTIMAL and not as_given:
            doubts.append("it called an answer optimal that misses a count")
        terms = 0.0 if bound is None else _terms(problem, x)
        if bound is not None and not np.isfinite(bound):
            doubts.append(f"its lower bound {bound} is none; pass a number, or None where nothing is proven")
            bound = None
        elif bound is not None and (doubt := _too_high(bound, energy, terms)):
            doubts.append(doubt)
            status, bound = Status.FEASIBLE, None
        gap = 0.0 if bound is None else energy - bound
        if status is Status.OPTIMAL and not doubts and gap > PROVEN_SHARE * terms:
            doubts.append(
                f"its proof leaves a gap of {gap / terms if terms else np.inf:.2g} of the energy's terms, of which "
                f"{PROVEN_SHARE:g} counts as none: the problem's entries differ too widely for it"
            )
        if doubts:
            if status is Status.OPTIMAL:
                status = Status.FEASIBLE
                info.pop("proven", None)
            info["disbelieved"] = _joined(info, doubts)
        return status, bound, info

    def _fallback(
        self,
        problem: BlockQubo,
        start: NDArray[np.bool_] | None,
        status: Status,
        detail: str,
        cause: BaseException | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> SolveResult:
        """The warm start in place of an answer; what hardware was used for the answer was used."""
        if start is None:
            raise SolverError(f"The solver {self._name!r} gave no usable answer ({detail}).") from cause
        used = {name: value for name, value in (told or {}).items() if name in _OF_HARDWARE}
        return single_answer(problem, start, status, info=used | {"instead": "warm start", "detail": detail})


def _too_high(bound: float, energy: float, terms: float) -> str:
    """What is said of a bound that is above an energy, beyond rounding; empty if it is not."""
    return "" if bound <= energy + 1e-9 * terms else f"its lower bound {bound:.9g} is above the energy found"


def _joined(info: Mapping[str, Any], doubts: list[str]) -> str:
    """What is doubted already, and these."""
    return "; ".join([*([info["disbelieved"]] if "disbelieved" in info else []), *doubts])


def _terms(problem: BlockQubo, x: NDArray[np.bool_]) -> float:
    """The sizes of the terms that the energy at x is the sum of; of the smallest there are, if all of them are zero."""
    pruned = np.flatnonzero(x)
    couplings = float(np.abs(problem.couplings_among(pruned)).sum()) / 2
    terms = abs(problem.offset) + float(np.abs(problem.diagonal[pruned]).sum()) + couplings
    if terms:
        return terms
    sizes = np.abs(problem.dense())  # dead inputs cost nothing; whatever has another energy has one of these
    return float(sizes[sizes > 0].min()) if sizes.any() else 0.0


def _raise_if_machine_failed(error: BaseException, name: str, what: str) -> None:
    """End the run for what is no failure of the solver, and what the next block would meet too.

    ``MemoryError`` is one: a single array was too large, which costs the block.

    Raises:
        SolverError: the memory of a device, or all that PyTorch may have, is used up, or a device has failed.
    """
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
    if out_of_memory(error) and not isinstance(error, MemoryError):
        raise SolverError(
            f"Memory was used up while the solver {name!r} solved {what} ({text}); use smaller blocks (block_size), "
            "fewer workers, or a device with more memory."
        ) from error
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        raise SolverError(
            f"The device failed while the solver {name!r} solved {what} ({text}); begin again in a new process."
        ) from error


def _given_start(form: BlockQubo, start: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
    """A copy of the start, which has to survive whatever the solver does to it, with slack at 0 where there is any."""
    if start is None:
        return None
    return np.concatenate([start, np.zeros(form.num_variables - len(start), dtype=bool)])


def _repaired(problem: BlockQubo, answers: NDArray[np.bool_], limit: float | None) -> NDArray[np.bool_]:
    """The answers, mended where they miss a count or a budget; those left out after the first that is too hard to mend.

    Raises:
        SolverError: it is the first of all.
    """
    clock, mended = Deadline(limit), list[NDArray[np.bool_]]()
    # what needs no mending first
    for x in sorted(answers, key=lambda answer: not problem.is_feasible(answer)):
        try:
            mended.append(made_feasible(problem, x, clock))
        except SolverError:
            if not mended:
                raise
            break
    return np.stack(mended)


def _of_relaxed(problem: BlockQubo, result: SolveResult, counts_kept: bool) -> SolveResult:
    """What a solver answered to a problem whose budgets were relaxed, as an answer to the problem itself.

    The slack is cut off. A proof is none for the problem itself; a bound still is one if the budgets were in the linear
    terms alone.
    """
    n, whole = problem.num_variables, problem.num_variables + num_slack(problem)
    points = result.assignments
    if not counts_kept:
        own = [np.asarray(x)[:n] for x in points if np.shape(x) == (whole,)]
        points = np.array(own) if own else points
    status, bound = result.status, result.lower_bound if counts_kept else None
    info = {name: told for name, told in dict(result.info).items() if name != "proven"}
    info |= {"budgets": "as linear terms" if counts_kept else "as penalties with slack"}
    if status is Status.OPTIMAL:
        info["proof"], status = "of the problem with relaxed budgets", Status.FEASIBLE
    return dataclasses.replace(result, assignments=points, status=status, lower_bound=bound, info=info)


def _sound(result: object) -> SolveResult:
    """The result, if its parts are what they are said to be; ``TypeError`` if not."""
    if not isinstance(result, SolveResult):
        raise TypeError(f"it answered with a {type(result).__name__} instead of a SolveResult")
    if not isinstance(result.status, Status):
        raise TypeError(
            f"its status is {result.status!r} instead of a Status, such as qubo_prune.solver.interface.Status.FEASIBLE"
        )
    bound = result.lower_bound
    if bound is not None and (isinstance(bound, bool) or not isinstance(bound, (int, float, np.number))):
        raise TypeError(f"its lower bound is {bound!r} instead of a number or None")
    dict(result.info)
    return result


def _binary_answers(problem: BlockQubo, result: SolveResult) -> tuple[NDArray[np.bool_], str]:
    """The answers that are binary and of the right length, ``(k, n)``, and what the others are."""
    n, usable, unusable = problem.num_variables, [], ""
    for given in result.assignments:
        x = np.asarray(given)
        try:
            if x.shape != (n,):
                raise ValueError(f"it answered with shape {x.shape}; ({n},) is needed")
            usable.append(binary(x, "it answered with"))
        except ValueError as error:
            unusable = unusable or str(error)
    if not usable:
        return np.zeros((0, n), dtype=bool), unusable or "it gave no assignment"
    return np.stack(usable), unusable


@pinned()
def solve_batch(solver: Solver, request: BatchRequest, handling: Handling | None = None) -> BatchResult:
    """Solve one problem per row; rows whose answer is unusable or worse keep their warm start.

    The request's problems and warm start are trusted (the framework emitted them); the answers are
    not. Every row's energy change is recomputed from the problem as emitted, in its own dtype.
    Solvers without batches get one row after another, spread over ``handling.workers`` processes; so
    do those without counts, whose problems need penalties.

    Raises:
        InputError: the problems have several groups and the solver takes one.
    """
    handling, can = handling or Handling(), solver.capabilities
    check_groups(solver, type(solver).__name__, request.problems.num_groups, request.problems.num_variables)
    if not (can.batched and can.cardinality):
        return _row_by_row(solver, request, handling)
    if handling.journal is None:
        answers = _batch_answers(solver, request)
    else:
        answers = _recalled(solver, request, handling.journal)
    return _accepted(solver, request, answers, handling)


def _recalled(solver: Solver, request: BatchRequest, journal: AnswerLog) -> BatchResult:
    """The answers that the journal knows, or else the solver's, which it knows from then on."""
    known = journal.batch(request.warm_start)
    if not known.done.all():
        answers = _batch_answers(solver, request)
        known.failures, known.cut = dict(answers.failures), set(answers.cut)
        known.done[:], known.assignments[:] = True, answers.assignments.cpu()
        journal.written()
    assignments = known.assignments.to(request.warm_start.device)
    return BatchResult(assignments, dict(known.failures), cut=frozenset(known.cut))


def _batch_answers(solver: Solver, request: BatchRequest) -> BatchResult:
    """What the solver answers to all rows at once; where that cannot be used, the warm start and why."""
    start = request.warm_start
    try:
        # the solver gets a copy of the start, which has to survive whatever the solver does to it
        result = solver.solve_batch(dataclasses.replace(request, warm_start=start.clone()))
        answer = result.assignments.to(start.device)
        if answer.shape != start.shape or answer.dtype != torch.bool:
            raise SolverError(
                f"answer has shape {tuple(answer.shape)} and type {answer.dtype}; "
                f"{tuple(start.shape)} and torch.bool are needed"
            )
        failures, cut = _sound_failures(result.failures, len(start)), _sound_rows(result.cut, len(start))
    except (Exception, SystemExit) as error:  # a solver's failure costs this batch, not the run
        _raise_if_machine_failed(
            error, type(solver).__name__, f"{len(start)} problems of {start.shape[1]} variables at once"
        )
        reason = (Status.FAILED, f"{type(error).__name__}: {error}")
        return BatchResult(start, dict.fromkeys(range(len(start)), reason))
    counts_met = (request.problems.counts(answer) == request.problems.num_pruned).all(1)
    failures.update(dict.fromkeys(_positions(~counts_met), (Status.INFEASIBLE, "counts are not met")))
    return BatchResult(torch.where(counts_met[:, None], answer, start), failures, cut=cut)


def _sound_failures(failures: Mapping[int, tuple[Status, str]], rows: int) -> dict[int, tuple[Status, str]]:
    sound = {int(row): (Status(status), str(detail)) for row, (status, detail) in failures.items()}
    _sound_rows(sound, rows)
    return sound


def _sound_rows(reported: Iterable[int], rows: int) -> frozenset[int]:
    sound = frozenset(int(row) for row in reported)
    if not all(0 <= row < rows for row in sound):
        raise ValueError(f"it reported failures in rows {sorted(sound)} of {rows}")
    return sound


def _accepted(solver: Solver, request: BatchRequest, answers: BatchResult, handling: Handling) -> BatchResult:
    """Polish feasible answers, and keep of them what is no worse than the start."""
    problems, start = request.problems, request.warm_start
    answer, failures = answers.assignments, dict(answers.failures)
    change = problems.energy_change(start, answer)
    nothing = torch.zeros_like(change)
    # not (change <= 0) also catches NaN
    solver_change = torch.where(change <= 0, change, nothing)
    if handling.polish and not solver.capabilities.swap_optimal:
        swapped = _POLISH.solve_batch(dataclasses.replace(request, warm_start=answer, flip_costs=None))
        polished = problems.energy_change(start, swapped.assignments)
        better = polished < change
        # where the solver failed there is nothing of its to polish
        better[list(failures)] = False
        answer = torch.where(better[:, None], swapped.assignments, answer)
        change = torch.where(better, polished, change)
    if handling.polish or solver.capabilities.swap_optimal:
        answer, change = _carefully_of_rows(request, answer, change, failures)
    worse = ~(change <= 0)
    failures.update(dict.fromkeys(_positions(worse), (Status.NOT_IMPROVED, "")))
    answer = torch.where(worse[:, None], start, answer)
    change = torch.where(worse, nothing, change)
    return dataclasses.replace(
        answers, assignments=answer, failures=failures, change=change, solver_change=solver_change
    )


def _carefully_of_rows(
    request: BatchRequest, answer: torch.Tensor, change: torch.Tensor, failures: Mapping[int, tuple[Status, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Swaps in rows whose entries differ so much that rounding may have hidden some."""
    problems = request.problems
    sizes = (problems.own + problems.linear).double().abs()
    if not sizes.numel():
        return answer, change
    largest = sizes.amax(1)
    # no median is below the smallest, which is found faster, and few batches have a row that needs more
    if not (largest > WIDE * sizes.masked_fill(sizes == 0, torch.inf).amin(1)).any():
        return answer, change
    # a row of zeros alone has no median and is not wide; nor is one that holds NaN or infinities, which is not sound
    wide_rows = largest > WIDE * sizes.masked_fill(sizes == 0, torch.nan).nanmedian(1).values
    rows = [row for row in _positions(wide_rows & sizes.isfinite().all(1)) if row not in failures]
    if not rows:
        return answer, change
    answer = answer.clone()
    for row in rows:
        settled = careful_swaps(problems.problem(row), to_numpy_bool(answer[row]))
        answer[row] = torch.as_tensor(settled).to(answer.device)
    return answer, problems.energy_change(request.warm_start, answer)


def _row_by_row(solver: Solver, request: BatchRequest, handling: Handling) -> BatchResult:
    """Solve the rows one by one, with a solver of single problems."""
    call = _Call(solver, type(solver).__name__, dataclasses.replace(handling, polish=False))
    start = request.warm_start
    known = Answers.none(start) if handling.journal is None else handling.journal.batch(start)
    late: dict[int, tuple[Status, str]] = {}
    for row, result in _in_flight(call, request, known.open_rows()):
        if result is None:  # another run may have the time for it
            late[row] = (Status.TIME_LIMIT, "")
            continue
        said = [_of_solver(str(result.info[kind])) for kind in _TOLD if kind in result.info]
        if said:
            known.notes[row] = said
        if result.status.kept_warm_start:
            known.failures[row] = (result.status, str(result.info.get("detail", "")))
        else:
            known.assignments[row] = torch.as_tensor(np.array(result.assignment, order="C"))
            if result.status is Status.TIME_LIMIT:
                known.cut.add(row)
        known.done[row] = True
        if handling.journal is not None:
            handling.journal.written()
    answer = known.assignments.to(request.warm_start.device)
    notes = Counter(note for said in known.notes.values() for note in said)
    failures = dict(sorted({**known.failures, **late}.items()))
    answers = BatchResult(answer, failures, notes=dict(notes), cut=frozenset(known.cut))
    return _accepted(solver, request, answers, handling)


def _of_solver(told: str) -> str:
    """What ``info`` tells of a solver, as a sentence that stands alone."""
    return as_sentence(f"The solver{told.removeprefix('it')}" if told.startswith("it ") else told)


def _in_flight(call: _Call, request: BatchRequest, open_rows: list[int]) -> Iterator[tuple[int, SolveResult | None]]:
    """Results of some rows in turn, some begun ahead; ``None`` for those that time left out."""
    clock, count = Deadline(request.time_limit), len(open_rows)
    begun: deque[tuple[int, _Asked, Callable[[], SolveResult]]] = deque()

    def first() -> tuple[int, SolveResult | None]:
        row, asked, wait = begun.popleft()
        try:
            return row, call.finish(asked, wait, alone=False)
        except NotBegun:
            return row, None

    try:
        for number, row in enumerate(open_rows):
            if clock.expired:
                yield from ((late, None) for late in open_rows[number:])
                break
            single = SolveRequest(
                request.problems.problem(row),
                to_numpy_bool(request.warm_start[row]),
                derive_seed(request.seed, row),
                call.row_limit(request, clock, count - number + len(begun)),
            )
            asked = _Asked.of(single)
            begun.append((row, asked, call.start(asked, clock)))
            if len(begun) >= call.ahead:
                yield first()
        while begun:
            yield first()
    finally:
        call.stop()


def _positions(flags: torch.Tensor) -> list[int]:
    return [int(i) for i in flags.nonzero()[:, 0]]
