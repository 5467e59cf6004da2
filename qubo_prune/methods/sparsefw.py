"""SparseFW: masks by Frank-Wolfe on their relaxation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qubo_prune.hessian.linalg import (
    work_dtype,
)
from qubo_prune.masks.keep import keep_highest
from qubo_prune.methods.base import LayerTask, Masked, PublishedMethod, Traits, share_of_budget
from qubo_prune.settings import setting


@dataclass(frozen=True)
class SparseFW(PublishedMethod):
    """Roux et al., "Don't be greedy, just relax! Pruning LLMs via Frank-Wolfe" (arXiv 2510.13713).

    Minimises ``1/2 ((1-m)*w)'H((1-m)*w)`` over keep masks m relaxed to [0, 1] with the pattern's sums, from
    Wanda's mask: ``m = m + 2/(t+2) (v - m)``, t = 0, 1, ..., where v is the mask of the highest negative
    gradients ``w * (H ((1-m)*w))``. In the end the highest m stay.

    Attributes:
        alpha: share of each budget, that of the highest Wanda scores, that stays kept throughout.
        iterations: steps.
    """

    traits = Traits("SparseFW", source="Roux et al., arXiv 2510.13713")

    alpha: float = setting(0.9, least=0, most=1)
    iterations: int = setting(200, least=1)

    def masked(self, task: LayerTask) -> Masked:
        """See :class:`PublishedMethod`."""
        scores = task.wanda()
        dtype = work_dtype(task.weight)
        weight, hessian = task.weight.to(dtype), task.gram.matrix.to(dtype)
        fixed = keep_highest(scores, *share_of_budget(task, self.alpha))

        def highest(values: Tensor) -> Tensor:
            return task.highest(values.masked_fill(task.gram.dead, -torch.inf).masked_fill(fixed, torch.inf))

        relaxed = task.highest(scores).to(dtype)
        for t in range(self.iterations):
            downhill = weight * (((1 - relaxed) * weight) @ hessian)
            relaxed = relaxed.lerp(highest(downhill).to(dtype), 2 / (t + 2))
        return highest(relaxed), None
