"""Tables of runs: complete, each solve once, whatever ends a run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import tiny_suite
import torch
from damage import damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import minimum

from qubo_prune.bench import runs
from qubo_prune.bench.runs import (
    BASELINES,
    INFO,
    MAX_NOTE,
    TABLE,
    Row,
    RunTable,
    checked_limits,
    entrants_with_baselines,
    read_calls,
    run_suite,
)
from qubo_prune.bench.solvers import Entrant, parse_entrants
from qubo_prune.bench.suite import MANIFEST, Suite
from qubo_prune.bench.suites import Family
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo
from qubo_prune.progress import Advance, Progress

SOLVERS = "exact,tabu(steps=5),neal(num_reads=2)"
LIMITS = (0.02, 0.06)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.made(tmp_path_factory.mktemp("suite"), tiny_suite.FEW, proof_time=1.0)


def run(
    suite: Suite, output: Path, solvers: str = SOLVERS, limits: Sequence[float] = LIMITS, seeds: int = 2
) -> list[Row]:
    """In this process, one after another."""
    table = run_suite(
        suite, parse_entrants(solvers), output, time_limits=limits, seeds=seeds, workers=1, backend="sequential"
    )
    return table.rows()


@pytest.fixture(scope="module")
def finished(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("run") / "new"
    return folder, run(suite, folder)


def seeds_of(solver: str, seeds: int) -> list[int]:
    if solver in BASELINES:
        return list(range(seeds if solver == "random+swaps" else 1))
    (entrant,) = parse_entrants(solver)
    return list(range(seeds if entrant.make().capabilities.stochastic else 1))


def asked(suite: Suite, solvers: str, seeds: int) -> set[tuple[str, str, int]]:
    """Instance, solver and seed of all solves, whatever the limit."""
    labels = [*BASELINES, *(entrant.label for entrant in parse_entrants(solvers))]
    return {(i.name, label, seed) for i in suite.instances for label in labels for seed in seeds_of(label, seeds)}


def is_complete(suite: Suite, rows: list[Row], solvers: str, limits: Sequence[float], seeds: int) -> None:
    """Each solve once, from the shortest limit on until the longest or until it ended by itself."""
    assert len({row.key for row in rows}) == len(rows)
    found: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.instance, row.solver, row.seed), []).append(row)
    assert set(found) == asked(suite, solvers, seeds)
    for own in found.values():
        own.sort(key=lambda row: row.time_limit)
        assert [row.time_limit for row in own] == sorted(limits)[: len(own)]
        assert not any(row.ended for row in own[:-1])
        assert own[-1].ended or len(own) == len(limits)


def test_every_solve_is_there_once(suite: Suite, finished: tuple[Path, list[Row]]) -> None:
    is_complete(suite, finished[1], SOLVERS, LIMITS, 2)
    assert {row.seed for row in finished[1] if row.solver == "wanda+swaps"} == {0}
    assert {row.seed for row in finished[1] if row.solver == "random+swaps"} == {0, 1}


def test_energies_lie_between_the_optimum_and_the_start(suite: Suite, finished: tuple[Path, list[Row]]) -> None:
    instances = {i.name: i for i in suite.instances}
    lowest = {i.name: minimum(suite.problem(i)) for i in suite.instances if i.num_variables <= 12}
    assert len(lowest) == 2
    for row in finished[1]:
        instance = instances[row.instance]
        rounding = 1e-9 * max(abs(row.start), abs(instance.best_energy))
        assert row.sha256 == instance.sha256
        assert row.energy <= row.start + rounding
        assert row.energy >= lowest.get(row.instance, instance.lower_bound) - rounding
        assert row.energy <= row.repaired + rounding or row.status == "NOT_IMPROVED"
        assert row.raw is None or row.raw >= row.repaired - rounding
        assert 0 <= row.feasible <= 1
        assert row.lower_bound is None or row.lower_bound <= row.energy + rounding
        if row.solver != "random+swaps":
            assert row.start == instance.start_energy
        if row.optimal:
            assert row.solver == "exact"
            assert row.energy == pytest.approx(instance.best_energy, abs=rounding)
        answer = runs.assignment_of(row.answer, instance.num_variables)
        problem = suite.problem(instance)
        assert problem.is_feasible(answer)
        assert problem.energy(answer) == pytest.approx(row.energy, abs=rounding)
        assert row.seconds > 0
        assert row.cpu_seconds >= 0
        assert datetime.fromisoformat(row.began).tzinfo is not None
    assert any(row.optimal for row in finished[1])
    starts = {(row.instance, row.seed): row.start for row in finished[1] if row.solver == "random+swaps"}
    assert len(set(starts.values())) > len(suite.instances)


def test_rows_tell_all_settings_and_the_calls_what_was_asked(suite: Suite, finished: tuple[Path, list[Row]]) -> None:
    folder, rows = finished
    settings = {row.solver: json.loads(row.settings) for row in rows}
    assert settings["tabu(steps=5)"]["steps"] == 5
    assert settings["tabu(steps=5)"]["threads"] == 1
    assert settings["neal(num_reads=2)"]["num_reads"] == 2
    (call,) = json.loads((folder / INFO).read_text())["calls"]
    assert (call["digest"], call["seeds"], call["workers"]) == (suite.digest, 2, 1)
    assert call["time_limits"] == list(LIMITS)
    assert call["solvers"] == [*BASELINES, *(entrant.label for entrant in parse_entrants(SOLVERS))]
    assert Suite.read(folder).instances == suite.instances


def test_baselines_are_there_once_and_first() -> None:
    entrants = [*parse_entrants("tabu"), Entrant("wanda+swaps", "tabu", {})]
    assert [(e.label, e.name) for e in entrants_with_baselines(entrants)] == [
        ("wanda+swaps", "greedy"),
        ("random+swaps", "greedy"),
        ("tabu", "tabu"),
    ]


def test_a_second_call_adds_nothing(suite: Suite, finished: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder = copy_of(finished[0], tmp_path)
    before = (folder / TABLE).read_bytes()
    assert run(suite, folder) == finished[1]
    assert (folder / TABLE).read_bytes() == before
    assert len(json.loads((folder / INFO).read_text())["calls"]) == 2


def copy_of(folder: Path, target: Path) -> Path:
    for name in (TABLE, INFO, MANIFEST):
        (target / name).write_bytes((folder / name).read_bytes())
    return target


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_line_that_was_cut_short_is_solved_again(
    suite: Suite, finished: tuple[Path, list[Row]], tmp_path: Path, share: float
) -> None:
    folder, rows = copy_of(finished[0], tmp_path), finished[1]
    content = (folder / TABLE).read_bytes()
    whole = content.rstrip(b"\n").rfind(b"\n") + 1
    cut = whole + max(1, int(share * (len(content) - whole)))
    (folder / TABLE).write_bytes(content[:cut])
    assert RunTable(folder).rows() == rows[:-1]
    again = run(suite, folder)
    assert again[: len(rows) - 1] == rows[:-1]
    assert again[len(rows) - 1].key == rows[-1].key
    # a solve that now took longer may have to go on to the longer limit
    is_complete(suite, again, SOLVERS, LIMITS, 2)
    assert (folder / TABLE).read_bytes().startswith(content[:whole])


def test_no_newline_at_the_end_of_a_whole_row_costs_that_row_only(
    suite: Suite, finished: tuple[Path, list[Row]], tmp_path: Path
) -> None:
    folder = copy_of(finished[0], tmp_path)
    (folder / TABLE).write_bytes((folder / TABLE).read_bytes()[:-1])
    again = run(suite, folder)
    assert again[: len(finished[1]) - 1] == finished[1][:-1]
    is_complete(suite, again, SOLVERS, LIMITS, 2)


KILLED = """
import os, shutil, signal, sys, time
from pathlib import Path
from qubo_prune.bench.runs import TABLE, run_suite
from qubo_prune.bench.solvers import parse_entrants
from qubo_prune.bench.suite import Suite

