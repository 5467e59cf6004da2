"""Finding layers, and pruning them with a way back."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from qubo_prune.errors import InputError
from qubo_prune.layers import check_finite, find_layers


def test_head_and_embeddings_stay_out_unless_asked() -> None:
    model = tiny.llama()
    names = [layer.name for layer in find_layers(model)]
    assert len(names) == 14
    assert "lm_head" not in names
    assert "lm_head" in [layer.name for layer in find_layers(model, prune_head=True)]


def test_transposed_layers_are_seen_as_out_by_in() -> None:
    layer = find_layers(tiny.gpt2(), include=["transformer.h.0.attn.c_attn"])[0]
    assert layer.shape == (48, 16)
    x = torch.randn(3, 16)
    torch.testing.assert_close(x @ layer.matrix().T + layer.module.bias, layer.module(x))


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_pruning_is_in_place_and_can_be_taken_back(make: object) -> None:
    layer = find_layers(make())[0]
    before = layer.matrix().clone()
    keep = torch.rand(layer.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    removed = layer.remember(keep)
    layer.prune(keep)
    torch.testing.assert_close(layer.matrix(), before * keep, rtol=0, atol=0)
    removed.restore()
    torch.testing.assert_close(layer.matrix(), before, rtol=0, atol=0)


def test_shared_weights_count_once() -> None:
    linear = nn.Linear(4, 4)
    assert len(find_layers(nn.Sequential(linear, linear, nn.Linear(4, 4)))) == 2


def test_patterns_choose_layers() -> None:
    model = tiny.llama()
    assert len(find_layers(model, include=["*.mlp.*"])) == 6
    assert len(find_layers(model, include=["*.mlp.*"], exclude=["*.0.*"])) == 3
    with pytest.raises(InputError, match=r"'\*\.mpl\.\*' matches none of the model's 14"):
        find_layers(model, include=["*.mpl.*"])
    with pytest.raises(InputError, match="no linear layer"):
        find_layers(nn.Sequential(nn.ReLU()))


def test_weights_that_are_not_finite_are_named() -> None:
    model = tiny.mlp()
    layers = find_layers(model)
    check_finite(layers)
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layer '2' hold NaN"):
        check_finite(layers)
