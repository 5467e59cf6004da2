"""Block coordinate descent on one layer: select, emit, solve, verify, accept, merge; then swaps.

Every row of a layer takes its blocks one after another, each block seeing the rest of its row
through its linear term; the rows advance together. The layer's energy
``1/2 tr((W*x) H (W*x)')``, the mean squared output error of the masked layer, never rises.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.blocks.gram_rows import LayerState
from qubo_prune.blocks.selection import borderline_block
from qubo_prune.clock import Deadline
from qubo_prune.events import event
from qubo_prune.hessian.gram import Gram
from qubo_prune.masks.keep import Pattern
from qubo_prune.precision import pinned
from qubo_prune.solver.block_counts import NONE, BlockCounts, by_kind, total
from qubo_prune.solver.dispatch import Handling, solve_batch
from qubo_prune.solver.interface import BatchRequest, Solver, Status, derive_seed
from qubo_prune.solver.swaps.greedy import Greedy

_log = logging.getLogger(__name__)

#: What is said of a layer, or of a group of a convolution, that no input can tell masks apart for.
UNFED = "All calibration inputs of this layer are zero; its warm start stayed."


@dataclass(frozen=True)
class Descent:
    """Settings of the descent.

    Attributes:
        solver: decides the blocks.
        block_size: weights per block, half of them kept and half pruned.
        max_sweeps: most blocks a row takes before the whole-row swaps.
        patience: a row leaves the sweeps after so many blocks in turn that brought nothing; after
            the first of them its blocks are drawn at random from a wider pool.
        row_swaps: finish with best swaps over whole rows.
        seed: of the solver and of random draws.
        block_time: wall-clock seconds that the solver has for a block, or ``None``.
        handling: what is done around the solver: polish, penalty, processes.
    """

    solver: Solver
    block_size: int = 64
    max_sweeps: int = 1
    patience: int = 1
    row_swaps: bool = True
    seed: int = 0
    block_time: float | None = None
    handling: Handling = field(default_factory=Handling)


@dataclass(frozen=True)
class TracePoint:
    """Progress of a layer: seconds since its descent began, its energy, blocks accepted and tried so far.

    ``steps`` is 0 in records that were written before it was counted.
    """

    seconds: float
    energy: float
    accepted: int
    steps: int = 0


def tell_sweep(logger: logging.Logger, energy: float, accepted: int) -> None:
    """Log where a layer is after a sweep."""
    sentence = f"Energy {energy:.6g} after {accepted} accepted blocks."
    event(logger, "sweep", sentence, energy=energy, accepted=accepted)


@dataclass(frozen=True, eq=False)
class DescentResult:
    """The best mask found and how it came about.

    Attributes:
        keep: the keep mask.
        steps: blocks solved (a whole row at the end counts as one).
        accepted: blocks that lowered the energy.
        solver_gain: how much of the energy the solver's answers took away.
        polish_gain: how much more the swaps on its blocks did; what is left of the whole gain is the
            whole-row swaps'.
        kept_start: why other blocks stayed as they were, as sentences, each with its number.
        blocks: how many blocks the solver was given, lost, and was cut in by the clock.
        stopped_early: the time budget ended the descent.
        trace: the energy after each sweep.
    """

    keep: Bool[Tensor, "d_out d_in"]
    steps: int
    accepted: int
    seconds: float
    stopped_early: bool
    solver_gain: float = 0.0
    polish_gain: float = 0.0
    kept_start: dict[str, int] = field(default_factory=dict)
    trace: tuple[TracePoint, ...] = ()
    blocks: BlockCounts = NONE


@pinned()
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
    parts = list(zip(gram.split(weight), gram.parts(), gram.split(keep), strict=True))

    def run(number: int, seed: int, left: Deadline) -> DescentResult:
        return _Run(LayerState(*parts[number], pattern), pattern, replace(settings, seed=seed), left).result()

    return by_group(len(parts), run, settings.seed, deadline or Deadline(None))


def by_group(
    groups: int, run: Callable[[int, int, Deadline], DescentResult], seed: int, deadline: Deadline
) -> DescentResult:
    """``run(number, seed, deadline)`` of groups of rows in turn, each with an equal share of the time left."""
    if groups == 1:
        return run(0, seed, deadline)
    results = []
    for number in range(groups):
        left = deadline.remaining
        share = deadline if left is None else Deadline(left / (groups - number))
        results.append(run(number, derive_seed(seed, number), share))
    return merged(results)


def merged(results: Sequence[DescentResult]) -> DescentResult:
    """The descents of several groups of rows, which add up; the trace has a point for each group that has one."""
    notes: Counter[str] = Counter()
    for result in results:
        notes.update(result.kept_start)
    traced = [result for result in results if result.trace]
    trace = [TracePoint(0.0, sum(result.trace[0].energy for result in traced), 0)]
    for result in traced:
        change = result.trace[-1].energy - result.trace[0].energy
        before = trace[-1]
        trace.append(
            TracePoint(
                before.seconds + result.seconds, before.energy + change, before.accepted + result.accepted,
                before.steps + result.steps,
            )
        )  # fmt: skip
    return DescentResult(
        torch.cat([result.keep for result in results]),
        sum(result.steps for result in results),
        sum(result.accepted for result in results),
        sum(result.seconds for result in results),
        any(result.stopped_early for result in results),
        sum(result.solver_gain for result in results),
        sum(result.polish_gain for result in results),
        dict(notes),
        tuple(trace),
        total(result.blocks for result in results),
    )


def _everything(state: LayerState) -> Int[Tensor, " r"]:
    return torch.arange(len(state.weight), device=state.weight.device)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What became of one problem per row in some rows."""

    rows: Int[Tensor, " r"]
    change: Float[Tensor, " r"]
    steps: int
    failures: tuple[tuple[Status, str], ...] = ()
    solver_gain: float = 0.0
    polish_gain: float = 0.0
    notes: Counter[str] = field(default_factory=Counter)
    blocks: BlockCounts = NONE


