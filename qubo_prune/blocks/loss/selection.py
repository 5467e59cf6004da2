"""Which weights form the blocks of a step at the level of the loss.

A block is made of pairs, a kept weight that is cheap to prune and a pruned one that gains if restored,
each pair within one group of the budget, so that any number of them can be swapped. Weights are named
by their place in the matrices of the layers that share a budget, laid out one after another (the *pool*).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.hessian.gradients import Entries, Moments
from qubo_prune.masks.keep import Pattern
from qubo_prune.models.layers import Layer


@dataclass(frozen=True, eq=False)
class Pairs:
    """Candidates for a swap, best first; entry k of each field belongs to pair k.

    Attributes:
        kept: place of the kept weight in the pool.
        pruned: place of the pruned weight.
        group: number of the budget group that both belong to.
        prune_cost: predicted energy of pruning the kept weight, alone.
        restore_cost: predicted energy of restoring the pruned weight, alone; negative is good.
    """

    kept: Int[Tensor, " p"]
    pruned: Int[Tensor, " p"]
    group: Int[Tensor, " p"]
    prune_cost: Float[Tensor, " p"]
    restore_cost: Float[Tensor, " p"]

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def cost(self) -> Float[Tensor, " p"]:
        """Of the swaps."""
        return self.prune_cost + self.restore_cost

    def take(self, chosen: Any) -> Pairs:
        """Some of them, by a slice or by indices."""
        return Pairs(
            self.kept[chosen],
            self.pruned[chosen],
            self.group[chosen],
            self.prune_cost[chosen],
            self.restore_cost[chosen],
        )

    def best(self, most: int) -> Pairs:
        """The ``most`` cheapest."""
        return self.take(self.cost.topk(min(most, len(self)), largest=False).indices)

    @property
    def gain(self) -> float:
        """By how much the swaps that pay lower the energy, each taken alone."""
        return -float(self.cost.clamp(max=0).sum())


def flip_costs(
    moments: Moments,
    value: Float[Tensor, "o i"],
    keep: Bool[Tensor, "o i"],
    caution: float,
    gradient_scale: float = 1.0,
    damping: float = 0.0,
) -> Float[Tensor, "o i"]:
    """What it costs to flip each weight alone: pruning a kept one, restoring a pruned one.

    ``-+ c g u + 1/2 u^2 (H_ii + damping d_ii) + caution |u| se(g)``, with the first sign for kept weights and d
    the factored curvature of the moments; the last term is the price of not knowing g exactly, in
    standard errors of the predicted change.
    """
    slope = gradient_scale * moments.mean * value
    stiffness = moments.square + damping * moments.factored if damping else moments.square
    curvature = stiffness * value * value / 2
    return torch.where(keep, -slope, slope) + curvature + caution * moments.uncertainty * value.abs()


def salience_costs(moments: Moments, value: Float[Tensor, "o i"], keep: Bool[Tensor, "o i"]) -> Float[Tensor, "o i"]:
    """iCBS's own order: kept weights of the lowest, pruned ones of the highest ``|u g|`` come first."""
    salience = (moments.mean * value).abs()
    return torch.where(keep, salience, -salience)


def best_pairs(
    costs: Float[Tensor, "o i"], keep: Bool[Tensor, "o i"], eligible: Bool[Tensor, "o i"], pattern: Pattern, most: int
) -> Pairs:
    """The ``most`` cheapest pairs of a layer: in each group the k-th best kept with the k-th best pruned weight."""
    groups = pattern.groups(torch.arange(costs.numel(), device=costs.device).reshape(costs.shape))
    flat, kept = pattern.groups(costs), pattern.groups(keep & eligible)
    pruned = pattern.groups(~keep & eligible)
    width = min(most, flat.shape[1])
    kept_cost, kept_at = flat.masked_fill(~kept, torch.inf).topk(width, dim=1, largest=False)
    pruned_cost, pruned_at = flat.masked_fill(~pruned, torch.inf).topk(width, dim=1, largest=False)
    real = torch.isfinite(kept_cost + pruned_cost)
    pairs = Pairs(
        groups.gather(1, kept_at)[real],
        groups.gather(1, pruned_at)[real],
        real.nonzero()[:, 0],
        kept_cost[real],
        pruned_cost[real],
    )
    return pairs.best(most)


@dataclass(frozen=True, eq=False)
class Pool:
    """Layers that share a budget: one, or all of them if weights may move between layers."""

    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """For reports."""
        return self.layers[0].name if len(self.layers) == 1 else f"{len(self.layers)} layers"

    @property
    def starts(self) -> list[int]:
        """Where each layer's places begin, and where the last one's end."""
        starts = [0]
        for layer in self.layers:
            starts.append(starts[-1] + layer.shape[0] * layer.shape[1])
        return starts

    def entries(self, places: Int[Tensor, " n"]) -> list[tuple[Entries, Int[Tensor, " k"]]]:
        """The weights at these places by layer, each with the positions that they have in ``places``."""
        starts, found = self.starts, []
        for number, layer in enumerate(self.layers):
            chosen = ((places >= starts[number]) & (places < starts[number + 1])).nonzero()[:, 0]
            if len(chosen):
                flat = places[chosen] - starts[number]
                found.append((Entries(layer, flat // layer.shape[1], flat % layer.shape[1]), chosen))
        return found


@dataclass(frozen=True, eq=False)
class Block:
    """Weights that are decided together.

    Attributes:
        pool: the layers they are from.
        places: ``(n,)`` in the pool, grouped by layer.
        parts: the same by layer, in the order of ``places``.
        x: ``(n,)`` current assignment, True = pruned.
        labels: ``(n,)`` budget group, 0 to g-1.
        expected: gain that the selection saw in it.
    """

    pool: Pool
    places: Int[Tensor, " n"]
    parts: tuple[Entries, ...]
    x: Bool[Tensor, " n"]
    labels: Int[Tensor, " n"]
    expected: float

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def of(cls, pool: Pool, pairs: Pairs) -> Block:
        """The block of some pairs."""
        places = torch.cat([pairs.kept, pairs.pruned])
        x = torch.arange(len(places), device=places.device) >= len(pairs)
        _, labels = torch.unique(torch.cat([pairs.group, pairs.group]), return_inverse=True)
        found = pool.entries(places)
        order = torch.cat([positions for _, positions in found])
        parts = tuple(entries for entries, _ in found)
        return cls(pool, places[order], parts, x[order], labels[order], pairs.gain)


@dataclass
class Tabu:
    """The last blocks of a pool, whole, oldest first: weights that rest for a while.

    Attributes:
        most: weights it holds at most.
        blocks: places of the resting ones.
    """

    most: int
    blocks: deque[Tensor] = field(default_factory=deque)

    def add(self, places: Int[Tensor, " n"]) -> None:
        """Let a block rest; the oldest ones come free as far as the limit asks."""
        self.blocks.append(places)
        while self.blocks and sum(map(len, self.blocks)) > self.most:
            self.blocks.popleft()

    def release(self) -> bool:
        """Free the oldest block; False if there is none."""
        if not self.blocks:
            return False
        self.blocks.popleft()
        return True

    def resting(self, size: int, device: torch.device) -> Bool[Tensor, " size"]:
        """Which places of the pool rest."""
        mask = torch.zeros(size, dtype=torch.bool, device=device)
        for places in self.blocks:
            mask[places] = True
        return mask
