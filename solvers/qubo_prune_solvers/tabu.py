"""Swap tabu search with restarts from the best assignment, compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.settings import setting
from qubo_prune.solver.swaps.kernels import below, best_swap, exchange
from qubo_prune_solvers._search import State, SwapSearch, keep_best, return_to_best, swap_at_random

# steps between two looks at the clock, well under a millisecond for a thousand variables
_CHUNK = 1000


@dataclass(frozen=True)
class Tabu(SwapSearch):
    """Take the best swap, good or bad, then leave its two weights alone for a while.

    Every step takes the best swap among the ``candidates`` cheapest kept and dearest pruned weights
    that are not tabu. After ``patience`` steps without a new best assignment the search returns to
    the best one and makes ``kick`` random swaps of candidates. Each start ends in an optimum over all
    single swaps.

    After F. Glover, Tabu Search, ORSA J. Computing 1 (1989), with the restarts of iterated local search.

    Attributes:
        starts: searches from the warm start, greedy forward selection, the rounded relaxation and
            random assignments, in this order.
        steps: swaps of each search, per variable.
        candidates: weights of either kind that are paired in a step.
        tenure: fewest and most steps that a swapped weight is tabu, drawn at random.
        patience: steps without a new best before a restart.
        kick: random swaps of a restart.
        threads: for the starts of one problem or the rows of a batch; one per core if ``None``.
    """

    starts: int = setting(4, least=1)
    steps: int = setting(15, least=0)
    candidates: int = setting(4, least=1)
    tenure: tuple[int, int] = setting((3, 8), least=0)
    patience: int = setting(200, least=0)
    kick: int = setting(20, least=0)
    threads: int | None = setting(None, least=1)

    def __post_init__(self) -> None:
        if self.tenure[0] > self.tenure[1]:
            raise InputError(f"tenure is {list(self.tenure)}; give the fewest steps, then the most, such as [3, 8].")

    def search(self, state: State, clock: Deadline) -> None:
        form, left = state.form, self.steps * state.form.num_variables
        room = np.empty((2, len(form.num_pruned), self.candidates), dtype=np.int64)
        lowest, highest = self.tenure
        while left > 0 and not clock.expired:
            tabu_steps(
                *form.couplings,
                form.labels,
                state.x,
                state.costs,
                state.best,
                state.energies,
                state.clock,
                state.free,
                state.random,
                room[0],
                room[1],
                min(left, _CHUNK),
                lowest,
                highest,
                self.patience,
                self.kick,
                state.threshold,
            )
            left -= _CHUNK


@njit(cache=True, nogil=True)
def tabu_steps(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    x: Any,
    costs: Any,
    best: Any,
    energies: Any,
    clock: Any,
    free: Any,
    random: Any,
    kept: Any,
    pruned: Any,
    steps: int,
    lowest: int,
    highest: int,
    patience: int,
    kick: int,
    threshold: float,
) -> None:
    """So many steps. ``clock`` holds the step's number and the steps since the last new best."""
    width = kept.shape[1]
    for _ in range(steps):
        clock[0] += 1
        clock[1] += 1
        change, u, p = best_swap(matrix, values, factor, labels, x, costs, free, clock[0], width, kept, pruned)
        if u >= 0:
            exchange(matrix, values, factor, u, p, x, costs)
            energies[0] += change
            free[u] = clock[0] + lowest + below(random, highest - lowest + 1) + 1
            free[p] = clock[0] + lowest + below(random, highest - lowest + 1) + 1
            if keep_best(x, energies, best, threshold):
                clock[1] = 0
        if clock[1] > patience:
            clock[1] = 0
            return_to_best(matrix, values, factor, x, costs, best, energies)
            for _ in range(kick):
                swap_at_random(
                    matrix, values, factor, labels, x, costs, energies, free, clock[0], highest, random, kept, pruned
                )
