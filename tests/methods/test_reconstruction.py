"""Kept weights of decoder layers fitted together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from qubo_prune import Chain, InputError, prune
from qubo_prune.clock import Deadline
from qubo_prune.methods.base import JointTask
from qubo_prune.methods.reconstruction import Distillation, Reconstruction
from qubo_prune.methods.refit import Refit
from qubo_prune.methods.wanda import Wanda
from qubo_prune.models.layers import find_layers


class Gated(nn.Module):
    """Three layers whose errors meet behind a product."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.down(torch.tanh(self.gate(x)) * self.up(x))
        return found


def task_of(seed: int = 0, windows: int = 6, counted: int = 4, **changes: Any) -> tuple[JointTask, list[Tensor]]:
    """A pruned module, and what its dense form gave."""
    torch.manual_seed(1)
    module, inputs = Gated(), [torch.randn(1, 20, 8) for _ in range(windows)]
    with torch.no_grad():
        targets = [module(x) for x in inputs]
        layers = find_layers(module)
        keep = {layer: torch.rand(layer.shape) < 0.5 for layer in layers}
        for layer, mask in keep.items():
            layer.prune(mask)
    given = {
        "module": module,
        "keep": keep,
        "output": lambda at: module(inputs[at]),
        "target": lambda at: targets[at],
        "counted": counted,
        "total": windows,
        "seed": seed,
        "deadline": Deadline(None),
    }
    return JointTask(**{**given, **changes}), targets


def error_by_hand(task: JointTask, numbers: range) -> float:
    values = []
    with torch.no_grad():
        for at in numbers:
            output, target = task.output(at).double()[0], task.target(at).double()[0]
            values += [float((o - t) @ (o - t) / (t @ t)) for o, t in zip(output, target, strict=True)]
    return sum(values) / len(values)


def test_the_error_falls_and_zeros_stay() -> None:
    task, _ = task_of()
    before = error_by_hand(task, range(4, 6))
    biases = {name: value.clone() for name, value in task.module.named_parameters() if name.endswith("bias")}
    found = Reconstruction(learning_rate=0.01, epochs=10).fit(task)
    assert found.before == pytest.approx(before, rel=1e-4)
    assert found.after < 0.8 * found.before
    for layer, mask in task.keep.items():
        weight = found.weights[layer.name]
        assert not bool(weight[~mask].any())
        assert bool((weight[mask] != 0).all())
        layer.assign(weight)
    assert error_by_hand(task, range(4, 6)) == pytest.approx(found.after, rel=1e-4)
    for name, value in task.module.named_parameters():
        assert value.requires_grad
        assert value.grad is None
        assert name not in biases or torch.equal(value, biases[name])


@pytest.mark.parametrize("settings", [{"learning_rate": 100.0}, {"epochs": 0}])
def test_what_does_not_help_is_taken_back(settings: dict[str, Any]) -> None:
    task, _ = task_of()
    before = {layer.name: layer.matrix().clone() for layer in task.keep}
    found = Reconstruction(**settings).fit(task)
    assert found.after == found.before
    assert all(torch.equal(found.weights[name], weight) for name, weight in before.items())


def test_held_out_inputs_choose_the_epoch() -> None:
    """With targets of noise behind the fit, what the calibration gains is lost on held-out inputs."""
    torch.manual_seed(3)
    noise = [torch.randn(1, 20, 8) * 3 for _ in range(6)]
    task, targets = task_of()
    noisy = [target + (more if at < 4 else 0) for at, (target, more) in enumerate(zip(targets, noise, strict=True))]
    judged, _ = task_of(target=lambda at: noisy[at])
    alone, _ = task_of(target=lambda at: noisy[at], counted=4, total=4)
    settings = Reconstruction(learning_rate=0.05, epochs=20)
    guarded, fitted = settings.fit(judged), settings.fit(alone)
    assert fitted.after < fitted.before
    assert guarded.after <= guarded.before
    assert guarded.before == pytest.approx(error_by_hand(task, range(4, 6)), rel=1e-4)


def test_the_seed_decides_and_time_ends_it() -> None:
    found = [Reconstruction(learning_rate=0.01).fit(task_of(seed)[0]).weights for seed in (1, 1, 2)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name], found[2][name]) for name in found[0])
    late = Reconstruction(epochs=10**6).fit(task_of(deadline=Deadline(0.2))[0])
    assert late.after <= late.before


def states(model: nn.Module, ids: Tensor) -> Tensor:
    """Hidden states behind the last decoder layer."""
    with torch.no_grad():
        found: Tensor = model.model(ids).last_hidden_state
        return found


KINDS: list[Callable[[], Any]] = [tiny.llama, tiny.gpt2, lambda: tiny.llama().to(torch.bfloat16)]


