"""Which weights form the next block: the borderline ones of either kind, across the row.

Measured on real layers, blocks of neighbouring columns lose most of the gain: a block's fixed
quota binds. Borderline blocks hold the kept weights that cost least to prune and the pruned ones
that gain most if restored, and are chosen anew in every sweep, so they overlap.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

# added to the cost of a weight of the wrong kind; finite, since inf * 0 is not a number
_EXCLUDED = 1e280


def borderline_weights(
    costs: Float[Tensor, "r d"],
    x: Float[Tensor, "r d"],
    num_kept: int,
    num_pruned: int,
    misses: Int[Tensor, " r"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "r n"]:
    """Columns of one block per row: ``num_kept`` cheap kept weights and ``num_pruned`` dear pruned ones.

    Args:
        costs: flip costs ``K`` (what pruning a weight adds to the energy).
        x: current mask, 1 = pruned; each row must hold at least the asked number of either kind.
        misses: blocks in a row that brought nothing; such a row draws at random from the
            ``misses + 1`` times as many best candidates instead of taking the same block again.
        generator: source of that draw.
    """
    kept_side = _best(_barrier(x).add_(costs), num_kept, misses, generator)
    pruned_side = _best(_barrier(1 - x).sub_(costs), num_pruned, misses, generator)
    return torch.cat([kept_side, pruned_side], dim=1)


def _barrier(x: Float[Tensor, "r d"]) -> Float[Tensor, "r d"]:
    """Zero where x is 0, prohibitive where it is 1."""
    return x * _EXCLUDED


def _best(
    keys: Float[Tensor, "r d"], count: int, misses: Tensor | None, generator: torch.Generator | None
) -> Int[Tensor, "r count"]:
    """The ``count`` lowest finite keys, or a random choice of a wider pool of them."""
    if misses is None or not misses.any():
        return keys.topk(count, dim=1, largest=False, sorted=False).indices
    widest = min(count * (int(misses.max()) + 1), keys.shape[1])
    pool = keys.topk(widest, dim=1, largest=False)
    draw = torch.rand(pool.indices.shape, generator=generator).to(keys.device)
    place = torch.arange(widest, device=keys.device)
    allowed = (place < count * (misses[:, None] + 1)) & (pool.values < _EXCLUDED / 2)
    chosen = draw.masked_fill(~allowed, 2.0).topk(count, dim=1, largest=False).indices
    return pool.indices.gather(1, chosen)


def borderline_groups(
    costs: Float[Tensor, "r d"],
    x: Float[Tensor, "r d"],
    groups: Int[Tensor, "g m"],
    count: int,
    misses: Int[Tensor, " r"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "r n"]:
    """Columns of the ``count`` whole n:m groups with the most promising exchange, group by group.

    A group's promise is its lowest ``K_kept - K_pruned``, the change of its best swap without the
    coupling of the pair.

    Args:
        groups: ``(g, m)`` columns of each group.
    """
    shape = (len(costs), *groups.shape)
    cheapest = _barrier(x).add_(costs)[:, groups.flatten()].reshape(shape).amin(2)
    dearest = _barrier(1 - x).sub_(costs).neg_()[:, groups.flatten()].reshape(shape).amax(2)
    chosen = _best(cheapest - dearest, count, misses, generator)
    return groups[chosen].flatten(1)


def borderline_block(
    costs: Float[Tensor, "r d"],
    x: Float[Tensor, "r d"],
    groups: Int[Tensor, "g m"] | None,
    size: int,
    misses: Int[Tensor, " r"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "r n"], Int[Tensor, " n"]]:
    """One block of at most ``size`` weights in every row: its columns, and the number of each one's group.

    Whole n:m groups, so that each keeps its count; else half kept and half pruned weights in one group, fewer of a
    kind of which a row has fewer. n is 0 where no group fits or no row has weights.

    Args:
        groups: ``(g, m)`` columns of the n:m groups; ``None`` if all columns of a row are one group.
    """
    if groups is not None:
        count = min(size // groups.shape[1], len(groups))
        labels = torch.arange(count, device=costs.device).repeat_interleave(groups.shape[1])
        return borderline_groups(costs, x, groups, count, misses, generator), labels
    num_pruned = x.sum(1)
    kept_side = min(size // 2, int((x.shape[1] - num_pruned).min()))
    pruned_side = min(size - size // 2, int(num_pruned.min()))
    labels = torch.zeros(kept_side + pruned_side, dtype=torch.long, device=costs.device)
    return borderline_weights(costs, x, kept_side, pruned_side, misses, generator), labels
