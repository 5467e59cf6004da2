"""``qubo-prune bench blocks``, with a tiny language model."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from qubo_prune.bench.block_study import BLOCK_TIMES, SIZES, StudySettings, study_blocks
from qubo_prune.cli import app
from qubo_prune.cli.block_study import StudyOptions


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    result = CliRunner().invoke(app, ["bench", "blocks", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a tiny model and a text, and keep the study small."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "text.txt").write_text(tiny.text(), encoding="utf-8")
    text, model = str(folder / "text.txt"), str(tiny.save(folder / "model"))
    return [
        "--model",
        model,
        "--calibration",
        text,
        "--text",
        text,
        "--samples",
        "4",
        "--eval-samples",
        "3",
        "--sequence-length",
        "16",
        "--workers",
        "0",
        "--include",
        "*.layers.1.self_attn.v_proj",
    ]


def test_a_study_end_to_end(common: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--solvers", "greedy,qaoa(layers=1, maxiter=5)", "--sizes", "8,16", "--block-times", "none,10s"]
    code, printed, errors = call(*common, *asked, "--output", out)
    assert code == 0, errors
    assert sorted(path.name for path in out.iterdir()) == [
        ".qubo-prune.json",
        "means.csv",
        "points.csv",
        "results.json",
        "study.png",
        "table.txt",
    ]
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [(p["solver"], p["block_size"], p["block_time"]) for p in results["points"]] == [
        ("Wanda", None, None),
        ("whole-row swaps", None, None),
        ("greedy", 8, None),
        ("greedy", 8, 10.0),
        ("greedy", 16, None),
        ("greedy", 16, 10.0),
        ("qaoa(layers=1, maxiter=5)", 8, None),
        ("qaoa(layers=1, maxiter=5)", 8, 10.0),
    ]
    assert results["settings"]["max_time"] == 60.0
    assert results["layers"] == ["model.layers.1.self_attn.v_proj"]
    assert "qaoa(layers=1, maxiter=5) is left out at 16: it takes at most 14 variables." in " ".join(printed.split())
    assert max(map(len, printed.splitlines())) <= 80


def test_a_folder_that_holds_something_is_left_alone(common: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = [*common, "--solvers", "greedy", "--sizes", "8", "--block-times", "none", "--quiet", "--output", out]
    assert call(*asked) == (0, "", "")
    code, printed, errors = call(*asked)
    assert (code, printed) == (2, "")
    assert "is not empty; give another one or --overwrite" in " ".join(errors.split())
    (out / "mine.txt").write_text("mine", encoding="utf-8")
    code, printed, errors = call(*asked, "--overwrite")
    assert (code, printed) == (2, "")
    assert "holds 'mine.txt', which no earlier result here wrote" in " ".join(errors.split())
    (out / "mine.txt").unlink()
    (out / "study.png").write_text("old")
    assert call(*asked, "--overwrite") == (0, "", "")
    assert (out / "study.png").stat().st_size > 1000


def test_json_is_the_result(common: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = [*common, "--solvers", "exact", "--sizes", "8,row", "--block-times", "none", "--max-time", "none"]
    more = ["--polish", "--row-swaps", "--seeds", "2", "--seed", "3"]
    code, printed, errors = call(*asked, *more, "--json", "--output", out)
    assert (code, errors) == (0, "")
    assert json.loads(printed) == json.loads((out / "results.json").read_text(encoding="utf-8"))
    settings = json.loads(printed)["settings"]
    assert (settings["max_time"], settings["polish"], settings["block_times"]) == (None, True, [None])
    assert (settings["row_swaps"], settings["sizes"], settings["seed"], settings["seeds"]) == (True, [8, "row"], 3, 2)
    assert [point["seed"] for point in json.loads(printed)["points"][2:]] == [3, 4, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--solvers", "gredy"], "There is no solver 'gredy' (did you mean 'greedy'"),
        (["--solvers", "neal(reads=2)"], "has no setting 'reads' (did you mean 'num_reads'"),
        (["--solvers", "neal("], "The solvers 'neal(' are not understood"),
        (["--sizes", "12,many"], "The block sizes '12,many' are not understood; give whole numbers from 2 on, or row"),
        (["--sizes", ""], "The block sizes '' are not understood"),
        (["--seeds", "0"], "seeds is 0"),
        (["--sizes", "1"], "block_size is 1"),
        (["--solvers", "qaoa", "--sizes", "64"], "No solver takes any of the block sizes (qaoa at 64: it takes"),
        (["--block-times", "1ms,soon"], "The time 'soon' is not understood; give a positive number such as 90s"),
        (["--block-times", ""], "a limit per block at least; name one of each"),
        (["--max-time", "long"], "The time 'long' is not understood"),
        (["--max-sweeps", "0"], "max_sweeps is 0"),
        (["--density", "0"], "density is 0"),
        (["--pattern", "2:4", "--density", "0.3"], "2:4 keeps 0.5"),
        (["--output", "/dev/null"], "is a file; give a folder"),
    ],
)
def test_a_bad_request_is_one_sentence_and_code_2(arguments: list[str], said: str) -> None:
    # no model of this name can be loaded, so all of it is found out before
    code, printed, errors = call("--model", "./nowhere", *arguments)
    assert (code, printed) == (2, "")
    assert said in " ".join(errors.split())
    assert errors.startswith("Error: ")
    assert len(errors.strip().splitlines()) == 1


def test_what_only_the_model_tells_is_one_sentence_too(common: list[str]) -> None:
    for arguments, said in (
        (["--sizes", "32"], "A block of 32 fits no layer: of the 1 to prune, the widest has 16 inputs"),
        (["--sizes", "8", "--include", "*.nothing"], "The pattern '*.nothing' matches none of"),
        (["--sizes", "8", "--model", "./nowhere"], "./nowhere"),
    ):
        code, _, errors = call(*common, "--solvers", "greedy", *arguments)
        assert (code, said in " ".join(errors.split())) == (2, True), errors


def test_the_defaults_are_those_of_python() -> None:
    expected = vars(StudySettings()) | {
        "model": inspect.signature(study_blocks).parameters["model"].default,
        "sizes": ",".join(map(str, SIZES)),
        "block_times": ",".join(BLOCK_TIMES),
        "sparsity": None,
        "include": None,
        "exclude": None,
    }
    assert vars(StudyOptions()) == expected


def test_help_fits_narrow_terminals_and_says_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call("--help")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    said = " ".join(printed.split())
    assert "qubo-prune bench blocks" in said
    assert "about 15 minutes on 2 cores" in said
    for option in ("--solvers", "--sizes", "--block-times", "--max-time", "--no-polish", "--output", "--json"):
        assert option in printed
