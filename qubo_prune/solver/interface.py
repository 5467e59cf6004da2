"""What a solver back-end is: one class, one method, data that says what it can do."""

from __future__ import annotations

import abc
import enum
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from qubo_prune.clock import Deadline
from qubo_prune.problem.qubo import BlockBatch, BlockQubo, binary
from qubo_prune.seeds import derive_seed as derive_seed
from qubo_prune.tables import Shown, Table, facts_table

if TYPE_CHECKING:
    import dimod


class Status(enum.Enum):
    """How a solve ended. The values are human-readable sentences."""

    OPTIMAL = "The assignment is a proven optimum."
    LOCAL_OPTIMUM = "No swap of the solver's neighbourhood improves the assignment."
    FEASIBLE = "The assignment is feasible; nothing is known of its quality."
    TIME_LIMIT = "The time limit was reached; the assignment is the best found by then."
    NOT_IMPROVED = "The solver's answer was worse than the warm start, which was kept."
    INFEASIBLE = "The solver's answer was not a feasible assignment; the warm start was kept."
    FAILED = "The solver raised an error; the warm start was kept."
    OVERRAN = "The solver ignored its time limit and was ended; the warm start was kept."

    @property
    def kept_warm_start(self) -> bool:
        """True if the solver's own answer was discarded."""
        return self in (Status.NOT_IMPROVED, Status.INFEASIBLE, Status.FAILED, Status.OVERRAN)

    def told(self, detail: str) -> str:
        """The sentence, with what else is known in parentheses."""
        return f"{self.value.removesuffix('.')} ({detail.removesuffix('.')})." if detail else str(self.value)


@dataclass(frozen=True)
class Capabilities:
    """What a solver declares about itself, as data: what dispatch goes by, what the contract checks, what lists show.

    Attributes:
        exact: a run without a time limit proves the optimum; nobody else's "optimal" is believed.
        cardinality: counts are met natively. If not, the solver is given the free problem with
            penalties (see :mod:`~qubo_prune.problem.penalty`), and its answers are repaired.
        groups: several counts at once are understood (of no meaning without ``cardinality``).
        budgets: linear budgets are met natively, beside counts or without any (of no meaning without
            ``cardinality``). If not, the solver is given the counts with the budgets' multipliers in its linear terms,
            or penalties with slack, and its answers are repaired.
        batched: implements ``solve_batch``.
        stochastic: the answer depends on the seed; checked by the contract.
        factor_form: accepts :class:`~qubo_prune.problem.qubo.FactorForm`; others are given n x n.
        anytime: stops at the time limit by itself. Others are run in a process of their own that is
            ended at the limit.
        parallel: uses several processor cores by itself, so that dispatch starts no more of it.
        swap_optimal: no single swap improves its answers, so that dispatch need not try.
        max_variables: larger problems are refused; ``None`` for no limit.
        devices: where its tensors may live; for people.
        requires: modules it imports and the package to install for each.
    """

    exact: bool = False
    cardinality: bool = True
    groups: bool = True
    budgets: bool = False
    batched: bool = False
    stochastic: bool = True
    factor_form: bool = False
    anytime: bool = False
    parallel: bool = False
    swap_optimal: bool = False
    max_variables: int | None = None
    devices: tuple[str, ...] = ("cpu",)
    requires: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class SolveRequest:
    """One problem to solve.

    Attributes:
        problem: the block QUBO; a free problem with penalties for solvers without ``cardinality``, with slack
            variables behind its own if it has budgets.
        warm_start: a feasible assignment ``(n,)`` to start from, or ``None``.
        seed: every random choice of the solver follows from it.
        time_limit: wall-clock seconds, or ``None``.
        num_answers: how many assignments the caller would like, best first.
        temperatures: hot and cold end that suit an annealing of this problem, in units of energy;
            given to solvers without ``cardinality``.
        unit: what 1 in the energies of ``problem`` is in units of the caller's, which settings such as a penalty
            are in; a power of two, and 1 but for problems of very large or small entries.
    """

    problem: BlockQubo
    warm_start: NDArray[np.bool_] | None = None
    seed: int = 0
    time_limit: float | None = None
    num_answers: int = 1
    temperatures: tuple[float, float] | None = None
    unit: float = 1.0


@dataclass(frozen=True)
class Ledger:
    """Who gets credit for an answer: best energies as the solver gave it and after what dispatch did.

    Attributes:
        start: energy of the warm start, if there was one.
        raw: best energy among the answers that met the counts as given; ``None`` if none did.
        feasible: share of the answers that met the counts as given.
        repaired: best energy once counts were repaired (``raw``'s, if nothing had to be).
        polished: best energy after swaps (``repaired``'s, if none were tried).
    """

    start: float | None
    raw: float | None
    feasible: float
    repaired: float
    polished: float


