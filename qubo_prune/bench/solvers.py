"""Solvers side by side on the same problems, in one interleaved run.

Every problem is given to every solver in turn before the next problem comes, so that a noisy machine
is equally noisy for all. One core: the process is bound to it, and solvers with a ``threads`` setting
get one. What a solver found itself, what repair made of it and what the polish added stand apart.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.markup import escape
from rich.text import Text
from threadpoolctl import threadpool_limits

from qubo_prune.arguments import as_limit
from qubo_prune.bench.instances import Family
from qubo_prune.errors import InputError, QuboPruneError
from qubo_prune.precision import pinned
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.progress import Progress
from qubo_prune.ranks import check_alone
from qubo_prune.report.report import machine
from qubo_prune.seeds import checked_seed
from qubo_prune.settings import setting_value
from qubo_prune.solver.dispatch import solve, solve_batch
from qubo_prune.solver.interface import BatchRequest, Solver, derive_seed
from qubo_prune.solver.registry import make_solver
from qubo_prune.tables import Shown, Table


@dataclass(frozen=True)
class Entrant:
    """A solver with its settings, as a line of the table."""

    label: str
    name: str
    settings: Mapping[str, Any]

    def solver(self) -> Solver:
        """With all its threads; :class:`InputError` for an unknown setting or a value that does not fit."""
        return make_solver(self.name, **self.settings)

    def make(self) -> Solver:
        """The same on one thread, if it can be told."""
        solver = self.solver()
        if hasattr(solver, "threads") and "threads" not in self.settings:
            return make_solver(self.name, **self.settings, threads=1)
        return solver


def parse_entrants(text: str) -> list[Entrant]:
    """``tabu,neal(num_reads=10),local`` as entrants; values are JSON, or text where they are not.

    Raises:
        InputError: the text is not a list of that form.
    """
    text = text.strip()
    pattern = re.compile(r"\s*([^,()]+?)\s*(?:\(([^()]*)\))?\s*(?:,|$)")
    entrants, at = [], 0
    while at < len(text):
        match = pattern.match(text, at)
        if match is None or not match[1]:
            raise InputError(
                f"The solvers {text!r} are not understood at {text[at:]!r}; give names separated by commas, settings "
                "in brackets, such as tabu,neal(num_reads=10)."
            )
        entrants.append(Entrant(match[0].strip().rstrip(",").strip(), match[1], _settings(match[2] or "")))
        at = match.end()
    if not entrants:
        raise InputError("No solver is given; give names separated by commas, such as tabu,neal.")
    return entrants


def _settings(text: str) -> dict[str, Any]:
    settings = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"The setting {part!r} has no value; give name=value.")
        settings[name.strip()] = setting_value(value.strip())
    return settings


@dataclass(frozen=True)
class Record:
    """One solver on one problem.

    Attributes:
        family: name of the family.
        instance: number of the problem in it.
        num_variables: n.
        solver: the entrant's label.
        seed: of the solve.
        energy: verified and final.
        raw: best energy as the solver gave it, ``None`` if it met no count.
        repaired: best energy after repair.
        feasible: share of its answers that met the counts.
        start: energy of the warm start (Wanda).
        lower_bound: proven, or ``None``.
        proven: the solver proved its answer optimal.
        seconds: wall-clock of the whole solve, framework included.
        status: how it ended.
        qpu_seconds: for how long quantum hardware was used; ``None`` if the solver tells of none.
    """

    family: str
    instance: int
    num_variables: int
    solver: str
    seed: int
    energy: float
    raw: float | None
    repaired: float
    feasible: float
    start: float
    lower_bound: float | None
    proven: bool
    seconds: float
    status: str
    qpu_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class SolverBenchmark(Shown):
    """Outcome of :func:`compare_solvers`.

    Attributes:
        records: one per solver and problem.
        entrants: labels of the solvers, in the order of the table.
        refused: why a solver did not take part in a family, by (family, solver).
        batched: seconds a row where all rows of a family are given at once, by (family, solver).
        machine: processor and operating system.
        made: the day.
    """

    records: tuple[Record, ...]
    entrants: tuple[str, ...]
    refused: Mapping[tuple[str, str], str]
    batched: Mapping[tuple[str, str], float]
    machine: Mapping[str, Any]
    made: str

    def best_known(self) -> dict[tuple[str, int], float]:
        """The lowest energy that any solver found, by (family, instance)."""
        best: dict[tuple[str, int], float] = {}
        for record in self.records:
            key = (record.family, record.instance)
            best[key] = min(best.get(key, np.inf), record.energy)
        return best

    def of(self, family: str, solver: str) -> list[Record]:
        """The records of one solver on one family."""
        return [r for r in self.records if r.family == family and r.solver == solver]

    def gaps(self, family: str, solver: str, stage: str = "energy") -> list[float]:
        """``E / E_best - 1`` of each problem at a stage: ``raw``, ``repaired``, ``energy``, ``start``."""
        return self._gaps(self.of(family, solver), stage)

    def _gaps(self, records: Sequence[Record], stage: str) -> list[float]:
        best = self.best_known()
        values = [(getattr(r, stage), best[r.family, r.instance]) for r in records]
        return [max(0.0, value / low - 1) if low else 0.0 for value, low in values if value is not None]

    def families(self) -> list[str]:
        """Names of the families, in their order."""
        return list(dict.fromkeys(r.family for r in self.records))

    def solvers(self) -> list[str]:
        """Labels of the solvers, in their order."""
        return list(self.entrants)

    def table(self, full: bool = False) -> Table:
        """One line per block size and solver, medians over all problems of that size; per layer if ``full``."""
        table = Table(
            box=None,
            pad_edge=False,
            padding=(0, 1),
            header_style="bold",
            caption_justify="left",
            title=f"excess over the best energy found, {self.made}",
            title_justify="left",
            caption=f"medians; {self.machine.get('processor', '')}, one core",
        )
        columns = ["solver", "raw %", "repaired %", "final %", "worst %", "proven", "ms", "in batch"]
        for name in columns + ["qpu ms"] * self._on_hardware:
            table.add_column(name, justify="left" if name == "solver" else "right", no_wrap=name == "solver")
        groups: dict[str, list[Record]] = {}
        for record in self.records:
            groups.setdefault(record.family if full else f"n = {record.num_variables}", []).append(record)
        for name, records in groups.items():
            count = len({(r.family, r.instance) for r in records})
            start = self._gaps(records, "start")
            table.add_row(f"[bold]{escape(name)}[/bold], {count} problems")
            table.add_row("  (Wanda's start)", "", "", _percent(start), f"{100 * max(start):.1f}", "", "", "")
            for solver in self.entrants:
                table.add_row(f"  {escape(solver)}", *self._cells(records, solver))
        return table

    def _cells(self, group: Sequence[Record], solver: str) -> tuple[str, ...]:
        records, names = [r for r in group if r.solver == solver], {r.family for r in group}
        if not records:
            return ("-",) * (8 if self._on_hardware else 7)
        stages = (_percent(self._gaps(records, stage)) for stage in ("raw", "repaired", "energy"))
        worst = f"{100 * max(self._gaps(records, 'energy')):.1f}"
        count = sum(r.proven for r in records)
        proven = f"{count}/{len(records)}" if count else "-"
        seconds = _milliseconds(median(r.seconds for r in records))
        batch = [self.batched[name, solver] for name in names if (name, solver) in self.batched]
        cells = (*stages, worst, proven, seconds, _milliseconds(median(batch)) if batch else "-")
        used = [r.qpu_seconds for r in records if r.qpu_seconds is not None]
        return (*cells, _milliseconds(median(used)) if used else "-") if self._on_hardware else cells

    @property
    def _on_hardware(self) -> bool:
        return any(record.qpu_seconds is not None for record in self.records)

    def __rich__(self) -> Group:
        return Group(self.table(), *(Text(note) for note in _once(self.refused)))

    def to_dict(self) -> dict[str, Any]:
        """Records, refusals, batches and the machine as plain data."""
        return {
            "made": self.made,
            "entrants": list(self.entrants),
            "machine": dict(self.machine),
            "records": [dataclasses.asdict(record) for record in self.records],
            "refused": [[*key, why] for key, why in self.refused.items()],
            "batched_seconds": [[*key, value] for key, value in self.batched.items()],
        }

    def save_csv(self, path: str | Path) -> None:
        """One line per record."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Record)])
            writer.writeheader()
            writer.writerows(dataclasses.asdict(record) for record in self.records)


