"""SparseGPT: masks chosen in a sweep that updates the columns behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.hessian.linalg import (
    inverse_factor,
    with_damping,
)
from qubo_prune.masks.keep import keep_highest
from qubo_prune.methods.base import LayerTask, Masked, PublishedMethod, Traits, Update


@dataclass(frozen=True)
class SparseGpt(PublishedMethod):
    """Frantar & Alistarh, "SparseGPT" (arXiv 2301.00774): masks chosen while the columns are swept.

    In each slab of 128 columns, just before they are swept, the weights with the highest
    ``w_ij^2 / U_jj^2`` stay, ``U'U = H^-1``; with ``n:m`` in each group of m columns. A slab of the
    pattern ``layer`` has one threshold; here the slabs' counts add up to the pattern's exactly, and with
    the pattern ``row`` so do those of every row.
    """

    traits = Traits("SparseGPT", updates=True, source="Frantar & Alistarh, arXiv 2301.00774")

    def masked(self, task: LayerTask) -> Masked:
        """See :class:`PublishedMethod`."""
        pattern, (d_out, d_in) = task.pattern, task.weight.shape
        step = pattern.of or SLAB
        slab = max(1, SLAB // step) * step
        total = pattern.num_kept((d_out, d_in), task.density)
        total = total // max(1, d_out) if pattern.name == "row" else total

        def select(first: int, weight: Tensor, own: Tensor) -> Tensor:
            saliency = (weight / own).square()
            if pattern.of:
                return keep_highest(saliency, pattern, task.density)
            count = _up_to(total, first + weight.shape[1], d_in) - _up_to(total, first, d_in)
            size = weight.shape[1] if pattern.name == "row" else weight.numel()
            return keep_highest(saliency, pattern, count / size)

        dense = task.alive_weight().double()
        (updated, keep), _ = with_damping(
            task.gram,
            task.damping,
            lambda hessian: sweep(dense, inverse_factor(hessian), select, slab, step),
            task.notes,
        )
        return keep, updated


def _up_to(total: int, column: int, d_in: int) -> int:
    """The part of a count that falls on the columns before one, rounded."""
    return (2 * total * column + d_in) // (2 * d_in)


#: Columns after which SparseGPT's sweep carries its errors to the rest of the matrix.
SLAB = 128


def sweep(
    weight: Float[Tensor, "r d"],
    upper: Float[Tensor, "d d"],
    choose: Callable[[int, Tensor, Tensor], Tensor],
    slab: int = SLAB,
    step: int = SLAB,
) -> tuple[Float[Tensor, "r d"], Bool[Tensor, "r d"]]:
    """SparseGPT's pass over the columns (Frantar & Alistarh, arXiv 2301.00774, algorithm 1).

    A pruned weight of column j moves the later ones of its row by ``-(w_j / U_jj) U_j,:``, which is the
    best that they can do alone (optimal brain surgeon with the columns before j frozen).

    Args:
        weight: dense weights.
        upper: ``U'U = H^-1``.
        choose: from the first of ``step`` columns, their weights as they are then and their ``U_jj`` to
            their keep mask.
        slab: columns after which the rest of the matrix is brought up to date, a multiple of ``step``.
        step: columns whose mask is chosen at once.

    Returns:
        the updated weights, zero where pruned, and the keep mask.
    """
    weight, keep = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
    for start in range(0, weight.shape[1], slab):
        block, mask = weight[:, start : start + slab], keep[:, start : start + slab]
        factor = upper[start : start + slab, start : start + slab]
        errors = torch.zeros_like(block)
        for column in range(block.shape[1]):
            if column % step == 0:
                ahead = slice(column, column + step)
                mask[:, ahead] = choose(start + column, block[:, ahead], factor.diagonal()[ahead])
            errors[:, column] = (block[:, column] / factor[column, column]).masked_fill(mask[:, column], 0)
            block[:, column:] -= errors[:, column, None] * factor[column, column:]
        weight[:, start + slab :] -= errors @ upper[start : start + slab, start + slab :]
    return weight.masked_fill(~keep, 0), keep


@dataclass(frozen=True)
class SparseGptUpdate(Update):
    """The column :func:`sweep` with a given mask (Frantar & Alistarh, arXiv 2301.00774)."""

    traits = Traits("SparseGPT's update", starts=False, updates=True, source="Frantar & Alistarh, arXiv 2301.00774")

    def fitted(
        self,
        weight: Float[Tensor, "r d"],
        hessian: Float[Tensor, "d d"],
        keep: Bool[Tensor, "r d"],
        notes: Counter[str],
    ) -> Float[Tensor, "r d"]:
        """The weights after the sweep."""

        def choose(first: int, values: Tensor, own: Tensor) -> Tensor:
            return keep[:, first : first + values.shape[1]]

        return sweep(weight.double(), inverse_factor(hessian), choose)[0]
