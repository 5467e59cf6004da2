"""What a run is said to take is about what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_large import run

from qubo_prune import prune
from qubo_prune.errors import InputError
from qubo_prune.models.layers import find_layers
from qubo_prune.request import PruneRequest
from qubo_prune.run.memory import MemoryEstimate, as_text, available_memory, estimate
from qubo_prune.run.plan import Plan
from qubo_prune.run.prune import check_fits


def foreseen(plan: Plan, blocks: bool = False, windows: int = 4, **changes: Any) -> MemoryEstimate:
    model = tiny.llama(**changes)
    stack = list(model.get_submodule("model.layers").children()) if blocks else None
    found = estimate(model, find_layers(model), plan, list(tiny.tokens(windows).split(1)), [], 10**9, stack)
    assert found is not None
    return found


def plan(**settings: Any) -> Plan:
    return Plan.of(PruneRequest.of(None, settings=settings))


def test_the_parts_follow_what_they_are_of() -> None:
    usual = foreseen(plan())
    assert usual.total == usual.process + usual.weights + usual.undo + usual.states + usual.layer
    assert usual.weights == sum(parameter.nbytes for parameter in tiny.llama().parameters())
    assert foreseen(plan(), windows=40).states > usual.states
    assert foreseen(plan(method="compensated")).layer > usual.layer
    assert foreseen(plan(method="compensated")).undo > usual.undo


def test_whole_rows_have_a_matrix_each_only_where_the_solver_needs_one() -> None:
    usual, batched = foreseen(plan()), foreseen(plan(block_size="row", solver="tabu"))
    assert batched.layer == usual.layer
    one, two = (foreseen(plan(block_size="row", solver="neal", workers=count)) for count in (1, 2))
    assert usual.layer < one.layer < two.layer
    assert two.layer - one.layer == one.layer - usual.layer > 0


def test_fitting_layers_together_takes_moments_and_activations() -> None:
    def layer_bytes(update: str, depth: int, windows: int = 4) -> int:
        return foreseen(plan(method="wanda", update=update), windows=windows, num_hidden_layers=depth).layer

    weights = sum(layer.parameter.numel() for layer in find_layers(tiny.llama(num_hidden_layers=40)))
    assert layer_bytes("distill", 40) > 16 * weights
    assert layer_bytes("distill", 80) > 1.9 * layer_bytes("distill", 40)
    assert layer_bytes("block+distill", 40) == layer_bytes("distill", 40)
    assert layer_bytes("refit", 40) == layer_bytes("refit", 2) <= layer_bytes("block", 2) == layer_bytes("block", 40)
    assert layer_bytes("block", 2, 4000) > 2 * layer_bytes("block", 2)  # targets


def test_a_run_whose_fitting_the_memory_does_not_hold_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    before = [parameter.clone() for parameter in model.parameters()]
    monkeypatch.setattr("qubo_prune.run.prune.available_memory", lambda: -(2**50))
    with pytest.raises(InputError, match=r"update 'distill'.*would not come to its end; give shorter or fewer windows"):
        prune(model, tiny.tokens(), 0.5, method="wanda", update="distill")
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    prune(model, tiny.tokens(), 0.5, method="wanda", update="refit")  # which is only warned about


def test_on_the_disk_more_decoder_layers_and_windows_take_no_more_but_for_masks() -> None:
    few, many = (foreseen(plan(), True, 4 * n, num_hidden_layers=2 * n) for n in (1, 10))
    assert (few.weights, few.states, few.layer) == (many.weights, many.states, many.layer)
    assert many.undo == 10 * few.undo  # a bit a weight
    assert foreseen(plan(), False, num_hidden_layers=20).weights > 5 * many.weights


def test_nothing_is_foreseen_where_inputs_are_no_tokens() -> None:
    model = tiny.cnn()
    assert estimate(model, find_layers(model), plan(), [tiny.images()], [], 0, None) is None


def test_the_sentence_has_the_parts() -> None:
    text = MemoryEstimate(2**30, 2**29, 0, 2**20, 2**21).sentence(2**32)
    assert text.startswith("About 1.50 GiB of memory will be needed (process 1.00 GiB, weights 0.50 GiB,")
    assert text.endswith("4.00 GiB are available.")
    assert as_text(3 * 2**20) == "3 MiB"


def test_what_is_on_an_accelerator_is_held_against_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.device("cuda", 1)
    asked: list[torch.device] = []

    def room(device: torch.device) -> int:
        asked.append(device)
        return 1000

    monkeypatch.setattr("qubo_prune.run.memory.room", room)
    here, model = foreseen(plan()), tiny.llama()
    with torch.device("meta"):  # of which nothing is there yet
        hollow = tiny.llama()
    windows = list(tiny.tokens(4).split(1))
    found = estimate(hollow, find_layers(hollow), plan(), windows, [], 10**9, None, there)
    assert found is not None
    (device,) = found.devices
    assert asked == [there]
    assert (device.device, device.available) == ("cuda:1", 1000)
    assert (device.weights, device.states, device.layer) == (here.weights, here.states, here.layer)
    masks = sum(layer.parameter.numel() for layer in find_layers(model)) // 8
    assert (found.weights, found.states, found.layer, found.undo) == (0, 0, 0, masks)
    assert device.undo == here.undo - masks
    assert device.short
    assert found.short(10**12)
    assert not here.short(10**12)
    said = found.sentence(2**40)
    assert "1024.00 GiB are available. About " in said
    assert said.endswith("; 0 MiB are available there.")


def test_a_model_on_two_devices_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    model.get_submodule("model.layers.1").to_empty(device="meta")  # what is to come to the other device
    monkeypatch.setattr("qubo_prune.run.memory.room", lambda device: None)
    windows = list(tiny.tokens(4).split(1))
    found = estimate(model, find_layers(model), plan(), windows, [], 10**9, None, torch.device("cuda", 0))
    assert found is not None
    assert found.weights + found.devices[0].weights == sum(each.nbytes for each in tiny.llama().parameters())
    assert found.states == found.devices[0].states
    assert "available there" not in found.sentence(1)
    assert not found.devices[0].short


def test_weights_that_an_accelerator_does_not_hold_are_refused_before_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny.save(tmp_path / "tiny"))
    monkeypatch.setattr("qubo_prune.run.prune.room", lambda device: None if device.type == "cpu" else 1000)
    check_fits(folder, "auto", "cpu")
    with pytest.raises(InputError, match=r"0 MiB of cuda:1 are available; give weights='disk'"):
        check_fits(folder, "auto", "cuda:1")


def test_a_limit_of_the_process_bounds_what_is_available() -> None:
    assert available_memory() > 0
    code = (
        "import resource; from qubo_prune.run.memory import available_memory as a; free = a();"
        "resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); print(free, a())"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    free, limited = map(int, child.stdout.split())
    assert limited < min(2**33, free + 1)
    assert limited > 0 or free == 0


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["memory", "disk"])
def test_the_estimate_is_near_the_measured_peak(weights: str, tmp_path: Path) -> None:
    model = tiny.llama(hidden_size=1536, intermediate_size=4096, num_hidden_layers=4, num_attention_heads=8)
    model.save_pretrained(tmp_path / "model", max_shard_size="60MB")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    settings = {"weights": weights, "method": "wanda", "include": ["model.layers.3.mlp.*"]}
    child = run(str(tmp_path / "model"), "--output", str(tmp_path / "out"), "--settings", json.dumps(settings))
    assert child.returncode == 0, child.stderr[-2000:]
    told = json.loads(child.stdout.splitlines()[-1])
    # libraries take a share that differs from machine to machine
    assert 0.8 < told["memory_estimate_bytes"] / told["peak_memory_bytes"] < 1.5
