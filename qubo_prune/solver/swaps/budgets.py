"""Moves that keep counts and linear budgets: the compiled search of problems with ``sum_i c_ri x_i >= C_r``.

An *elementary* move prunes u, restores p, or does both. A variable that is bound by a count moves with one of its own
group only; one that is not may move alone. A move changes the energy by ``K_u - K_p - 2 Q_up`` with the flip costs K,
and the sums by ``c_u - c_p``. Where budgets bind, most elementary moves that gain are not allowed, so *pairs* of them
are tried, one that raises the sums with one that lowers them: prune one and restore two, prune two and restore one, or
two swaps in two groups, as where each group is a choice of one out of several.

Candidates are ranked by reduced costs ``K_i - sum_r nu_r c_ri``, where ``nu`` are the multipliers of the budgets: near
the optimum a weight is the nearer to a change the closer its reduced cost is to what it is exchanged for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qubo_prune.problem.budgets import rounding_of
from qubo_prune.problem.penalty import budget_multipliers, cost_scales
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.solver.swaps.kernels import MATRIX_UP_TO, Form, below, coupling, flip, flip_costs, form_of, rounding

#: Candidates of each group and side, and elementary moves of either direction that are paired.
WIDTH, PAIRED = 12, 32
#: A step after which every variable may move.
_ANY = 2**62
# a descent ends by itself; the bound only stops a cycle within the rounding
_MOST_STEPS = 100_000


class Rules(NamedTuple):
    """The constraints of one problem as the kernels read them.

    Attributes:
        labels: ``(n,)`` class of each variable: its group, or for those without a count one more class, the last.
        alone: the number of that last class; -1 if every variable has a count.
        order: ``(n,)`` the variables sorted by class.
        begin: ``(classes + 1,)`` where each class begins in ``order``.
        costs: ``(k, n)``.
        scale: ``(k,)`` mean size of each budget's costs, for comparing them.
        least: ``(k,)`` what the sums must reach in these kernels: the budgets, less half of what rounding may take.
    """

    labels: NDArray[np.int64]
    alone: int
    order: NDArray[np.int64]
    begin: NDArray[np.int64]
    costs: NDArray[np.float64]
    scale: NDArray[np.float64]
    least: NDArray[np.float64]

    @classmethod
    def of(cls, problem: BlockQubo) -> Rules:
        """The constraints of a problem with budgets."""
        labels, groups = np.array(problem.labels), problem.num_groups
        alone = groups if (labels < 0).any() else -1
        labels[labels < 0] = groups
        order = np.argsort(labels, kind="stable")
        begin = np.searchsorted(labels[order], np.arange(groups + (alone >= 0) + 1))
        costs = np.array(problem.costs, order="C")
        least = problem.budget - rounding_of(costs) / 2
        return cls(labels, alone, order, begin, costs, cost_scales(problem), least)


class Place(NamedTuple):
    """Where a search is.

    Attributes:
        x: ``(n,)`` the assignment.
        flips: ``(n,)`` its flip costs.
        spare: ``(k,)`` by how much its sums exceed what they must reach.
        multipliers: ``(k,)`` by which candidates are ranked.
        free: ``(n,)`` the step from which each variable may move again.
        move: ``(4,)`` the move at hand: u, p and, of a pair, v, q; -1 for none.
    """

    x: NDArray[np.bool_]
    flips: NDArray[np.float64]
    spare: NDArray[np.float64]
    multipliers: NDArray[np.float64]
    free: NDArray[np.int64]
    move: NDArray[np.int64]


def place_of(form: Form, rules: Rules, x: NDArray[np.bool_], multipliers: NDArray[np.float64]) -> Place:
    """A search at x, which it will change, all sums taken anew."""
    flips = flip_costs(*form.couplings, form.own, x)
    spare = rules.costs @ x.astype(np.float64) - rules.least
    return Place(x, flips, spare, multipliers, np.zeros(len(x), np.int64), np.full(4, -1, np.int64))


class BudgetState:
    """One search: the assignment with its flip costs and sums, the best one seen, and a random stream."""

    def __init__(self, problem: BlockQubo, form: Form, start: NDArray[np.bool_], seed: int) -> None:
        self.form, self.rules, self.best = form, Rules.of(problem), start.copy()
        self.place = place_of(form, self.rules, start.copy(), budget_multipliers(problem, start))
        # energy change since the start, now and of the best
        self.energies = np.zeros(2)
        self.random = np.array([seed], dtype=np.uint64)
        self.threshold = rounding(form)

    @property
    def arguments(self) -> tuple[Any, Rules, Place]:
        """What every kernel takes first."""
        return self.form.couplings, self.rules, self.place

    def descend(self) -> None:
        """Take best moves until none of the candidates, and no elementary move at all, gains."""
        self.energies[0] += descend(*self.arguments, self.threshold)
        self.remember()

    def remember(self) -> None:
        """Keep x if it is the best seen."""
        if self.energies[0] < self.energies[1] - self.threshold:
            self.energies[1] = self.energies[0]
            self.best[:] = self.place.x

    def return_to_best(self) -> None:
        """Make x the best assignment again."""
        self.go_to(self.best, float(self.energies[1]))

    def go_to(self, x: NDArray[np.bool_], energy: float) -> None:
        """Go on from another feasible assignment, every sum taken anew.

        Args:
            x: the assignment.
            energy: its energy less that of the start.
        """
        anew = place_of(self.form, self.rules, x, self.place.multipliers)
        self.place.x[:], self.place.flips[:], self.place.spare[:] = anew.x, anew.flips, anew.spare
        self.energies[0] = energy


def settle_budgets(problem: BlockQubo, x: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Descend from a feasible x to an assignment that no allowed elementary move improves."""
    state = BudgetState(problem, form_of(problem, MATRIX_UP_TO), x, 0)
    state.descend()
    return state.place.x


