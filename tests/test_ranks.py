"""One process works; of several that would do the same each says so before anything is loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from unchecked import without_type_checks

from qubo_prune import prune
from qubo_prune.bench.experiments import run
from qubo_prune.bench.making import make_suite
from qubo_prune.bench.runs import run_suite
from qubo_prune.errors import InputError
from qubo_prune.ranks import check_alone
from qubo_prune.run.compare import compare

WRITERS: dict[str, Callable[[Path], Any]] = {
    "prune": lambda folder: prune("no-such/model", output=folder / "out"),
    "compare": lambda folder: compare("no-such/model", output=folder / "out"),
    "make_suite": lambda folder: make_suite(folder / "out", "smoke"),
    "run_suite": lambda folder: run_suite(None, [], folder / "out"),  # type: ignore[arg-type]
    "experiments": lambda folder: run(None, [], [], []),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("rank", ["0", "3"])
def test_each_of_several_processes_refuses_before_anything_is_loaded_or_written(
    name: str, rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", rank)
    with without_type_checks(), pytest.raises(InputError, match=f"rank {rank} of 4 processes .* WORLD_SIZE=1"):
        WRITERS[name](tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["1", "", "many"])
def test_one_process_works_whatever_started_it(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", "0")
    assert prune(tiny.mlp(), [torch.randn(8, 12)], 0.5).density == 0.5


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone."""
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_without_a_variable_the_process_group_tells_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    check_alone()
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match="rank 0 of 2 processes"):
        prune("no-such/model")


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore")
def test_weights_in_parts_are_refused_with_the_first_layer_and_copies_are_pruned_like_the_model() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh, inputs = init_device_mesh("cpu", (1,)), torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
    flat = functools.partial(FullyShardedDataParallel, device_id=torch.device("cpu"))
    sharded, parallel, empty = tiny.mlp(), tiny.mlp(), tiny.mlp()
    fully_shard(sharded, mesh=mesh)
    parallelize_module(parallel, mesh, {"2": ColwiseParallel()})
    empty[2].weight.ds_id, empty[2].weight.data = 1, torch.empty(0)  # type: ignore[index, union-attr]
    for model, name, why in (
        (sharded, "0", "DTensor"),
        (parallel, "2", "DTensor"),
        (empty, "2", "DeepSpeed"),
        (flat(tiny.mlp()), "_fsdp_wrapped_module.0", "FullyShard"),
        (flat(tiny.mlp(), use_orig_params=True), "_fsdp_wrapped_module.0", "FullyShard"),
    ):
        with pytest.raises(InputError, match=f"layer '{name}.* {why}"):
            prune(model, [inputs], 0.5)
    plain = prune(tiny.mlp(), [inputs], 0.5)
    for wrapped in (torch.nn.parallel.DistributedDataParallel(tiny.mlp()), torch.nn.DataParallel(tiny.mlp())):
        report = prune(wrapped, [inputs], 0.5)
        assert all(torch.equal(report.masks[f"module.{name}"], mask) for name, mask in plain.masks.items())