suite, output, solvers, limit, seeds, moments = sys.argv[1:]
table = Path(output) / TABLE
for number, moment in enumerate(map(int, moments.split(","))):
    child = os.fork()
    if not child:
        run_suite(
            Suite.read(suite), parse_entrants(solvers), output, time_limits=[float(limit)], seeds=int(seeds),
            workers=1, backend="sequential",
        )
        os._exit(3)  # it was too quick
    while not table.is_file() or table.read_bytes().count(b"\\n") <= moment:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended too early"
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    shutil.copy(table, f"{output}/killed-{number}.csv")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes to be killed are forked")
def test_a_killed_run_keeps_its_rows_and_goes_on(suite: Suite, tmp_path: Path) -> None:
    solvers, limit, seeds, moments = "tabu(steps=5),neal(num_reads=2)", 0.05, 3, [0, 1, 8, 20]
    output = tmp_path / "run"
    arguments = [suite.folder, output, solvers, limit, seeds, ",".join(map(str, moments))]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    before = b""
    for number, moment in enumerate(moments):
        content = (output / f"killed-{number}.csv").read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        assert whole.startswith(before)
        assert whole.count(b"\n") > moment
        before = whole
    rows = run(suite, output, solvers, [limit], seeds)
    assert (output / TABLE).read_bytes().startswith(before)
    is_complete(suite, rows, solvers, [limit], seeds)
    uninterrupted = run(suite, tmp_path / "other", solvers, [limit], seeds)
    assert {row.key for row in rows} == {row.key for row in uninterrupted}
    assert json.loads((output / INFO).read_text())["calls"][0]["seeds"] == seeds