class _Run:
    """One descent: the layer's state, and the ledger of what was tried."""

    def __init__(self, state: LayerState, pattern: Pattern, settings: Descent, deadline: Deadline) -> None:
        self._state, self._pattern, self._settings, self._deadline = state, pattern, settings, deadline
        self._began = time.perf_counter()
        self._steps = self._accepted = self._rounds = 0
        self._solver_gain = self._polish_gain = 0.0
        self._kept_start: Counter[str] = Counter()
        self._blocks = BlockCounts()
        self._energy = state.energy()
        self._trace = [TracePoint(0.0, self._energy, 0)]

    def result(self) -> DescentResult:
        """Run to the end or to the deadline."""
        if self._state.x.shape[1]:
            self._search()
        else:
            self._kept_start[UNFED] = 1
        return DescentResult(
            self._state.keep_mask(),
            self._steps,
            self._accepted,
            time.perf_counter() - self._began,
            self._deadline.expired,
            self._solver_gain,
            self._polish_gain,
            dict(self._kept_start),
            tuple(self._trace),
            self._blocks,
        )

    def _search(self) -> None:
        self._sweeps()
        if self._settings.row_swaps:
            self._row_swaps(_everything(self._state))
        if self._pattern.name == "layer" and self._state.x.numel():
            self._exchange_between_rows()

    def _round(
        self, solve_part: Callable[[Tensor, int], _Outcome], rows: Int[Tensor, " r"], entries: int
    ) -> list[_Outcome]:
        """Solve one problem in each of some rows, so many rows at once as suits the memory; book it."""
        self._rounds += 1
        limit = max(16, (2**20 if rows.device.type == "cpu" else 2**27) // max(1, entries))
        outcomes = []
        for part, some in enumerate(torch.split(rows, limit)):
            if self._deadline.expired:
                break
            outcome = solve_part(some, derive_seed(self._settings.seed, self._rounds, part))
            outcomes.append(outcome)
            self._steps += outcome.steps
            self._accepted += int((outcome.change < 0).sum())
            self._energy += float(outcome.change.sum())
            self._solver_gain += outcome.solver_gain
            self._polish_gain += outcome.polish_gain
            self._blocks += outcome.blocks
            self._kept_start.update(outcome.notes)
            failures = Counter(status.told(detail) for status, detail in outcome.failures)
            self._kept_start = Counter(by_kind(self._kept_start, failures))
        self._trace.append(TracePoint(time.perf_counter() - self._began, self._energy, self._accepted, self._steps))
        tell_sweep(_log, self._energy, self._accepted)
        return outcomes

    def _sweeps(self) -> None:
        """Give every active row one block after another until none improves."""
        active = _everything(self._state)
        misses = torch.zeros(len(active), dtype=torch.long, device=active.device)
        for _ in range(self._settings.max_sweeps):
            if not len(active) or self._deadline.expired:
                break
            # the Hessian of each row's block fills the memory, but most steps read only rows of it
            entries = self._settings.block_size**2 // 4
            for outcome in self._round(lambda rows, seed: self._sweep(rows, misses[rows], seed), active, entries):
                rows = outcome.rows
                misses[rows] = torch.where(outcome.change < 0, 0, misses[rows] + 1)
            active = active[misses[active] < self._settings.patience]

    def _sweep(self, rows: Int[Tensor, " r"], misses: Int[Tensor, " r"], seed: int) -> _Outcome:
        """Solve one block in each of some rows."""
        change = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        steps, solver_gain, polish_gain, notes, blocks = 0, 0.0, 0.0, Counter[str](), BlockCounts()
        failures: list[tuple[Status, str]] = []
        num_pruned = self._state.masks(rows).sum(1)
        half, d = self._settings.block_size // 2, self._state.weight.shape[1]
        # blocks of one batch have one shape; rows that are nearly dense or empty go apart
        short = torch.minimum(num_pruned, d - num_pruned) < half
        for part in (~short, short):
            movable = part & (num_pruned > 0) & (num_pruned < d)
            if movable.any():
                outcome = self._solve_blocks(rows[movable], misses[movable], seed)
                change[movable] = outcome.change
                steps, failures = steps + outcome.steps, [*failures, *outcome.failures]
                solver_gain, polish_gain = solver_gain + outcome.solver_gain, polish_gain + outcome.polish_gain
                notes.update(outcome.notes)
                blocks += outcome.blocks
        return _Outcome(rows, change, steps, tuple(failures), solver_gain, polish_gain, notes, blocks)

    def _solve_blocks(self, rows: Int[Tensor, " r"], misses: Int[Tensor, " r"], seed: int) -> _Outcome:
        state, size = self._state, self._settings.block_size
        costs, x = state.flip_costs(rows), state.masks(rows)
        draw = torch.Generator().manual_seed(seed)
        columns, labels = borderline_block(costs, x, state.groups, size, misses, draw)
        if not len(labels):
            return _Outcome(rows, torch.zeros(len(rows), dtype=torch.float64, device=rows.device), 0)
        start = x.gather(1, columns) > 0
        request = BatchRequest(
            state.emit(rows, columns, labels), start, seed, self._deadline.remaining, self._settings.block_time,
            costs.gather(1, columns),
        )  # fmt: skip
        answer = solve_batch(self._settings.solver, request, self._settings.handling)
        better = answer.change < 0
        moved = x.scatter(1, columns, answer.assignments.to(x.dtype))
        if better.all():
            state.move(rows, moved)
        else:
            state.move(rows[better], moved[better])
        solver_gain = -float(answer.solver_change.sum())
        polish_gain = -float(answer.change.sum()) - solver_gain
        return _Outcome(
            rows, answer.change, len(rows), tuple(answer.failures.values()), solver_gain, max(0.0, polish_gain),
            Counter(answer.notes), BlockCounts.of_batch(answer, len(rows)),
        )  # fmt: skip

    def _row_swaps(self, rows: Int[Tensor, " r"]) -> None:
        """Best swaps over whole rows, from the shared Gram."""
        swaps, state = Greedy(), self._state

        def swap(part: Tensor, seed: int) -> _Outcome:
            request = BatchRequest(
                state.emit_whole(part), state.masks(part) > 0, seed, self._deadline.remaining,
                flip_costs=state.flip_costs(part),
            )  # fmt: skip
            answer = solve_batch(swaps, request)
            # nothing but the exchange between rows follows, which refreshes the field
            state.move(part, answer.assignments.to(state.x.dtype), update_field=False)
            return _Outcome(part, answer.change, len(part), tuple(answer.failures.values()))

        if not self._deadline.expired:
            self._round(swap, rows, state.weight.shape[1])

    def _exchange_between_rows(self) -> None:
        """Move budget from row to row: prune in one, restore in another, while that lowers the energy.

        Rows are not coupled, so exchanges of disjoint pairs of rows add up exactly. Rows that
        changed are swapped to an optimum of their own again.
        """
        state = self._state
        for _ in range(100):
            if self._deadline.expired:
                return
            state.refresh()
            costs = state.flip_costs(_everything(state))
            cost, cheap = costs.masked_fill(state.x > 0, torch.inf).min(1)
            gain, dear = costs.masked_fill(state.x == 0, -torch.inf).max(1)
            giver, taker = _match_rows(cost, gain, self._energy * 1e-12)
            if not len(giver):
                return
            rows = torch.cat([giver, taker]).sort().values
            x = state.x[rows]
            x[torch.searchsorted(rows, giver), cheap[giver]] = 1
            x[torch.searchsorted(rows, taker), dear[taker]] = 0
            state.move(rows, x)
            self._energy += float((cost[giver] - gain[taker]).sum())
            self._steps += len(giver)
            self._accepted += len(giver)
            self._row_swaps(rows)


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
