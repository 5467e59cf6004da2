"""Masks that the caller brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.methods.base import Decision, LayerMethod, LayerTask, Traits
from qubo_prune.models.layers import Layer


@dataclass(frozen=True, eq=False)
class GivenMasks(LayerMethod):
    """Begins with keep masks by parameter name.

    Attributes:
        masks: ``torch.bool`` in the shapes of the parameters, True = keep.
        exact_counts: they must have the counts of pattern and density.
    """

    masks: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    exact_counts: bool = True

    traits = Traits("given masks", reads="weights")

    @property
    def exact(self) -> bool:
        """As it was asked for."""
        return self.exact_counts

    def matrix_of(self, layer: Layer) -> Tensor:
        """The mask of a layer as ``(d_out, d_in)``; raises :class:`InputError` if there is none that fits."""
        if layer.parameter_name not in self.masks:
            raise InputError(
                f"The warm start has no mask for {layer.parameter_name!r}; give one for every pruned layer."
            )
        mask = self.masks[layer.parameter_name]
        if not isinstance(mask, Tensor):
            raise InputError(f"The mask {layer.parameter_name!r} is of type {type(mask).__name__}; give a bool tensor.")
        if mask.shape != layer.parameter.shape or mask.dtype != torch.bool:
            raise InputError(
                f"The mask {layer.parameter_name!r} has shape {tuple(mask.shape)} and type {mask.dtype}; the weight's "
                f"shape {tuple(layer.parameter.shape)} and torch.bool (True = keep) are needed."
            )
        return layer.as_matrix(mask)

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        """The mask of the layer, with its counts checked."""
        assert task.mask is not None
        keep = task.mask
        wrong = task.pattern.violations(keep, task.density)
        if wrong and self.exact_counts:
            raise InputError(
                f"The mask of {task.name!r} breaks the pattern {task.pattern.name} at density {task.density:g} "
                f"in {wrong} groups; give masks with the exact counts, or the density they have."
            )
        return Decision(keep=keep.to(task.weight.device))
