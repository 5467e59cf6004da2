"""Blocks for kept weights that adapt to what is pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qubo_prune.blocks.compensated_rows import Compensated
from qubo_prune.blocks.rows import MakeState
from qubo_prune.errors import InputError
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.base import LayerTask, Traits
from qubo_prune.methods.row_blocks import RowBlocks


@dataclass(frozen=True)
class CompensatedBlocks(RowBlocks):
    """Lowers the output error that is left once all kept weights are at their optimum; a refit puts them there.

    Their QUBO lets the kept weights outside of a block adapt. Over a whole row there are none, and it would be that of
    the damped Gram, which knows of no adapting; so whole rows are refused. No swaps over whole rows follow.
    """

    row_swaps: bool = False

    traits = Traits("compensated blocks", starts=False, protects=True, start="admm", update="refit", correction=0.5)
    usual_size: ClassVar[int] = 128
    no_whole_rows: ClassVar[str] = (
        "compensated blocks need kept weights outside of a block, which adapt to it; give a number, such as 128, or "
        "the method 'gram'"
    )

    def check(self, pattern: Pattern, density: float) -> None:
        """Raise :class:`InputError` if blocks, solver and pattern do not go together."""
        super().check(pattern, density)
        if self.row_swaps:
            raise InputError(
                "row_swaps is true, and no swaps over whole rows follow compensated blocks; leave it out, or give the "
                "method 'gram'."
            )

    def states(self, task: LayerTask) -> MakeState:
        """See :class:`~qubo_prune.blocks.compensated_rows.CompensatedRows`."""
        return Compensated(task.damping, self.polish)
