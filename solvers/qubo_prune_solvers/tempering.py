"""Parallel tempering of tabu searches with path relinking, compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

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
    energy,
    exchange,
    flip_costs,
    form_of,
    forms_of,
    in_threads,
    room_of,
    rounding,
    settle_form,
    uniform,
)
from qubo_prune_solvers._budgets import begun, disturb, settled, tabu_walk
from qubo_prune_solvers._search import (
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
        ensemble = Ensemble(self, form, points, seed, threads)
        ensemble.begin(clock)
        done = 0
        while self.goes_on(done, clock, limit):
            # temperatures come of the first round
            count = min(ensemble.at_once, max(1, self.rounds - done)) if done else 1
            ensemble.rounds(count, clock)
            done += count
        return ensemble.finish(clock)


def _temperatures(settings: Tempering, changes: Sequence[float]) -> NDArray[np.float64]:
    """Geometric ones, coldest first, in units of the median size of the first round's energy changes."""
    known = [abs(change) for change in changes if change]
    scale = float(np.median(known)) if known else 0.0
    return np.asarray(scale * np.geomspace(settings.cold, settings.hot, len(changes)))


@njit(cache=True, nogil=True)
def taken(change: float, temperature: float, random: Any) -> Any:
    """Metropolis' rule."""
    return change <= 0 or (temperature > 0 and uniform(random) < np.exp(-change / temperature))


@njit(cache=True, nogil=True)
def change_places(places: Any, energies: Any, temperatures: Any, first: int, random: Any) -> None:
    """Replicas of neighbouring temperatures change places by that rule, in place: every other pair from ``first``."""
    holders = np.argsort(places)
    for cold in range(first, len(holders) - 1, 2):
        a, b = holders[cold], holders[cold + 1]
        gap, t, u = energies[a] - energies[b], temperatures[cold], temperatures[cold + 1]
        if gap >= 0 or (t > 0 and uniform(random) < np.exp(gap * (1 / t - 1 / u))):
            places[a], places[b] = cold + 1, cold


def _within_budgets(settings: Tempering, request: SolveRequest) -> SolveResult:
    """Temper under linear budgets: replicas are disturbed by allowed moves, and searched from by tabu walks."""
    clock, problem = Deadline(request.time_limit), request.problem
    if not problem.num_variables:
        return ranked_answers(problem, np.zeros((1, 0)), Status.LOCAL_OPTIMUM)
    states = in_threads(begun(request, clock), list(range(settings.replicas)), settings.threads, clock)
    energies = np.array([float(np.float64(problem.energy(state.best))) for state in states])
    random = np.array([derive_seed(request.seed, settings.replicas)], dtype=np.uint64)
    places, temperatures, done = np.arange(len(states)), np.zeros(len(states)), 0
    steps = max(1, round(settings.walk * problem.num_variables))
    # little work: to hand it to threads would take longer
    threads = 1 if len(states) * steps < _CHUNK else settings.threads

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
        changes = in_threads(move, list(range(len(states))), threads, clock)
        if not done:
            temperatures = _temperatures(settings, changes)
        for number, state in enumerate(states):
            if taken(changes[number], temperatures[places[number]], random):
                energies[number] += changes[number]
            else:
                state.go_to(kept[number], float(state.energies[0]) - changes[number])
        change_places(places, energies, temperatures, done % 2, random)
        done += 1
    found = [settled(state, clock) for state in states]
    status = Status.TIME_LIMIT if clock.expired else Status.LOCAL_OPTIMUM
    return ranked_answers(problem, np.stack(found), status, info={"replicas": settings.replicas})


class Replicas(NamedTuple):
    """The replicas as the kernels read them, a row each.

    Attributes:
        x: ``(k, n)`` where each is.
        costs: ``(k, n)`` its flip costs.
        energies: ``(k, 2)`` its energy, and the lowest of the walk at hand.
        best: ``(k, n)`` room for the best of a walk.
        free: ``(k, n)`` the step after which each variable may move again.
        clock: ``(k, 2)`` the steps of the walk at hand.
        random: ``(k, 1)`` random streams.
        found: ``(k, n)`` the best that each has seen.
        lowest: ``(k,)`` its energy.
        places: ``(k,)`` which of the temperatures each has.
        temperatures: ``(k,)`` coldest first; zeros until the first round has told the instance's.
        between: ``(1,)`` random stream of the exchanges.
        turn: ``(1,)`` rounds that were made.
    """

    x: NDArray[np.bool_]
    costs: NDArray[np.float64]
    energies: NDArray[np.float64]
    best: NDArray[np.bool_]
    free: NDArray[np.int64]
    clock: NDArray[np.int64]
    random: NDArray[np.uint64]
    found: NDArray[np.bool_]
    lowest: NDArray[np.float64]
    places: NDArray[np.int64]
    temperatures: NDArray[np.float64]
    between: NDArray[np.uint64]
    turn: NDArray[np.int64]


