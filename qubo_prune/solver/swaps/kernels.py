"""Compiled swap kernels: the state of a search that keeps every count, and its moves.

A problem is read as ``own_i = Q_ii`` and ``2 Q_ij = v_i M_ij v_j``; without M, ``2 Q_ij = 2 F_i . F_j``.
So whole rows share one Gram matrix as M, dense problems are ``M = 2 Q, v = 1``, and so is factor form
where its matrix fits. Cached flip costs ``K_i = Q_ii + 2 sum_{j != i} Q_ij x_j`` make a proposal O(1),
``dE = K_u - K_p - 2 Q_up`` for pruning kept u and restoring pruned p, and an accepted swap O(n)
(O(n rank) in factor form).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.problem.qubo import BlockBatch, BlockQubo, FactorForm

T = TypeVar("T")
_NO_MATRIX = np.zeros((0, 0))
_NO_FACTOR = np.zeros((0, 0))
#: Factor form of up to so many variables is multiplied out: a swap costs O(n) then instead of O(n rank), and even one
#: descent, whose last round pairs every kept weight, reads more of Q than the product costs. 256 MB at most.
MATRIX_UP_TO = 4096
# up to this rank one half of the symmetric product costs more to copy than to compute
_FEW = 64
# weights i, i + _LANES, i + 2 _LANES, ... form a lane; one pass of vector instructions finds the best of every lane.
# That pays from so many weights on, if few are wanted: no more than a quarter of the lanes, for _bound
_LANES = 64
_LANES_FROM, _LANES_WIDTH = 192, 16
# a descent ends by itself; the bound only stops a cycle within the rounding
_MOST_SWAPS = 100_000


@dataclass(frozen=True, eq=False)
class Form:
    """One problem as the kernels read it; ``|2 Q_ij| <= pull_i size_j`` bounds the couplings."""

    own: NDArray[np.float64]
    matrix: NDArray[np.float64]
    values: NDArray[np.float64]
    factor: NDArray[np.float64]
    labels: NDArray[np.int64]
    num_pruned: NDArray[np.int64]
    pull: NDArray[np.float64]
    size: NDArray[np.float64]

    @property
    def num_variables(self) -> int:
        """n."""
        return len(self.own)

    @property
    def couplings(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """The arguments by which kernels read ``2 Q_ij``."""
        return self.matrix, self.values, self.factor


def form_of(problem: BlockQubo, matrix_up_to: int = 0) -> Form:
    """The kernels' view of one problem.

    Factor form is multiplied out up to so many variables, and above where the factor itself takes a
    quarter of n x n or more: a swap then costs O(n) instead of O(n rank).
    """
    n = problem.num_variables
    if isinstance(problem.q, FactorForm) and n > matrix_up_to and 4 * problem.q.factor.shape[1] < n:
        # a writable copy: for read-only arrays every kernel would be compiled once more
        matrix, values, factor = _NO_MATRIX, np.zeros(0), np.array(problem.q.factor, order="C")
        pull = size = np.sqrt(2 * (factor**2).sum(axis=1))
    else:
        matrix, values, factor = _doubled(problem), np.ones(n), _NO_FACTOR
        pull, size = reach(matrix)
    counts = np.array(problem.num_pruned, dtype=np.int64)
    return Form(np.array(problem.diagonal), matrix, values, factor, np.array(problem.labels), counts, pull, size)


def _doubled(problem: BlockQubo) -> NDArray[np.float64]:
    """2 Q, of factor form without another copy of it."""
    if not isinstance(problem.q, FactorForm):
        return np.asarray(2 * problem.q)
    if problem.q.factor.shape[1] <= _FEW:
        matrix = np.asarray((2 * problem.q.factor) @ problem.q.factor.T)
        np.einsum("ii->i", matrix)[:] += 2 * problem.q.diagonal
        return matrix
    matrix = problem.dense()
    matrix *= 2
    return matrix


def forms_of(batch: BlockBatch) -> Iterator[Form]:
    """The same for every row of a batch; rows that share a Gram block share the matrix here."""
    hessian = np.ascontiguousarray(batch.hessian.double().cpu().numpy())
    values, linear = batch.values.double().cpu().numpy(), batch.linear.double().cpu().numpy()
    labels = batch.labels.cpu().numpy().astype(np.int64)
    counts = batch.num_pruned.cpu().numpy().astype(np.int64)
    shared = reach(hessian) if batch.shared else None
    for row in range(batch.num_rows):
        matrix = hessian if batch.shared else hessian[row]
        own = values[row] ** 2 * np.diagonal(matrix) / 2 + linear[row]
        pull, size = shared or reach(matrix)
        own_values, strength = np.ascontiguousarray(values[row]), np.abs(values[row])
        yield Form(own, matrix, own_values, _NO_FACTOR, labels, counts[row], strength * pull, strength * size)


def in_threads(work: Callable[[Any], T], items: list[Any], threads: int | None, clock: Deadline) -> list[T]:
    """``work`` on every item, in their order, on so many threads (one per core if ``None``).

    The kernels release the interpreter's lock, so threads are enough. If this thread is interrupted, or one of them
    fails, the ``clock`` that all of them look at is cancelled, so that they end with the slice at which they are.
    """
    count = min(len(items), threads or os.cpu_count() or 1)
    if count <= 1:
        return [work(item) for item in items]
    pool = ThreadPoolExecutor(count)
    try:
        # an interrupt may come as soon as the first of them runs
        return [future.result() for future in [pool.submit(work, item) for item in items]]
    except BaseException:
        clock.cancel()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@njit(cache=True, nogil=True)
def next_random(state: Any) -> Any:
    """The next 64 random bits (splitmix64); ``state`` is one uint64."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit(cache=True, nogil=True)
