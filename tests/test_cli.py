"""The command line, run as a user runs it: in a process of its own where that matters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from qubo_prune.cli import app

SMALL = ["--samples", "4", "--sequence-length", "16"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "dense")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(), encoding="utf-8")
    return path


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_prune_then_eval(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    code, printed, _ = call("prune", model, "--calibration", text, "--output", out, *SMALL)
    assert code == 0
    assert "icbs blocks by greedy" in " ".join(printed.split())
    assert {"model.safetensors", "report.json", "masks.safetensors", "config.json"} <= {p.name for p in out.iterdir()}
    code, printed, _ = call("eval", out, "--text", text, *SMALL)
    assert code == 0
    assert printed.startswith("perplexity ")
    assert "60 tokens" in printed


def test_json_is_the_report(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    code, printed, _ = call("prune", model, "--calibration", text, "--output", out, "--json", "--seed", 7, *SMALL)
    assert code == 0
    assert json.loads(printed) == json.loads((out / "report.json").read_text())
    assert json.loads(printed)["settings"]["seed"] == 7
    code, printed, _ = call("eval", model, "--text", text, "--json", *SMALL)
    assert json.loads(printed)["tokens"] == 60


def test_quiet_prints_nothing(model: Path, text: Path, tmp_path: Path) -> None:
    assert call("prune", model, "--calibration", text, "--output", tmp_path / "p", "-q", *SMALL) == (
        0,
        "",
        "",
    )


def test_compare_prints_one_table(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "best"
    code, printed, _ = call(
        "compare", model, "--calibration", text, "--text", text, "--eval-samples", 3, "--output", out, *SMALL
    )
    assert code == 0
    for label in ("dense", "magnitude", "Wanda", "iCBS blocks"):
        assert label in printed
    saved = json.loads((out / "comparison.json").read_text())
    assert [row["method"] for row in saved["rows"]] == ["dense", "magnitude", "wanda", "icbs"]
    # every method starts from the dense weights
    alone = tmp_path / "alone"
    assert call("prune", model, "--calibration", text, "--output", alone, "-q", *SMALL)[0] == 0
    assert (alone / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_masks_of_a_run_are_a_warm_start(model: Path, text: Path, tmp_path: Path) -> None:
    common = ["--calibration", text, *SMALL]
    assert call("prune", model, "--output", tmp_path / "a", "--method", "wanda", *common)[0] == 0
    code, printed, _ = call(
        "prune",
        model,
        "--output",
        tmp_path / "b",
        "--warm-start",
        tmp_path / "a/masks.safetensors",
        "--json",
        *common,
    )
    assert code == 0
    assert json.loads(printed)["settings"]["warm_start"] == "given masks"


def test_solvers_are_listed() -> None:
    code, printed, _ = call("solvers")
    assert code == 0
    assert "greedy" in printed
    code, printed, _ = call("solvers", "--json")
    assert {entry["name"] for entry in json.loads(printed)} >= {"exact", "greedy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--density", "0"], "density is 0.0"),
        (["--density", "1.2"], "density is 1.2"),
        (["--pattern", "3:6"], "which 6 does not divide"),
        (["--solver", "gredy"], "did you mean 'greedy'"),
        (["--calibration", "missing.txt"], "There is no text 'missing.txt'"),
        (["--samples", "4000"], "give more text"),
        (["--max-time", "soon"], "'soon' is not understood"),
        (["--device", "nonsense"], "'cpu' always can"),
        (["--exclude", "*.nothing"], "matches none"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    model: Path, text: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    out = tmp_path / "out"
    code, printed, errors = call(
        "prune", model, "--calibration", text, "--output", out, *SMALL, *arguments
    )  # later options win
    assert code == 2
    assert printed == ""
    assert message in " ".join(errors.split())
    assert errors.startswith("Error: ")
    assert len(errors.strip().splitlines()) == 1
    assert not out.exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_missing_model_and_full_output_folder(model: Path, text: Path, tmp_path: Path) -> None:
    code, _, errors = call("prune", tmp_path / "no-model", "--output", tmp_path / "out")
    assert (code, "There is no model at" in errors) == (2, True)
    code, _, errors = call("prune", model, "--calibration", text, "--output", tmp_path)
    assert (code, "not empty" in errors) == (2, True)
    assert text.exists()


_INTERRUPTED_IN_THE_FIFTH_LAYER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
import qubo_prune.pruning as pruning
real, calls = pruning.descend, []
def interrupted(*args):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*args)
pruning.descend = interrupted
from qubo_prune.cli import main
main()
"""


def test_interrupt_writes_nothing(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["prune", str(model), "--calibration", str(text), "--output", str(out), *SMALL]
    command = [sys.executable, "-c", _INTERRUPTED_IN_THE_FIFTH_LAYER, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 130, result.stderr
    assert "nothing was written" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "text.txt"]


def test_importing_the_package_is_cheap() -> None:
    """The heavy packages are only imported where they are used."""
    code = (
        "import sys, qubo_prune; qubo_prune.BlockQubo, qubo_prune.solve, qubo_prune.available_solvers\n"
        "heavy = {'transformers', 'dimod', 'ortools', 'qiskit', 'qiskit_optimization', 'datasets', 'accelerate'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
