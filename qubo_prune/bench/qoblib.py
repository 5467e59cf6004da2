"""A run as submissions to QOBLIB: a folder for each solver with one for each instance, as its checker takes them.

Source: T. Koch et al., Quantum Optimization Benchmarking Library: The Intractable Decathlon (2025), arXiv 2504.03832,
and the library's contribution guide (2026).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qubo_prune.bench.metrics import Results, found_in
from qubo_prune.bench.runs import assignment_of
from qubo_prune.bench.suite import Instance
from qubo_prune.errors import InputError
from qubo_prune.files.atomic import atomic_write
from qubo_prune.files.outputs import check_added, list_files


def write_submissions(results: Results, folder: str | Path) -> list[Path]:
    """``SOLVER/INSTANCE/INSTANCE_summary.csv`` and ``INSTANCE_solution.txt`` of every solver and instance of a run.

    A summary has one line, that of :meth:`~qubo_prune.bench.metrics.Results.qoblib`, in which submitter, affiliation
    and reference are left to fill in. A solution has the value of one variable on each line, 0 or 1, in the problem's
    order: the best one at the longest limit, or, where nothing of the solver's own was left, Wanda's choice.

    Args:
        results: of a run whose table has answers.
        folder: made if need be; files of an earlier call are replaced.

    Returns:
        The solvers' folders, a submission each.

    Raises:
        InputError: rows have no answers, or files of these names are there that were not written here.
    """
    last, names = results.at(), folder_names(results.solvers)
    answers = {key: _answer(results.instances[str(key[0])], own) for key, own in last.groupby(["instance", "solver"])}
    table = results.qoblib()
    solvers = [solver for (_, solver), _ in last.groupby(["instance", "solver"], sort=False)]
    files: dict[str, str] = {}
    for line, solver in zip(table.to_dict("records"), solvers, strict=True):
        name = str(line["Problem"])
        place = f"{names[solver]}/{name}/{name}"
        files[f"{place}_summary.csv"] = pd.DataFrame([line]).to_csv(index=False)
        files[f"{place}_solution.txt"] = answers[name, solver]
    target = check_added(folder, files)
    target.mkdir(parents=True, exist_ok=True)
    list_files(target, files)
    for file, text in files.items():
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target / file, text)
    return [target / name for name in dict.fromkeys(names[solver] for solver in solvers)]


def folder_names(solvers: Sequence[str]) -> Mapping[str, str]:
    """A name of letters, digits, dots, dashes and underlines for each label; no two are the same."""
    names: dict[str, str] = {}
    for solver in solvers:
        plain = re.sub(r"[^A-Za-z0-9.-]+", "_", solver).strip("._") or "solver"
        taken, number = {name.lower() for name in names.values()}, 2
        name = plain
        while name.lower() in taken:
            name, number = f"{plain}_{number}", number + 1
        names[solver] = name
    return names


def _answer(instance: Instance, own: pd.DataFrame) -> str:
    """The best answer of a solver, as text."""
    found = found_in(own)
    x: Any = instance.assignment(instance.start)
    if len(found):
        text = found.sort_values("energy").answer.iloc[0]
        if not text:
            raise InputError(
                f"The row of {own.solver.iloc[0]} on {instance.name} has no answer, as those of an earlier version; "
                "run bench solvers into another folder."
            )
        x = assignment_of(text, instance.num_variables)
    return "".join(f"{int(value)}\n" for value in x)
