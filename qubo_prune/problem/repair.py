"""From an assignment that misses a count or a budget to one that meets them, at the least cost step by step."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem.budgets import rounding_of
from qubo_prune.problem.qubo import BlockQubo

#: Seconds for the search of any assignment at all that meets all budgets.
_SECONDS = 30.0


def repair(problem: BlockQubo, x: Bool[np.ndarray, " n"]) -> NDArray[np.bool_]:
    """Flip one weight at a time until every count is met; then move within the counts until every budget is.

    A group with too few pruned weights prunes the one that costs least given the rest, a group with
    too many restores the one that gains most. O(n) a flip, O(n rank) in factor form. For budgets see
    :func:`meet_budgets`.
    """
    missing = np.array(problem.num_pruned, dtype=np.int64) - problem.counts(x)
    result = np.array(x, dtype=bool)
    if missing.any():
        costs = problem.flip_costs(result)
        for group in np.flatnonzero(missing):
            prune = missing[group] > 0
            eligible = (problem.labels == group) & (result != prune)
            for _ in range(abs(int(missing[group]))):
                order = np.where(eligible, costs if prune else -costs, np.inf)
                chosen = int(order.argmin())
                result[chosen], eligible[chosen] = prune, False
                row = problem.couplings(chosen)
                costs += row if prune else -row
    return meet_budgets(problem, result) if problem.num_budgets else result


def feasible_start(problem: BlockQubo) -> NDArray[np.bool_]:
    """An assignment that meets counts and budgets, begun from the lowest ``Q_ii`` of every group.

    Raises:
        InputError: there is none.
        SolverError: none was found in half a minute.
    """
    x, own = np.zeros(problem.num_variables, dtype=bool), problem.diagonal
    for group, count in enumerate(problem.num_pruned):
        members = np.flatnonzero(problem.labels == group)
        x[members[np.argsort(own[members], kind="stable")[:count]]] = True
    x[(problem.labels < 0) & (own < 0)] = True
    return repair(problem, x)


def meet_budgets(problem: BlockQubo, x: Bool[np.ndarray, " n"]) -> NDArray[np.bool_]:
    """Move until every budget is met: the move that costs least for what it brings of what is missing, again and again.

    A move flips a variable without a count, or swaps two of one group. Where none brings anything, budgets and counts
    are handed to an integer linear program with the flip costs as its objective.

    Raises:
        InputError: no assignment meets counts and budgets.
        SolverError: none was found in half a minute.
    """
    result = np.array(x, dtype=bool)
    scale = np.abs(problem.costs).mean(axis=1)
    weights = problem.costs / np.where(scale > 0, scale, 1.0)[:, None]
    slack = rounding_of(problem.costs) / 2
    flips = problem.flip_costs(result)
    # every move lowers what is missing, so that none comes again
    for _ in range(10 * max(1, problem.num_variables)):
        missing = (problem.budget - problem.amounts(result) - slack) / np.where(scale > 0, scale, 1.0)
        if (missing <= 0).all():
            return result
        move = _cheapest(problem, result, flips, weights, missing)
        if move is None:
            break
        for i in move:
            flips += -problem.couplings(i) if result[i] else problem.couplings(i)
            result[i] = not result[i]
    return _by_program(problem, flips)


def _cheapest(
    problem: BlockQubo,
    x: NDArray[np.bool_],
    flips: NDArray[np.float64],
    weights: NDArray[np.float64],
    missing: NDArray[np.float64],
) -> tuple[int, ...] | None:
    """The move of the lowest energy change for each unit that is missing less; ``None`` if nothing brings any."""
    best, chosen = np.inf, None
    sign = np.where(x, -1.0, 1.0)
    alone = np.flatnonzero(problem.labels < 0)
    if len(alone):
        price = _price(sign[alone] * flips[alone], weights[:, alone] * sign[alone], missing)
        place = int(price.argmin())
        best, chosen = float(price[place]), (int(alone[place]),)
    for group in range(problem.num_groups):
        inside = problem.labels == group
        kept, pruned = np.flatnonzero(inside & ~x), np.flatnonzero(inside & x)
        if not len(kept) or not len(pruned):
            continue
        coupled = problem.couplings_among(np.concatenate([kept, pruned]))[: len(kept), len(kept) :]
        change = flips[kept, None] - flips[None, pruned] - coupled
        brought = weights[:, kept, None] - weights[:, None, pruned]
        price = _price(change.ravel(), brought.reshape(len(missing), -1), missing)
        place = int(price.argmin())
        if price[place] < best:
            first, second = divmod(place, len(pruned))
            best, chosen = float(price[place]), (int(kept[first]), int(pruned[second]))
    return chosen if np.isfinite(best) else None


def _price(
    change: NDArray[np.float64], brought: NDArray[np.float64], missing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Energy change by what is missing less afterwards, for every move; inf where nothing is."""
    now = np.maximum(missing, 0).sum()
    less = now - np.maximum(missing[:, None] - brought, 0).sum(axis=0)
    useful = less > 1e-12 * now
    price = np.full(len(change), np.inf)
    # what gains and brings is the better the more of either
    price[useful] = np.where(change < 0, change * less, change / np.where(useful, less, 1.0))[useful]
    return price


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
    asked = " and the counts" if problem.num_groups else ""
    budgets = "the budget" if problem.num_budgets == 1 else f"the {problem.num_budgets} budgets"
    if found.status == 2:
        raise InputError(f"No assignment meets {budgets}{asked} at once; lower a budget, or change the counts.")
    raise SolverError(
        f"No assignment that meets {budgets}{asked} was found in {_SECONDS:g} s ({found.message}); pass a warm_start "
        "that does."
    )
