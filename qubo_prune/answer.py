"""What became of one block QUBO: the problem, how it was solved and the result, as data and as text."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import Ledger, SolveResult

_SHOWN = 12


@dataclass(frozen=True, eq=False)
class Answer:
    """One solve, for people and for JSON.

    Attributes:
        problem: what was solved.
        result: what :func:`qubo_prune.solve` returned.
        source: where the problem came from.
        asked: the solve's other arguments: seed, time limit, settings.
    """

    problem: BlockQubo
    result: SolveResult
    source: str
    asked: dict[str, Any]

    @property
    def gap(self) -> float | None:
        """``(energy - bound) / |energy|``, if a bound is known and the energy is not 0."""
        bound, energy = self.result.lower_bound, self.result.energy
        return None if bound is None or energy == 0 else max(0.0, energy - bound) / abs(energy)

    def notes(self) -> dict[str, str]:
        """What the solver told, and what was done instead of what was asked."""
        return {key: str(value) for key, value in self.result.info.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data; an answer lists the variables that are 1, which prune."""
        result, problem = self.result, self.problem
        return {
            "problem": {
                "source": self.source,
                "num_variables": problem.num_variables,
                "num_pruned": None if problem.free else list(problem.num_pruned),
                "form": "factor" if isinstance(problem.q, FactorForm) else "dense",
                "offset": problem.offset,
            },
            "solver": result.solver,
            **self.asked,
            "status": result.status.name,
            "energy": result.energy,
            "lower_bound": result.lower_bound,
            "seconds": result.seconds,
            "ledger": None if result.ledger is None else dataclasses.asdict(result.ledger),
            "notes": self.notes(),
            "answers": [
                {"energy": float(energy), "pruned": x.nonzero()[0].tolist()}
                for energy, x in zip(result.energies, result.assignments, strict=True)
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def __rich__(self) -> Group:
        return Group(*(part for part in (self._facts(), self._more()) if part is not None))

    def _facts(self) -> Table:
        result, problem = self.result, self.problem
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("problem", Text(f"{problem.num_variables} variables, {_counts(problem)} ({self.source})"))
        table.add_row("solver", Text(result.solver))
        table.add_row("status", f"{result.status.name}: {result.status.value}")
        table.add_row("energy", f"{result.energy:.9g}")
        gap = "" if self.gap is None else f" (gap {100 * self.gap:.3g} %)"
        table.add_row("bound", "none" if result.lower_bound is None else f"{result.lower_bound:.9g}{gap}")
        table.add_row("pruned", _pruned(problem, result))
        if result.ledger is not None:
            for name, value in _steps(result.ledger).items():
                table.add_row(name, value)
        table.add_row("seconds", f"{result.seconds:.3g}")
        if result.info:
            table.add_row("told", Text("; ".join(f"{name}: {value}" for name, value in self.notes().items())))
        return table

    def _more(self) -> Table | None:
        """The energies of further answers."""
        if len(self.result.energies) < 2:
            return None
        table = Table(box=None, pad_edge=False)
        table.add_column("answer", justify="right")
        table.add_column("energy", justify="right")
        for place, energy in enumerate(self.result.energies, 1):
            table.add_row(str(place), f"{energy:.9g}")
        return table


def _counts(problem: BlockQubo) -> str:
    if problem.free:
        return "prune any number"
    groups = "" if problem.num_groups == 1 else f" in {problem.num_groups} groups"
    return f"prune {sum(problem.num_pruned)}{groups}"


def _pruned(problem: BlockQubo, result: SolveResult) -> str:
    pruned = result.assignment.nonzero()[0].tolist()
    more = ", ..." if len(pruned) > _SHOWN else ""
    return f"{len(pruned)} of {problem.num_variables}: {', '.join(map(str, pruned[:_SHOWN]))}{more}"


def _steps(ledger: Ledger) -> dict[str, str]:
    """Energies from the start to the end, whoever brought them."""
    feasible = f"{100 * ledger.feasible:.3g} % of the answers met the counts"
    steps = {} if ledger.start is None else {"  start": f"{ledger.start:.9g}"}
    return steps | {
        "  raw": f"none ({feasible})" if ledger.raw is None else f"{ledger.raw:.9g} ({feasible})",
        "  repaired": f"{ledger.repaired:.9g}",
        "  polished": f"{ledger.polished:.9g}",
    }
