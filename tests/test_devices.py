"""Accelerators without one: devices that are waited for, memory that runs out, and what says so."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from qubo_prune import devices, prune
from qubo_prune.errors import InputError

LOSS = {"samples": 2, "scoring_samples": 2, "held_out": 2, "max_samples": 2, "max_blocks": 4, "micro_batch": 2}


class Full:
    """Raises an out-of-memory error from the call of a number on."""

    def __init__(self, run: Callable[..., Any], calls: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.run, self.calls, self.error = run, calls, error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise self.error("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.run(*args, **kwargs)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


#: Where memory runs out, in which call of what, in what run, and what the message says.
FULL = [
    ("hessian.gram", "_product", 25, {}, "while the Gram of the inputs of layer 'model.layers.0.mlp"),
    ("methods.refit", "refit", 3, {"update": "refit"}, "while layer 'model.layers.0.self_attn.o_proj'"),
    (
        "methods.row_blocks",
        "descend_rows",
        2,
        {"method": "compensated"},
        "layer 'model.layers.0.self_attn.v",
    ),
    ("hessian.gradients", "whole", 9, {"method": "loss", "loss_settings": LOSS}, "in a pass over 2 samples"),
]


@pytest.mark.parametrize(("module", "name", "calls", "settings", "said"), FULL)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_memory_that_runs_out_is_one_sentence_with_the_way_out_and_nothing_has_changed(
    module: str,
    name: str,
    calls: int,
    settings: dict[str, Any],
    said: str,
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = importlib.import_module(f"qubo_prune.{module}")
    monkeypatch.setattr(home, name, Full(getattr(home, name), calls, error))
    model = tiny.llama(num_hidden_layers=1)
    before = weights(model)
    with pytest.raises(InputError, match=said) as caught:
        prune(model, tiny.tokens(10, 8), 0.5, **settings)
    assert "CUDA out of memory" in str(caught.value)
    assert "give " in str(caught.value) or "set " in str(caught.value)
    assert all(map(torch.equal, weights(model), before))


def test_a_forward_pass_that_does_not_fit_names_the_batch() -> None:
    model = tiny.mlp()
    model[2].register_forward_pre_hook(Full(lambda *given: None, 3))  # type: ignore[index, operator]
    before = weights(model)
    with pytest.raises(InputError, match=r"pass of Sequential over a batch of shape \(8, 12\).*smaller batches"):
        prune(model, [torch.randn(8, 12) for _ in range(3)], 0.5)
    assert all(map(torch.equal, weights(model), before))


def test_another_error_of_a_forward_pass_stays_what_it_is() -> None:
    model = tiny.mlp()
    model[2].register_forward_pre_hook(Full(lambda *given: None, 3, ZeroDivisionError))  # type: ignore[index, operator]
    with pytest.raises(ZeroDivisionError):
        prune(model, [torch.randn(8, 12) for _ in range(3)], 0.5)


def test_nothing_waits_for_the_cpu_and_everything_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    devices.synchronise([torch.device("cpu"), torch.device("meta")])
    assert not waited
    assert devices.now([torch.device("cuda", 1)]) > 0
    assert waited == [torch.device("cuda", 1)]


def test_the_room_of_an_accelerator_is_what_is_free_and_what_the_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    assert devices.room(torch.device("cuda", 0)) == 150
    assert devices.room(torch.device("cpu")) is None


#: Waits for a device and operators there, each by layer, of the runs of ``labelled_runs.py`` (measured; a fifth more
#: passes). One that loops over rows or columns has many times as many.
BUDGET = {"gram": (72, 2060), "compensated": (155, 3190), "fisher": (100, 1250)}
MORE = {
    "gram, layer": (120, 3680),
    "tabu": (86, 4440),
    "admm": (22, 620),
    "wanda + refit": (35, 1070),
    "gram, 2:4": (67, 1400),
    "exact": (129, 1600),
    "owl": (82, 2330),
    "compensated, layer": (147, 2950),
    "compensated, 2:4": (110, 2280),
    "fisher, gradient": (99, 1230),
    "allocation by the loss": (82, 2570),
    "magnitude": (15, 230),
    "wanda": (15, 240),
    "ria": (18, 260),
    "sparsegpt": (22, 640),
    "alps": (50, 1390),
    "dsnot": (32, 460),
    "sparsefw": (19, 4700),
    "sparseswaps": (45, 1290),
    "wanda + admm": (23, 450),
    "wanda + sparsegpt": (23, 660),
}


def labelled(*names: str) -> dict[str, Any]:
    """What runs did on devices that are none; in a process of its own, since PyTorch takes them to be there."""
    script = Path(__file__).parent / "labelled_runs.py"
    ended = subprocess.run([sys.executable, str(script), *names], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def check_budget(budget: dict[str, tuple[int, int]], found: dict[str, Any]) -> None:
    for name, (waits, operators) in budget.items():
        one, two = found[f"1: {name}"], found[f"2: {name}"]
        assert one["masks"] == two["masks"], name
        for run in (one, two):
            assert not run["failed"], name
            assert not run["undetermined"], name
            assert run["waits"] <= 1.2 * waits, (name, run["kinds"])
            assert run["operators"] <= 1.2 * operators, name
            assert run["synchronised"], name


@pytest.mark.slow
def test_runs_mix_no_devices_and_keep_to_a_budget_of_waits_and_operators() -> None:
    found = labelled(*BUDGET, "fisher, global")
    check_budget(BUDGET, found)
    assert "masks" in found["1: fisher, global"]
    refused = found["2: fisher, global"]
    assert "'front.0' is on labelled:0 while 'back.0' is on labelled:1; give budget 'layer'" in refused["error"]
    assert refused["unchanged"]


@pytest.mark.slow
def test_no_other_run_does_either() -> None:
    check_budget(MORE, labelled(*MORE))
