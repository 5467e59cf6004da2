"""Layers that inputs do not reach, and weights that are used without their module being called."""

from __future__ import annotations

from typing import Any

import measured
import pytest
import tiny
import torch
import unseen
from torch import Tensor, nn

from qubo_prune.errors import InputError
from qubo_prune.hessian.reach import NO_CALL, NO_INPUT, NO_INPUT_NOW, Uses, uses_of
from qubo_prune.models.layers import find_layers
from qubo_prune.run.prune import prune


@pytest.mark.parametrize("kind", unseen.WITHOUT_INPUT)
def test_a_weight_that_is_used_without_a_call_is_seen(kind: Any) -> None:
    model = kind().eval()
    layers = find_layers(model)
    odd = next(layer.name for layer in layers if layer.module is model.odd)
    found = uses_of(model, layers, unseen.inputs()[:1])
    assert found.called == {"first", "last"}
    assert found.beside == ({odd} if unseen.WITHOUT_INPUT[kind] else set())
    assert found.why_not_reached(odd) == (NO_CALL if unseen.WITHOUT_INPUT[kind] else NO_INPUT)
    assert found.why_not_reached("first") == NO_INPUT_NOW
    assert Uses.from_dict(found.to_dict()) == found


def test_a_weight_may_be_used_both_ways() -> None:
    model = unseen.Both().eval()
    found = uses_of(model, find_layers(model), unseen.inputs()[:1])
    assert found.called == {"first", "odd", "last"}
    assert found.beside == {"odd"}


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.gemma, tiny.cnn, tiny.vit])
def test_layers_of_usual_models_are_used_by_their_modules_only(make: Any) -> None:
    model = make()
    layers, state = find_layers(model), {name: value.clone() for name, value in model.state_dict().items()}
    found = uses_of(model, layers, [tiny.images(2) if make in (tiny.cnn, tiny.vit) else tiny.tokens(1)])
    assert found.called == {layer.name for layer in layers}
    assert found.beside == set()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(layer.module._forward_pre_hooks or layer.module._forward_hooks for layer in layers)


def test_a_tied_head_shares_its_weight_with_the_embedding() -> None:
    model = tiny.gpt2()
    assert uses_of(model, find_layers(model, prune_head=True), [tiny.tokens(1)]).beside == {"lm_head"}


class Looking(nn.Module):
    """Looks at a weight's shape and type, makes tensors like it and views of it, and uses none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        like = torch.zeros_like(weight) + weight.new_ones(weight.shape) + torch.empty_like(weight).fill_(1)
        weight.T[:1].detach()
        return x.to(weight) @ like


def test_to_look_at_a_weight_is_no_use_of_it() -> None:
    model = Looking()
    assert uses_of(model, find_layers(model), [torch.randn(3, 6)]) == Uses()


def test_the_model_is_left_as_it_was_if_it_fails() -> None:
    model = unseen.Base().train()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        uses_of(model, find_layers(model), [torch.randn(3, 7)])
    assert model.training
    assert not model.first._forward_pre_hooks


class Router(nn.Module):
    """One of two layers, by the sign of the first entry."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(x) if x[0, 0] > 0 else self.below(x)


def test_more_inputs_are_taken_while_some_layer_is_missing() -> None:
    model, up = Router(), torch.ones(2, 6)
    layers = find_layers(model)
    assert uses_of(model, layers, [up]).called == {"above"}
    assert uses_of(model, layers, [up, up, -up]).called == {"above", "below"}
    assert uses_of(model, layers, [up, -up, torch.ones(2, 7)]).called == {"above", "below"}  # the last is not needed


class Keeps(nn.Module):
    """Two layers, and something that is kept from one call to the next."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.a, self.b = kind, nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.past: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        past, self.past = self.past, x
        if self.kind == "a counter":
            x = x * self.calls
        elif past is not None and self.kind == "a cache":
            x = torch.cat([past, x])
        elif past is not None and self.kind == "what does not fit":
            x = x + past.T
        elif past is not None and self.kind == "another way":
            return self.b(x)
        return self.b(self.a(x).relu())


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["a counter", "a cache", "what does not fit", "another way"])
def test_a_model_that_keeps_something_between_calls_is_refused(kind: str, wrapped: bool) -> None:
    model = nn.Sequential(Keeps(kind)) if wrapped else Keeps(kind)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(InputError, match="keeps something from one call to the next"):
        prune(model, [torch.randn(5, 8) for _ in range(3)], 0.5)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name])


def test_a_model_that_counts_its_calls_and_does_nothing_with_it_is_pruned() -> None:
    model, batches = Keeps("nothing"), [torch.randn(5, 8) for _ in range(3)]
    dense = measured.weights(model)
    report = prune(model, batches, 0.5)
    found = measured.measured(model, dense, batches)
    assert {layer.name: layer.relative_after for layer in report.layers} == pytest.approx(found, rel=1e-6)
