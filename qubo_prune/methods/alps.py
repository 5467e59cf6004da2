"""ALPS: ADMM with a growing penalty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.hessian.linalg import (
    unit_diagonal,
    with_damping,
    work_dtype,
)
from qubo_prune.methods.base import LayerTask, Masked, PublishedMethod, Traits
from qubo_prune.methods.refit import conjugate_gradients


@dataclass(frozen=True)
class Alps(PublishedMethod):
    """Meng et al., "ALPS" (arXiv 2406.07831): ADMM with a growing penalty, then conjugate gradients.

    With H scaled to a unit diagonal, W0 the dense weights in that scale, ``D`` the projection of W0,
    ``V = 0`` and ``rho = 0.1``, at most 300 times::

        B = (W0 H - V + rho D) (H + rho I)^-1,    D = projection of (B + V/rho),    V = V + rho (B - D)

    Every third iteration rho grows by the change of the support: times 1.3 if at least 0.1 k weights of
    the k kept ones entered or left, 1.2 if 0.005 k, 1.1 if any; it ends when none did. Ten conjugate
    gradient steps on the support follow. (The authors' code moreover lowers the first rho if it changes
    hardly anything; the paper and this do not.) One eigendecomposition of H serves all rho.
    """

    traits = Traits("ALPS", updates=True, source="Meng et al., arXiv 2406.07831")

    def masked(self, task: LayerTask) -> Masked:
        """See :class:`PublishedMethod`."""

        def attempt(hessian: Tensor) -> Masked:
            unit, scale = unit_diagonal(hessian)
            dtype = work_dtype(task.weight)
            dense = task.alive_weight().double() * scale
            keep, updated = _alps(dense, unit, dtype, task.highest)
            return keep, updated.double() / scale

        return with_damping(task.gram, task.damping, attempt, task.notes)[0]


def _alps(
    dense: Float[Tensor, "r d"],
    unit: Float[Tensor, "d d"],
    dtype: torch.dtype,
    highest: Callable[[Tensor], Tensor],
) -> tuple[Bool[Tensor, "r d"], Float[Tensor, "r d"]]:
    """:func:`alps` in the scale of a unit diagonal."""
    eigenvalues, vectors = torch.linalg.eigh(unit)
    target, dense = (dense @ unit).to(dtype), dense.to(dtype)
    keep = highest(dense.abs())
    sparse, dual, rho = dense * keep, torch.zeros_like(dense), 0.1
    for _ in range(100):
        before, inverse = keep, ((vectors / (eigenvalues + rho)) @ vectors.T).to(dtype)
        for _ in range(3):
            moving = (target - dual + rho * sparse) @ inverse
            total = moving + dual / rho
            keep = highest(total.abs())
            sparse = total * keep
            dual = dual + rho * (moving - sparse)
        changed, kept = int((keep != before).sum()), int(keep.sum())
        if not changed:
            break
        rho *= 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1
    return keep, conjugate_gradients(dense, unit.to(dtype), keep, sparse, 10, 0.0)[0]
