"""Loading, and saving that is all or nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from unchecked import without_type_checks

from qubo_prune.errors import InputError
from qubo_prune.masks import KeepMasks
from qubo_prune.models import LoadedModel, evaluating, load_model, module_as_given, save_model
from qubo_prune.run.estimate import estimate_run
from qubo_prune.run.prune import prune


def test_a_saved_folder_loads_again(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    loaded = load_model(str(folder))
    torch.testing.assert_close(loaded.model.lm_head.weight, tiny.llama().lm_head.weight)
    save_model(loaded, tmp_path / "copy", lambda path: None)
    again = load_model(str(tmp_path / "copy"))
    for one, other in zip(loaded.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any(p.name.startswith(".") for p in tmp_path.iterdir())


def test_loading_is_silent_and_leaves_the_bars_of_others_as_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    folder, shown = tiny.save(tmp_path / "model"), transformers_logging.is_progress_bar_enabled()
    try:
        for switch in (transformers_logging.enable_progress_bar, transformers_logging.disable_progress_bar):
            switch()
            before = transformers_logging.is_progress_bar_enabled()
            capfd.readouterr()
            load_model(str(folder))
            assert "%" not in "".join(capfd.readouterr())
            assert transformers_logging.is_progress_bar_enabled() == before
    finally:
        (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("./missing", "There is no model at"),
        ("/missing/folder", "There is no model at"),
        ("missing.gguf", "There is no model at"),
    ],
)
def test_missing_models(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be loaded"):
        load_model(str(tmp_path))


def test_bad_type_and_device(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'float32'"):
        load_model("smollm2-135m", dtype="float23")
    with pytest.raises(InputError, match="'cpu' always can"):
        load_model(str(tiny.save(tmp_path / "m")), device="nonsense")


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full to fill up")
    loaded = LoadedModel(tiny.llama(), tiny.tokenizer(), "tiny")

    def write_rest(folder: Path) -> None:
        with full.open("w") as file:
            file.write("x" * 100_000)

    with pytest.raises(InputError, match="disk filled up"):
        save_model(loaded, tmp_path / "out", write_rest)
    assert not list(tmp_path.iterdir())


def write_gguf(path: Path) -> Path:
    """A Llama of one layer."""
    import gguf

    writer, width, words = gguf.GGUFWriter(str(path), "llama"), 32, 32
    for add in (writer.add_embedding_length, writer.add_feed_forward_length, writer.add_context_length):
        add(width)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(words)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"▁w{number}" for number in range(words - 3))])
    writer.add_token_scores([0.0] * words)
    writer.add_token_types([2, 3, 3] + [1] * (words - 3))
    writer.add_unk_token_id(0)
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for number, name in enumerate(("token_embd", "output", *(f"blk.0.{part}" for part in parts))):
        values = torch.randn(width, width, generator=torch.Generator().manual_seed(number))
        writer.add_tensor(f"{name}.weight", values.numpy())
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", torch.ones(width).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_model_from_gguf_is_like_any_other(tmp_path: Path) -> None:
    loaded = load_model(str(write_gguf(tmp_path / "tiny.gguf")))
    assert loaded.source == "tiny.gguf, de-quantised"
    model = loaded.model
    assert model.lm_head.weight.dtype == torch.float32
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in (tmp_path / "saved" / "config.json").read_text()
    assert model.half().lm_head.weight.dtype == torch.float16


def token_batches(half: bool = False, **more: Any) -> list[Any]:
    """Inputs of a language model, or of one with an encoder, whose decoder gets half of the tokens."""
    rows = tiny.tokens(3).split(1)
    return [{"input_ids": row, **({"decoder_input_ids": row[:, :9]} if half else {}), **more} for row in rows]


#: Models with a cache somewhere, with batches for each; each has switches of its own.
CACHING: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    "plain": (tiny.llama, token_batches()),
    "asked for": (tiny.llama, token_batches(use_cache=True)),
    "wrapped": (lambda: tiny.Wrapped(tiny.llama()), token_batches()),
    "wrapped twice": (lambda: nn.Sequential(tiny.Wrapped(tiny.llama())), list(tiny.tokens(3).split(1))),
    "multimodal": (tiny.multimodal_gemma, token_batches()),
    "wrapped multimodal": (lambda: tiny.Wrapped(tiny.multimodal_gemma()), token_batches()),
    "encoder and decoder": (tiny.bart, token_batches(half=True, use_cache=True)),
    "position biases": (lambda: tiny.Wrapped(tiny.t5()), token_batches(half=True)),
    "state space": (lambda: tiny.Wrapped(tiny.mamba()), token_batches()),
}


def switches(model: nn.Module) -> list[Any]:
    """All configurations with a cache switch, found the slow way."""
    configs = [part.config for part in model.modules() if hasattr(part, "config")]
    configs += [
        getattr(config, name)
        for config in configs
        for name in ("text_config", "vision_config", "decoder")
        if hasattr(config, name)
    ]
    return [config for config in configs if hasattr(config, "use_cache")]


def same_masks(one: KeepMasks, other: KeepMasks) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.gate(3)
@pytest.mark.parametrize("kind", CACHING)
def test_masks_are_those_of_a_model_without_any_cache(kind: str) -> None:
    make, batches = CACHING[kind]
    cached, plain = make(), make()
    for config in switches(cached):
        config.use_cache = True
    for config in switches(plain):
        config.use_cache = False
    assert switches(plain)
    quiet = [{**batch, "use_cache": False} if isinstance(batch, dict) else batch for batch in batches]
    settings: dict[str, Any] = {"exclude": ["*vision*"] if "multimodal" in kind else [], "method": "wanda"}
    found, expected = prune(cached, batches, 0.5, **settings), prune(plain, quiet, 0.5, **settings)
    assert same_masks(found.masks, expected.masks)
    assert [layer.relative_after for layer in found.layers] == [layer.relative_after for layer in expected.layers]
    assert all(config.use_cache for config in switches(cached))


def test_caches_are_off_everywhere_for_the_time_and_come_back_after_errors() -> None:
    class Switched(tiny.Wrapped):
        use_cache = None

    model = Switched(tiny.multimodal_gemma())
    model.use_cache = True
    model.lm.config.text_config.use_cache = True
    model.lm.config.vision_config.use_cache = None
    model.train()
    with pytest.raises(KeyError), evaluating(model), evaluating(model):  # noqa: PT012
        assert not model.use_cache
        assert not any(config.use_cache for config in switches(model))
        assert not any(part.training for part in model.modules())
        raise KeyError
    assert model.use_cache is True
    assert model.lm.config.text_config.use_cache is True
    assert model.lm.config.vision_config.use_cache is None
    assert all(part.training for part in model.modules())


def test_a_multimodal_model_is_loaded_and_pruned_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny.multimodal_gemma().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    (tmp_path / "words.txt").write_text(tiny.text(600))
    given: dict[str, Any] = {
        "calibration": str(tmp_path / "words.txt"),
        "samples": 3,
        "sequence_length": 16,
        "exclude": ["*vision*"],
    }
    report = prune(str(folder), output=tmp_path / "pruned", **given)
    assert len(report.layers) == estimate_run(str(folder), **given).layers == 21
    assert report.masks.verify(load_model(str(tmp_path / "pruned")).model) == {}


class Residual(nn.Module):
    """A block of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def blocks() -> nn.Module:
    """Three blocks."""
    torch.manual_seed(0)
    return nn.Sequential(*(Residual() for _ in range(3)))


