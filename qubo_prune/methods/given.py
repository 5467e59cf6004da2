"""Masks that the caller brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.methods.base import Decision, LayerMethod, LayerTask, Traits


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

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        """The mask of the layer, with its shape and counts checked."""
        layer = task.layer
        assert layer is not None
        if layer.parameter_name not in self.masks:
            raise InputError(
                f"The warm start has no mask for {layer.parameter_name!r}; give one for every pruned layer."
            )
        mask = self.masks[layer.parameter_name]
        if mask.shape != layer.parameter.shape or mask.dtype != torch.bool:
            raise InputError(
                f"The mask {layer.parameter_name!r} has shape {tuple(mask.shape)} and type {mask.dtype}; the weight's "
                f"shape {tuple(layer.parameter.shape)} and torch.bool (True = keep) are needed."
            )
        keep = layer.as_matrix(mask)
        wrong = task.pattern.violations(keep, task.density)
        if wrong and self.exact_counts:
            raise InputError(
                f"The mask {layer.parameter_name!r} breaks the pattern {task.pattern.name} at density {task.density:g} "
                f"in {wrong} groups; give masks with the exact counts, or the density they have."
            )
        return Decision(keep=keep.to(task.weight.device))
