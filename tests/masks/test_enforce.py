from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import optimizer as torch_optimizer

from qubo_prune.errors import InputError
from qubo_prune.masks import KeepMasks
from qubo_prune.masks.enforce import enforce, merge_low_rank
from qubo_prune.models.layers import find_layers

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adadelta": lambda p: torch.optim.Adadelta(p),
}


def random_masks(model: nn.Module, seed: int = 0, density: float = 0.5) -> KeepMasks:
    draw = torch.Generator().manual_seed(seed)
    layers = find_layers(model)
    return KeepMasks(
        {layer.parameter_name: torch.rand(layer.parameter.shape, generator=draw) < density for layer in layers}
    )


def assert_zero(model: nn.Module, masks: KeepMasks) -> None:
    """Exactly ``+0.0``: no sign, no NaN."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, keep in masks.items():
        pruned = parameters[name].detach()[~keep]
        assert torch.equal(pruned, torch.zeros_like(pruned))
        assert not pruned.signbit().any()


def train(
    model: nn.Module, loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, masks: KeepMasks
) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for _ in range(3):
        optimizer.zero_grad()
        loss().backward()
        for name, keep in masks.items():
            assert not parameters[name].grad[~keep].any()
        optimizer.step()
        assert_zero(model, masks)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("build", [tiny.mlp, tiny.cnn, tiny.vit, tiny.llama, tiny.gpt2], ids=lambda b: b.__name__)
def test_training_keeps_zeros_and_names(build, optimizer):
    model = build().train()
    masks, names = random_masks(model), list(model.state_dict())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def loss() -> torch.Tensor:
        if build in (tiny.llama, tiny.gpt2):
            return model(input_ids=tiny.tokens(), labels=tiny.tokens()).loss
        inputs = torch.randn(8, 12, generator=torch.Generator().manual_seed(1)) if build is tiny.mlp else tiny.images(8)
        outputs = model(inputs)
        return (outputs if isinstance(outputs, torch.Tensor) else outputs.last_hidden_state).square().mean()

    with enforce(model, masks):
        assert list(model.state_dict()) == names
        assert_zero(model, masks)
        train(model, loss, OPTIMIZERS[optimizer](model.parameters()), masks)
    for name, keep in masks.items():
        assert (model.get_parameter(name).detach() != before[name])[keep].any()
    assert masks.verify(model) == {}


def masked_by_hand(weights: list[torch.Tensor], keeps: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    first, second = (weight * keep for weight, keep in zip(weights, keeps, strict=True))
    return F.linear(F.linear(x, first).tanh(), second).square().mean()


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(OPTIMIZERS)), st.integers(0, 2**16), st.floats(0, 1))
def test_kept_weights_train_as_if_the_mask_were_part_of_the_model(kind, seed, density):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 4, generator=draw)
    weights = [torch.randn(shape, generator=draw) for shape in ((6, 4), (3, 6))]
    keeps = [torch.rand(weight.shape, generator=draw) < density for weight in weights]

    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False))
    model.load_state_dict(dict(zip(model.state_dict(), weights, strict=True)))
    enforce(model, dict(zip(model.state_dict(), keeps, strict=True)))
    optimizer = OPTIMIZERS[kind](model.parameters())
    reference = [(weight * keep).requires_grad_() for weight, keep in zip(weights, keeps, strict=True)]
    other = OPTIMIZERS[kind](reference)
    for _ in range(4):
        for loss, steps in ((model(x).square().mean(), optimizer), (masked_by_hand(reference, keeps, x), other)):
            steps.zero_grad()
            loss.backward()
            steps.step()
        for found, expected, keep in zip(model.parameters(), reference, keeps, strict=True):
            assert torch.equal(found.detach()[~keep], torch.zeros(int((~keep).sum())))
            torch.testing.assert_close(found.detach(), expected.detach() * keep)


def test_momentum_of_before_does_not_bring_pruned_weights_back():
    model = tiny.mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    model(torch.ones(2, 12)).square().sum().backward()
    optimizer.step()
    masks = random_masks(model)
    with enforce(model, masks):
        train(model, lambda: model(torch.ones(2, 12)).square().sum(), optimizer, masks)


def test_an_optimizer_with_a_closure_sees_zeros_in_every_evaluation():
    model = tiny.mlp()
    masks = random_masks(model)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    seen = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 12)).square().sum()
        loss.backward()
        seen.append(masks.verify(model))
        return loss

    with enforce(model, masks):
        optimizer.step(closure)
        assert_zero(model, masks)
    assert len(seen) > 1
    assert seen == [{}] * len(seen)


@pytest.mark.parametrize("named", ["one", "the other", "both"])
def test_tied_weights_need_one_name(named):
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    keep = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    names = {"one": ["embed.weight"], "the other": ["head.weight"], "both": ["embed.weight", "head.weight"]}[named]
    masks = KeepMasks(dict.fromkeys(names, keep))
    with enforce(model, masks):
        ids = torch.arange(6)
        train(
            model,
            lambda: F.cross_entropy(model["head"](model["embed"](ids)), ids.flip(0)),
            OPTIMIZERS["adamw"](model.parameters()),
            masks,
        )
        with torch.no_grad():
            model["embed"].weight.data.add_(1)
        assert torch.equal(model["head"](torch.eye(4)), (keep * model["embed"].weight).T)
    assert_zero(model, masks)


def test_updates_without_an_optimizer_are_gone_at_the_next_call():
    model = tiny.mlp()
    masks, x = random_masks(model), torch.ones(2, 12)
    with enforce(model, masks) as enforced:
        for update in (lambda p: p.data.add_(1), lambda p: setattr(p, "data", torch.ones_like(p))):
            for parameter in model.parameters():
                update(parameter)
            assert masks.verify(model)
            model(x)
            assert_zero(model, masks)
        model.load_state_dict(tiny.mlp().state_dict())
        model(x)
        assert_zero(model, masks)
        model.load_state_dict(tiny.mlp().state_dict(), assign=True)
        enforced.zero()
        assert_zero(model, masks)
        model[0].weight.data.fill_(torch.nan)
        with torch.inference_mode():
            model[0](x)
        assert_zero(model, KeepMasks({"0.weight": masks["0.weight"]}))
        model[0].weight.data.fill_(1)
    assert_zero(model, masks)


def test_several_calls_in_one_graph_and_accumulation():
    model = tiny.mlp()
    masks, x = random_masks(model), torch.ones(2, 12)
    with enforce(model, masks):
        first, second = model(x).square().sum(), model(2 * x).square().sum()
        (first + second).backward()
        model(x).sum().backward()
        for name, keep in masks.items():
            assert not model.get_parameter(name).grad[~keep].any()


def test_a_gradient_that_is_not_finite_is_zero_where_pruned():
    model = nn.Linear(2, 1, bias=False)
    with enforce(model, {"weight": torch.tensor([[True, False]])}):
        (model(torch.tensor([[1.0, torch.inf]])) * torch.tensor(torch.inf)).sum().backward()
        assert model.weight.grad[0, 1] == 0
        (gradient,) = torch.autograd.grad(model(torch.ones(1, 2)).sum(), model.weight)
        assert gradient.tolist() == [[1, 0]]


def test_frozen_weights_and_those_thawed_later():
    model = tiny.mlp()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    masks = random_masks(model)
    with enforce(model, masks):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        train(model, lambda: model(torch.ones(2, 12)).sum(), OPTIMIZERS["sgd"](model.parameters()), masks)


def test_another_type():
    model = tiny.mlp()
    masks = random_masks(model)
    with enforce(model, masks):
        model.to(torch.bfloat16)
        x = torch.ones(2, 12, dtype=torch.bfloat16)
        train(model, lambda: model(x).sum(), OPTIMIZERS["adamw"](model.parameters()), masks)
        assert model[0].weight.dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda():
    model = tiny.mlp()
    masks = random_masks(model)
    with enforce(model, masks):
        model.cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, fused=True)
        scaler = torch.amp.GradScaler("cuda")
        for _ in range(3):
            with torch.autocast("cuda", torch.float16):
                loss = model(torch.ones(2, 12, device="cuda")).float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            assert masks.verify(model) == {}


def test_removal_frees_the_weights_and_leaves_no_hooks():
    model = tiny.mlp()
    masks, hooks = random_masks(model), len(torch_optimizer._global_optimizer_post_hooks)
    enforced = enforce(model, masks)
    with enforce(model, masks):
        pass
    assert len(torch_optimizer._global_optimizer_post_hooks) == hooks + 1
    enforced.remove()
    enforced.remove()
    assert len(torch_optimizer._global_optimizer_post_hooks) == hooks
    assert not any(module._forward_pre_hooks for module in model.modules())
    model(torch.ones(2, 12)).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert masks.verify(model)


def test_two_sets_of_masks_hold_together():
    model = tiny.mlp()
    first, second = random_masks(model, seed=1), random_masks(model, seed=2)
    with enforce(model, first), enforce(model, second):
        train(model, lambda: model(torch.ones(2, 12)).sum(), OPTIMIZERS["adamw"](model.parameters()), first)
        assert_zero(model, second)


def test_copies_and_pickles():
    model = tiny.mlp()
    masks = random_masks(model)
    buffer = io.BytesIO()
    with enforce(model, masks):
        twin = copy.deepcopy(model)
        torch.save(model, buffer)
        dense = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for parameter in twin.parameters():
            parameter.data.fill_(1)
        twin(torch.ones(2, 12))
        assert_zero(twin, masks)
        assert all(torch.equal(parameter, dense[name]) for name, parameter in model.named_parameters())
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    loaded[0].weight.data.fill_(1)
    loaded(torch.ones(2, 12))
    assert_zero(loaded, masks)


def test_functional_calls_use_the_weights_they_are_given():
    model = tiny.mlp()
    masks, x = random_masks(model), torch.ones(1, 12)
    with enforce(model, masks):
        ones = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}

        def loss(weights: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(model, weights, (sample,)).sum()

        gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(ones, x[None])
        assert gradients["0.weight"].all()


def test_a_forgotten_model_is_freed():
    model = tiny.mlp()
    gone = weakref.ref(model)
    enforced = enforce(model, random_masks(model))
    del model
    gc.collect()
    assert gone() is None
    enforced.remove()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "no masks to enforce"),
        ({"0.wait": torch.ones(20, 12, dtype=torch.bool)}, r"did you mean '0.weight'.*pass the model"),
        ({"0.weight": torch.ones(12, 20, dtype=torch.bool)}, r"shape \(12, 20\).*the shape \(20, 12\).*masks are bool"),
        ({"0.weight": torch.ones(20, 12)}, "torch.float32.*masks are bool"),
    ],
)
def test_masks_that_do_not_fit(masks, message):
    model = tiny.mlp()
    with pytest.raises(InputError, match=message):
        enforce(model, masks)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_masks_of_one_weight_that_differ():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    with pytest.raises(InputError, match=r"'b\.weight' differs"):
        enforce(model, {"a.weight": torch.eye(2) == 1, "b.weight": torch.eye(2) == 0})


def test_weights_of_whole_numbers():
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="floating-point"):
        enforce(model, {"weight": torch.eye(2) == 1})


# --- merging ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 3), st.integers(0, 2**16), st.booleans())
def test_merging_adds_what_the_mask_lets_through(rows, columns, rank, seed, kernel):
    draw = torch.Generator().manual_seed(seed)
    tail = (columns, 2, 1) if kernel else (columns,)
    weight, a = torch.randn(rows, *tail, generator=draw), torch.randn(rank, *tail, generator=draw)
    b, keep = torch.randn(rows, rank, generator=draw), torch.rand(rows, *tail, generator=draw) < 0.5
    before = weight.clone()
    merged, lost = merge_low_rank(weight, a, b, 0.5, keep)
    update = 0.5 * torch.einsum("or,r...->o...", b.double(), a.double())
    torch.testing.assert_close(merged, ((weight + update) * keep).float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(weight, before)
    assert merged.dtype == weight.dtype
    assert not merged[~keep].any()
    if update.any():
        assert lost == pytest.approx(float((update * ~keep).norm() / update.norm()), abs=1e-5)
    else:
        assert lost == 0


def test_merging_rounds_once():
    weight = torch.full((1, 1), 1.0, dtype=torch.bfloat16)
    a, b = torch.full((2, 1), 2.0**-9), torch.ones(1, 2)  # each half a step of bfloat16 is too small on its own
    merged, lost = merge_low_rank(weight, a, b, 2.0, torch.tensor([[True]]))
    assert merged.item() == 1 + 2.0**-7
    assert merged.dtype == torch.bfloat16
    assert lost == 0


def test_merging_into_a_transposed_weight():
    draw = torch.Generator().manual_seed(0)
    weight, keep = torch.randn(4, 3, generator=draw), torch.rand(4, 3, generator=draw) < 0.5
    a, b = torch.randn(1, 4, generator=draw), torch.randn(3, 1, generator=draw)
    merged, _ = merge_low_rank(weight.T, a, b, 1.0, keep.T)
    torch.testing.assert_close(merged.T, (weight + (b @ a).T) * keep)


@pytest.mark.parametrize(
    ("a", "b", "keep"),
    [((3, 2), (3, 2), (2, 3)), ((1, 3), (1, 2), (2, 3)), ((1, 3), (2, 2), (2, 3)), ((3,), (2, 1), (2, 3))],
)
def test_merging_what_does_not_fit(a, b, keep):
    with pytest.raises(InputError, match=r"pass A as \(r, d_in\)"):
        merge_low_rank(torch.zeros(2, 3), torch.zeros(a), torch.zeros(b), 1.0, torch.ones(keep, dtype=torch.bool))
    with pytest.raises(InputError, match="The keep mask is"):
        merge_low_rank(torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(2, 1), 1.0, torch.ones(3, 2, dtype=torch.bool))
