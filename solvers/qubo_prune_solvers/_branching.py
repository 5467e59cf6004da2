"""Depth-first branch and bound on the shifted convex relaxation, compiled and resumable."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qubo_prune_solvers._relaxation import FIXED, FREE, dual_bound, optimise

_OPEN, _FIRST, _BOTH = 0, 1, 2


class Tree:
    """The stack of one depth-first search; every level holds the relaxation of its node.

    ``matrix`` is ``Q - diag(shift)``, positive semidefinite, and the objective ``y'matrix y + shift'y``.
    ``points`` ``(k, n)`` are the different incumbents and ``energies`` ``(k,)`` theirs, infinite where there is
    none yet. Nodes whose certified bound is within ``tolerance`` of the worst one's are cut off, so that in the
    end no other assignment is lower than the k that are left by more than that.
    """

    def __init__(
        self,
        matrix: NDArray[np.float64],
        shift: NDArray[np.float64],
        labels: NDArray[np.int64],
        counts: NDArray[np.int64],
        points: NDArray[np.bool_],
        energies: NDArray[np.float64],
        tolerance: float,
    ) -> None:
        n, groups = len(shift), max(1, len(counts))
        self.matrix, self.shift, self.labels = matrix, shift, labels
        self.points, self.energies, self.tolerance = points.copy(), energies.copy(), tolerance
        self.y, self.gradient = np.zeros((n + 1, n)), np.zeros((n + 1, n))
        self.fixed = np.zeros((n + 1, n), dtype=np.int64)
        self.counts = np.zeros((n + 1, groups), dtype=np.int64)
        self.counts[0, : len(counts)] = counts
        # objective and certified bound of each level's node
        self.value, self.bound = np.zeros(n + 1), np.full(n + 1, -np.inf)
        # branching variable and how many of its two children were begun
        self.variable, self.phase = np.zeros(n + 1, dtype=np.int64), np.zeros(n + 1, dtype=np.int64)
        # depth (-1: finished) and nodes seen
        self.place = np.zeros(2, dtype=np.int64)
        # energy of the worst incumbent and the lowest bound at which a node was cut off
        self.limits = np.array([energies.max(), np.inf])
        sizes = np.bincount(labels, minlength=groups)
        self.y[0] = (self.counts[0] / np.maximum(sizes, 1))[labels]
        self.gradient[0] = 2 * matrix @ self.y[0] + shift
        self.value[0] = self.y[0] @ matrix @ self.y[0] + shift @ self.y[0]

    @property
    def finished(self) -> bool:
        """True once every node was seen or cut off."""
        return bool(self.place[0] < 0)

    @property
    def nodes(self) -> int:
        """Nodes seen."""
        return int(self.place[1])

    @property
    def found(self) -> NDArray[np.bool_]:
        """The incumbents, ``(j, n)`` with j at most k, in no order."""
        return np.asarray(self.points[np.isfinite(self.energies)])

    @property
    def upper(self) -> float:
        """Energy of the best incumbent."""
        return float(self.energies.min())

    @property
    def open_bound(self) -> float:
        """No assignment that is neither seen nor cut off has a lower energy; infinite once all are."""
        depth = int(self.place[0])
        waiting = [self.bound[level] for level in range(depth) if self.phase[level] == _FIRST]
        current = [] if depth < 0 else [self.bound[depth - 1] if depth else -np.inf]
        return float(min([np.inf, *waiting, *current]))

    @property
    def lower(self) -> float:
        """The certified lower bound so far."""
        return min(self.upper, float(self.limits[1]), self.open_bound)

    @property
    def num_proven(self) -> int:
        """Incumbents that no other assignment is lower than, by more than the tolerance."""
        return int((self.energies[np.isfinite(self.energies)] <= self.open_bound + self.tolerance).sum())

    def grow(self, nodes: int) -> None:
        """See so many more nodes."""
        _grow(
            self.matrix,
            self.shift,
            self.labels,
            self.y,
            self.gradient,
            self.fixed,
            self.counts,
            self.value,
            self.bound,
            self.variable,
            self.phase,
            self.place,
            self.limits,
            self.points,
            self.energies,
            self.tolerance,
            nodes,
        )


@njit(cache=True, nogil=True)
def _grow(
    matrix: Any,
    shift: Any,
    labels: Any,
    y: Any,
    gradient: Any,
    fixed: Any,
    counts: Any,
    value: Any,
    bound: Any,
    variable: Any,
    phase: Any,
    place: Any,
    limits: Any,
    points: Any,
    energies: Any,
    tolerance: float,
    nodes: int,
) -> None:
    extremes = np.empty((counts.shape[1], 2), dtype=np.int64)
    multipliers = np.empty(counts.shape[1])
    last = place[1] + nodes
    while place[0] >= 0 and place[1] < last:
        d = place[0]
        if phase[d] == _OPEN:
            place[1] += 1
            k = _look(
                matrix,
                shift,
                labels,
                y[d],
                gradient[d],
                fixed[d],
                counts[d],
                value,
                bound,
                d,
                limits,
                points,
                energies,
                tolerance,
                extremes,
                multipliers,
            )
            if k < 0:
                place[0] -= 1
                continue
            variable[d], phase[d] = k, _FIRST
            _child(matrix, labels, y, gradient, fixed, counts, value, d, k, y[d, k] >= 0.5)
        elif phase[d] == _FIRST and bound[d] < limits[0] - tolerance:
            phase[d], k = _BOTH, variable[d]
            _child(matrix, labels, y, gradient, fixed, counts, value, d, k, y[d, k] < 0.5)
        else:
            if phase[d] == _FIRST:
                limits[1] = min(limits[1], bound[d])
            place[0] -= 1
            continue
        phase[d + 1] = _OPEN
        place[0] += 1


@njit(cache=True, nogil=True)
def _look(
    matrix: Any,
    shift: Any,
    labels: Any,
    y: Any,
    gradient: Any,
    fixed: Any,
    counts: Any,
    value: Any,
    bound: Any,
    d: int,
    limits: Any,
    points: Any,
    energies: Any,
    tolerance: float,
    extremes: Any,
    multipliers: Any,
) -> Any:
    """Bound one node; the variable to branch on, or -1 if it is settled."""
    n = len(y)
    groups = len(counts)
    bound[d] = bound[d - 1] if d > 0 else -np.inf
    converged = False
    for _ in range(60):
        change, converged = optimise(matrix, labels, groups, fixed, y, gradient, 1e-12, 4 + n // 4, extremes)
        value[d] += change
        lower = dual_bound(labels, counts, fixed, y, gradient, value[d], multipliers)
        bound[d] = max(bound[d], lower)
        cutoff = limits[0] - tolerance
        if bound[d] >= cutoff:
            limits[1] = min(limits[1], bound[d])
            return -1
        # no bound of this relaxation can reach what a point of it is below
        if converged or (value[d] < cutoff and value[d] - lower < 0.1 * (cutoff - lower)):
            break
    _fix(labels, fixed, counts, y, gradient, multipliers, lower, limits[0])
    branch, widest = -1, 0.0
    for i in range(n):
        if fixed[i] == FREE:
            spread = y[i] * (1.0 - y[i]) * max(abs(matrix[i, i] + shift[i]), 1e-12)
            if spread > widest:
                branch, widest = i, spread
    if branch >= 0:
        return branch
    # a vertex: its value is the energy of an assignment
    _insert(y, value[d], points, energies, limits)
    single = len(energies) == 1
    if (single and converged) or bound[d] >= limits[0] - tolerance:
        limits[1] = min(limits[1], bound[d])
        return -1
    # further assignments of this node are wanted, or the vertex is not its lowest one
    branch = _highest(labels, fixed, gradient, multipliers)
    if branch < 0:
        limits[1] = min(limits[1], bound[d])
    return branch


@njit(cache=True, nogil=True)
def _fix(
    labels: Any, fixed: Any, counts: Any, y: Any, gradient: Any, multipliers: Any, lower: float, upper: float
) -> None:
    """Fix the variables whose other value is above ``upper``, and those that the counts then leave no choice."""
    sizes = np.zeros(len(counts), dtype=np.int64)
    for i in range(len(y)):
        if fixed[i] == FIXED:
            continue
        reduced = gradient[i] - multipliers[labels[i]]
        # the other value of i costs |reduced| more than the bound
        if y[i] == 0.0 and lower + reduced > upper:
            fixed[i] = FIXED
        elif y[i] == 1.0 and lower - reduced > upper:
            fixed[i] = FIXED
            counts[labels[i]] -= 1
        else:
            sizes[labels[i]] += 1
    for i in range(len(y)):
        g = labels[i]
        if fixed[i] == FREE and (counts[g] == 0 or counts[g] == sizes[g]):
            # exactly, since what rounding left would count as a fraction
            fixed[i] = FIXED
            y[i] = 0.0 if counts[g] == 0 else 1.0
            if counts[g]:
                counts[g] -= 1
                sizes[g] -= 1


@njit(cache=True, nogil=True)
def _highest(labels: Any, fixed: Any, gradient: Any, multipliers: Any) -> Any:
    """The free variable of the highest reduced cost, whose other value leads the furthest up; -1 if there is none."""
    chosen, highest = -1, -1.0
    for i in range(len(fixed)):
        reduced = abs(gradient[i] - multipliers[labels[i]])
        if fixed[i] == FREE and reduced > highest:
            chosen, highest = i, reduced
    return chosen


@njit(cache=True, nogil=True)
def _insert(y: Any, energy: float, points: Any, energies: Any, limits: Any) -> None:
    """Put an assignment in the place of the worst incumbent, if it is better and not one of them."""
    if not energy < limits[0]:
        return
    worst = 0
    for k in range(len(energies)):
        if energies[k] > energies[worst]:
            worst = k
        same = energies[k] < np.inf
        for i in range(len(y)):
            if not same:
                break
            same = points[k, i] == (y[i] > 0.5)
        if same:
            return
    energies[worst] = energy
    for i in range(len(y)):
        points[worst, i] = y[i] > 0.5
    limits[0] = energies.max()


@njit(cache=True, nogil=True)
def _child(
    matrix: Any, labels: Any, y: Any, gradient: Any, fixed: Any, counts: Any, value: Any, d: int, k: int, prune: bool
) -> None:
    """Level d + 1: the node of level d with ``x_k`` fixed, its mass taken from or given to the others."""
    n = y.shape[1]
    y[d + 1, :] = y[d]
    gradient[d + 1, :] = gradient[d]
    fixed[d + 1, :] = fixed[d]
    counts[d + 1, :] = counts[d]
    value[d + 1] = value[d]
    point, slope = y[d + 1], gradient[d + 1]
    fixed[d + 1, k] = FIXED
    if prune:
        counts[d + 1, labels[k]] -= 1
    while True:
        left = (1.0 - point[k]) if prune else point[k]
        if left <= 0.0:
            break
        other = -1
        for i in range(n):
            if fixed[d + 1, i] == FREE and labels[i] == labels[k]:
                if prune and point[i] > 0.0 and (other < 0 or slope[i] > slope[other]):
                    other = i
                if not prune and point[i] < 1.0 and (other < 0 or slope[i] < slope[other]):
                    other = i
        if other < 0:
            # rounding left a trace of mass without a partner
            point[k] = 1.0 if prune else 0.0
            break
        up, down = (k, other) if prune else (other, k)
        step = min(left, point[other] if prune else 1.0 - point[other])
        bend = matrix[up, up] + matrix[down, down] - 2.0 * matrix[up, down]
        value[d + 1] += step * (slope[up] - slope[down] + step * bend)
        if step == left:
            point[k] = 1.0 if prune else 0.0
        else:
            point[k] += step if prune else -step
        if prune:
            point[other] = 0.0 if step == point[other] else point[other] - step
        else:
            point[other] = 1.0 if step == 1.0 - point[other] else point[other] + step
        for i in range(n):
            slope[i] += 2.0 * step * (matrix[up, i] - matrix[down, i])
