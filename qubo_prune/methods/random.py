"""Masks at random, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from qubo_prune.methods.base import LayerTask, Score, Traits
from qubo_prune.methods.scores import score


@dataclass(frozen=True)
class Random(Score):
    """Scores drawn uniformly, from the seed of the layer."""

    traits = Traits("random", reads="weights", protects=True)

    def scores(self, task: LayerTask) -> Float[Tensor, "d_out d_in"]:
        """For every weight."""
        return score("random", task.weight, task.gram, task.seed)
