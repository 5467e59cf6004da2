"""Parallel tempering of tabu searches with path relinking, compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.settings import setting
from qubo_prune.solver.interface import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    derive_seed,
    ranked_answers,
)
from qubo_prune.solver.swaps.kernels import (
    MATRIX_UP_TO,
    Form,
    below,
    best_swap_in,
    coupling,
    exchange,
    form_of,
    forms_of,
    in_threads,
    room_of,
    settle_form,
    uniform,
)
from qubo_prune_solvers._budgets import begun, disturb, settled, tabu_walk
from qubo_prune_solvers._search import (
    State,
    energy_of,
    keep_best,
    movable,
    return_to_best,
    rows_in_threads,
)
from qubo_prune_solvers._starts import starts_of
from qubo_prune_solvers.tabu import tabu_steps

# steps between two looks at the clock
_CHUNK = 1000
# replicas nearer to each other than so many swaps have no path between them worth walking
_NEAR = 4
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Tempering(Solver):
    """Replicas at temperatures of their own, which move by tabu searches and exchange their places.

    A round moves every replica: it is disturbed, searched from by ``walk * n`` steps of tabu search, and
    takes the best assignment found, ``dE`` above its own, with probability ``min(1, exp(-dE / T))``. A
    disturbance either flips ``forced`` weights, any of them, each by the best swap that does it, and holds
    them for ``hold * n`` steps while the others adapt; or it relinks: it walks from the replica's assignment
    towards another replica's by the best swaps of weights in which the two differ, and begins from the best
    point in the middle of that path. Then replicas of neighbouring temperatures exchange them with probability
    ``min(1, exp((E_1 - E_2) (1/T_1 - 1/T_2)))``. The temperatures lie between ``cold`` and ``hot`` times the
    median ``|dE|`` of the first round's moves, geometrically. Ends in optima over all single swaps. Under budgets a
    disturbance makes ``forced`` allowed moves, each the cheapest of several drawn; nothing is held or relinked.

    After R. Swendsen, J.-S. Wang, Phys. Rev. Lett. 57 (1986); moves between the ends of searches as in D. Wales,
    J. Doye, J. Phys. Chem. A 101 (1997); relinking after F. Glover, M. Laguna, R. Marti, Control and Cybernetics
    29 (2000).

    Attributes:
        replicas: how many; they begin at the warm start, greedy forward selection, the rounded relaxation and
            random assignments, in this order.
        rounds: moves of each replica.
        fill: with a time limit for the problem, or for each row of a batch, go on until it is used up, whatever
            ``rounds`` is.
        walk: steps of tabu search in a move, per variable.
        relinking: probability that a move begins on the path to another replica.
        forced: weights that are flipped where it does not.
        hold: steps for which they stay so, per variable.
        hot: highest temperature, in median ``|dE|`` of moves.
        cold: lowest temperature, in median ``|dE|`` of moves.
        candidates: weights of either kind that are paired in a step.
        tenure: fewest and most steps that a swapped weight is tabu, drawn at random.
        threads: for the replicas of one problem or the rows of a batch; one per core if ``None``.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        batched=True, budgets=True, factor_form=True, anytime=True, parallel=True, swap_optimal=True
    )

    replicas: int = setting(4, least=1)
    rounds: int = setting(600, least=0)
    fill: bool = False
    walk: float = setting(0.15, least=0)
    relinking: float = setting(0.2, least=0, most=1)
    forced: int = setting(2, least=0)
    hold: float = setting(0.05, least=0)
    hot: float = setting(0.3, above=0)
    cold: float = setting(0.02, above=0)
    candidates: int = setting(4, least=1)
    tenure: tuple[int, int] = setting((2, 5), least=0)
    threads: int | None = setting(None, least=1)

    def __post_init__(self) -> None:
        if self.tenure[0] > self.tenure[1]:
            raise InputError(f"tenure is {list(self.tenure)}; give the fewest steps, then the most, such as [3, 8].")
        if self.cold > self.hot:
            raise InputError(f"cold is {self.cold:g}, above hot, {self.hot:g}; give a cold of at most hot.")

    def solve(self, request: SolveRequest, /) -> SolveResult:
        """Temper, and answer with the best of each replica, ranked."""
        if request.problem.num_budgets:
            return _within_budgets(self, request)
        clock, form = Deadline(request.time_limit), form_of(request.problem, MATRIX_UP_TO)
        found = self._search(form, request.warm_start, request.seed, clock, self.threads, request.time_limit)
        status = Status.TIME_LIMIT if clock.expired else Status.LOCAL_OPTIMUM
        return ranked_answers(request.problem, np.stack(found), status, info={"replicas": self.replicas})

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        """The same for every row; rows run in parallel, the replicas of a row in turn."""
        forms = list(forms_of(request.problems))
        limited = request.row_time_limit

        def run(row: int, warm: NDArray[np.bool_], clock: Deadline) -> NDArray[np.bool_]:
            found = self._search(forms[row], warm, derive_seed(request.seed, row), clock, 1, limited)
            return found[int(np.argmin([energy_of(forms[row], x) for x in found]))]

        return rows_in_threads(run, request, self.threads)

    def goes_on(self, done: int, clock: Deadline, limit: float | None) -> bool:
        """Whether another round follows so many, within a limit of the problem or of the row if there is one."""
        return not clock.expired and (done < self.rounds or (self.fill and limit is not None))

    def _search(
        self,
        form: Form,
        warm: NDArray[np.bool_] | None,
        seed: int,
        clock: Deadline,
        threads: int | None,
        limit: float | None,
    ) -> list[NDArray[np.bool_]]:
        """The best assignment of each replica, brought to an optimum over all single swaps."""
        points = starts_of(form, warm, self.replicas, derive_seed(seed, self.replicas))
        if not movable(form):
            return points[:1]
        ensemble = Ensemble(form, points, seed)
        moves = Moves(self, threads, clock)
        moves.begin(ensemble)
        done = 0
        while self.goes_on(done, clock, limit):
            moves.round(ensemble)
            done += 1
        return ensemble.finish(clock)


