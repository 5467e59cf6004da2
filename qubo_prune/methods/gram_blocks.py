"""Blocks from the Gram of a layer's inputs: masks whose kept weights hold their values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qubo_prune.blocks.gram_rows import GramRows
from qubo_prune.blocks.rows import MakeState
from qubo_prune.methods.base import LayerTask, Traits
from qubo_prune.methods.row_blocks import RowBlocks


@dataclass(frozen=True)
class GramBlocks(RowBlocks):
    """Lowers ``1/2 tr((W*x) H (W*x)')``, the mean squared output error; swaps over whole rows follow the blocks."""

    traits = Traits("Gram blocks", starts=False)
    no_whole_rows: ClassVar[str] = ""

    def states(self, task: LayerTask) -> MakeState:
        """See :class:`~qubo_prune.blocks.gram_rows.GramRows`."""
        return GramRows
