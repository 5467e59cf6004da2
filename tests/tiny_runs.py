"""Runs written by hand: their instances, rows and calls are made up, so that every number of a report can be told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qubo_prune.bench.metrics import Results
from qubo_prune.bench.runs import INFO, Row, RunTable
from qubo_prune.bench.suite import Instance, Suite

BASELINES = ("wanda+swaps", "random+swaps")


def instance(
    name: str, n: int = 8, best: float = 2.0, start: float = 3.0, bound: float = 1.5, **changes: Any
) -> Instance:
    """One that no file belongs to."""
    values: dict[str, Any] = {
        "name": name,
        "file": f"{name}.json",
        "sha256": f"sha-{name}",
        "family": "family",
        "origin": "model",
        "layer": "layer",
        "hessian": "gram",
        "num_variables": n,
        "density": 0.5,
        "num_pruned": n // 2,
        "whole_row": False,
        "form": "dense",
        "couplings": n * (n - 1) // 2,
        "smallest": 0.25,
        "largest": 4.0,
        "spectrum": {},
        "facts": {},
        "start": tuple(range(n // 2)),
        "start_energy": start,
        "best": tuple(range(n // 2, n)),
        "best_energy": best,
        "best_by": "tabu",
        "lower_bound": bound,
        "bound_by": "trace",
        "bound_seconds": 0.5,
        "root_bound": bound,
        "root_by": "trace",
        "optimal": False,
    }
    return Instance(**{**values, **changes})


def row(name: str, solver: str, energy: float, limit: float = 1.0, seed: int = 0, **changes: Any) -> Row:
    """A solve of :func:`instance` ``name`` that took half of its limit, and was not mended."""
    values: dict[str, Any] = {
        "instance": name,
        "sha256": f"sha-{name}",
        "solver": solver,
        "settings": "{}",
        "seed": seed,
        "time_limit": limit,
        "energy": energy,
        "raw": energy,
        "repaired": energy,
        "feasible": 1.0,
        "start": 3.0,
        "lower_bound": None,
        "optimal": False,
        "ended": False,
        "status": "FEASIBLE",
        "seconds": limit / 2,
        "cpu_seconds": limit / 4,
        "began": f"2026-05-0{1 + seed}T00:00:00+00:00",
        "machine": "a machine",
        "version": "0.1.0",
        "note": "",
    }
    return Row(**{**values, **changes})


def write(folder: Path, instances: Sequence[Instance], rows: Sequence[Row], **changes: Any) -> Path:
    """A run's folder of these."""
    table = RunTable(folder)
    table.open()
    for one in rows:
        table.append(one)
    Suite(folder, "by hand", 1, (), tuple(instances), {}).save()
    others = [label for label in dict.fromkeys(one.solver for one in rows) if label not in BASELINES]
    call = {
        "began": "2026-05-01T00:00:00+00:00",
        "suite": "by hand",
        "suite_version": 1,
        "digest": "0123",
        "solvers": [*BASELINES, *others],
        "max_variables": dict.fromkeys([*BASELINES, *others]),
        "stochastic": dict.fromkeys([*BASELINES, *others], False),
        "instances": [i.name for i in instances],
        "time_limits": sorted({one.time_limit for one in rows}),
        "seeds": 1,
        "workers": 1,
        "backend": "sequential",
        "machine": {},
        "versions": {"python": "3"},
    }
    (folder / INFO).write_text(json.dumps({"format": "qubo_prune.run", "calls": [{**call, **changes}]}))
    return folder


def results(folder: Path, instances: Sequence[Instance], rows: Sequence[Row], **changes: Any) -> Results:
    """:func:`write`, and read again."""
    return Results.read(write(folder, instances, rows, **changes))
