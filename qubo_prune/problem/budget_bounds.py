"""A certified lower bound of one block QUBO, with its linear budgets relaxed.

For multipliers ``nu >= 0`` every assignment that meets the budgets ``c_r'x >= C_r`` has::

    E(x) >= E(x) - sum_r nu_r (c_r'x - C_r),

whose right side is a problem under the counts alone, for which :func:`~qubo_prune.problem.bounds.lower_bounds` proves a
bound. The best of these over nu is the Lagrangian bound; the bound is concave in nu, with the budgets' misses at the
point where it was proven as slopes. Every one that was proven holds, however far the search for nu came.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.problem.bounds import lower_bounds
from qubo_prune.problem.budgets import rounding_of
from qubo_prune.problem.penalty import budget_multipliers, cost_scales
from qubo_prune.problem.qubo import BlockBatch, BlockQubo


@dataclass(frozen=True, eq=False)
class BudgetBound:
    """What was proven of one problem.

    Attributes:
        lower: no assignment that meets counts and budgets has a lower energy.
        multipliers: ``(k,)`` nu of the best bound.
        tried: how many nu were looked at.
    """

    lower: float
    multipliers: NDArray[np.float64]
    tried: int


def lower_bound(
    problem: BlockQubo, kind: str = "trace", *, most: int = 20, deadline: Deadline | None = None
) -> BudgetBound:
    """The best bound found over the multipliers of the budgets.

    Args:
        problem: its Q must be positive semidefinite. Variables without a count are allowed.
        kind: of the bounds of the relaxed problems, one of :data:`~qubo_prune.choices.BOUNDS`.
        most: multipliers that are tried.
        deadline: after which the best bound proven by then is the answer.

    Raises:
        InputError: Q is not positive semidefinite, or there is no such kind.

    >>> problem = BlockQubo([[1.0, 0.0], [0.0, 3.0]], None, costs=[1.0, 1.0], budget=1.0)
    >>> 0.9 < lower_bound(problem).lower <= 1.0
    True
    """
    if not problem.num_variables:
        return BudgetBound(problem.offset, np.zeros(problem.num_budgets), 0)
    clock = deadline or Deadline(None)
    batch, costs = _with_counts(problem)
    nu = budget_multipliers(problem, np.zeros(problem.num_variables, dtype=bool))
    best = BudgetBound(-np.inf, nu, 0)
    # to begin with, a tenth of a mean Q_ii for a mean cost
    step = np.where(nu > 0, nu / 2, 0.1 * float(np.abs(problem.diagonal).mean()) / cost_scales(problem))
    slope = np.zeros_like(nu)
    for number in range(1, max(1, most if problem.num_budgets else 1) + 1):
        linear = torch.as_tensor(-(nu @ costs))[None, :]
        found = lower_bounds(replace(batch, linear=linear), kind, deadline=clock)
        lower = float(found.lower[0]) + float(nu @ (problem.budget - rounding_of(problem.costs)))
        # a sum of several terms, each rounded once
        lower -= 2.0**-50 * float(np.abs(nu) @ np.abs(problem.budget))
        best = BudgetBound(lower, nu, number) if lower > best.lower else replace(best, tried=number)
        if clock.expired or not problem.num_budgets:
            break
        before, slope = slope, problem.budget - costs @ found.point[0].double().cpu().numpy()
        # smaller steps where the slope has turned, larger ones where it has not
        step = np.where(before * slope < 0, step / 2, step * 1.2)
        nu = np.maximum(0.0, nu + step * np.sign(slope))
    return best


def _with_counts(problem: BlockQubo) -> tuple[BlockBatch, NDArray[np.float64]]:
    """The energies under counts alone as a batch of one, and the costs of its variables.

    Variables without a count get as many beside them that cost nothing, and a count that any of their values meets.
    """
    bare = problem.without_budgets(problem.dense(), problem.offset)
    n = problem.num_variables
    if problem.num_groups:
        return BlockBatch.of(bare), problem.costs
    wide = np.zeros((2 * n, 2 * n))
    wide[:n, :n] = problem.dense()
    return BlockBatch.of(BlockQubo(wide, n, problem.offset)), np.pad(problem.costs, ((0, 0), (0, n)))