def compiled_within(model: nn.Module) -> nn.Module:
    """Each block compiled for itself."""
    for block in model:
        block.compile(backend="eager")
    return model


def compiled_functions(model: nn.Module) -> nn.Module:
    """A forward pass that compiles a function of its own."""
    model[1].forward = torch.compile(model[1].forward, backend="eager")
    return model


def compiled_parts(model: nn.Module) -> nn.Module:
    """Compiled modules in the place of others."""
    model[0] = torch.compile(model[0], backend="eager")
    model[1].up = torch.compile(model[1].up, backend="eager")
    model[2].down.compile(backend="eager")
    return model


def compiled(model: nn.Module) -> nn.Module:
    """The model as a whole."""
    made: nn.Module = torch.compile(model, backend="eager")
    return made


@pytest.mark.parametrize("way", [compiled_within, compiled_functions, compiled_parts, compiled])
@pytest.mark.parametrize("hessian", ["gram", "fisher"])
def test_compiled_models_have_the_masks_of_uncompiled_ones(way: Callable[[nn.Module], nn.Module], hessian: str) -> None:
    plain, model, inputs = blocks(), way(blocks()), torch.randn(20, 8)
    with torch.no_grad():
        model(inputs)  # compiled by now
    given: dict[str, Any] = {"calibration": list(inputs.split(10))}
    if hessian == "fisher":
        given = {
            "calibration": [(inputs, torch.arange(20) % 8)],
            "method": "loss",
            "warm_start": "gradient",
            "loss_settings": {"max_blocks": 1, "block_size": 8},
        }
    expected, found = (prune(one, density=0.5, **given) for one in (plain, model))
    assert same_masks(found.masks, expected.masks)
    assert [layer.error_after for layer in found.layers] == [layer.error_after for layer in expected.layers]
    assert found.masks.verify(model) == {}
    assert found.model == expected.model == estimate_run(model, **given).model == "Sequential"
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), plain(inputs))


