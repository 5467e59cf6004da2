"""What the compiled searches do under linear budgets: starts, disturbances, tabu walks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.errors import SolverError
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.solver.interface import SolveRequest, SolveResult, Status, derive_seed, ranked_answers
from qubo_prune.solver.swaps.budgets import (
    PAIRED,
    WIDTH,
    BudgetState,
    best_move,
    change_of,
    descend,
    make_move,
    random_move,
)
from qubo_prune.solver.swaps.feasible import feasible_start, made_feasible
from qubo_prune.solver.swaps.kernels import MATRIX_UP_TO, below, form_of, in_threads

#: Moves that are drawn for each that a disturbance makes, which takes the one that costs least.
_DRAWN = 32
#: Effort for the repair of a random start, about seconds.
_REPAIR = 1.0
#: Steps between two looks at the clock.
_SLICE = 64

Search = Callable[[BudgetState, Deadline], None]


def search_within(request: SolveRequest, search: Search, starts: int, threads: int | None) -> SolveResult:
    """Search from each start, and answer with the best of each, ranked.

    Args:
        request: its problem has budgets.
        search: improves a state's best assignment until it ends or time is over.
        starts: the warm start or a repaired one, then repaired random ones.
        threads: for the starts; one per core if ``None``.
    """
    if not request.problem.num_variables:
        return ranked_answers(request.problem, np.zeros((1, 0)), Status.LOCAL_OPTIMUM)
    clock = Deadline(request.time_limit)
    begin = begun(request, clock)

    def run(number: int) -> NDArray[np.bool_]:
        state = begin(number if not clock.expired else 0)
        search(state, clock)
        return settled(state, clock)

    found = in_threads(run, list(range(starts)), threads, clock)
    status = Status.TIME_LIMIT if clock.expired else Status.LOCAL_OPTIMUM
    return ranked_answers(request.problem, np.stack(found), status, info={"starts": starts})


def begun(request: SolveRequest, clock: Deadline) -> Callable[[int], BudgetState]:
    """The search of each number: from the warm start or a repaired one, then from repaired random ones, settled."""
    problem, first = request.problem, request.warm_start
    form = form_of(problem, MATRIX_UP_TO)
    first = feasible_start(problem, clock) if first is None else np.array(first, dtype=bool)

    def begin(number: int) -> BudgetState:
        seed = derive_seed(request.seed, number)
        state = BudgetState(problem, form, _random_start(problem, seed, first, clock) if number else first, seed)
        state.descend()
        return state

    return begin


def settled(state: BudgetState, clock: Deadline) -> NDArray[np.bool_]:
    """The best assignment, which no allowed move improves."""
    state.return_to_best()
    if not clock.cancelled:
        state.descend()
    return state.best


def _random_start(problem: BlockQubo, seed: int, first: NDArray[np.bool_], clock: Deadline) -> NDArray[np.bool_]:
    """A random assignment that meets the counts, repaired where it misses a budget; the first if that is too hard."""
    rng = np.random.default_rng(seed)
    x = (problem.labels < 0) & (rng.random(problem.num_variables) < 0.5)
    for group, count in enumerate(problem.num_pruned):
        x[rng.permutation(np.flatnonzero(problem.labels == group))[:count]] = True
    try:
        return made_feasible(problem, x, clock, _REPAIR)
    except SolverError:
        return first


def disturbed_descents(state: BudgetState, clock: Deadline, rounds: int, kick: int) -> None:
    """Disturb the best assignment by ``kick`` moves and descend, again and again."""
    for _ in range(rounds):
        if clock.expired:
            break
        state.energies[0] += disturb(*state.arguments, state.random, kick, state.threshold)
        before = state.energies[1]
        state.remember()
        if state.energies[1] == before:
            state.return_to_best()


def tabu_walk(
    state: BudgetState, clock: Deadline, steps: int, tenure: tuple[int, int], patience: int, kick: int
) -> None:
    """The best allowed move of what may move, again and again; from the best one anew after ``patience`` steps."""
    now = since = 0
    while now < steps and not clock.expired:
        more, before = min(_SLICE, steps - now), state.energies[1]
        _walk(*state.arguments, state.energies, state.best, state.random, now, more, *tenure, state.threshold)
        now, since = now + more, 0 if state.energies[1] < before else since + more
        if since > patience:
            since = 0
            state.return_to_best()
            state.energies[0] += disturb(*state.arguments, state.random, kick, state.threshold)
            state.remember()


@njit(cache=True, nogil=True)
def disturb(c: Any, rules: Any, place: Any, random: Any, kick: int, threshold: float) -> Any:
    """Some random moves, each the cheapest of those drawn, and a descent; the energy change."""
    total, chosen = 0.0, np.empty(4, dtype=np.int64)
    for _ in range(kick):
        least = np.inf
        for _ in range(_DRAWN):
            if random_move(rules, place, random):
                change = change_of(c, place)
                if change < least:
                    least = change
                    chosen[:] = place.move
        if least < np.inf:
            place.move[:] = chosen
            make_move(c, rules, place)
            total += least
    return total + descend(c, rules, place, threshold)


@njit(cache=True, nogil=True)
def _remember(x: Any, energies: Any, best: Any, threshold: float) -> None:
    if energies[0] < energies[1] - threshold:
        energies[1] = energies[0]
        best[:] = x


@njit(cache=True, nogil=True)
def _walk(
    c: Any,
    rules: Any,
    place: Any,
    energies: Any,
    best: Any,
    random: Any,
    now: int,
    steps: int,
    shortest: int,
    longest: int,
    threshold: float,
) -> None:
    for step in range(now, now + steps):
        change = best_move(c, rules, place, step, WIDTH, PAIRED)
        if change == np.inf:
            # everything that could move has just moved
            place.free[:] = 0
            continue
        make_move(c, rules, place)
        energies[0] += change
        for i in place.move:
            if i >= 0:
                place.free[i] = step + 1 + shortest + below(random, longest - shortest + 1)
        _remember(place.x, energies, best, threshold)