def _temperatures(settings: Tempering, changes: Sequence[float]) -> NDArray[np.float64]:
    """Geometric ones, coldest first, in units of the median size of the first round's energy changes."""
    known = [abs(change) for change in changes if change]
    scale = float(np.median(known)) if known else 0.0
    return np.asarray(scale * np.geomspace(settings.cold, settings.hot, len(changes)))


def _taken(change: float, temperature: float, draw: Callable[[], float]) -> bool:
    """Metropolis' rule; ``draw`` gives a random number in [0, 1)."""
    return bool(change <= 0 or (temperature > 0 and draw() < np.exp(-change / temperature)))


def _exchange(
    places: NDArray[np.int64],
    energies: NDArray[np.float64],
    temperatures: NDArray[np.float64],
    first: int,
    draw: Callable[[], float],
) -> None:
    """Replicas of neighbouring temperatures change places by that rule, in place: every other pair from ``first``."""
    holders = np.argsort(places)
    for cold in range(first, len(holders) - 1, 2):
        a, b = holders[cold], holders[cold + 1]
        gap, t, u = energies[a] - energies[b], temperatures[cold], temperatures[cold + 1]
        if gap >= 0 or (t > 0 and draw() < np.exp(gap * (1 / t - 1 / u))):
            places[a], places[b] = cold + 1, cold


