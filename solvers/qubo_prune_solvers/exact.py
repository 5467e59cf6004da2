"""Branch and bound on the shifted convex relaxation: proven optima, or a certified gap when time is over."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.settings import setting
from qubo_prune.solver.interface import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    ranked_answers,
)
from qubo_prune_solvers._branching import Tree
from qubo_prune_solvers._convex import convex_diagonal
from qubo_prune_solvers._nearby import nearby
from qubo_prune_solvers._search import rows_in_threads
from qubo_prune_solvers.tabu import Tabu

_MAX_VARIABLES = 512
_MAX_ANSWERS = 10_000
# what rounding may add to a bound, in parts of the sum of all entries
_ROUNDING = 2.0**-44
# nodes between two looks at the clock: some milliseconds
_CHUNK = 100


@dataclass(frozen=True)
class Exact(Solver):
    """Depth-first branch and bound, from the answer of a short tabu search.

    With a diagonal shift d for which ``Q - diag(d)`` is positive semidefinite, binary x have
    ``x'Qx = x'(Q - diag(d))x + d'x``, and the minimum of the right side over ``0 <= y <= 1, sum y = m``
    bounds them from below; every node's bound is certified by weak duality, whatever the optimiser
    reached. Branches on the largest ``y_i (1 - y_i) |Q_ii|``. Rows that share a Gram block share its
    shift: ``Q = 1/2 diag(u) H diag(u)`` inherits ``d_i = 1/2 u_i^2 d_i(H)``.

    Asked for k answers, it proves the list: the k assignments of the lowest energies (all there are, if there are
    fewer), best first, and of equal ones first the one that prunes earlier variables. Nodes are cut off at the k-th
    best energy, and those whose relaxation ends in an assignment are searched for further ones. The status
    ``OPTIMAL`` then says that no assignment outside the list is lower than its last one, within the tolerance;
    ``info["proven"]`` is how many of the list, from its first one on, are so placed.

    Blocks of 64 take milliseconds, of 128 a second or so; above, give a time limit, at which the best
    assignments and the bound proven by then are the answer. The bound is that of the optimum.

    Attributes:
        tolerance: relative distance to the incumbent within which a bound counts as reached.
        threads: for the rows of a batch; one per core if ``None``.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        exact=True,
        batched=True,
        anytime=True,
        parallel=True,
        swap_optimal=True,
        stochastic=False,
        max_variables=_MAX_VARIABLES,
    )

    tolerance: float = setting(1e-9, least=0)
    threads: int | None = setting(None, least=1)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        problem = request.problem
        _check_size(problem.num_variables)
        return self._prove(request, _own_diagonal(problem), Deadline(request.time_limit))

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        _check_size(request.problems.num_variables)
        shared = _shared_diagonal(request) if request.problems.shared else None

        def run(row: int, warm: NDArray[np.bool_], clock: Deadline) -> NDArray[np.bool_]:
            problem = request.problems.problem(row)
            needed = _own_diagonal(problem) if shared is None else shared[row]
            return self._prove(SolveRequest(problem, warm), needed, clock).assignment

        return rows_in_threads(run, request, self.threads)

    def _prove(self, request: SolveRequest, needed: NDArray[np.float64], clock: Deadline) -> SolveResult:
        """Branch and bound with ``needed``, the diagonal that makes the couplings semidefinite."""
        problem = request.problem
        begin = Tabu(starts=2, threads=1).solve(SolveRequest(problem, request.warm_start, time_limit=clock.remaining))
        known, wanted = begin.assignments[:1], _existing(problem, request.num_answers)
        if wanted > 1 and not clock.expired:
            known = nearby(problem, begin.assignments, wanted, clock)
        points, energies = np.zeros((wanted, problem.num_variables), dtype=bool), np.full(wanted, np.inf)
        points[: len(known)] = known
        scale = float(np.abs(problem.dense()).max(initial=0.0)) or 1.0
        energies[: len(known)] = (np.atleast_1d(problem.energy(known)) - problem.offset) / scale
        quadratic, shift = problem.dense() / scale, (problem.diagonal - needed) / scale
        tree = Tree(
            np.ascontiguousarray(quadratic - np.diag(shift)),
            shift,
            np.array(problem.labels),
            np.array(problem.num_pruned, dtype=np.int64),
            points,
            energies,
            self.tolerance * float(abs(energies.min())),
        )
        while not tree.finished and not clock.expired:
            tree.grow(_CHUNK)
        status = Status.OPTIMAL if tree.finished else Status.TIME_LIMIT
        info = {"nodes": tree.nodes}
        if request.num_answers > 1:
            info["proven"] = tree.num_proven
        # of equal energies the one that prunes earlier variables comes first
        found = tree.found[np.lexsort(~tree.found.T[::-1])] if problem.num_variables else tree.found
        answer = ranked_answers(problem, found, status, info=info)
        rounding = _ROUNDING * float(np.abs(problem.dense()).sum())
        # what was found cannot be below what was proven, but for the rounding of the sums
        bound = min(scale * tree.lower + problem.offset - rounding, answer.energy)
        return replace(answer, lower_bound=bound if np.isfinite(bound) else None)


def _own_diagonal(problem: BlockQubo) -> NDArray[np.float64]:
    """The diagonal that makes a problem's couplings semidefinite."""
    quadratic = problem.dense()
    # the scale of each weight, as its couplings show it
    return convex_diagonal(quadratic, _inverse(np.linalg.norm(quadratic - np.diag(problem.diagonal), axis=1)))


def _shared_diagonal(request: BatchRequest) -> NDArray[np.float64]:
    """``(r, n)``: the shared Gram block's diagonal, computed once, as each row's Q inherits it."""
    hessian = request.problems.hessian.double().cpu().numpy()
    needed = convex_diagonal(hessian, _inverse(np.diagonal(hessian)))
    values = request.problems.values.double().cpu().numpy()
    return np.asarray(values**2 * needed / 2)


def _inverse(scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """``1 / scales`` in units of the largest one, bounded where a weight has next to no scale."""
    largest = float(scales.max(initial=0.0))
    return np.asarray(1 / np.maximum(scales / largest, 1e-9)) if largest > 0 else np.ones(len(scales))


def _existing(problem: BlockQubo, wanted: int) -> int:
    """So many different assignments as are wanted, or as there are."""
    if wanted > _MAX_ANSWERS:
        raise InputError(f"num_answers is {wanted}; 'exact' lists at most {_MAX_ANSWERS} answers, so ask for fewer.")
    sizes = np.bincount(problem.labels, minlength=problem.num_groups)
    existing = 1
    for size, count in zip(sizes.tolist(), problem.num_pruned, strict=True):
        existing = min(wanted, existing * math.comb(size, count))
    return existing


def _check_size(n: int) -> None:
    if n > _MAX_VARIABLES:
        raise InputError(
            f"'exact' takes at most {_MAX_VARIABLES} variables and the problem has {n}; use a smaller block or "
            "another solver such as 'tabu'."
        )
