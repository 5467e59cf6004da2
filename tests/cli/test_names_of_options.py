"""Names that are nearly right, on the command line: the right one is offered, before anything is loaded or made."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from qubo_prune.cli import app

PRUNE = "prune smollm2-135m --output out"
BLOCKS = "bench blocks"


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever loads a model fails."""

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("text", encoding="utf-8")
    (tmp_path / "pruned").mkdir()


@pytest.mark.gate(15)
@pytest.mark.parametrize(
    ("line", "near"),
    [
        (f"{PRUNE} --method wnada", "wanda"),
        (f"{PRUNE} --hessian fischer", "fisher"),
        (f"{PRUNE} --update refti", "refit"),
        (f"{PRUNE} --warm-start magnitud", "magnitude"),
        (f"{PRUNE} --allocation uniforn", "uniform"),
        (f"{PRUNE} --certify trce", "trace"),
        (f"{PRUNE} --pattern lyer", "layer"),
        (f"{PRUNE} --dtype flot32", "float32"),
        (f"{PRUNE} --device cdua", "cuda"),
        (f"{PRUNE} --solver tabuu", "tabu"),
        (f"{PRUNE} --weights dsk", "disk"),
        (f"{PRUNE} --hessian fisher --loss-set sampels=3", "samples"),
        (f"{PRUNE} --calibration ./text.txt", "texts.txt"),
        (f"{PRUNE} --dry-run --method wnada", "wanda"),
        ("prune smolm2-135m --output out", "smollm2-135m"),
        ("prune ./prund --output out", "pruned"),
        ("watch prund", "pruned"),
        ("eval smolm2-135m", "smollm2-135m"),
        ("eval smollm2-135m --text text.txt", "texts.txt"),
        ("compare smollm2-135m --solver tabuu", "tabu"),
        ("compare smollm2-135m --methods wand", "wanda"),
        ("compare smollm2-135m --methods compensatd", "compensated"),
        ("compare smollm2-135m --methods gram@alocation=owl", "allocation"),
        ("compare smollm2-135m --text text.txt", "texts.txt"),
        ("compare smollm2-135m --dtype flot32", "float32"),
        ("solve p.jsn", "json"),
        ("solve p.json --format jsn", "json"),
        ("check-solver gredy", "greedy"),
        ("check-solver greedy --set candiates=3", "candidates"),
        ("check-solver dimodd:dwave.samplers:TabuSampler", "dimod"),
        ("bench solvers --suite standrd", "standard"),
        ("bench solvers --solvers tbu", "tabu"),
        ("bench solvers --suite smoke --families crepe-conv3-fishr", "crepe-conv3-fisher"),
        ("bench report prund", "pruned"),
        ("bench garment --methods wnada", "wanda"),
        ("bench tones --pattern rwo", "row"),
        ("bench vit --model dinov2-smal", "dinov2-small"),
        ("bench llm --model smolm2-135m", "smollm2-135m"),
        ("bench llm --text text.txt", "texts.txt"),
        (f"{BLOCKS} --solvers tbu", "tabu"),
        (f"{BLOCKS} --model smolm2-135m", "smollm2-135m"),
        (f"{BLOCKS} --pattern rwo", "row"),
        ("instances make suite --suite smok", "smoke"),
        ("instances make suite --formats jsn", "json"),
        ("instances list prund", "pruned"),
    ],
)
def test_the_right_name_is_offered_before_anything_is_loaded(line: str, near: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = CliRunner().invoke(app, line.split())
    assert (result.exit_code, result.stdout) == (2, ""), result.exception
    assert f"(did you mean {near!r}" in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prune smollm2-135m", "No folder is given for the pruned model; give --output, or --dry-run"),
        (f"{PRUNE} --samples 0", "The samples is 0"),
        (f"{PRUNE} --max-time soon", "'soon' is not understood"),
        ("compare smollm2-135m --solver nosuch", "There is no solver 'nosuch'; installed are"),
        ("compare smollm2-135m --max-time soon", "'soon' is not understood"),
        ("compare smollm2-135m --eval-samples 0", "The samples is 0"),
        ("eval smollm2-135m --samples 0", "The samples is 0"),
    ],
)
def test_what_is_cheap_to_check_is_checked_first(line: str, said: str) -> None:
    result = CliRunner().invoke(app, line.split())
    assert (result.exit_code, result.stdout) == (2, ""), result.exception
    assert said in result.stderr


def test_patterns_of_layers_get_near_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    model = tiny.save(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(tiny.text(), encoding="utf-8")
    small = f"prune {model} --calibration text.txt --samples 4 --sequence-length 16 --output out"
    for given in ("--include *.mpl.*", "--exclude *.mpl.*", "--layer-density *.mpl.*=0.4"):
        result = CliRunner().invoke(app, f"{small} {given}".split())
        assert result.exit_code == 2
        assert "(did you mean '*.mlp.*'?); there are model.layers.*.self_attn.q_proj" in result.stderr
    result = CliRunner().invoke(app, f"{small} --layer-density *.mlp.*=half".split())
    assert (result.exit_code, "gives 'half'; give a number" in result.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
    result = CliRunner().invoke(app, f"{small} --dry-run".split())
    assert result.exit_code == 0
    assert "Nothing was pruned and nothing was written." in " ".join(result.stdout.split())
    assert not (tmp_path / "out").exists()
