"""Blocks from the Gram of a layer's inputs: masks whose kept weights hold their values."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qubo_prune.blocks.rows import Descent, DescentResult, descend
from qubo_prune.methods.base import Decision, LayerTask, Traits
from qubo_prune.methods.row_blocks import RowBlocks


@dataclass(frozen=True)
class GramBlocks(RowBlocks):
    """Lowers ``1/2 tr((W*x) H (W*x)')``, the mean squared output error; swaps over whole rows follow the blocks."""

    traits = Traits("Gram blocks", starts=False)

    def descend(self, task: LayerTask, so_far: Decision) -> DescentResult:
        """See :func:`qubo_prune.blocks.rows.descend`."""
        settings = Descent(
            self.made,
            self.size,
            self.max_sweeps,
            seed=task.run_seed,
            block_time=self.block_time,
            handling=replace(self.handling, journal=task.answers),
        )
        return descend(task.weight, task.gram, so_far.keep, task.pattern, settings, task.deadline)
