"""Streaming sees exactly the inputs that the layers see in the whole model."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from measured import measured, weights
from torch import Tensor, nn

import qubo_prune.run.layerwise as pruning
from qubo_prune import InputError, prune
from qubo_prune.hessian import Gram
from qubo_prune.hessian.stream import Seconds, _record_stack, find_stages, sample, stream
from qubo_prune.models.calls import as_call
from qubo_prune.models.layers import Layer, find_layers
from qubo_prune.models.stack import find_stack
from qubo_prune.models.storage import InMemory

MODELS = {"llama": tiny.llama, "gpt2": tiny.gpt2, "gemma": tiny.gemma}


def seen_by_the_whole_model(model: nn.Module, layer: Layer, batches: list[Any]) -> Tensor:
    """The Gram of a layer from plain forward passes with a hook."""
    inputs: list[Tensor] = []
    handle = layer.module.register_forward_pre_hook(lambda module, args: inputs.append(args[0].flatten(0, -2).clone()))
    with torch.no_grad():
        for batch in batches:
            model(**batch) if isinstance(batch, dict) else model(batch)
    handle.remove()
    x = torch.cat(inputs).double()
    return 2 / len(x) * x.T @ x


class _Feed(nn.Module):
    """A residual block that adds to its input in place, and more that some stacks do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, beside: Any = None) -> Any:
        if isinstance(beside, dict):  # as layers that share keys and values do
            x = x + beside.get("before", 0)
            beside["before"] = x.tanh()
        x += self.down(self.up(x).relu())
        return (x, x.sin()) if isinstance(beside, Tensor) else x


