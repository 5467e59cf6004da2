"""Descent on one layer by compensated blocks: the mask that costs least once the kept weights have adapted.

A sweep gives every row one block of its borderline weights: the support's inverse, the block QUBO, the
solver's answer, which counts only if the exact energy falls, then exact swaps. With the pattern ``layer``
budget moves between rows after each sweep. See :mod:`qubo_prune.hessian.compensated` for the mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.blocks.rows import (
    UNFED,
    Descent,
    DescentResult,
    EmittedBlocks,
    Moved,
    RowDescent,
    RowState,
    descend_rows,
)
from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.hessian.compensated import DAMPING, Blocks, Curvature, Support, Swaps, sufficient
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.linalg import in_threads
from qubo_prune.masks.keep import Pattern
from qubo_prune.solver.dispatch import Handling
from qubo_prune.solver.interface import BatchResult, Solver

#: A row goes on to the next sweep if the last one took at least this share of its energy away.
_WORTH = 5e-3
#: Changes per row in one exchange of budget, and the share of a gain that its cost may reach.
_EXCHANGED, _MARGIN = 8, 0.8
#: Entries of the inverses that are held at once.
_ENTRIES = {"cpu": 2**23, "cuda": 2**28}


@dataclass(frozen=True)
class CompensatedDescent:
    """Settings.

    Attributes:
        solver: decides the blocks.
        block_size: weights per block, half of them kept and half pruned.
        max_sweeps: most blocks a row takes.
        damping: share of the Gram's mean diagonal that is added to its diagonal.
        polish: follow the solver by exact swaps within the block.
        seed: of the solver.
        block_time: wall-clock seconds that the solver has for a block, or ``None``.
        handling: what is done around the solver.
        dtype: of the search, float64 where float32 does not do (see :func:`qubo_prune.hessian.compensated.sufficient`);
            the weights are fitted in float64 afterwards.
    """

    solver: Solver
    block_size: int = 128
    max_sweeps: int = 1
    damping: float = DAMPING
    polish: bool = True
    seed: int = 0
    block_time: float | None = None
    handling: Handling = field(default_factory=Handling)
    dtype: torch.dtype = torch.float32

    @property
    def descent(self) -> Descent:
        """The part of them that is the loop's."""
        return Descent(
            self.solver,
            self.block_size,
            self.max_sweeps,
            row_swaps=False,
            seed=self.seed,
            block_time=self.block_time,
            handling=self.handling,
        )

    @property
    def hessian(self) -> Compensated:
        """The part of them that is the Hessian's."""
        return Compensated(self.damping, self.polish, self.dtype)


def descend_compensated(
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    keep: Bool[Tensor, "d_out d_in"],
    pattern: Pattern,
    settings: CompensatedDescent,
    deadline: Deadline | None = None,
    stays: Bool[Tensor, "d_out d_in"] | None = None,
) -> DescentResult:
    """Improve a layer's keep mask for weights that adapt; every budget group keeps its count.

    Energies are those of the damped Hessian with all kept weights at their optimum, summed over rows. There is
    no trace if the time was over before the first sweep was.

    Args:
        weight: dense weights.
        gram: the local Hessian of the layer's inputs; groups are descended one after another.
        keep: the warm start.
        pattern: where counts must hold.
        settings: see :class:`CompensatedDescent`.
        deadline: anytime limit; the best mask so far is returned when it expires.
        stays: weights of the warm start that no block may prune; n:m groups that hold one keep their mask.
    """
    return descend_rows(settings.hessian, weight, gram, keep, pattern, settings.descent, deadline, stays)


@dataclass(frozen=True)
class Compensated:
    """Makes the states of a descent by compensated blocks.

    Attributes:
        damping: share of the Gram's mean diagonal that is added to its diagonal.
        polish: follow the solver by exact swaps within the block.
        dtype: of the search, float64 where float32 does not do.
    """

    damping: float = DAMPING
    polish: bool = True
    dtype: torch.dtype = torch.float32

    def __call__(
        self,
        weight: Float[Tensor, "d_out d_in"],
        gram: Gram,
        keep: Bool[Tensor, "d_out d_in"],
        stays: Bool[Tensor, "d_out d_in"] | None,
        pattern: Pattern,
        settings: Descent,
    ) -> CompensatedRows:
        """See :data:`~qubo_prune.blocks.rows.MakeState`."""
        frozen = torch.zeros_like(keep) if stays is None else stays
        return CompensatedRows(_Given(weight, gram, keep, frozen, pattern, settings), self, self.damping)


