"""Weights that make up for the layers pruned before: what a layer is fitted to when its inputs have moved.

A layer with dense weights W sees inputs X that the pruned layers before it have changed from the dense
model's Z. To give the dense model's outputs ``W Z`` again, as nearly as its inputs allow, it would need::

    V = argmin 1/2 (2/N) ||V X - W Z||^2 + 1/2 damping ||V - W||^2 = W + W K (H + damping I)^-1

with the drift ``K = (2/N)(Z - X) X'``. Where its outputs are added to a residual stream, which has moved from R' to R,
they can make up for that too: ``W Z + R' - R`` takes the place of ``W Z``, and ``W K + (2/N)(R' - R) X'`` that of
``W K``. All of that step fits the calibration text too well: with a share of it, and a
strong damping, other texts gain as well. What is pruned is then ``W + share (V - W)`` in the place of W.

The same step is known for quantisation: GPTAQ's asymmetric calibration (Li et al., arXiv 2504.02692) and the
propagation strength of QEP (Arai and Ichikawa, arXiv 2504.09629).
"""

from __future__ import annotations

from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.linalg import cast_back, cholesky, with_damping
from qubo_prune.precision import pinned

#: Damping where there is a correction, if none is given.
CORRECTION_DAMPING = 0.3


@pinned()
def corrected(
    weight: Float[Tensor, "d_out d_in"], gram: Gram, share: float, damping: float, notes: Counter[str]
) -> Float[Tensor, "d_out d_in"]:
    """``W + share W K (H + damping mean(diag H) I)^-1``; the weights themselves where the Gram has no drift.

    Args:
        weight: dense weights.
        gram: of the layer's inputs, with their drift.
        share: of the way, from 0 to 1.
        damping: share of the Gram's mean diagonal that is added to its diagonal.
        notes: to be filled, if the damping had to be raised or a row overflows the dtype of the weights.
    """
    if gram.drift is None or not share:
        return weight
    dense = weight.to(gram.matrix.device, torch.float64)
    wanted, parts = gram.drift.wanted(dense), []
    for own, part, aim in zip(gram.split(dense), gram.parts(), gram.split(wanted), strict=True):
        if part.dead.all():
            parts.append(own)
            continue
        step, _ = with_damping(part, damping, lambda h, aim=aim: torch.cholesky_solve(aim.mT, cholesky(h)), notes)  # type: ignore[misc]
        parts.append(own + share * step.mT)
    return cast_back(torch.cat(parts), weight.detach(), torch.ones_like(weight, dtype=torch.bool), notes)
