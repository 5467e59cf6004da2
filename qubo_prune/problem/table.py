"""What a table says of one block QUBO."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from qubo_prune.problem.qubo import BlockQubo, FactorForm
from qubo_prune.tables import Table, facts_table

#: Kinds of groups that are listed.
_KINDS = 4


#: Variables whose couplings are looked at; of more, evenly spread ones.
_LOOKED_AT = 2048


def problem_table(problem: BlockQubo) -> Table:
    """Variables, counts, form, offset, sizes of the diagonal and of the couplings."""
    n = problem.num_variables
    places = evenly_spread(n, _LOOKED_AT)
    among = problem.couplings_among(places)
    couplings = among[~np.eye(len(places), dtype=bool)]
    sampled = f" (of {len(places)} evenly spread variables)" if len(places) < n else ""
    some = couplings[couplings != 0]
    share = f", {100 * len(some) / len(couplings):.3g} % are not 0{sampled}" if len(couplings) else ""
    facts = {
        "variables": f"{n:,}",
        "groups": _groups(problem),
        "form": _form(problem),
        "offset": f"{problem.offset:.6g}",
        "diagonal Q_ii": _range(problem.diagonal),
        "couplings 2 Q_ij": _range(some) + share,
    }
    return facts_table(facts, "block QUBO", "x = 1 prunes; numbers are energies, in units of the layer's loss")


def evenly_spread(n: int, most: int) -> NDArray[np.int64]:
    """All numbers below n, or so many of them at equal distances."""
    return np.unique(np.linspace(0, max(0, n - 1), min(n, most)).round().astype(np.int64))


def counts_told(problem: BlockQubo) -> str:
    """How many are to be pruned, as a sentence's end."""
    if problem.free:
        return "prune any number"
    groups = "" if problem.num_groups == 1 else f" in {problem.num_groups} groups"
    return f"prune {sum(problem.num_pruned)}{groups}"


def _groups(problem: BlockQubo) -> str:
    if problem.free:
        return "none: prune any number"
    sizes = np.bincount(problem.labels, minlength=problem.num_groups)
    kinds = Counter(zip(problem.num_pruned, sizes.tolist(), strict=True))
    told = [
        f"prune {count} of {size}" + (f" in each of {number}" if number > 1 else "")
        for (count, size), number in kinds.most_common(_KINDS)
    ]
    more = f" and {len(kinds) - _KINDS} other kinds" if len(kinds) > _KINDS else ""
    return f"{problem.num_groups}: {', '.join(told)}{more}"


def _form(problem: BlockQubo) -> str:
    n = problem.num_variables
    if isinstance(problem.q, FactorForm):
        return f"factors: diagonal and {n:,} x {problem.q.factor.shape[1]}"
    return f"dense, {n:,} x {n:,}"


def _range(values: NDArray[np.float64]) -> str:
    if not len(values):
        return "none"
    return f"{values.min():.4g} to {values.max():.4g}, median size {np.median(np.abs(values)):.3g}"
