"""Counts and budgets as penalties, for samplers that know none; and the temperatures that suit a problem.

With ``s_g = sum_{i in g} x_i`` the penalised energy is::

    E_pen(x) = E(x) + sum_g [ lambda_g (s_g - m_g)^2 - mu_g (s_g - m_g) ],

which equals ``E(x)`` wherever the counts are met. A budget ``sum_i c_i x_i >= C`` has the same two terms, with what it
exceeds C by, less a slack, in the place of ``s_g - m_g``; the slack is a sum of a few more binary variables.

``mu_g``, what one more pruned weight costs near the optimum, is the multiplier of the count: the linear term takes the
pull towards fewer pruned weights away, so that a small ``lambda_g`` is enough. The usual safe rules, such as
``sum |Q_ij|``, are thousands of times too large and drown the energies that matter. Samples can still miss a count by
a weight or two and are repaired.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike, NDArray

from qubo_prune.errors import InputError
from qubo_prune.problem.budgets import highest_sums, lowest_of_groups, rounding_of
from qubo_prune.problem.qubo import BlockQubo, FactorForm


def multipliers(problem: BlockQubo, x: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " c"]:
    """``mu`` of every count and then of every budget, estimated at a swap optimum x.

    Those of budgets are per mean size of their costs, so that all are energies; see :func:`budget_multipliers`.

    There the multiplier lies between the flip cost of the cheapest kept weight of the group and that
    of the dearest pruned one; the mean of the two is taken. A group that is all kept or all pruned
    has one of the two, which stands for both; an empty group has 0.
    """
    costs = problem.flip_costs(x)
    result = np.zeros(problem.num_groups)
    for group in range(problem.num_groups):
        inside = problem.labels == group
        sides = (costs[inside & ~x].min(initial=np.inf), costs[inside & x].max(initial=-np.inf))
        known = [side for side in sides if np.isfinite(side)]
        result[group] = np.mean(known) if known else 0.0
    if not problem.num_budgets:
        return result
    return np.concatenate([result, budget_multipliers(problem, x) * cost_scales(problem)])


def cost_scales(problem: BlockQubo) -> Float[np.ndarray, " k"]:
    """The mean size of each budget's costs, 1 if all are 0: the unit in which budgets become penalties."""
    if not problem.num_variables:
        return np.ones(problem.num_budgets)
    scale = np.abs(problem.costs).mean(axis=1)
    return np.where(scale > 0, scale, 1.0)


