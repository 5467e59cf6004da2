"""The main job where kept weights change: updates, compensated blocks, budgets between layers, the guard."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny
import torch
import unseen
from published import PUBLISHED, UPDATES
from torch import nn

import qubo_prune.methods.refit as fitting
from qubo_prune import InputError, prune
from qubo_prune.data.evaluation import perplexity
from qubo_prune.data.text import token_windows
from qubo_prune.hessian import Gram
from qubo_prune.masks import Pattern, keep_highest
from qubo_prune.methods.scores import score
from qubo_prune.models.layers import find_layers

SHAPES = [("row", 0.5), ("layer", 0.37), ("2:4", 0.5)]


def run(model: nn.Module, **settings: Any) -> Any:
    return prune(model, tiny.tokens(), **{"density": 0.5, **settings})


def correlated(count: int = 400, width: int = 24, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw) @ torch.randn(width, width, generator=draw)


def linear(width: int = 24, rows: int = 12) -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(width, rows)


def assert_exact(model: nn.Module, report: Any, pattern: str, density: float) -> None:
    for layer in find_layers(model):
        keep = layer.as_matrix(report.masks[layer.parameter_name])
        assert Pattern.parse(pattern).violations(keep, density) == 0
        assert bool((layer.matrix()[~keep] == 0).all())
    assert report.masks.verify(model) == {}


@pytest.mark.gate(2)
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
@pytest.mark.parametrize(("pattern", "density"), SHAPES)
def test_compensated_blocks_hold_their_counts_and_beat_their_warm_start(
    make: Any, pattern: str, density: float
) -> None:
    model = make()
    report = run(model, pattern=pattern, density=density, method="compensated")
    assert_exact(model, report, pattern, density)
    assert report.relative_error < report.relative_error_before  # ADMM's weights
    assert report.settings["update"] == "refit"
    assert report.settings["warm_start"] == "admm"
    assert report.settings["block_size"] == 128


@pytest.mark.gate(12)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("method", ["wanda", "admm", "gram", *(name for name in PUBLISHED if name != "admm")])
def test_every_method_takes_every_update(method: str, update: str) -> None:
    model, inputs = linear(), correlated()
    dense = model.weight.detach().clone()
    report = prune(model, inputs, method=method, update=update)
    keep = report.masks["weight"]
    assert_exact(model, report, "row", 0.5)
    if update == "none":
        assert torch.equal(model.weight, dense * keep)
    else:
        masked = float(((inputs @ (dense * ~keep).T) ** 2).sum())
        assert float(((inputs @ (dense - model.weight.detach()).T) ** 2).sum()) < masked


def test_a_refit_is_the_least_squares_fit() -> None:
    model, inputs = linear(), correlated()
    wanted = inputs.double() @ model.weight.detach().double().T
    report = prune(model, inputs, method="wanda", update="refit", damping=0.0)
    for row, keep in enumerate(report.masks["weight"]):
        best = torch.linalg.lstsq(inputs.double()[:, keep], wanted[:, row]).solution
        torch.testing.assert_close(model.weight.detach()[row, keep].double(), best, rtol=1e-4, atol=1e-5)


def test_published_methods_update_weights_as_they_do_by_default() -> None:
    for name, peer in PUBLISHED.items():
        model = linear()
        dense = model.weight.detach().clone()
        report = prune(model, correlated(), method=name)
        changed = not torch.equal(model.weight.detach(), dense * report.masks["weight"])
        assert changed == peer.traits.updates
        assert report.settings["update"] == ("own" if peer.traits.updates else "none")


def test_the_model_gets_its_weights_back_if_an_update_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []

    def failing(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 5:
            raise RuntimeError("in the middle")
        return original(*given)

    original = fitting.refit
    monkeypatch.setattr(fitting, "refit", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        run(model, method="compensated")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_without_time_the_layers_have_the_weights_of_the_warm_start() -> None:
    hurried, admm = tiny.llama(), tiny.llama()
    report = run(hurried, method="compensated", max_time=1e-6)
    run(admm, method="admm", correction=0.5)
    assert all(torch.equal(a, b) for a, b in zip(hurried.parameters(), admm.parameters(), strict=True))
    assert all("has the weights of its warm start" in " ".join(layer.notes) for layer in report.layers)
    json.dumps(report.to_dict(), allow_nan=False)


# --- correction of what the layers before have done


def dense_output_error(model: nn.Module, dense: nn.Module) -> float:
    with torch.no_grad():
        return float((model(tiny.tokens()).logits - dense(tiny.tokens()).logits).square().mean())


@pytest.mark.parametrize("method", ["admm", "sparsegpt", "gram"])
def test_correction_brings_the_outputs_nearer_to_the_dense_model(method: str) -> None:
    plain, whole, dense = tiny.llama(), tiny.llama(), tiny.llama()
    update = "refit" if method == "gram" else None
    run(plain, method=method, update=update, damping=0.1)
    report = run(whole, method=method, update=update, correction=1.0, damping=0.1)
    assert_exact(whole, report, "row", 0.5)
    assert dense_output_error(whole, dense) < dense_output_error(plain, dense)
    assert report.settings["correction"] == 1.0
    assert report.settings["damping"] == 0.1


def test_compensated_blocks_correct_halfway_unless_told_otherwise() -> None:
    settings = run(tiny.llama(), method="compensated").settings
    assert (settings["correction"], settings["damping"]) == (0.5, 0.3)
    settings = run(tiny.llama(), method="compensated", correction=0.0).settings
    assert (settings["correction"], settings["damping"]) == (0.0, 0.01)
    settings = run(tiny.llama(), method="compensated", update="none").settings
    assert settings["correction"] == 0.0
    assert run(tiny.llama(), method="admm").settings["correction"] == 0.0


def test_held_out_errors_of_a_correction_are_those_to_the_dense_outputs() -> None:
    model, dense, batches = tiny.mlp(), tiny.mlp(), list(torch.randn(60, 12).split(20))
    report = prune(model, batches, method="admm", correction=0.5, guard=1)
    held_out, layer = batches[-1], report.layers[1]
    with torch.no_grad():
        wanted, made = dense[:3](held_out) - dense[2].bias, model[:3](held_out) - model[2].bias
        power = model[:2](held_out) @ dense[2].weight.T
    expected = float((made - wanted).square().sum() / power.square().sum())
    assert layer.held_out_after == pytest.approx(expected, rel=1e-4)


# --- held-out perplexity


def test_held_out_windows_judge_the_whole_model(tmp_path: Any) -> None:
    text = tmp_path / "text.txt"
    text.write_text(tiny.text(), encoding="utf-8")
    model, dense, tokenizer = tiny.llama(), tiny.llama(), tiny.tokenizer()
    settings = {"samples": 4, "sequence_length": 16, "tokenizer": tokenizer}
    report = prune(model, str(text), 0.5, method="admm", guard=2, **settings)
    windows = token_windows(tokenizer, str(text), "calibration", 4, 16, 2).held_out
    assert report.held_out_perplexity == (perplexity(dense, windows).perplexity, perplexity(model, windows).perplexity)
    assert "held-out perplexity" in str(report)
    assert report.to_dict()["held_out_perplexity"] == list(report.held_out_perplexity)
    assert prune(tiny.llama(), str(text), 0.5, method="wanda", **settings).held_out_perplexity is None
    assert run(tiny.llama(), method="admm", guard=2).held_out_perplexity is None


# --- the guard


def test_a_layer_whose_held_out_error_rises_gets_its_warm_start_back() -> None:
    # fitted to few inputs without damping, a refit is worse on others than the mask alone
    torch.manual_seed(0)
    few, others = torch.randn(14, 24), torch.randn(400, 24)
    batches = [few, others]
    model, free = linear(), linear()
    dense = model.weight.detach().clone()
    report = prune(model, batches, method="gram", update="refit", damping=1e-9, guard=1)
    (layer,) = report.layers
    assert layer.reverted
    assert layer.held_out_after > layer.held_out_before > 0
    assert report.totals()["reverted"] == [layer.name]
    assert torch.equal(model.weight, dense * report.masks["weight"])
    assert_exact(model, report, "row", 0.5)
    unguarded = prune(free, batches[:1], method="gram", update="refit", damping=1e-9)
    assert not unguarded.layers[0].reverted
    assert not torch.equal(free.weight, dense * unguarded.masks["weight"])


def test_held_out_errors_are_those_of_the_held_out_inputs() -> None:
    model, (seen, held_out) = linear(), correlated(800).split(400)
    dense = model.weight.detach().clone().double()
    report = prune(model, [seen, held_out], method="compensated", guard=1)
    (layer,) = report.layers
    assert not layer.reverted
    lost = held_out.double() @ (dense - model.weight.detach().double()).T
    power = held_out.double() @ dense.T
    assert layer.held_out_after == pytest.approx(float((lost**2).sum() / (power**2).sum()), rel=1e-4)
    assert layer.tokens == 400


def test_a_guard_needs_batches_to_hold_out() -> None:
    with pytest.raises(InputError, match="guard is 1 but the calibration holds 1 batches"):
        prune(linear(), [correlated()], guard=1)
    with pytest.raises(InputError, match="guard is -1"):
        prune(linear(), [correlated()], guard=-1)


def test_inputs_that_have_not_moved_are_no_other_tokens() -> None:
    """Layers of the first block that read what the embedding gives have nothing to be corrected for."""
    report = run(tiny.llama(), method="compensated")
    assert not [note for layer in report.layers for note in layer.notes if "same tokens" in note]


# --- budgets


@pytest.mark.parametrize("pattern", ["row", "layer"])
def test_outliers_move_budget_between_layers_and_the_whole_stays(pattern: str) -> None:
    model = tiny.llama()
    report = run(model, pattern=pattern, allocation="owl", method="wanda")
    kept, size = report.totals()["kept"], report.totals()["weights"]
    assert size // 2 - 16 <= kept <= size // 2
    if pattern == "layer":
        assert kept == size // 2
    densities = [layer.density for layer in report.layers]
    assert max(densities) > 0.5 > min(densities)
    assert max(abs(density - 0.5) for density in densities) <= 0.1


def test_the_predicted_loss_moves_budget_between_layers() -> None:
    model = tiny.llama()
    report = run(model, pattern="layer", allocation="fisher", method="wanda")
    assert report.totals()["kept"] == report.totals()["weights"] // 2
    assert len({layer.density for layer in report.layers}) > 3


# --- outputs that count by the loss


def test_outputs_that_matter_keep_more() -> None:
    """The loss reads two outputs of the last layer, so that the others' weights go first."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found: Tensor = model(batch).square()
        return found[:, 0] + 2 * found[:, 3]

    model, inputs = linear(), correlated()
    dense = model.weight.detach().clone()
    report = prune(model, inputs, 0.3, hessian="kron", loss=loss, pattern="layer", method="gram")
    keep, (layer,) = report.masks["weight"], report.layers
    assert int(keep.sum()) == layer.kept == round(0.3 * keep.numel())
    matters = torch.zeros(len(keep), dtype=torch.bool)
    matters[[0, 3]] = True
    assert float(keep[matters].double().mean()) > 0.8
    assert float(keep[~matters].double().mean()) < 0.3
    # what is told of the layer is the error of its outputs as they are
    hessian = 2 * inputs.double().T @ inputs.double() / len(inputs)
    change = (dense * ~keep).double()
    assert layer.error_after == pytest.approx(float(((change @ hessian) * change).sum() / 2), rel=1e-6)
    assert torch.equal(model.weight.detach(), dense * keep)


