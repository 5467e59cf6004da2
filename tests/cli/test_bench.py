"""The experiments from the command line, with small data of their formats."""

from __future__ import annotations

import json
import re
from pathlib import Path

import digits
import pictures
import pytest
import tiny
from typer.testing import CliRunner

from qubo_prune.cli import app

COMMANDS = ["solvers", "garment", "mlpnet", "vit", "tones", "llm"]
QUICK = ["--loss-set", "samples=100", "--loss-set", "scoring_samples=100", "--loss-set", "block_size=64"]
FEW = ["--loss-set", "samples=8", "--loss-set", "scoring_samples=8", "--loss-set", "block_size=32"]


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.idx_folder(tmp_path_factory.mktemp("idx") / "data")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained once for all tests."""
    return tmp_path_factory.mktemp("networks")


def test_garments_end_to_end(data: Path, networks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, errors = call(
        "garment",
        "--data",
        data,
        "--cache",
        networks,
        "--densities",
        "0.1,0.05",
        "--methods",
        "magnitude, icbs",
        "--seeds",
        1,
        "--blocks",
        6,
        *QUICK,
        "--output",
        out,
    )
    assert code == 0, errors
    assert "garment" in printed
    assert len(re.findall("iCBS ", printed)) == 2
    assert sorted(path.name for path in out.iterdir()) == [
        ".qubo-prune.json",
        "curves.csv",
        "curves.png",
        "results.json",
        "table.txt",
    ]
    results = json.loads((out / "results.json").read_text())
    assert [(o["method"], o["asked"]) for o in results["outcomes"]] == [
        ("dense", 1.0),
        ("magnitude", 0.1),
        ("icbs", 0.1),
        ("magnitude", 0.05),
        ("icbs", 0.05),
    ]
    assert results["settings"] == {"max_blocks": 6, "samples": 100, "scoring_samples": 100, "block_size": 64}
    assert sum(step["blocks"] for step in results["outcomes"][2]["trace"]["steps"]) == 6


def test_json_is_the_result_and_quiet_is_silent(data: Path, networks: Path, tmp_path: Path) -> None:
    common = ["garment", "--data", data, "--cache", networks, "--densities", "0.1", "--seeds", 1, "--methods"]
    code, printed, errors = call(*common, "magnitude", "--json", "--output", tmp_path / "out")
    assert (code, errors) == (0, "")
    assert json.loads(printed) == json.loads((tmp_path / "out" / "results.json").read_text())
    assert call(*common, "magnitude", "--quiet") == (0, "", "")


def test_mlpnet_takes_sparsities(data: Path, networks: Path) -> None:
    code, printed, errors = call(
        "mlpnet",
        "--data",
        data,
        "--cache",
        networks,
        "--sparsities",
        "0.9",
        "--seeds",
        2,
        "--blocks",
        3,
        *QUICK,
        "--json",
    )
    assert code == 0, errors
    outcomes = json.loads(printed)["outcomes"]
    assert [(o["method"], o["asked"], o["seed"]) for o in outcomes if o["method"] != "dense"] == [
        (method, 0.1, seed) for seed in (0, 1) for method in ("magnitude", "icbs")
    ]
    weights = 784 * 40 + 40 * 20 + 20 * 10
    assert {o["density"] for o in outcomes if o["method"] == "icbs"} == {round(0.1 * weights) / weights}


def test_any_image_classifier(tmp_path: Path) -> None:
    model = pictures.classifier(tmp_path / "vit")
    images, test = pictures.folder(tmp_path / "images", 12), pictures.folder(tmp_path / "test", 3)
    code, printed, errors = call(
        "vit",
        "--model",
        model,
        "--images",
        images,
        "--test-images",
        test,
        "--methods",
        "magnitude,icbs",
        "--blocks",
        14,
        *FEW,
        "--json",
    )
    assert code == 0, errors
    result = json.loads(printed)
    assert (result["name"], len(result["outcomes"])) == ("vit", 3)
    assert all(o["density"] == 0.5 for o in result["outcomes"][1:])


@pytest.mark.slow
def test_language_models(tmp_path: Path) -> None:
    tiny.llama(max_position_embeddings=512).save_pretrained(tmp_path / "llama")
    tiny.tokenizer().save_pretrained(tmp_path / "llama")
    text = tmp_path / "text.txt"
    text.write_text(tiny.text(17_000), encoding="utf-8")
    code, printed, errors = call(
        "llm",
        "--model",
        tmp_path / "llama",
        "--calibration",
        text,
        "--text",
        text,
        "--eval-samples",
        3,
        "--sequence-length",
        32,
        *FEW,
        "--loss-set",
        "max_blocks=14",
        "--json",
    )
    assert code == 0, errors
    result = json.loads(printed)
    assert (result["metric"], [o["method"] for o in result["outcomes"]]) == (
        "perplexity",
        ["dense", "wanda", "gram", "icbs"],
    )
    assert all(o["score"]["accuracy"] is None for o in result["outcomes"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vit", "--model", "some/model"], "The images for 'some/model' are not given; name folders with --images"),
        (["vit", "--model", "./nowhere", "--images", ".", "--test-images", "."], "There is no folder './nowhere'"),
        (["garment", "--densities", "0.1,2"], "The shares '0.1,2' are not understood; give numbers above 0"),
        (["garment", "--densities", "0"], "The shares '0' are not understood"),
        (["garment", "--densities", ""], "The shares '' are not understood"),
        (["mlpnet", "--sparsities", "1"], "The shares '1' are not understood"),
        (["mlpnet", "--sparsities", "most"], "The shares 'most' are not understood"),
        (["tones", "--densities", "half"], "The shares 'half' are not understood"),
        (["llm", "--densities", "nan"], "The shares 'nan' are not understood"),
        (["garment", "--seeds", "0"], "seeds is 0; give a whole number from 1 on"),
        (["garment", "--loss-set", "samples"], "give --loss-set name=value"),
        (["garment", "--loss-set", "samples=1", "--loss-set", "samples=2"], "The setting 'samples' is given twice"),
        (["garment", "--methods", "magnitud"], "did you mean 'magnitude'"),
        (["garment", "--data", "./nowhere"], "The folder 'nowhere' holds neither train-images-idx3-ubyte"),
        (["garment", "--output", "/dev/null"], "is a file; give a folder"),
        (["tones", "--methods", "icbs,oops"], "There is no method 'oops'"),
    ],
)
def test_a_bad_request_to_an_experiment_is_one_sentence_and_code_2(arguments: list[str], said: str) -> None:
    code, printed, errors = call(*arguments)
    assert (code, printed) == (2, "")
    assert said in " ".join(errors.split())
    assert errors.startswith("Error: ")
    assert len(errors.strip().splitlines()) == 1


def test_bad_settings_of_the_descent_are_found_out(data: Path, networks: Path) -> None:
    common = ["garment", "--data", data, "--cache", networks, "--densities", "0.1", "--seeds", 1, "--methods", "icbs"]
    for given, said in (
        (["--loss-set", "sample=5"], "There is no setting 'sample'"),
        (["--loss-set", "max_blocks=-1"], "max_blocks is -1"),
        (["--max-time", "soon"], "'soon' is not understood"),
    ):
        code, _, errors = call(*common, *given)
        assert (code, said in " ".join(errors.split())) == (2, True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_narrow_terminals_and_names_every_option(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call(command, "--help")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    assert "qubo-prune bench " + command in " ".join(printed.split())
    options = ["--output", "--quiet", "--json"] + ([] if command == "solvers" else ["--loss-set", "--max-time"])
    for option in options:
        assert option in printed


def test_the_commands_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call("--help")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    assert all(f" {command} " in printed for command in COMMANDS)
