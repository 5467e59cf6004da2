"""Linear budgets: ``sum_i c_i x_i >= C``, for what pruning has to bring in parameters, bytes or milliseconds.

Costs have any sign, so that the other sense is the negative of both sides, and several budgets may hold at once. What
a budget is met by is decided here and nowhere else: an assignment meets it if the sum, taken in float64, misses C by
no more than ``2^-40 sum_i |c_i|``, the rounding of sums taken in another order, and for whole costs by no more than
``2^-20``, so that whole numbers are met exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

from qubo_prune.errors import InputError
from qubo_prune.files.parsing import short

#: Of the sum of the sizes of all costs: what a sum may miss its budget by; and the most that sums of whole costs may.
ROUNDING, WHOLE = 2.0**-40, 2.0**-20
#: Costs add up to less than this if whole numbers are to be exact.
_EXACT = 2.0**53
#: Sizes of costs that are not 0, and of budgets: so far nothing that is made of them leaves the range of float64.
_SMALLEST, _LARGEST = 2.0**-400, 2.0**400


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
    rows, least = _numbers("costs", costs), _numbers("budget", budget)
    if rows.ndim == 1 and least.ndim == 0:
        rows, least = rows[None, :], least[None]
    if rows.ndim != 2 or rows.shape[1] != n or least.shape != rows.shape[:1]:
        raise InputError(
            f"costs have shape {np.shape(costs)} and budget {np.shape(budget)}; pass ({n},) and a number for one "
            f"budget, or (k, {n}) and (k,) for k of them."
        )
    sizes = np.abs(rows[rows != 0])
    if sizes.min(initial=1.0) < _SMALLEST or max(sizes.max(initial=0.0), np.abs(least).max(initial=0.0)) > _LARGEST:
        raise InputError(
            f"costs and budget reach from {sizes.min(initial=1.0):.3g} to "
            f"{max(sizes.max(initial=0.0), np.abs(least).max(initial=0.0)):.3g}; {_SMALLEST:.1g} to {_LARGEST:.1g} is "
            "allowed: multiply or divide both sides."
        )
    return _read_only(rows), _read_only(least)


def _numbers(name: str, given: Any) -> NDArray[np.float64]:
    """A copy as float64; :class:`InputError` if something is no finite number or loses digits."""
    # a tensor may be on a device, or part of a graph
    values = given.detach().cpu().numpy() if hasattr(given, "detach") else given
    try:
        array = np.asarray(values)
        numbers = np.array(array, dtype=np.float64) if array.dtype.kind in "biufO" else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        numbers = None
    if numbers is None:
        raise InputError(f"{name} is {short(given)}; pass numbers in rows of one length.")
    if not np.isfinite(numbers).all():
        raise InputError(f"{name} holds NaN or infinite values; only finite numbers are allowed.")
    if array.dtype.kind in "iuO" and np.abs(numbers).max(initial=0.0) >= _EXACT:
        raise InputError(
            f"{name} holds whole numbers of 2^53 and more, which float64 rounds; divide both sides, or pass floats."
        )
    return numbers


def _read_only(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values.flags.writeable = False
    return values


def rounding_of(costs: Float[np.ndarray, "k n"]) -> NDArray[np.float64]:
    """What each sum may miss its budget by, ``(k,)``."""
    totals = np.abs(costs).sum(axis=1)
    return np.asarray(np.where(whole_rows(costs), np.minimum(ROUNDING * totals, WHOLE), ROUNDING * totals))


def whole_rows(costs: Float[np.ndarray, "k n"]) -> NDArray[np.bool_]:
    """Which budgets have whole costs whose sums are exact, ``(k,)``."""
    return np.asarray((costs == np.rint(costs)).all(axis=1) & (np.abs(costs).sum(axis=1) < _EXACT))


def whole_numbers(problem: Constrained) -> list[tuple[list[int], int]]:
    """Costs and budget of every row in whole numbers, for solvers that take no others.

    As they are if the costs are whole; else to ``2^-50`` of their sum, rounded in favour of the assignment by far less
    than what a sum may miss its budget by.
    """
    rows = []
    totals, roundings = np.abs(problem.costs).sum(axis=1), rounding_of(problem.costs)
    for costs, least, total, rounding, whole in zip(
        problem.costs, problem.budget, totals, roundings, whole_rows(problem.costs), strict=True
    ):
        scale = 1.0 if whole or not total else 2.0**50 / float(total)
        reached = math.ceil((float(least) - float(rounding)) * scale) - (0 if whole else len(costs))
        rows.append(([round(float(cost) * scale) for cost in costs], reached))
    return rows


class Constrained(Protocol):
    """What has budgets."""

    @property
    def costs(self) -> NDArray[np.float64]:
        """``(k, n)``."""

    @property
    def budget(self) -> NDArray[np.float64]:
        """``(k,)``."""


def highest_sums(
    costs: Float[np.ndarray, "k n"], labels: NDArray[np.int64], counts: Sequence[int]
) -> NDArray[np.float64]:
    """The most that each sum can be under the counts, each by itself, ``(k,)``; labels of -1 are bound by no count."""
    return np.array([row[lowest_of_groups(-row, labels, counts)].sum() for row in costs])


def lowest_of_groups(
    linear: Float[np.ndarray, " n"], labels: NDArray[np.int64], counts: Sequence[int] | NDArray[np.int64]
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