@pytest.mark.parametrize("kind", KINDS, ids=["llama", "gpt2", "bfloat16"])
def test_decoder_layers_of_a_run_come_nearer_to_the_dense_ones(kind: Callable[[], Any]) -> None:
    ids, dense = tiny.tokens(16, 24), kind()
    batches = list(torch.split(ids, 1))
    ends = {}
    for update in ("refit", "block"):
        model = kind()
        chain = Chain([Wanda(), Refit(), *([Reconstruction(learning_rate=1e-3)] if update == "block" else [])])
        report = prune(model, batches, 0.5, method=chain, guard=3, correction=0.5)
        assert report.totals()["kept"] == report.totals()["weights"] // 2
        for name, mask in report.masks.items():
            assert not bool(dict(model.named_parameters())[name][~mask].any())
        with torch.no_grad():
            ends[update] = float((model(ids).logits - dense(ids).logits).float().square().mean())
        assert (report.seconds["fit"] > 0) == (update == "block")
    assert ends["block"] < ends["refit"]


def divergence(one: Tensor, other: Tensor) -> float:
    """Mean of ``KL(one || other)`` over the tokens, from logits."""
    p, q = (logits.double().softmax(-1) for logits in (one, other))
    return float((p * (p / q).log()).sum(-1).mean())


def test_distillation_brings_the_predictions_nearer_and_keeps_zeros() -> None:
    ids, dense = tiny.tokens(16, 24), tiny.llama()
    ends = {}
    for steps in ([], [Distillation(learning_rate=3e-3, epochs=3)], [Reconstruction(1e-3), Distillation(3e-3)]):
        model = tiny.llama()
        report = prune(model, list(torch.split(ids, 1)), 0.4, method=Chain([Wanda(), Refit(), *steps]), guard=3)
        assert report.totals()["kept"] == sum(int(mask.sum()) for mask in report.masks.values())
        for name, mask in report.masks.items():
            assert not bool(dict(model.named_parameters())[name][~mask].any())
        with torch.no_grad():
            ends[len(steps)] = divergence(dense(ids).logits, model(ids).logits)
        names = {name for name, _ in model.named_parameters()}
        assert names == {name for name, _ in dense.named_parameters()}
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
        for name, parameter in dense.named_parameters():  # norms and embeddings are the dense ones
            assert name in report.masks or torch.equal(parameter, dict(model.named_parameters())[name])
    assert ends[1] < 0.9 * ends[0]
    assert ends[2] < ends[0]


def test_what_distillation_lowers_is_the_divergence() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(1, 5, 7) for _ in range(2)]
    task, _ = task_of(gives_logits=True)
    found = Distillation().distance(logits[1], logits[0], task)
    assert found.shape == (1, 5)
    assert float(found.mean()) == pytest.approx(divergence(logits[0], logits[1]), rel=1e-5)
    task, _ = task_of()
    found = Distillation().distance(logits[1], logits[0], task)
    torch.testing.assert_close(found, Reconstruction().distance(logits[1], logits[0], task))


@pytest.mark.parametrize("update", ["block", "distill", "block+distill"])
def test_errors_of_a_report_are_those_of_the_fitted_weights(update: str) -> None:
    ids, dense, model = tiny.tokens(12, 24), tiny.llama(), tiny.llama()
    report = prune(model, list(torch.split(ids, 1)), 0.5, method="wanda", update=update)
    seen: list[Tensor] = []
    layer = model.model.layers[1].mlp.down_proj
    handle = layer.register_forward_hook(
        lambda module, args, output: seen.append(args[0].reshape(-1, layer.in_features))
    )
    with torch.no_grad():
        model(ids)
        handle.remove()
        inputs, old = torch.cat(seen).double(), dense.model.layers[1].mlp.down_proj.weight.double()
        error = (inputs @ (layer.weight.double() - old).T).square().sum(1).mean()
    told = next(one for one in report.layers if one.name == "model.layers.1.mlp.down_proj")
    assert told.error_after == pytest.approx(float(error), rel=1e-4)


@pytest.mark.parametrize("update", ["block", "distill"])
def test_a_model_without_decoder_layers_is_fitted_as_a_whole(update: str) -> None:
    images = tiny.images()
    model = tiny.cnn()
    report = prune(model, list(torch.split(images, 4)), 0.4, method="wanda", update=update, guard=1)
    assert report.seconds["fit"] > 0
    for name, mask in report.masks.items():
        assert not bool(dict(model.named_parameters())[name][~mask].any())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "loss", "update": "block"}, "blocks of the loss come after them"),
        ({"update": "blok"}, "There is no update 'blok' .did you mean 'block'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prune(tiny.llama(), tiny.tokens(), 0.5, **settings)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Wanda(), Reconstruction(), Refit()], "comes behind the steps of single layers"),
        ([Wanda(), Distillation(), Reconstruction()], "before what fits all of them"),
        ([Wanda(), Reconstruction(), Reconstruction()], "two steps fit the same layers together"),
    ],
)
def test_what_fits_layers_together_comes_in_order(steps: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Chain(steps)


def test_a_run_on_the_disk_is_refused(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="the updates 'block' and 'distill' fit layers to the dense ones"):
        prune(
            str(tmp_path / "model"),
            tiny.tokens(),
            0.5,
            method="wanda",
            update="block",
            weights="disk",
            output=tmp_path / "out",
        )
