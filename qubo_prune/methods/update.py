"""Weight updates on a fixed support: the kept weights of a layer adapt to what was pruned.

A row with dense weights w becomes v, zero outside its support F, and its output error becomes
``1/2 (v - w)'H(v - w)``. ``H`` is damped everywhere here: ``H + damping * mean(diag H) * I``. The weights
of inputs that were always zero stay as they are where they are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.choices import UPDATES
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.hessian.compensated import DAMPING
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.linalg import (
    UNSEEN,
    cast_back,
    check_layer,
    inverse_factor,
    promote_range,
    with_damping,
)
from qubo_prune.methods.admm import admm
from qubo_prune.methods.refit import refit
from qubo_prune.methods.sparsegpt import sweep
from qubo_prune.precision import pinned


@dataclass(frozen=True, eq=False)
class Updated:
    """Updated weights of a layer.

    Attributes:
        weight: ``(d_out, d_in)``, zero where pruned; dtype and device are those of the dense weights.
        damping: share of the mean diagonal that was added in the end; of several Grams the largest.
        notes: what did not go as asked, as sentences, each with the number of Grams or rows.
    """

    weight: Float[Tensor, "d_out d_in"]
    damping: float
    notes: dict[str, int]


@pinned()
def update(
    kind: str,
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    keep: Bool[Tensor, "d_out d_in"],
    damping: float = DAMPING,
) -> Updated:
    """The kept weights after one of :data:`UPDATES`.

    * ``none``: the dense weights, masked.
    * ``refit``: the least-squares optimum of every row, ``v_F = (H_FF)^-1 (H w)_F``.
    * ``admm``: 20 steps of :func:`admm` on the given mask (Boza, arXiv 2401.02938).
    * ``sparsegpt``: the column :func:`sweep` with the given mask (Frantar & Alistarh, arXiv 2301.00774).

    Where a matrix cannot be factored, the damping is raised tenfold step by step, at most up to 1, and a
    note says so.

    Args:
        kind: which update.
        weight: dense weights.
        gram: of the layer's inputs; a stack of them for a grouped convolution.
        keep: the mask.
        damping: share of the mean diagonal of the Gram that is added to its diagonal.

    Raises:
        InputError: there is no such update, shapes do not fit, or the Gram is not positive semidefinite.
    """
    if kind not in UPDATES:
        raise InputError(f"There is no update {kind!r}{did_you_mean(kind, UPDATES)}; use one of {', '.join(UPDATES)}.")
    check_layer(weight, gram, damping)
    if kind == "none":
        return Updated(weight.detach().masked_fill(~keep.to(weight.device), 0), damping, {})
    device, notes, largest, parts = gram.matrix.device, Counter[str](), damping, []
    masks = gram.split(keep.to(device))
    # detached: threads of this module would record gradients
    given = promote_range(weight.detach().to(device), gram)
    for dense, part, mask in zip(gram.split(given), gram.parts(), masks, strict=True):
        if part.dead.all():
            parts.append(dense.masked_fill(~mask, 0).double())
            notes[UNSEEN] += 1
            continue
        result, used = with_damping(part, damping, _attempt(kind, dense, mask, notes), notes)
        parts.append(result.double().masked_fill(~mask, 0))
        largest = max(largest, used)
    return Updated(cast_back(torch.cat(parts), weight.detach(), keep, notes), largest, dict(notes))


def _attempt(
    kind: str, weight: Float[Tensor, "r d"], keep: Bool[Tensor, "r d"], notes: Counter[str]
) -> Callable[[Tensor], Tensor]:
    """An update as a function of the damped Hessian."""
    if kind == "refit":
        return lambda hessian: refit(weight.double(), hessian, keep, notes)
    if kind == "admm":
        return lambda hessian: admm(weight, hessian, lambda step, values: keep)[0]
    return lambda hessian: sweep(
        weight.double(), inverse_factor(hessian), lambda first, values, own: keep[:, first : first + values.shape[1]]
    )[0]
