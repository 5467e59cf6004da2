"""Finding layers, and pruning them with a way back."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn

from qubo_prune.errors import InputError
from qubo_prune.models.layers import Layer, check_finite, find_layers


def conv(**settings: object) -> nn.Module:
    """A convolution of 8 channels with a kernel that is not square."""
    torch.manual_seed(0)
    return nn.Conv2d(**{"in_channels": 4, "out_channels": 8, "kernel_size": (3, 2), **settings})


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    return Conv1D(5, 3)


CONVOLUTIONS = {
    "plain": {},
    "without bias": {"bias": False},
    "strided": {"stride": (2, 3)},
    "padded": {"padding": (2, 1)},
    "same": {"padding": "same", "kernel_size": (4, 3), "dilation": (1, 2)},
    "valid": {"padding": "valid"},
    "reflect": {"padding": (1, 2), "padding_mode": "reflect"},
    "replicate and same": {"padding": "same", "kernel_size": (2, 4), "padding_mode": "replicate"},
    "circular": {"padding": (2, 1), "padding_mode": "circular", "stride": 2},
    "dilated": {"dilation": (1, 3)},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "out_channels": 4, "stride": 2},
    "depthwise with a multiplier": {"groups": 4},
    "all at once": {"groups": 2, "stride": (2, 1), "padding": (3, 2), "dilation": (2, 1), "padding_mode": "reflect"},
    "pointwise": {"kernel_size": 1},
}


def images(channels: int = 4, samples: int = 3) -> Tensor:
    return torch.randn(samples, channels, 9, 8, generator=torch.Generator().manual_seed(1))


def of(module: nn.Module) -> Layer:
    return find_layers(nn.Sequential(module))[0]


def check_rows(module: nn.Module, inputs: Tensor) -> None:
    """The rows times the matrix are the module's outputs without the bias."""
    layer = of(module.double())
    d_out, d_in = layer.shape
    rows, outputs = layer.unfold(inputs.double()), layer.fold_outputs(module(inputs.double()))
    matrix = layer.matrix().reshape(layer.groups, d_out // layer.groups, d_in)
    expected = torch.einsum("btgd,god->btgo", rows, matrix).flatten(2)
    bias = module.bias if module.bias is not None else 0
    assert rows.shape[2:] == (layer.groups, d_in)
    torch.testing.assert_close(outputs - bias, expected)
    chunks = list(layer.rows(inputs.double(), limit=1000))
    torch.testing.assert_close(torch.cat(chunks), rows.flatten(0, 1), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (7,), (2, 7), (2, 3, 7)])
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 5), conv1d])
def test_rows_of_linear_layers(make: object, shape: tuple[int, ...]) -> None:
    check_rows(make(), torch.randn(*shape, 3))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_rows_of_convolutions(kind: str) -> None:
    check_rows(conv(**CONVOLUTIONS[kind]), images())
    check_rows(conv(**CONVOLUTIONS[kind]), images()[0])
    check_rows(conv(**CONVOLUTIONS[kind]), images().to(memory_format=torch.channels_last))


def test_shapes_of_rows_and_outputs() -> None:
    linear, layer = of(nn.Linear(3, 5)), of(conv(groups=2))
    assert linear.unfold(torch.zeros(3)).shape == (1, 1, 1, 3)
    assert linear.unfold(torch.zeros(6, 3)).shape == (6, 1, 1, 3)
    assert linear.unfold(torch.zeros(2, 4, 5, 3)).shape == (2, 20, 1, 3)
    assert linear.unfold(torch.zeros(0, 4, 3)).shape == (0, 4, 1, 3)
    assert linear.fold_outputs(torch.zeros(2, 4, 5)).shape == (2, 4, 5)
    assert layer.shape == (8, 2 * 3 * 2)
    assert layer.unfold(images()).shape == (3, 7 * 7, 2, 12)
    assert layer.fold_outputs(torch.zeros(3, 8, 7, 7)).shape == (3, 49, 8)