def uniform(state: Any) -> Any:
    """A random number in [0, 1)."""
    return np.float64(next_random(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def below(state: Any, n: int) -> Any:
    """A random integer from 0 to n-1."""
    return np.int64(uniform(state) * n)


@njit(cache=True, nogil=True)
def coupling(matrix: Any, values: Any, factor: Any, i: int, j: int) -> Any:
    """``2 Q_ij`` for different i and j."""
    if len(matrix):
        return values[i] * matrix[i, j] * values[j]
    total = 0.0
    for k in range(factor.shape[1]):
        total += factor[i, k] * factor[j, k]
    return 2.0 * total


@njit(cache=True, nogil=True)
def flip(matrix: Any, values: Any, factor: Any, i: int, x: Any, costs: Any) -> None:
    """Flip ``x_i`` and bring the flip costs up to date."""
    sign = -1.0 if x[i] else 1.0
    own = costs[i]
    if len(matrix):
        scale = sign * values[i]
        row = matrix[i]
        for j in range(len(costs)):
            costs[j] += scale * row[j] * values[j]
    else:
        for j in range(len(costs)):
            total = 0.0
            for k in range(factor.shape[1]):
                total += factor[i, k] * factor[j, k]
            costs[j] += 2.0 * sign * total
    costs[i] = own
    x[i] = not x[i]


@njit(cache=True, nogil=True)
def exchange(matrix: Any, values: Any, factor: Any, kept: int, pruned: int, x: Any, costs: Any) -> None:
    """Prune ``kept``, restore ``pruned``, and bring the flip costs up to date."""
    if not len(matrix):
        flip(matrix, values, factor, kept, x, costs)
        flip(matrix, values, factor, pruned, x, costs)
        return
    between = values[kept] * matrix[kept, pruned] * values[pruned]
    own_kept, own_pruned = costs[kept], costs[pruned]
    up, down = values[kept], values[pruned]
    row_up, row_down = matrix[kept], matrix[pruned]
    for j in range(len(costs)):
        costs[j] += (up * row_up[j] - down * row_down[j]) * values[j]
    costs[kept] = own_kept - between
    costs[pruned] = own_pruned + between
    x[kept], x[pruned] = True, False


def flip_costs(
    matrix: NDArray[np.float64],
    values: NDArray[np.float64],
    factor: NDArray[np.float64],
    own: NDArray[np.float64],
    x: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """``K_i = Q_ii + 2 sum_{j != i} Q_ij x_j`` from scratch."""
    point = x.astype(np.float64)
    if len(matrix):
        inside = values * point
        return np.asarray(own + values * (matrix @ inside - np.diagonal(matrix) * inside))
    return np.asarray(own + 2 * (factor @ (factor.T @ point) - (factor**2).sum(axis=1) * point))


@njit(cache=True, nogil=True)
def energy(own: Any, costs: Any, x: Any) -> Any:
    """``x'Qx`` from the flip costs: ``sum over pruned of (K_i + Q_ii) / 2``."""
    total = 0.0
    for i in range(len(x)):
        if x[i]:
            total += (costs[i] + own[i]) / 2.0
    return total


@njit(cache=True, nogil=True)
def best_swap(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    x: Any,
    costs: Any,
    free: Any,
    now: int,
    width: int,
    kept: Any,
    pruned: Any,
) -> Any:
    """The best swap among the ``width`` most promising weights of either kind: (change, kept, pruned).

    Weights i with ``free[i] > now`` take no part. ``kept`` and ``pruned`` are room for the candidates,
    ``(groups, width)``. No partner anywhere gives (inf, -1, -1).
    """
    room = room_of(len(x), kept.shape[0], width)
    return best_swap_in(matrix, values, factor, labels, x, costs, free, now, kept, pruned, room)


@njit(cache=True, nogil=True)
def room_of(n: int, groups: int, width: int) -> Any:
    """Room for :func:`best_swap_in`: keys and numbers of candidates, minima of lanes, places of weights, of lanes."""
    return (
        np.empty((groups, 2, width)),
        np.empty((groups, 2), dtype=np.int64),
        np.empty((2, _LANES)),
        np.empty(n + 1, dtype=np.int64),
        np.empty(_LANES + 1, dtype=np.int64),
    )


@njit(cache=True, nogil=True)
def best_swap_in(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    x: Any,
    costs: Any,
    free: Any,
    now: int,
    kept: Any,
    pruned: Any,
    room: Any,
) -> Any:
    """:func:`best_swap` with room from :func:`room_of`, for loops: to allocate it takes long compared with a step."""
    keys, sizes, lanes, places, some = room
    groups, width = keys.shape[0], keys.shape[2]
    sizes[:] = 0
    best, best_kept, best_pruned = np.inf, -1, -1
    if groups == 1 and len(x) >= _LANES_FROM and width <= _LANES_WIDTH:
        _lane_minima(x, costs, free, now, lanes[0], lanes[1])
        sizes[0, 0] = _candidates_of_lanes(False, x, costs, free, now, lanes[0], places, some, keys[0, 0], kept[0])
        sizes[0, 1] = _candidates_of_lanes(True, x, costs, free, now, lanes[1], places, some, keys[0, 1], pruned[0])
    elif groups == 1:
        _candidates_of_one(x, costs, free, now, width, keys[0], sizes[0], kept[0], pruned[0])
    else:
        _candidates_of_all(labels, x, costs, free, now, width, keys, sizes, kept, pruned)
    for g in range(groups):
        for a in range(sizes[g, 0]):
            u = kept[g, a]
            for b in range(sizes[g, 1]):
                p = pruned[g, b]
                change = keys[g, 0, a] + keys[g, 1, b] - coupling(matrix, values, factor, u, p)
                if change < best:
                    best, best_kept, best_pruned = change, u, p
    return best, best_kept, best_pruned


@njit(cache=True, nogil=True)
def _insert(key: float, i: int, at: int, keys: Any, found: Any) -> None:
    """Put a candidate in its place in an ascending list whose place ``at`` is free; of equal ones the first leads."""
    while at > 0 and (keys[at - 1] > key or (keys[at - 1] == key and found[at - 1] > i)):
        keys[at] = keys[at - 1]
        found[at] = found[at - 1]
        at -= 1
    keys[at] = key
    found[at] = i


@njit(cache=True, nogil=True)
def _lane_minima(x: Any, costs: Any, free: Any, now: int, kept: Any, pruned: Any) -> None:
    """The lowest cost of the kept weights of each lane, and of the pruned ones the lowest of minus their costs."""
    kept[:] = np.inf
    pruned[:] = np.inf
    n = len(x)
    for block in range(n // _LANES):
        start = np.uint64(block * _LANES)
        for lane in range(_LANES):
            # vectorised: an unsigned index cannot count from the end, and with "+ 0.0" both stores are made in any case
            i = start + np.uint64(lane)
            taken, is_pruned, cost = free[i] > now, x[i], costs[i]
            of_kept = np.inf if taken else cost
            of_pruned = np.inf if taken else -cost
            of_kept = np.inf if is_pruned else of_kept
            of_pruned = of_pruned if is_pruned else np.inf
            kept[lane] = min(kept[lane], of_kept) + 0.0
            pruned[lane] = min(pruned[lane], of_pruned) + 0.0
    for rest in range(n // _LANES * _LANES, n):
        lane = rest % _LANES
        if free[rest] <= now and x[rest]:
            pruned[lane] = min(pruned[lane], -costs[rest])
        elif free[rest] <= now:
            kept[lane] = min(kept[lane], costs[rest])


@njit(cache=True, nogil=True)
def _candidates_of_lanes(
    side: bool, x: Any, costs: Any, free: Any, now: int, lanes: Any, places: Any, some: Any, keys: Any, found: Any
) -> Any:
    """Put the best weights with ``x = side`` into ``keys`` and ``found``, from lanes that can hold them; how many.

    ``places`` and ``some`` are room, ``(n + 1,)`` and ``(lanes + 1,)``. There are no branches, which would be
    mispredicted, until few weights are left.
    """
    width, limit = len(keys), _bound(lanes, keys)
    chosen = 0
    for lane in range(_LANES):
        some[chosen] = lane
        chosen += lanes[lane] <= limit
    hits = 0
    for k in range(chosen):
        i = some[k]
        while i < len(x):
            key = -costs[i] if side else costs[i]
            places[hits] = i
            hits += (x[i] == side) & (free[i] <= now) & (key <= limit)
            i += _LANES
    size = 0
    for k in range(hits):
        i = places[k]
        key = -costs[i] if side else costs[i]
        if size == width and (keys[width - 1] < key or (keys[width - 1] == key and found[width - 1] < i)):
            continue
        at = min(size, width - 1)
        size = at + 1
        _insert(key, i, at, keys, found)
    return size


@njit(cache=True, nogil=True)
def _bound(lanes: Any, lowest: Any) -> Any:
    """What ``len(lowest)`` keys of different weights do not exceed: of the minima of quarters of the lanes."""
    width, part = len(lowest), len(lanes) // 4
    lowest[:] = np.inf
    for k in range(part):
        key = min(min(lanes[k], lanes[k + part]), min(lanes[k + 2 * part], lanes[k + 3 * part]))
        for place in range(width):
            low, key = min(lowest[place], key), max(lowest[place], key)
            lowest[place] = low
    return lowest[width - 1]


@njit(cache=True, nogil=True)
def _candidates_of_one(
    x: Any, costs: Any, free: Any, now: int, width: int, keys: Any, sizes: Any, kept: Any, pruned: Any
) -> None:
    """The ``width`` cheapest kept and dearest pruned weights, in one pass."""
    worst_kept = worst_pruned = np.inf
    for i in range(len(x)):
        # a kept weight is the better the lower its cost, a pruned one the higher; written so that the
        # one branch below is rarely taken and well predicted
        key = -costs[i] if x[i] else costs[i]
        worst = worst_pruned if x[i] else worst_kept
        if key < worst and free[i] <= now:
            side = 1 if x[i] else 0
            at = min(sizes[side], width - 1)
            sizes[side] = at + 1
            _insert(key, i, at, keys[side], pruned if x[i] else kept)
            if sizes[side] == width:
                if side:
                    worst_pruned = keys[1, width - 1]
                else:
                    worst_kept = keys[0, width - 1]


@njit(cache=True, nogil=True)
def _candidates_of_all(
    labels: Any, x: Any, costs: Any, free: Any, now: int, width: int, keys: Any, sizes: Any, kept: Any, pruned: Any
) -> None:
    """The same for every group, in one pass over all of them."""
    for i in range(len(x)):
        g, side = labels[i], 1 if x[i] else 0
        key = -costs[i] if x[i] else costs[i]
        full = sizes[g, side] == width
        if free[i] > now or (full and key >= keys[g, side, width - 1]):
            continue
        at = width - 1 if full else sizes[g, side]
        sizes[g, side] = at + 1
        _insert(key, i, at, keys[g, side], pruned[g] if x[i] else kept[g])


@njit(cache=True, nogil=True)
def descend(
    matrix: Any, values: Any, factor: Any, labels: Any, x: Any, costs: Any, threshold: float, kept: Any, pruned: Any
) -> Any:
    """Best swaps until none of the candidates gains more than ``threshold``; the energy change."""
    free = np.zeros(len(x), dtype=np.int64)
    room, total = room_of(len(x), kept.shape[0], kept.shape[1]), 0.0
    for _ in range(_MOST_SWAPS):
        change, u, p = best_swap_in(matrix, values, factor, labels, x, costs, free, 0, kept, pruned, room)
        if not change < -threshold:
            break
        exchange(matrix, values, factor, u, p, x, costs)
        total += change
    return total


@njit(cache=True, nogil=True)
def reach(matrix: Any) -> Any:
    """``size_j = sqrt |M_jj|`` and ``pull_i = max_{j != i} |M_ij| / size_j``, so ``|M_ij| <= pull_i size_j``."""
    n = len(matrix)
    size, pull = np.zeros(n), np.zeros(n)
    largest = 0.0
    for i in range(n):
        largest = max(largest, abs(matrix[i, i]))
    for i in range(n):
        # a weight without curvature of its own must not divide by zero
        size[i] = np.sqrt(max(abs(matrix[i, i]), 1e-12 * largest, 1e-300))
    inverse = 1.0 / size
    for i in range(n):
        furthest = 0.0
        for j in range(n):
            furthest = max(furthest, abs(matrix[i, j]) * inverse[j] if j != i else 0.0)
        pull[i] = furthest
    return pull, size


@njit(cache=True, nogil=True)
def _pruned_extremes(costs: Any, sizes: Any, pruned: Any) -> Any:
    """The highest flip cost and the largest size of the pruned weights."""
    cost, size = -np.inf, 0.0
    for j in pruned:
        cost = max(cost, costs[j])
        size = max(size, sizes[j])
    return cost, size


@njit(cache=True, nogil=True)
def _best_partner(matrix: Any, values: Any, factor: Any, labels: Any, costs: Any, kept: int, pruned: Any) -> Any:
    """``K_p + 2 Q_up`` of the pruned weight of its group that ``kept`` is best swapped with, and its place."""
    best, place = -np.inf, -1
    if len(matrix):
        row, scale, own = matrix[kept], values[kept], labels[kept]
        for k in range(len(pruned)):
            j = pruned[k]
            gain = costs[j] + scale * row[j] * values[j]
            if gain > best and labels[j] == own:
                best, place = gain, k
    else:
        for k in range(len(pruned)):
            if labels[pruned[k]] == labels[kept]:
                gain = costs[pruned[k]] + coupling(matrix, values, factor, kept, pruned[k])
                if gain > best:
                    best, place = gain, k
    return best, place


@njit(cache=True, nogil=True)
def settle(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    pull: Any,
    size: Any,
    x: Any,
    costs: Any,
    threshold: float,
    kept: Any,
    pruned: Any,
) -> None:
    """Descend to an optimum over all single swaps: by candidates while they gain, then by all pairs.

    Every kept weight in turn is swapped with its best partner where that gains, until a whole round
    brought nothing. ``|2 Q_up| <= pull_u size_p`` tells which weights cannot gain. ``kept`` and ``pruned``
    are room for candidates.
    """
    descend(matrix, values, factor, labels, x, costs, threshold, kept, pruned)
    n = len(x)
    members = np.flatnonzero(x)
    highest, widest = _pruned_extremes(costs, size, members)
    in_vain, u, left = 0, 0, _MOST_SWAPS
    while in_vain < n and left > 0:
        in_vain += 1
        if not x[u] and costs[u] - highest - pull[u] * widest < 0.0:
            gain, place = _best_partner(matrix, values, factor, labels, costs, u, members)
            if place >= 0 and costs[u] - gain < -threshold:
                exchange(matrix, values, factor, u, members[place], x, costs)
                members[place] = u
                highest, widest = _pruned_extremes(costs, size, members)
                in_vain = 0
                left -= 1
        u = u + 1 if u + 1 < n else 0


@njit(cache=True, nogil=True)
def settle_rows(
    hessian: Any, values: Any, labels: Any, x: Any, costs: Any, thresholds: Any, width: int, groups: int
) -> None:
    """The same for many rows, ``(r, n)`` each, which share ``hessian[0]`` or have one each ``(r, n, n)``."""
    kept = np.empty((groups, width), dtype=np.int64)
    pruned = np.empty((groups, width), dtype=np.int64)
    factor = np.empty((0, 0))
    pull, size = reach(hessian[0])
    for row in range(len(x)):
        matrix = hessian[0]
        if len(hessian) > 1:
            matrix = hessian[row]
            pull, size = reach(matrix)
        strength = np.abs(values[row])
        settle(
            matrix,
            values[row],
            factor,
            labels,
            strength * pull,
            strength * size,
            x[row],
            costs[row],
            thresholds[row],
            kept,
            pruned,
        )


def forward_start(form: Form) -> NDArray[np.bool_]:
    """Greedy forward selection from the dense problem."""
    return np.asarray(_forward(*form.couplings, form.own, form.labels, form.num_pruned))


@njit(cache=True, nogil=True)
def _forward(matrix: Any, values: Any, factor: Any, own: Any, labels: Any, num_pruned: Any) -> Any:
    """Prune next what costs least, given everything pruned before."""
    x = np.zeros(len(own), dtype=np.bool_)
    costs = own.copy()
    left = num_pruned.copy()
    for _ in range(num_pruned.sum()):
        chosen = -1
        for i in range(len(own)):
            if not x[i] and left[labels[i]] > 0 and (chosen < 0 or costs[i] < costs[chosen]):
                chosen = i
        flip(matrix, values, factor, chosen, x, costs)
        left[labels[chosen]] -= 1
    return x


def settle_form(form: Form, x: NDArray[np.bool_], width: int = 8) -> None:
    """Descend from x, in place, to an optimum over all single swaps."""
    costs = flip_costs(*form.couplings, form.own, x)
    room = np.empty((2, max(1, len(form.num_pruned)), width), dtype=np.int64)
    settle(*form.couplings, form.labels, form.pull, form.size, x, costs, rounding(form), room[0], room[1])


def rounding(form: Form) -> float:
    """Energy changes below this are rounding."""
    return 1e-12 * float(np.abs(form.own).mean()) if len(form.own) else 0.0
