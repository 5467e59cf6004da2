"""SparseSwaps: best swaps over whole rows."""

from __future__ import annotations

from dataclasses import dataclass

from qubo_prune.blocks.gram_rows import descend
from qubo_prune.blocks.rows import Descent
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.base import LayerTask, Masked, PublishedMethod, Traits
from qubo_prune.solver.swaps.greedy import Greedy


@dataclass(frozen=True)
class SparseSwaps(PublishedMethod):
    """Zimmer et al., "SparseSwaps: tractable LLM pruning mask refinement at scale" (2025).

    From Wanda's mask, each row exchanges the kept and the pruned weight that lower its output error
    ``1/2 (w*x)'H(w*x)`` most, until none do; with ``layer`` every row keeps Wanda's count.
    """

    traits = Traits("SparseSwaps", source="Zimmer et al., 2025")

    def masked(self, task: LayerTask) -> Masked:
        """See :class:`PublishedMethod`."""
        keep = task.highest(task.wanda())
        within = Pattern("row") if task.pattern.name == "layer" else task.pattern
        result = descend(task.weight, task.gram, keep, within, Descent(Greedy(), max_sweeps=0))
        task.notes.update(result.kept_start)
        return result.keep, None
