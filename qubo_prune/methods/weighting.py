"""Outputs that count by what their errors cost the loss, for methods that know nothing of it.

With the curvature ``diag(s) (x) H`` a move D of a layer's weights costs ``1/2 sum_r s_r D_r H D_r'``, which is the
output error of ``diag(s)^(1/2) D``. So a method is given the rows of the weights times ``sqrt(s_r)`` and the Gram as it
is, and the weights that it makes are divided by that again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from qubo_prune.hessian.linalg import cast_back, work_dtype
from qubo_prune.methods.base import Decision, LayerTask


def weighted(task: LayerTask, weights: Float[Tensor, " r"]) -> LayerTask:
    """The task with the rows times ``sqrt(weights)``."""
    roots = weights.to(task.weight.device).double().sqrt()[:, None]
    return replace(task, weight=(roots * task.weight.double()).to(work_dtype(task.weight)))


def unweighted(decision: Decision, weights: Float[Tensor, " r"], dense: Float[Tensor, "r d"]) -> Decision:
    """What was decided for such a task, for the weights as they are."""
    if decision.weight is None:
        return decision
    notes = Counter(decision.notes)
    roots = weights.to(decision.weight.device).double().sqrt()[:, None]
    updated = cast_back(decision.weight.double() / roots, dense, decision.keep, notes)
    updated = updated.masked_fill(~decision.keep.to(updated.device), 0)
    return replace(decision, weight=updated, notes=dict(notes))
