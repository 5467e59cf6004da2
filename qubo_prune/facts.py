"""What tables say of one block QUBO and of one result."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import Ledger, SolveResult
from qubo_prune.tables import Table

#: Pruned variables that are listed.
_LISTED = 12
#: Kinds of groups that are listed.
_KINDS = 4
#: Variables whose couplings are looked at; of more, evenly spread ones.
_LOOKED_AT = 2048


def facts_table(facts: dict[str, str], title: str = "", caption: str = "") -> Table:
    """Names and what is known, one line each; no text of it is markup."""
    table = Table(
        box=None, show_header=False, pad_edge=False, title=Text(title, style="bold") if title else None,
        title_justify="left", caption=Text(caption) if caption else None, caption_justify="left",
    )  # fmt: skip
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(Text(name), Text(fact))
    return table


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


def result_facts(result: SolveResult) -> dict[str, str]:
    """Who answered, how it ended, energies from the start to the end, and what the solver told."""
    gap = "" if result.gap is None else f" (gap {100 * result.gap:.3g} %)"
    facts = {
        "solver": result.solver,
        "status": f"{result.status.name}: {result.status.value}",
        "energy": f"{result.energy:.9g}",
        "bound": "none" if result.lower_bound is None else f"{result.lower_bound:.9g}{gap}",
        "pruned": _pruned(result),
    }
    facts |= {} if result.ledger is None else _steps(result.ledger)
    facts["seconds"] = f"{result.seconds:.3g}"
    if result.info:
        facts["told"] = "; ".join(f"{name}: {value}" for name, value in result.info.items())
    return facts


def result_table(result: SolveResult) -> Table:
    """:func:`result_facts`, and how many answers there are."""
    facts = result_facts(result)
    if len(result.energies) > 1:
        facts["answers"] = f"{len(result.energies):,}, energies up to {result.energies[-1]:.9g}"
    return facts_table(facts, "result", "energies are in units of the layer's loss")


def _pruned(result: SolveResult) -> str:
    pruned = result.assignment.nonzero()[0].tolist()
    more = ", ..." if len(pruned) > _LISTED else ""
    return f"{len(pruned)} of {len(result.assignment)}: {', '.join(map(str, pruned[:_LISTED]))}{more}"


def _steps(ledger: Ledger) -> dict[str, str]:
    """Energies from the start to the end, whoever brought them."""
    feasible = f"{100 * ledger.feasible:.3g} % of the answers met the counts"
    steps = {} if ledger.start is None else {"  start": f"{ledger.start:.9g}"}
    return steps | {
        "  raw": f"none ({feasible})" if ledger.raw is None else f"{ledger.raw:.9g} ({feasible})",
        "  repaired": f"{ledger.repaired:.9g}",
        "  polished": f"{ledger.polished:.9g}",
    }
