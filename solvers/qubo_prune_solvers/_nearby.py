"""The best of what a few swaps lead to: many good assignments from one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.problem.qubo import BlockQubo


def nearby(problem: BlockQubo, points: NDArray[np.bool_], wanted: int, clock: Deadline) -> NDArray[np.bool_]:
    """The ``wanted`` best assignments that are seen when the best ones are swapped until no better one turns up.

    From the best assignment on whose swaps were not looked at yet, all its swaps are, until those of the ``wanted``
    best ones known are. Energies may be off by rounding.

    Args:
        problem: the block QUBO, with counts.
        points: ``(k, n)`` assignments that meet the counts.
        wanted: how many, at least 1.
        clock: ends it early.

    Returns:
        Different assignments, best first, ``(j, n)`` with j at most ``wanted``.
    """
    energies = np.atleast_1d(problem.energy(points))
    known = {x.tobytes(): float(energy) for x, energy in zip(points, energies, strict=True)}
    best, looked = sorted(known, key=known.__getitem__)[:wanted], set()
    while True:
        ahead = next((key for key in best if key not in looked), None)
        if ahead is None or clock.expired:
            return np.stack([np.frombuffer(key, dtype=bool) for key in best])
        looked.add(ahead)
        worst = known[best[-1]] if len(best) == wanted else np.inf
        for change, x in _swaps(problem, np.frombuffer(ahead, dtype=bool), worst - known[ahead], wanted):
            known.setdefault(x.tobytes(), known[ahead] + change)
        best = sorted(known, key=known.__getitem__)[:wanted]
        known = {key: known[key] for key in best}


def _swaps(problem: BlockQubo, x: NDArray[np.bool_], below: float, most: int) -> list[tuple[float, NDArray[np.bool_]]]:
    """The swaps of the lowest energy changes, as far as those are lower than ``below``."""
    kept, pruned = np.flatnonzero(~x), np.flatnonzero(x)
    costs, q = problem.flip_costs(x), problem.dense()
    change = costs[kept, None] - costs[None, pruned] - 2 * q[np.ix_(kept, pruned)]
    change[problem.labels[kept, None] != problem.labels[None, pruned]] = np.inf
    flat = change.ravel()
    places = np.flatnonzero(flat < below)
    if len(places) > most:
        places = places[np.argpartition(flat[places], most - 1)[:most]]
    found = []
    for place in places.tolist():
        u, p = divmod(place, len(pruned))
        new = x.copy()
        new[kept[u]], new[pruned[p]] = True, False
        found.append((float(flat[place]), new))
    return found