@dataclass(frozen=True, eq=False)
class SolveResult(Shown):
    """What a solver answers.

    Attributes:
        assignments: ``(k, n)`` bool, best first, True = prune.
        energies: ``(k,)`` energies; dispatch recomputes them in float64.
        status: how the solve ended.
        lower_bound: a proven lower bound of the energy, if there is one.
        seconds: wall-clock time of the solve.
        solver: name of the solver (filled in by dispatch).
        ledger: energies before and after repair and polish (filled in by dispatch).
        info: solver-specific data, and what dispatch had to do instead. A solver on hardware says under
            ``"qpu_seconds"`` how long it was used.
        names: what the caller calls the variables, by position; ``None`` for 0 to n-1 (filled in by
            :func:`qubo_prune.solve`).
    """

    assignments: NDArray[np.bool_]
    energies: NDArray[np.float64]
    status: Status
    lower_bound: float | None = None
    seconds: float = 0.0
    solver: str = ""
    ledger: Ledger | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    names: Sequence[Hashable] | None = None

    @property
    def assignment(self) -> NDArray[np.bool_]:
        """The best assignment, ``(n,)``, True = prune."""
        return np.asarray(self.assignments[0])

    @property
    def energy(self) -> float:
        """The energy of :attr:`assignment`."""
        return float(self.energies[0])

    @property
    def sample(self) -> dict[Hashable, int]:
        """The best assignment as a dict from the variables' names to 0 or 1, 1 = prune."""
        return dict(zip(self._called(), self.assignment.astype(int).tolist(), strict=True))

    @property
    def qpu_seconds(self) -> float | None:
        """Seconds for which quantum hardware was used, as the solver was told by it; ``None`` if nothing was told."""
        seconds = self.info.get("qpu_seconds")
        return float(seconds) if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) else None

    def to_sampleset(self) -> dimod.SampleSet:
        """All answers as dimod has them: binary, by the variables' names, with energies, best first.

        Every assignment stands once, so each ``num_occurrences`` is 1; what else is known is in ``info``.
        ``.change_vartype("SPIN")`` makes spins of it, +1 = prune.
        """
        import dimod

        told = {"solver": self.solver, "status": self.status.name, "seconds": self.seconds}
        samples = (self.assignments.astype(np.int8), list(self._called()))
        return dimod.SampleSet.from_samples(
            samples,
            "BINARY",
            self.energies,
            info=told | dict(self.info),
            num_occurrences=[1] * len(self.energies),
            sort_labels=False,
        )

    def _called(self) -> Sequence[Hashable]:
        return range(self.assignments.shape[1]) if self.names is None else self.names

    @property
    def gap(self) -> float | None:
        """``(energy - bound) / |energy|``, if a bound is known and the energy is not 0."""
        bound, energy = self.lower_bound, self.energy
        return None if bound is None or energy == 0 else max(0.0, energy - bound) / abs(energy)

    def __rich__(self) -> Table:
        return result_table(self)

    def __repr__(self) -> str:
        bound = "" if self.lower_bound is None else f", lower bound {self.lower_bound:.6g}"
        return (
            f"SolveResult(energy {self.energy:.6g}{bound}, prunes {int(self.assignment.sum())} of "
            f"{len(self.assignment)}, {self.seconds:.3g} s, {self.solver or 'solver'}: {self.status.value})"
        )


@dataclass(frozen=True, eq=False)
class BatchRequest:
    """Many problems of one layer.

    Attributes:
        problems: one per row.
        warm_start: ``(r, n)``, meets every count.
        seed: every random choice of the solver follows from it.
        time_limit: wall-clock seconds for all of them, or ``None``.
        row_time_limit: wall-clock seconds for each of them, or ``None``.
        flip_costs: ``Q_ii + 2 sum_{j != i} Q_ij x_j`` at the warm start, where the caller knows it;
            a solver that needs it is saved a product with the Hessian.
    """

    problems: BlockBatch
    warm_start: Bool[Tensor, "r n"]
    seed: int = 0
    time_limit: float | None = None
    row_time_limit: float | None = None
    flip_costs: Float[Tensor, "r n"] | None = None


@dataclass(frozen=True, eq=False)
class BatchResult:
    """One assignment ``(r, n)`` per row, and one status for each row that needs one.

    Attributes:
        assignments: True = prune.
        failures: from a row to the status that explains why its warm start was kept, and a detail.
        change: float64 energy change of each row against the warm start (filled in by dispatch).
        solver_change: the part of it that the solver's answer, repaired if need be, brought without
            the polish; 0 where that answer was no improvement (filled in by dispatch).
        notes: what was done otherwise than asked, each with its number of rows (filled in by dispatch).
        cut: rows that were answered, and whose search the clock ended before it was through.
    """

    assignments: Bool[Tensor, "r n"]
    failures: Mapping[int, tuple[Status, str]] = field(default_factory=dict)
    change: Float[Tensor, " r"] = field(default_factory=lambda: torch.empty(0))
    solver_change: Float[Tensor, " r"] = field(default_factory=lambda: torch.empty(0))
    notes: Mapping[str, int] = field(default_factory=dict)
    cut: frozenset[int] = frozenset()


