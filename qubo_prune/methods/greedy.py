"""Forward selection: prune, one after another, what costs least given what is pruned already."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from qubo_prune.blocks.gram_rows import LayerState
from qubo_prune.methods.base import Decision, LayerMethod, LayerTask, Traits
from qubo_prune.precision import pinned
from qubo_prune.solver.swaps.forward_selection import forward_selection


@dataclass(frozen=True)
class ForwardSelection(LayerMethod):
    """Prunes, row by row, the weight that raises ``1/2 (w*x)'H(w*x)`` least given those pruned before.

    With the pattern ``layer`` the rows' shares come from Wanda.
    """

    traits = Traits("greedy")

    @pinned()
    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        """The mask, each row with Wanda's count."""
        keep = task.highest(task.wanda())
        parts = zip(task.gram.split(task.weight), task.gram.parts(), task.gram.split(keep), strict=True)
        return Decision(keep=torch.cat([_selected(LayerState(*part, task.pattern)) for part in parts]))


def _selected(state: LayerState) -> Bool[Tensor, "d_out d_in"]:
    """The mask of forward selection, each row with the count it has."""
    state.x = forward_selection(state.emit_whole(state.everything())).to(state.x.dtype)
    return state.keep_mask()
