"""Complete strangers: the examples of a solver and of methods, built and installed into an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
EXAMPLE, METHODS = EXAMPLES / "qubo-prune-openjij", EXAMPLES / "qubo-prune-power"

PRUNING = """
import json
from tiny import llama
import torch
from qubo_prune import prune

model = llama()
tokens = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(0))
report = prune(model, tokens, 0.5, solver="openjij", solver_settings={"num_reads": 2}, block_size=8, workers=2)
print(json.dumps(report.to_dict()))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A throw-away environment that sees this one's packages, with the example installed on top."""
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder, with_pip=True)
    inner = run(folder, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # addsitedir, unlike a plain line, also follows the link of an editable install
    parent = sysconfig.get_path("purelib")
    Path(inner, "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n", encoding="utf-8")
    wheels = folder / "wheels"
    for example in (EXAMPLE, METHODS):
        run(folder, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(example))
    made = [str(wheel) for wheel in sorted(wheels.glob("*.whl"))]
    assert len(made) == 2
    run(folder, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *made)
    return folder


def run(environment: Path, *arguments: str) -> str:
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV"))}
    done = subprocess.run(
        [str(python), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
        env=clean | {"PYTHONPATH": str(ROOT / "tests"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_and_not_here(environment):
    listed = {info["name"]: info for info in json.loads(run(environment, "-m", "qubo_prune.cli", "solvers", "--json"))}
    assert listed["openjij"]["distribution"] == "qubo-prune-openjij"
    assert listed["openjij"]["error"] is None
    assert listed["greedy"]["error"] is None
    here = subprocess.run(
        [sys.executable, "-m", "qubo_prune.cli", "solvers", "--json"], capture_output=True, text=True, check=True
    )
    assert "openjij" not in {info["name"] for info in json.loads(here.stdout)}


def test_its_contract_holds(environment):
    said = run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"))
    assert " passed" in said
    assert "failed" not in said
    assert "ready" in run(environment, "-m", "qubo_prune.cli", "solvers")
    run(environment, "-m", "qubo_prune.cli", "check-solver", "openjij")


def test_it_prunes_by_name(environment):
    report = json.loads(run(environment, "-c", PRUNING))
    assert report["layers"]
    assert {layer["solver"] for layer in report["layers"]} == {"openjij"}
    assert report["totals"]["accepted"] > 0
    # it solved blocks itself, without a failure, and the swaps did not take its credit
    assert sum(layer["solver_gain"] for layer in report["layers"]) > 0
    notes = {note for layer in report["layers"] for note in layer["notes"]}
    assert not [note for note in notes if "error" in note or "ended" in note or "feasible" in note]


BY_METHODS = """
import json
from tiny import llama
import torch
from qubo_prune import prune

tokens = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(0))
for settings in (
    {"method": "power", "method_settings": {"exponent": 1.0}},
    {"method": "wanda"},
    {"method": "shrunk", "method_settings": {"share": 0.5}, "block_size": 8, "solver": "tabu"},
    {"method": "gram", "warm_start": "power", "block_size": 8},
):
    report = prune(llama(), tokens, 0.5, **settings)
    plain = report.to_dict()
    masks = [int(mask.sum()) for mask in report.masks.values()]
    print(json.dumps([plain["settings"]["steps"], masks, report.relative_error]))
"""


def test_methods_of_another_distribution_are_found_by_name(environment):
    listed = json.loads(run(environment, "-m", "qubo_prune.cli", "methods", "--json"))
    found = {info["name"]: info for info in listed}
    assert found["power"]["distribution"] == found["shrunk"]["distribution"] == "qubo-prune-power"
    assert (found["power"]["role"], found["power"]["settings"]) == ("start", ["exponent"])
    assert (found["shrunk"]["role"], found["shrunk"]["settings"]) == ("blocks", ["share"])
    assert found["wanda"]["distribution"] == "qubo-prune"


def test_the_contract_of_methods_holds_for_them(environment):
    said = run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(METHODS / "tests"))
    assert " passed" in said
    assert "failed" not in said
    run(environment, "-m", "qubo_prune.cli", "check-method", "power", "--method-set", "exponent=2")


def test_they_prune_by_name_with_their_settings(environment):
    lines = [json.loads(line) for line in run(environment, "-c", BY_METHODS).splitlines()]
    (power, shrunk, start), wanda = (lines[0], lines[2], lines[3]), lines[1]
    assert power[0] == ["Power(exponent=1.0)"]
    assert power[1:] == wanda[1:]  # with the exponent 1 it is Wanda
    assert shrunk[0][0] == "Wanda()"
    assert "share=0.5" in shrunk[0][1]
    assert shrunk[1] == wanda[1]
    assert shrunk[2] < wanda[2]
    assert start[0][0] == "Power(exponent=0.5)"
    assert start[2] < wanda[2]
