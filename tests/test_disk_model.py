"""A model whose weights stay on the disk is pruned to the bits of one in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qubo_prune import prune
from qubo_prune.errors import InputError
from qubo_prune.masks import KeepMasks
from qubo_prune.report import Report


def checkpoint(folder: Path, model: nn.Module, shards: str = "6KB") -> Path:
    """A model in several files, with its tokenizer."""
    model.save_pretrained(folder, max_shard_size=shards)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {
        name: tensor for file in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(file).items()
    }


def both(folder: Path, calibration: Any = None, **settings: Any) -> tuple[Report, Report]:
    """Runs in memory and on the disk, whose results lie beside the checkpoint; nothing else does."""
    before = {entry.name for entry in folder.parent.iterdir()}
    given = {"density": 0.5, "block_size": 8, "workers": 0, "samples": 4, "sequence_length": 16, **settings}
    source = tiny.tokens() if calibration is None else calibration
    reports = tuple(
        prune(str(folder), source, weights=weights, output=folder.parent / weights, **given)
        for weights in ("memory", "disk")
    )
    assert {entry.name for entry in folder.parent.iterdir()} == before | {"memory", "disk"}
    return reports[0], reports[1]


def are_the_same(folder: Path, reports: tuple[Report, Report]) -> None:
    """Weights, masks and errors of both runs."""
    in_memory, on_disk = weights_of(folder.parent / "memory"), weights_of(folder.parent / "disk")
    assert in_memory.keys() == on_disk.keys()
    for name, tensor in in_memory.items():
        assert tensor.dtype == on_disk[name].dtype
        assert torch.equal(tensor, on_disk[name]), name
    for one, other in zip(reports[0].layers, reports[1].layers, strict=True):
        assert (one.name, one.kept, one.error_before, one.error_after) == (
            other.name, other.kept, other.error_before, other.error_after,
        )  # fmt: skip
    masks = [KeepMasks.load(folder.parent / which / "masks.safetensors") for which in ("memory", "disk")]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    assert reports[0].held_out_perplexity == reports[1].held_out_perplexity


def half() -> nn.Module:
    return tiny.llama().to(torch.bfloat16)


def tied() -> nn.Module:
    return tiny.llama(tie_word_embeddings=True)


RUNS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "wanda": (tiny.llama, {"method": "wanda"}),
    "blocks": (tiny.llama, {}),
    "compensated": (tiny.llama, {"hessian": "compensated"}),
    "compensated in half precision": (half, {"hessian": "compensated"}),
    "half precision": (half, {"method": "wanda"}),
    "tied": (tied, {"method": "wanda"}),
    "updated without a correction": (tiny.llama, {"method": "wanda", "update": "refit", "correction": 0.0}),
    "outliers": (tiny.llama, {"allocation": "owl", "pattern": "layer"}),
    "transposed": (tiny.gpt2, {"correction": 0.5, "update": "refit"}),
    "two kinds of rotary embeddings": (tiny.gemma, {"hessian": "compensated"}),
}  # fmt: skip


@pytest.mark.parametrize(("make", "settings"), RUNS.values(), ids=list(RUNS))
def test_a_run_on_the_disk_is_the_run_in_memory(
    make: Callable[[], nn.Module], settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", make())
    assert len(list(folder.glob("*.safetensors"))) > 1
    are_the_same(folder, both(folder, **settings))