@njit(cache=True, nogil=True)
def _coupled(c: Any, i: int, j: int) -> Any:
    """``2 Q_ij``; 0 where one of the two is no variable."""
    return coupling(c[0], c[1], c[2], i, j) if i >= 0 and j >= 0 else 0.0


@njit(cache=True, nogil=True)
def _change(c: Any, flips: Any, u: int, p: int) -> Any:
    """Energy change of an elementary move; -1 for no variable."""
    return (flips[u] if u >= 0 else 0.0) - (flips[p] if p >= 0 else 0.0) - _coupled(c, u, p)


@njit(cache=True, nogil=True)
def _cross(c: Any, u: int, p: int, v: int, q: int) -> Any:
    """What two elementary moves that share no variable change beside the sum of their changes."""
    return _coupled(c, u, v) + _coupled(c, p, q) - _coupled(c, u, q) - _coupled(c, p, v)


@njit(cache=True, nogil=True)
def _brings(costs: Any, r: int, u: int, p: int) -> Any:
    """By how much an elementary move raises sum r."""
    return (costs[r, u] if u >= 0 else 0.0) - (costs[r, p] if p >= 0 else 0.0)


@njit(cache=True, nogil=True)
def allowed(costs: Any, spare: Any, u: int, p: int, v: int, q: int) -> Any:
    """True if every budget is met after one elementary move, or two."""
    met = True
    for r in range(len(spare)):
        met = met and spare[r] + _brings(costs, r, u, p) + _brings(costs, r, v, q) >= 0.0
    return met


@njit(cache=True, nogil=True)
def _candidates(rules: Any, place: Any, now: int, width: int, found: Any, sizes: Any) -> None:
    """The kept and pruned variables of every class with the best reduced costs, all of them if there are no more."""
    keys = np.empty((found.shape[0], 2, width))
    sizes[:, :] = 0
    for i in range(len(place.x)):
        if place.free[i] > now:
            continue
        reduced = place.flips[i]
        for r in range(len(rules.costs)):
            reduced -= place.multipliers[r] * rules.costs[r, i]
        g, side = rules.labels[i], 1 if place.x[i] else 0
        key = -reduced if place.x[i] else reduced
        full = sizes[g, side] == width
        if full and key >= keys[g, side, width - 1]:
            continue
        at = width - 1 if full else sizes[g, side]
        sizes[g, side] = at + 1
        while at > 0 and keys[g, side, at - 1] > key:
            keys[g, side, at] = keys[g, side, at - 1]
            found[g, side, at] = found[g, side, at - 1]
            at -= 1
        keys[g, side, at] = key
        found[g, side, at] = i


@njit(cache=True, nogil=True)
def _list_move(key: float, change: float, u: int, p: int, keys: Any, moves: Any, size: int) -> Any:
    """Put a move in its place in a list sorted by key, if it belongs there; the new size."""
    most = len(keys)
    if size == most and key >= keys[most - 1, 0]:
        return size
    at = min(size, most - 1)
    while at > 0 and keys[at - 1, 0] > key:
        keys[at] = keys[at - 1]
        moves[at] = moves[at - 1]
        at -= 1
    keys[at, 0] = key
    keys[at, 1] = change
    moves[at, 0] = u
    moves[at, 1] = p
    return min(size + 1, most)


@njit(cache=True, nogil=True)
def _way(rules: Any, place: Any, u: int, p: int, change: float) -> Any:
    """Whether an elementary move raises the sums (0) or lowers them (1), and its reduced change."""
    raised, key = 0.0, change
    for r in range(len(rules.costs)):
        amount = _brings(rules.costs, r, u, p)
        raised += amount / rules.scale[r]
        key -= place.multipliers[r] * amount
    return 0 if raised >= 0.0 else 1, key