def test_solvers_are_spared_problems_that_are_too_large(suite: Suite, tmp_path: Path) -> None:
    rows = run(suite, tmp_path, "tiny_suite:Small", [0.05], 1)
    assert {row.instance for row in rows if row.solver == "tiny_suite:Small"} == {
        i.name for i in suite.instances if i.num_variables <= 10
    }
    assert {row.instance for row in rows if row.solver == "wanda+swaps"} == {i.name for i in suite.instances}


@pytest.mark.parametrize(
    ("solver", "said"), [("Breaks", 'RuntimeError: no "licence", nor a server'), ("Refuses", "This one is refused.")]
)
def test_a_solver_that_raises_is_a_row_that_failed(suite: Suite, tmp_path: Path, solver: str, said: str) -> None:
    rows = run(suite, tmp_path, f"tiny_suite:{solver},exact", [0.05], 1)
    failed = [row for row in rows if row.solver == f"tiny_suite:{solver}"]
    assert len(failed) == len(suite.instances)
    for row in failed:
        assert row.status == "FAILED"
        assert said in row.note
        assert row.raw is None
        assert row.energy == row.start
        assert not row.optimal
    assert sum(row.solver == "exact" for row in rows) == len(suite.instances)
    # a line for each row, so that a line cut short is a row cut short
    assert (tmp_path / TABLE).read_text().count("\n") == len(rows) + 1
    assert run(suite, tmp_path, f"tiny_suite:{solver},exact", [0.05], 1) == rows


def test_what_is_added_later_only_adds_rows(suite: Suite, tmp_path: Path) -> None:
    first = run(suite, tmp_path, "neal(num_reads=2)", [0.03], 1)
    before = (tmp_path / TABLE).read_bytes()
    second = run(suite, tmp_path, "neal(num_reads=2),exact", [0.03], 2)
    assert second[: len(first)] == first
    is_complete(suite, second, "neal(num_reads=2),exact", [0.03], 2)
    third = run(suite, tmp_path, "neal(num_reads=2),exact", [0.03, 0.06], 2)
    assert third[: len(second)] == second
    is_complete(suite, third, "neal(num_reads=2),exact", [0.03, 0.06], 2)
    assert (tmp_path / TABLE).read_bytes().startswith(before)