@dataclass(frozen=True, eq=False)
class _Given:
    """What a state is made of, attempt after attempt."""

    weight: Float[Tensor, "d_out d_in"]
    gram: Gram
    keep: Bool[Tensor, "d_out d_in"]
    frozen: Bool[Tensor, "d_out d_in"]
    pattern: Pattern
    settings: Descent


class CompensatedRows(RowState):
    """One Gram's rows: masks, and exact energies of each row with all kept weights at their optimum.

    Energies are those of the damped Hessian. A row's is computed with its first block.
    """

    def __init__(self, given: _Given, chosen: Compensated, asked: float) -> None:
        self._given, self._chosen, self._asked = given, chosen, asked
        self._pattern, self._block_size = given.pattern, given.settings.block_size
        gram, keep = given.gram, given.keep
        self._device = gram.matrix.device
        self._x, self._frozen = ~keep.to(self._device), given.frozen.to(self._device)
        self._notes: dict[str, int] = {}
        self._curvature: Curvature | None = None
        self._energies = torch.zeros(len(keep), dtype=torch.float64, device=self._device)
        if not gram.diagonal.any():
            self._notes[UNFED] = 1
            return
        curvature = Curvature.of(gram, chosen.damping, torch.float64)
        if curvature.damping > asked:
            self._notes[f"Damping was raised to {curvature.damping:g} of the mean diagonal."] = 1
        scaled = given.weight.to(self._device, torch.float64) * curvature.scale
        dtype = torch.promote_types(chosen.dtype, sufficient(curvature, scaled))
        self._curvature = replace(curvature, inverse=curvature.inverse.to(dtype))
        self._weight = scaled.to(dtype)
        self._energies.fill_(torch.nan)

    def again(self) -> CompensatedRows | None:
        """With more digits, then with more damping: rounding made a part of the inverse indefinite."""
        if self._curvature is None:
            return None
        if self._weight.dtype != torch.float64:
            chosen = replace(self._chosen, dtype=torch.float64)
        elif self._curvature.damping < 1:
            chosen = replace(self._chosen, damping=min(1.0, max(10 * self._curvature.damping, 1e-8)))
        else:
            raise InputError("The layer's Gram is not positive definite, even with its whole mean diagonal as damping.")
        return CompensatedRows(self._given, chosen, self._asked)

    # -- what is known

    @property
    def notes(self) -> Mapping[str, int]:
        """That the inputs are zero, or that damping had to be raised."""
        return self._notes

    @property
    def together(self) -> int:
        """Two parts for each core, since they are factored matrix by matrix."""
        return 2 * torch.get_num_threads()

    @property
    def first_round(self) -> int:
        """Sweeps count from 0."""
        return 0

    def energy(self) -> float | None:
        """The sum over all rows, once each of them is known."""
        return _total(self._energies)

    def start_energy(self) -> float | None:
        """The sum of what each row had before its first block."""
        return None if self._curvature is None else _total(self._started)

    def keep_mask(self) -> Bool[Tensor, "d_out d_in"]:
        """The mask as it is, True = keep."""
        return ~self._x

    # -- the hooks

    def begin(self, descent: RowDescent) -> None:
        """Compute the energies of rows that get no block."""
        if self._curvature is None:
            return
        counts = self._x.sum(1)
        self._energies[counts == 0] = 0.0
        if not descent.deadline.expired:
            self._settle((counts == self._x.shape[1]).nonzero()[:, 0])
        self._started = self._energies.clone()

    def between_sweeps(self, descent: RowDescent, moves: Sequence[Moved]) -> Int[Tensor, " r"]:
        """With the pattern ``layer``, an exchange of what the rows offer."""
        offers = [move.ticket for move in moves if move.ticket is not None]
        if self._pattern.name == "layer" and offers:
            return self._exchange(offers, descent)
        return torch.zeros(0, dtype=torch.long, device=self._device)

    def finish(self, descent: RowDescent) -> None:
        """Compute the energies that are still missing, unless the time is over."""
        if self._curvature is None:
            return
        left = torch.isnan(self._energies).nonzero()[:, 0]
        if not (len(left) and descent.deadline.expired):
            self._settle(left)
            descent.mark()

    def _support(self, rows: Int[Tensor, " r"]) -> Support:
        assert self._curvature is not None
        return Support.of(self._weight[rows], self._curvature, self._x[rows])

    def _settle(self, rows: Int[Tensor, " r"]) -> None:
        """Compute the energies of some rows."""
        if len(rows):
            parts = self.parts(rows)
            energies = in_threads(lambda part: self._support(part).energy, parts, self._device)
            for part, energy in zip(parts, energies, strict=True):
                self._energies[part] = energy

    # -- one block per row

    def movable(self) -> Int[Tensor, " r"]:
        """The rows that are neither dense nor empty."""
        counts, d = self._x.sum(1), self._x.shape[1]
        some = (counts > 0) & (counts < d) & (self._curvature is not None)
        return some.nonzero()[:, 0]

    def parts(self, rows: Int[Tensor, " r"]) -> Sequence[Int[Tensor, " _"]]:
        """Rows of like counts together, as many at once as the memory takes."""
        counts = self._x[rows].sum(1)
        limit = _ENTRIES.get(self._device.type, _ENTRIES["cpu"])
        most = max(1, int(counts.max())) ** 2
        return torch.split(rows[counts.argsort(stable=True)], max(1, limit // most))

    def emit(self, rows: Int[Tensor, " r"], misses: Int[Tensor, " r"], seed: int) -> Sequence[EmittedBlocks]:
        """One block for each row with its QUBO; none where nothing can be swapped."""
        support = self._support(rows)
        self._energies[rows] = energy = support.energy
        started = self._started[rows]
        self._started[rows] = torch.where(torch.isnan(started), energy, started)
        costs = support.prune_costs.masked_fill_(self._frozen[rows], torch.inf)
        chosen = self._groups(support, rows, costs) if self._pattern.of else self._borderline(support, costs)
        if chosen is None:
            return []
        blocks = Blocks.of(support, *chosen)
        return [EmittedBlocks(rows, blocks.batch(), blocks.x.contiguous(), ticket=blocks)]

    def _borderline(self, support: Support, costs: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Kept columns that cost least and places of the pruned ones that gain most."""
        half, counts = self._block_size // 2, support.valid.sum(1)
        a = min(half, int(torch.isfinite(costs).sum(1).min()))
        b = min(self._block_size - half, int(counts.min()))
        if min(a, b) < 1:
            return None
        kept = costs.topk(a, largest=False).indices
        places = support.restore_gains.topk(b).indices
        return kept, places, torch.zeros(a + b, dtype=torch.long, device=self._device)

    def _groups(self, support: Support, rows: Int[Tensor, " r"], costs: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """The same for whole n:m groups, those whose best swap gains most."""
        n, m = self._pattern.keep, self._pattern.of
        x = self._x[rows]
        if n == m:
            return None
        gains = torch.full_like(support.values, -torch.inf).scatter_(1, support.pruned, support.restore_gains)
        shape = (len(rows), -1, m)
        promise = costs.reshape(shape).amin(2) - gains.reshape(shape).amax(2)
        promise = promise.masked_fill_(self._frozen[rows].reshape(shape).any(2), torch.inf)
        count = min(max(1, self._block_size // m), int(torch.isfinite(promise).sum(1).min()))
        if not count:
            return None
        groups = promise.topk(count, largest=False).indices
        columns = groups[:, :, None] * m + torch.arange(m, device=x.device)
        order = x.gather(1, columns.flatten(1)).reshape(columns.shape).long().argsort(dim=2, stable=True)
        columns = columns.gather(2, order)
        places = (x.cumsum(1) - 1).gather(1, columns[:, :, n:].flatten(1))
        numbers = torch.arange(count, device=x.device)
        labels = torch.cat([numbers.repeat_interleave(n), numbers.repeat_interleave(m - n)])
        return columns[:, :, :n].flatten(1), places, labels

    def accept(self, rows: Int[Tensor, " r"], answered: Sequence[tuple[EmittedBlocks, BatchResult]]) -> Moved:
        """Take the answers that lower the exact energy, then swap."""
        before = self._energies[rows]
        change, solver_gain, polish_gain, offers = torch.zeros_like(before), 0.0, 0.0, None
        for given, answer in answered:
            blocks: Blocks = given.ticket
            swaps, solved, polished = self._moved(blocks, answer.assignments)
            change = solved + polished
            better = change < 0
            self._x[rows[better]] = self._x[rows[better]].scatter(1, blocks.columns[better], swaps.x[better])
            self._energies[rows] += change.clamp(max=0)
            solver_gain, polish_gain = -float(solved.sum()), -float(polished.sum())
            better_swaps = swaps.take(better.nonzero()[:, 0])
            offers = _Offers.of(rows[better], better_swaps, blocks.columns[better], self._x.shape[1])
        worth = before - self._energies[rows] > _WORTH * before
        return Moved(rows, change, worth, solver_gain, polish_gain, offers)

    def _moved(self, blocks: Blocks, answer: Tensor) -> tuple[Swaps, Tensor, Tensor]:
        """The slots of the blocks in the end, and the energy changes by the solver and by the swaps."""
        swaps, start = Swaps.of(blocks, answer), Swaps.of(blocks, blocks.x)
        before, solved = start.energy(blocks.values), swaps.energy(blocks.values)
        worse = ~(solved < before)  # a NaN is worse as well
        swaps.put(worse, start.take(worse))
        solved = torch.where(worse, before, solved)
        if self._chosen.polish:
            swaps.descend(self._block_size)
        return swaps, solved - before, swaps.energy(blocks.values) - solved

    # -- budget between rows

    def _exchange(self, offers: Sequence[_Offers], descent: RowDescent) -> Int[Tensor, " r"]:
        """Prune where it is cheap and restore where it gains, as many; the rows that changed.

        Costs are those of single changes, so the energies of all rows concerned are computed anew and
        the exchange is halved while they did not fall.
        """
        costs, cost_at = (torch.cat(part) for part in zip(*(offer.prune for offer in offers), strict=True))
        gains, gain_at = (torch.cat(part) for part in zip(*(offer.restore for offer in offers), strict=True))
        by_cost, by_gain = costs.argsort(), gains.argsort(descending=True)
        most = min(len(costs), len(gains))
        count = int((costs[by_cost[:most]] < _MARGIN * gains[by_gain[:most]]).sum())
        d = self._x.shape[1]
        while count and not descent.deadline.expired:
            pruned, restored = cost_at[by_cost[:count]], gain_at[by_gain[:count]]
            rows = torch.cat([pruned, restored]).div(d, rounding_mode="floor")
            rows = torch.nonzero(torch.bincount(rows, minlength=len(self._x)))[:, 0]
            masks, energies = self._x[rows].clone(), self._energies[rows].clone()
            self._x.view(-1)[pruned], self._x.view(-1)[restored] = True, False
            self._settle(rows)
            lower = float(self._energies[rows].sum()) < float(energies.sum())
            descent.book(1, int(lower))
            if lower:
                return rows
            self._x[rows], self._energies[rows] = masks, energies
            count //= 2
        return torch.zeros(0, dtype=torch.long, device=self._device)


def _total(energies: Float[Tensor, " d_out"]) -> float | None:
    """Their sum, unless one of them is not known."""
    return None if torch.isnan(energies).any() else float(energies.nansum())


@dataclass(frozen=True, eq=False)
class _Offers:
    """Single changes that rows offer, with their place in the flattened mask of the layer.

    Attributes:
        prune: costs of pruning kept weights, and where.
        restore: gains of restoring pruned ones, and where.
    """

    prune: tuple[Tensor, Tensor]
    restore: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, rows: Int[Tensor, " r"], swaps: Swaps, columns: Int[Tensor, "r n"], d: int) -> _Offers:
        """The best few of each row's block."""
        places = (rows[:, None] * d + columns).gather(1, swaps.columns)
        a = swaps.kept.shape[1]

        def best(values: Tensor, where: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
            found, at = values.topk(min(_EXCHANGED, values.shape[1]), largest=largest)
            return found.flatten(), where.gather(1, at).flatten()

        return cls(best(swaps.prune_costs, places[:, :a], False), best(swaps.restore_gains, places[:, a:], True))
