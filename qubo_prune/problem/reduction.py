"""A problem as a solver is given it, where its entries differ by more than floating point bears.

Two things are done, and only where a problem needs them, so that all others reach the solver as they are:

* Variables that are **decided** by entries which outweigh the others are taken out. In a group that prunes m weights,
  i stays if at least m others are cheaper to prune whatever the rest does, and is pruned if at most m are (Hammer,
  Hansen, Simeone 1984, for the case without counts). What is left has the same optima.
* What is left is **scaled** by a power of two, which changes no digit, so that its largest entry is near 1.

The way back is exact: assignments get their decided variables again, and dispatch computes every energy anew from the
problem as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from qubo_prune.problem.qubo import BlockQubo, FactorForm
from qubo_prune.problem.repair import repair

#: A problem is scaled if its largest entry is not between these.
USUAL = (2.0**-40, 2.0**40)
#: Variables are decided if the largest entry is so many times a low ``|Q_ii|``, which an eighth of them is below.
WIDE = 2.0**32
#: ... or if one ``|Q_ii|`` is so many times all other entries together.
OUTWEIGHS = 2.0**16
#: Larger problems in factor form are scaled only.
_MOST_DENSE = 4096
#: Relative rounding of sums of entries, with room to spare.
_ROUNDING = 2.0**-48
#: Swaps of a careful descent for each variable, and pairs that it looks at exactly in a round.
_SWAPS, _PAIRS = 10, 4096


@dataclass(frozen=True, eq=False)
class Reduction:
    """A problem as it was, as a solver is given it, and the way back.

    Attributes:
        original: as it was.
        problem: without the decided variables, scaled.
        value: ``(n,)`` value of each decided variable, -1 for the others.
        unit: energies of ``problem`` are in units of so much.
        base: energy that the decided variables have by themselves, offset included.
    """

    original: BlockQubo
    problem: BlockQubo
    value: NDArray[np.int8]
    unit: float
    base: float

    @property
    def num_decided(self) -> int:
        """Variables that were taken out."""
        return int((self.value >= 0).sum())

    def forth(self, x: Bool[np.ndarray, " n"]) -> NDArray[np.bool_]:
        """An assignment without its decided variables; repaired where it had them otherwise."""
        return repair(self.problem, x[self.value < 0])

    def back(self, points: Bool[np.ndarray, "k m"]) -> NDArray[np.bool_]:
        """Assignments of the original problem."""
        whole = np.tile(self.value == 1, (len(points), 1))
        whole[:, self.value < 0] = points
        return whole

    def energy(self, energy: float) -> float:
        """An energy, or a bound, in units of the original problem."""
        return energy * self.unit + self.base


def reduced(problem: BlockQubo, decide: bool = True) -> Reduction | None:
    """The problem as a solver is to be given it; ``None`` if that is the problem as it is.

    Args:
        problem: as it was.
        decide: take out variables; without it the problem is scaled only, as lists of its best assignments need it.
    """
    if not problem.num_variables:
        return None
    largest = _largest(problem)
    # what entries decide by themselves is not told where a budget may ask for something else
    wide = decide and largest > 0 and not problem.num_budgets and _wide(problem, largest)
    if not wide and (largest == 0 or USUAL[0] <= largest <= USUAL[1]):
        return None
    value = np.full(problem.num_variables, -1, dtype=np.int8)
    if wide:
        value = decided(problem.dense(), None if problem.free else problem.labels, problem.num_pruned)
    left, base = _without(problem, value)
    return _scaled(problem, left, value, base)


def _largest(problem: BlockQubo) -> float:
    """An entry of that size at least is in Q, and none that is much larger."""
    if isinstance(problem.q, FactorForm):
        factor = problem.q.factor
        return max(float(np.abs(problem.q.diagonal).max()), float((factor * factor).sum(axis=1).max(initial=0.0)))
    return max(float(problem.q.max()), -float(problem.q.min()))


def _wide(problem: BlockQubo, largest: float) -> bool:
    """True if the entries differ by so much that sums of them lose what matters."""
    if problem.num_variables > _MOST_DENSE:
        return False
    known = np.abs(problem.diagonal)
    if not known.any():
        known = np.abs(problem.dense()).ravel()
    known = known[known > 0]
    low = float(np.partition(known, len(known) // 8)[len(known) // 8]) if len(known) else largest
    if largest > WIDE * low:
        return True
    rest = float(known.sum() - known.max()) if len(known) else 0.0
    return len(known) > 1 and largest > OUTWEIGHS * rest and _outweighs(problem)


def _outweighs(problem: BlockQubo) -> bool:
    """True if one ``|Q_ii|`` is ``OUTWEIGHS`` times all other entries together."""
    highest = float(np.abs(problem.diagonal).max())
    return highest > OUTWEIGHS * (float(np.abs(problem.dense()).sum()) - highest)


def decided(q: Float[np.ndarray, "n n"], labels: NDArray[np.int64] | None, counts: tuple[int, ...]) -> NDArray[np.int8]:
    """The value that each variable has in every optimum, where its flip cost tells it; -1 where not.

    Whatever the other free variables are, the flip cost of i is between ``low_i`` and ``high_i``, its own entry and
    the sum of its negative or positive couplings. Pruned i and kept j are better exchanged if ``low_i > high_j``.
    """
    value = np.full(len(q), -1, dtype=np.int8)
    left = np.array(counts, dtype=np.int64)
    own, couplings = np.diagonal(q).copy(), 2 * q
    np.fill_diagonal(couplings, 0.0)
    while True:
        free = np.flatnonzero(value < 0)
        among = couplings[np.ix_(free, free)]
        slack = _ROUNDING * (np.abs(own[free]) + np.abs(couplings[free]).sum(axis=1))
        low = own[free] + np.minimum(among, 0).sum(axis=1) - slack
        high = own[free] + np.maximum(among, 0).sum(axis=1) + slack
        new = np.full(len(free), -1, dtype=np.int8)
        if labels is None:
            new[low > 0], new[high < 0] = 0, 1
        else:
            for group in range(len(left)):
                inside = np.flatnonzero(labels[free] == group)
                new[inside] = _decided_of(low[inside], high[inside], int(left[group]))
        fixed = free[new >= 0]
        if not len(fixed):
            return value
        value[fixed] = new[new >= 0]
        pruned = fixed[value[fixed] == 1]
        own += couplings[:, pruned].sum(axis=1)
        if labels is not None:
            left -= np.bincount(labels[pruned], minlength=len(left))


def _decided_of(low: NDArray[np.float64], high: NDArray[np.float64], count: int) -> NDArray[np.int8]:
    """The value that each free variable of one group, of which ``count`` are pruned, has in every optimum; else -1."""
    value = np.full(len(low), -1, dtype=np.int8)
    cheaper = np.searchsorted(np.sort(high), low, side="left")
    dearer = len(low) - np.searchsorted(np.sort(low), high, side="right")
    value[cheaper >= count] = 0
    value[dearer >= len(low) - count] = 1
    return value


def _without(problem: BlockQubo, value: NDArray[np.int8]) -> tuple[BlockQubo, float]:
    """The problem of the variables that are not decided, without its constant, and the constant."""
    if not (value >= 0).any():
        return problem.replaced(problem.q), problem.offset
    q, free, pruned = problem.dense(), value < 0, value == 1
    rest = q[np.ix_(free, free)].copy()
    moved = [math.fsum([q[i, i], *(2 * q[i, pruned]).tolist()]) for i in np.flatnonzero(free)]
    np.fill_diagonal(rest, moved)
    base = math.fsum([problem.offset, *q[np.ix_(pruned, pruned)].ravel().tolist()])
    if problem.free:
        return BlockQubo(rest, None), base
    gone = np.bincount(problem.labels[pruned], minlength=problem.num_groups)
    return BlockQubo(rest, (np.array(problem.num_pruned) - gone).tolist(), 0.0, problem.labels[free]), base


def _scaled(original: BlockQubo, left: BlockQubo, value: NDArray[np.int8], base: float) -> Reduction:
    largest = _largest(left) if left.num_variables else 0.0
    if largest == 0 or USUAL[0] <= largest <= USUAL[1]:
        return Reduction(original, left, value, 1.0, base)
    # an even power, of which a factor takes half; two steps, since 2^-exponent may be no float
    exponent = 2 * ((math.frexp(largest)[1] - 1) // 2)
    if isinstance(left.q, FactorForm):
        form = FactorForm(np.ldexp(left.q.diagonal, -exponent), np.ldexp(left.q.factor, -exponent // 2))
        return Reduction(original, left.replaced(form), value, math.ldexp(1.0, exponent), base)
    return Reduction(original, left.replaced(np.ldexp(left.q, -exponent)), value, math.ldexp(1.0, exponent), base)


def careful_swaps(problem: BlockQubo, x: Bool[np.ndarray, " n"]) -> NDArray[np.bool_]:
    """Descend to an optimum over all single swaps, each change summed without rounding where rounding could decide it.

    For problems whose entries differ widely: there a sum that a search keeps up to date forgets the small ones.
    """
    q, x = problem.dense(), x.copy()
    for _ in range(_SWAPS * problem.num_variables):
        swap = _gaining_swap(q, problem.labels, x)
        if swap is None:
            break
        x[swap[0]], x[swap[1]] = True, False
    return x


def _gaining_swap(q: NDArray[np.float64], labels: NDArray[np.int64], x: NDArray[np.bool_]) -> tuple[int, int] | None:
    """A kept and a pruned variable of one group whose exchange lowers the energy; the best, where rounding allows."""
    kept, pruned = np.flatnonzero(~x), np.flatnonzero(x)
    if not len(kept) or not len(pruned):
        return None
    active = 2 * q[:, pruned]
    active[pruned, np.arange(len(pruned))] = 0.0
    costs, sizes = np.diagonal(q) + active.sum(axis=1), np.abs(np.diagonal(q)) + np.abs(active).sum(axis=1)
    change = costs[kept, None] - costs[None, pruned] - 2 * q[np.ix_(kept, pruned)]
    error = _ROUNDING * (sizes[kept, None] + sizes[None, pruned])
    change[labels[kept, None] != labels[None, pruned]] = np.inf
    first, second = divmod(int((change + error).argmin()), len(pruned))
    if change[first, second] + error[first, second] < 0:
        return int(kept[first]), int(pruned[second])
    # what matters is measured by the terms that make up this energy
    least = -(2.0**-50) * float(np.abs(q[np.ix_(pruned, pruned)]).sum())
    doubtful = np.argwhere(change - error < 0)
    order = np.argsort(change[doubtful[:, 0], doubtful[:, 1]], kind="stable")[:_PAIRS]
    for a, b in doubtful[order].tolist():
        u, p = int(kept[a]), int(pruned[b])
        if _change(q, pruned[pruned != p], u, p) < least:
            return u, p
    return None


def _change(q: NDArray[np.float64], others: NDArray[np.int64], u: int, p: int) -> float:
    """The energy change of pruning u and restoring p beside the other pruned ones, rounded once."""
    terms = [q[u, u], -q[p, p], *(2 * q[u, others]).tolist(), *(-2 * q[p, others]).tolist()]
    return math.fsum(terms)


def wide(problem: BlockQubo) -> bool:
    """True if swaps of a problem are to be checked by :func:`careful_swaps`."""
    return bool(problem.num_variables) and not problem.num_budgets and _wide(problem, _largest(problem))
