"""A diagonal shift that makes Q convex: ``x'Qx = x'(Q - diag(d))x + d'x`` at binary x.

The relaxation of the right side is a certified bound wherever ``Q - diag(d)`` is positive
semidefinite, and the better the larger d. Maximising a weighted trace of d (minimum-trace factor
analysis) is the dual of ``min <Q, V V'>`` over unit vectors ``V_i``, which coordinate descent solves:
``V_i = -g_i / |g_i|`` with ``g_i = sum_{j != i} Q_ij V_j`` (the mixing method, P.-W. Wang et al. 2017). At its
optimum ``Q_ii - d_i = |g_i|``. Whatever the descent reached, the smallest eigenvalue certifies it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

# of the largest entry: far above the rounding of the smallest eigenvalue, far below any gap of interest
_MARGIN = 1e-12


def convex_diagonal(
    quadratic: NDArray[np.float64], weights: NDArray[np.float64], sweeps: int = 60
) -> NDArray[np.float64]:
    """The least weighted diagonal e, ``sum weights_i e_i``, for which ``offdiag(Q) + diag(e)`` is semidefinite.

    So ``d = diag(Q) - e`` is the shift above. Certified: e is feasible up to rounding even if the
    descent has not converged.

    Args:
        quadratic: Q, ``(n, n)``; its diagonal plays no part.
        weights: positive, ``(n,)``.
        sweeps: of the coordinate descent.
    """
    n = len(quadratic)
    if n == 0:
        return np.zeros(0)
    root = np.sqrt(weights)
    scaled = quadratic * root[:, None] * root[None, :]
    np.fill_diagonal(scaled, 0.0)
    vectors = np.random.default_rng(0).normal(size=(n, int(np.sqrt(2 * n)) + 2))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    diagonal = _mix(scaled, vectors, sweeps)
    np.fill_diagonal(scaled, diagonal)
    lowest = float(np.linalg.eigvalsh(scaled)[0])
    return np.asarray((diagonal + max(0.0, -lowest) + _MARGIN * float(np.abs(scaled).max())) / weights)


@njit(cache=True, nogil=True)
def _mix(scaled: Any, vectors: Any, sweeps: int) -> Any:
    """Coordinate descent on the unit vectors; the lengths ``|g_i|`` at its end."""
    n, rank = vectors.shape
    lengths = np.zeros(n)
    pull = np.empty(rank)
    before = 0.0
    for _ in range(sweeps):
        for i in range(n):
            pull[:] = 0.0
            for j in range(n):
                entry = scaled[i, j]
                for k in range(rank):
                    pull[k] += entry * vectors[j, k]
            length = np.sqrt((pull * pull).sum())
            lengths[i] = length
            if length > 0.0:
                for k in range(rank):
                    vectors[i, k] = -pull[k] / length
        total = lengths.sum()
        if abs(total - before) <= 1e-5 * total:
            break
        before = total
    return lengths
