"""A model whose weights stay on the disk is pruned to the bits of one in memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
from qubo_prune_solvers.greedy import Greedy
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qubo_prune import prune
from qubo_prune.errors import InputError
from qubo_prune.files.digests import digest_of_model
from qubo_prune.masks import KeepMasks
from qubo_prune.models.disk import load_on_disk
from qubo_prune.models.layers import find_layers
from qubo_prune.report import Report
from qubo_prune.solver import Capabilities, Solver, SolveRequest, SolveResult


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
            other.name,
            other.kept,
            other.error_before,
            other.error_after,
        )
    masks = [KeepMasks.load(folder.parent / which / "masks.safetensors") for which in ("memory", "disk")]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    assert reports[0].held_out_perplexity == reports[1].held_out_perplexity


def half() -> nn.Module:
    return tiny.llama().to(torch.bfloat16)


def tied() -> nn.Module:
    return tiny.llama(tie_word_embeddings=True)


@pytest.fixture
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(tiny.text())
    return str(file)


RUNS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "wanda": (tiny.llama, {"method": "wanda"}),
    "blocks": (tiny.llama, {}),
    "compensated": (tiny.llama, {"method": "compensated"}),
    "compensated in half precision": (half, {"method": "compensated"}),
    "half precision": (half, {"method": "wanda"}),
    "tied": (tied, {"method": "wanda"}),
    "updated without a correction": (tiny.llama, {"method": "wanda", "update": "refit", "correction": 0.0}),
    "outliers": (tiny.llama, {"allocation": "owl", "pattern": "layer"}),
    "transposed": (tiny.gpt2, {"correction": 0.5, "update": "refit"}),
    "two kinds of rotary embeddings": (tiny.gemma, {"method": "compensated"}),
}


@pytest.mark.gate(4)
@pytest.mark.parametrize(("make", "settings"), RUNS.values(), ids=list(RUNS))
def test_a_run_on_the_disk_is_the_run_in_memory(
    make: Callable[[], nn.Module], settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "model", make())
    assert len(list(folder.glob("*.safetensors"))) > 1
    are_the_same(folder, both(folder, **settings))


def test_held_out_windows_are_judged_with_one_decoder_layer_in_memory_too(tmp_path: Path, text: str) -> None:
    folder = checkpoint(tmp_path / "model", tiny.llama())
    reports = both(folder, text, method="compensated", guard=2)
    assert reports[1].held_out_perplexity is not None
    assert len(set(reports[1].held_out_perplexity)) == 2
    are_the_same(folder, reports)


def test_the_result_loads_as_a_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = checkpoint(tmp_path / "model", tiny.llama())
    (folder / "pytorch_model.bin").write_text("dense weights in another format")
    both(folder, method="wanda")
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / which) for which in ("memory", "disk"))
    assert torch.equal(one(tiny.tokens()).logits, other(tiny.tokens()).logits)
    names = {path.name for path in (tmp_path / "disk").iterdir()}
    assert names >= {"config.json", "generation_config.json", "tokenizer.json", "report.json", "masks.safetensors"}
    assert "pytorch_model.bin" not in names


def test_tensors_keep_the_types_of_the_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", half(), shards="1GB")
    stored = weights_of(folder)
    wide = {name: tensor.float() if "norm" in name or "up_proj" in name else tensor for name, tensor in stored.items()}
    save_file(wide, folder / "model.safetensors", {"format": "pt"})
    both(folder, method="wanda")
    found, masks = weights_of(tmp_path / "disk"), KeepMasks.load(tmp_path / "disk" / "masks.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: wide[name].dtype for name in found}
    assert found.keys() == wide.keys()
    for name, tensor in wide.items():
        assert torch.equal(found[name], tensor * masks[name] if name in masks else tensor)


def residents(model: nn.Module) -> list[int]:
    """Decoder layers with weights in memory."""
    blocks = model.get_submodule("model.layers")
    return [
        number
        for number, block in enumerate(blocks.children())
        if not all(parameter.is_meta for parameter in block.parameters())
    ]


def test_one_decoder_layer_is_in_memory_at_a_time(tmp_path: Path) -> None:
    whole = tiny.llama(num_hidden_layers=4)
    loaded = load_on_disk(str(checkpoint(tmp_path / "model", whole)), "cpu", False, tmp_path)
    model, seen = loaded.model, list[list[int]]()
    for block in model.get_submodule("model.layers").children():
        block.get_submodule("mlp").register_forward_pre_hook(lambda module, args: seen.append(residents(model)))
    with torch.no_grad():
        assert torch.equal(model(tiny.tokens()).logits, whole(tiny.tokens()).logits)
    assert seen == [[0], [1], [2], [3]]
    assert residents(model) == []
    second = model.get_submodule("model.layers.1")
    with loaded.shelf.resident(second):
        with loaded.shelf.resident(second.get_submodule("mlp")):
            assert residents(model) == [1]
        assert not any(parameter.is_meta for parameter in second.parameters())
    assert residents(model) == []


def test_a_layer_that_is_loaded_again_is_pruned(tmp_path: Path) -> None:
    loaded = load_on_disk(str(checkpoint(tmp_path / "model", tiny.llama())), "cpu", False, tmp_path)
    layer = find_layers(loaded.model)[3]
    with loaded.shelf.resident(layer.module):
        dense = layer.matrix().clone()
    digest = loaded.shelf.digest()
    loaded.shelf.changed(layer, lambda stored: stored * 2)
    with loaded.shelf.resident(layer.module):
        assert torch.equal(layer.matrix(), 2 * dense)
    kept = loaded.shelf.dense_weights()
    kept[layer.name] = dense
    with loaded.shelf.resident(layer.module):
        assert kept[layer.name] is dense
    assert torch.equal(kept[layer.name], dense)  # read again
    assert kept[layer.name] is not dense
    assert loaded.shelf.digest() == digest == digest_of_model(tiny.llama())


def test_a_run_in_memory_goes_on_on_the_disk(tmp_path: Path) -> None:
    """And the other way around: what was decided is the same."""
    folder = checkpoint(tmp_path / "model", tiny.llama())
    given: dict[str, Any] = {"density": 0.5, "block_size": 8, "workers": 0, "method": "compensated"}
    whole = prune(str(folder), tiny.tokens(), output=tmp_path / "whole", **given)
    for first, second in (("memory", "disk"), ("disk", "memory"), ("disk", "disk")):
        run, output = tmp_path / f"{first}-{second}", tmp_path / f"{first}-{second}-out"
        global left
        left = 9
        with pytest.raises(Killed):
            prune(str(folder), tiny.tokens(), output=output, weights=first, run_folder=run, solver=Dying(), **given)
        assert not output.exists()
        left = -1
        prune(
            str(folder),
            tiny.tokens(),
            output=output,
            weights=second,
            run_folder=run,
            resume=True,
            solver=Dying(),
            **given,
        )
        found, wanted = weights_of(output), weights_of(tmp_path / "whole")
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), (first, second)
    assert whole.layers


left = -1


class Killed(BaseException):
    """Nobody catches it."""


@dataclass(frozen=True)
class Dying(Solver):
    """Greedy until its calls are used up."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        global left
        if left == 0:
            raise Killed
        left -= 1
        return Greedy().solve(request)


