"""Block coordinate descent on the rows of a layer, for any Hessian: emit, solve, verify, accept, sweep after sweep.

Every row takes its blocks one after another, each block seeing the rest of its row; the rows advance together, as
batches. The loop owns the sweeps, the rows that are still at work, the clock, the seeds, all calls of solvers, the
ledger and the trace. What a block is, what it costs and when an answer is taken is up to a :class:`RowState`, of which
each Hessian has its own.

A Hessian of your own is one class that inherits from :class:`RowState` and fills in its abstract methods::

    descend_rows(MyRows, weight, gram, keep, pattern, Descent(solver))
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.clock import Deadline
from qubo_prune.events import event
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.linalg import in_threads
from qubo_prune.masks.keep import Pattern
from qubo_prune.precision import pinned
from qubo_prune.problem.qubo import BlockBatch
from qubo_prune.solver.block_counts import NONE, BlockCounts, by_kind, total
from qubo_prune.solver.dispatch import Handling, solve_batch
from qubo_prune.solver.interface import BatchRequest, BatchResult, Solver, derive_seed

_log = logging.getLogger(__name__)

#: What is said of a layer, or of a group of a convolution, that no input can tell masks apart for.
UNFED = "All calibration inputs of this layer are zero; its warm start stayed."

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Descent:
    """Settings of the descent.

    Attributes:
        solver: decides the blocks.
        block_size: weights per block, half of them kept and half pruned.
        max_sweeps: most blocks a row takes before the whole-row swaps.
        patience: a row leaves the sweeps after so many blocks in turn that brought nothing; after
            the first of them its blocks are drawn at random from a wider pool.
        row_swaps: finish with best swaps over whole rows, where the state has them.
        seed: of the solver and of random draws.
        block_time: wall-clock seconds that the solver has for a block, or ``None``.
        handling: what is done around the solver: polish, penalty, processes.
        whole_rows: a block is all of a row's weights, whatever ``block_size`` says, where the state has such blocks.
    """

    solver: Solver
    block_size: int = 64
    max_sweeps: int = 1
    patience: int = 1
    row_swaps: bool = True
    seed: int = 0
    block_time: float | None = None
    handling: Handling = field(default_factory=Handling)
    whole_rows: bool = False


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


# -- what a Hessian has to provide


@dataclass(frozen=True, eq=False)
class EmittedBlocks:
    """One block in each of some rows, all of one size.

    Attributes:
        rows: the rows, by their numbers in the state.
        problems: their block QUBOs, in the order of ``rows``.
        start: ``(r, n)`` the mask of each block as it is, True = pruned; it meets the counts of ``problems``.
        flip_costs: ``(r, n)`` ``Q_ii + 2 sum_{j != i} Q_ij x_j`` at the start, if they are known anyway: they save
            solvers a product with the Hessian.
        ticket: whatever the state needs to take the answers, which it gets back untouched.
    """

    rows: Int[Tensor, " r"]
    problems: BlockBatch
    start: Bool[Tensor, "r n"]
    flip_costs: Float[Tensor, "r n"] | None = None
    ticket: Any = None


@dataclass(frozen=True, eq=False)
class Moved:
    """What became of some rows after the answers to their blocks.

    Attributes:
        rows: all rows of the part, also those without a block.
        change: float64, by how much the energy of each row changed; 0 without a block. Below 0 counts as accepted.
        gained: rows that gained enough to be worth the next block. The others count a miss.
        solver_gain: how much of the energy the solver's own answers took away, summed over the rows.
        polish_gain: the same of what was done to the blocks after the solver.
        ticket: whatever :meth:`RowState.between_sweeps` needs.
    """

    rows: Int[Tensor, " r"]
    change: Float[Tensor, " r"]
    gained: Bool[Tensor, " r"]
    solver_gain: float = 0.0
    polish_gain: float = 0.0
    ticket: Any = None


@runtime_checkable
class RowState(Protocol):
    """The rows of a layer on one Hessian while their mask is searched: the mask, and the energies it is searched by.

    A state is made from the dense weights ``(d_out, d_in)``, the warm start and a local Hessian; see :data:`MakeState`.
    Rows go by their numbers, 0 to ``d_out - 1``. They share the Hessian and are not coupled, so that blocks of
    different rows add up exactly. Energies are float64, in any unit as long as it is one: those of the Gram, and so the
    usual one, are mean squared output errors, summed over rows. An energy must never rise: :meth:`accept` leaves the
    mask of a block as it is where an answer does not lower it. Counts are exact: an answer has those of its block's
    start (``solve_batch`` sees to that), so they hold if blocks lie within the pattern's groups.

    The loop calls :meth:`begin`, then in every sweep :meth:`parts` of the rows that are at work, :meth:`emit` and
    :meth:`accept` of each part, :meth:`between_sweeps`, and :meth:`finish` at the end. Inherit from this class to have
    the methods that are not abstract.
    """

    @property
    def notes(self) -> Mapping[str, int]:
        """What has to be said of the whole layer, known when the state is made: sentences, each with its number."""
        return {}

    @property
    def together(self) -> int:
        """How many parts are emitted, and accepted, side by side in threads; 1 for one after another in this thread.

        With more than one, :meth:`emit` and :meth:`accept` run in threads in which torch uses one core, and write to
        nothing but what belongs to their own rows.
        """
        return 1

    @property
    def first_round(self) -> int:
        """The number of the first sweep, from which seeds follow."""
        return 1

    @abstractmethod
    def movable(self) -> Int[Tensor, " r"]:
        """The rows that the sweeps begin with, ascending; such as find no block may be among them.

        None where the Hessian tells no masks apart.
        """

    @abstractmethod
    def parts(self, rows: Int[Tensor, " r"]) -> Sequence[Int[Tensor, " _"]]:
        """Rows, at least one, as parts, each of so many rows as fit into the memory at once; see :func:`in_parts`."""

    @abstractmethod
    def emit(self, rows: Int[Tensor, " r"], misses: Int[Tensor, " r"], seed: int) -> Sequence[EmittedBlocks]:
        """At most one block for each row of a part, as batches of blocks of one size; none where nothing can change.

        Args:
            rows: the rows of the part.
            misses: how many blocks in turn each of them had without a gain.
            seed: of this part in this sweep, which the solver has as well.
        """

    @abstractmethod
    def accept(self, rows: Int[Tensor, " r"], answered: Sequence[tuple[EmittedBlocks, BatchResult]]) -> Moved:
        """Take the answers of a part that lower the energy; called for every part, also without a block.

        ``change`` and ``solver_change`` of an answer are float64 and those of the block QUBO as emitted. A state whose
        energies are not those of its blocks measures them here.
        """

    @abstractmethod
    def energy(self) -> float | None:
        """The energy of the mask as it is, summed over all rows; ``None`` as long as it is not known.

        Asked for often, so booked rather than measured. A sweep after which it is not known is the last one: the time
        was over before every row had its block.
        """

    @abstractmethod
    def keep_mask(self) -> Bool[Tensor, "d_out d_in"]:
        """The mask as it is, True = keep."""

    def start_energy(self) -> float | None:
        """The energy of the warm start if :meth:`energy` did not know it at first; asked for after the first sweep."""
        return None

    def begin(self, descent: RowDescent) -> None:
        """Before the first sweep."""

    def between_sweeps(self, descent: RowDescent, moves: Sequence[Moved]) -> Int[Tensor, " r"]:
        """After each sweep, with what became of its parts, in their order: such as an exchange of budget between rows.

        Returns:
            rows that changed, which are worth another block, whatever their last one brought.
        """
        return torch.zeros(0, dtype=torch.long)

    def finish(self, descent: RowDescent) -> None:
        """After the last sweep, also where there was none, or the time is over."""

    def again(self) -> RowState | None:
        """For another attempt from the warm start after a ``torch.linalg.LinAlgError``: with more digits, more damping.

        ``None`` where there is nothing to try; the error is then the caller's.
        """
        return None


#: Makes the state of the rows of one Gram. ``(weight, gram, keep, stays, pattern, settings)``: dense weights and warm
#: start ``(d_out, d_in)``; the Gram of their inputs, ``(d_in, d_in)``; weights ``(d_out, d_in)`` that no block may
#: prune, or ``None``; where counts must hold; the settings of the descent, of which the seed is that of these rows.
MakeState: TypeAlias = Callable[[Tensor, Gram, Tensor, Tensor | None, Pattern, Descent], RowState]


def in_parts(rows: Int[Tensor, " r"], entries: int) -> Sequence[Int[Tensor, " _"]]:
    """Rows in their order, as many at once as suits the memory if each holds so many float64 entries."""
    limit = max(16, (2**20 if rows.device.type == "cpu" else 2**27) // max(1, entries))
    return torch.split(rows, limit)


# -- the descent


@pinned()
def descend_rows(
    make_state: MakeState,
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    keep: Bool[Tensor, "d_out d_in"],
    pattern: Pattern,
    settings: Descent,
    deadline: Deadline | None = None,
    stays: Bool[Tensor, "d_out d_in"] | None = None,
) -> DescentResult:
    """Improve a layer's keep mask; every budget of the pattern keeps the count that ``keep`` gives it.

    The groups of a grouped convolution are descended one after another; with the pattern ``layer``
    each of them keeps the count that ``keep`` gives it.

    Args:
        make_state: makes the state of each group's rows, and so says which Hessian blocks see.
        weight: dense weights.
        gram: the local Hessian of the layer's inputs.
        keep: the warm start.
        pattern: where counts must hold.
        settings: solver, block size, limits.
        deadline: anytime limit; the best mask so far is returned when it expires.
        stays: weights of the warm start that no block may prune; not every state can hold them.
    """
    deadline = deadline or Deadline(None)
    frozen: Sequence[Tensor | None] = [None] * gram.groups if stays is None else gram.split(stays)
    parts = list(zip(gram.split(weight), gram.parts(), gram.split(keep), frozen, strict=True))
    if len(parts) == 1:
        return _descended(make_state, *parts[0], pattern, settings, deadline)
    results = []
    for number, part in enumerate(parts):
        left, own = deadline.remaining, replace(settings, seed=derive_seed(settings.seed, number))
        share = deadline if left is None else Deadline(left / (len(parts) - number))
        results.append(_descended(make_state, *part, pattern, own, share))
    return merged(results)


def _descended(
    make_state: MakeState,
    weight: Tensor,
    gram: Gram,
    keep: Tensor,
    stays: Tensor | None,
    pattern: Pattern,
    settings: Descent,
    deadline: Deadline,
) -> DescentResult:
    """The descent of the rows of one Gram, in as many attempts as it takes."""
    began = time.perf_counter()
    state = make_state(weight, gram, keep, stays, pattern, settings)
    while True:
        try:
            return RowDescent(state, len(weight), settings, deadline, began).result()
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            began = time.perf_counter()
            other = state.again()
            if other is None:
                raise
            state = other


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
                before.seconds + result.seconds,
                before.energy + change,
                before.accepted + result.accepted,
                before.steps + result.steps,
            )
        )
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


class RowDescent:
    """One descent of the rows of one Gram, with the ledger of what was tried; the hooks of its state are given it.

    Attributes:
        settings: of the descent.
        deadline: anytime limit, which hooks that take long have to watch.
    """

    def __init__(self, state: RowState, num_rows: int, settings: Descent, deadline: Deadline, began: float) -> None:
        self.settings, self.deadline = settings, deadline
        self._state, self._num_rows, self._began = state, num_rows, began
        self._rounds = state.first_round
        self._steps = self._accepted = 0
        self._solver_gain = self._polish_gain = 0.0
        self._notes = Counter(state.notes)
        self._blocks = BlockCounts()
        start = state.energy()
        self._trace = [] if start is None else [TracePoint(0.0, start, 0)]

    def result(self) -> DescentResult:
        """Run to the end or to the deadline. Without a trace if the energy never came to be known."""
        self._state.begin(self)
        self._sweeps()
        self._state.finish(self)
        return DescentResult(
            self._state.keep_mask(),
            self._steps,
            self._accepted,
            time.perf_counter() - self._began,
            self.deadline.expired,
            self._solver_gain,
            self._polish_gain,
            dict(self._notes),
            tuple(self._trace),
            self._blocks,
        )

    # -- what hooks may use

    def book(self, steps: int, accepted: int) -> None:
        """Count changes of a hook's own that no solver was asked for: how many were tried and accepted."""
        self._steps += steps
        self._accepted += accepted

    def mark(self) -> None:
        """A point of the trace, with the energy as it is."""
        energy = self._state.energy()
        if energy is not None:
            self._point(energy, self._accepted, self._steps)

    def round(
        self,
        parts: Sequence[Int[Tensor, " _"]],
        emit: Callable[[Tensor, int], Sequence[EmittedBlocks]],
        accept: Callable[[Tensor, Sequence[tuple[EmittedBlocks, BatchResult]]], Moved],
        solver: Solver | None = None,
    ) -> list[Moved]:
        """Emit, solve, accept and book one block in each row of some parts; parts for which no time is left are left.

        Args:
            parts: rows, no row in two of them.
            emit: the blocks of a part, given its rows and its seed.
            accept: see :meth:`RowState.accept`.
            solver: decides these blocks instead of the one of the settings, whose handling, credit and count of blocks
                are not touched then.
        """
        moves: list[Moved] = []
        number, wave = self._rounds, self._state.together
        self._rounds += 1
        for at in range(0, len(parts), wave):
            if self.deadline.expired:
                break
            seeds = [derive_seed(self.settings.seed, number, place) for place in range(at, at + wave)]
            moves += self._wave(list(zip(parts[at : at + wave], seeds, strict=False)), emit, accept, solver)
        return moves

    # -- the loop

    def _sweeps(self) -> None:
        """Give every active row one block after another until none improves."""
        state, active = self._state, self._state.movable()
        misses = torch.zeros(self._num_rows, dtype=torch.long, device=active.device)
        for _ in range(self.settings.max_sweeps):
            if not len(active) or self.deadline.expired:
                return
            moves = self.round(
                state.parts(active), lambda rows, seed: state.emit(rows, misses[rows], seed), state.accept
            )
            if state.energy() is None:  # the time was over before every row had a block
                return
            start = None if self._trace else state.start_energy()
            if start is not None:
                self._point(start, 0, 0)
            for move in moves:
                misses[move.rows] = torch.where(move.gained, 0, misses[move.rows] + 1)
            misses[state.between_sweeps(self, moves).to(misses.device)] = 0
            active = active[misses[active] < self.settings.patience]
            self.mark()

    def _wave(
        self,
        parts: Sequence[tuple[Tensor, int]],
        emit: Callable[[Tensor, int], Sequence[EmittedBlocks]],
        accept: Callable[[Tensor, Sequence[tuple[EmittedBlocks, BatchResult]]], Moved],
        solver: Solver | None,
    ) -> list[Moved]:
        """Some parts of a round, with their seeds; their blocks leave the memory before the next ones are emitted."""
        emitted = self._side_by_side(lambda task: emit(*task), parts, parts[0][0].device)
        tasks = [
            (rows, self._answered(blocks, seed, solver)) for (rows, seed), blocks in zip(parts, emitted, strict=True)
        ]
        moves = self._side_by_side(lambda task: accept(*task), tasks, parts[0][0].device)
        for move, (_, answered) in zip(moves, tasks, strict=True):
            self.book(sum(len(blocks.rows) for blocks, _ in answered), int((move.change < 0).sum()))
            self._solver_gain += move.solver_gain
            self._polish_gain += move.polish_gain
        return moves

    def _answered(
        self, emitted: Sequence[EmittedBlocks], seed: int, solver: Solver | None
    ) -> list[tuple[EmittedBlocks, BatchResult]]:
        """The blocks of one part with their answers; what is to be said of them is noted."""
        answered = [(blocks, self._solve(blocks, seed, solver)) for blocks in emitted]
        failures: Counter[str] = Counter()
        for _, answer in answered:
            failures.update(status.told(detail) for status, detail in answer.failures.values())
            if solver is None:
                self._notes.update(answer.notes)
                self._blocks += BlockCounts.of_batch(answer, len(answer.assignments))
        self._notes = Counter(by_kind(self._notes, failures))
        return answered

    def _solve(self, blocks: EmittedBlocks, seed: int, solver: Solver | None) -> BatchResult:
        request = BatchRequest(
            blocks.problems, blocks.start, seed, self.deadline.remaining, flip_costs=blocks.flip_costs
        )
        if solver is not None:
            return solve_batch(solver, request)
        settings = self.settings
        return solve_batch(settings.solver, replace(request, row_time_limit=settings.block_time), settings.handling)

    def _side_by_side(
        self, work: Callable[[_Part], _Result], parts: Sequence[_Part], device: torch.device
    ) -> list[_Result]:
        """``work`` of every part, in their order."""
        return [work(part) for part in parts] if self._state.together == 1 else in_threads(work, parts, device)

    def _point(self, energy: float, accepted: int, steps: int) -> None:
        seconds = time.perf_counter() - self._began if self._trace else 0.0
        self._trace.append(TracePoint(seconds, energy, accepted, steps))
        tell_sweep(_log, energy, accepted)
