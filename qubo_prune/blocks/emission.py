"""Emission: from the state of a layer to block QUBOs.

The move of a block is ``delta = u*(1-x) - w``: ``w`` its current weights (zero where pruned), ``u``
the value a weight takes if kept, ``x_i = 1`` to prune. With ``a = u - w`` the quadratic model of the
loss around the current point, ``g'delta + 1/2 delta'H delta + lam ||delta||^2``, is
``E(x) = offset + x'Qx`` with::

    Q_ij   = 1/2 u_i H_ij u_j                                    (i != j)
    Q_ii   = 1/2 u_i^2 H_ii - u_i (g + H a)_i + lam u_i (u_i - 2 a_i)
    offset = g'a + 1/2 a'H a + lam ||a||^2

so ``E(current mask) = 0`` and a negative energy is a predicted improvement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor

from qubo_prune.hessian.linalg import square
from qubo_prune.precision import pinned
from qubo_prune.problem.qubo import BlockBatch, BlockQubo, FactorForm, group_counts


def emit(
    hessian: ArrayLike,
    gradient: ArrayLike,
    current: ArrayLike,
    kept_value: ArrayLike,
    num_pruned: int | Sequence[int],
    ridge: float = 0.0,
    labels: ArrayLike | None = None,
) -> BlockQubo:
    """The block QUBO of the quadratic model above, any Hessian and gradient.

    Args:
        hessian: ``(n, n)`` block of the local Hessian.
        gradient: ``(n,)`` gradient of the loss at the current point.
        current: ``(n,)`` current weights, zero where pruned.
        kept_value: ``(n,)`` value of each weight if it is kept.
        num_pruned: exact count of ones, per group.
        ridge: ``lam``, the weight of ``||delta||^2``.
        labels: ``(n,)`` group numbers.
    """
    h, g, w, u = (np.asarray(v, dtype=np.float64) for v in (hessian, gradient, current, kept_value))
    a = u - w
    q = u[:, None] * h * u[None, :] / 2
    q[np.diag_indices_from(q)] += -u * (g + h @ a) + ridge * u * (u - 2 * a)
    offset = g @ a + a @ h @ a / 2 + ridge * (a @ a)
    return BlockQubo(q, num_pruned, float(offset), labels)


@pinned()
def emit_block(
    weight: Float[Tensor, "d_out d_in"],
    keep: Bool[Tensor, "d_out d_in"],
    hessian: Float[Tensor, "d_in d_in"],
    rows: Int[Tensor, " n"],
    columns: Int[Tensor, " n"],
    labels: ArrayLike | None = None,
) -> BlockQubo:
    """The block QUBO of any weights ``(rows[k], columns[k])`` of a layer, from its Gram.

    Weights of different rows are not coupled, but may share a count (pattern ``layer``). The count
    of each group is that of the current mask, so the budget is preserved.
    """
    pruned = ~keep
    # current weights are W*keep, so the error is -(W*pruned) and its gradient -(W*pruned) H
    gradient = -((weight * pruned)[rows].double() @ hessian.double())[torch.arange(len(rows)), columns]
    block = torch.where(rows[:, None] == rows[None, :], hessian[columns[:, None], columns[None, :]], 0.0)
    u = weight[rows, columns].double()
    x = pruned[rows, columns]
    groups = np.zeros(len(rows), dtype=np.int64) if labels is None else np.asarray(labels)
    counts = np.bincount(groups, weights=x.cpu().numpy(), minlength=int(groups.max(initial=0)) + 1)
    return emit(
        block.cpu().numpy(),
        gradient.cpu().numpy(),
        (u * ~x).cpu().numpy(),
        u.cpu().numpy(),
        counts.astype(int).tolist(),
        labels=groups,
    )


@pinned()
def emit_factor(
    factor: Float[Tensor, "B n"],
    gradient: Float[Tensor, " n"],
    current: Float[Tensor, " n"],
    kept_value: Float[Tensor, " n"],
    num_pruned: Sequence[int],
    labels: ArrayLike | None = None,
    ridge: float | Float[Tensor, " n"] = 0.0,
    price: Float[Tensor, " n"] | None = None,
) -> BlockQubo:
    """The block QUBO for ``H = 1/B F'F``, in factor form as long as that is the smaller one (B < n).

    Args:
        factor: ``F``, per-sample gradients.
        gradient: ``g`` at the current point.
        current: ``w``, zero where pruned.
        kept_value: ``u``.
        num_pruned: exact count of ones, per group.
        labels: group numbers.
        ridge: ``lam``, the weight of ``||delta||^2``, or one for each ``delta_i^2``.
        price: added to the energy for every weight that changes, on top of the model.
    """
    f, g, w, u = (part.double() for part in (factor, gradient, current, kept_value))
    a = u - w
    coupled = f.T @ (f @ a) / len(f)
    linear = -u * (g + coupled) + ridge * u * (u - 2 * a)
    offset = g @ a + a @ coupled / 2 + (ridge * a * a).sum()
    if price is not None:
        pruned = (w == 0) & (u != 0)
        linear += torch.where(pruned, -price, price)
        offset += price[pruned].sum()
    scaled = (f * u).T / math.sqrt(2 * len(f))
    if len(f) < len(u):
        return BlockQubo(FactorForm(linear.cpu().numpy(), scaled.cpu().numpy()), num_pruned, float(offset), labels)
    return BlockQubo((scaled @ scaled.T + torch.diag(linear)).cpu().numpy(), num_pruned, float(offset), labels)


@pinned()
def emit_rows(
    weight: Float[Tensor, "r d_in"],
    x: Float[Tensor, "r d_in"],
    hessian: Float[Tensor, "d_in d_in"],
    field: Float[Tensor, "r d_in"],
    columns: Int[Tensor, "r n"],
    labels: Int[Tensor, " n"],
    num_groups: int,
) -> BlockBatch:
    """One block per row at once, mask only (``u = w0``), each seeing the rest of its row.

    Args:
        weight: the dense weights ``w0`` of r rows.
        x: current masks of whole rows, 1 = pruned.
        hessian: the layer's Gram matrix.
        field: ``(weight * x) @ hessian``, the gradient with its sign turned.
        columns: the weights of each row's block.
        labels: their group numbers, 0 to num_groups-1, the same in all rows.
    """
    block = square(hessian, columns, columns)
    u, x_block = weight.gather(1, columns), x.gather(1, columns)
    inside = u * x_block
    coupled = torch.bmm(block, inside.unsqueeze(2)).squeeze(2)
    # g + H a on the block is -(field - coupled): what the pruned weights outside it pull
    linear = u * (field.gather(1, columns) - coupled)
    offset = -((inside * coupled).sum(1) / 2 + (linear * x_block).sum(1))
    return BlockBatch(block, u, linear, offset, labels, group_counts(x_block, labels, num_groups))


def emit_whole_rows(
    weight: Float[Tensor, "r d_in"],
    x: Float[Tensor, "r d_in"],
    hessian: Float[Tensor, "d_in d_in"],
    field: Float[Tensor, "r d_in"],
    labels: Int[Tensor, " d_in"],
    num_groups: int,
) -> BlockBatch:
    """Whole rows on their shared Gram: no linear term, and no n x n matrix per row."""
    offset = -(weight * x * field).sum(1) / 2
    return BlockBatch(hessian, weight, torch.zeros_like(weight), offset, labels, group_counts(x, labels, num_groups))
