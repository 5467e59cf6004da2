"""RIA: relative importance and activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qubo_prune.methods.base import LayerTask, Masked, PublishedMethod, Traits


@dataclass(frozen=True)
class Ria(PublishedMethod):
    """Zhang et al., "Plug-and-play: an efficient post-training pruning method for LLMs" (ICLR 2024).

    Scores ``(|w_ij| / sum_j |w_ij| + |w_ij| / sum_i |w_ij|) * ||x_j||^(1/2)``, the norm over tokens; each
    group of a grouped convolution is a matrix of its own.
    """

    traits = Traits("RIA", source="Zhang et al., ICLR 2024")
    per_gram = False

    def masked(self, task: LayerTask) -> Masked:
        """See :class:`PublishedMethod`."""
        own = task.weight.abs().double().reshape(task.gram.groups, -1, task.weight.shape[1])
        # a row or column of zeros scores zero
        tiny = torch.finfo(own.dtype).tiny
        in_row, in_column = (own / own.sum(axis, keepdim=True).clamp(min=tiny) for axis in (2, 1))
        scores = (in_row + in_column).reshape(task.weight.shape)
        if not task.gram.dead.all():
            # H_jj = 2/N ||x_j||^2
            scores = scores * task.gram.for_rows(task.gram.diagonal.pow(0.25), len(scores))
            scores = scores.masked_fill(task.gram.for_rows(task.gram.dead, len(scores)), -1)
        return task.highest(scores), None
