"""Exact solving with the CP-SAT solver of OR-Tools."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.problem.budgets import none_meets, whole_numbers
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.settings import setting
from qubo_prune.solver.interface import Capabilities, Solver, SolveRequest, SolveResult, Status, single_answer
from qubo_prune_solvers._bqm import small_seed
from qubo_prune_solvers._interrupts import interruptible

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

_MAX_VARIABLES = 128

# what the integer coefficients of the objective add up to: exact in float64, and far from where 64 bits end
_TOTAL = 2**40

# rounding of the energies themselves, in parts of the sum of all coefficients
_FLOAT_ERROR = 2**-46


@dataclass(frozen=True)
class CpSat(Solver):
    """Prove the optimum over products ``z_ij = x_i x_j``, with an objective of integer coefficients.

    Counts are linear equalities, and so are they times each variable: ``sum_j z_ij = m_g x_i`` over
    the others j of a group g, with ``m_g - 1`` in i's own. Real blocks, half pruned, take 0.1 to 8 s
    for 32 weights (100 of 100 proved) and 2 to 60 s for 48; larger ones end with a bound, if at all.

    CP-SAT minimises the energy with coefficients rounded to integers. By how much the two can differ
    in any assignment that meets the counts is computed from the coefficients (``info["rounding"]``):
    the lower bound is CP-SAT's less that, so that it holds for the energy as it is, and an optimum is
    proven within twice that.

    Attributes:
        workers: threads.

    Source: OR-Tools, CP-SAT; Adams and Sherali, Management Science 32 (1986) 1274-1290.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=True, budgets=True, anytime=True, max_variables=_MAX_VARIABLES, requires=(("ortools", "ortools"),)
    )

    workers: int = setting(1, least=1)

    def __post_init__(self) -> None:
        # what this instance does stands in front of what is said of the class
        object.__setattr__(
            self, "capabilities", dataclasses.replace(type(self).capabilities, parallel=self.workers > 1)
        )

    def solve(self, request: SolveRequest, /) -> SolveResult:
        problem, clock = request.problem, Deadline(request.time_limit)
        n = problem.num_variables
        if n > _MAX_VARIABLES:
            raise InputError(
                f"'cpsat' takes at most {_MAX_VARIABLES} variables and the problem has {n}; use a smaller block or "
                "another solver such as 'greedy'."
            )
        if not n:
            return single_answer(problem, np.zeros(0, dtype=bool), Status.OPTIMAL, lower_bound=problem.offset)
        model = _Model(problem, request.warm_start)
        solver = self._solver(request.seed, clock)
        status = interruptible(lambda: solver.solve(model.model), solver.stop_search)
        name = solver.status_name(status)
        if name not in ("OPTIMAL", "FEASIBLE"):
            return _nothing(problem, request.warm_start, name)
        x = np.array([solver.boolean_value(variable) for variable in model.x])
        return single_answer(
            problem,
            x,
            Status.OPTIMAL if name == "OPTIMAL" else Status.TIME_LIMIT,
            lower_bound=model.lower_bound(solver.best_objective_bound),
            info={
                "rounding": model.rounding,
                "proof": "optimum of the rounded objective" if name == "OPTIMAL" else "none",
                "branches": solver.num_branches,
            },
        )

    def _solver(self, seed: int, clock: Deadline) -> cp_model.CpSolver:
        from ortools.sat.python import cp_model

        solver = cp_model.CpSolver()
        solver.parameters.num_workers = self.workers
        solver.parameters.random_seed = small_seed(seed)
        # it would take Ctrl-C for the end of its time
        solver.parameters.catch_sigint_signal = False
        # measured on real blocks of 32: the full linear relaxation proves what the default cannot in
        # minutes, and a fixed order of branching on x takes a third of the time of the automatic one
        solver.parameters.linearization_level = 2
        solver.parameters.search_branching = cp_model.FIXED_SEARCH
        if clock.remaining is not None:
            solver.parameters.max_time_in_seconds = max(clock.remaining, 1e-3)
        return solver


