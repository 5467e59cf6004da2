"""Descent on one layer by compensated blocks: the mask that costs least once the kept weights have adapted.

A sweep gives every row one block of its borderline weights: the support's inverse, the block QUBO, the
solver's answer, which counts only if the exact energy falls, then exact swaps. With the pattern ``layer``
budget moves between rows after each sweep. See :mod:`qubo_prune.hessian.compensated` for the mathematics.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.blocks.rows import UNFED, DescentResult, TracePoint, by_group, tell_sweep
from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.hessian.compensated import DAMPING, Blocks, Curvature, Support, Swaps, sufficient
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.linalg import in_threads
from qubo_prune.masks.keep import Pattern
from qubo_prune.precision import pinned
from qubo_prune.problem.qubo import BlockBatch
from qubo_prune.solver.block_counts import BlockCounts, by_kind
from qubo_prune.solver.dispatch import Handling, solve_batch
from qubo_prune.solver.interface import BatchRequest, Solver, derive_seed

_log = logging.getLogger(__name__)

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


@pinned()
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
    frozen = torch.zeros_like(keep) if stays is None else stays
    parts = list(zip(gram.split(weight), gram.parts(), gram.split(keep), gram.split(frozen), strict=True))

    def run(number: int, seed: int, left: Deadline) -> DescentResult:
        tried = replace(settings, seed=seed)
        while True:
            descent = _Descent(*parts[number], pattern, tried, left, settings.damping)
            try:
                return descent.result()
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                # rounding made a part of the inverse indefinite
                tried = descent.with_more_precision()

    return by_group(len(parts), run, settings.seed, deadline or Deadline(None))


class _Descent:
    """One Gram's rows: masks, exact energies and the ledger."""

    def __init__(
        self, weight: Tensor, gram: Gram, keep: Tensor, frozen: Tensor, pattern: Pattern,
        settings: CompensatedDescent, deadline: Deadline, asked: float,
    ) -> None:  # fmt: skip
        self._pattern, self._settings, self._deadline = pattern, settings, deadline
        self._device = gram.matrix.device
        self._x, self._frozen = ~keep.to(self._device), frozen.to(self._device)
        self._began, self._notes = time.perf_counter(), Counter[str]()
        self._steps = self._accepted = 0
        self._solver_gain = self._polish_gain = 0.0
        self._trace: list[TracePoint] = []
        self._blocks = BlockCounts()
        self._curvature: Curvature | None = None
        if not gram.diagonal.any():
            self._notes[UNFED] = 1
            return
        curvature = Curvature.of(gram, settings.damping, torch.float64)
        if curvature.damping > asked:
            self._notes[f"Damping was raised to {curvature.damping:g} of the mean diagonal."] = 1
        scaled = weight.to(self._device, torch.float64) * curvature.scale
        dtype = torch.promote_types(settings.dtype, sufficient(curvature, scaled))
        self._curvature = replace(curvature, inverse=curvature.inverse.to(dtype))
        self._weight = scaled.to(dtype)
        self._energy = torch.full((len(weight),), torch.nan, dtype=torch.float64, device=self._device)

    def with_more_precision(self) -> CompensatedDescent:
        """Settings for another attempt where a factorisation failed: more digits, then more damping."""
        assert self._curvature is not None
        if self._weight.dtype != torch.float64:
            return replace(self._settings, dtype=torch.float64)
        if not self._curvature.damping < 1:
            raise InputError("The layer's Gram is not positive definite, even with its whole mean diagonal as damping.")
        return replace(self._settings, damping=min(1.0, max(10 * self._curvature.damping, 1e-8)))

    def result(self) -> DescentResult:
        """Run to the end or to the deadline."""
        if self._curvature is None:
            self._trace = [TracePoint(0.0, 0.0, 0)]
        else:
            self._sweeps()
        return DescentResult(
            ~self._x, self._steps, self._accepted, time.perf_counter() - self._began, self._deadline.expired,
            self._solver_gain, self._polish_gain, dict(self._notes), tuple(self._trace), self._blocks,
        )  # fmt: skip

    def _sweeps(self) -> None:
        counts, d = self._x.sum(1), self._x.shape[1]
        self._energy[counts == 0] = 0.0
        active = ((counts > 0) & (counts < d)).nonzero()[:, 0]
        if not self._deadline.expired:
            self._settle((counts == d).nonzero()[:, 0])
        for sweep in range(self._settings.max_sweeps):
            if not len(active) or self._deadline.expired:
                break
            before, offers = self._sweep(active, sweep)
            if torch.isnan(self._energy).any():  # the time was over
                break
            if sweep == 0:
                self._mark(before, 0, 0)
            going = before - self._energy > _WORTH * before
            if self._pattern.name == "layer" and offers:
                going[self._exchange(offers)] = True
            active = active[going[active]]
            self._mark(self._energy, self._accepted, self._steps)
        left = torch.isnan(self._energy).nonzero()[:, 0]
        if len(left) and self._deadline.expired:  # their energies would take what there is no time for
            self._trace = []
            return
        self._settle(left)
        self._mark(self._energy, self._accepted, self._steps)

    def _mark(self, energy: Float[Tensor, " d_out"], accepted: int, steps: int) -> None:
        seconds = time.perf_counter() - self._began if self._trace else 0.0
        self._trace.append(TracePoint(seconds, float(energy.nansum()), accepted, steps))
        tell_sweep(_log, self._trace[-1].energy, accepted)

    def _parts(self, rows: Int[Tensor, " r"]) -> list[Tensor]:
        """Rows of like counts together, as many at once as the memory takes."""
        counts = self._x[rows].sum(1)
        limit = _ENTRIES.get(self._device.type, _ENTRIES["cpu"])
        most = max(1, int(counts.max())) ** 2
        return list(torch.split(rows[counts.argsort(stable=True)], max(1, limit // most)))

    def _support(self, rows: Int[Tensor, " r"]) -> Support:
        assert self._curvature is not None
        return Support.of(self._weight[rows], self._curvature, self._x[rows])

    def _settle(self, rows: Int[Tensor, " r"]) -> None:
        """Compute the energies of some rows."""
        if len(rows):
            parts = self._parts(rows)
            energies = in_threads(lambda part: self._support(part).energy, parts, self._device)
            for part, energy in zip(parts, energies, strict=True):
                self._energy[part] = energy

    # -- one block per row

    def _sweep(self, rows: Int[Tensor, " r"], sweep: int) -> tuple[Tensor, list[_Offers]]:
        """One block for each of some rows; all energies before, and what the rows offer for an exchange."""
        before, parts = self._energy.clone(), self._parts(rows)
        offers: list[_Offers] = []
        wave = 2 * torch.get_num_threads()
        for at in range(0, len(parts), wave):
            if self._deadline.expired:
                break
            some = parts[at : at + wave]
            emitted = in_threads(self._emit, some, self._device)
            tasks: list[tuple[Tensor, Blocks, Tensor]] = []
            for number, (part, (energy, found)) in enumerate(zip(some, emitted, strict=True), at):
                before[part] = self._energy[part] = energy
                if found is not None:
                    answer = self._solve(*found, derive_seed(self._settings.seed, sweep, number))
                    tasks.append((part, found[0], answer))
            moves = in_threads(lambda task: self._accept(*task[1:]), tasks, self._device)
            offers += [self._book(part, blocks, move) for (part, blocks, _), move in zip(tasks, moves, strict=True)]
        return before, offers

    def _emit(self, rows: Int[Tensor, " r"]) -> tuple[Tensor, tuple[Blocks, BlockBatch] | None]:
        """Energies of some rows, and one block for each with its QUBO; none where nothing can be swapped."""
        support = self._support(rows)
        costs = support.prune_costs.masked_fill_(self._frozen[rows], torch.inf)
        chosen = self._groups(support, rows, costs) if self._pattern.of else self._borderline(support, costs)
        if chosen is None:
            return support.energy, None
        blocks = Blocks.of(support, *chosen)
        return support.energy, (blocks, blocks.batch())

    def _borderline(self, support: Support, costs: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Kept columns that cost least and places of the pruned ones that gain most."""
        half, counts = self._settings.block_size // 2, support.valid.sum(1)
        a = min(half, int(torch.isfinite(costs).sum(1).min()))
        b = min(self._settings.block_size - half, int(counts.min()))
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
        count = min(max(1, self._settings.block_size // m), int(torch.isfinite(promise).sum(1).min()))
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

    def _solve(self, blocks: Blocks, batch: BlockBatch, seed: int) -> Bool[Tensor, "r n"]:
        """The solver's answers."""
        request = BatchRequest(batch, blocks.x.contiguous(), seed, self._deadline.remaining, self._settings.block_time)
        answer = solve_batch(self._settings.solver, request, self._settings.handling)
        self._blocks += BlockCounts.of_batch(answer, len(answer.assignments))
        self._notes.update(answer.notes)
        failures = Counter(status.told(detail) for status, detail in answer.failures.values())
        self._notes = Counter(by_kind(self._notes, failures))
        return answer.assignments

    def _accept(self, blocks: Blocks, answer: Tensor) -> _Move:
        """Take the answers that lower the exact energy, then swap."""
        swaps, start = Swaps.of(blocks, answer), Swaps.of(blocks, blocks.x)
        before, solved = start.energy(blocks.values), swaps.energy(blocks.values)
        worse = ~(solved < before)  # a NaN is worse as well
        swaps.put(worse, start.take(worse))
        solved = torch.where(worse, before, solved)
        if self._settings.polish:
            swaps.descend(self._settings.block_size)
        return _Move(swaps, solved - before, swaps.energy(blocks.values) - solved)

    def _book(self, rows: Int[Tensor, " r"], blocks: Blocks, move: _Move) -> _Offers:
        change = move.solved + move.polished
        better = change < 0
        self._x[rows[better]] = self._x[rows[better]].scatter(1, blocks.columns[better], move.swaps.x[better])
        self._energy[rows] += change.clamp(max=0)
        self._steps += len(rows)
        self._accepted += int(better.sum())
        self._solver_gain -= float(move.solved.sum())
        self._polish_gain -= float(move.polished.sum())
        return _Offers.of(
            rows[better], move.swaps.take(better.nonzero()[:, 0]), blocks.columns[better], self._x.shape[1]
        )

    # -- budget between rows

    def _exchange(self, offers: Sequence[_Offers]) -> Int[Tensor, " r"]:
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
        while count and not self._deadline.expired:
            pruned, restored = cost_at[by_cost[:count]], gain_at[by_gain[:count]]
            rows = torch.cat([pruned, restored]).div(d, rounding_mode="floor")
            rows = torch.nonzero(torch.bincount(rows, minlength=len(self._x)))[:, 0]
            masks, energies = self._x[rows].clone(), self._energy[rows].clone()
            self._x.view(-1)[pruned], self._x.view(-1)[restored] = True, False
            self._settle(rows)
            self._steps += 1
            if float(self._energy[rows].sum()) < float(energies.sum()):
                self._accepted += 1
                return rows
            self._x[rows], self._energy[rows] = masks, energies
            count //= 2
        return torch.zeros(0, dtype=torch.long, device=self._device)


@dataclass(frozen=True, eq=False)
class _Move:
    """What became of one block per row: its slots, and the energy changes by the solver and by the swaps."""

    swaps: Swaps
    solved: Float[Tensor, " r"]
    polished: Float[Tensor, " r"]


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