class _Stack(nn.Module):
    """Blocks that are no plain chain, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.blocks = way, nn.ModuleList(_Feed() for _ in range(3))
        self.embeddings = nn.ModuleList(nn.Embedding(tiny.VOCABULARY, 8) for _ in range(3))

    def forward(self, ids: Tensor) -> Tensor:
        x, beside = self.embeddings[0](ids), {}
        extra = torch.zeros_like(x)
        for block, embedding in zip(self.blocks, self.embeddings, strict=True):
            if self.way == "adds between":
                x = block(x + embedding(ids))
            elif self.way == "adds between in place":
                x += embedding(ids)
                x = block(x)
            elif self.way == "hands on a dict":
                x = block(x, beside)
            elif self.way == "hands on outputs":
                x, extra = block(x + 0 * extra, extra)
            else:
                x = block(x)
        return x


class _OwnCache(tiny.Wrapped):
    """Makes a cache whatever its configuration says."""

    def __init__(self, static: bool) -> None:
        super().__init__(tiny.llama())
        self.static = static

    def forward(self, ids: Tensor) -> Tensor:
        from transformers import DynamicCache, StaticCache

        config = self.lm.config
        cache = StaticCache(config=config, max_cache_len=ids.shape[1]) if self.static else DynamicCache(config=config)
        return super().forward(ids, past_key_values=cache, use_cache=True)


#: Models whose blocks leave something for later ones, or for later passes.
KEEPING: dict[str, Callable[[], nn.Module]] = {
    "wrapped": lambda: tiny.Wrapped(tiny.llama()),
    "own cache": lambda: _OwnCache(static=False),
    "own static cache": lambda: _OwnCache(static=True),
    **{
        way: functools.partial(_Stack, way)
        for way in ("in place", "adds between", "adds between in place", "hands on a dict", "hands on outputs")
    },
}


@pytest.mark.parametrize("kind", KEEPING)
def test_what_blocks_leave_behind_is_not_replayed(kind: str) -> None:
    check_grams(KEEPING[kind](), list(tiny.tokens().split(1)))


def test_blocks_that_need_no_cache_are_still_taken_one_by_one() -> None:
    for model in (KEEPING["own cache"](), KEEPING["in place"]()):
        stack = find_stack(model, find_layers(model))
        assert stack is not None
        calls = [as_call(batch) for batch in tiny.tokens().split(1)]
        with torch.no_grad():
            assert _record_stack(stack, model, calls, InMemory(model)) is not None


def test_batches_of_other_lengths_have_position_biases_of_their_own() -> None:
    ids = tiny.tokens()
    batches = [{"input_ids": ids[:1, :n], "decoder_input_ids": ids[1:2, : n - 3]} for n in (12, 9)]
    model, seen = tiny.t5(), []

    def visit(layer: Layer, gram: Gram) -> None:
        expected = seen_by_the_whole_model(model, layer, batches)
        torch.testing.assert_close(gram.matrix, expected, rtol=1e-4, atol=1e-6)
        layer.matrix()[:, ::2] = 0
        seen.append(layer.name)

    stream(model, find_layers(model), batches, visit, Seconds())
    assert len(seen) == 32


def test_a_given_cache_is_the_same_in_every_pass() -> None:
    model, ids, batches = tiny.llama(), tiny.tokens(2), list[Any]()
    for row in ids.split(1):
        with torch.no_grad():
            cache = model(row[:, :5], use_cache=True).past_key_values
        batches.append({"input_ids": row[:, 5:], "past_key_values": cache})
    lengths = [batch["past_key_values"].get_seq_length() for batch in batches]

    def visit(layer: Layer, gram: Gram) -> None:
        expected = seen_by_the_whole_model(model, layer, copy.deepcopy(batches))
        torch.testing.assert_close(gram.matrix, expected, rtol=1e-4, atol=1e-6)
        layer.matrix()[:, ::2] = 0

    stream(model, find_layers(model), batches, visit, Seconds())
    assert [batch["past_key_values"].get_seq_length() for batch in batches] == lengths == [5, 5]


def test_inputs_that_the_model_writes_to_stay_as_they_are() -> None:
    class Scaling(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    model, batch = Scaling(*tiny.mlp()), torch.randn(6, 12)
    before, seen = batch.clone(), []

    def visit(layer: Layer, gram: Gram) -> None:
        expected = seen_by_the_whole_model(model, layer, [before.clone()])
        torch.testing.assert_close(gram.matrix, expected, rtol=1e-4, atol=1e-6)
        seen.append(layer.name)

    stream(model, find_layers(model), [batch], visit, Seconds())
    assert torch.equal(batch, before)
    assert len(seen) == 3


def test_a_cache_that_a_batch_asks_for_is_off() -> None:
    call = as_call({"input_ids": tiny.tokens(1), "use_cache": True})
    assert call.kwargs["use_cache"] is False
    assert call.run(tiny.llama()).past_key_values is None


def check_grams(model: nn.Module, batches: list[Tensor]) -> None:
    """Compare every Gram with that of the model pruned so far; every other input of each layer is pruned."""
    layers, visited = find_layers(model), list[str]()

    def visit(layer: Layer, gram: Gram) -> None:
        expected = seen_by_the_whole_model(model, layer, batches)
        torch.testing.assert_close(gram.matrix, expected, rtol=1e-4, atol=1e-6)
        visited.append(layer.name)
        layer.matrix()[:, ::2] = 0  # what follows must see this

    stream(model, layers, batches, visit, Seconds())
    assert sorted(visited) == sorted(layer.name for layer in layers)


@pytest.mark.parametrize("kind", MODELS)
def test_each_gram_is_that_of_the_model_pruned_so_far(kind: str) -> None:
    check_grams(MODELS[kind](), list(tiny.tokens().split(1)))


#: Where a block takes what it adds to a layer's output, by the end of the layer's name.
ADDED_TO = {
    "llama": {"o_proj": "", "down_proj": ".post_attention_layernorm"},
    "gpt2": {"attn.c_proj": "", "mlp.c_proj": ".ln_2"},
    "vit": {"o_proj": "", "fc2": ".norm2"},  # its layer scale is 1 at first
}


@pytest.mark.parametrize("kind", [*MODELS, "mlp", "cnn", "vit"])
def test_the_drift_is_that_of_the_inputs_in_the_dense_model(kind: str) -> None:
    make = {**MODELS, "mlp": tiny.mlp, "cnn": tiny.cnn, "vit": tiny.vit}[kind]
    of_images = {"cnn": tiny.images(), "vit": tiny.images(6)}
    model, original = make(), make()
    inputs = torch.randn(12, 12) if kind == "mlp" else of_images.get(kind, tiny.tokens())
    batches = list(inputs.split(2))
    twins = {layer.name: layer for layer in find_layers(original)}
    dense: dict[str, Tensor] = {}
    drifting: list[str] = []
    added: list[str] = []

    def visit(layer: Layer, gram: Gram) -> None:
        assert gram.held_out is not None
        for found, some in ((gram, batches[:-1]), (gram.held_out, batches[-1:])):
            now, before = (
                torch.cat([layer.unfold(x.float()).flatten(0, 1) for x in inputs_of(which, of, some, apart=True)])
                for which, of in ((model, layer), (original, twins[layer.name]))
            )
            now, before = now.double().transpose(0, 1), before.double().transpose(0, 1)
            if found.drift is None:  # of the first layers
                torch.testing.assert_close(now, before, rtol=0, atol=0)
                continue
            d, cross = layer.shape[1], 2 / now.shape[1] * (before - now).mT @ now
            whole = found.drift.cross.reshape(-1, *found.drift.cross.shape[-2:])
            drift, scale = whole[:, :d], float(found.matrix.abs().max())
            ends = [end for end in ADDED_TO.get(kind, {}) if layer.name.endswith(end)]
            source = ADDED_TO[kind][ends[0]] if ends else None
            if source is None:
                assert whole.shape[1] == d
            else:
                of, place = layer.name.split(".")[:3], source
                there, here = (
                    torch.cat(inputs_of(which, Layer("", which.get_submodule(".".join(of) + place)), some, apart=True))
                    for which in (original, model)
                )
                behind = (there - here).flatten(0, 1).double()
                expected = 2 / len(behind) * behind.T @ now[0]
                torch.testing.assert_close(whole[0, d:], expected, rtol=1e-4, atol=1e-5 * scale)
                added.append(layer.name)
            torch.testing.assert_close(drift, cross, rtol=1e-4, atol=1e-5 * scale)
            assert (found.drift.own is None) == (found is gram)
            drifting.append(layer.name)
        dense[layer.name] = layer.matrix().clone()
        layer.matrix()[:, ::2] = 0
        layer.assign(layer.matrix())

    stream(model, find_layers(model), batches[:-1], visit, Seconds(), batches[-1:], dense)
    assert len(dense) == len(twins)
    assert drifting
    assert bool(added) == (kind in ADDED_TO)
    for layer in find_layers(model):  # the weights that visit has written are back
        assert bool((layer.matrix()[:, ::2] == 0).all())


class _Gate(nn.Module):
    """Sends on only what its first layer makes positive, as a router to experts does."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.expert = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.expert(x[self.gate(x)[:, 0] > 0])


