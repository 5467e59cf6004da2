"""Assignments that meet counts and linear budgets: repaired ones, and one to begin from."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool
from numba import njit
from numpy.typing import NDArray

from qubo_prune.errors import SolverError
from qubo_prune.problem.budgets import lowest_of_groups, none_meets
from qubo_prune.problem.penalty import budget_multipliers
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.problem.repair import repair
from qubo_prune.solver.swaps.budgets import Place, Rules, change_of, make_move, place_of
from qubo_prune.solver.swaps.kernels import form_of

#: Seconds for the search of any assignment at all that meets all budgets.
_SECONDS = 30.0


def feasible_start(problem: BlockQubo) -> NDArray[np.bool_]:
    """An assignment that meets counts and budgets: the lowest ``Q_ii - nu'c_i`` of each group, repaired.

    Raises:
        InputError: there is none.
        SolverError: none was found in half a minute.
    """
    nothing = np.zeros(problem.num_variables, dtype=bool)
    reduced = problem.diagonal - budget_multipliers(problem, nothing) @ problem.costs
    return made_feasible(problem, lowest_of_groups(reduced, problem.labels, problem.num_pruned))


def made_feasible(problem: BlockQubo, x: Bool[np.ndarray, " n"]) -> NDArray[np.bool_]:
    """The assignment with its counts met, see :func:`~qubo_prune.problem.repair.repair`, then its budgets.

    Again and again the move is made that costs least for what it brings of what is missing: a flip of a variable
    without a count, or a swap of two of one group. Where none brings anything, budgets and counts are handed to an
    integer linear program with the flip costs as its objective.

    Raises:
        InputError: no assignment meets counts and budgets.
        SolverError: none was found in half a minute.
    """
    result = repair(problem, x)
    if not problem.num_budgets or problem.is_feasible(result):
        return result
    form, rules = form_of(problem), Rules.of(problem)
    place = place_of(form, rules, result, np.zeros(problem.num_budgets))
    if _meet(form.couplings, rules, place):
        return place.x
    return _by_program(problem, place.flips)


@njit(cache=True, nogil=True)
def _missing(spare: Any, scale: Any) -> Any:
    """What is missing of all budgets, in units of their mean costs."""
    total = 0.0
    for r in range(len(spare)):
        total += max(0.0, -spare[r] / scale[r])
    return total


@njit(cache=True, nogil=True)
def _meet(c: Any, rules: Rules, place: Place) -> Any:
    """Make the cheapest moves until nothing is missing; whether that was reached."""
    # every move leaves less missing, so that none comes again
    for _ in range(10 * len(place.x)):
        missing = _missing(place.spare, rules.scale)
        if missing == 0.0:
            return True
        if not _cheapest(c, rules, place, missing):
            return False
        make_move(c, rules, place)
    return False


@njit(cache=True, nogil=True)
def _cheapest(c: Any, rules: Rules, place: Place, missing: float) -> Any:
    """Choose the move of the lowest energy change for each unit that is missing less; whether one brings any."""
    best, chosen, left = np.inf, np.full(4, -1, dtype=np.int64), np.empty(len(place.spare))
    move = place.move
    move[:] = -1
    for g in range(len(rules.begin) - 1):
        first, end = rules.begin[g], rules.begin[g + 1]
        for a in range(-1 if g == rules.alone else first, end):
            move[0] = rules.order[a] if a >= first else -1
            if (0 <= a < first) or (move[0] >= 0 and place.x[move[0]]):
                continue
            for b in range(-1 if g == rules.alone else first, end):
                move[1] = rules.order[b] if b >= first else -1
                if (0 <= b < first) or (move[1] >= 0 and not place.x[move[1]]) or (move[0] < 0 and move[1] < 0):
                    continue
                if g == rules.alone and move[0] >= 0 and move[1] >= 0:
                    continue
                for r in range(len(left)):
                    up = rules.costs[r, move[0]] if move[0] >= 0 else 0.0
                    left[r] = place.spare[r] + up - (rules.costs[r, move[1]] if move[1] >= 0 else 0.0)
                less = missing - _missing(left, rules.scale)
                if less > 1e-12 * missing:
                    change = change_of(c, place)
                    # what gains and brings is the better the more of either
                    price = change * less if change < 0.0 else change / less
                    if price < best:
                        best = price
                        chosen[:] = move
    move[:] = chosen
    return best < np.inf


def _by_program(problem: BlockQubo, linear: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The assignment of the lowest linear energies that meets counts and budgets, or any that does."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    counts = (problem.labels == np.arange(problem.num_groups)[:, None]).astype(np.float64)
    scale = np.abs(problem.costs).max(axis=1, initial=0.0)
    scale = np.where(scale > 0, scale, 1.0)
    rows = [LinearConstraint(problem.costs / scale[:, None], problem.budget / scale)]
    if problem.num_groups:
        rows.append(LinearConstraint(counts, problem.num_pruned, problem.num_pruned))
    size = float(np.abs(linear).max(initial=0.0)) or 1.0
    found = milp(
        linear / size,
        integrality=np.ones(len(linear)),
        bounds=Bounds(0, 1),
        constraints=rows,
        options={"time_limit": _SECONDS, "mip_rel_gap": 0.01},
    )
    if found.x is not None:
        x = np.asarray(np.rint(found.x).astype(bool))
        if problem.is_feasible(x):
            return x
    if found.status == 2:
        raise none_meets(problem.num_budgets, bool(problem.num_groups))
    raise SolverError(
        f"No assignment that meets all budgets was found in {_SECONDS:g} s ({found.message}); pass a warm_start that "
        "does."
    )
