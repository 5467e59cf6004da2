"""The command line, run as a user runs it: in a process of its own where that matters."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pictures
import pytest
import tiny
from reference import feasible_points
from typer.testing import CliRunner

from qubo_prune import KeepMasks, plugins
from qubo_prune.cli import app
from qubo_prune.formats.text import read_problem, write_problem
from qubo_prune.models.classifiers import load_classifier
from qubo_prune.problem import BlockQubo
from qubo_prune.run.compare import COMPARED
from qubo_prune.solver import Solver, SolveRequest, SolveResult, Status, ranked_answers
from qubo_prune.solver.dispatch import solve

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
    assert "gram blocks by greedy" in " ".join(printed.split())
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


def test_a_model_on_the_disk_is_pruned_as_one_in_memory(model: Path, text: Path, tmp_path: Path) -> None:
    kept = []
    for weights in ("memory", "disk"):
        out = tmp_path / weights
        code, _, said = call("prune", model, "--calibration", text, "--output", out, "--weights", weights, *SMALL)
        assert code == 0
        assert re.search(r"About .* of memory will be needed \(process .*\); .* are available\.", said)
        kept.append(KeepMasks.load(out / "masks.safetensors"))
    assert all(bool((kept[0][name] == kept[1][name]).all()) for name in kept[0])
    code, printed, said = call("prune", model, "--output", tmp_path / "no", "--weights", "dsk")
    assert (code, printed) == (2, "")
    assert "did you mean 'disk'" in said
    assert not (tmp_path / "no").exists()


def test_compare_prints_one_table(model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "best"
    code, printed, _ = call(
        "compare", model, "--calibration", text, "--text", text, "--eval-samples", 3, "--output", out, *SMALL
    )
    assert code == 0
    for label in ("dense", "magnitude", "Wanda", "Gram blocks"):
        assert label in printed
    saved = json.loads((out / "comparison.json").read_text())
    assert [row["method"] for row in saved["rows"]] == ["dense", *COMPARED]
    # every method starts from the dense weights
    alone = tmp_path / "alone"
    given = ("--calibration", text, "--output", alone, "-q", "--method", "compensated")
    assert call("prune", model, *given, *SMALL)[0] == 0
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


def test_the_solvers_settings_and_limits_are_passed_on(model: Path, text: Path, tmp_path: Path) -> None:
    common = ["prune", model, "--calibration", text, "--json", *SMALL]
    code, printed, _ = call(
        *common,
        "--output",
        tmp_path / "a",
        "--set",
        "candidates=3",
        "--set",
        "precision=double",
        "--block-time",
        "2s",
        "--workers",
        0,
        "--no-polish",
    )
    assert code == 0
    settings = json.loads(printed)["settings"]
    assert {"candidates=3", "precision='double'"} <= set(re.split(r"[(, )]+", settings["solver_settings"]))
    assert (settings["block_time"], settings["polish"]) == (2.0, False)
    code, printed, _ = call(*common, "--output", tmp_path / "b", "--block-time", "none")
    assert (json.loads(printed)["settings"]["block_time"], json.loads(printed)["settings"]["polish"]) == (None, True)


def test_solvers_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call("solvers")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    head, *rows, last = printed.splitlines()
    assert last.startswith("Adapters (NAME:package.module:Thing): ")
    said = {row.split()[0]: row.split() for row in rows}
    assert head.split()[:3] == ["solver", "exact", "counts"]
    assert said["greedy"][1:] == ["-", "yes", "yes", "yes", "yes", "-", "any", "qubo-prune", "ready"]
    code, printed, _ = call("solvers", "--json")
    infos = {entry["name"]: entry for entry in json.loads(printed)}
    assert set(infos) >= {"exact", "greedy"}
    assert infos["greedy"]["capabilities"]["devices"] == ["cpu", "cuda"]


def test_a_solver_that_cannot_be_used_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint("cold", "no_such_package:Cold", plugins.SOLVERS)]
    monkeypatch.setattr(plugins, "_entry_points", lambda group=plugins.SOLVERS: entries)
    code, printed, _ = call("solvers")
    assert code == 0
    assert "not usable" in printed
    assert "cold: The solver 'cold' (no_such_package:Cold) cannot be loaded: ModuleNotFoundError" in printed


@pytest.fixture
def problem(tmp_path: Path) -> Path:
    path = tmp_path / "block.json"
    rng = np.random.default_rng(0)
    write_problem(BlockQubo(rng.normal(size=(10, 10)), (3, 2), 0.5, [0, 1] * 5), path)
    return path


def test_solve_prints_what_was_found_and_whose_merit_it_is(problem: Path) -> None:
    code, printed, _ = call("solve", problem, "--solver", "exact")
    assert code == 0
    best = solve(read_problem(problem), "exact")
    lines = {name: rest.strip() for name, _, rest in (line.strip().partition(" ") for line in printed.splitlines())}
    assert lines["problem"].startswith("10 variables, prune 5 in 2 groups")
    assert lines["energy"] == f"{best.energy:.9g}"
    assert lines["bound"].startswith(f"{best.lower_bound:.9g} (gap ")
    assert lines["status"].startswith("OPTIMAL: The assignment is a proven optimum.")
    assert lines["pruned"].startswith("5 of 10: ")
    assert {"solver", "raw", "repaired", "polished", "seconds"} <= set(lines)


def test_solve_as_json_and_into_a_file(problem: Path, tmp_path: Path) -> None:
    out = tmp_path / "answer.json"
    code, printed, _ = call(
        "solve",
        problem,
        "--solver",
        "greedy",
        "--set",
        "candidates=4",
        "--num-pruned",
        "4,1",
        "--seed",
        3,
        "--time-limit",
        "5s",
        "--no-polish",
        "--answers",
        2,
        "--output",
        out,
        "--json",
    )
    assert code == 0
    data = json.loads(printed)
    assert data == json.loads(out.read_text())
    assert data["problem"]["num_pruned"] == [4, 1]
    assert (data["settings"], data["seed"], data["time_limit"]) == ({"candidates": 4}, 3, 5.0)
    assert data["ledger"]["polished"] == data["energy"] == data["answers"][0]["energy"]
    x = np.zeros(10)
    x[data["answers"][0]["pruned"]] = 1
    read = read_problem(problem, (4, 1))
    assert read.is_feasible(x)
    assert read.energy(x) == pytest.approx(data["energy"])
    assert call("solve", problem, "--quiet") == (0, "", "")


def test_solve_lists_further_answers(problem: Path) -> None:
    code, printed, _ = call("solve", problem, "--solver", "test_app:Everything", "--answers", 3, "--no-polish")
    assert code == 0
    assert [line.split()[0] for line in printed.splitlines()[-4:]] == ["answer", "1", "2", "3"]


class Everything(Solver):
    """Answers every assignment there is."""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        points = feasible_points(request.problem)
        return ranked_answers(request.problem, points, Status.FEASIBLE, info={"points": "[bold]all[/]"})


def test_a_problem_file_of_another_suffix_and_without_counts(problem: Path, tmp_path: Path) -> None:
    other = tmp_path / "block.txt"
    write_problem(BlockQubo(np.eye(3), None), other, "qubo")
    code, _, errors = call("solve", other, "--format", "qubo")
    assert (code, "The problem has no counts, which 'greedy' needs" in " ".join(errors.split())) == (2, True)
    code, printed, _ = call("solve", other, "--format", "qubo", "--num-pruned", 1, "--json")
    assert json.loads(printed)["energy"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver", "gredy"], "did you mean 'greedy'"),
        (["--set", "candiates=3"], "has no setting 'candiates' (did you mean 'candidates'"),
        (["--set", "candidates"], "The setting 'candidates' is not understood; give --set name=value"),
        (["--set", "candidates=1", "--set", "candidates=2"], "The setting 'candidates' is given twice"),
        (["--num-pruned", "three"], "The numbers 'three' are not understood; give whole ones"),
        (["--num-pruned", "3"], "num_pruned gives 1 counts and the file has 2 groups"),
        (["--time-limit", "soon"], "The time 'soon' is not understood"),
        (["--answers", "0"], "num_answers is 0"),
        (["--format", "qubo"], "line 1: '{' is found"),
        (["--output", "no/such/folder.json"], "give a file in a folder that is there"),
        (["--solver", "dimodd:dwave.samplers:TabuSampler"], "There is no adapter 'dimodd' (did you mean 'dimod'"),
    ],
)
def test_a_bad_request_to_solve_is_one_sentence_and_code_2(problem: Path, arguments: list[str], message: str) -> None:
    code, printed, errors = call("solve", problem, *arguments)
    assert (code, printed) == (2, "")
    assert message in " ".join(errors.split())
    assert errors.startswith("Error: ")
    assert len(errors.strip().splitlines()) == 1


def test_check_solver_says_what_holds() -> None:
    code, printed, _ = call("check-solver", "greedy", "--set", "candidates=4")
    assert code == 0
    assert "several groups" in printed
    assert "it gives no lower bound" in " ".join(printed.split())
    assert printed.splitlines()[-1] == "greedy: passed."
    code, printed, _ = call("check-solver", "exact", "--json")
    assert code == 0
    assert {"name", "passed", "message", "seconds"} == set(json.loads(printed)[0])


class Boasting(Solver):
    """Claims energies that there are not, and leaves out the counts."""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        x = np.zeros((1, request.problem.num_variables), dtype=bool)
        return SolveResult(x, np.array([-1e9]), Status.OPTIMAL)


def test_check_solver_ends_with_code_1_where_something_is_wrong() -> None:
    code, printed, _ = call("check-solver", "test_app:Boasting")
    assert code == 1
    assert "an answer misses a count: [0] are pruned; the counts are [4]" in " ".join(printed.split())
    assert "checks failed" in printed.splitlines()[-1]
    assert call("check-solver", "test_app:Boasting", "--quiet") == (1, "", "")
    code, _, errors = call("check-solver", "gredy")
    assert (code, "did you mean 'greedy'" in errors) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--density", "0"], "density is 0.0"),
        (["--density", "1.2"], "density is 1.2"),
        (["--pattern", "3:6"], "which 6 does not divide"),
        (["--solver", "gredy"], "did you mean 'greedy'"),
        (["--set", "candiates=3"], "has no setting 'candiates' (did you mean 'candidates'"),
        (["--block-time", "soon"], "'soon' is not understood"),
        (["--workers", "-1"], "workers is -1"),
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
    assert (code, "holds the model" in errors) == (2, True), errors
    assert text.exists()


_INTERRUPTED_IN_THE_FIFTH_LAYER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
import qubo_prune.methods.row_blocks as pruning
real, calls = pruning.descend_rows, []
def interrupted(*args):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*args)
pruning.descend_rows = interrupted
from qubo_prune.cli import main
main()
"""


