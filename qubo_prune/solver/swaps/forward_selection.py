"""Greedy forward selection: prune next what costs least, given everything pruned before."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.problem.qubo import BlockBatch
from qubo_prune.solver.swaps.couplings import Couplings, of_batch


def forward_selection(batch: BlockBatch, dtype: torch.dtype = torch.float32) -> Bool[Tensor, "r n"]:
    """A feasible assignment of every row, built one weight at a time from the dense row.

    Each step prunes the weight with the lowest flip cost ``Q_ii + 2 sum_{j pruned} Q_ij`` among the
    groups whose count is not met. O(n) per step and row.
    """
    nothing = torch.zeros_like(batch.values, dtype=torch.bool)
    couplings, costs, _ = of_batch(batch, nothing, dtype)
    return select_forward(couplings, costs, batch.labels, batch.num_pruned)


def select_forward(
    couplings: Couplings,
    costs: Float[Tensor, "r n"],
    labels: Int[Tensor, " n"],
    num_pruned: Int[Tensor, "r g"],
) -> Bool[Tensor, "r n"]:
    """The selection itself, from couplings and the flip costs at ``x = 0``."""
    x = torch.zeros_like(costs, dtype=torch.bool)
    left = num_pruned.clone()
    buffer = torch.empty_like(costs)
    closed = (left == 0)[:, labels]
    for _ in range(int(num_pruned.sum(1).max()) if len(x) else 0):
        chosen = costs.masked_fill(x | closed, torch.inf).argmin(1)
        open_rows = left.sum(1) > 0
        own = costs.gather(1, chosen[:, None])
        moved = couplings.rows(chosen, buffer)
        costs += moved * open_rows[:, None]
        costs.scatter_(1, chosen[:, None], own)
        x.scatter_(1, chosen[:, None], open_rows[:, None] | x.gather(1, chosen[:, None]))
        left.scatter_add_(1, labels[chosen][:, None], -open_rows.long()[:, None])
        closed = (left == 0)[:, labels]
    return x