@njit(cache=True, nogil=True)
def best_move(c: Any, rules: Any, place: Any, now: int, width: int, paired: int) -> Any:
    """The best allowed move among the candidates, as ``place.move``; its energy change, inf if there is none.

    Args:
        now: variables i with ``place.free[i] > now`` take no part.
        width: candidates of each class and side.
        paired: how many elementary moves of either direction are paired; with 0, none are.
    """
    found = np.empty((len(rules.begin) - 1, 2, width), dtype=np.int64)
    sizes = np.empty((len(rules.begin) - 1, 2), dtype=np.int64)
    _candidates(rules, place, now, width, found, sizes)
    # the most promising moves that raise the sums, and those that lower them
    keys, moves, listed = np.empty((2, paired, 2)), np.empty((2, paired, 2), dtype=np.int64), np.zeros(2, np.int64)
    best, move = np.inf, place.move
    move[:] = -1
    for g in range(len(sizes)):
        # variables without a count move alone, too
        first = -1 if g == rules.alone else 0
        for a in range(first, sizes[g, 0]):
            u = found[g, 0, a] if a >= 0 else -1
            for b in range(first, sizes[g, 1]):
                p = found[g, 1, b] if b >= 0 else -1
                if u < 0 and p < 0:
                    continue
                change = _change(c, place.flips, u, p)
                if change < best and allowed(rules.costs, place.spare, u, p, -1, -1):
                    best = change
                    move[0], move[1], move[2], move[3] = u, p, -1, -1
                if paired > 0:
                    way, key = _way(rules, place, u, p, change)
                    listed[way] = _list_move(key, change, u, p, keys[way], moves[way], listed[way])
    return _best_pair(c, rules, place, keys, moves, listed, best)


@njit(cache=True, nogil=True)
def _best_pair(c: Any, rules: Any, place: Any, keys: Any, moves: Any, listed: Any, best: float) -> Any:
    """The same of pairs of one listed move that raises the sums and one that lowers them, if one is below ``best``."""
    move = place.move
    for a in range(listed[0]):
        u, p = moves[0, a]
        for b in range(listed[1]):
            v, q = moves[1, b]
            if (u >= 0 and u == v) or (p >= 0 and p == q):
                continue
            if not allowed(rules.costs, place.spare, u, p, v, q):
                continue
            change = keys[0, a, 1] + keys[1, b, 1] + _cross(c, u, p, v, q)
            if change < best:
                best = change
                move[0], move[1], move[2], move[3] = u, p, v, q
    return best


@njit(cache=True, nogil=True)
def make_move(c: Any, rules: Any, place: Any) -> None:
    """Flip what the move names, and bring flip costs and sums up to date."""
    for i in place.move:
        if i >= 0:
            sign = -1.0 if place.x[i] else 1.0
            flip(c[0], c[1], c[2], i, place.x, place.flips)
            for r in range(len(place.spare)):
                place.spare[r] += sign * rules.costs[r, i]


@njit(cache=True, nogil=True)
def change_of(c: Any, place: Any) -> Any:
    """Energy change of the move."""
    u, p, v, q = place.move
    return _change(c, place.flips, u, p) + _change(c, place.flips, v, q) + _cross(c, u, p, v, q)


@njit(cache=True, nogil=True)
def descend(c: Any, rules: Any, place: Any, threshold: float) -> Any:
    """Best moves of the candidates, then of all elementary ones, until none gains; the energy change."""
    largest = 0
    for g in range(len(rules.begin) - 1):
        largest = max(largest, rules.begin[g + 1] - rules.begin[g])
    total = 0.0
    for _ in range(_MOST_STEPS):
        change = best_move(c, rules, place, _ANY, min(WIDTH, largest), PAIRED)
        if not change < -threshold and largest > WIDTH:
            change = best_move(c, rules, place, _ANY, largest, 0)
        if not change < -threshold:
            break
        make_move(c, rules, place)
        total += change
    return total


@njit(cache=True, nogil=True)
def random_move(rules: Any, place: Any, random: Any) -> Any:
    """Draw an allowed move: an elementary one, or two where one alone would miss a budget; whether one was found."""
    x, move = place.x, place.move
    move[:] = -1
    for part in range(2):
        i = below(random, len(x))
        g, partner = rules.labels[i], -1
        if i == move[0] or i == move[1]:
            return False
        if g != rules.alone or below(random, 2) == 0:
            first, size = rules.begin[g], rules.begin[g + 1] - rules.begin[g]
            shift = below(random, size)
            for step in range(size):
                j = rules.order[first + (shift + step) % size]
                if x[j] != x[i] and j != move[0] and j != move[1]:
                    partner = j
                    break
            if partner < 0 and g != rules.alone:
                return False
        move[2 * part + (1 if x[i] else 0)] = i
        if partner >= 0:
            move[2 * part + (0 if x[i] else 1)] = partner
        if allowed(rules.costs, place.spare, move[0], move[1], move[2], move[3]):
            return True
    return False
