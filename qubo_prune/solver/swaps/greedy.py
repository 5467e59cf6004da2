"""Best-swap descent for many problems at once: compiled on the CPU, in torch on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from qubo_prune.clock import Deadline
from qubo_prune.problem.qubo import BlockBatch
from qubo_prune.settings import setting
from qubo_prune.solver.interface import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    single_answer,
    to_numpy_bool,
)
from qubo_prune.solver.swaps.budgets import settle_budgets
from qubo_prune.solver.swaps.couplings import Couplings, of_batch
from qubo_prune.solver.swaps.feasible import feasible_start
from qubo_prune.solver.swaps.kernels import MATRIX_UP_TO, form_of, forward_start, in_threads, settle_form, settle_rows

# rounds of descent and candidate pairs; rows need a handful, the bound only stops a cycle of
# gains that are no larger than the rounding of the costs
_MOST_ROUNDS = 100
# rows between two looks at the clock, fewer where each takes long: so many entries of Q
_ROWS, _ENTRIES = 64, 2**24


@dataclass(frozen=True)
class Greedy(Solver):
    """Swap a kept weight with a pruned one of its group while that lowers the energy.

    Exchanging kept u with pruned p changes the energy by ``K_u - K_p - 2 Q_up`` with the flip costs
    ``K_i = Q_ii + 2 sum_{j != i} Q_ij x_j``. O(n) per swap, and no n x n matrix for whole rows that
    share one Gram block. Without a warm start it begins from greedy forward selection.

    On the CPU, compiled: the best swap among the ``candidates`` of either side while that gains, then
    every kept weight with its best partner, to an optimum over all single swaps (in factor form too).
    On CUDA, in torch, many rows in step: the cheapest u is paired with its best p; when that fails, all
    pairs of the candidates are tried, and in the end, in double precision, all pairs; several groups
    scan all their pairs. Under budgets, compiled: best moves of one to four weights that keep them, see
    :mod:`qubo_prune.solver.swaps.budgets`.

    Attributes:
        candidates: how many weights of either side are paired.
        kernel: ``compiled`` and ``torch`` choose one of the two everywhere, ``auto`` by device.
        precision: of the torch kernel before its last swaps, which are made in double precision.
        threads: of the compiled kernel, for the rows of a batch; one per core if ``None``.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        batched=True,
        budgets=True,
        stochastic=False,
        factor_form=True,
        anytime=True,
        parallel=True,
        swap_optimal=True,
        devices=("cpu", "cuda"),
    )

    candidates: int = setting(8, least=1)
    kernel: Literal["auto", "compiled", "torch"] = "auto"
    precision: Literal["single", "double"] = "single"
    threads: int | None = setting(None, least=1)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        problem, clock = request.problem, Deadline(request.time_limit)
        if problem.num_budgets:
            start = (
                feasible_start(problem, clock)
                if request.warm_start is None
                else np.array(request.warm_start, dtype=bool)
            )
            if clock.expired:
                return single_answer(problem, start, Status.TIME_LIMIT)
            return single_answer(problem, settle_budgets(problem, start), Status.LOCAL_OPTIMUM)
        form = form_of(problem, MATRIX_UP_TO)
        x = forward_start(form) if request.warm_start is None else np.array(request.warm_start, dtype=bool)
        if clock.expired:
            return single_answer(problem, x, Status.TIME_LIMIT)
        settle_form(form, x, self._width(problem.num_variables))
        return single_answer(problem, x, Status.LOCAL_OPTIMUM)

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        on_cpu = request.problems.values.device.type == "cpu"
        if self.kernel == "compiled" or (self.kernel == "auto" and on_cpu):
            return self._compiled_batch(request)
        return self._torch_batch(request)

    def _width(self, n: int) -> int:
        return max(1, min(self.candidates, n))

    def _compiled_batch(self, request: BatchRequest) -> BatchResult:
        batch, clock = request.problems, Deadline(request.time_limit)
        costs = batch.flip_costs(request.warm_start) if request.flip_costs is None else request.flip_costs
        hessian = batch.hessian.double().reshape(-1, batch.num_variables, batch.num_variables)
        thresholds = (batch.own + batch.linear).double().abs().mean(1) * 1e-12
        h, u, k, threshold, labels = map(
            _on_host, (hessian, batch.values.double(), costs.double(), thresholds, batch.labels.long())
        )
        # the kernel changes these two
        x, k = to_numpy_bool(request.warm_start).copy(), k.copy()
        late: dict[int, tuple[Status, str]] = {}

        def run(rows: slice) -> None:
            if clock.expired:
                late.update(dict.fromkeys(range(*rows.indices(len(x))), (Status.TIME_LIMIT, "")))
                return
            settle_rows(
                h if batch.shared else h[rows],
                u[rows],
                labels,
                x[rows],
                k[rows],
                threshold[rows],
                self._width(batch.num_variables),
                batch.num_groups,
            )

        if batch.num_groups and batch.num_variables:
            step = max(1, min(_ROWS, _ENTRIES // batch.num_variables**2))
            in_threads(run, [slice(at, at + step) for at in range(0, batch.num_rows, step)], self.threads, clock)
        return BatchResult(torch.as_tensor(x).to(request.warm_start.device), late)

    def _torch_batch(self, request: BatchRequest) -> BatchResult:
        batch, clock = request.problems, Deadline(request.time_limit)
        dtype = torch.float32 if self.precision == "single" else torch.float64
        pairs = _group_pairs(batch.labels, batch.num_groups)
        answers: list[Tensor] = []
        cut: set[int] = set()
        for rows in _chunks(batch, batch.num_variables if pairs is None else len(pairs[0])):
            start = request.warm_start[rows]
            known = None if request.flip_costs is None else request.flip_costs[rows]
            couplings, costs, scale = of_batch(batch.rows(rows), start, dtype, known)
            answer = _descend(couplings, costs, start, scale, pairs, self.candidates, clock)
            answers.append(_settled(batch.rows(rows), answer, pairs, self.candidates, clock))
            if clock.expired:
                cut.update(range(*rows.indices(batch.num_rows)))
        return BatchResult(torch.cat(answers) if answers else request.warm_start, cut=frozenset(cut))


def _on_host(array: Tensor) -> NDArray[Any]:
    """A contiguous array, without a copy where it is one already."""
    return np.ascontiguousarray(array.cpu().numpy())


def _chunks(batch: BlockBatch, entries_per_row: int) -> list[slice]:
    """Slices of rows whose working arrays stay in the processor's cache (one slice on a GPU)."""
    entries = 2**20 if batch.values.device.type == "cpu" else 2**28
    step = max(16, entries // max(1, entries_per_row))
    return [slice(at, at + step) for at in range(0, batch.num_rows, step)]


def _group_pairs(labels: Int[Tensor, " n"], num_groups: int) -> tuple[Tensor, Tensor] | None:
    """All ordered pairs of different variables of one group; ``None`` for a single group."""
    if num_groups <= 1:
        return None
    same = labels[:, None] == labels[None, :]
    first, second = same.fill_diagonal_(False).nonzero(as_tuple=True)
    return first, second


def _settled(
    batch: BlockBatch,
    answer: Bool[Tensor, "r n"],
    pairs: tuple[Tensor, Tensor] | None,
    candidates: int,
    clock: Deadline,
) -> Bool[Tensor, "r n"]:
    """Descend from answers to an optimum over all single swaps, with costs computed anew in double precision."""
    couplings, costs, scale = of_batch(batch, answer, torch.float64)
    return _descend(couplings, costs, answer, scale, pairs, candidates, clock, to_the_end=True)


def _descend(
    couplings: Couplings,
    costs: Float[Tensor, "r n"],
    start: Bool[Tensor, "r n"],
    scale: Float[Tensor, " r"],
    pairs: tuple[Tensor, Tensor] | None,
    candidates: int,
    clock: Deadline,
    to_the_end: bool = False,
) -> Bool[Tensor, "r n"]:
    """Descend every row to a swap optimum, over the listed ``pairs`` or over one group.

    Over one group it is an optimum over the candidates' swaps, or ``to_the_end`` over all.
    """
    answer = start.clone()
    if start.shape[1] < 2 or (pairs is not None and not len(pairs[0])):
        return answer
    # gains near the rounding of the costs would let a row cycle, and bring nothing
    threshold = -scale * (1e-4 if costs.dtype == torch.float32 else 1e-12)
    state = _Rows(couplings, costs, start, threshold)
    # a row needs weights of both kinds; from here on each row has a partner for every weight
    movable = start.any(1) & ~start.all(1)
    if not movable.all():
        state.take(~movable).write(answer)
        state = state.take(movable)
    for _ in range(_MOST_ROUNDS):
        if not len(state) or clock.expired:
            break
        if pairs is not None:
            stuck = _run_until_stuck(state, lambda rows: _pairs_step(rows, pairs), 1, clock)
        else:
            stuck = _run_until_stuck(state, _pivot_step, 2, clock)
        gained = _candidate_step(stuck, candidates) if pairs is None else torch.zeros_like(stuck.misses) > 0
        state, rest = stuck.parted(gained, int(gained.sum()))
        if to_the_end and pairs is None and len(rest) and not clock.expired:
            gained = _full_step(rest, clock)
            further, rest = rest.parted(gained, int(gained.sum()))
            state = _Rows.joined([state, further])
        rest.write(answer)
    state.write(answer)
    return answer


def _run_until_stuck(state: _Rows, step: Callable[[_Rows], Tensor], patience: int, clock: Deadline) -> _Rows:
    """Repeat a step until every row has missed ``patience`` times in turn; all the rows again."""
    parked = []
    for _ in range(4 * state.costs.shape[1] + 4):
        if not len(state) or clock.expired:
            break
        stuck = state.count_misses(step(state)) >= patience
        # setting rows aside copies the others: wait until an eighth of them is stuck
        count = int(stuck.sum())
        if 8 * count >= len(state):
            aside, state = state.parted(stuck, count)
            parked.append(aside)
    return _Rows.joined([*parked, state])


class _Rows:
    """The rows still descending: flip costs, mask and their bookkeeping.

    The mask is held as two barriers that are added to the costs (comparisons with bool masks are
    many times slower): ``bar_pruned`` leaves the kept weights eligible for the lowest cost,
    ``bar_kept`` the pruned ones for the highest.
    """

    _BAR = 1e30

    def __init__(self, couplings: Couplings, costs: Tensor, start: Tensor, threshold: Tensor) -> None:
        index = torch.arange(len(start), device=start.device)
        bar_pruned = start.to(costs.dtype).mul_(self._BAR)
        self._set(
            couplings,
            index,
            costs,
            threshold,
            torch.zeros_like(threshold),
            bar_pruned,
            bar_pruned - self._BAR,
        )

    def _set(self, couplings: Couplings, *arrays: Tensor) -> None:
        self.couplings = couplings
        self.index, self.costs, self.threshold, self.misses, self.bar_pruned, self.bar_kept = arrays
        self.steps = 0
        # allocating working memory anew in every step costs more than using it
        self.buffers = [torch.empty_like(self.costs) for _ in range(3)]

    def _arrays(self) -> tuple[Tensor, ...]:
        return self.index, self.costs, self.threshold, self.misses, self.bar_pruned, self.bar_kept

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Bool[Tensor, " r"]) -> _Rows:
        """Some of the rows."""
        return self._at(rows.nonzero()[:, 0])

    def _at(self, at: Int[Tensor, " some"]) -> _Rows:
        """The rows at these places."""
        taken = object.__new__(_Rows)
        taken._set(self.couplings.take(at), *(array.index_select(0, at) for array in self._arrays()))
        taken.steps = self.steps
        return taken

    def parted(self, rows: Bool[Tensor, " r"], count: int) -> tuple[_Rows, _Rows]:
        """Some of the rows, so many, and the others; without a wait for the device, nor a copy where those are all."""
        if count in (0, len(self)):
            nothing = self._at(self.index[:0])
            return (self, nothing) if count else (nothing, self)
        order = rows.logical_not().float().argsort(stable=True)
        return self._at(order[:count]), self._at(order[count:])

    @staticmethod
    def joined(parts: list[_Rows]) -> _Rows:
        """Rows that were set apart, together again."""
        if len(parts) == 1:
            return parts[0]
        whole = object.__new__(_Rows)
        couplings = parts[0].couplings.joined([part.couplings for part in parts])
        whole._set(couplings, *(torch.cat(arrays) for arrays in zip(*(p._arrays() for p in parts), strict=True)))
        return whole

    def write(self, answer: Bool[Tensor, "all n"]) -> None:
        """Put the assignments of these rows into their place."""
        answer[self.index] = self.bar_pruned > 0

    def count_misses(self, gained: Tensor) -> Tensor:
        """Steps in turn that brought a row nothing, this one included."""
        self.steps += 1
        return self.misses.add_(1).mul_((~gained).to(self.misses.dtype))

    def swap(self, kept: Tensor, pruned: Tensor, coupling: Tensor, active: Tensor) -> None:
        """Prune ``kept`` and restore ``pruned`` in the rows that are ``active``; O(n) a row.

        Expects ``2 Q`` along ``kept`` in buffer 1 and along ``pruned`` in buffer 2.
        """
        on = active.to(self.costs.dtype)[:, None]
        both = torch.stack([kept, pruned], dim=1)
        # the rows of Q hold their own diagonal, so the costs of the two are set apart
        shift = coupling[:, None] * on
        own = self.costs.gather(1, both).add_(torch.cat([-shift, shift], dim=1))
        step = self.buffers[1].sub_(self.buffers[2])
        self.costs.addcmul_(step, on).scatter_(1, both, own)
        bars = torch.cat([on, 1 - on], dim=1).mul_(self._BAR)
        self.bar_pruned.scatter_(1, both, bars)
        self.bar_kept.scatter_(1, both, bars.sub_(self._BAR))


def _pivot_step(state: _Rows) -> Bool[Tensor, " r"]:
    """Swap one extreme weight of each row with its best partner; which rows gained.

    Starts in turn from the kept weight that is cheapest to prune and from the pruned one that gains
    most if restored.
    """
    if state.steps % 2 == 0:
        cost, kept = _lowest(torch.add(state.costs, state.bar_pruned, out=state.buffers[0]))
        row = state.couplings.rows(kept, state.buffers[1])
        gain, pruned = _highest(torch.add(row, state.costs, out=state.buffers[0]).add_(state.bar_kept))
        state.couplings.rows(pruned, state.buffers[2])
        coupling = row.gather(1, pruned[:, None])[:, 0]
    else:
        gain, pruned = _highest(torch.add(state.costs, state.bar_kept, out=state.buffers[0]))
        row = state.couplings.rows(pruned, state.buffers[2])
        cost, kept = _lowest(torch.sub(state.costs, row, out=state.buffers[0]).add_(state.bar_pruned))
        state.couplings.rows(kept, state.buffers[1])
        coupling = row.gather(1, kept[:, None])[:, 0]
    gained = cost - gain < state.threshold
    state.swap(kept, pruned, coupling, gained)
    return gained


def _lowest(values: Float[Tensor, "r n"]) -> tuple[Float[Tensor, " r"], Int[Tensor, " r"]]:
    """Minimum of each row and its place.

    Torch's reduction without the place is eight times as fast as the one with it, so wide rows are
    first reduced to 32 columns of interleaved entries, and the place is sought in the best one.
    """
    rows, n = values.shape
    if n % 32 or n < 256:
        least = values.min(1)
        return least.values, least.indices
    strands = values.view(rows, n // 32, 32)
    column = strands.amin(1).min(1).indices
    strand = strands.gather(2, column[:, None, None].expand(-1, n // 32, 1))[:, :, 0]
    least = strand.min(1)
    return least.values, least.indices * 32 + column


def _highest(values: Float[Tensor, "r n"]) -> tuple[Float[Tensor, " r"], Int[Tensor, " r"]]:
    """Maximum of each row and its place; ``values`` are overwritten."""
    least, place = _lowest(values.neg_())
    return least.neg_(), place


def _candidate_step(state: _Rows, candidates: int) -> Bool[Tensor, " r"]:
    """Swap the best pair among the ``candidates`` best of either side; which rows gained."""
    if not len(state):
        return state.misses > 0
    k = min(candidates, state.costs.shape[1])
    cost, kept = torch.add(state.costs, state.bar_pruned, out=state.buffers[0]).topk(k, dim=1, largest=False)
    gain, pruned = torch.add(state.costs, state.bar_kept, out=state.buffers[0]).topk(k, dim=1)
    coupling = state.couplings.pairs(kept, pruned)
    best, pair = (cost[:, :, None] - gain[:, None, :] - coupling).flatten(1).min(1)
    gained = best < state.threshold
    first = kept.gather(1, (pair // k)[:, None])[:, 0]
    second = pruned.gather(1, (pair % k)[:, None])[:, 0]
    # of rows that do not gain, the first candidates: swap() needs a kept and a pruned weight
    first, second = torch.where(gained, first, kept[:, 0]), torch.where(gained, second, pruned[:, 0])
    state.couplings.rows(first, state.buffers[1])
    state.couplings.rows(second, state.buffers[2])
    state.swap(first, second, coupling.flatten(1).gather(1, pair[:, None])[:, 0], gained)
    state.misses.zero_()
    return gained


def _full_step(state: _Rows, clock: Deadline) -> Bool[Tensor, " r"]:
    """Swap the best of all pairs of each row; which rows gained. Some columns of Q at a time."""
    rows, n = state.costs.shape
    cost, gain = state.costs + state.bar_pruned, state.costs + state.bar_kept
    best = torch.full_like(cost[:, 0], torch.inf)
    first, second = cost.argmin(1), gain.argmax(1)
    step = max(1, _ENTRIES // max(1, rows * n))
    for at in range(0, n, step):
        if clock.expired:
            break
        some = torch.arange(at, min(n, at + step), device=cost.device)
        partners = state.couplings.columns(some).add_(gain[:, None, :]).max(2)
        change, place = (cost[:, some] - partners.values).min(1)
        better = change < best
        best = torch.where(better, change, best)
        first = torch.where(better, some[place], first)
        second = torch.where(better, partners.indices.gather(1, place[:, None])[:, 0], second)
    gained = best < state.threshold
    # of rows that do not gain, a kept and a pruned weight: swap() needs both
    first, second = torch.where(gained, first, cost.argmin(1)), torch.where(gained, second, gain.argmax(1))
    row = state.couplings.rows(first, state.buffers[1])
    state.couplings.rows(second, state.buffers[2])
    state.swap(first, second, row.gather(1, second[:, None])[:, 0].clone(), gained)
    state.misses.zero_()
    return gained


def _pairs_step(state: _Rows, pairs: tuple[Tensor, Tensor]) -> Bool[Tensor, " r"]:
    """Swap the best of the listed pairs of each row; which rows gained."""
    cost = torch.add(state.costs, state.bar_pruned, out=state.buffers[0]).index_select(1, pairs[0])
    gain = torch.add(state.costs, state.bar_kept, out=state.buffers[0]).index_select(1, pairs[1])
    listed = state.couplings.listed(*pairs)
    best, pair = cost.sub_(gain).sub_(listed).min(1)
    gained = best < state.threshold
    # the best pair of a row that does not gain may be no pair of a kept and a pruned weight
    first = torch.where(gained, pairs[0][pair], state.bar_pruned.min(1).indices)
    second = torch.where(gained, pairs[1][pair], state.bar_kept.max(1).indices)
    state.couplings.rows(first, state.buffers[1])
    state.couplings.rows(second, state.buffers[2])
    state.swap(first, second, listed.gather(1, pair[:, None])[:, 0], gained)
    return gained