@pytest.mark.parametrize("limit", [1, 200, 3000, 10**6])
def test_chunks_of_rows_respect_the_limit(limit: int) -> None:
    layer = of(conv(groups=2))
    chunks = list(layer.rows(images(), limit))
    row = 2 * 12 * 4
    assert all(chunk.shape[1:] == (2, 12) and chunk.numel() * 4 <= max(limit, row) for chunk in chunks)
    assert torch.equal(torch.cat(chunks), layer.unfold(images()).flatten(0, 1))


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 5), conv1d, lambda: conv(groups=2)])
def test_masks_take_the_parameters_shape_and_back(make: object) -> None:
    layer = of(make())
    keep = torch.rand(layer.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    stored = layer.stored(keep)
    assert stored.shape == layer.parameter.shape
    assert torch.equal(layer.as_matrix(stored), keep)
    assert torch.equal(layer.matrix()[~keep], layer.as_matrix(layer.parameter.detach())[~keep])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_writes_reach_a_kernel_in_any_memory_order(memory: torch.memory_format) -> None:
    module = conv().to(memory_format=memory)
    layer, inputs = of(module), images()
    before, strides = module.weight.detach().clone(), module.weight.stride()
    keep = torch.rand(layer.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    removed = layer.remember(keep)
    layer.prune(keep)
    assert torch.equal(module.weight, before * layer.stored(keep))
    check_rows(module.float(), inputs)
    module.float()
    removed.restore()
    assert torch.equal(module.weight, before)
    layer.assign(layer.matrix() * 2)
    assert torch.equal(module.weight, before * 2)
    assert module.weight.stride() == strides


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 5), conv1d, conv])
def test_the_matrix_shares_the_parameters_memory(make: object) -> None:
    layer = of(make())
    layer.matrix()[1, 2] = 7
    assert int((layer.parameter == 7).sum()) == 1
    assert not layer.matrix().requires_grad


def test_convolutions_with_a_forward_of_their_own_are_refused_by_name() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.conv2d(inputs, self.weight / self.weight.std(), self.bias)

    model = nn.Sequential(Standardized(4, 8, 3), nn.Linear(4, 4))
    with pytest.raises(InputError, match="'0' is a Standardized, which computes its output in a way of its own"):
        find_layers(model)
    assert [layer.name for layer in find_layers(model, exclude=["0"])] == ["1"]


def test_windows_agree_only_where_the_geometry_does() -> None:
    assert of(conv()).window == of(conv(padding="valid", out_channels=2)).window
    assert of(conv(kernel_size=3, padding="same")).window == of(conv(kernel_size=3, padding=1)).window
    others = [{"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 2}, {"kernel_size": (2, 3)}]
    assert len({of(conv(**settings)).window for settings in ({}, *others)}) == len(others) + 1
    assert of(nn.Linear(3, 5)).window == of(conv1d()).window


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


def channels_last() -> nn.Module:
    return conv(groups=2).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "make",
    [lambda: nn.Linear(3, 5), conv1d, conv, lambda: conv(groups=2), channels_last, lambda: nn.Linear(3, 5).half()],
)
def test_removed_weights_are_seen_in_their_places_without_writing_them(make: object) -> None:
    module = make()
    layer = of(module)
    before = layer.matrix().clone()
    keep = torch.rand(layer.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    removed = layer.remember(keep)
    layer.prune(keep)
    dense = removed.dense()
    assert dense.shape == layer.shape
    assert dense.dtype == before.dtype
    assert not dense.requires_grad
    assert torch.equal(dense, before)
    # a copy: neither sees what is written to the other
    dense.zero_()
    assert torch.equal(layer.matrix(), before * keep)
    layer.assign(layer.matrix() * 2)
    assert torch.equal(removed.dense(), torch.where(keep, 2 * before, before))


def test_shared_weights_count_once() -> None:
    linear = nn.Linear(4, 4)
    assert len(find_layers(nn.Sequential(linear, linear, nn.Linear(4, 4)))) == 2


def test_patterns_choose_layers() -> None:
    model = tiny.llama()
    assert len(find_layers(model, include=["*.mlp.*"])) == 6
    assert len(find_layers(model, include=["*.mlp.*"], exclude=["*.0.*"])) == 3
    with pytest.raises(InputError, match=r"'\*\.mpl\.\*' matches none of the 14"):
        find_layers(model, include=["*.mpl.*"])
    with pytest.raises(InputError, match="no linear or 2-D convolution layer"):
        find_layers(nn.Sequential(nn.ReLU()))


def test_weights_that_are_not_finite_are_named() -> None:
    model = tiny.mlp()
    layers = find_layers(model)
    check_finite(layers)
    model[2].weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"layer '2' hold NaN"):
        check_finite(layers)
