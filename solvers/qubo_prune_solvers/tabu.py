"""Swap tabu search with restarts from the best assignment: compiled, and in torch for many rows at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.problem.qubo import BlockBatch
from qubo_prune.settings import setting
from qubo_prune.solver.interface import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Status,
    derive_seed,
    to_numpy_bool,
)
from qubo_prune.solver.swaps.budgets import BudgetState
from qubo_prune.solver.swaps.kernels import (
    below,
    best_swap_in,
    exchange,
    forms_of,
    in_threads,
    room_of,
    rounding,
    settle_form,
)
from qubo_prune_solvers._batched_tabu import Rules, rows_at_once, search
from qubo_prune_solvers._budgets import tabu_walk
from qubo_prune_solvers._search import (
    State,
    SwapSearch,
    energy_of,
    keep_best,
    movable,
    return_to_best,
    swap_at_random,
)
from qubo_prune_solvers._starts import starts_of

# steps between two looks at the clock, well under a millisecond for a thousand variables
_CHUNK = 1000


@dataclass(frozen=True)
class Tabu(SwapSearch):
    """Take the best swap, good or bad, then leave its two weights alone for a while.

    Every step takes the best swap among the ``candidates`` cheapest kept and dearest pruned weights
    that are not tabu. After ``patience`` steps without a new best assignment the search returns to
    the best one and makes ``kick`` random swaps of candidates. Each start ends in an optimum over all
    single swaps.

    After F. Glover, Tabu Search, ORSA J. Computing 1 (1989), with the restarts of iterated local search.

    Attributes:
        starts: searches from the warm start, greedy forward selection, the rounded relaxation and
            random assignments, in this order.
        steps: swaps of each search, per variable.
        candidates: weights of either kind that are paired in a step.
        tenure: fewest and most steps that a swapped weight is tabu, drawn at random.
        patience: steps without a new best before a restart.
        kick: random swaps of a restart.
        kernel: of batches: ``compiled`` row by row, ``torch`` many rows in step, with the same moves; ``auto``
            takes torch where the tensors are on an accelerator.
        threads: for the starts of one problem or the rows of a batch; one per core if ``None``.
    """

    capabilities: ClassVar[Capabilities] = replace(SwapSearch.capabilities, budgets=True, devices=("cpu", "cuda"))

    starts: int = setting(4, least=1)
    steps: int = setting(15, least=0)
    candidates: int = setting(4, least=1)
    tenure: tuple[int, int] = setting((3, 8), least=0)
    patience: int = setting(200, least=0)
    kick: int = setting(20, least=0)
    kernel: Literal["auto", "compiled", "torch"] = "auto"
    threads: int | None = setting(None, least=1)

    def __post_init__(self) -> None:
        if self.tenure[0] > self.tenure[1]:
            raise InputError(f"tenure is {list(self.tenure)}; give the fewest steps, then the most, such as [3, 8].")

    def search_budgets(self, state: BudgetState, clock: Deadline) -> None:
        tabu_walk(state, clock, self.steps * len(state.best), self.tenure, self.patience, self.kick)

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        """Search every row, compiled or in torch."""
        on_cpu = request.problems.values.device.type == "cpu"
        if self.kernel == "compiled" or (self.kernel == "auto" and on_cpu):
            return super().solve_batch(request)
        return self._torch_batch(request)

    def _torch_batch(self, request: BatchRequest) -> BatchResult:
        """The same in torch, as many rows in step as the memory allows; their time is that of one row."""
        clock, answer = Deadline(request.time_limit), request.warm_start.clone()
        cut: set[int] = set()
        late: dict[int, tuple[Status, str]] = {}
        step = rows_at_once(request.problems, self.starts)
        for at in range(0, len(answer), step):
            rows = range(at, min(at + step, len(answer)))
            if clock.expired:
                late.update(dict.fromkeys(rows, (Status.TIME_LIMIT, "")))
                continue
            own = Deadline(request.row_time_limit, clock)
            self._rows_in_step(request, rows, own, answer)
            if own.expired:
                cut.update(rows)
        return BatchResult(answer, late, cut=frozenset(cut))

    def _rows_in_step(self, request: BatchRequest, rows: range, clock: Deadline, answer: Bool[Tensor, "r n"]) -> None:
        """Put the answers of some rows into their place; starts and last descents are compiled."""
        batch = request.problems.rows(slice(rows.start, rows.stop))
        warm, forms = to_numpy_bool(request.warm_start[rows.start : rows.stop]), list(forms_of(batch))
        able = [place for place, form in enumerate(forms) if movable(form)]
        if not able:
            return
        seeds = [derive_seed(request.seed, rows[place]) for place in able]

        def begin(number: int) -> NDArray[np.bool_]:
            form = forms[able[number]]
            return np.stack(starts_of(form, warm[able[number]], self.starts, derive_seed(seeds[number], self.starts)))

        def end(number: int) -> NDArray[np.bool_]:
            form, points = forms[able[number]], found[number]
            for x in points:
                settle_form(form, x)
            return np.asarray(points[int(np.argmin([energy_of(form, x) for x in points]))])

        numbers, device = list(range(len(able))), answer.device
        starts = np.stack(in_threads(begin, numbers, self.threads, clock))
        own_seeds = [[derive_seed(seed, number) for number in range(self.starts)] for seed in seeds]
        best = search(
            _some_rows(batch, able),
            torch.as_tensor(starts, device=device),
            torch.tensor(own_seeds, device=device),
            torch.tensor([rounding(forms[place]) for place in able], dtype=torch.float64, device=device),
            Rules(self.steps * batch.num_variables, self.candidates, self.tenure, self.patience, self.kick),
            clock,
        )
        found = to_numpy_bool(best).copy()
        ends = np.stack(in_threads(end, numbers, self.threads, clock))
        answer[torch.tensor(able, device=device) + rows.start] = torch.as_tensor(ends, device=device)

    def search(self, state: State, clock: Deadline) -> None:
        form, left = state.form, self.steps * state.form.num_variables
        room = np.empty((2, len(form.num_pruned), self.candidates), dtype=np.int64)
        lowest, highest = self.tenure
        while left > 0 and not clock.expired:
            tabu_steps(
                *form.couplings,
                form.labels,
                state.x,
                state.costs,
                state.best,
                state.energies,
                state.clock,
                state.free,
                state.random,
                room[0],
                room[1],
                min(left, _CHUNK),
                lowest,
                highest,
                self.patience,
                self.kick,
                state.threshold,
            )
            left -= _CHUNK


def _some_rows(batch: BlockBatch, places: list[int]) -> BlockBatch:
    """The problems at these places."""
    if len(places) == batch.num_rows:
        return batch
    chosen = torch.tensor(places, device=batch.values.device)
    return replace(
        batch,
        hessian=batch.hessian if batch.shared else batch.hessian[chosen],
        values=batch.values[chosen],
        linear=batch.linear[chosen],
        offset=batch.offset[chosen],
        num_pruned=batch.num_pruned[chosen],
    )


@njit(cache=True, nogil=True)
def tabu_steps(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    x: Any,
    costs: Any,
    best: Any,
    energies: Any,
    clock: Any,
    free: Any,
    random: Any,
    kept: Any,
    pruned: Any,
    steps: int,
    lowest: int,
    highest: int,
    patience: int,
    kick: int,
    threshold: float,
) -> None:
    """So many steps. ``clock`` holds the step's number and the steps since the last new best."""
    room = room_of(len(x), kept.shape[0], kept.shape[1])
    for _ in range(steps):
        clock[0] += 1
        clock[1] += 1
        change, u, p = best_swap_in(matrix, values, factor, labels, x, costs, free, clock[0], kept, pruned, room)
        if u >= 0:
            exchange(matrix, values, factor, u, p, x, costs)
            energies[0] += change
            free[u] = clock[0] + lowest + below(random, highest - lowest + 1) + 1
            free[p] = clock[0] + lowest + below(random, highest - lowest + 1) + 1
            if keep_best(x, energies, best, threshold):
                clock[1] = 0
        if clock[1] > patience:
            clock[1] = 0
            return_to_best(matrix, values, factor, x, costs, best, energies)
            for _ in range(kick):
                swap_at_random(
                    matrix, values, factor, labels, x, costs, energies, free, clock[0], highest, random, kept, pruned
                )
