"""A model that is larger than the memory a process may have is pruned within that memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import large
import pytest
import torch
from safetensors import safe_open

from qubo_prune.masks import KeepMasks

#: Bytes of address space, of which libraries and compiled searches take some 1.3 GB; and decoder layers of a checkpoint
#: beyond it.
LIMIT, LAYERS = 1_450_000_000, 114


def run(*arguments: str, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """The child process; arenas, and heaps that fall apart, would take address space that holds nothing."""
    given = [] if limit is None else ["--limit", str(limit)]
    environment = {"OMP_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144"}
    return subprocess.run(
        [sys.executable, str(Path(large.__file__)), *given, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def pruned(model: Path, output: Path, limit: int, **settings: Any) -> dict[str, Any]:
    """What a run on the disk tells."""
    child = run(
        str(model), "--output", str(output), "--settings", json.dumps({"weights": "disk", **settings}), limit=limit
    )
    assert child.returncode == 0, child.stderr[-2000:]
    told: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return told


def check(model: Path, output: Path, layers: int) -> None:
    """Shard by shard: half of each row of so many layers is gone, and what is left is as it was."""
    masks, seen = KeepMasks.load(output / "masks.safetensors"), Counter[str]()
    assert len(masks) == layers
    assert sorted(path.name for path in model.glob("model*")) == sorted(path.name for path in output.glob("model*"))
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as before, safe_open(output / file.name, "pt") as after:
            assert sorted(before.keys()) == sorted(after.keys())
            for name in before.keys():  # noqa: SIM118, no mapping
                old, new = before.get_tensor(name), after.get_tensor(name)
                assert old.dtype == new.dtype
                if name not in masks:
                    assert torch.equal(old, new), name
                    seen["dense"] += 1
                    continue
                keep = masks[name]
                assert bool((keep.sum(1) == old.shape[1] // 2).all()), name
                assert torch.equal(torch.where(keep, old, torch.zeros_like(old)), new), name
                seen["pruned"] += 1
    assert seen["pruned"] == layers
    assert seen["dense"] > 0


def show(name: str, size: int, told: dict[str, Any]) -> None:
    """The figures, for those who look (``pytest -s``)."""
    figures = ("address_space_bytes", "peak_memory_bytes", "memory_estimate_bytes")
    print(name, {"checkpoint_bytes": size, "limit": LIMIT} | {key: told[key] for key in figures}, told["seconds"])  # noqa: T201


@pytest.mark.slow
def test_a_model_larger_than_the_memory_is_pruned_within_it(tmp_path: Path) -> None:
    model = tmp_path / "model"
    size = large.write_checkpoint(model, LAYERS, torch.float32)
    assert size > LIMIT
    # every other decoder layer, to save time; what is resident is the same
    told = pruned(model, tmp_path / "wanda", LIMIT, method="wanda", include=["model.layers.*[02468].*"])
    check(model, tmp_path / "wanda", 7 * LAYERS // 2)
    show("wanda", size, told)
    assert told["address_space_bytes"] <= LIMIT
    assert told["peak_memory_bytes"] < LIMIT < size
    assert 0.6 < told["memory_estimate_bytes"] / told["peak_memory_bytes"] < 1.5
    # decoder layers at both ends: all between them are passed through
    some = [f"model.layers.{number}.*" for number in (0, LAYERS - 1)]
    told = pruned(model, tmp_path / "blocks", LIMIT, include=some, workers=0)
    check(model, tmp_path / "blocks", 14)
    show("blocks", size, told)
    assert told["totals"]["accepted"] > 0
    refused = run(str(model), "--output", str(tmp_path / "memory"), limit=LIMIT)
    assert "give weights='disk'" in refused.stderr
    assert refused.returncode != 0
    assert not (tmp_path / "memory").exists()
    # and what the refusal says is true
    assert run(str(model), "--only-load", limit=LIMIT).returncode != 0