@pytest.mark.parametrize("method", ["wanda", "gram", "compensated", "admm", "sparsegpt", "dsnot", "alps"])
def test_outputs_count_with_every_method(method: str) -> None:
    model = tiny.llama()
    report = run(model, pattern="layer", method=method, hessian="kron", allocation="kron")
    assert report.totals()["kept"] == report.totals()["weights"] // 2
    assert len({layer.density for layer in report.layers}) > 3
    for layer in report.layers:
        weight = dict(model.named_parameters())[f"{layer.name}.weight"]
        assert int((weight != 0).sum()) <= layer.kept
        assert not bool(weight[~report.masks[f"{layer.name}.weight"]].any())
        assert layer.relative_after is not None
        assert layer.relative_after < 1


def test_outputs_of_convolutions_count_too() -> None:
    model, images = tiny.cnn(), tiny.images()
    batches = [(images, torch.arange(len(images)) % 3)]
    report = prune(model, batches, 0.5, hessian="kron", allocation="kron", pattern="layer", loss="classification")
    assert report.totals()["kept"] == round(report.totals()["weights"] / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "row"}, "the pattern row fixes how many each keeps; give the pattern 'layer'"),
        ({"pattern": "2:4"}, "the pattern 2:4 fixes how many each keeps"),
        ({"method": "loss"}, "goes by the gradients of single weights"),
        ({"certify": "plain"}, "certify is given, which bounds errors whose outputs count alike"),
    ],
)
def test_outputs_cannot_count_where_nothing_would_follow(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(tiny.llama(), **{"pattern": "layer", "hessian": "kron", **settings})


def test_a_layer_without_gradient_has_outputs_that_count_alike() -> None:
    model = unseen.WITHOUT_GRADIENT[0]()
    report = prune(model, unseen.data(), 0.3, hessian="kron", method="wanda", pattern="layer", loss="classification")
    said = {layer.name: any("so its outputs count alike" in note for note in layer.notes) for layer in report.layers}
    assert said == {"odd": True} | dict.fromkeys(said.keys() - {"odd"}, False)
    assert all(layer.kept == round(0.3 * layer.shape[0] * layer.shape[1]) for layer in report.layers)


def test_layers_have_densities_by_name() -> None:
    report = run(tiny.llama(), densities={"*.mlp.*": 0.25, "*down_proj": 0.75})
    for layer in report.layers:
        wanted = 0.75 if layer.name.endswith("down_proj") else 0.25 if ".mlp." in layer.name else 0.5
        assert layer.density == wanted


@pytest.mark.parametrize(
    "settings",
    [{"method": "compensated"}, {"method": "wanda"}, {"method": "magnitude", "pattern": "layer"}],
)
def test_protected_weights_stay(settings: dict[str, Any]) -> None:
    model, inputs = linear(), correlated()
    gram = Gram(2 * inputs.double().T @ inputs.double() / len(inputs), len(inputs))
    scores = score("wanda", model.weight.detach(), gram, 0)
    report = prune(model, inputs, density=0.4, protect=0.25, **settings)
    keep = report.masks["weight"]
    pattern = settings.get("pattern", "row")
    highest = keep_highest(scores, Pattern("layer"), 0.25) & keep_highest(scores, Pattern(pattern), 0.4)
    assert int(highest.sum()) > 60
    assert keep[highest].all()
    assert Pattern(pattern).violations(keep, 0.4) == 0


def test_protected_weights_stay_in_groups() -> None:
    model = linear()
    report = prune(model, correlated(), pattern="2:4", method="compensated", protect=0.25)
    assert_exact(model, report, "2:4", 0.5)


# --- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"update": "refitt"}, r"no update 'refitt' \(did you mean 'refit'\?\)"),
        ({"method": "loss", "update": "refit"}, "The update 'refit' needs the Grams"),
        ({"hessian": "compensated", "method": "admm"}, "The method 'admm' takes no Hessian"),
        ({"damping": -1.0}, "damping is -1.0"),
        ({"allocation": "owls"}, "did you mean 'owl'"),
        ({"allocation": "owl", "pattern": "2:4"}, "keeps 2 of every 4"),
        ({"allocation": "owl", "densities": {"*": 0.3}}, "give one of the two"),
        ({"densities": {"*.nothing": 0.3}}, "'\\*.nothing' matches"),
        ({"densities": {"*": 1.5}}, "1.5"),
        ({"correction": 1.5}, "from 0 to 1"),
        ({"method": "wanda", "correction": 0.5}, "'wanda'.*'none' leaves them"),
        ({"method": "loss", "correction": 0.5}, "'loss'"),
        ({"method": "compensated", "update": "none", "correction": 0.5}, "'compensated'"),
        ({"protect": 0.6, "method": "wanda"}, "0.6"),
        ({"protect": 0.1}, "use the method 'compensated'"),
        ({"pattern": "2:4", "densities": {"*": 0.25}}, "keeps 0.5 of the weights"),
    ],
)
def test_bad_arguments_are_one_sentence(settings: dict[str, Any], message: str) -> None:
    model = tiny.llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        run(model, **settings)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
