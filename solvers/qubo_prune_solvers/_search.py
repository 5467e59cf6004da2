"""What the compiled searches share: several starts, threads, rows of a batch, the clock."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.solver.interface import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    derive_seed,
    ranked_answers,
    to_numpy_bool,
)
from qubo_prune.solver.swaps.budgets import BudgetState
from qubo_prune.solver.swaps.kernels import (
    MATRIX_UP_TO,
    Form,
    below,
    best_swap,
    coupling,
    energy,
    exchange,
    flip,
    flip_costs,
    form_of,
    forms_of,
    in_threads,
    rounding,
    settle_form,
)
from qubo_prune_solvers._budgets import search_within
from qubo_prune_solvers._starts import starts_of


class State:
    """One search: the assignment with its flip costs, the best one seen, and a random stream."""

    def __init__(self, form: Form, start: NDArray[np.bool_], seed: int) -> None:
        self.form = form
        self.x = start.copy()
        self.costs = flip_costs(*form.couplings, form.own, self.x)
        self.best = self.x.copy()
        # energy now and of the best, and how many steps ago the best was found
        self.energies = np.full(2, energy(form.own, self.costs, self.x))
        self.clock = np.zeros(2, dtype=np.int64)
        self.free = np.zeros(form.num_variables, dtype=np.int64)
        self.random = np.array([seed], dtype=np.uint64)
        self.threshold = rounding(form)

    def finish(self) -> NDArray[np.bool_]:
        """The best assignment, brought to an optimum over all single swaps."""
        settle_form(self.form, self.best)
        return self.best


class SwapSearch(Solver):
    """Searches by swaps, from several starts: what `tabu`, `local` and `anneal` share.

    Subclasses have the settings ``starts`` and ``threads``, and write :meth:`search`.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        batched=True, factor_form=True, anytime=True, parallel=True, swap_optimal=True
    )

    starts: int
    threads: int | None

    @abc.abstractmethod
    def search(self, state: State, clock: Deadline) -> None:
        """Improve the state's best assignment until the search ends or time is over."""

    def search_budgets(self, state: BudgetState, clock: Deadline) -> None:
        """The same under linear budgets; called only if the capability ``budgets`` is declared."""
        raise NotImplementedError(f"{type(self).__name__} declares 'budgets' but has no search_budgets")

    def solve(self, request: SolveRequest, /) -> SolveResult:
        """Search from each start, and answer with the best of each, ranked."""
        if request.problem.num_budgets:
            return search_within(request, self.search_budgets, self.starts, self.threads)
        clock, form = Deadline(request.time_limit), form_of(request.problem, MATRIX_UP_TO)
        points = starts_of(form, request.warm_start, self.starts, derive_seed(request.seed, self.starts))
        if not movable(form):
            return ranked_answers(request.problem, points[0], Status.LOCAL_OPTIMUM)

        def run(number: int) -> NDArray[np.bool_]:
            return self._from_start(form, points[number], derive_seed(request.seed, number), clock, number)

        found = in_threads(run, list(range(len(points))), self.threads, clock)
        status = Status.TIME_LIMIT if clock.expired else Status.LOCAL_OPTIMUM
        return ranked_answers(request.problem, np.stack(found), status, info={"starts": len(points)})

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        """The same for every row; rows run in parallel, the starts of a row in turn."""
        forms = list(forms_of(request.problems))

        def run(row: int, warm: NDArray[np.bool_], clock: Deadline) -> NDArray[np.bool_]:
            form = forms[row]
            if not movable(form):
                return warm
            seed = derive_seed(request.seed, row)
            points = starts_of(form, warm, self.starts, derive_seed(seed, self.starts))
            found = [
                self._from_start(form, x, derive_seed(seed, number), clock, number) for number, x in enumerate(points)
            ]
            return found[int(np.argmin([energy_of(form, x) for x in found]))]

        return rows_in_threads(run, request, self.threads)

    def _from_start(
        self, form: Form, start: NDArray[np.bool_], seed: int, clock: Deadline, number: int
    ) -> NDArray[np.bool_]:
        """One search; starts after the first are left as they are once time is over."""
        if clock.expired and number:
            return start
        state = State(form, start, seed)
        self.search(state, clock)
        # of a search that was interrupted nobody waits for the answer
        return state.best if clock.cancelled else state.finish()


def rows_in_threads(
    work: Callable[[int, NDArray[np.bool_], Deadline], NDArray[np.bool_]],
    request: BatchRequest,
    threads: int | None,
) -> BatchResult:
    """``work(row, warm start, its clock)`` for every row; those that time leaves out keep their start."""
    clock, warm = Deadline(request.time_limit), to_numpy_bool(request.warm_start).copy()
    cut: set[int] = set()

    def run(row: int) -> NDArray[np.bool_] | None:
        if clock.expired:
            return None
        own = Deadline(request.row_time_limit, clock)
        answer = work(row, warm[row], own)
        if own.expired:
            cut.add(row)
        return answer

    answers = in_threads(run, list(range(len(warm))), threads, clock)
    late = {row: (Status.TIME_LIMIT, "") for row, x in enumerate(answers) if x is None}
    for row, x in enumerate(answers):
        warm[row] = warm[row] if x is None else x
    return BatchResult(torch.as_tensor(warm).to(request.warm_start.device), late, cut=frozenset(cut))


def movable(form: Form) -> bool:
    """True if some group has weights of both kinds, so that swaps exist."""
    sizes = np.bincount(form.labels, minlength=len(form.num_pruned))
    return bool(((form.num_pruned > 0) & (form.num_pruned < sizes)).any())


def energy_of(form: Form, x: NDArray[np.bool_]) -> float:
    """``x'Qx`` from scratch."""
    return float(energy(form.own, flip_costs(*form.couplings, form.own, x), x))


@njit(cache=True, nogil=True)
def keep_best(x: Any, energies: Any, best: Any, threshold: float) -> Any:
    """Remember x if its energy is below the best one's; whether it was."""
    if energies[0] < energies[1] - threshold:
        energies[1] = energies[0]
        best[:] = x
        return True
    return False


@njit(cache=True, nogil=True)
def return_to_best(matrix: Any, values: Any, factor: Any, x: Any, costs: Any, best: Any, energies: Any) -> None:
    """Make x the best assignment again."""
    for i in range(len(x)):
        if x[i] != best[i]:
            flip(matrix, values, factor, i, x, costs)
    energies[0] = energies[1]


@njit(cache=True, nogil=True)
def swap_at_random(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    x: Any,
    costs: Any,
    energies: Any,
    free: Any,
    now: int,
    tenure: int,
    random: Any,
    kept: Any,
    pruned: Any,
) -> None:
    """Swap a random pair among the candidates of one group, and keep it from moving for ``tenure`` steps."""
    width = kept.shape[1]
    kept[:, :] = -1
    pruned[:, :] = -1
    best_swap(matrix, values, factor, labels, x, costs, free, now, width, kept, pruned)
    g = below(random, kept.shape[0])
    u, p = kept[g, below(random, width)], pruned[g, below(random, width)]
    if u < 0 or p < 0:
        return
    energies[0] += costs[u] - costs[p] - coupling(matrix, values, factor, u, p)
    exchange(matrix, values, factor, u, p, x, costs)
    free[u] = now + tenure + 1
    free[p] = now + tenure + 1