def _within_budgets(settings: Tempering, request: SolveRequest) -> SolveResult:
    """Temper under linear budgets: replicas are disturbed by allowed moves, and searched from by tabu walks."""
    clock, problem = Deadline(request.time_limit), request.problem
    if not problem.num_variables:
        return ranked_answers(problem, np.zeros((1, 0)), Status.LOCAL_OPTIMUM)
    states = in_threads(begun(request, clock), list(range(settings.replicas)), settings.threads, clock)
    energies = np.array([float(np.float64(problem.energy(state.best))) for state in states])
    random = np.random.default_rng(derive_seed(request.seed, settings.replicas))
    places, temperatures, done = np.arange(len(states)), np.zeros(len(states)), 0
    steps = max(1, round(settings.walk * problem.num_variables))

    def move(number: int) -> float:
        """What a search from the disturbed replica ends at, above the replica; it stays there until it is undone."""
        state = states[number]
        before = float(state.energies[0])
        state.energies[0] += disturb(*state.arguments, state.random, settings.forced, state.threshold)
        state.remember()
        tabu_walk(state, clock, steps, settings.tenure, steps, 0)
        state.descend()
        return float(state.energies[0]) - before

    while settings.goes_on(done, clock, request.time_limit):
        kept = [state.place.x.copy() for state in states]
        changes = in_threads(move, list(range(len(states))), settings.threads, clock)
        if not done:
            temperatures = _temperatures(settings, changes)
        for number, state in enumerate(states):
            if _taken(changes[number], temperatures[places[number]], random.random):
                energies[number] += changes[number]
            else:
                state.go_to(kept[number], float(state.energies[0]) - changes[number])
        _exchange(places, energies, temperatures, done % 2, random.random)
        done += 1
    found = [settled(state, clock) for state in states]
    status = Status.TIME_LIMIT if clock.expired else Status.LOCAL_OPTIMUM
    return ranked_answers(problem, np.stack(found), status, info={"replicas": settings.replicas})


class Ensemble:
    """The replicas: where each is, the best each has seen, and which temperature each has."""

    def __init__(self, form: Form, points: list[NDArray[np.bool_]], seed: int) -> None:
        self.form = form
        self.states = [State(form, x, derive_seed(seed, number)) for number, x in enumerate(points)]
        self.best = [state.x.copy() for state in self.states]
        self.lowest = [float(state.energies[0]) for state in self.states]
        # places in the list of temperatures, coldest first
        self.places = np.arange(len(points))
        self.temperatures = np.zeros(len(points))
        self.random = np.array([derive_seed(seed, len(points) + 1)], dtype=np.uint64)
        self.parity = 0

    def remember(self, number: int) -> None:
        """Keep where the replica is if that is the best it has seen."""
        state = self.states[number]
        if state.energies[0] < self.lowest[number]:
            self.lowest[number] = float(state.energies[0])
            self.best[number][:] = state.x

    def exchange(self) -> None:
        """Replicas of neighbouring temperatures change places: even pairs, next time odd ones."""
        energies = np.array([state.energies[0] for state in self.states])
        _exchange(self.places, energies, self.temperatures, self.parity, lambda: float(uniform(self.random)))
        self.parity = 1 - self.parity

    def finish(self, clock: Deadline) -> list[NDArray[np.bool_]]:
        """The best of every replica as an optimum over all single swaps."""
        order = np.argsort(self.lowest, kind="stable")
        if clock.expired:
            # time is over: the best replica only
            order = order[:1]
        if not clock.cancelled:
            for number in order:
                settle_form(self.form, self.best[number])
        return [self.best[number] for number in order]


