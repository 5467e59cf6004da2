"""A dry run tells what the run then does, and leaves no trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import unseen
from rich.console import Console
from torch import Tensor

from qubo_prune import InputError, KeepMasks, estimate_run, prune
from qubo_prune.run.estimate import RunEstimate, TimeEstimate, _extended, duration
from qubo_prune.tables import rendered

SMALL: dict[str, Any] = {"samples": 4, "sequence_length": 16}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(tmp_path / "dense")


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(), encoding="utf-8")
    return str(path)


def kept(masks: KeepMasks) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


@pytest.mark.gate(3)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"density": 0.3, "pattern": "layer"},
        {"pattern": "2:4"},
        {"block_size": "row", "row_swaps": False},
        {"method": "wanda"},
        {"method": "admm", "update": "refit"},
        {"method": "compensated"},
        {"densities": {"*.mlp.*": 0.25}, "include": ["*.layers.1.*"]},
        {"weights": "disk"},
        {"certify": "plain"},
    ],
    ids=str,
)
def test_layers_and_counts_are_those_of_the_run(
    model: Path, text: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    arguments = {"block_size": 8, **SMALL, **settings}
    estimate = estimate_run(str(model), text, **arguments, output=tmp_path / "out")
    report = prune(str(model), text, **arguments, output=tmp_path / "out")
    assert estimate.layers == len(report.layers)
    assert estimate.weights == report.totals()["weights"]
    assert estimate.kept == kept(report.masks) == report.totals()["kept"]
    assert estimate.settings == report.settings
    assert estimate.calibration == report.calibration
    shapes = {(layer.shape, group.shape) for group in estimate.groups for layer in report.layers}
    assert {group.shape for group in estimate.groups} == {first for first, _ in shapes}
    assert isinstance(estimate.time, TimeEstimate)
    assert estimate.time.total > 0
    assert estimate.memory is not None


def test_nothing_is_written_and_nothing_changes(
    model: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    for weights in ("memory", "disk"):
        estimate_run(
            str(model), text, **SMALL, output="deep/out", run_folder="run", weights=weights, method="compensated"
        )
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before
    module = tiny.llama()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    estimate_run(module, tiny.tokens(), block_size=8)
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert all("forward" not in part.__dict__ for part in module.modules())


def test_a_checkpoint_is_not_loaded_as_a_whole(model: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from qubo_prune.files.safetensors import Checkpoint

    read: list[str] = []
    real = Checkpoint.read

    def noted(self: Checkpoint, name: str) -> Tensor:
        read.append(name)
        return real(self, name)

    monkeypatch.setattr(Checkpoint, "read", noted)
    estimate_run(str(model), text, **SMALL)
    assert any("layers.0." in name for name in read)
    assert not any("layers.1." in name for name in read)


@pytest.mark.parametrize("make", [tiny.mlp, tiny.cnn, tiny.vit, tiny.gpt2], ids=lambda make: make.__name__)
def test_models_of_other_kinds(make: Any) -> None:
    module = make()
    inputs = tiny.images()
    if make is tiny.mlp:
        inputs = torch.randn(20, 12)
    elif make is tiny.gpt2:
        inputs = tiny.tokens()
    estimate = estimate_run(module, inputs, block_size=4)
    report = prune(module, inputs, block_size=4)
    assert estimate.kept == kept(report.masks)
    assert estimate.time is not None


def test_blocks_of_the_loss_are_told_and_not_foreseen(text: str, model: Path) -> None:
    settings = {"samples": 8, "scoring_samples": 8, "block_size": 32, "max_blocks": 14}
    estimate = estimate_run(
        str(model), text, method="loss", loss_length=10, loss_settings=settings, max_time="5m", **SMALL
    )
    assert estimate.memory is None
    assert any("14 of them or 5 min of the run at most" in note for note in estimate.notes)
    assert "are not foreseen" in rendered(estimate, 400)


def test_what_is_shown_fits_80_columns(model: Path, text: str) -> None:
    estimate = estimate_run(str(model), text, **SMALL)
    shown = str(estimate)
    assert max(map(len, shown.splitlines())) <= 80
    said = " ".join(shown.split())
    assert "measured on this machine" in said
    assert said.endswith("Nothing was pruned and nothing was written.")
    data = json.loads(json.dumps(estimate.to_dict()))
    share = data["totals"].pop("share")
    assert data["totals"] == {"layers": 14, "weights": 3840, "kept": 1920, "density": 0.5, "left_dense": 0}
    assert share == 3840 / data["coverage"]["weights"] < 1
    assert data["seconds_estimate"]["total"] == pytest.approx(estimate.time.total if estimate.time else 0)
    assert sum(group["kept"] for group in data["groups"]) == 1920


def test_large_numbers_fit_too() -> None:
    from qubo_prune.run.estimate import LayerGroup

    name = "model.language_model.layers.*.mlp.experts.*.gate_up_proj"
    groups = (LayerGroup(name, 12288, (14336, 4096), 12288 * 14336 * 2048, 1, 1024),)
    settings = {"solver": "greedy", "method": "gram", "pattern": "row"}
    estimate = RunEstimate("organisation/model-of-700-billion", settings, {}, groups, None, 0, None)
    lines = rendered(estimate.table(), 80).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    for word in ("layer", "layers", "shape", "weights", "kept", "density", "blocks", "a row", "721,554,505,728"):
        assert word in text
    assert "…" not in text
    Console(width=80, quiet=True).print(estimate)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "wnada"}, "did you mean 'wanda'"),
        ({"density": 0.0}, "density is 0"),
        ({"pattern": "3:6"}, "which 6 does not divide"),
        ({"include": ["*.mpl.*"]}, r"did you mean '\*.mlp.\*'"),
        ({"samples": 4000}, "give more text"),
        ({"resume": True}, "no run_folder"),
        ({"dtype": "flot32"}, "did you mean 'float32'"),
        ({"weights": "disk"}, "no output is given"),
    ],
)
def test_bad_arguments_are_those_of_a_run(model: Path, text: str, settings: dict[str, Any], message: str) -> None:
    for call in (prune, estimate_run):
        with pytest.raises(InputError, match=message):
            call(str(model), text, **{**SMALL, **settings})


def test_folders_that_are_taken_are_refused(model: Path, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"which no earlier result here wrote|holds the"):
        estimate_run(str(model), text, **SMALL, output=tmp_path)
    with pytest.raises(InputError, match="which no run wrote"):
        estimate_run(str(model), text, **SMALL, run_folder=tmp_path)
    with pytest.raises(InputError, match=r"there is no folder|no folder to write into"):
        estimate_run(str(model), text, **SMALL, output=Path(text) / "inside")
    run = tmp_path / "run"
    prune(str(model), text, **SMALL, run_folder=run)
    with pytest.raises(InputError, match="holds a run already"):
        estimate_run(str(model), text, **SMALL, run_folder=run)
    assert estimate_run(str(model), text, **SMALL, run_folder=run, resume=True).layers == 14
    with pytest.raises(InputError, match="a file of that name"):
        estimate_run(str(model), text, **SMALL, run_folder=text)
    with pytest.raises(TypeError, match=r"no argument 'densty' .did you mean 'density'"):
        estimate_run(str(model), text, densty=0.5)


def test_weights_that_are_not_finite_are_found() -> None:
    module = tiny.llama()
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="hold NaN"):
        estimate_run(module, tiny.tokens())


def test_the_search_ends_at_the_budget(model: Path, text: str) -> None:
    estimate = estimate_run(str(model), text, **SMALL, max_time=1e-6)
    assert estimate.time is not None
    assert estimate.time.search == 0


def test_times_go_on_along_a_line() -> None:
    assert _extended([(4, 2.0)], 10) == 5.0
    assert _extended([(4, 2.0), (8, 3.0)], 16) == 5.0
    assert _extended([(4, 2.0), (8, 1.0)], 16) == 1.0
    assert _extended([(4, 2.0), (8, 3.0)], 8) == 3.0
    assert _extended([(1, 1.0), (8, 80.0)], 16) == 88.0
    assert [duration(each) for each in (0.4, 7.2, 61, 1000, 20000)] == ["1 s", "7 s", "1 min", "17 min", "5.6 h"]


@pytest.mark.parametrize("kind", unseen.WITHOUT_INPUT)
def test_layers_that_no_input_reaches_are_told_before_the_run(kind: Any) -> None:
    estimate, report = (run(kind(), unseen.inputs(), block_size=4) for run in (estimate_run, prune))
    assert estimate.left_dense == report.left_dense
    assert (estimate.layers, estimate.kept) == (2, kept(report.masks))
    assert estimate.share == report.share
    assert estimate.coverage == report.coverage
    text = " ".join(str(estimate).split())
    assert f"The layers hold {round(100 * (report.share or 0))} % of the model's weights." in text
    assert "Left dense: " in text
    plain = json.loads(json.dumps(estimate.to_dict()))
    assert plain["left_dense"][0]["weights"] == 256
    assert plain["totals"]["share"] == estimate.share
    named = estimate_run(unseen.Base(), unseen.inputs(), block_size=4, include=["first", "odd"])
    assert (named.layers, named.left_dense) == (2, ())


def test_later_inputs_may_reach_what_the_first_do_not() -> None:
    (left,) = estimate_run(unseen.Expert(), unseen.inputs() * 2, block_size=4).left_dense
    assert left.reason == "not reached by the first 8 calibration inputs, and dense unless others reach it"
    with pytest.raises(InputError, match="All 1 layers"):
        estimate_run(unseen.Base(), unseen.inputs(), include=["od*"])


def test_of_a_checkpoint_what_is_reached_is_not_known(model: Path, text: str) -> None:
    estimate = estimate_run(str(model), text, **SMALL)
    assert any("seen in the run only" in note for note in estimate.notes)
    assert estimate.share == prune(str(model), text, **SMALL).share