def test_a_longer_limit_alone_asks_nobody_who_had_ended(suite: Suite, tmp_path: Path) -> None:
    first = run(suite, tmp_path, "tiny_suite:Breaks", [5.0], 1)
    assert all(row.ended for row in first)
    assert run(suite, tmp_path, "tiny_suite:Breaks", [9.0], 1) == first
    shorter = run(suite, tmp_path, "tiny_suite:Breaks", [3.0], 1)
    assert len(shorter) == 2 * len(first)


def test_other_settings_are_other_solves(suite: Suite, tmp_path: Path) -> None:
    first = run(suite, tmp_path, "tabu(steps=5)", [0.05], 1)
    entrants = [replace(entrant, settings={"steps": 6}) for entrant in parse_entrants("tabu(steps=5)")]
    run_suite(suite, entrants, tmp_path, time_limits=[0.05], seeds=1, workers=1, backend="sequential")
    added = RunTable(tmp_path).rows()[len(first) :]
    assert {json.loads(row.settings)["steps"] for row in added} == {6}
    assert len(added) == len(suite.instances)


STEPS = "tabu(steps=3, starts=2),local(rounds=0.2),anneal(sweeps=5)"


def energies(suite: Suite, output: Path, backend: str, workers: int = 2) -> dict[tuple[str, str, int], float]:
    table = run_suite(
        suite, parse_entrants(STEPS), output, time_limits=[60.0], seeds=2, workers=workers, backend=backend
    )
    rows = table.rows()
    is_complete(suite, rows, STEPS, [60.0], 2)
    return {(row.instance, row.solver, row.seed): row.energy for row in rows}


@pytest.fixture(scope="module")
def one_by_one(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int], float]:
    return energies(suite, tmp_path_factory.mktemp("one"), "sequential", 1)


def are_the_same(found: dict[tuple[str, str, int], float], others: dict[tuple[str, str, int], float]) -> None:
    assert found.keys() == others.keys()
    for key, energy in others.items():
        assert found[key] == pytest.approx(energy, rel=1e-12)


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)])
def test_solves_are_the_same_whoever_runs_them(
    suite: Suite, one_by_one: dict[tuple[str, str, int], float], tmp_path: Path, backend: str
) -> None:
    are_the_same(energies(suite, tmp_path, backend), one_by_one)


