"""The score that needs nothing but the weights."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from qubo_prune.methods.base import LayerTask, Score, Traits
from qubo_prune.methods.scores import score


@dataclass(frozen=True)
class Magnitude(Score):
    """The largest weights stay: scores ``|W_ij|``."""

    traits = Traits("magnitude", reads="weights", protects=True)

    def scores(self, task: LayerTask) -> Float[Tensor, "d_out d_in"]:
        """For every weight."""
        return score("magnitude", task.weight, task.gram, 0)