def budget_multipliers(problem: BlockQubo, x: Bool[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """``nu_r >= 0`` of every budget: about what one more unit of it costs near x, in units of energy per unit of it.

    They maximise the dual of the problem whose energies are linear with the flip costs K of x::

        nu'C + min { (K - nu'c)'y : y meets the counts },

    exactly for one budget, by turns for several.
    """
    costs, nu = problem.flip_costs(x), np.zeros(problem.num_budgets)
    for _ in range(1 if problem.num_budgets == 1 else 4):
        for row in range(problem.num_budgets):
            others = costs - nu @ problem.costs + nu[row] * problem.costs[row]
            nu[row] = _multiplier(problem, others, row)
    return nu


def _multiplier(problem: BlockQubo, linear: NDArray[np.float64], row: int) -> float:
    """The least ``nu`` from which on the minimiser of ``(linear - nu c)'y`` meets budget ``row``."""
    amounts, least = problem.costs[row], problem.budget[row] - rounding_of(problem.costs)[row]

    def met(nu: float) -> bool:
        y = lowest_of_groups(linear - nu * amounts, problem.labels, problem.num_pruned)
        return bool(amounts[y].sum() >= least)

    sizes = np.abs(amounts)
    if met(0.0) or not sizes.any():
        return 0.0
    high = float(np.abs(linear).max()) / float(sizes.max()) or 1.0
    for _ in range(100):
        if met(high):
            break
        high *= 4
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if met(middle) else (middle, high)
    return high


def least_strength(problem: BlockQubo, mu: Float[np.ndarray, " g"], x: Bool[np.ndarray, " n"]) -> float:
    """A penalty for problems whose counts cost next to nothing: the size of the flip costs, or 1."""
    scale = float(np.abs(problem.flip_costs(x)).max(initial=0.0))
    if np.abs(mu).max(initial=0.0) > 1e-9 * scale:
        return 0.0
    return scale if scale > 0 else 1.0


#: Binary variables of the slack of each budget.
SLACK_BITS = 5


def penalised(problem: BlockQubo, strength: ArrayLike, shift: ArrayLike = 0.0) -> BlockQubo:
    """The free problem ``E_pen`` above; factor form stays factor form (one more column per group and budget).

    Budgets add :func:`num_slack` variables behind the n of the problem. In units of the mean size a of a budget's
    costs its terms are ``lambda t^2 - mu t`` with ``t = (c'x - C) / a - s``, where the slack s has the weights 1, 2, 4
    and so on of a step, up to twice the largest cost or what the sum can exceed C by, if that is less.

    Args:
        problem: the block QUBO.
        strength: ``lambda``, one for all groups and budgets or one each, in units of energy.
        shift: ``mu``, likewise.

    Raises:
        InputError: a strength is negative or not finite.

    >>> free = penalised(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1), strength=10.0)
    >>> free.energy([1, 0]), free.energy([1, 1])
    (1.0, 10.0)
    """
    constraints, target = _equations(problem)
    lam = np.broadcast_to(np.asarray(strength, dtype=np.float64), target.shape)
    mu = np.broadcast_to(np.asarray(shift, dtype=np.float64), target.shape)
    if not (np.isfinite(lam).all() and (lam >= 0).all()):
        raise InputError(f"The penalty is {lam.tolist()}; pass a finite number from 0 on, or None to estimate it.")
    # x_i^2 = x_i: the square's own diagonal is in the matrix part of either form
    own = constraints @ (-2 * lam * target - mu)
    offset = problem.offset + float(lam @ target**2 + mu @ target)
    n, slack = problem.num_variables, num_slack(problem)
    if isinstance(problem.q, FactorForm):
        factor = np.concatenate([np.pad(problem.q.factor, ((0, slack), (0, 0))), constraints * np.sqrt(lam)], axis=1)
        return BlockQubo(FactorForm(np.pad(problem.q.diagonal, (0, slack)) + own, factor), None, offset)
    whole = (constraints * lam) @ constraints.T + np.diag(own)
    whole[:n, :n] += problem.dense()
    return BlockQubo(whole, None, offset)


def num_slack(problem: BlockQubo) -> int:
    """How many variables :func:`penalised` adds."""
    return SLACK_BITS * problem.num_budgets


def _equations(problem: BlockQubo) -> tuple[Float[np.ndarray, "v c"], Float[np.ndarray, " c"]]:
    """Counts and budgets as ``A'z = b`` over the variables and the slack."""
    member = (problem.labels[:, None] == np.arange(problem.num_groups)[None, :]).astype(np.float64)
    counts = np.array(problem.num_pruned, dtype=np.float64)
    if not problem.num_budgets:
        return member, counts
    scale = cost_scales(problem)
    costs, least = problem.costs / scale[:, None], problem.budget / scale
    most = highest_sums(costs, problem.labels, problem.num_pruned) - least
    reach = np.minimum(2 * np.abs(costs).max(axis=1, initial=0.0), most.clip(min=0.0))
    steps = 2.0 ** np.arange(SLACK_BITS) / (2.0**SLACK_BITS - 1)
    slack = -np.kron(np.diag(reach), steps[:, None])
    beside = np.zeros((num_slack(problem), problem.num_groups))
    return np.block([[member, costs.T], [beside, slack]]), np.concatenate([counts, least])


def relaxed(problem: BlockQubo, nu: Float[np.ndarray, " k"]) -> BlockQubo:
    """``E(x) - sum_r nu_r (c_r'x - C_r)`` under the counts alone, with C as low as a sum may be that meets it.

    For ``nu >= 0`` it is nowhere above E where the budgets are met, so its minimum is a lower bound of the problem's,
    the Lagrangian bound.

    Args:
        problem: with budgets.
        nu: the multipliers, in units of energy per unit of the budget.
    """
    tilt, offset = nu @ problem.costs, problem.offset + float(nu @ (problem.budget - rounding_of(problem.costs)))
    if isinstance(problem.q, FactorForm):
        return problem.without_budgets(FactorForm(problem.q.diagonal - tilt, problem.q.factor), offset)
    return problem.without_budgets(problem.dense() - np.diag(tilt), offset)


def temperature_range(problem: BlockQubo, x: Bool[np.ndarray, " n"], seed: int = 0) -> tuple[float, float]:
    """Hot and cold temperature of an annealing, in units of energy.

    Hot is the median ``|energy change|`` of random swaps at x (of flips, if no swap exists), cold a
    thousandth of it.
    """
    costs, rng = problem.flip_costs(x), np.random.default_rng(seed)
    changes = []
    for group in range(problem.num_groups):
        inside = problem.labels == group
        kept, pruned = np.flatnonzero(inside & ~x), np.flatnonzero(inside & x)
        if len(kept) and len(pruned):
            for u in rng.choice(kept, min(16, len(kept)), replace=False):
                changes.append(np.abs(costs[u] - costs[pruned] - problem.couplings(int(u))[pruned]))
    values = np.concatenate(changes) if changes else np.abs(costs)
    hot = float(np.median(values)) if len(values) else 0.0
    hot = hot or float(np.abs(problem.diagonal).max(initial=0.0)) or 1.0
    return hot, hot / 1000