class Rules(NamedTuple):
    """The settings as the kernels read them: ``steps`` and ``hold`` in steps, ``width`` the candidates."""

    steps: int
    relinking: float
    forced: int
    hold: int
    width: int
    least: int
    most: int
    threshold: float


class Ensemble:
    """The replicas of one problem and how they move."""

    def __init__(
        self, settings: Tempering, form: Form, points: list[NDArray[np.bool_]], seed: int, threads: int | None
    ) -> None:
        self.settings, self.form, self.threads = settings, form, threads
        count, n = len(points), form.num_variables
        x = np.stack(points)
        costs = np.stack([flip_costs(*form.couplings, form.own, point) for point in points])
        energies = np.array([[energy(form.own, costs[k], x[k])] * 2 for k in range(count)])
        self.replicas = Replicas(
            x,
            costs,
            energies,
            x.copy(),
            np.zeros((count, n), dtype=np.int64),
            np.zeros((count, 2), dtype=np.int64),
            np.array([[derive_seed(seed, number)] for number in range(count)], dtype=np.uint64),
            x.copy(),
            energies[:, 0].copy(),
            np.arange(count),
            np.zeros(count),
            np.array([derive_seed(seed, count + 1)], dtype=np.uint64),
            np.zeros(1, dtype=np.int64),
        )
        self.rules = Rules(
            round(settings.walk * n),
            float(settings.relinking),
            settings.forced,
            round(settings.hold * n),
            settings.candidates,
            *settings.tenure,
            rounding(form),
        )

    @property
    def at_once(self) -> int:
        """Rounds between two looks at the clock."""
        return max(1, _CHUNK // max(1, len(self.replicas.x) * self.rules.steps))

    def begin(self, clock: Deadline) -> None:
        """Search from every start as it is; the best replica gets the coldest place."""
        self._all(partial(self._walk, clock), clock)
        energies = self.replicas.energies[:, 0]
        self.replicas.places[np.argsort(energies, kind="stable")] = np.arange(len(energies))

    def rounds(self, count: int, clock: Deadline) -> None:
        """Move every replica, then exchange temperatures, so many times; the first round tells the temperatures."""
        replicas = self.replicas
        if self.at_once > 1 and replicas.temperatures.any():
            # little work: to hand it to threads would take longer
            many_rounds(*self.form.couplings, self.form.labels, replicas, self.rules, len(self.form.num_pruned), count)
            return
        for _ in range(count):
            # all paths lead to where the others were before the round, so that their order does not matter
            targets = replicas.x.copy()
            changes = self._all(partial(self._move, targets, clock), clock)
            if not replicas.temperatures.any():
                replicas.temperatures[:] = _temperatures(self.settings, changes)
            change_places(
                replicas.places, replicas.energies[:, 0], replicas.temperatures, replicas.turn[0] % 2, replicas.between
            )
            replicas.turn[0] += 1

    def finish(self, clock: Deadline) -> list[NDArray[np.bool_]]:
        """The best of every replica as an optimum over all single swaps."""
        found = self.replicas.found
        order = np.argsort(self.replicas.lowest, kind="stable")
        if clock.expired:
            # time is over: the best replica only
            order = order[:1]
        if not clock.cancelled:
            for number in order:
                settle_form(self.form, found[number])
        return [found[number] for number in order]

    def _all(self, work: Callable[[int], float], clock: Deadline) -> list[float]:
        changes = in_threads(work, list(range(len(self.replicas.x))), self.threads, clock)
        for number in range(len(changes)):
            remember(self.replicas, number)
        return changes

    def _move(self, targets: NDArray[np.bool_], clock: Deadline, number: int) -> float:
        """Move one replica, or leave it where it was; the energy change that was proposed."""
        if clock.expired:
            return 0.0
        replicas, form = self.replicas, self.form
        x, costs, before = replicas.x[number].copy(), replicas.costs[number].copy(), replicas.energies[number, 0]
        groups = len(form.num_pruned)
        disturb_one(*form.couplings, form.labels, replicas, self.rules, groups, number, targets)
        self._walk(clock, number)
        return float(settle_move(replicas, number, x, costs, before))

    def _walk(self, clock: Deadline, number: int) -> float:
        """Tabu search from where the replica is; it ends where that found the lowest energy."""
        replicas, form = self.replicas, self.form
        begin_walk(replicas, number)
        left = self.rules.steps
        while left > 0 and not clock.expired:
            groups, steps = len(form.num_pruned), min(left, _CHUNK)
            walk_on(*form.couplings, form.labels, replicas, self.rules, groups, number, steps)
            left -= _CHUNK
        end_walk(*form.couplings, replicas, number)
        return 0.0


@njit(cache=True, nogil=True)
def remember(replicas: Any, number: int) -> None:
    """Keep where the replica is if that is the best it has seen."""
    if replicas.energies[number, 0] < replicas.lowest[number]:
        replicas.lowest[number] = replicas.energies[number, 0]
        replicas.found[number] = replicas.x[number]


@njit(cache=True, nogil=True)
def begin_walk(replicas: Any, number: int) -> None:
    """A walk has seen nothing but where it begins."""
    replicas.clock[number] = 0
    replicas.energies[number, 1] = replicas.energies[number, 0]
    replicas.best[number] = replicas.x[number]


@njit(cache=True, nogil=True)
def walk_on(
    matrix: Any, values: Any, factor: Any, labels: Any, replicas: Any, rules: Any, groups: int, number: int, steps: int
) -> None:
    """So many more steps of tabu search."""
    kept = np.empty((groups, rules.width), dtype=np.int64)
    pruned = np.empty((groups, rules.width), dtype=np.int64)
    tabu_steps(
        matrix,
        values,
        factor,
        labels,
        replicas.x[number],
        replicas.costs[number],
        replicas.best[number],
        replicas.energies[number],
        replicas.clock[number],
        replicas.free[number],
        replicas.random[number],
        kept,
        pruned,
        steps,
        rules.least,
        rules.most,
        _NEVER,
        0,
        rules.threshold,
    )


@njit(cache=True, nogil=True)
def end_walk(matrix: Any, values: Any, factor: Any, replicas: Any, number: int) -> None:
    """Be where the walk found the lowest energy."""
    x, costs, best = replicas.x[number], replicas.costs[number], replicas.best[number]
    return_to_best(matrix, values, factor, x, costs, best, replicas.energies[number])


@njit(cache=True, nogil=True)
def disturb_one(
    matrix: Any,
    values: Any,
    factor: Any,
    labels: Any,
    replicas: Any,
    rules: Any,
    groups: int,
    number: int,
    targets: Any,
) -> None:
    """Relink the replica to where another was before the round, or flip some of its weights."""
    random, x, costs = replicas.random[number], replicas.x[number], replicas.costs[number]
    energies, free = replicas.energies[number], replicas.free[number]
    if len(targets) > 1 and uniform(random) < rules.relinking:
        other = (number + 1 + below(random, len(targets) - 1)) % len(targets)
        kept = np.empty((groups, rules.width), dtype=np.int64)
        pruned = np.empty((groups, rules.width), dtype=np.int64)
        best, target = replicas.best[number], targets[other]
        if relink(matrix, values, factor, labels, x, costs, energies, best, target, free, kept, pruned):
            return
    free[:] = 0
    force(matrix, values, factor, labels, x, costs, energies, free, random, rules.forced, rules.hold)


@njit(cache=True, nogil=True)
def settle_move(replicas: Any, number: int, x: Any, costs: Any, before: float) -> Any:
    """Take the move or go back; the energy change that was proposed."""
    change = replicas.energies[number, 0] - before
    temperature = replicas.temperatures[replicas.places[number]]
    if not taken(change, temperature, replicas.random[number]):
        replicas.x[number] = x
        replicas.costs[number] = costs
        replicas.energies[number, 0] = before
    return change


@njit(cache=True, nogil=True)
def many_rounds(
    matrix: Any, values: Any, factor: Any, labels: Any, replicas: Any, rules: Any, groups: int, count: int
) -> None:
    """So many rounds, compiled: what :meth:`Ensemble.rounds` does, replica after replica."""
    for _ in range(count):
        targets = replicas.x.copy()
        for number in range(len(targets)):
            # the targets are where all were, this one too
            costs, before = replicas.costs[number].copy(), replicas.energies[number, 0]
            disturb_one(matrix, values, factor, labels, replicas, rules, groups, number, targets)
            begin_walk(replicas, number)
            walk_on(matrix, values, factor, labels, replicas, rules, groups, number, rules.steps)
            end_walk(matrix, values, factor, replicas, number)
            settle_move(replicas, number, targets[number], costs, before)
            remember(replicas, number)
        first = replicas.turn[0] % 2
        change_places(replicas.places, replicas.energies[:, 0], replicas.temperatures, first, replicas.between)
        replicas.turn[0] += 1


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
