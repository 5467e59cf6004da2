"""The output side of the loss's curvature: how much an error at each output of a layer costs.

The curvature of the loss by the weights of a layer is taken as a Kronecker product ``S (x) H``: H the Gram of its
inputs and ``S = E sum_t g_t g_t'`` with ``g_t`` the gradient of a sample's loss at the layer's outputs at position t,
the labels drawn from the model's own distribution (J. Martens, R. Grosse, Optimizing Neural Networks with
Kronecker-factored Approximate Curvature, ICML 2015). A move ``D`` of the weights then costs ``1/2 tr(S D H D')`` of the
loss. Of S the diagonal is taken here: the squared error of output r counts ``s_r`` times, so that rows of a layer, and
layers, compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.linalg import vector_norm

from qubo_prune.data.losses import Objective
from qubo_prune.data.samples import Samples
from qubo_prune.hessian.gradients import backward
from qubo_prune.models.layers import Layer
from qubo_prune.precision import pinned

#: Share of the mean that every output counts at least.
FLOOR = 0.01


@dataclass(frozen=True, eq=False)
class OutputFactor:
    """What one pass over some samples tells of a layer, float32.

    Attributes:
        returned: ``s``: mean over samples of ``sum_t g_t^2`` for each output.
        read: mean square of each input over all positions, ``(groups, d_in)``.
    """

    returned: Float[Tensor, " d_out"]
    read: Float[Tensor, "groups d_in"]

    @property
    def weights(self) -> Float[Tensor, " d_out"]:
        """``s`` with a floor, float64, relative to its mean: by these the squared errors of the outputs count."""
        relative = self.returned.double() / self.returned.double().mean()
        return relative.clamp(min=FLOOR)

    def rises(self, weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        """``1/2 w_rj^2 s_r H_jj``: by how much the loss is taken to rise when a weight is removed alone."""
        inputs = self.read.repeat_interleave(len(self.returned) // len(self.read), 0)
        return weight**2 * self.returned[:, None] * inputs


@pinned()
def output_factors(
    objective: Objective, samples: Samples, indices: Int[Tensor, " B"], layers: Sequence[Layer], seed: int
) -> dict[str, OutputFactor]:
    """Factors of the layers to which a gradient came back, from one pass over a batch.

    Args:
        objective: model and loss. If it is a likelihood, labels are drawn from the model, else they are the given ones.
        samples: where the batch comes from.
        indices: the batch.
        layers: which layers.
        seed: of the labels.
    """
    sums: dict[str, list[Tensor]] = {}
    positions: dict[str, int] = {}

    def add(layer: Layer, rows: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        parts = [vector_norm(each, dim=(0, 1)).square() for each in (outputs, inputs)]
        sums[layer.name] = (
            [a + b for a, b in zip(sums[layer.name], parts, strict=True)] if layer.name in sums else parts
        )
        positions[layer.name] = positions.get(layer.name, 0) + inputs.shape[0] * inputs.shape[1]

    if objective.loss.likelihood:
        backward(objective, samples, indices, layers, None, add, torch.Generator().manual_seed(seed))
    else:
        backward(objective, samples, indices, layers, add)
    return {
        name: OutputFactor(returned / len(indices), read / positions[name])
        for name, (returned, read) in sums.items()
        if bool(returned.any())
    }


def as_tensors(factors: Mapping[str, OutputFactor]) -> dict[str, Tensor]:
    """Factors as a run's folder keeps them."""
    return {f"{part} {name}": getattr(found, part) for name, found in factors.items() for part in ("returned", "read")}


def of_tensors(tensors: Mapping[str, Tensor]) -> dict[str, OutputFactor]:
    """The factors that :func:`as_tensors` was given."""
    names = [key.removeprefix("returned ") for key in tensors if key.startswith("returned ")]
    return {name: OutputFactor(tensors[f"returned {name}"], tensors[f"read {name}"]) for name in names}
