"""What tables say of one block QUBO and of one result."""

from __future__ import annotations

from qubo_prune.solver.interface import Ledger, SolveResult
from qubo_prune.tables import Table, facts_table

#: Pruned variables that are listed.
_LISTED = 12


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
