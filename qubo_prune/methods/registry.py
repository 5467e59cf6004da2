"""Published pruning methods, for comparison: each chooses a mask, some update the kept weights as well.

Every method gets the same Gram and keeps exactly the counts of the pattern. Where a layer has several
Grams (a grouped convolution) and the pattern is ``layer``, each group of rows keeps as many weights as
Wanda gives it. Inputs that were always zero are pruned first. Magnitude and Wanda are in :mod:`scores`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.hessian.compensated import DAMPING
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.linalg import (
    UNSEEN,
    cast_back,
    check_layer,
    promote_range,
)
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.admm import admm_masks
from qubo_prune.methods.alps import alps
from qubo_prune.methods.base import Choice, Method, Task, by_group, mask_only
from qubo_prune.methods.dsnot import dsnot
from qubo_prune.methods.ria import ria
from qubo_prune.methods.sparsefw import sparsefw
from qubo_prune.methods.sparsegpt import sparsegpt
from qubo_prune.methods.sparseswaps import sparseswaps
from qubo_prune.precision import pinned


@pinned()
def choose(
    name: str,
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    pattern: Pattern | str,
    density: float,
    seed: int = 0,
    damping: float = DAMPING,
) -> Choice:
    """Prune one layer by one of :data:`PEERS`.

    Args:
        name: of the method.
        weight: dense weights.
        gram: of the layer's inputs; a stack of them for a grouped convolution.
        pattern: where counts must hold.
        density: kept share.
        seed: for methods that draw at random; none of these does.
        damping: share of the Gram's mean diagonal that is added to its diagonal, where a method adds any.

    Raises:
        InputError: there is no such method, pattern and density contradict each other, shapes do not fit,
            or the Gram is not positive semidefinite.
    """
    if name not in PEERS:
        raise InputError(f"There is no method {name!r}{did_you_mean(name, PEERS)}; use one of {', '.join(PEERS)}.")
    pattern = Pattern.parse(pattern)
    pattern.check(density, name="weight", d_in=weight.shape[1])
    check_layer(weight, gram, damping)
    notes: Counter[str] = Counter()
    unseen = int(gram.dead.all(-1).sum())
    if unseen:
        notes[UNSEEN] = unseen
    given = promote_range(weight.detach().to(gram.matrix.device), gram)
    keep, updated = PEERS[name].method(Task(given, gram, pattern, density, damping, notes))
    keep = keep.to(weight.device)
    if updated is not None:
        updated = cast_back(updated, weight.detach(), keep, notes).masked_fill(~keep, 0)
    return Choice(keep, updated, dict(notes))


class Peer(NamedTuple):
    """A published method: its name in tables, what runs it, and whether it updates weights."""

    label: str
    method: Method
    updates: bool


#: Published methods by their names.
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "ria": Peer("RIA", ria, False),
        "sparsegpt": Peer("SparseGPT", by_group(sparsegpt), True),
        "admm": Peer("ADMM", by_group(admm_masks), True),
        "alps": Peer("ALPS", by_group(alps), True),
        "dsnot": Peer("DSnoT, from the Gram", mask_only(by_group(dsnot)), False),
        "sparsefw": Peer("SparseFW", mask_only(by_group(sparsefw)), False),
        "sparseswaps": Peer("SparseSwaps", mask_only(by_group(sparseswaps)), False),
    }
)
