"""The main job on the real model: SmolLM2-135M, a few windows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from measured import measured, weights

from qubo_prune import KeepMasks, prune
from qubo_prune.data.text import token_windows
from qubo_prune.masks import Pattern
from qubo_prune.models import load_model
from qubo_prune.run.compare import compare


def test_one_decoder_layer_of_the_real_model_is_pruned_and_its_errors_are_measured() -> None:
    loaded = load_model("smollm2-135m")
    model, dense = loaded.model, weights(loaded.model)
    windows = list(token_windows(loaded.tokenizer, "pydoc", "calibration", 2, 64).tokens.split(1))
    report = prune(model, windows, 0.5, include=["model.layers.0.*"])
    assert [layer.name for layer in report.layers] == [name for name in dense if name.startswith("model.layers.0.")]
    assert all(Pattern.parse("row").violations(mask, 0.5) == 0 for mask in report.masks.values())
    found = measured(model, dense, windows)
    for layer in report.layers:
        assert layer.relative_after == pytest.approx(found[layer.name], rel=1e-6)
        assert layer.relative_after < 0.9 * layer.relative_before


@pytest.mark.slow
def test_blocks_beat_wanda_on_a_real_model_and_the_folder_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        # ten of the thirty decoder layers
        result = compare(
            "smollm2-135m",
            ["wanda", "gram"],
            samples=4,
            eval_samples=4,
            output=tmp_path / "pruned",
            include=["model.layers.[0-9].*"],
        )
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    finally:
        torch.set_num_threads(threads)
    dense, wanda, blocks = (result.row(name) for name in ("dense", "wanda", "gram"))
    assert 5 < dense.perplexity < 40
    assert dense.perplexity < blocks.perplexity < wanda.perplexity
    assert blocks.relative_error < 0.6 * wanda.relative_error
    report = json.loads((tmp_path / "pruned" / "report.json").read_text())
    assert len(report["layers"]) == 70
    assert report["totals"]["weights"] == 106_168_320 // 3
    assert report["totals"]["accepted"] > 30_000
    masks = KeepMasks.load(tmp_path / "pruned" / "masks.safetensors")
    assert all(Pattern.parse("row").violations(mask, 0.5) == 0 for mask in masks.values())
    assert masks.verify(loaded) == {}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pruned")
    with torch.no_grad():
        logits = loaded(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert math.isfinite(float(logits.sum()))


@pytest.mark.slow
def test_compensated_blocks_beat_admm_on_a_real_model() -> None:
    errors = {}
    for settings in ({"method": "admm", "update": "refit"}, {"method": "compensated", "correction": 0.0}):
        report = prune(
            "smollm2-135m",
            "pydoc",
            0.5,
            pattern="layer",
            samples=16,
            include=["model.layers.14.self_attn.*"],
            output=None,
            **settings,
        )
        assert report.density == 0.5
        errors[report.settings["method"]] = report.relative_error
        if report.settings["method"] == "compensated":
            assert all(layer.reverted == (layer.held_out_after > layer.held_out_before) for layer in report.layers)
    assert errors["compensated"] < 0.97 * errors["admm"]
