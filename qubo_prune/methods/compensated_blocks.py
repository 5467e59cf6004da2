"""Blocks for kept weights that adapt to what is pruned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from qubo_prune.blocks.compensated_rows import CompensatedDescent, descend_compensated
from qubo_prune.blocks.rows import DescentResult
from qubo_prune.methods.base import Decision, LayerTask, Traits
from qubo_prune.methods.row_blocks import RowBlocks


@dataclass(frozen=True)
class CompensatedBlocks(RowBlocks):
    """Lowers the output error that is left once all kept weights are at their optimum; a refit puts them there."""

    traits = Traits("compensated blocks", starts=False, protects=True, start="admm", update="refit", correction=0.5)
    usual_size: ClassVar[int] = 128

    def descend(self, task: LayerTask, so_far: Decision) -> DescentResult:
        """See :func:`qubo_prune.blocks.compensated_rows.descend_compensated`."""
        settings = CompensatedDescent(
            self.made,
            self.size,
            self.max_sweeps,
            task.damping,
            self.polish,
            task.run_seed,
            self.block_time,
            replace(self.handling, journal=task.answers),
        )
        return descend_compensated(
            task.weight, task.gram, so_far.keep, task.pattern, settings, task.deadline, task.stays
        )
