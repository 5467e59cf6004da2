"""What became of one block QUBO: the problem, how it was solved and the result, as data and as text."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group

from qubo_prune.files.atomic import atomic_write
from qubo_prune.problem.qubo import BlockQubo, FactorForm, counts_told
from qubo_prune.solver.interface import SolveResult, result_facts
from qubo_prune.tables import Shown, Table, facts_table


@dataclass(frozen=True, eq=False)
class Answer(Shown):
    """One solve, human-readable and as JSON.

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
                "num_pruned": list(problem.num_pruned) or None,
                "form": "factor" if isinstance(problem.q, FactorForm) else "dense",
                "offset": problem.offset,
                **({"budget": problem.budget.tolist()} if problem.num_budgets else {}),
            },
            "solver": result.solver,
            **self.asked,
            "status": result.status.name,
            "energy": result.energy,
            "lower_bound": result.lower_bound,
            "seconds": result.seconds,
            "qpu_seconds": result.qpu_seconds,
            "ledger": None if result.ledger is None else dataclasses.asdict(result.ledger),
            "notes": self.notes(),
            "answers": [
                {"energy": float(energy), "pruned": x.nonzero()[0].tolist()}
                for energy, x in zip(result.energies, result.assignments, strict=True)
            ],
        }

    def save(self, path: str | Path) -> None:
        """Write :meth:`to_dict` as JSON."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @staticmethod
    def is_saved(plain: Any) -> bool:
        """Whether the content of a JSON file is what :meth:`save` writes."""
        return isinstance(plain, dict) and {"problem", "solver", "status", "energy", "answers"} <= plain.keys()

    def __rich__(self) -> Group:
        return Group(*(part for part in (self._facts(), self._more()) if part is not None))

    def _facts(self) -> Table:
        problem = self.problem
        of = f"{problem.num_variables} variables, {counts_told(problem)} ({self.source})"
        return facts_table({"problem": of} | result_facts(self.result))

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