class Solver(abc.ABC):
    """Turns block QUBOs into assignments; knows nothing of layers or models.

    Subclasses are frozen dataclasses whose fields are their settings. Only :meth:`solve` must be
    written; the framework owns penalties, seeds, repair, polish, re-scoring and fallback. To change
    a solver, wrap it.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()

    @abc.abstractmethod
    def solve(self, request: SolveRequest, /) -> SolveResult:
        """Solve one problem."""

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        """Solve one problem per row; called only if the capability ``batched`` is declared."""
        raise NotImplementedError(f"{type(self).__name__} declares 'batched' but has no solve_batch")


def solved(solver: Solver, request: SolveRequest) -> SolveResult:
    """The solver's own result; one that only says that it is feasible was cut by the clock if that has run out."""
    clock = Deadline(request.time_limit)
    result = solver.solve(request)
    if clock.expired and isinstance(result, SolveResult) and result.status is Status.FEASIBLE:
        return replace(result, status=Status.TIME_LIMIT)
    return result


def best_first(
    problem: BlockQubo, points: NDArray[np.bool_], most: int | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The different ones among assignments ``(k, n)``, best first, and their energies."""
    # a set of bytes, since numpy sorts rows of a thousand columns very slowly
    different = np.stack(list({x.tobytes(): x for x in points}.values()))
    energies = np.atleast_1d(problem.energy(different))
    order = np.argsort(energies, kind="stable")[:most]
    return different[order], energies[order]


def ranked_answers(problem: BlockQubo, assignments: ArrayLike, status: Status, **fields: Any) -> SolveResult:
    """A :class:`SolveResult` of assignments ``(k, n)``, energies computed, best first, each once.

    Raises:
        ValueError: there is none, they have another shape, or hold anything but 0 and 1.
    """
    points, energies = best_first(problem, _answered(problem, np.atleast_2d(np.asarray(assignments))))
    return SolveResult(points, energies, status, **fields)


def single_answer(problem: BlockQubo, x: ArrayLike, status: Status, **fields: Any) -> SolveResult:
    """A :class:`SolveResult` with one assignment, its energy computed from the problem.

    Raises:
        ValueError: it has another shape, or holds anything but 0 and 1.
    """
    points = _answered(problem, np.asarray(x)[None])
    return SolveResult(points, np.array([problem.energy(points[0])]), status, **fields)


def _answered(problem: BlockQubo, points: NDArray[Any]) -> NDArray[np.bool_]:
    """Assignments ``(k, n)`` as bool, k at least 1."""
    n = problem.num_variables
    if points.ndim != 2 or points.shape[1] != n:
        raise ValueError(f"it answered with shape {points.shape}; ({n},) or (k, {n}) is needed")
    if not len(points):
        raise ValueError("it answered with no assignment; at least one is needed")
    return binary(points, "it answered with")


def to_numpy_bool(x: Tensor) -> NDArray[np.bool_]:
    """A bool tensor as a numpy array on the host."""
    return np.asarray(x.to(torch.bool).cpu().numpy())


#: Pruned variables that are listed.
_LISTED = 12


def result_facts(result: SolveResult) -> dict[str, str]:
    """Who answered, how it ended, energies from the start to the end, and what the solver told."""
    gap = "" if result.gap is None else f" (gap {100 * result.gap:.3g} %)"
    facts = {
        "solver": result.solver,
        "status": f"{result.status.name}: {result.status.value}",
        "energy": f"{result.energy:.9g}",
        "bound": "none" if result.lower_bound is None else f"{result.lower_bound:.9g}{gap}",
        "pruned": _pruned(result),
    }
    facts |= {} if result.ledger is None else _steps(result.ledger)
    facts["seconds"] = f"{result.seconds:.3g}"
    if result.qpu_seconds is not None:
        facts["on hardware"] = f"{result.qpu_seconds:.3g} s"
    told = {name: value for name, value in result.info.items() if name != "qpu_seconds" or result.qpu_seconds is None}
    if told:
        facts["told"] = "; ".join(f"{name}: {value}" for name, value in told.items())
    return facts


def result_table(result: SolveResult) -> Table:
    """:func:`result_facts`, and how many answers there are."""
    facts = result_facts(result)
    if len(result.energies) > 1:
        facts["answers"] = f"{len(result.energies):,}, energies up to {result.energies[-1]:.9g}"
    return facts_table(facts, "result", "energies are in units of the layer's loss")


def _pruned(result: SolveResult) -> str:
    pruned = [name for name, value in result.sample.items() if value]
    more = ", ..." if len(pruned) > _LISTED else ""
    return f"{len(pruned)} of {len(result.assignment)}: {', '.join(map(str, pruned[:_LISTED]))}{more}"


def _steps(ledger: Ledger) -> dict[str, str]:
    """Energies from the start to the end, whoever brought them."""
    feasible = f"{100 * ledger.feasible:.3g} % of the answers met the counts"
    steps = {} if ledger.start is None else {"  start": f"{ledger.start:.9g}"}
    return steps | {
        "  raw": f"none ({feasible})" if ledger.raw is None else f"{ledger.raw:.9g} ({feasible})",
        "  repaired": f"{ledger.repaired:.9g}",
        "  polished": f"{ledger.polished:.9g}",
    }
