"""How far a layer's mask may be from the best one: a proven lower bound of its output error."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.bounds import lower_bounds
from qubo_prune.emission import emit_whole_rows
from qubo_prune.hessian import Gram
from qubo_prune.masks import Pattern


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
        x = (~mask).to(labels.device, torch.float64)
        values = rows.to(labels.device, torch.float64)
        # without a field energies are those of the masks themselves, not from this mask on
        batch = emit_whole_rows(values, x, part.matrix, torch.zeros_like(x), labels, int(labels.max()) + 1)
        together = int(x.sum()) if pattern.name == "layer" else None
        total += float(lower_bounds(batch, kind, total=together).lower.sum())
    return max(0.0, total)