def _once(refused: Mapping[tuple[str, str], str]) -> list[str]:
    """Refusals without repeating a reason for every family."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for (family, solver), why in refused.items():
        reasons.setdefault((solver, why), []).append(family)
    return [
        f"{solver} {why}: left out {', '.join(names) if len(names) < 3 else f'{len(names)} families'}"
        for (solver, why), names in reasons.items()
    ]


def _percent(gaps: Sequence[float]) -> str:
    return f"{100 * median(gaps):.1f}" if gaps else "-"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


@pinned()
def compare_solvers(
    families: Sequence[Family],
    entrants: Sequence[Entrant],
    seed: int = 0,
    time_limit: float | str | None = None,
    progress: Progress | None = None,
) -> SolverBenchmark:
    """Every solver on every problem, interleaved, on one core.

    Args:
        families: the problems.
        entrants: the solvers.
        seed: every solve's seed follows from it.
        time_limit: wall-clock seconds for each solve, or ``None``.
        progress: where to report to.
    """
    check_alone("compare the same solvers")
    seed, limit = checked_seed(seed), as_limit("time_limit", time_limit)
    bars = progress or Progress()
    solvers = {entrant.label: entrant.make() for entrant in entrants}
    records: list[Record] = []
    refused: dict[tuple[str, str], str] = {}
    batched: dict[tuple[str, str], float] = {}
    total = sum(family.batch.num_rows for family in families) * len(solvers)
    with one_core(), bars.task("solving", total) as advance:
        for family in families:
            taking = {}
            for label, solver in solvers.items():
                reason = _warmed_up(solver, family)
                if reason is None:
                    taking[label] = solver
                else:
                    refused[family.name, label] = reason
                    advance(family.batch.num_rows, f"{family.name} {label}")
            for instance, (problem, start) in enumerate(family.problems()):
                for label, solver in taking.items():
                    own = derive_seed(seed, instance)
                    try:
                        records.append(_record(family, instance, problem, start, label, solver, own, limit))
                    except QuboPruneError as error:
                        refused[family.name, label] = str(error)
                    advance(1, f"{family.name} {label}")
            for label, solver in taking.items():
                if solver.capabilities.batched:
                    batched[family.name, label] = _batch_seconds(solver, family, seed, limit)
    return SolverBenchmark(tuple(records), tuple(solvers), refused, batched, machine(), str(date.today()))


def _warmed_up(solver: Solver, family: Family) -> str | None:
    """Why the solver cannot take the family's problems; else nothing, and it has compiled and imported."""
    most = solver.capabilities.max_variables
    if most is not None and family.num_variables > most:
        return f"takes at most {most}"
    small = BlockQubo(np.eye(4) + 0.1, 2)
    solve(small, solver, warm_start=[1, 1, 0, 0])
    if solver.capabilities.batched:
        rows = family.batch.rows(slice(0, 1))
        solver.solve_batch(BatchRequest(rows, family.start[:1], time_limit=1e-9))
    return None