def test_what_cannot_be_on_the_disk_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", tiny.llama())
    good: dict[str, Any] = {"weights": "disk", "output": tmp_path / "out", "density": 0.5}

    def refused(message: str, model: Any = str(folder), **changes: Any) -> None:
        with pytest.raises(InputError, match=message):
            prune(model, tiny.tokens(), **{**good, **changes})
        assert not (tmp_path / "out").exists()
        assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]

    refused("give 'memory' or 'disk'", weights="dsk")
    refused("the model is a module", tiny.llama())
    refused("needs a local folder of safetensors", "smollm2-135m")
    refused("There is no model at", str(tmp_path / "nowhere"))
    refused("no output is given", output=None)
    refused("gradients of the loss need the whole model", method="loss")
    refused("gradients of the loss need the whole model", allocation="fisher")
    refused("gradients of the loss need the whole model", hessian="kron", pattern="layer")
    refused("keeps the checkpoint's own type", dtype="float32")
    refused("outside the stack of decoder layers", prune_head=True)


def damaged(folder: Path, how: str) -> Path:
    """A checkpoint that cannot be pruned."""
    file = sorted(folder.glob("*.safetensors"))[0]
    config = json.loads((folder / "config.json").read_text())
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    if how == "cut short":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "another file":
        file.write_bytes(b"a text that is no checkpoint, and long enough")
    elif how == "no file":
        file.unlink()
    elif how == "one more in the index":
        index["weight_map"]["more"] = file.name
    elif how == "leads out":
        index["weight_map"] = dict.fromkeys(index["weight_map"], "../model.safetensors")
    elif how == "another shape":
        config["intermediate_size"] = 25
    elif how == "another layer":
        config["num_hidden_layers"] = 3
    elif how == "quantised":
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    elif how == "not finite":
        tensors = load_file(file)
        tensors[next(name for name in tensors if "proj" in name)][0, 0] = torch.nan
        save_file(tensors, file, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


DAMAGE = {
    "cut short": "bytes and should have",
    "another file": "cut short, or not of safetensors",
    "no file": "cannot be read",
    "one more in the index": "which no file holds",
    "leads out": "no weight_map of tensors to files beside it",
    "another shape": "do not belong together",
    "another layer": "has no tensor 'model.layers.2.",
    "quantised": "are quantised",
    "not finite": "NaN or infinite",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_bad_checkpoint_is_refused_and_named(how: str, tmp_path: Path) -> None:
    folder = damaged(checkpoint(tmp_path / "model", tiny.llama()), how)
    with pytest.raises(InputError, match=DAMAGE[how]):
        prune(str(folder), tiny.tokens(), weights="disk", output=tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", tiny.llama(), shards="1GB")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(InputError, match="has different values for them"):
        prune(str(folder), tiny.tokens(), weights="disk", output=tmp_path / "out")


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    global left
    folder = checkpoint(tmp_path / "model", tiny.llama())
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    left = 9
    with pytest.raises(Killed):
        prune(str(folder), tiny.tokens(), weights="disk", output=tmp_path / "out", solver=Dying(), workers=0)
    left = -1
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("weights", ["memory", "disk"])
def test_the_memory_that_is_needed_is_told_before_the_first_layer(
    weights: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoint(tmp_path / "model", tiny.llama())
    with caplog.at_level(logging.INFO, logger="qubo_prune"):
        report = prune(str(folder), tiny.tokens(), weights=weights, output=tmp_path / "out", method="wanda")
    events = [record.event for record in caplog.records if hasattr(record, "event")]
    kinds = [event["kind"] for event in events]
    assert kinds.index("memory") < kinds.index("layer")
    told = events[kinds.index("memory")]
    parts = ("process", "weights", "undo", "states", "layer")
    assert report.memory_estimate_bytes == told["estimate_bytes"] == sum(told[part] for part in parts)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["memory_estimate_bytes"] == told["estimate_bytes"]