def test_compilation_is_off_for_the_time_and_comes_back_after_errors() -> None:
    ran: list[bool] = []

    @torch.compile(backend="eager")
    def step(x: Tensor) -> Tensor:
        ran.append(torch.compiler.is_compiling())
        return x + 1

    def compiles() -> bool:
        ran.clear()
        torch._dynamo.reset()
        step(torch.ones(2))
        return True in ran or not ran

    assert compiles()
    with pytest.raises(KeyError), evaluating(nn.ReLU()):  # noqa: PT012
        with evaluating(nn.ReLU()):
            assert not compiles()
        assert not compiles()
        raise KeyError
    assert compiles()


@pytest.mark.parametrize("model", [None, {}, nn.Linear, Path("folder")])
def test_what_is_no_module_is_said(model: Any) -> None:
    said = r"^The model is (of type|the class) \w+; give a module, or the name"
    with without_type_checks(), pytest.raises(InputError, match=said):
        prune(model, torch.randn(4, 8), 0.5)
    with without_type_checks(), pytest.raises(InputError, match=said):
        estimate_run(model, torch.randn(4, 8))


def test_a_fused_encoder_layer_runs_as_it_is_written() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval()
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=True)
    with evaluating(model):
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_compiled_module_is_taken_for_what_was_compiled() -> None:
    model = tiny.mlp()
    assert module_as_given(torch.compile(model, backend="eager")).model is model
    assert module_as_given(model).name == "Sequential"


EVIL = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_code(folder: Path, marker: Path, model_type: str) -> Path:
    """A checkpoint that brings a file of code, which leaves a trace when it is run."""
    tiny.save(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": names}))
    (folder / "own.py").write_text(EVIL.format(marker=str(marker)))
    return folder


LOADS = """
import sys
from pathlib import Path
from qubo_prune.models import load_model
from qubo_prune.errors import InputError
marker = Path(sys.argv[1])
for folder, trust in zip(sys.argv[2::2], sys.argv[3::2]):
    try:
        said = type(load_model(folder, trust_remote_code=trust == "trusted").model).__module__
    except InputError as error:
        said = str(error)
    print(marker.exists(), said)
"""


@pytest.mark.slow
def test_code_of_a_checkpoint_runs_only_if_the_user_says_so(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    own, known = (with_code(tmp_path / kind, marker, kind) for kind in ("own", "llama"))
    # a pipe that nobody writes to and nobody closes: whoever asks there waits until the time is over
    unanswered, writer = os.pipe()
    loads = [str(own), "untrusted", str(known), "untrusted", str(own), "trusted"]
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOADS, str(marker), *loads],
            stdin=unanswered,
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"},
            check=True,
        )
    finally:
        os.close(unanswered)
        os.close(writer)
    refused, plain, trusted = done.stdout.strip().splitlines()
    assert re.match("False The model '.*own' comes with code of its own, which is run only if you say so", refused)
    assert plain.startswith("False transformers.models.llama")  # the library's own class takes it
    assert trusted.startswith("True transformers_modules")
    assert "[y/N]" not in done.stdout + done.stderr