class _Model:
    """The problem as CP-SAT has it: the model, its variables, and the way back to energies."""

    def __init__(self, problem: BlockQubo, warm_start: NDArray[np.bool_] | None) -> None:
        from ortools.sat.python import cp_model

        self._problem, self._q = problem, problem.dense()
        self.model = cp_model.CpModel()
        self.x = [self.model.new_bool_var(f"x{i}") for i in range(problem.num_variables)]
        self._products: dict[tuple[int, int], Any] = {}
        self._meet_counts()
        self._meet_budgets()
        for i, j in np.argwhere(np.triu(self._q, 1)).tolist():
            self._product(i, j)
        self._scale, self.rounding = self._minimise()
        # the most coupled first; kept before pruned, which leaves the relaxation the least to gain
        order = np.argsort(-np.abs(self._q).sum(axis=0), kind="stable")
        self.model.add_decision_strategy([self.x[i] for i in order], cp_model.CHOOSE_FIRST, cp_model.SELECT_MIN_VALUE)
        if warm_start is not None:
            self._hint(warm_start)

    def lower_bound(self, bound: float) -> float:
        """A lower bound of the energy from one of the rounded objective."""
        return bound / self._scale + self._problem.offset - self.rounding

    def _meet_counts(self) -> None:
        """The counts, and their products with every variable that is coupled to the group."""
        for group, count in enumerate(self._problem.num_pruned):
            members = np.flatnonzero(self._problem.labels == group)
            if not len(members):
                continue
            self.model.add(sum(self.x[i] for i in members) == count)
            for i in np.flatnonzero(self._coupled(members)).tolist():
                others = [self._product(i, j) for j in members.tolist() if j != i]
                self.model.add(sum(others) == (count - (i in members)) * self.x[i])

    def _meet_budgets(self) -> None:
        """The budgets in whole numbers."""
        for costs, least in whole_numbers(self._problem):
            terms = [cost * variable for cost, variable in zip(costs, self.x, strict=True)]
            self.model.add(sum(terms) >= least)

    def _coupled(self, members: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which variables belong to a group that has any coupling to another variable of ``members``."""
        labels = self._problem.labels
        coupled = (self._q - np.diag(np.diag(self._q)))[:, members].any(axis=1)
        return np.isin(labels, labels[coupled])

    def _product(self, i: int, j: int) -> Any:
        """``z_ij = x_i x_j``, made once."""
        pair = (min(i, j), max(i, j))
        if pair not in self._products:
            product = self._products[pair] = self.model.new_bool_var(f"z{pair[0]}_{pair[1]}")
            self.model.add_implication(product, self.x[i])
            self.model.add_implication(product, self.x[j])
            self.model.add_bool_or([product, ~self.x[i], ~self.x[j]])
        return self._products[pair]

    def _minimise(self) -> tuple[float, float]:
        """Set the objective; its scale, and the most by which it can differ from the energy.

        At most ``M = sum_g m_g`` linear terms and ``M (M - 1) / 2`` products count in an assignment,
        so that their largest roundings bound the whole.
        """
        pairs = np.array(list(self._products), dtype=np.int64).reshape(-1, 2)
        linear, quadratic = self._problem.diagonal, 2 * self._q[pairs[:, 0], pairs[:, 1]]
        total = float(np.abs(linear).sum() + np.abs(quadratic).sum())
        scale = _TOTAL / total if total else 1.0
        terms = zip([*self.x, *self._products.values()], np.concatenate([linear, quadratic]), strict=True)
        self.model.minimize(sum(round(float(value) * scale) * variable for variable, value in terms))
        ones = sum(self._problem.num_pruned) if self._problem.num_pruned else len(linear)
        rounding = _largest(linear, scale, ones) + _largest(quadratic, scale, ones * (ones - 1) // 2)
        return scale, rounding + _FLOAT_ERROR * total

    def _hint(self, warm_start: NDArray[np.bool_]) -> None:
        for variable, value in zip(self.x, warm_start, strict=True):
            self.model.add_hint(variable, bool(value))
        for (i, j), product in self._products.items():
            self.model.add_hint(product, bool(warm_start[i] and warm_start[j]))


def _largest(values: NDArray[np.float64], scale: float, count: int) -> float:
    """Sum of the ``count`` largest errors that rounding ``values * scale`` makes, in units of the values."""
    errors = np.abs(values - np.round(values * scale) / scale)
    return float(np.sort(errors)[::-1][:count].sum())


def _nothing(problem: BlockQubo, warm_start: NDArray[np.bool_] | None, name: str) -> SolveResult:
    """What to answer if CP-SAT found no assignment."""
    if name == "INFEASIBLE":
        raise none_meets(problem.num_budgets, bool(problem.num_groups))
    if warm_start is None:
        raise TimeoutError(f"the time limit passed before CP-SAT found an assignment ({name})")
    return single_answer(problem, warm_start, Status.TIME_LIMIT, info={"instead": "warm start", "cp-sat": name})