ON_DASK = """
import sys
from qubo_prune.bench.runs import run_suite
from qubo_prune.bench.solvers import parse_entrants
from qubo_prune.bench.suite import Suite

if __name__ == "__main__":
    suite, output, solvers, backend = sys.argv[1:]
    run_suite(
        Suite.read(suite), parse_entrants(solvers), output, time_limits=[60.0], seeds=2, workers=2, backend=backend
    )
"""


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("distributed") is None, reason="distributed is not installed")
def test_solves_are_the_same_on_a_dask_cluster(
    suite: Suite, one_by_one: dict[tuple[str, str, int], float], tmp_path: Path
) -> None:
    # apart, since distributed has entry points read by other classes for the rest of the process
    command = [sys.executable, "-c", ON_DASK, str(suite.folder), str(tmp_path / "run"), STEPS, "dask"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = RunTable(tmp_path / "run").rows()
    is_complete(suite, rows, STEPS, [60.0], 2)
    are_the_same({(row.instance, row.solver, row.seed): row.energy for row in rows}, one_by_one)


@pytest.mark.parametrize("backend", ["lokky", "", "dusk:tcp://10.0.0.1:8786"])
def test_an_unknown_backend_is_refused_before_anything_is_written(suite: Suite, tmp_path: Path, backend: str) -> None:
    with pytest.raises(InputError, match=r"no back-end .*; use loky, threading, sequential, dask"):
        run_suite(suite, [], tmp_path / "run", workers=1, backend=backend)
    assert not (tmp_path / "run").exists()


def test_a_backend_that_is_not_installed_names_its_package(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, package in (("ray", "ray"), ("distributed", r"'dask\[distributed\]'")):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
        backend = "dask" if name == "distributed" else name
        with pytest.raises(InputError, match=f"back-end '{backend}' needs one more package: pip install {package}"):
            run_suite(suite, [], tmp_path / "run", workers=1, backend=backend)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"time_limits": []}, r"time limits are \[\]"),
        ({"time_limits": [0.1, 0]}, "give positive numbers of seconds"),
        ({"time_limits": [-1.0]}, "give positive numbers of seconds"),
        ({"time_limits": [np.inf]}, "give positive numbers of seconds"),
        ({"time_limits": [np.nan]}, "give positive numbers of seconds"),
        ({"time_limits": ["soon"]}, "The time 'soon' is not understood"),
        ({"time_limits": "100ms"}, r"The time limits are '100ms'; give a list"),
        ({"seeds": 0}, "seeds is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"workers": -2}, "workers is -2"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    suite: Suite, tmp_path: Path, arguments: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        run_suite(suite, [], tmp_path / "run", **{"backend": "sequential", **arguments})
    assert not (tmp_path / "run").exists()


def test_time_limits_are_numbers_or_text() -> None:
    assert checked_limits(["1s", 0.1, "100ms", "30ms"], 1, None) == [0.03, 0.1, 1.0]


def test_unknown_solvers_and_settings_are_refused_before_anything_is_written(suite: Suite, tmp_path: Path) -> None:
    for solvers, said in (("tabbu", "no solver 'tabbu'"), ("tabu(stepps=1)", "stepps")):
        with pytest.raises(InputError, match=said):
            run(suite, tmp_path / "run", solvers)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_suite_is_refused(suite: Suite, finished: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder = copy_of(finished[0], tmp_path)
    family = Family("mlp", "0", "first", "gram", {0.5: (6,)}, "another layer")
    other = tiny_suite.made(tmp_path / "other", [family], proof_time=1.0)
    with pytest.raises(InputError, match="another suite"):
        run(other, folder, "exact")
    assert RunTable(folder).rows() == finished[1]
    assert Suite.read(folder).instances == suite.instances


def test_another_file_is_no_table(suite: Suite, finished: tuple[Path, list[Row]], tmp_path: Path) -> None:
    folder = copy_of(finished[0], tmp_path)
    lines = (folder / TABLE).read_text().splitlines(keepends=True)
    cells = lines[1].split(",")
    for content in (
        "a,b\n1,2\n",
        "".join(["x" + lines[0], *lines[1:]]),
        lines[0] + "only,three,cells\n",
        lines[0] + lines[1].rstrip("\n") + ",more\n",
        lines[0] + ",".join(["soon" if c == "0" else c for c in cells]),
    ):
        (folder / TABLE).write_text(content)
        with pytest.raises(InputError, match=r"rows\.csv is no table of a run"):
            run(suite, folder)
        assert (folder / TABLE).read_text() == content


def a_row(**changes: object) -> Row:
    values = {
        "instance": "one",
        "sha256": "abc",
        "solver": 'neal(num_reads=2, start="x")',
        "settings": '{"a": "x  y, z"}',
        "seed": 3,
        "time_limit": 0.1,
        "energy": -1 / 3,
        "raw": None,
        "repaired": 1e-300,
        "feasible": 0.5,
        "start": 2.0**60,
        "lower_bound": None,
        "optimal": True,
        "ended": False,
        "status": "OPTIMAL",
        "seconds": 0.25,
        "cpu_seconds": 0.0,
        "began": "2026-01-02T03:04:05+00:00",
        "machine": "a, b",
        "version": "0.1",
        "note": "",
    }
    return Row(**{**values, **changes})  # type: ignore[arg-type]


def test_rows_are_read_to_the_last_bit(tmp_path: Path) -> None:
    table = RunTable(tmp_path / "run")
    assert table.rows() == []
    table.open()
    assert table.rows() == []
    rows = [
        a_row(),
        a_row(seed=4, raw=0.1 + 0.2, lower_bound=-1e-17, optimal=False, ended=True),
        a_row(seed=5, raw=np.inf),
        a_row(seed=6, note='it said "no", twice'),
    ]
    for row in rows:
        table.append(row)
    table.open()
    assert table.rows() == rows
    assert RunTable(tmp_path / "run").rows() == rows


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_an_answer_is_read_from_its_digits(values: list[bool]) -> None:
    digits = runs.digits_of(np.array(values, dtype=bool))
    assert runs.assignment_of(digits, len(values)).tolist() == values
    for wrong, n in ((digits, len(values) + 8), (digits + "0", len(values)), (digits + "00", len(values))):
        with pytest.raises(InputError, match=f"is not one of {n} variables"):
            runs.assignment_of(wrong, n)


@pytest.mark.parametrize("digits", ["", "zz", "801", "01"])
def test_digits_of_no_answer_are_refused(digits: str) -> None:
    with pytest.raises(InputError, match="is not one of 4 variables"):
        runs.assignment_of(digits, 4)


def test_a_note_of_several_lines_becomes_one(tmp_path: Path) -> None:
    table = RunTable(tmp_path)
    table.open()
    table.append(a_row(note="first\nsecond\r\n  third"))
    assert [row.note for row in table.rows()] == ["first second third"]
    assert (tmp_path / TABLE).read_bytes().count(b"\n") == 2


def test_only_some_instances_are_solved_when_asked(suite: Suite, tmp_path: Path) -> None:
    chosen = suite.select(None, [12])
    table = run_suite(
        suite, [], tmp_path, instances=chosen, time_limits=[0.05], seeds=1, workers=1, backend="sequential"
    )
    assert {row.instance for row in table.rows()} == {chosen[0].name}


class Bars(Progress):
    """Counts what is done."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.done = 0.0

    @contextmanager
    def task(self, description: str, total: float | None) -> Iterator[Advance]:
        self.total, self.done = total or 0, 0.0

        def advance(done: float, note: str) -> None:
            self.done += done

        yield advance


def test_what_is_left_out_counts_as_done(suite: Suite, tmp_path: Path) -> None:
    entrants = parse_entrants("tiny_suite:Small,exact")
    for _ in range(2):
        bars = Bars()
        run_suite(
            suite, entrants, tmp_path, time_limits=LIMITS, seeds=2, workers=1, backend="sequential", progress=bars
        )
        assert bars.done == bars.total > 0


def test_one_thread_a_solve_and_a_solver_is_warmed_up_once(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_ready", set())
    seen: list[tuple[int, float | None]] = []
    real = runs.solve

    def solve(problem, solver, seed=0, time_limit=None, warm_start=None):
        seen.append((problem.num_variables, time_limit))
        assert torch.get_num_threads() == 1
        return real(problem, solver, seed, time_limit, warm_start)

    monkeypatch.setattr(runs, "solve", solve)
    instance = suite.instances[0]
    (entrant,) = parse_entrants("tabu(steps=5)")
    task = runs.Task(instance, suite.problem(instance), entrant, 1, 0.5)
    first, second = runs.solve_task(task), runs.solve_task(task)
    assert seen == [(4, 0.5), (8, 0.5), (8, 0.5)]
    assert (first.energy, first.key) == (second.energy, second.key)


def sleeper(problem: BlockQubo, warm_start: np.ndarray, time_limit: float) -> np.ndarray:
    """Fills the time that it is given, as many samplers do, and notes how much that is."""
    with open(os.environ["SLEPT"], "a", encoding="utf-8") as stream:
        stream.write(f"{problem.num_variables} {time_limit}\n")
    time.sleep(time_limit)
    return warm_start


def test_a_solver_that_fills_its_time_warms_up_within_the_runs_shortest_limit(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_ready", set())
    monkeypatch.setenv("SLEPT", str(tmp_path / "slept"))
    rows = run(suite, tmp_path / "run", "callable:test_runs:sleeper", [0.09, 0.03], 1)
    assert sum(row.solver.startswith("callable") for row in rows) == 2 * len(suite.instances)
    slept = [line.split() for line in (tmp_path / "slept").read_text().splitlines()]
    assert [float(limit) for n, limit in slept if n == "4"] == [pytest.approx(0.03, abs=0.01)]
    assert max(float(limit) for _, limit in slept) <= 0.09
    # a longer limit alone warms up within that
    monkeypatch.setattr(runs, "_ready", set())
    (tmp_path / "slept").unlink()
    run(suite, tmp_path / "run", "callable:test_runs:sleeper", [0.12], 1)
    warm_up = (tmp_path / "slept").read_text().split()
    assert (warm_up[0], float(warm_up[1])) == ("4", pytest.approx(0.12, abs=0.01))


def test_what_is_ended_at_its_limit_may_import_first(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_ready", set())
    seen: list[tuple[int, float | None]] = []

    def solve(problem, solver, seed=0, time_limit=None, warm_start=None):
        seen.append((problem.num_variables, time_limit))
        raise InputError("That is enough.")

    monkeypatch.setattr(runs, "solve", solve)
    instance = suite.instances[0]
    for limit in (0.03, 60.0):
        monkeypatch.setattr(runs, "_ready", set())
        runs.solve_task(
            runs.Task(instance, suite.problem(instance), Entrant("x", "callable:test_runs:plain", {}), 1, 60.0, limit)
        )
    assert [limit for n, limit in seen if n == 4] == [5.0, 60.0]


def plain(q: np.ndarray, num_pruned: int) -> np.ndarray:
    """Watches no clock."""
    return q.diagonal().argsort().argsort() < num_pruned


def test_the_processor_time_of_processes_below_counts() -> None:
    before = runs._seconds_below()
    with subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nwhile time.process_time() < 0.3: pass\nprint()\nsys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert runs._seconds_below() - before >= 0.25
        child.communicate()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("energy", "nan"),
        ("energy", "inf"),
        ("seconds", "1e999"),
        ("raw", "nan"),
        ("seed", "1_0"),
        ("seed", "9" * 30),
        ("seed", "0x1"),
        ("optimal", "yes"),
        ("ended", ""),
        ("status", "a\x1b[2J"),
        ("note", "x" * 200_000),
    ],
)
def test_a_row_with_a_value_that_no_run_writes_is_refused(tmp_path: Path, column: str, value: str) -> None:
    table = RunTable(tmp_path)
    table.open()
    values = asdict(a_row()) | {column: value}
    with (tmp_path / TABLE).open("a", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerow(["" if v is None else v for v in values.values()])
    with pytest.raises(InputError, match=r"rows\.csv is no table of a run: line \d+ is no row") as caught:
        table.rows()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_whatever_a_solver_says_in_a_note_is_read_again(tmp_path: Path) -> None:
    table = RunTable(tmp_path)
    table.open()
    table.append(a_row(note="red \x1b[31m\0 and\u2028more" + "x" * 300_000))
    (found,) = table.rows()
    assert found.note.startswith("red [31m and more")
    assert len(found.note) == MAX_NOTE


def test_rows_are_not_written_through_a_link(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside.csv", tmp_path / "run"
    folder.mkdir()
    (folder / TABLE).symlink_to(outside)
    with pytest.raises(InputError, match="is a link"):
        RunTable(folder).open()
    assert not outside.exists()


def test_tables_beyond_the_limit_and_not_of_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = RunTable(tmp_path)
    (tmp_path / TABLE).write_bytes(b"\xff\n")
    with pytest.raises(InputError, match="not UTF-8"):
        table.rows()
    table.path.unlink()
    table.open()
    monkeypatch.setattr("qubo_prune.bench.runs.MAX_TABLE_BYTES", 10)
    with pytest.raises(InputError, match="at most 10 are read"):
        table.rows()


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_tables_are_rows_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    table = RunTable(tmp_path / "run")
    with suppress(FileNotFoundError):
        table.path.unlink()
    table.open()
    for seed in range(3):
        table.append(a_row(seed=seed, note='it said "no", twice'))
    table.path.write_bytes(data.draw(damaged(table.path.read_bytes())))
    with suppress(InputError):
        for row in table.rows():
            assert all(np.isfinite([row.energy, row.start, row.repaired, row.seconds, row.time_limit]))
            assert isinstance(row.optimal, bool)


CALL = {
    "began": "now",
    "suite": "s",
    "suite_version": 1,
    "digest": "0",
    "solvers": ["a"],
    "max_variables": {"a": None},
    "stochastic": {"a": True},
    "instances": ["i"],
    "time_limits": [1.0],
    "seeds": 1,
    "workers": 1,
    "backend": "loky",
    "machine": {},
    "versions": {"python": "3"},
}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"calls": 5}',
        '{"calls": [5]}',
        '{"calls": [{}]}',
        "[" * 100_000,
        '{"calls": [], "calls": []}',
        *(
            json.dumps({"calls": [CALL | change]})
            for change in (
                {"suite": 5},
                {"solvers": "a"},
                {"solvers": [5]},
                {"time_limits": [float("nan")]},
                {"time_limits": ["1"]},
                {"time_limits": [-1]},
                {"seeds": -1},
                {"seeds": True},
                {"versions": {"a": 5}},
                {"machine": None},
                {"max_variables": {"a": "b"}},
                {"stochastic": {"a": 1}},
                {"backend": "a\nb"},
            )
        ),
    ],
)
def test_what_a_run_does_not_say_of_itself_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / INFO).write_text(json.dumps({"calls": [CALL]}))
    assert read_calls(tmp_path) == [CALL]
    (tmp_path / INFO).write_text(text)
    with pytest.raises(InputError, match=r"run\.json cannot be understood") as caught:
        read_calls(tmp_path)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_accounts_of_a_run_are_understood_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    (tmp_path / INFO).write_bytes(data.draw(damaged(json.dumps({"calls": [CALL]}, indent=1).encode())))
    with suppress(InputError):
        assert all(call.keys() >= CALL.keys() for call in read_calls(tmp_path))


@pytest.mark.slow
def test_a_solver_that_kills_the_process_of_the_benchmark_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text("import os\ndef deadly(q, num_pruned, time_limit):\n    os._exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    suite = tiny_suite.made(tmp_path / "suite", tiny_suite.FEW, proof_time=1.0)
    with pytest.raises(SolverError, match=r"A process that solves died\. .*callable:deadly:deadly.*The same command"):
        run_suite(
            suite, parse_entrants("callable:deadly:deadly"), tmp_path / "run", time_limits=[0.05], seeds=1, workers=2
        )


def test_a_table_without_answers_is_read_and_not_added_to(tmp_path: Path, finished: tuple[Path, list[Row]]) -> None:
    lines = list(csv.reader((finished[0] / TABLE).read_text(encoding="utf-8").splitlines()))
    with (tmp_path / TABLE).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(line[:-1] for line in lines)
    content = (tmp_path / TABLE).read_bytes()
    assert runs.RunTable(tmp_path).rows() == [replace(row, answer="") for row in finished[1]]
    with pytest.raises(InputError, match="has other columns than rows have now"):
        runs.RunTable(tmp_path).open()
    assert (tmp_path / TABLE).read_bytes() == content
