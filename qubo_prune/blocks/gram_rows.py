"""Descent on one layer by blocks of its Gram: the energy of a block is that of the layer.

A sweep gives every row one block of its borderline weights, rows that brought nothing others than the last time; or
the whole row as one block. Best swaps over whole rows follow unless they are turned off, and with the pattern ``layer``
an exchange of budget between rows. The layer's energy
``1/2 tr((W*x) H (W*x)')``, the mean squared output error of the masked layer, never rises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.blocks.emission import emit_rows, emit_whole_rows
from qubo_prune.blocks.rows import (
    UNFED,
    Descent,
    DescentResult,
    EmittedBlocks,
    Moved,
    RowDescent,
    RowState,
    descend_rows,
    in_parts,
)
from qubo_prune.blocks.selection import borderline_block
from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.hessian.gram import Gram
from qubo_prune.masks.keep import Pattern
from qubo_prune.problem.qubo import BlockBatch
from qubo_prune.solver.interface import BatchResult
from qubo_prune.solver.swaps.greedy import Greedy


def descend(
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    keep: Bool[Tensor, "d_out d_in"],
    pattern: Pattern,
    settings: Descent,
    deadline: Deadline | None = None,
) -> DescentResult:
    """Improve a layer's keep mask; every budget of the pattern keeps the count that ``keep`` gives it.

    The groups of a grouped convolution are descended one after another; with the pattern ``layer``
    each of them keeps the count that ``keep`` gives it.

    Args:
        weight: dense weights.
        gram: the local Hessian of the layer's inputs.
        keep: the warm start.
        pattern: where counts must hold.
        settings: solver, block size, limits.
        deadline: anytime limit; the best mask so far is returned when it expires.
    """
    return descend_rows(GramRows, weight, gram, keep, pattern, settings, deadline)


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

    def everything(self) -> Int[Tensor, " r"]:
        """The numbers of all rows."""
        return torch.arange(len(self.weight), device=self.weight.device)

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


class GramRows(RowState):
    """The rows of a layer on its Gram while they are descended.

    Attributes:
        layer: mask, field and flip costs. Its energy is measured once; from then on the changes, which are exact, are
            booked.
    """

    def __init__(
        self,
        weight: Float[Tensor, "d_out d_in"],
        gram: Gram,
        keep: Bool[Tensor, "d_out d_in"],
        stays: Bool[Tensor, "d_out d_in"] | None,
        pattern: Pattern,
        settings: Descent,
    ) -> None:
        if stays is not None and stays.any():
            raise InputError(
                "Blocks of the plain Gram may prune any weight; take compensated ones to hold some of them."
            )
        self.layer = LayerState(weight, gram, keep, pattern)
        self._settings, self._across_rows = settings, pattern.name == "layer"
        self._booked = self.layer.energy()

    @property
    def notes(self) -> Mapping[str, int]:
        """That no input is alive, if so."""
        return {} if self.layer.x.shape[1] else {UNFED: 1}

    def energy(self) -> float:
        """``1/2 tr((W*x) H (W*x)')``, as booked."""
        return self._booked

    def keep_mask(self) -> Bool[Tensor, "d_out d_in"]:
        """The keep mask of the whole layer, dead inputs as they were."""
        return self.layer.keep_mask()

    def movable(self) -> Int[Tensor, " r"]:
        """All rows; those that are dense or empty find no block."""
        return self.layer.everything() if self.layer.x.shape[1] else self.layer.everything()[:0]

    def parts(self, rows: Int[Tensor, " r"]) -> Sequence[Int[Tensor, " _"]]:
        """As many rows at once as suits the memory."""
        if self._settings.whole_rows:  # they share the Hessian
            return in_parts(rows, self.layer.weight.shape[1])
        # the Hessian of each row's block fills the memory, but most steps read only rows of it
        return in_parts(rows, self._settings.block_size**2 // 4)

    def emit(self, rows: Int[Tensor, " r"], misses: Int[Tensor, " r"], seed: int) -> Sequence[EmittedBlocks]:
        """One block, of borderline weights or of all, for each row that is neither dense nor empty."""
        num_pruned = self.layer.masks(rows).sum(1)
        half, d = self._settings.block_size // 2, self.layer.weight.shape[1]
        movable = (num_pruned > 0) & (num_pruned < d)
        if self._settings.whole_rows:
            return [self._whole_rows(rows[movable], movable)] if movable.any() else []
        # blocks of one batch have one shape; rows that are nearly dense or empty go apart
        short = torch.minimum(num_pruned, d - num_pruned) < half
        emitted = []
        for part in (~short & movable, short & movable):
            if part.any():
                emitted += self._blocks(rows[part], misses[part], seed, part)
        return emitted

    def _blocks(
        self, rows: Int[Tensor, " r"], misses: Int[Tensor, " r"], seed: int, places: Bool[Tensor, " p"]
    ) -> list[EmittedBlocks]:
        """The blocks of some rows of a part, with their ``places`` in it; none where no group fits."""
        costs, x = self.layer.flip_costs(rows), self.layer.masks(rows)
        draw = torch.Generator().manual_seed(seed)
        columns, labels = borderline_block(costs, x, self.layer.groups, self._settings.block_size, misses, draw)
        if not len(labels):
            return []
        start, problems = x.gather(1, columns) > 0, self.layer.emit(rows, columns, labels)
        return [EmittedBlocks(rows, problems, start, costs.gather(1, columns), (places, columns, x))]

    def _whole_rows(self, rows: Int[Tensor, " r"], places: Bool[Tensor, " p"]) -> EmittedBlocks:
        """Whole rows as blocks, which share the Hessian, with their ``places`` in the part."""
        (blocks,) = self._emit_whole(rows, 0)
        x = self.layer.masks(rows)
        columns = torch.arange(x.shape[1], device=x.device).expand_as(x)
        return replace(blocks, ticket=(places, columns, x))

    def accept(self, rows: Int[Tensor, " r"], answered: Sequence[tuple[EmittedBlocks, BatchResult]]) -> Moved:
        """Take the answers that lower the energy, which is the layer's."""
        change = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        by_solver = by_polish = 0.0
        for blocks, answer in answered:
            places, columns, x = blocks.ticket
            better = answer.change < 0
            moved = x.scatter(1, columns, answer.assignments.to(x.dtype))
            if better.all():
                self.layer.move(blocks.rows, moved)
            else:
                self.layer.move(blocks.rows[better], moved[better])
            change[places] = answer.change
            gain = -float(answer.solver_change.sum())
            by_solver += gain
            by_polish += max(0.0, -float(answer.change.sum()) - gain)
        self._booked += float(change.sum())
        return Moved(rows, change, change < 0, by_solver, by_polish)

    def finish(self, descent: RowDescent) -> None:
        """Swaps over whole rows if the settings ask for them; then budget moves between rows if the pattern lets it."""
        if not self.layer.x.shape[1]:
            return
        if self._settings.row_swaps:
            self._swap_rows(self.layer.everything(), descent)
        if self._across_rows and self.layer.x.numel():
            self._exchange_between_rows(descent)

    def _swap_rows(self, rows: Int[Tensor, " r"], descent: RowDescent) -> None:
        """Best swaps over whole rows, from the shared Gram."""
        if not descent.deadline.expired:
            descent.round(in_parts(rows, self.layer.weight.shape[1]), self._emit_whole, self._accept_whole, Greedy())
            descent.mark()

    def _emit_whole(self, rows: Int[Tensor, " r"], seed: int) -> Sequence[EmittedBlocks]:
        return [
            EmittedBlocks(rows, self.layer.emit_whole(rows), self.layer.masks(rows) > 0, self.layer.flip_costs(rows))
        ]

    def _accept_whole(self, rows: Int[Tensor, " r"], answered: Sequence[tuple[EmittedBlocks, BatchResult]]) -> Moved:
        ((_, answer),) = answered
        # nothing but the exchange between rows follows, which refreshes the field
        self.layer.move(rows, answer.assignments.to(self.layer.x.dtype), update_field=False)
        self._booked += float(answer.change.sum())
        return Moved(rows, answer.change, answer.change < 0)

    def _exchange_between_rows(self, descent: RowDescent) -> None:
        """Move budget from row to row: prune in one, restore in another, while that lowers the energy.

        Rows are not coupled, so exchanges of disjoint pairs of rows add up exactly. Rows that
        changed are swapped to an optimum of their own again, if the settings have swaps over whole rows.
        """
        for _ in range(100):
            if descent.deadline.expired:
                return
            self.layer.refresh()
            costs = self.layer.flip_costs(self.layer.everything())
            cost, cheap = costs.masked_fill(self.layer.x > 0, torch.inf).min(1)
            gain, dear = costs.masked_fill(self.layer.x == 0, -torch.inf).max(1)
            giver, taker = _match_rows(cost, gain, self._booked * 1e-12)
            if not len(giver):
                return
            rows = torch.cat([giver, taker]).sort().values
            x = self.layer.x[rows]
            x[torch.searchsorted(rows, giver), cheap[giver]] = 1
            x[torch.searchsorted(rows, taker), dear[taker]] = 0
            self.layer.move(rows, x)
            self._booked += float((cost[giver] - gain[taker]).sum())
            descent.book(len(giver), len(giver))
            if self._settings.row_swaps:
                self._swap_rows(rows, descent)
            else:
                descent.mark()


def _match_rows(
    cost: Float[Tensor, " r"], gain: Float[Tensor, " r"], least: float
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Pairs of distinct rows, each row once: the cheapest to prune in with the dearest to restore in."""
    by_cost, by_gain = cost.argsort(stable=True).tolist(), gain.argsort(descending=True, stable=True).tolist()
    costs, gains = cost.tolist(), gain.tolist()
    used: set[int] = set()
    givers, takers = [], []
    i = j = 0
    while i < len(by_cost) and j < len(by_gain):
        if by_cost[i] in used:
            i += 1
        elif by_gain[j] in used or by_gain[j] == by_cost[i]:
            j += 1
        elif costs[by_cost[i]] - gains[by_gain[j]] < -least:
            givers.append(by_cost[i])
            takers.append(by_gain[j])
            used.update((by_cost[i], by_gain[j]))
        else:
            break
    return torch.tensor(givers, device=cost.device, dtype=torch.long), torch.tensor(
        takers, device=cost.device, dtype=torch.long
    )


def _of(array: Float[Tensor, "all d"], rows: Int[Tensor, " r"]) -> Float[Tensor, "r d"]:
    """Some rows, sorted and distinct; all of them without a copy, which is the common case."""
    return array if len(rows) == len(array) else array.index_select(0, rows)


def _complete_groups(labels: Int[Tensor, " d"], size: int) -> Int[Tensor, "g m"]:
    full = torch.bincount(labels) == size
    return full[labels].nonzero()[:, 0].reshape(-1, size)
