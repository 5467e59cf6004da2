"""Weight updates on a fixed mask by name: the kept weights of a layer adapt to what was pruned."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.hessian.compensated import DAMPING
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.linalg import check_layer
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.base import LayerTask, Update
from qubo_prune.methods.registry import make_update
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
    kind: str | Update,
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    keep: Bool[Tensor, "d_out d_in"],
    damping: float = DAMPING,
) -> Updated:
    """The kept weights of one layer after an update.

    Args:
        kind: ``none``, the dense weights masked; the name of an update (``refit``, ``admm``, ``sparsegpt`` and those of
            other distributions), or an :class:`~qubo_prune.methods.base.Update`.
        weight: dense weights.
        gram: of the layer's inputs; a stack of them for a grouped convolution.
        keep: the mask.
        damping: share of the mean diagonal of the Gram that is added to its diagonal.

    Raises:
        InputError: there is no such update, shapes do not fit, or the Gram is not positive semidefinite.
    """
    if kind == "none":
        check_layer(weight, gram, damping)
        return Updated(weight.detach().masked_fill(~keep.to(weight.device), 0), damping, {})
    made = make_update(kind) if isinstance(kind, str) else kind
    # neither the pattern nor the density counts, since the mask is given
    found, notes, largest = made.update(LayerTask(weight, gram, Pattern("row"), 1.0, damping), keep)
    return Updated(found, largest, notes)
