"""Tabu search of many rows in step, in torch: on an accelerator, thousands of them at once.

It makes the moves of the compiled form one by one: the same starts, candidates, ties (by position) and random
numbers, in double precision, so that the answers are the same but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.clock import Deadline
from qubo_prune.problem.qubo import BlockBatch

# entries of a part's arrays (searches times variables): these fit into a processor's cache, those fill an accelerator
_ENTRIES_CPU, _ENTRIES = 2**20, 2**26
# steps between two looks at the clock
_CHUNK = 100
# constants of splitmix64, as signed numbers: torch multiplies modulo 2^64 all the same
_STRIDE, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


@dataclass(frozen=True)
class Rules:
    """The settings of the search, as in ``Tabu``; ``steps`` of each search in all."""

    steps: int
    candidates: int
    tenure: tuple[int, int]
    patience: int
    kick: int


def rows_at_once(batch: BlockBatch, starts: int) -> int:
    """How many rows go through the search together, so that its memory is bounded."""
    entries = _ENTRIES_CPU if batch.values.device.type == "cpu" else _ENTRIES
    return max(1, entries // max(1, starts * batch.num_variables))


def search(
    batch: BlockBatch,
    starts: Bool[Tensor, "r s n"],
    seeds: Int[Tensor, "r s"],
    thresholds: Float[Tensor, " r"],
    rules: Rules,
    clock: Deadline,
) -> Bool[Tensor, "r s n"]:
    """The best assignment of each of s searches of each row.

    Args:
        batch: the rows, every one with a swap to make.
        starts: where the searches begin, feasible.
        seeds: of each search's random numbers.
        thresholds: energy changes of a row below this are rounding.
        rules: of the search.
        clock: ends it.
    """
    state = Searches(batch, starts.flatten(0, 1), seeds.flatten(), thresholds)
    wait, free = rules.patience + 1, always_free(batch, rules)
    for step in range(1, rules.steps + 1):
        if step % _CHUNK == 1 and clock.expired:
            break
        take_best_swap(state, step, rules, free)
        wait -= 1
        # a look at the device's numbers waits for it, so only where a search can have run out of patience
        if wait <= 0:
            restart(state, step, rules)
            wait = rules.patience + 1 - int(state.misses.max())
    return state.best.view(starts.shape)


class Searches:
    """All searches of some rows: assignments, flip costs, the best seen, and random numbers, one row each."""

    def __init__(self, batch: BlockBatch, x: Bool[Tensor, "k n"], seeds: Int[Tensor, " k"], thresholds: Tensor) -> None:
        each = len(x) // batch.num_rows
        self.row = torch.arange(batch.num_rows, device=x.device).repeat_interleave(each)
        self.hessian, self.shared = batch.hessian.double(), batch.shared
        self.values = batch.values.double()[self.row]
        self.own = self.values**2 * self._diagonal() / 2 + batch.linear.double()[self.row]
        self.threshold = thresholds[self.row]
        self.members, self.padding = _members(batch.labels, batch.num_groups)
        self.x, self.best = x.clone(), x.clone()
        self.costs = self._flip_costs()
        self.best_costs = self.costs.clone()
        self.energy = torch.where(x, self.costs + self.own, 0.0).sum(1) / 2
        self.lowest = self.energy.clone()
        # the step from which on a weight may move, and steps without a new best
        self.free = torch.zeros_like(x, dtype=torch.int64)
        self.misses = torch.zeros_like(seeds)
        self.random = seeds.clone()

    def _diagonal(self) -> Tensor:
        diagonal = self.hessian.diagonal(dim1=-2, dim2=-1)
        return diagonal if self.shared else diagonal[self.row]

    def _flip_costs(self) -> Float[Tensor, "k n"]:
        """Of all searches, from scratch; no Hessian is copied for the searches of one row."""
        inside = self.values * self.x
        if self.shared:
            product = inside @ self.hessian
        else:
            product = (inside.view(len(self.hessian), -1, inside.shape[1]) @ self.hessian).view(inside.shape)
        return self.own + self.values * (product - self._diagonal() * inside)

    def rows_of(self, some: Tensor, chosen: Int[Tensor, " k"]) -> Float[Tensor, "k n"]:
        """One row of the Hessian per search."""
        return self.hessian[chosen] if self.shared else self.hessian[self.row[some], chosen]

    def couplings(self, some: Tensor, first: Int[Tensor, "k ..."], second: Int[Tensor, "k ..."]) -> Tensor:
        """``2 Q_ij`` of pairs, in the order in which the compiled form multiplies."""
        number = some.view(-1, *[1] * (first.ndim - 1))
        between = self.hessian[first, second] if self.shared else self.hessian[self.row[number], first, second]
        return self.values[number, first] * between * self.values[number, second]

    def below(self, some: Tensor, most: int) -> Int[Tensor, " k"]:
        """A random number from 0 to most - 1 for each of these searches (splitmix64)."""
        z = self.random[some] + _STRIDE
        self.random[some] = z
        z = (z ^ _shifted(z, 30)) * _FIRST
        z = (z ^ _shifted(z, 27)) * _SECOND
        z = z ^ _shifted(z, 31)
        return (_shifted(z, 11).double() * 2.0**-53 * most).long()

    def swap(self, some: Tensor, kept: Tensor, pruned: Tensor, change: Tensor) -> None:
        """Prune ``kept`` and restore ``pruned`` in these searches, which changes the energy so."""
        between = self.couplings(some, kept, pruned)
        values = self.values[some]
        up, down = self.values[some, kept][:, None], self.values[some, pruned][:, None]
        costs = self.costs[some]
        own_kept, own_pruned = self.costs[some, kept] - between, self.costs[some, pruned] + between
        costs += (up * self.rows_of(some, kept) - down * self.rows_of(some, pruned)) * values
        self.costs[some] = costs
        self.costs[some, kept], self.costs[some, pruned] = own_kept, own_pruned
        self.x[some, kept], self.x[some, pruned] = True, False
        self.energy[some] += change


def _shifted(z: Int[Tensor, " k"], places: int) -> Int[Tensor, " k"]:
    """Shifted to the right as an unsigned number."""
    return (z >> places) & ((1 << (64 - places)) - 1)


def _members(labels: Int[Tensor, " n"], num_groups: int) -> tuple[Int[Tensor, "g m"], Bool[Tensor, "g m"]]:
    """The variables of each group in their order, filled up to one length; which places are filled up."""
    groups = [(labels == group).nonzero()[:, 0] for group in range(num_groups)]
    members = torch.nn.utils.rnn.pad_sequence(groups, batch_first=True, padding_value=-1)
    return members.clamp(min=0), members < 0


def candidates(
    state: Searches, some: Tensor, now: int, width: int
) -> tuple[Int[Tensor, "k g w"], Float[Tensor, "k g w"], Int[Tensor, "k g w"], Float[Tensor, "k g w"]]:
    """The ``width`` cheapest kept and dearest pruned weights of each group that may move, and their keys.

    Keys are costs of kept weights and costs times -1 of pruned ones; of missing candidates they are infinite.
    """
    members = state.members
    x, costs = state.x[some][:, members], state.costs[some][:, members]
    barred = (state.free[some][:, members] > now) | state.padding
    found: list[Tensor] = []
    for keys in (costs.masked_fill(x | barred, torch.inf), (-costs).masked_fill(~x | barred, torch.inf)):
        places, least = [], []
        for _ in range(width):
            # the first of several lowest ones, as the compiled form takes them
            place = keys.argmin(2, keepdim=True)
            least.append(keys.gather(2, place))
            keys.scatter_(2, place, torch.inf)
            places.append(members.expand(len(keys), -1, -1).gather(2, place))
        found += [torch.cat(places, 2), torch.cat(least, 2)]
    return found[0], found[1], found[2], found[3]


def always_free(batch: BlockBatch, rules: Rules) -> bool:
    """True if a group of every row has more weights of either kind than can rest at once.

    Then every search has a swap in every step, and nobody need ask the device, which takes a wait.
    """
    highest = rules.tenure[1]
    # one pair a step, and those of one restart at most
    resting = highest + rules.kick if rules.patience >= highest else None
    sizes = torch.bincount(batch.labels, minlength=batch.num_groups)
    fewest = torch.minimum(batch.num_pruned, sizes - batch.num_pruned).amax(1).min()
    return resting is not None and int(fewest) > resting


def take_best_swap(state: Searches, now: int, rules: Rules, free: bool) -> None:
    """Every search makes the best swap of its candidates, whose two weights then rest for a while.

    ``free`` says that every one has a swap, see :func:`always_free`.
    """
    every = torch.arange(len(state.x), device=state.x.device)
    width = rules.candidates
    kept, cost, pruned, gain = candidates(state, every, now, width)
    first, second = kept[..., :, None].expand(-1, -1, -1, width), pruned[..., None, :].expand(-1, -1, width, -1)
    changes = (cost[..., :, None] + gain[..., None, :] - state.couplings(every, first, second)).flatten(1)
    pair = changes.argmin(1, keepdim=True)
    change = changes.gather(1, pair)[:, 0]
    state.misses += 1
    some = every if free else change.isfinite().nonzero()[:, 0]
    if not len(some):
        return
    u, p = (side.flatten(1).gather(1, pair)[some, 0] for side in (first, second))
    state.swap(some, u, p, change[some])
    lowest, highest = rules.tenure
    for moved in (u, p):
        state.free[some, moved] = now + lowest + state.below(some, highest - lowest + 1) + 1
    better = state.energy < state.lowest - state.threshold
    state.lowest = torch.where(better, state.energy, state.lowest)
    state.best = torch.where(better[:, None], state.x, state.best)
    state.best_costs = torch.where(better[:, None], state.costs, state.best_costs)
    state.misses.masked_fill_(better, 0)


def restart(state: Searches, now: int, rules: Rules) -> None:
    """Searches that have run out of patience return to their best assignment and disturb it."""
    some = (state.misses > rules.patience).nonzero()[:, 0]
    if not len(some):
        return
    state.misses[some] = 0
    state.x[some] = state.best[some]
    state.costs[some] = state.best_costs[some]
    state.energy[some] = state.lowest[some]
    for _ in range(rules.kick):
        _swap_at_random(state, some, now, rules)


def _swap_at_random(state: Searches, some: Tensor, now: int, rules: Rules) -> None:
    """Swap a random pair of the candidates of a random group of each of these searches."""
    kept, cost, pruned, gain = candidates(state, some, now, rules.candidates)
    group = state.below(some, kept.shape[1])
    number = torch.arange(len(some), device=some.device)
    one, other = state.below(some, rules.candidates), state.below(some, rules.candidates)
    possible = (cost[number, group, one].isfinite() & gain[number, group, other].isfinite()).nonzero()[:, 0]
    number, group, one, other, some = number[possible], group[possible], one[possible], other[possible], some[possible]
    if not len(some):
        return
    u, p = kept[number, group, one], pruned[number, group, other]
    change = state.costs[some, u] - state.costs[some, p] - state.couplings(some, u, p)
    state.swap(some, u, p, change)
    free = now + rules.tenure[1] + 1
    state.free[some, u], state.free[some, p] = free, free
