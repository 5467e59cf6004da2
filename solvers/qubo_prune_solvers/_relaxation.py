"""The convex relaxation ``min y'Py + c'y`` over ``0 <= y <= 1`` with exact group sums, compiled.

Solved by exchanging mass between pairs of one group (the second-order working set of SMO), which keeps
every sum. For positive semidefinite P any y gives a certified lower bound by weak duality: with the
gradient ``g = 2 P y + c`` and any multiplier ``t`` per group::

    min f >= f(y) - g'y + sum_groups [ t m + sum_i min(0, g_i - t) ].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

FREE, FIXED = 0, 1


@njit(cache=True, nogil=True)
def optimise(
    matrix: Any, labels: Any, groups: int, fixed: Any, y: Any, gradient: Any, tolerance: float, most: int, extremes: Any
) -> Any:
    """Exchange mass between free variables until the largest violation is below ``tolerance``.

    ``y`` and ``gradient`` are updated in place. ``extremes`` is room, ``(groups, 2)``. Returns the
    change of the objective and whether it converged.
    """
    n = len(y)
    total = 0.0
    for _ in range(most):
        for g in range(groups):
            extremes[g, 0] = -1
            extremes[g, 1] = -1
        for i in range(n):
            if fixed[i] == FIXED:
                continue
            g = labels[i]
            if y[i] > 0.0 and (extremes[g, 0] < 0 or gradient[i] > gradient[extremes[g, 0]]):
                extremes[g, 0] = i
            if y[i] < 1.0 and (extremes[g, 1] < 0 or gradient[i] < gradient[extremes[g, 1]]):
                extremes[g, 1] = i
        widest, down = tolerance, -1
        for g in range(groups):
            if extremes[g, 0] >= 0 and extremes[g, 1] >= 0:
                violation = gradient[extremes[g, 0]] - gradient[extremes[g, 1]]
                if violation > widest:
                    widest, down = violation, extremes[g, 0]
        if down < 0:
            return total, True
        up, best, curvature = -1, 0.0, 0.0
        row = matrix[down]
        for j in range(n):
            slope = gradient[down] - gradient[j]
            if slope > 0.0 and y[j] < 1.0 and fixed[j] == FREE and labels[j] == labels[down]:
                bend = row[down] + matrix[j, j] - 2.0 * row[j]
                # no curvature: the step goes to the bound, the steepest one first
                gain = slope * slope / bend if bend > 0.0 else 1e300 * slope
                if gain > best:
                    up, best, curvature = j, gain, bend
        slope = gradient[down] - gradient[up]
        step = min(y[down], 1.0 - y[up])
        if curvature > 0.0:
            step = min(step, slope / (2.0 * curvature))
        if step <= 0.0:
            return total, True
        total += step * (curvature * step - slope)
        # bounds are reached exactly, or a rounding error would stay a candidate for ever
        y[down] = 0.0 if step == y[down] else y[down] - step
        y[up] = 1.0 if step == 1.0 - y[up] else y[up] + step
        other = matrix[up]
        for k in range(n):
            gradient[k] += 2.0 * step * (other[k] - row[k])
    return total, False


@njit(cache=True, nogil=True)
def dual_bound(labels: Any, counts: Any, fixed: Any, y: Any, gradient: Any, value: float, multipliers: Any) -> Any:
    """The certified lower bound above at y, with the best multiplier of each group (written out).

    ``counts`` are the sums that the free variables still have to reach.
    """
    bound = value
    for i in range(len(y)):
        if fixed[i] == FREE:
            bound -= gradient[i] * y[i]
    for g in range(len(counts)):
        members = np.empty(len(y))
        size = 0
        for i in range(len(y)):
            if fixed[i] == FREE and labels[i] == g:
                members[size] = gradient[i]
                size += 1
        if size == 0:
            multipliers[g] = 0.0
            continue
        slopes = np.sort(members[:size])
        m = counts[g]
        for k in range(m):
            bound += slopes[k]
        if m == 0:
            multipliers[g] = slopes[0]
        elif m == size:
            multipliers[g] = slopes[size - 1]
        else:
            multipliers[g] = 0.5 * (slopes[m - 1] + slopes[m])
    return bound


def relaxed(
    matrix: NDArray[np.float64],
    linear: NDArray[np.float64],
    labels: NDArray[np.int64],
    counts: NDArray[np.int64],
    most: int = 0,
) -> NDArray[np.float64]:
    """A minimiser y of the relaxation, ``(n,)`` (a stationary point if P is not semidefinite)."""
    n = len(linear)
    sizes = np.bincount(labels, minlength=len(counts))
    y = (counts / np.maximum(sizes, 1))[labels] if n else np.zeros(0)
    gradient = 2 * matrix @ y + linear
    tolerance = 1e-4 * float(np.abs(gradient).mean()) if n else 0.0
    room = np.empty((max(1, len(counts)), 2), dtype=np.int64)
    optimise(matrix, labels, len(counts), np.zeros(n, dtype=np.int64), y, gradient, tolerance, most or 20 * n, room)
    return np.asarray(y)
