"""Wanda: weights times the norms of their inputs."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from qubo_prune.methods.base import LayerTask, Score, Traits
from qubo_prune.methods.scores import score


@dataclass(frozen=True)
class Wanda(Score):
    """Scores ``|W_ij| ||X_j||_2``, the norm over calibration tokens (Sun et al., arXiv 2306.11695)."""

    traits = Traits("Wanda", reads="inputs", protects=True, source="Sun et al., arXiv 2306.11695")

    def scores(self, task: LayerTask) -> Float[Tensor, "d_out d_in"]:
        """For every weight."""
        return score("wanda", task.weight, task.gram, 0)