class Moves:
    """How replicas move: by tabu searches from where a disturbance or a path to another replica leads."""

    def __init__(self, settings: Tempering, threads: int | None, clock: Deadline) -> None:
        self.settings, self.threads, self.clock = settings, threads, clock

    def begin(self, ensemble: Ensemble) -> None:
        """Search from every start as it is; the best replica gets the coldest place."""
        self._all(ensemble, lambda number: self._walk(ensemble, number))
        energies = [state.energies[0] for state in ensemble.states]
        ensemble.places[np.argsort(energies, kind="stable")] = np.arange(len(energies))

    def round(self, ensemble: Ensemble) -> None:
        """Move every replica, then exchange temperatures; the first round tells what temperatures there are."""
        # all paths lead to where the others were before the round, so that their order does not matter
        targets = [state.x.copy() for state in ensemble.states]
        changes = self._all(ensemble, lambda number: self._move(ensemble, number, targets))
        if not ensemble.temperatures.any():
            ensemble.temperatures = _temperatures(self.settings, changes)
        ensemble.exchange()

    def _all(self, ensemble: Ensemble, work: Callable[[int], float]) -> list[float]:
        changes = in_threads(work, list(range(len(ensemble.states))), self.threads, self.clock)
        for number in range(len(changes)):
            ensemble.remember(number)
        return changes

    def _move(self, ensemble: Ensemble, number: int, targets: list[NDArray[np.bool_]]) -> float:
        """Move one replica, or leave it where it was; the energy change that was proposed."""
        state, before = ensemble.states[number], ensemble.states[number].energies[0]
        if self.clock.expired:
            return 0.0
        x, costs = state.x.copy(), state.costs.copy()
        self._disturb(state, number, targets)
        self._walk(ensemble, number)
        change = float(state.energies[0] - before)
        temperature = ensemble.temperatures[ensemble.places[number]]
        if not _taken(change, temperature, lambda: float(uniform(state.random))):
            state.x[:], state.costs[:], state.energies[0] = x, costs, before
        return change

    def _disturb(self, state: State, number: int, targets: list[NDArray[np.bool_]]) -> None:
        form, settings = state.form, self.settings
        arguments = (*form.couplings, form.labels, state.x, state.costs, state.energies)
        if len(targets) > 1 and uniform(state.random) < settings.relinking:
            other = (number + 1 + below(state.random, len(targets) - 1)) % len(targets)
            room = self._room(form)
            if relink(*arguments, state.best, targets[other], state.free, room[0], room[1]):
                return
        state.free[:] = 0
        force(*arguments, state.free, state.random, settings.forced, round(settings.hold * form.num_variables))

    def _walk(self, ensemble: Ensemble, number: int) -> float:
        """Tabu search from where the replica is; it ends where that found the lowest energy."""
        state, settings = ensemble.states[number], self.settings
        form, room = state.form, self._room(state.form)
        state.clock[:] = 0
        state.energies[1], state.best[:] = state.energies[0], state.x
        left = round(settings.walk * form.num_variables)
        while left > 0 and not self.clock.expired:
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
                *settings.tenure,
                _NEVER,
                0,
                state.threshold,
            )
            left -= _CHUNK
        return_to_best(*form.couplings, state.x, state.costs, state.best, state.energies)
        return 0.0

    def _room(self, form: Form) -> NDArray[np.int64]:
        return np.empty((2, len(form.num_pruned), self.settings.candidates), dtype=np.int64)


@njit(cache=True, nogil=True)
def relink(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    x: Any,
    costs: Any,
    energies: Any,
    best: Any,
    target: Any,
    free: Any,
    kept: Any,
    pruned: Any,
) -> Any:
    """Walk from x towards ``target`` by best swaps of weights in which they differ; x is the best point of the middle.

    The middle are the second and third quarter of the way. ``best`` is room. False, and x as it was, if the two
    are near.
    """
    distance = 0
    for i in range(len(x)):
        free[i] = 0 if x[i] != target[i] else _NEVER
        if x[i] and not target[i]:
            distance += 1
    if distance < _NEAR:
        return False
    energies[1] = np.inf
    room = room_of(len(x), kept.shape[0], kept.shape[1])
    for step in range(1, 3 * distance // 4 + 1):
        change, u, p = best_swap_in(matrix, values, factor, labels, x, costs, free, 0, kept, pruned, room)
        exchange(matrix, values, factor, u, p, x, costs)
        free[u], free[p] = _NEVER, _NEVER
        energies[0] += change
        if 4 * step >= distance:
            keep_best(x, energies, best, 0.0)
    return_to_best(matrix, values, factor, x, costs, best, energies)
    free[:] = 0
    return True


@njit(cache=True, nogil=True)
def force(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    x: Any,
    costs: Any,
    energies: Any,
    free: Any,
    random: Any,
    count: int,
    hold: int,
) -> None:
    """Flip random weights, each by its best swap, and keep them from moving until step ``hold``."""
    for _ in range(count):
        i = below(random, len(x))
        least, partner = np.inf, -1
        for j in range(len(x)):
            if x[j] != x[i] and labels[j] == labels[i] and free[j] == 0 and free[i] == 0:
                sign = -1.0 if x[i] else 1.0
                change = sign * (costs[i] - costs[j]) - coupling(matrix, values, factor, i, j)
                if change < least:
                    least, partner = change, j
        if partner < 0:
            continue
        kept, pruned = (partner, i) if x[i] else (i, partner)
        exchange(matrix, values, factor, kept, pruned, x, costs)
        energies[0] += least
        # free[i] > 0 also says that it was flipped already
        free[i] = hold + 1
