"""Branch and bound on the shifted convex relaxation: proven optima, or a certified gap when time is over."""

from __future__ import annotations

from dataclasses import dataclass
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
    single_answer,
)
from qubo_prune_solvers._branching import Tree
from qubo_prune_solvers._convex import convex_diagonal
from qubo_prune_solvers._search import rows_in_threads
from qubo_prune_solvers.tabu import Tabu

_MAX_VARIABLES = 512
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

    Blocks of 64 take milliseconds, of 128 a second or so; above, give a time limit, at which the best
    assignment and the bound proven by then are the answer.

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
        return self._prove(problem, _own_diagonal(problem), request.warm_start, Deadline(request.time_limit))

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        _check_size(request.problems.num_variables)
        shared = _shared_diagonal(request) if request.problems.shared else None

        def run(row: int, warm: NDArray[np.bool_], clock: Deadline) -> NDArray[np.bool_]:
            problem = request.problems.problem(row)
            needed = _own_diagonal(problem) if shared is None else shared[row]
            return self._prove(problem, needed, warm, clock).assignment

        return rows_in_threads(run, request, self.threads)

    def _prove(
        self, problem: BlockQubo, needed: NDArray[np.float64], warm_start: NDArray[np.bool_] | None, clock: Deadline
    ) -> SolveResult:
        """Branch and bound with ``needed``, the diagonal that makes the couplings semidefinite."""
        begin = Tabu(starts=2, threads=1).solve(SolveRequest(problem, warm_start, time_limit=clock.remaining))
        scale = float(np.abs(problem.dense()).max(initial=0.0)) or 1.0
        quadratic, shift = problem.dense() / scale, (problem.diagonal - needed) / scale
        upper = (begin.energy - problem.offset) / scale
        tree = Tree(
            np.ascontiguousarray(quadratic - np.diag(shift)),
            shift,
            np.array(problem.labels),
            np.array(problem.num_pruned, dtype=np.int64),
            begin.assignment,
            upper,
            self.tolerance * abs(upper),
        )
        while not tree.finished and not clock.expired:
            tree.grow(_CHUNK)
        status = Status.OPTIMAL if tree.finished else Status.TIME_LIMIT
        # what was found cannot be below what was proven, but for the rounding of the sums
        answer = single_answer(problem, tree.best, status, info={"nodes": tree.nodes})
        rounding = _ROUNDING * float(np.abs(problem.dense()).sum())
        bound = min(scale * tree.lower + problem.offset - rounding, answer.energy)
        return single_answer(
            problem, tree.best, status, info=answer.info, lower_bound=bound if np.isfinite(bound) else None
        )


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


def _check_size(n: int) -> None:
    if n > _MAX_VARIABLES:
        raise InputError(
            f"'exact' takes at most {_MAX_VARIABLES} variables and the problem has {n}; use a smaller block or "
            "another solver such as 'tabu'."
        )
