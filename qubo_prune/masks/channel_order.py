"""Orders of inputs in which a pattern ``n:m`` prunes less.

A pattern groups m inputs that stand beside each other, and prunes the ``m - n`` lowest of each group in every row.
Which inputs stand together decides how much that is (J. Pool, C. Yu, Channel Permutations for N:M Sparsity, NeurIPS
2021).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numba import njit
from numpy.typing import NDArray


def pruned_score(scores: Float[NDArray[np.float64], "d r"], kept: int, of: int) -> float:
    """The sum of the ``of - kept`` lowest scores of every row in each group of ``of`` inputs."""
    groups = np.sort(scores.reshape(-1, of, scores.shape[1]), axis=1)
    return float(groups[:, : of - kept].sum())


def channel_order(
    scores: Float[NDArray[np.float64], "d r"], kept: int, of: int, rounds: int = 100, seed: int = 0
) -> Int[NDArray[np.int64], " d"]:
    """An order of the d inputs with a low :func:`pruned_score`, by exchanges.

    In each round the groups are paired at random, and each pair makes the exchange of one input for one of the other
    that lowers the sum most, if one does. It ends early where a hundred rounds in a row found none. Within a group the
    inputs stand in ascending order, and nothing is better than the order that they have if no exchange lowers it.

    Args:
        scores: of every input in every row, at least 0, such as ``w_rj^2 H_jj``; d is a multiple of ``of``.
        kept: n of the pattern.
        of: m of the pattern.
        rounds: most rounds.
        seed: of the pairs.
    """
    order = np.arange(len(scores))
    _exchange(np.ascontiguousarray(scores, dtype=np.float64), order, kept, of, rounds, seed)
    grouped: NDArray[np.int64] = np.sort(order.reshape(-1, of), axis=1).reshape(-1)
    return grouped


@njit(cache=True, nogil=True)
def _lowest(scores: Any, members: Any, count: int, low: Any) -> float:
    """The sum over the rows of the lowest scores of a group."""
    total = 0.0
    for r in range(scores.shape[1]):
        filled = 0
        for place in range(len(members)):
            value = scores[members[place], r]
            if filled < count:
                at = filled
                filled += 1
            elif value < low[count - 1]:
                at = count - 1
            else:
                continue
            while at > 0 and low[at - 1] > value:
                low[at] = low[at - 1]
                at -= 1
            low[at] = value
        for place in range(count):
            total += low[place]
    return total


@njit(cache=True, nogil=True)
def _exchange(scores: Any, order: Any, kept: int, of: int, rounds: int, seed: int) -> None:
    np.random.seed(seed)
    groups, count = len(order) // of, of - kept
    low, sums = np.empty(max(count, 1)), np.empty(groups)
    for group in range(groups):
        sums[group] = _lowest(scores, order[group * of : (group + 1) * of], count, low)
    idle = 0
    for _ in range(rounds if groups > 1 else 0):
        pairs, found = np.random.permutation(groups), False
        for k in range(groups // 2):
            a, b = pairs[2 * k], pairs[2 * k + 1]
            one, other = order[a * of : (a + 1) * of].copy(), order[b * of : (b + 1) * of].copy()
            best, first, second = sums[a] + sums[b], -1, -1
            best_one = best_other = 0.0
            best -= 1e-9 * best
            for i in range(of):
                for j in range(of):
                    one[i], other[j] = other[j], one[i]
                    left = _lowest(scores, one, count, low)
                    if left < best:
                        right = _lowest(scores, other, count, low)
                        if left + right < best:
                            best, first, second = left + right, i, j
                            best_one, best_other = left, right
                    one[i], other[j] = other[j], one[i]
            if first >= 0:
                order[a * of + first], order[b * of + second] = order[b * of + second], order[a * of + first]
                sums[a], sums[b] = best_one, best_other
                found = True
        idle = 0 if found else idle + 1
        if idle == 100:
            break
