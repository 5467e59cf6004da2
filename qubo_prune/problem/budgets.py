"""Linear budgets: ``sum_i c_i x_i >= C``, for what pruning has to bring in parameters, bytes or milliseconds.

Costs have any sign, so that the other sense is the negative of both sides, and several budgets may hold at once. What
a budget is met by is decided here and nowhere else: an assignment meets it if the sum, taken in float64, misses C by
no more than ``2^-40 sum_i |c_i|``. That is the rounding of sums taken in another order; for whole numbers it is less
than one, so that they are met exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

from qubo_prune.errors import InputError

#: Of the sum of the sizes of all costs: what a sum may miss its budget by.
ROUNDING = 2.0**-40


def checked_budgets(
    n: int, costs: ArrayLike | None, budget: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Costs ``(k, n)`` and budgets ``(k,)`` as read-only float64; k is 0 if neither is given.

    Args:
        n: number of variables.
        costs: ``(n,)`` for one budget, or ``(k, n)``.
        budget: a number, or ``(k,)``.

    Raises:
        InputError: one of the two is missing, shapes disagree, or something is not finite.
    """
    if (costs is None) != (budget is None):
        given, missing = ("costs", "budget") if budget is None else ("budget", "costs")
        raise InputError(f"{given} is given without {missing}; give both, or neither.")
    if costs is None or budget is None:
        return _read_only(np.zeros((0, n))), _read_only(np.zeros(0))
    rows, least = np.array(costs, dtype=np.float64), np.array(budget, dtype=np.float64)
    if rows.ndim == 1 and least.ndim == 0:
        rows, least = rows[None, :], least[None]
    if rows.ndim != 2 or rows.shape[1] != n or least.shape != rows.shape[:1]:
        raise InputError(
            f"costs have shape {np.shape(costs)} and budget {np.shape(budget)}; pass ({n},) and a number for one "
            f"budget, or (k, {n}) and (k,) for k of them."
        )
    for name, values in (("costs", rows), ("budget", least)):
        if not np.isfinite(values).all():
            raise InputError(f"{name} holds NaN or infinite values; only finite numbers are allowed.")
    if np.abs(rows).max(initial=0.0) * max(1, n) > 2.0**1000:
        raise InputError("costs are so large that their sum can leave the range of float64; divide both sides.")
    return _read_only(rows), _read_only(least)


def _read_only(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values.flags.writeable = False
    return values


def rounding_of(costs: Float[np.ndarray, "k n"]) -> NDArray[np.float64]:
    """What each sum may miss its budget by, ``(k,)``."""
    return np.asarray(ROUNDING * np.abs(costs).sum(axis=1))


def highest_sums(
    costs: Float[np.ndarray, "k n"], labels: NDArray[np.int64], counts: Sequence[int]
) -> NDArray[np.float64]:
    """The most that each sum can be under the counts, each by itself, ``(k,)``; labels of -1 are bound by no count."""
    return np.array([row[lowest_of_groups(-row, labels, counts)].sum() for row in costs])


def lowest_of_groups(
    linear: Float[np.ndarray, " n"], labels: NDArray[np.int64], counts: Sequence[int]
) -> NDArray[np.bool_]:
    """The minimiser of linear energies under counts alone, ties by position; without a count, what is below 0."""
    y = (labels < 0) & (linear < 0)
    if len(counts):
        order = np.lexsort((linear, labels))
        groups = labels[order]
        rank = np.arange(len(order)) - np.searchsorted(groups, groups)
        y[order] |= (groups >= 0) & (rank < np.asarray(counts)[groups])
    return y


def none_meets(num_budgets: int, counts: bool) -> InputError:
    """What to say where counts and budgets contradict one another."""
    budgets = "the budget" if num_budgets == 1 else f"the {num_budgets} budgets"
    asked = " and the counts at once; lower a budget, or change the counts" if counts else " at once; lower one of them"
    return InputError(f"No assignment meets {budgets}{asked}.")


def check_reachable(
    costs: Float[np.ndarray, "k n"],
    budget: Float[np.ndarray, " k"],
    labels: NDArray[np.int64],
    counts: Sequence[int],
) -> None:
    """Raise :class:`InputError` if a budget is beyond what any assignment with those counts brings."""
    highest = highest_sums(costs, labels, counts)
    short = budget - highest > rounding_of(costs)
    if short.any():
        row = int(short.argmax())
        under = " with these counts" if len(counts) else ""
        which = f"budget {row}" if len(budget) > 1 else "the budget"
        raise InputError(
            f"No assignment{under} meets {which}: its costs add up to {highest[row]:.9g} at most and "
            f"{budget[row]:.9g} is asked; lower it, or raise the counts."
        )
