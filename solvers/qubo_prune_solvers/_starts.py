"""Different places to begin a swap search from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qubo_prune.problem.budgets import lowest_of_groups
from qubo_prune.solver.swaps.kernels import Form, below, forward_start
from qubo_prune_solvers._relaxation import relaxed

# above this size the relaxation of one problem, which reads an n x n matrix, costs more than it brings
_MOST_RELAXED = 2048


def starts_of(form: Form, warm_start: NDArray[np.bool_] | None, count: int, seed: int) -> list[NDArray[np.bool_]]:
    """``count`` feasible assignments: the warm start, greedy, rounded relaxation, then random ones.

    Without a warm start the first is the lowest ``Q_ii``, which for Gram blocks is Wanda's choice.
    """
    first = (
        lowest_of_groups(form.own, form.labels, form.num_pruned)
        if warm_start is None
        else np.array(warm_start, dtype=bool)
    )
    result = [first]
    if count > 1:
        result.append(forward_start(form))
    if count > 2 and len(form.matrix) and form.num_variables <= _MOST_RELAXED:
        result.append(lowest_of_groups(-_relaxed(form), form.labels, form.num_pruned))
    state = np.array([seed], dtype=np.uint64)
    while len(result) < count:
        result.append(_random(form.labels, form.num_pruned, state))
    return result


def _relaxed(form: Form) -> NDArray[np.float64]:
    quadratic = form.matrix * form.values[:, None] * form.values[None, :] / 2
    np.fill_diagonal(quadratic, form.own)
    return relaxed(quadratic, np.zeros(form.num_variables), form.labels, form.num_pruned, 4 * form.num_variables)


@njit(cache=True, nogil=True)
def _random(labels: Any, num_pruned: Any, state: Any) -> Any:
    """Any feasible assignment, all equally likely."""
    n = len(labels)
    order = np.arange(n)
    for i in range(n - 1, 0, -1):
        j = below(state, i + 1)
        order[i], order[j] = order[j], order[i]
    x = np.zeros(n, dtype=np.bool_)
    left = num_pruned.copy()
    for i in range(n):
        chosen = order[i]
        if left[labels[chosen]] > 0:
            x[chosen] = True
            left[labels[chosen]] -= 1
    return x
