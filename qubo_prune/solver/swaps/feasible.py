"""Assignments that meet counts and linear budgets: repaired ones, and one to begin from."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool
from numba import njit
from numpy.typing import NDArray

from qubo_prune.clock import Deadline, shortest
from qubo_prune.errors import SolverError
from qubo_prune.problem.budgets import lowest_of_groups, none_meets, whole_numbers
from qubo_prune.problem.penalty import budget_multipliers
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.problem.repair import repair
from qubo_prune.solver.swaps.budgets import Place, Rules, change_of, make_move, place_of
from qubo_prune.solver.swaps.kernels import form_of

#: Seconds for the search of any assignment at all that meets all budgets.
_SECONDS = 30.0


def feasible_start(problem: BlockQubo, clock: Deadline | None = None) -> NDArray[np.bool_]:
    """An assignment that meets counts and budgets: the lowest ``Q_ii - nu'c_i`` of each group, repaired.

    Raises:
        InputError: there is none.
        SolverError: none was found in half a minute, or before the clock had run out.
    """
    nothing = np.zeros(problem.num_variables, dtype=bool)
    reduced = problem.diagonal - budget_multipliers(problem, nothing) @ problem.costs
    return made_feasible(problem, lowest_of_groups(reduced, problem.labels, problem.num_pruned), clock)


def made_feasible(
    problem: BlockQubo, x: Bool[np.ndarray, " n"], clock: Deadline | None = None, effort: float = np.inf
) -> NDArray[np.bool_]:
    """The assignment with its counts met, see :func:`~qubo_prune.problem.repair.repair`, then its budgets.

    Again and again the move is made that costs least for what it brings of what is missing: a flip of a variable
    without a count, or a swap of two of one group. Where none brings anything, budgets and counts are handed to an
    integer linear program with the flip costs as its objective.

    Args:
        problem: with budgets or without.
        x: any assignment.
        clock: ends the program.
        effort: of the program, about seconds, but the same for the same problem on every machine.

    Raises:
        InputError: no assignment meets counts and budgets.
        SolverError: none was found in half a minute, or before the clock had run out.
    """
    result = repair(problem, x)
    if not problem.num_budgets or problem.is_feasible(result):
        return result
    form, rules = form_of(problem), Rules.of(problem)
    place = place_of(form, rules, result, np.zeros(problem.num_budgets))
    if _meet(form.couplings, rules, place):
        return place.x
    return _by_program(problem, place.flips, clock or Deadline(None), effort)


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


def _by_program(problem: BlockQubo, linear: NDArray[np.float64], clock: Deadline, effort: float) -> NDArray[np.bool_]:
    """The assignment of nearly the lowest linear energies that meets counts and budgets, or any that does."""
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    x = [model.new_bool_var(f"x{i}") for i in range(problem.num_variables)]
    for group, count in enumerate(problem.num_pruned):
        model.add(sum(x[i] for i in np.flatnonzero(problem.labels == group).tolist()) == count)
    for costs, least in whole_numbers(problem):
        model.add(sum(cost * variable for cost, variable in zip(costs, x, strict=True)) >= least)
    scale = 2.0**30 / (float(np.abs(linear).sum()) or 1.0)
    model.minimize(sum(round(float(value) * scale) * variable for value, variable in zip(linear, x, strict=True)))
    solver, seconds = cp_model.CpSolver(), shortest(_SECONDS, clock.remaining) or 1e-3
    # one worker gives the same answer each time; it would take Ctrl-C for the end of its time
    solver.parameters.num_workers, solver.parameters.catch_sigint_signal = 1, False
    solver.parameters.max_time_in_seconds, solver.parameters.relative_gap_limit = seconds, 0.01
    solver.parameters.max_deterministic_time = effort
    status = solver.status_name(solver.solve(model))
    if status == "INFEASIBLE":
        raise none_meets(problem.num_budgets, bool(problem.num_groups))
    if status in ("OPTIMAL", "FEASIBLE"):
        found = np.array([solver.boolean_value(variable) for variable in x], dtype=bool)
        if problem.is_feasible(found):
            return found
    raise SolverError(
        f"No assignment that meets all budgets was found in {seconds:.3g} s; pass a warm_start that does, or more time."
    )
