"""What passes keep for later ones saves work and changes nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from qubo_prune.hessian import Gram
from qubo_prune.hessian.replays import Replays, Room
from qubo_prune.hessian.stream import Seconds, stream
from qubo_prune.models.layers import Layer, find_layers

_PLENTY = 2**40


class _Order(nn.Module):
    """Calls its layers in an order that depends on the batch, one of them several times in some."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 10:
            return self.third(self.second(self.first(x)).relu())
        if x.shape[0] == 9:
            return self.second(self.third(self.first(x)).relu()).relu_() + self.first(x.cos())
        return self.first(self.third(self.first(x).relu_()).sin())


class _InPlace(nn.Module):
    """Writes to what its layers read and give."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x.mul_(2)
        z = self.second(y)
        y += 1
        z.relu_()
        return self.third(z + y + x)


def _ids() -> list[Any]:
    return list(tiny.tokens().split(1))


def _rows() -> list[Any]:
    return [torch.randn(count, 6, generator=torch.Generator().manual_seed(count)) for count in (10, 9, 8, 10)]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]]]] = {
    "llama": (tiny.llama, _ids),
    "gpt2": (tiny.gpt2, _ids),
    "gemma": (tiny.gemma, _ids),
    "mixtral": (tiny.mixtral, _ids),
    "convolutions": (tiny.cnn, lambda: list(tiny.images(8).split(2))),
    "vision": (tiny.vit, lambda: list(tiny.images(8).split(2))),
    "other orders": (_Order, _rows),
    "in place": (_InPlace, _rows),
}


def _streamed(
    kind: str, room: int, paired: bool, needed: Callable[[Layer], bool] = lambda layer: True
) -> tuple[dict[str, Gram], int]:
    """The Grams of a run that zeros half of each layer, and how many rows went through linear layers."""
    make, data = MODELS[kind]
    model, batches, found, rows = make(), data(), dict[str, Gram](), [0]
    dense: dict[str, Tensor] | None = {} if paired else None

    def visit(layer: Layer, gram: Gram) -> None:
        found[layer.name] = gram
        if dense is not None:
            dense[layer.name] = layer.matrix().clone()
        layer.assign(layer.matrix() * (torch.arange(layer.shape[1]) % 2))

    def counted(module: nn.Module, given: Tensor) -> Tensor:
        rows[0] += given.shape[:-1].numel()
        return nn.functional.linear(given, module.weight, module.bias)

    layers = find_layers(model)
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = functools.partial(counted, module)  # type: ignore[method-assign]
    stream(model, layers, batches[:-1], visit, Seconds(), batches[-1:], dense, needed, room=room)
    return found, rows[0]


def _assert_same(one: dict[str, Gram], other: dict[str, Gram]) -> None:
    assert list(one) == list(other)
    for name, gram in one.items():
        again = other[name]
        while gram is not None or again is not None:
            assert gram is not None
            assert again is not None
            assert torch.equal(gram.matrix, again.matrix), name
            assert (gram.tokens, gram.unpaired) == (again.tokens, again.unpaired)
            assert (gram.drift is None) == (again.drift is None)
            if gram.drift is not None and again.drift is not None:
                assert torch.equal(gram.drift.cross, again.drift.cross), name
            gram, again = gram.held_out, again.held_out


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_grams_are_the_same_with_room_and_without(kind: str, paired: bool) -> None:
    expected, all_rows = _streamed(kind, 0, paired)
    for room in (3000, 40_000, _PLENTY):
        found, rows = _streamed(kind, room, paired)
        _assert_same(expected, found)
    if kind in ("llama", "gemma"):  # one pass of the dense model and one of the other, besides those that find stages
        assert rows < 0.62 * all_rows


@pytest.mark.parametrize("kind", MODELS)
def test_layers_whose_grams_are_not_needed_are_passed_by(kind: str) -> None:
    def needed(layer: Layer) -> bool:
        return hash_of(layer.name) % 2 == 0

    def hash_of(name: str) -> int:
        return sum(map(ord, name))

    expected, found = (_streamed(kind, room, True, needed)[0] for room in (0, _PLENTY))
    _assert_same(expected, found)


def test_room_is_counted_in_bytes_and_given_back() -> None:
    room = Room(100)
    assert room.take((torch.zeros(20), None))
    assert not room.take(torch.zeros(20, dtype=torch.float64))
    assert room.left == 20
    room.give_back([torch.zeros(20)])
    assert room.left == 100


def test_only_first_calls_are_replayed_and_nobody_can_write_to_them() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 3)
    layer, replays = find_layers(nn.Sequential(module))[0], Replays(Room(_PLENTY))
    given, other = torch.randn(2, 3), torch.randn(2, 3)
    expected, later = module(given).detach(), module(other).detach()
    replays.add([layer])
    with torch.no_grad(), replays.over(0):
        module(given).zero_()
    with torch.no_grad(), replays.over(0):
        assert torch.equal(module(other).clone(), expected)  # whatever it is given: it reads the same by promise
        assert torch.equal(module(other), later)
    with torch.no_grad(), replays.over(1):
        assert torch.equal(module(other), later)
    replays.close()
    with torch.no_grad(), replays.over(0):
        assert torch.equal(module(other), later)
    assert "forward" not in module.__dict__
