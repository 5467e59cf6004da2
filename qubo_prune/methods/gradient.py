"""Masks by the first-order change of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qubo_prune.data.losses import Objective
from qubo_prune.data.samples import Samples
from qubo_prune.hessian.gradients import Moments, moments
from qubo_prune.masks.keep import Pattern, keep_highest
from qubo_prune.methods.base import SampledStart, Traits
from qubo_prune.models.layers import Layer


@dataclass(frozen=True, eq=False)
class Gradient(SampledStart):
    """Keeps the weights of the largest ``|w g|``, where g is the mean gradient of the loss of the dense model.

    Attributes:
        masks: by layer name, of the layers to which a gradient came back; see :meth:`prepared`.
    """

    masks: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    traits = Traits("gradient", reads="samples")

    @property
    def known(self) -> Mapping[str, Tensor]:
        """See :meth:`prepared`."""
        return self.masks

    def with_masks(self, masks: Mapping[str, Tensor]) -> Gradient:
        """The same with these."""
        return replace(self, masks=masks)

    def prepared(
        self,
        objective: Objective,
        samples: Samples,
        batch: Int[Tensor, " b"],
        layers: Sequence[Layer],
        pattern: Pattern,
        densities: Mapping[str, float],
    ) -> Gradient:
        """With the masks of layers, from the gradient of some samples."""
        found = moments(objective, samples, batch, layers)
        masks = {
            layer.name: keep_highest(_slopes(layer.matrix(), found[layer.name]), pattern, densities[layer.name])
            for layer in layers
            if found[layer.name].reached
        }
        return replace(self, masks=masks)


def _slopes(weight: Tensor, found: Moments) -> Float[Tensor, "d_out d_in"]:
    """``|w g|``; weights whose gradient is zero come below the others, by their magnitude."""
    slopes = (weight * found.mean).abs().double()
    return torch.where(slopes > 0, slopes, -1 / (1 + weight.abs().double()))
