"""The scripts in ``benchmarks/`` run; what they measure is not judged here."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny_runs

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(request: pytest.FixtureRequest) -> ModuleType:
    spec = importlib.util.spec_from_file_location(request.param, FOLDER / f"{request.param}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[request.param] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", ["decoder_layer"], indirect=True)
def test_a_decoder_layer_is_timed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--shape", "tiny", "--tokens", "256", "--rows", "8", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", ["decoder_layer.py", *arguments])
    script.main()
    shown = capsys.readouterr().out
    for name in script.METHODS.split(","):
        assert name in shown
    assert "compensated*" in shown
    assert "256 tokens" in shown


@pytest.mark.parametrize("script", ["texts"], indirect=True)
def test_texts_are_made_of_the_packages(script: ModuleType, tmp_path: Path) -> None:
    assert script.untagged("\tThe/at jury/nn said/vbd ``/`` no/at ''/'' (/( again/rb )/) ,/, 1/2/cd ./.\n") == (
        'The jury said "no" (again), 1/2.'
    )
    sotu, brown = tmp_path / "in/datasets/package/sotu/data", tmp_path / "in/brown/package"
    sotu.mkdir(parents=True)
    brown.mkdir(parents=True)
    for name in "abc":
        (sotu / f"{name}.txt").write_text(name, encoding="utf-8")
    (brown / "ca01").write_text("One/cd ./.\n\n\tTwo/cd ./.\n", encoding="utf-8")
    (brown / "README").write_text("not a text", encoding="utf-8")
    script.addresses(tmp_path / "in", tmp_path / "out")
    script.brown(tmp_path / "in", tmp_path / "out")
    found = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.txt")}
    assert found == {"sotu-calibration/a.txt", "sotu-calibration/c.txt", "sotu-held-out/b.txt", "brown/ca01.txt"}
    assert (tmp_path / "out/brown/ca01.txt").read_text(encoding="utf-8") == "One.\nTwo."


@pytest.mark.parametrize("script", ["worker_scaling"], indirect=True)
def test_two_workers_are_timed_against_one(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--size", "16", "--rows", "4", "--repeats", "2"]
    arguments = ["--layer", "random", *sizes, "--solvers", "neal,tabu(steps=5)"]
    monkeypatch.setattr(sys, "argv", ["worker_scaling.py", *arguments])
    script.main()
    shown = capsys.readouterr().out
    assert "neal" in shown
    assert "tabu(steps=5)" in shown
    assert shown.count("reached") + shown.count("below 1.6") == 2


@pytest.mark.parametrize("script", ["factor_form"], indirect=True)
def test_factor_form_is_timed_against_its_matrix(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["factor_form.py", "--problems", "40x2", "--repeats", "1"])
    script.main()
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("tabu", "local", "anneal", "ratio"))


@pytest.mark.parametrize("script", ["solver_report"], indirect=True)
def test_a_run_is_written_into_the_documentation_and_again_from_there(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [tiny_runs.row("a", solver, energy) for solver, energy in (("wanda+swaps", 2.4), ("good", 2.0))]
    run, docs = tiny_runs.write(tmp_path / "run", [tiny_runs.instance("a")], rows), tmp_path / "docs"
    monkeypatch.setattr(sys, "argv", ["solver_report.py", str(run), "--docs", str(docs)])
    script.main()
    written = {str(file.relative_to(docs)): file for file in docs.rglob("*") if file.is_file()}
    names = ("report.md", "qoblib.csv.gz", "rows.csv.gz", "manifest.json.gz", "run.json")
    assert set(written) == {*(f"benchmark/{name}" for name in names), "figures/solvers.png"}
    assert gzip.decompress(written["benchmark/rows.csv.gz"].read_bytes()) == (run / "rows.csv").read_bytes()
    before = {name: file.read_bytes() for name, file in written.items()}
    written["benchmark/report.md"].unlink()
    monkeypatch.setattr(sys, "argv", ["solver_report.py", "--docs", str(docs)])
    script.main()
    assert {name: file.read_bytes() for name, file in written.items()} == before
