"""Blocks for kept weights that adapt to what is pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qubo_prune.blocks.compensated_rows import Compensated
from qubo_prune.blocks.rows import MakeState
from qubo_prune.methods.base import LayerTask, Traits
from qubo_prune.methods.row_blocks import RowBlocks


@dataclass(frozen=True)
class CompensatedBlocks(RowBlocks):
    """Lowers the output error that is left once all kept weights are at their optimum; a refit puts them there."""

    traits = Traits("compensated blocks", starts=False, protects=True, start="admm", update="refit", correction=0.5)
    usual_size: ClassVar[int] = 128

    def states(self, task: LayerTask) -> MakeState:
        """See :class:`~qubo_prune.blocks.compensated_rows.CompensatedRows`."""
        return Compensated(task.damping, self.polish)
