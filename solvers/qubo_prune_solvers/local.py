"""Iterated local search with 2-swap ejection, compiled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numba import njit

from qubo_prune.clock import Deadline
from qubo_prune.settings import setting
from qubo_prune.solver.interface import Capabilities
from qubo_prune.solver.swaps.budgets import BudgetState
from qubo_prune.solver.swaps.kernels import best_swap, coupling, descend, exchange
from qubo_prune_solvers._budgets import disturbed_descents
from qubo_prune_solvers._search import State, SwapSearch, keep_best, return_to_best, swap_at_random


@dataclass(frozen=True)
class Local(SwapSearch):
    """Descend by single swaps and by pairs of them, disturb the best assignment, repeat.

    A single-swap optimum can be bad, since pruned weights cancel each other in pairs. Ejection takes
    one of the ``ejections`` best swaps although it loses, then the best second swap, and stays if the
    two together gain. Every round disturbs the best assignment by ``kick`` random swaps of candidates
    and is undone unless it finds a better one. Ends in an optimum over all single swaps.

    After H. Lourenco, O. Martin, T. Stuetzle, Iterated Local Search (2003).

    Attributes:
        starts: searches from the warm start, greedy forward selection, the rounded relaxation and
            random assignments, in this order.
        rounds: disturbances of each search, per variable.
        candidates: weights of either kind that are paired in a step.
        ejections: losing swaps tried per ejection.
        kick: random swaps of a disturbance.
        threads: for the starts of one problem or the rows of a batch; one per core if ``None``.
    """

    capabilities: ClassVar[Capabilities] = replace(SwapSearch.capabilities, budgets=True)

    starts: int = setting(3, least=1)
    rounds: float = setting(0.5, least=0)
    candidates: int = setting(8, least=1)
    ejections: int = setting(4, least=0)
    kick: int = setting(5, least=0)
    threads: int | None = setting(None, least=1)

    def search_budgets(self, state: BudgetState, clock: Deadline) -> None:
        disturbed_descents(state, clock, round(self.rounds * len(state.best)), self.kick)

    def search(self, state: State, clock: Deadline) -> None:
        form = state.form
        room = np.empty((4, len(form.num_pruned), self.candidates), dtype=np.int64)
        for number in range(1 + round(self.rounds * form.num_variables)):
            if clock.expired:
                break
            _round(
                *form.couplings,
                form.labels,
                state.x,
                state.costs,
                state.best,
                state.energies,
                state.free,
                state.random,
                room[0],
                room[1],
                room[2],
                room[3],
                self.kick if number else 0,
                self.ejections,
                state.threshold,
            )


@njit(cache=True, nogil=True)
def _round(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    x: Any,
    costs: Any,
    best: Any,
    energies: Any,
    free: Any,
    random: Any,
    kept: Any,
    pruned: Any,
    first_kept: Any,
    first_pruned: Any,
    kick: int,
    ejections: int,
    threshold: float,
) -> None:
    """Disturb, descend, and return to the best assignment if the descent ended above it."""
    for _ in range(kick):
        swap_at_random(matrix, values, factor, labels, x, costs, energies, free, 0, -1, random, kept, pruned)
    while True:
        energies[0] += descend(matrix, values, factor, labels, x, costs, threshold, kept, pruned)
        gain = _eject(
            matrix, values, factor, labels, x, costs, free, kept, pruned, first_kept, first_pruned, ejections, threshold
        )
        if gain == 0.0:
            break
        energies[0] += gain
    if not keep_best(x, energies, best, threshold):
        return_to_best(matrix, values, factor, x, costs, best, energies)


@njit(cache=True, nogil=True)
def _eject(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    x: Any,
    costs: Any,
    free: Any,
    kept: Any,
    pruned: Any,
    first_kept: Any,
    first_pruned: Any,
    ejections: int,
    threshold: float,
) -> Any:
    """The first gaining pair of swaps that begins with one of the best losing ones; the energy change.

    ``kept`` and ``pruned`` are room for the second swap's candidates, the others for the first one's.
    Returns 0 if none gains.
    """
    groups, width = kept.shape
    first_kept[:, :] = -1
    first_pruned[:, :] = -1
    best_swap(matrix, values, factor, labels, x, costs, free, 0, width, first_kept, first_pruned)
    reached = -np.inf
    for _ in range(ejections):
        # the next best first swap after those tried
        least, u, p = np.inf, -1, -1
        for g in range(groups):
            for a in range(width):
                for b in range(width):
                    i, j = first_kept[g, a], first_pruned[g, b]
                    if i >= 0 and j >= 0:
                        change = costs[i] - costs[j] - coupling(matrix, values, factor, i, j)
                        if reached < change < least:
                            least, u, p = change, i, j
        if u < 0:
            return 0.0
        reached = least
        exchange(matrix, values, factor, u, p, x, costs)
        # the second swap must not undo the first
        free[u], free[p] = 1, 1
        change, v, q = best_swap(matrix, values, factor, labels, x, costs, free, 0, width, kept, pruned)
        free[u], free[p] = 0, 0
        if least + change < -threshold:
            exchange(matrix, values, factor, v, q, x, costs)
            return least + change
        exchange(matrix, values, factor, p, u, x, costs)
    return 0.0