def _record(
    family: Family,
    instance: int,
    problem: BlockQubo,
    start: np.ndarray,
    label: str,
    solver: Solver,
    seed: int,
    time_limit: float | None,
) -> Record:
    result = solve(problem, solver, seed, time_limit, start)
    ledger = result.ledger
    return Record(
        family.name,
        instance,
        problem.num_variables,
        label,
        seed,
        result.energy,
        None if ledger is None else ledger.raw,
        result.energy if ledger is None else ledger.repaired,
        0.0 if ledger is None else ledger.feasible,
        float(np.float64(problem.energy(start))),
        result.lower_bound,
        result.status.name == "OPTIMAL",
        result.seconds,
        result.status.name,
        result.qpu_seconds,
    )


def _batch_seconds(solver: Solver, family: Family, seed: int, time_limit: float | None) -> float:
    """Wall-clock seconds a row where all rows of the family are given at once, the limit for each."""
    began = time.perf_counter()
    solve_batch(solver, BatchRequest(family.batch, family.start, seed, row_time_limit=time_limit))
    return (time.perf_counter() - began) / family.batch.num_rows


@contextmanager
def one_core() -> Iterator[None]:
    """This process and its children on one processor core, where the system lets us."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        # threads of a linear algebra library that share one core wait for each other
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)
