"""Origins against hooks, autograd and their own models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_suite
import torch
from torch import Tensor, nn
from torch.nn import functional

from qubo_prune.bench.origins import ORIGINS, Origin, language_model
from qubo_prune.errors import InputError
from qubo_prune.hessian.gradients import Entries


def test_a_gram_is_that_of_what_the_layer_reads() -> None:
    origin = tiny_suite.mlp_origin()
    with torch.no_grad():
        read = origin.model[:2](tiny_suite.inputs()).double()
    gram = origin.gram("2")
    assert gram.tokens == len(read)
    torch.testing.assert_close(gram.matrix, 2 * read.T @ read / len(read), rtol=1e-4, atol=1e-6)


def test_a_convolutions_gram_is_that_of_its_patches() -> None:
    origin = tiny_suite.cnn_origin()
    patches = functional.unfold(tiny.images(12), 3, stride=2, padding=1).mT.reshape(-1, 36).double()
    gram = origin.gram("0")
    torch.testing.assert_close(gram.matrix, 2 * patches.T @ patches / len(patches), rtol=1e-4, atol=1e-6)


def calls_of(origin: Origin) -> list[int]:
    """Grows by one with each forward call of the model's first layer."""
    calls: list[int] = []
    origin.layer("0").module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_grams_are_read_together_and_once() -> None:
    origin, apart = tiny_suite.mlp_origin(), tiny_suite.mlp_origin()
    calls, single = calls_of(origin), calls_of(apart)
    origin.read_grams(["0", "2", "4"])
    together = len(calls)
    for name in ("0", "2", "4"):
        apart.gram(name)
        torch.testing.assert_close(apart.gram(name).matrix, origin.gram(name).matrix)
    assert 0 < together < len(single)
    origin.read_grams(["4", "0"])
    assert origin.gram("2") is origin.gram("2")
    assert len(calls) == together


def test_an_unknown_layer_is_named_with_a_near_one() -> None:
    origin = tiny_suite.llama_origin()
    with pytest.raises(InputError, match=r"llama has no layer .*q_prj.*did you mean .*q_proj"):
        origin.layer("model.layers.0.self_attn.q_prj")
    with pytest.raises(InputError, match="no layer"):
        origin.gram("lm")


def entries_of(origin: Origin, name: str, count: int, seed: int) -> Entries:
    layer, draw = origin.layer(name), torch.Generator().manual_seed(seed)
    places = torch.randperm(layer.shape[0] * layer.shape[1], generator=draw)[:count]
    return Entries(layer, places // layer.shape[1], places % layer.shape[1])


def test_gradients_are_those_of_single_samples_at_the_given_weights() -> None:
    origin = tiny_suite.mlp_origin(samples=7)
    layer = origin.layer("2")
    before = layer.matrix().detach().clone()
    weight = before * (torch.rand(before.shape, generator=torch.Generator().manual_seed(2)) < 0.5)
    blocks = [entries_of(origin, "2", 9, 0), entries_of(origin, "2", 30, 1)]
    found = origin.gradients(blocks, weight)
    assert torch.equal(layer.matrix(), before)

    model = tiny.mlp().double().eval()
    model[2].weight.data = weight.double()
    read, labels = origin.samples.batch(torch.arange(7))
    for sample in range(7):
        model.zero_grad()
        functional.cross_entropy(model(read[sample : sample + 1].double()), labels[sample : sample + 1]).backward()
        for block, gradients in zip(blocks, found, strict=True):
            expected = model[2].weight.grad[block.rows, block.columns]
            torch.testing.assert_close(gradients[sample].double(), expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_a_language_model_are_those_of_its_own_loss() -> None:
    origin, name = tiny_suite.llama_origin(), "model.layers.1.mlp.down_proj"
    block = entries_of(origin, name, 12, 0)
    (found,) = origin.gradients([block], origin.layer(name).matrix().detach())
    module = origin.model.get_submodule(name)
    for sample, window in enumerate(tiny.tokens(6, 16)):
        (grad,) = torch.autograd.grad(origin.model(window[None], labels=window[None]).loss, module.weight)
        torch.testing.assert_close(found[sample], grad[block.rows, block.columns], rtol=1e-3, atol=1e-6)


def test_the_weights_are_back_when_the_loss_raises() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(model[2].weight.detach().clone())
        raise ZeroDivisionError

    seen: list[Tensor] = []
    origin = tiny_suite.mlp_origin(loss=loss)
    before = origin.model[2].weight.detach().clone()
    with pytest.raises(ZeroDivisionError):
        origin.gradients([entries_of(origin, "2", 5, 0)], torch.zeros_like(before))
    assert not seen[0].any()  # it was the other weight that was tried
    assert torch.equal(origin.model[2].weight, before)


def test_a_language_model_reads_windows_of_its_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(tiny.text(), encoding="utf-8")
    source = str(tiny.save(tmp_path / "model"))
    origin = language_model(source, "small", str(tmp_path / "text.txt"), windows=4, length=16, samples=3)
    assert origin.name == "small"
    assert len(origin.calls) == 4
    assert len(origin.samples) == 3
    assert "64 tokens (4 windows of 16)" in origin.reads
    assert "3 windows of 16" in origin.reads
    assert origin.gram("model.layers.0.self_attn.q_proj").tokens == 64
    with pytest.raises(InputError, match="at most"):
        language_model(source, "small", str(tmp_path / "text.txt"), windows=4, length=65)


def test_every_origin_has_its_own_name() -> None:
    assert set(ORIGINS) == {"smollm2", "smollm2-short", "dinov2", "crepe"}
    assert len(set(ORIGINS.values())) == len(ORIGINS)
