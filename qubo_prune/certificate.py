"""How far a layer's mask may be from the best one: a proven lower bound of its output error."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.bounds import lower_bounds
from qubo_prune.hessian import Gram
from qubo_prune.masks import Pattern
from qubo_prune.problem import BlockBatch


def least_error(
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    keep: Bool[Tensor, "d_out d_in"],
    pattern: Pattern,
    kind: str = "trace",
) -> float:
    """No mask with the counts of this one has a lower output error ``1/2 (w*x)' H (w*x)``, summed over rows.

    The counts are those of the pattern's groups: with ``layer`` rows may exchange budget, though the groups of a
    grouped convolution, which have Grams of their own, may not.

    Args:
        weight: dense weights; kept ones hold their values.
        gram: of the layer's inputs.
        keep: a mask with the pattern's counts.
        pattern: where counts must hold.
        kind: of the bound, see :data:`qubo_prune.bounds.KINDS`.
    """
    labels = pattern.labels(weight.shape[1]).to(gram.matrix.device)
    total = 0.0
    for rows, part, mask in zip(gram.split(weight), gram.parts(), gram.split(keep), strict=True):
        x = (~mask).to(labels.device)
        counts = torch.zeros(len(x), int(labels.max()) + 1, dtype=torch.long, device=x.device)
        counts.index_add_(1, labels, x.long())
        values = rows.to(part.matrix.device, torch.float64)
        nothing = torch.zeros_like(values)
        batch = BlockBatch(part.matrix, values, nothing, nothing[:, 0].clone(), labels, counts)
        together = int(x.sum()) if pattern.name == "layer" else None
        total += float(lower_bounds(batch, kind, total=together).lower.sum())
    return max(0.0, total)