def test_there_is_no_drift_where_the_dense_model_sends_other_tokens() -> None:
    torch.manual_seed(0)
    model, dense, seen = _Gate(), dict[str, Tensor](), []
    batches = list(torch.randn(40, 6).split(10))

    def visit(layer: Layer, gram: Gram) -> None:
        seen.append((layer.name, gram.tokens, gram.drift))
        dense[layer.name] = layer.matrix().clone()
        layer.matrix()[:, ::2] = 0

    stream(model, find_layers(model), batches, visit, Seconds(), (), dense)
    with torch.no_grad():
        tokens = sum(int((model.gate(batch)[:, 0] > 0).sum()) for batch in batches)
    assert seen == [("gate", 40, None), ("expert", tokens, None)]


def test_layers_that_read_one_input_share_a_gram_and_run_in_order() -> None:
    model = tiny.llama()
    grams: dict[str, int] = {}
    order: list[str] = []

    def visit(layer: Layer, gram: Gram) -> None:
        grams[layer.name] = id(gram)
        order.append(layer.name.removeprefix("model.layers.0."))

    stream(
        model,
        find_layers(model, include=["model.layers.0.*"]),
        list(tiny.tokens().split(1)),
        visit,
        Seconds(),
    )
    assert order == [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ]
    first = "model.layers.0."
    assert grams[first + "self_attn.q_proj"] == grams[first + "self_attn.v_proj"]
    assert grams[first + "mlp.gate_proj"] == grams[first + "mlp.up_proj"]
    assert grams[first + "self_attn.q_proj"] != grams[first + "self_attn.o_proj"]


