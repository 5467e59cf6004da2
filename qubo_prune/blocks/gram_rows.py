"""The state of one layer while its mask is searched: what emission and selection read."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.blocks.emission import emit_rows, emit_whole_rows
from qubo_prune.hessian.gram import Gram
from qubo_prune.masks.keep import Pattern
from qubo_prune.problem.qubo import BlockBatch


class LayerState:
    """Mask, field and flip costs of a layer, in float64, over the inputs that are alive.

    Inputs that are always zero cost nothing, so warm starts prune them first; they take no part
    in the search and stay as the warm start left them.

    Attributes:
        weight: ``(d_out, d)`` dense weights on the d alive inputs.
        hessian: ``(d, d)``.
        x: ``(d_out, d)`` 1 where pruned, held as float64: arithmetic with it is ten times as fast as
            with a bool mask.
        field: ``(d_out, d)``, ``(weight * x) @ hessian``: the loss gradient with its sign turned.
        labels: ``(d,)`` group of each column, 0 to num_groups-1.
        groups: ``(g, m)`` columns of the n:m groups whose inputs are all alive; ``None`` otherwise.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d_out d_in"],
        gram: Gram,
        keep: Bool[Tensor, "d_out d_in"],
        pattern: Pattern,
    ) -> None:
        device, d_in = gram.matrix.device, weight.shape[1]
        self._keep, self._alive = keep.to(device), (~gram.dead).nonzero()[:, 0]
        self.weight, self.x = weight.to(device, torch.float64), (~self._keep).to(torch.float64)
        self.hessian, labels = gram.matrix, pattern.labels(d_in).to(device)
        if len(self._alive) < d_in:
            self.weight, self.x = self.weight[:, self._alive], self.x[:, self._alive]
            self.hessian, labels = self.hessian[self._alive][:, self._alive], labels[self._alive]
        names, self.labels = torch.unique(labels, return_inverse=True)
        self.num_groups = len(names)
        self.groups = _complete_groups(self.labels, pattern.of) if pattern.of else None
        self._own = self.weight.square() * self.hessian.diagonal() / 2
        self.refresh()

    def refresh(self) -> None:
        """Recompute the field from the mask, dropping the rounding of many small updates."""
        self.field = (self.weight * self.x) @ self.hessian

    def energy(self) -> float:
        """``1/2 tr((W*x) H (W*x)')``, the mean squared output error of the masked layer."""
        return float((self.weight * self.x * self.field).sum() / 2)

    def flip_costs(self, rows: Int[Tensor, " r"]) -> Float[Tensor, "r d"]:
        """``K_i = Q_ii + 2 sum_{j != i} Q_ij x_j`` of whole rows: what pruning i adds."""
        own = _of(self._own, rows)
        costs = torch.addcmul(own, _of(self.weight, rows), _of(self.field, rows))
        return costs.addcmul_(own, _of(self.x, rows), value=-2)

    def masks(self, rows: Int[Tensor, " r"]) -> Float[Tensor, "r d"]:
        """The current ``x`` of some rows, not to be written to."""
        return _of(self.x, rows)

    def emit(self, rows: Int[Tensor, " r"], columns: Int[Tensor, "r n"], labels: Int[Tensor, " n"]) -> BlockBatch:
        """One block QUBO per row over the given columns, each seeing the rest of its row."""
        weight, x, field = (_of(array, rows) for array in (self.weight, self.x, self.field))
        return emit_rows(weight, x, self.hessian, field, columns, labels, int(labels.max()) + 1)

    def emit_whole(self, rows: Int[Tensor, " r"]) -> BlockBatch:
        """One problem per row over all its weights, sharing one Hessian."""
        weight, x, field = (_of(array, rows) for array in (self.weight, self.x, self.field))
        return emit_whole_rows(weight, x, self.hessian, field, self.labels, self.num_groups)

    def move(self, rows: Int[Tensor, " r"], x: Float[Tensor, "r d"], update_field: bool = True) -> None:
        """Set whole rows of the mask; ``rows`` are sorted and distinct, ``x`` is taken over.

        ``update_field=False`` saves a product with the Hessian where nothing reads the field any
        more; :meth:`refresh` must be called before anything does.
        """
        everything = len(rows) == len(self.x)
        if update_field:
            pull = (_of(self.weight, rows) * (x - _of(self.x, rows))) @ self.hessian
            if everything:
                self.field += pull
            else:
                self.field.index_add_(0, rows, pull)
        if everything:
            self.x = x
        else:
            self.x[rows] = x

    def keep_mask(self) -> Bool[Tensor, "d_out d_in"]:
        """The keep mask of the whole layer, dead inputs as they were."""
        keep = self._keep.clone()
        keep[:, self._alive] = self.x == 0
        return keep


def _of(array: Float[Tensor, "all d"], rows: Int[Tensor, " r"]) -> Float[Tensor, "r d"]:
    """Some rows, sorted and distinct; all of them without a copy, which is the common case."""
    return array if len(rows) == len(array) else array.index_select(0, rows)


def _complete_groups(labels: Int[Tensor, " d"], size: int) -> Int[Tensor, "g m"]:
    full = torch.bincount(labels) == size
    return full[labels].nonzero()[:, 0].reshape(-1, size)
