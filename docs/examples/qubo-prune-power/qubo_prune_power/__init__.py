"""A score with an exponent, and blocks from a Gram that is shrunk towards its diagonal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qubo_prune.blocks.gram_rows import GramRows
from qubo_prune.blocks.rows import MakeState
from qubo_prune.hessian import Gram
from qubo_prune.methods.base import LayerTask, Score, Traits
from qubo_prune.methods.gram_blocks import GramBlocks
from qubo_prune.settings import setting


@dataclass(frozen=True)
class Power(Score):
    """Keeps the weights of the highest ``|W_ij| ||X_j||^exponent``.

    Attributes:
        exponent: of the inputs' norms; 0 is magnitude, 1 is Wanda.
    """

    exponent: float = setting(0.5, least=0, most=2)

    traits = Traits("power score", protects=True)

    def scores(self, task: LayerTask) -> Tensor:
        """For every weight; inputs that were always zero score below all others."""
        # H_jj = 2/N ||X_j||^2
        norms = task.gram.for_rows(task.gram.diagonal.pow(self.exponent / 2), len(task.weight))
        dead = task.gram.for_rows(task.gram.dead, len(task.weight))
        return (task.weight.abs().double() * norms).masked_fill(dead, -1)


@dataclass(frozen=True)
class ShrunkBlocks(GramBlocks):
    """Blocks from ``(1 - share) H + share diag(H)``: few calibration tokens leave couplings that are noise.

    Attributes:
        share: how far the Gram is shrunk towards its diagonal.
    """

    share: float = setting(0.1, least=0, most=1)

    traits = Traits("shrunk Gram blocks", starts=False)

    def states(self, task: LayerTask) -> MakeState:
        """The rows on the shrunk Gram; what the report measures comes from the Gram itself."""

        def made(weight: Tensor, gram: Gram, *others: Any) -> GramRows:
            own = torch.diag_embed(gram.diagonal)
            return GramRows(weight, Gram(gram.matrix.lerp(own, self.share), gram.tokens), *others)

        return made
