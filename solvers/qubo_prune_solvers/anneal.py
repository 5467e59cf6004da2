"""Simulated annealing by swaps, which keeps every count; compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from qubo_prune.clock import Deadline
from qubo_prune.settings import setting
from qubo_prune.solver.swaps.kernels import below, coupling, exchange, uniform
from qubo_prune_solvers._search import State, SwapSearch, keep_best


@dataclass(frozen=True)
class Anneal(SwapSearch):
    """Propose random swaps; take one that adds ``dE`` to the energy with probability ``exp(-dE/T)``.

    The temperature falls geometrically from ``hot`` to ``cold`` times the median ``|dE|`` of random
    swaps at the start. A sweep proposes n swaps; a proposal is O(1), an accepted one O(n). Each start
    ends in an optimum over all single swaps.

    After S. Kirkpatrick, C. Gelatt, M. Vecchi, Science 220 (1983).

    Attributes:
        starts: runs from the warm start, greedy forward selection, the rounded relaxation and random
            assignments, in this order.
        sweeps: temperatures of a run.
        hot: highest temperature, in median ``|dE|``; low values stay near the start.
        cold: lowest temperature, in median ``|dE|``.
        threads: for the starts of one problem or the rows of a batch; one per core if ``None``.
    """

    starts: int = setting(3, least=1)
    sweeps: int = setting(200, least=0)
    hot: float = setting(0.3, above=0)
    cold: float = setting(1e-3, above=0)
    threads: int | None = setting(None, least=1)

    def search(self, state: State, clock: Deadline) -> None:
        form = state.form
        order, bounds = _by_group(form.labels, state.x, len(form.num_pruned))
        scale = _typical_change(*form.couplings, order, bounds, state.costs, state.random)
        if scale == 0.0:
            return
        for temperature in scale * np.geomspace(self.hot, self.cold, self.sweeps):
            if clock.expired:
                break
            _sweep(
                *form.couplings,
                order,
                bounds,
                state.x,
                state.costs,
                state.best,
                state.energies,
                state.random,
                float(temperature),
                state.threshold,
            )


@njit(cache=True, nogil=True)
def _by_group(labels: Any, x: Any, groups: int) -> Any:
    """Variables ordered by group, the kept ones of each first; where its kept and pruned ones begin and end."""
    order = np.empty(len(x), dtype=np.int64)
    bounds = np.empty((groups, 3), dtype=np.int64)
    at = 0
    for g in range(groups):
        bounds[g, 0] = at
        for side in (False, True):
            for i in range(len(x)):
                if labels[i] == g and x[i] == side:
                    order[at] = i
                    at += 1
            bounds[g, 2 if side else 1] = at
    return order, bounds


@njit(cache=True, nogil=True)
def _draw(order: Any, bounds: Any, random: Any) -> Any:
    """Places in ``order`` of a random kept and a random pruned variable of one group; (-1, -1) if unlucky."""
    g = 0
    if len(bounds) > 1:
        # groups in proportion to their size
        at = below(random, len(order))
        while at >= bounds[g, 2]:
            g += 1
    first, middle, end = bounds[g]
    if first == middle or middle == end:
        return -1, -1
    return first + below(random, middle - first), middle + below(random, end - middle)


@njit(cache=True, nogil=True)
def _typical_change(matrix: Any, values: Any, factor: Any, order: Any, bounds: Any, costs: Any, random: Any) -> Any:
    """The median ``|dE|`` of random swaps."""
    changes = np.zeros(256)
    known = 0
    for _ in range(1024):
        a, b = _draw(order, bounds, random)
        if a >= 0 and known < len(changes):
            u, p = order[a], order[b]
            changes[known] = abs(costs[u] - costs[p] - coupling(matrix, values, factor, u, p))
            known += 1
    return np.median(changes[:known]) if known else 0.0


@njit(cache=True, nogil=True)
def _sweep(
    matrix: Any,
    values: Any,
    factor: Any,
    order: Any,
    bounds: Any,
    x: Any,
    costs: Any,
    best: Any,
    energies: Any,
    random: Any,
    temperature: float,
    threshold: float,
) -> None:
    """n proposals at one temperature."""
    for _ in range(len(x)):
        a, b = _draw(order, bounds, random)
        if a < 0:
            continue
        u, p = order[a], order[b]
        change = costs[u] - costs[p] - coupling(matrix, values, factor, u, p)
        if change <= 0.0 or uniform(random) < np.exp(-change / temperature):
            exchange(matrix, values, factor, u, p, x, costs)
            order[a], order[b] = p, u
            energies[0] += change
            keep_best(x, energies, best, threshold)
