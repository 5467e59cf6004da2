"""ADMM: masks that tighten while the weights adapt, and weights on a fixed mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.hessian.linalg import (
    cholesky,
    unit_diagonal,
    with_damping,
    work_dtype,
)
from qubo_prune.masks.keep import keep_highest
from qubo_prune.methods.base import LayerTask, Masked, PublishedMethod, Traits, Update


@dataclass(frozen=True)
class Admm(PublishedMethod):
    """Boza (arXiv 2401.02938): :func:`admm` with the mask chosen while iterating.

    In the first 15 of 20 iterations t the mask holds the largest ``|W + U|``, in the scale of a unit
    diagonal, at the sparsity ``s (1 - (1 - t/15)^3)``; after them it stays. ``n:m`` is final from the start.
    """

    traits = Traits("ADMM", updates=True, source="Boza, arXiv 2401.02938")

    def masked(self, task: LayerTask) -> Masked:
        """See :class:`PublishedMethod`."""
        keep = torch.ones_like(task.weight, dtype=torch.bool)

        def select(step: int, values: Tensor) -> Tensor:
            nonlocal keep
            if step < 15 and not task.pattern.of:
                sparsity = (1 - task.density) * (1 - (1 - step / 15) ** 3)
                keep = keep_highest(values.abs(), task.pattern, 1 - sparsity)
            elif step <= 15:
                keep = task.highest(values.abs())
            return keep

        (updated, _), _ = with_damping(
            task.gram, task.damping, lambda hessian: admm(task.alive_weight(), hessian, select), task.notes
        )
        return keep, updated


def admm(
    weight: Float[Tensor, "r d"],
    hessian: Float[Tensor, "d d"],
    choose: Callable[[int, Tensor], Tensor],
    iterations: int = 20,
) -> tuple[Float[Tensor, "r d"], Bool[Tensor, "r d"]]:
    """Boza, "Fast and effective weight update for pruned large language models" (arXiv 2401.02938).

    With H scaled to a unit diagonal, W0 the dense weights in that scale, ``W = W0``, ``U = 0``, ``rho = 1``::

        Z = mask * (W + U),    U = U + W - Z,    W = (W0 H + rho (Z - U)) (H + rho I)^-1

    Args:
        weight: dense weights.
        hessian: damped.
        choose: from the number of the iteration, from 1, and ``W + U`` to the keep mask.
        iterations: so many, with one inverse for all.

    Returns:
        the last ``mask * (W + U)`` in the scale of the weights, and the mask.
    """
    unit, scale = unit_diagonal(hessian)
    dtype = work_dtype(weight)
    damped = unit.clone()
    damped.diagonal().add_(1)
    inverse = torch.cholesky_inverse(cholesky(damped)).to(dtype)
    dense = weight.double() * scale
    target, moving = (dense @ unit).to(dtype), dense.to(dtype)
    dual = torch.zeros_like(moving)
    for step in range(1, iterations + 1):
        total = moving + dual
        keep = choose(step, total)
        sparse = total * keep
        dual = total - sparse
        moving = (target + sparse - dual) @ inverse
    return ((moving + dual) * keep) / scale.to(dtype), keep


@dataclass(frozen=True)
class AdmmUpdate(Update):
    """20 steps of :func:`admm` on a fixed mask (Boza, arXiv 2401.02938)."""

    traits = Traits("ADMM's update", starts=False, updates=True, source="Boza, arXiv 2401.02938")

    def fitted(
        self,
        weight: Float[Tensor, "r d"],
        hessian: Float[Tensor, "d d"],
        keep: Bool[Tensor, "r d"],
        notes: Counter[str],
    ) -> Float[Tensor, "r d"]:
        """The weights after the last step."""
        return admm(weight, hessian, lambda step, values: keep)[0]
