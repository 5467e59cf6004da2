"""Standard output holds the result and nothing else, whatever a solver prints, and wherever it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from qubo_prune.cli.aside import aside
from qubo_prune.formats.text import write_problem
from qubo_prune.problem import BlockQubo

#: What a solver's module prints, by every way that there is, when it is imported and when it solves.
LOUD = r"""
import ctypes, logging, os, subprocess, sys, threading
from dataclasses import dataclass
import numpy as np
from qubo_prune import Capabilities, Solver, Status
from qubo_prune.solver import ranked_answers

print("by import")
early = sys.stdout
logger = logging.getLogger("loud")
logger.addHandler(logging.StreamHandler(sys.__stdout__))
logger.setLevel(logging.INFO)


def say():
    print("by print")
    early.write("by an early stream\n")
    logger.info("by a logger")
    os.write(1, b"by the descriptor\n")
    ctypes.CDLL(None).puts(b"by the C library")
    subprocess.run(["echo", "by a process"], check=True)


@dataclass(frozen=True)
class Loud(Solver):
    capabilities = Capabilities(stochastic=False, anytime={anytime})

    def solve(self, request, /):
        say()
        thread = threading.Thread(target=print, args=("by a thread",))
        thread.start()
        thread.join()
        x = np.zeros(request.problem.num_variables, dtype=bool)
        for group, count in enumerate(request.problem.num_pruned):
            x[np.flatnonzero(request.problem.labels == group)[:count]] = True
        return ranked_answers(request.problem, x, Status.FEASIBLE)
"""
WAYS = ["import", "print", "an early stream", "a logger", "the descriptor", "the C library", "a process", "a thread"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, anytime in (("loud", True), ("louder", False)):
        source = LOUD.replace("\\n", "\\n").replace("{anytime}", str(anytime))
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    write_problem(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1), tmp_path / "problem.json")
    return tmp_path


def run(folder: Path, *arguments: object, code: int = 0) -> tuple[str, str]:
    places = [str(folder), *(part for part in (os.environ.get("PYTHONPATH"),) if part)]
    done = subprocess.run(
        [sys.executable, "-m", "qubo_prune.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.mark.gate(1)
@pytest.mark.parametrize(
    ("solver", "more"), [("loud:Loud", []), ("louder:Loud", ["--time-limit", "60s"])], ids=["here", "in a process"]
)
def test_the_result_of_a_loud_solver_is_json_alone(folder: Path, solver: str, more: list[str]) -> None:
    printed, said = run(folder, "solve", "problem.json", "--solver", solver, "--json", *more)
    answer = json.loads(printed)
    assert answer["energy"] == 1.0
    assert "isolation" not in answer["notes"]
    assert [way for way in WAYS if f"by {way}\n" not in said] == []


@pytest.mark.slow
def test_so_is_the_outcome_of_its_checks(folder: Path) -> None:
    # it answers every problem alike, so that one check fails
    printed, said = run(folder, "check-solver", "loud:Loud", "--json", code=1)
    assert {outcome["name"] for outcome in json.loads(printed)} >= {"capabilities", "dispatch"}
    assert "by the C library\n" in said


@pytest.mark.slow
def test_a_table_stands_alone_too(folder: Path) -> None:
    printed, said = run(folder, "solve", "problem.json", "--solver", "loud:Loud")
    assert "by " not in printed
    assert "energy" in printed
    assert "by print\n" in said


@pytest.mark.slow
def test_what_a_plug_in_prints_when_it_is_imported_is_not_in_the_list(folder: Path) -> None:
    info = folder / "loud-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[qubo_prune.solvers]\nloud = loud:Loud\n", encoding="utf-8")
    printed, said = run(folder, "solvers", "--json")
    assert "loud" in {found["name"] for found in json.loads(printed)}
    assert "by import\n" in said


@pytest.mark.slow
def test_so_is_the_report_of_a_run_in_processes(folder: Path) -> None:
    model = tiny.save(folder / "dense")
    (folder / "text.txt").write_text(tiny.text(), encoding="utf-8")
    small = ["--calibration", "text.txt", "--samples", "4", "--sequence-length", "16"]
    asked = ["--solver", "louder:Loud", "--workers", "2", "--output", "pruned", "--json"]
    printed, said = run(folder, "prune", model, *asked, *small)
    assert json.loads(printed)["layers"]
    assert "by the C library\n" in said


def test_output_is_given_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with aside():
            os.write(1, b"meanwhile\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    sys.stdout.write("afterwards\n")
    sys.stdout.flush()
    os.write(1, b"and to the descriptor\n")
    printed, said = capfd.readouterr()
    assert printed == "afterwards\nand to the descriptor\n"
    assert said == "meanwhile\n"


@pytest.mark.slow
def test_without_standard_output_or_errors_it_does_no_harm(folder: Path) -> None:
    for name, closed in (("output", ">&-"), ("errors", "2>&-")):
        command = f"{sys.executable} -m qubo_prune.cli solve problem.json --output {name}.json -q {closed}"
        done = subprocess.run(["sh", "-c", command], cwd=folder, check=False, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert json.loads((folder / f"{name}.json").read_text())["energy"] == 1.0
