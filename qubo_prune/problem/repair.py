"""From an assignment that misses a count to one that meets it, at the least cost step by step."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from qubo_prune.problem.qubo import BlockQubo


def repair(problem: BlockQubo, x: Bool[np.ndarray, " n"]) -> NDArray[np.bool_]:
    """Flip one weight at a time until every count is met; budgets are not looked at.

    A group with too few pruned weights prunes the one that costs least given the rest, a group with
    too many restores the one that gains most. O(n) a flip, O(n rank) in factor form.
    """
    missing = np.array(problem.num_pruned, dtype=np.int64) - problem.counts(x)
    result = np.array(x, dtype=bool)
    costs = problem.flip_costs(result)
    for group in np.flatnonzero(missing):
        prune = missing[group] > 0
        eligible = (problem.labels == group) & (result != prune)
        for _ in range(abs(int(missing[group]))):
            order = np.where(eligible, costs if prune else -costs, np.inf)
            chosen = int(order.argmin())
            result[chosen], eligible[chosen] = prune, False
            row = problem.couplings(chosen)
            costs += row if prune else -row
    return result