@pytest.mark.slow
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


FISHER = [
    "--method",
    "loss",
    "--loss-set",
    "samples=8",
    "--loss-set",
    "scoring_samples=8",
    "--loss-set",
    "block_size=32",
]


def test_prune_on_the_loss_of_a_text(model: Path, text: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "pruned"
    code, printed, errors = call(
        "prune",
        model,
        "--calibration",
        text,
        "--output",
        out,
        *SMALL,
        *FISHER,
        "--loss-length",
        10,
        "--loss-set",
        "max_blocks=14",
    )
    assert code == 0, errors
    assert "blocks of the loss (loss) by greedy" in " ".join(printed.split())
    report = json.loads((out / "report.json").read_text())
    assert (report["settings"]["method"], report["settings"]["loss"]) == ("loss", "NextToken")
    assert report["calibration"]["loss_windows"] == 40
    assert report["loss"]["blocks"] == sum(step["blocks"] for step in report["loss"]["steps"]) > 0
    masks = KeepMasks.load(out / "masks.safetensors")
    assert masks.verify(AutoModelForCausalLM.from_pretrained(out)) == {}
    assert {float(mask.float().mean()) for mask in masks.values()} == {0.5}


@pytest.mark.parametrize("method", ["gram", "icbs"])
def test_prune_an_image_classifier(method: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    source, images = pictures.classifier(tmp_path / "dense"), pictures.folder(tmp_path / "images", 12)
    out = tmp_path / "pruned"
    settings = [*FISHER, "--loss-set", "max_blocks=14", "--method", "icbs"] if method == "icbs" else []
    code, printed, errors = call("prune", source, "--images", images, "--output", out, "--json", *settings)
    assert code == 0, errors
    report = json.loads(printed)
    assert report["settings"]["method"] == method
    assert report["calibration"] == {"source": "given samples", "samples": 24, "gram_samples": 24}
    assert report["totals"]["density"] == 0.5
    assert (report["loss"] is None) == (method == "gram")
    masks = KeepMasks.load(out / "masks.safetensors")
    assert masks.verify(AutoModelForImageClassification.from_pretrained(out)) == {}
    assert load_classifier(str(out)).label2id == {"cat": 0, "dog": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss-set", "samples=3"], "the method 'gram' takes no loss; give method='loss'"),
        ([*FISHER, "--loss-set", "samples"], "The setting 'samples' is not understood; give --loss-set name=value"),
        ([*FISHER, "--loss-set", "samples=4"], "The setting 'samples' is given twice"),
        ([*FISHER, "--loss-set", "sample=4"], "There is no setting 'sample' of the descent on the loss"),
        ([*FISHER, "--loss-set", "preset=papr"], "There is no preset 'papr' (did you mean 'paper'?)"),
        ([*FISHER, "--loss-set", "max_blocks=-1"], "max_blocks is -1; a whole number from 0 on is needed"),
        ([*FISHER, "--method", "wanda"], "the method 'wanda' takes no loss"),
        ([*FISHER, "--warm-start", "gradien"], "did you mean 'gradient'"),
        ([*FISHER], "The sequence length is 128, but the model takes at most 64 tokens"),
        ([*FISHER, "--loss-length", "1"], "holds no token windows"),
        (["--images", "nowhere"], "has no subfolders; give one that holds a folder of images per class"),
    ],
)
def test_a_bad_request_on_the_loss_is_one_sentence_and_code_2(
    model: Path, text: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    if "--images" in arguments:
        model = pictures.classifier(tmp_path / "classifier")
    code, printed, errors = call(
        "prune", model, "--calibration", text, "--output", tmp_path / "out", *SMALL, *arguments
    )
    assert (code, printed) == (2, "")
    assert message in " ".join(errors.split())
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_models_of_timm_cannot_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_classifier(str(pictures.classifier(tmp_path / "dense")))
    without = dataclasses.replace(loaded, processor=None)
    monkeypatch.setattr("qubo_prune.models.classifiers.load_classifier", lambda name, device: without)
    code, _, errors = call("prune", "timm:some", "--images", tmp_path, "--output", tmp_path / "out")
    assert (code, "is a model of timm, which cannot be saved" in " ".join(errors.split())) == (2, True)


@pytest.mark.parametrize("command", ["prune", "eval", "compare", "solve", "solvers", "check-solver", "bench"])
def test_help_fits_narrow_terminals(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call(command, "--help")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80


LOSERS = """
import time

def floats(q, num_pruned):
    return q.diagonal() / 7

def once(q, num_pruned, seed):
    if seed % 2:
        raise OSError(f"no connection to {seed % 4}")
    return q.diagonal().argsort().argsort() < num_pruned

def slow(q, num_pruned, time_limit):
    time.sleep(time_limit)
    return q.diagonal().argsort().argsort() < num_pruned
"""


@pytest.fixture
def losers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "losers.py").write_text(LOSERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("losers", None)


@pytest.mark.parametrize("method", ["gram", "compensated", "loss"])
def test_a_solver_that_loses_every_block_is_told_and_ends_with_code_1(
    losers: None, method: str, model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pruned"
    short = ["--loss-set", "max_blocks=2", "--loss-length", "8"] if method == "loss" else []
    code, printed, errors = call(
        "prune",
        model,
        "--calibration",
        text,
        "--solver",
        "callable:losers:floats",
        "--method",
        method,
        "--workers",
        0,
        "--block-size",
        8,
        "--block-time",
        "none" if method != "loss" else "60s",
        "--include",
        "*.0.mlp.*",
        "--output",
        out,
        *short,
        *SMALL,
    )
    assert code == 1
    assert "Error: a solver lost all of its blocks" in errors
    report = json.loads((out / "report.json").read_text())
    counts = report["totals"]["solver_blocks"]
    assert counts["asked"] == sum(counts["lost"].values()) > 0
    assert report["totals"]["all_blocks_lost"]
    said = f"callable:losers:floats lost {counts['asked']} of {counts['asked']} blocks: {counts['asked']} x raised"
    assert said in " ".join(printed.split())
    assert said in report["totals"]["warnings"][0]
    assert (out / "model.safetensors").is_file()
    code, printed, errors = call("eval", out, "--text", text, *SMALL)
    assert code == 0
    assert f"When this model was pruned: {said}" in errors
    assert said in json.loads(call("eval", out, "--text", text, "--json", *SMALL)[1])["warnings"][0]


def test_quiet_runs_say_what_was_lost_and_comparisons_too(
    losers: None, model: Path, text: Path, tmp_path: Path
) -> None:
    some = ["--calibration", text, "--solver", "callable:losers:once", *SMALL, "--quiet"]
    own = ["--workers", 0, "--block-time", "none", "--include", "*.0.mlp.*"]
    code, printed, errors = call("prune", model, *some, *own, "--output", tmp_path / "pruned")
    assert (code, printed) == (0, "")
    assert "callable:losers:once lost" in errors
    code, printed, errors = call(
        "compare", model, *some, "--text", text, "--eval-samples", 2, "--methods", "wanda,gram"
    )
    assert (code, printed) == (0, "")
    assert "Gram blocks, 0.5 row: callable:losers:once lost" in errors


def test_a_sparsity_is_what_a_density_leaves(model: Path, text: Path, tmp_path: Path) -> None:
    some = ["--calibration", text, "--method", "wanda", "--include", "*.0.mlp.*", *SMALL]
    for option, value in (("--density", 0.1), ("--sparsity", 0.9)):
        code, _, errors = call(
            "prune", model, *some, option, value, "--output", tmp_path / option.strip("-"), "--quiet"
        )
        assert code == 0, errors
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("density", "sparsity")]
    assert reports[0]["settings"] == reports[1]["settings"]
    assert reports[1]["settings"]["density"] == 0.1
    settings = [row["setting"] for row in compared(model, text, "--sparsity", "0.9,2:4")["rows"]]
    assert settings == ["", "0.1 row", "2:4"]


def compared(model: Path, text: Path, *options: str) -> dict[str, Any]:
    code, printed, errors = call(
        "compare",
        model,
        "--calibration",
        text,
        "--text",
        text,
        "--eval-samples",
        2,
        "--methods",
        "wanda",
        "--json",
        *options,
        *SMALL,
    )
    assert code == 0, errors
    found: dict[str, Any] = json.loads(printed)
    return found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--density", "0.5", "--sparsity", "0.5"],
            "Both --density 0.5 and --sparsity 0.5 are given; give one",
        ),
        (["--sparsity", "1"], "--sparsity '1.0' is not understood; give a pruned share from 0 to below 1"),
        (["--sparsity", "nan"], "--sparsity 'nan' is not understood"),
    ],
)
def test_a_sparsity_that_cannot_be_is_one_sentence(model: Path, tmp_path: Path, options: list[str], said: str) -> None:
    code, printed, errors = call("prune", model, *options, "--output", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert said in " ".join(errors.split())
    assert not (tmp_path / "out").exists()
