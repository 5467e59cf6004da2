"""What the compiled searches do under linear budgets: starts, disturbances, tabu walks and Metropolis moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
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
from qubo_prune.solver.swaps.kernels import below, form_of, in_threads, uniform

#: Moves that are drawn for each that a disturbance makes, which takes the one that costs least.
_DRAWN = 32
#: Steps between two looks at the clock.
_SLICE = 64

Search = Callable[[BudgetState, Deadline], None]


def search_within(
    request: SolveRequest, search: Search, starts: int, threads: int | None, matrix_up_to: int
) -> SolveResult:
    """Search from each start, and answer with the best of each, ranked.

    Args:
        request: its problem has budgets.
        search: improves a state's best assignment until it ends or time is over.
        starts: the warm start or a repaired one, then repaired random ones.
        threads: for the starts; one per core if ``None``.
        matrix_up_to: factor form of up to so many variables is multiplied out.
    """
    problem, clock = request.problem, Deadline(request.time_limit)
    form, first = form_of(problem, matrix_up_to), request.warm_start
    first = feasible_start(problem) if first is None else np.array(first, dtype=bool)

    def run(number: int) -> NDArray[np.bool_]:
        if clock.expired and number:
            return first
        seed = derive_seed(request.seed, number)
        state = BudgetState(problem, form, _random_start(problem, seed) if number else first, seed)
        state.descend()
        search(state, clock)
        state.return_to_best()
        if not clock.cancelled:
            state.descend()
        return state.best

    found = in_threads(run, list(range(starts)), threads, clock)
    status = Status.TIME_LIMIT if clock.expired else Status.LOCAL_OPTIMUM
    return ranked_answers(problem, np.stack(found), status, info={"starts": starts})


def _random_start(problem: BlockQubo, seed: int) -> NDArray[np.bool_]:
    """A random assignment that meets the counts, repaired where it misses a budget."""
    rng = np.random.default_rng(seed)
    x = (problem.labels < 0) & (rng.random(problem.num_variables) < 0.5)
    for group, count in enumerate(problem.num_pruned):
        x[rng.permutation(np.flatnonzero(problem.labels == group))[:count]] = True
    return made_feasible(problem, x)


def disturbed_descents(state: BudgetState, clock: Deadline, rounds: int, kick: int) -> None:
    """Disturb the best assignment by ``kick`` moves and descend, again and again."""
    for _ in range(rounds):
        if clock.expired:
            break
        state.energies[0] += _disturb(*state.arguments, state.random, kick, state.threshold)
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
            state.energies[0] += _disturb(*state.arguments, state.random, kick, state.threshold)
            state.remember()


def metropolis(state: BudgetState, clock: Deadline, temperatures: NDArray[np.float64]) -> None:
    """One sweep of random moves at each temperature in turn."""
    for temperature in temperatures:
        if clock.expired:
            break
        _sweep(*state.arguments, state.energies, state.best, state.random, float(temperature), state.threshold)


@njit(cache=True, nogil=True)
def _disturb(c: Any, rules: Any, place: Any, random: Any, kick: int, threshold: float) -> Any:
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


@njit(cache=True, nogil=True)
def _sweep(
    c: Any, rules: Any, place: Any, energies: Any, best: Any, random: Any, temperature: float, threshold: float
) -> None:
    for _ in range(len(place.x)):
        if not random_move(rules, place, random):
            continue
        change = change_of(c, place)
        if change <= 0.0 or uniform(random) < np.exp(-change / temperature):
            make_move(c, rules, place)
            energies[0] += change
            _remember(place.x, energies, best, threshold)