def test_a_plain_model_is_one_block() -> None:
    model = tiny.mlp()
    batches = [torch.randn(8, 12), torch.randn(5, 12)]
    seen = []

    def visit(layer: Layer, gram: Gram) -> None:
        torch.testing.assert_close(gram.matrix, seen_by_the_whole_model(model, layer, batches), rtol=1e-5, atol=1e-7)
        seen.append(layer.name)
        layer.matrix()[0] = 0

    assert find_stack(model, find_layers(model)) is None
    stream(model, find_layers(model), batches, visit, Seconds())
    assert seen == ["0", "2", "4"]


class _Shrinking(nn.Module):
    """Blocks of one type that change the width: no chain of like maps."""

    class Half(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.linear = nn.Linear(width, width // 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(x))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([self.Half(16), self.Half(8)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_blocks_that_are_no_chain_are_streamed_through_the_whole_model() -> None:
    torch.manual_seed(0)
    model, seen = _Shrinking(), []
    stream(
        model,
        find_layers(model),
        [torch.randn(6, 16)],
        lambda layer, gram: seen.append(gram.tokens),
        Seconds(),
    )
    assert seen == [6, 6]
    assert "forward" not in model.blocks[0].__dict__


class _Router(nn.Module):
    """Calls one layer twice and another never."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(self.twice(x))


def test_layers_called_twice_or_never() -> None:
    torch.manual_seed(0)
    model = _Router()
    tokens: dict[str, int] = {}

    def visit(layer: Layer, gram: Gram) -> None:
        tokens[layer.name] = gram.tokens

    stream(model, find_layers(model), [torch.randn(4, 6)], visit, Seconds())
    assert tokens == {"twice": 8, "never": 0}


def test_the_model_comes_back_as_it_was() -> None:
    model = tiny.llama()
    model.train()
    model.config.use_cache = True
    stream(model, find_layers(model), list(tiny.tokens().split(1)), lambda layer, gram: None, Seconds())
    assert model.training
    assert model.config.use_cache is True
    assert not any("forward" in block.__dict__ for block in model.model.layers)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_head_outside_the_stack_sees_the_pruned_stack() -> None:
    model = tiny.llama(tie_word_embeddings=False)
    layers = find_layers(model, prune_head=True)
    batches = list(tiny.tokens().split(1))
    seen = []

    def visit(layer: Layer, gram: Gram) -> None:
        if layer.name == "lm_head":
            expected = seen_by_the_whole_model(model, layer, batches)
            torch.testing.assert_close(gram.matrix, expected, rtol=1e-4, atol=1e-6)
        seen.append(layer.name)
        layer.matrix()[:, 1::2] = 0

    stream(model, layers, batches, visit, Seconds())
    assert seen[-1] == "lm_head"


def test_inputs_may_be_positional_or_named() -> None:
    batch = torch.randn(3, 12)
    model = tiny.mlp()
    expected = model(batch)
    for given in (batch, (batch,), {"input": batch}):
        torch.testing.assert_close(as_call(given).run(model), expected)


def test_stages_follow_the_calls() -> None:
    model = tiny.gpt2()
    block = model.transformer.h[0]
    layers = find_layers(model, include=["transformer.h.0.*"])
    hidden = torch.randn(1, 5, 16)
    stages = find_stages(block, layers, as_call(hidden), None)
    assert [stage.layers[0].name.rsplit(".", 2)[-2:] for stage in stages] == [
        ["attn", "c_attn"],
        ["attn", "c_proj"],
        ["mlp", "c_fc"],
        ["mlp", "c_proj"],
    ]
    assert all(stage.calls == 1 for stage in stages)


def error_of_the_outputs(layer: Layer, inputs: Tensor, weight: Tensor) -> Tensor:
    """Mean squared change of a module's outputs, in float64, per output channel, when it gets another weight."""
    module = copy.deepcopy(layer.module).double()
    before = module(inputs.double())
    Layer("", module).assign(weight.double())
    change = (module(inputs.double()) - before).detach()
    return change.square().mean((0, *range(2, change.ndim)))


def inputs_of(model: nn.Module, layer: Layer, batches: list[Tensor], apart: bool = False) -> Any:
    seen: list[Tensor] = []
    handle = layer.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    return seen if apart else torch.cat(seen)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("chunk", [2**28, 2000])
def test_grams_of_convolutions_are_the_measured_errors_of_their_outputs(
    monkeypatch: pytest.MonkeyPatch, memory: torch.memory_format, chunk: int
) -> None:
    monkeypatch.setattr(Layer.rows, "__defaults__", (chunk,))
    model, batches = tiny.cnn().to(memory_format=memory), list(tiny.images().split(5))
    layers, groups = find_layers(model), []

    def visit(layer: Layer, gram: Gram) -> None:
        weight = layer.matrix().clone()
        keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(len(groups))) > 0.5
        expected = error_of_the_outputs(layer, inputs_of(model, layer, batches), weight * keep)
        torch.testing.assert_close(gram.output_error(weight * ~keep), expected, rtol=1e-5, atol=1e-9)
        layer.prune(keep)  # what follows must see this
        groups.append(gram.groups)

    stream(model, layers, batches, visit, Seconds())
    assert groups == [1, 8, 1, 2, 1]


class _Branches(nn.Module):
    """Several convolutions of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.same = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 3, 3, padding="same")
        self.strided, self.grouped = nn.Conv2d(4, 2, 3, padding=1, stride=2), nn.Conv2d(4, 2, 3, padding=1, groups=2)
        self.linear = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(branch(x) for branch in (self.first, self.same, self.strided, self.grouped, self.linear))


def test_convolutions_share_a_gram_only_if_they_see_the_same_rows() -> None:
    model = _Branches()
    stages = find_stages(model, find_layers(model), as_call(torch.randn(2, 4, 8, 8)), None)
    names = [[layer.name for layer in stage.layers] for stage in stages]
    assert names == [["first", "same"], ["strided"], ["grouped"], ["linear"]]


def test_an_embedding_by_convolution_is_pruned_before_the_stack_sees_it() -> None:
    model, batches = tiny.vit(), list(tiny.images(6).split(2))
    layers, seen = find_layers(model), []
    assert find_stack(model, layers) is not None

    def visit(layer: Layer, gram: Gram) -> None:
        rows = [layer.unfold(inputs).flatten(0, 2) for inputs in inputs_of(model, layer, batches).split(2)]
        x = torch.cat(rows).double()
        torch.testing.assert_close(gram.matrix, 2 / len(x) * x.T @ x, rtol=1e-4, atol=1e-6)
        seen.append(layer.name)
        layer.matrix()[:, ::2] = 0  # what follows must see this

    stream(model, layers, batches, visit, Seconds())
    assert seen[0] == "embeddings.patch_embeddings.projection"
    assert sorted(seen) == sorted(layer.name for layer in layers)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_of_a_sample_the_first_block_with_layers_runs_and_no_other() -> None:
    model = tiny.llama(num_hidden_layers=4)
    layers = [layer for layer in find_layers(model) if ".layers.0." not in layer.name]
    ran: list[int] = []
    for number, block in enumerate(model.model.layers):
        block.register_forward_pre_hook(lambda module, args, number=number: ran.append(number))
    seen: list[str] = []
    sampled = sample(model, layers, list(tiny.tokens().split(1)), lambda layer, gram: seen.append(layer.name))
    assert seen == [layer.name for layer in layers[:7]] == [layer.name for layer in sampled.layers]
    assert set(ran) == {0, 1}
    assert (sampled.blocks, sampled.behind, sampled.stack) == (3, 4, 4)
    assert sampled.passes > 0 < sampled.advance


class _Experts(nn.Module):
    """Four experts; rows go by their first entry, and two experts get none in the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        place = x[:, 0].long().clamp(0, 3)
        return torch.cat([expert(x[place == number]) for number, expert in enumerate(self.experts)])


def test_experts_that_get_nothing_at_first_have_grams_of_their_own() -> None:
    torch.manual_seed(0)
    model, batches = _Experts(), [torch.rand(30, 6), 3.9 * torch.rand(40, 6)]
    batches[0][:, 0] *= 1.9  # nothing for the last two
    seen: dict[str, int] = {}

    def visit(layer: Layer, gram: Gram) -> None:
        torch.testing.assert_close(gram.matrix, seen_by_the_whole_model(model, layer, batches), rtol=1e-5, atol=1e-7)
        seen[layer.name] = gram.tokens

    stream(model, find_layers(model), batches, visit, Seconds())
    assert len(seen) == 4
    assert sum(seen.values()) == 70
    assert min(seen.values()) > 0


class _Tower(nn.Module):
    """A tower of twelve layers that never runs, beside what does."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.linear = nn.ModuleList(nn.Linear(6, 6) for _ in range(12)), nn.Linear(6, 6)
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.linear(x)


def test_layers_that_never_run_take_one_pass_together() -> None:
    model, tokens = _Tower(), dict[str, int]()
    stream(
        model,
        find_layers(model),
        [torch.randn(3, 6)] * 5,
        lambda layer, gram: tokens.__setitem__(layer.name, gram.tokens),
        Seconds(),
    )
    assert [name for name, count in tokens.items() if count] == ["linear"]
    assert len(tokens) == 13
    assert model.passes <= 1 + 5 + 5  # to find stages, for the Gram, and to look for the others


class _Chance(nn.Module):
    """Draws random numbers in evaluation mode, which do or do not reach its last layer."""

    def __init__(self, matters: bool) -> None:
        super().__init__()
        self.first, self.last, self.matters = nn.Linear(6, 6), nn.Linear(6, 6), matters

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.rand(x.shape)
        y = self.first(x)
        return self.last(y + drawn if self.matters else y)


def test_a_model_of_chance_is_refused_unless_no_layer_sees_it() -> None:
    model = _Chance(matters=True)
    before = model.first.weight.detach().clone()
    with pytest.raises(InputError, match="'last' has other inputs each time"):
        prune(model, [torch.randn(8, 6)], 0.5, method="wanda")
    assert torch.equal(model.first.weight, before)
    assert prune(_Chance(matters=False), [torch.randn(8, 6)], 0.5, method="wanda").layers


class _Twice(nn.Module):
    """A block that is run again behind the stack, whose first layer also stands ahead of it."""

    def __init__(self, blocks: int, again: str) -> None:
        super().__init__()
        self.embedding, self.again = nn.Linear(8, 8), again
        self.blocks = nn.ModuleList(_Mapping() for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        if self.again == "block":
            x = self.blocks[0](x)
        return self.embedding(x) if self.again == "layer" else x


class _Mapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def _shared_by_two_blocks(model: _Twice) -> None:
    model.blocks[1].up = model.blocks[0].up


def _one_weight_for_two_blocks(model: _Twice) -> None:
    model.blocks[2].down.weight = model.blocks[0].down.weight


@pytest.mark.gate(9)
@pytest.mark.parametrize("again", ["block", "layer", "none"])
@pytest.mark.parametrize("share", [lambda model: None, _shared_by_two_blocks, _one_weight_for_two_blocks])
@pytest.mark.parametrize("update", ["none", "refit"])
def test_errors_of_what_runs_several_times_are_measured_at_last(again: str, share: Any, update: str) -> None:
    torch.manual_seed(0)
    model = _Twice(3, again)
    share(model)
    dense, batches = weights(model), [torch.randn(6, 8), torch.randn(4, 8)]
    report = prune(model, batches, 0.5, update=update, guard=0)
    found = measured(model, dense, batches)
    assert {layer.name: layer.relative_after for layer in report.layers} == pytest.approx(found, abs=1e-6, rel=0)
    assert len(found) == len(report.layers)


def test_a_run_that_goes_on_measures_again_what_runs_several_times(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return _Twice(2, "block").eval()

    batches = list(torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1)))
    whole = prune(make(), batches, 0.5)

    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning.LayerRun, "_measure_again", stop)
        with pytest.raises(KeyboardInterrupt):
            prune(make(), batches, 0.5, run_folder=tmp_path / "run")
    resumed = prune(make(), batches, 0.5, run_folder=tmp_path / "run", resume=True)
    for one, other in zip(whole.layers, resumed.layers, strict=True):
        assert (one.error_before, one.error_after, one.notes) == (other.error_before, other.error_after, other.notes)
    assert any(layer.notes for layer in whole.layers)
