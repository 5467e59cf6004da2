"""The main job on small models: exact counts, honest errors, nothing lost."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import digits
import measured
import pytest
import tiny
import torch
import unseen
from published import LAYERWISE, LOSS_STARTS, STARTS
from qubo_prune_solvers.greedy import Greedy
from torch import nn

import qubo_prune.methods.loss_blocks as loss_blocks
import qubo_prune.methods.row_blocks as pruning
from qubo_prune import InputError, KeepMasks, prune
from qubo_prune.arguments import parse_seconds
from qubo_prune.blocks.loss.descent import LossDescent
from qubo_prune.blocks.loss.trace import LossStep
from qubo_prune.data import TensorSamples
from qubo_prune.data.losses import Classification, Objective
from qubo_prune.hessian.gradients import moments
from qubo_prune.masks import Pattern
from qubo_prune.models.layers import find_layers
from qubo_prune.solver import Capabilities, Solver, SolveRequest, SolveResult, Status, single_answer


@dataclass(frozen=True)
class Small(Solver):
    """Greedy for small blocks, one at a time."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False, max_variables=28)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        return Greedy().solve(request)


def run(model: nn.Module, **settings: Any) -> Any:
    return prune(model, tiny.tokens(), **{"density": 0.5, **settings})


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.gate(6)
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.gemma])
@pytest.mark.parametrize(("pattern", "density"), [("row", 0.5), ("row", 0.3), ("layer", 0.37), ("2:4", 0.5)])
def test_every_group_holds_exactly_its_count(make: Any, pattern: str, density: float) -> None:
    model = make()
    report = run(model, pattern=pattern, density=density)
    layers = {layer.name: layer for layer in find_layers(model)}
    assert [entry.name for entry in report.layers] == list(layers) or len(report.layers) == len(layers)
    for entry in report.layers:
        layer = layers[entry.name]
        keep = layer.as_matrix(report.masks[layer.parameter_name])
        assert Pattern.parse(pattern).violations(keep, density) == 0
        assert int(keep.sum()) == entry.kept
        assert bool((layer.matrix()[~keep] == 0).all())


@pytest.mark.gate(10)
@pytest.mark.parametrize("method", LAYERWISE)
@pytest.mark.parametrize(("pattern", "density"), [("row", 0.5), ("row", 0.3), ("layer", 0.37)])
def test_convolutions_hold_exactly_their_counts(tmp_path: Path, method: str, pattern: str, density: float) -> None:
    model = tiny.cnn()
    dense, before = copy.deepcopy(model), state(model)
    report = prune(model, tiny.images(), density=density, pattern=pattern, method=method, update="none")
    assert [layer.name for layer in report.layers] == ["0", "3", "5", "7", "10"]
    for entry, layer in zip(report.layers, find_layers(model), strict=True):
        stored = report.masks[layer.parameter_name]
        assert stored.shape == layer.parameter.shape
        assert Pattern.parse(pattern).violations(layer.as_matrix(stored), density) == 0
        assert entry.kept == int(stored.sum())
        assert torch.equal(layer.parameter, before[layer.parameter_name] * stored)
        assert entry.error_after <= entry.error_before * (1 + 1e-9)
    report.masks.save(tmp_path / "masks.safetensors")
    masks = KeepMasks.load(tmp_path / "masks.safetensors")
    assert masks.verify(model) == {}
    assert masks.verify(dense).keys() == masks.keys()
    masks.apply(dense)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))


def test_blocks_lower_the_error_of_convolutions_and_the_trace_adds_up() -> None:
    # several output channels in each group, and enough weights in a row
    model = nn.Sequential(nn.Conv2d(8, 12, 3, groups=2))
    x = torch.randn(32, 8, 6, 6, generator=torch.Generator().manual_seed(0)).cumsum(2)
    for pattern in ("row", "layer"):
        entry = prune(copy.deepcopy(model), x, pattern=pattern).layers[0]
        assert entry.error_after < 0.9 * entry.error_before
        assert entry.trace[0].energy == pytest.approx(entry.error_before)
        assert entry.trace[-1].energy == pytest.approx(entry.error_after)
        assert [point.accepted for point in entry.trace] == sorted(point.accepted for point in entry.trace)
        assert entry.trace[-1].accepted == entry.accepted > 0
        assert len(entry.trace) == 3


@pytest.mark.parametrize("start", [*STARTS, "masks"])
def test_grouped_convolutions_take_every_warm_start(start: str) -> None:
    given = prune(tiny.cnn(), tiny.images(), method="magnitude").masks if start == "masks" else start
    report = prune(tiny.cnn(), tiny.images(), warm_start=given)
    assert all(layer.error_after <= layer.error_before * (1 + 1e-9) for layer in report.layers)
    assert [int(mask.sum()) for mask in report.masks.values()] == [layer.kept for layer in report.layers]


def test_convolutions_come_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.cnn().to(memory_format=torch.channels_last)
    before, calls, real = state(model), [], pruning.descend_rows

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("boom")
        return real(*args)

    monkeypatch.setattr(pruning, "descend_rows", failing)
    with pytest.raises(RuntimeError, match="boom"):
        prune(model, tiny.images())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_patterns_that_do_not_fit_a_kernel_name_the_layer() -> None:
    with pytest.raises(InputError, match=r"layer '3' has 9 inputs, which 4 does not divide"):
        prune(tiny.cnn(), tiny.images(), pattern="2:4")
    report = prune(tiny.cnn(), tiny.images(), pattern="2:4", exclude=["3", "7"])
    assert report.density == 0.5


def test_an_exhausted_budget_still_gives_every_group_its_mask() -> None:
    report = prune(tiny.cnn(), tiny.images(), max_time=1e-6)
    assert report.totals()["stopped_early"] == 5
    assert all(layer.error_after == pytest.approx(layer.error_before) for layer in report.layers)


def test_kept_weights_stay_and_errors_are_measured_ones() -> None:
    model = tiny.mlp()
    dense, x = copy.deepcopy(model), torch.randn(64, 12)
    report = prune(model, x, density=0.5)
    for name, keep in report.masks.items():
        torch.testing.assert_close(model.get_parameter(name), dense.get_parameter(name) * keep, rtol=0, atol=0)
    # the first layer reads the data itself, so its error can be measured directly
    first = report.layers[0]
    change = (model[0].weight - dense[0].weight).detach().double() @ x.double().T
    assert first.error_after == pytest.approx(float((change**2).sum() / len(x)), rel=1e-5)
    output = dense[0].weight.detach().double() @ x.double().T
    assert first.output_power == pytest.approx(float((output**2).sum() / len(x)), rel=1e-5)
    assert first.error_after <= first.error_before


def test_blocks_beat_wanda_and_no_blocks_are_wanda() -> None:
    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
    errors = {
        name: prune(tiny.mlp(), x, **settings).error_after
        for name, settings in {
            "gram": {},
            "wanda": {"method": "wanda"},
            "nothing": {"solver": _Nothing(), "max_time": 1e-6},
        }.items()
    }
    assert errors["gram"] < errors["wanda"] == errors["nothing"]


class _Nothing(Solver):
    """Answers with the warm start."""

    def solve(self, request: Any, /) -> Any:
        from qubo_prune.solver import Status, single_answer

        return single_answer(request.problem, request.warm_start, Status.FEASIBLE)


def test_the_same_seed_gives_the_same_masks() -> None:
    first, second = (run(tiny.llama(), warm_start="random", seed=5) for _ in range(2))
    other = run(tiny.llama(), warm_start="random", seed=6)
    assert all(torch.equal(first.masks[name], second.masks[name]) for name in first.masks)
    assert not all(torch.equal(first.masks[name], other.masks[name]) for name in first.masks)


@pytest.mark.gate(4)
@pytest.mark.parametrize("start", STARTS)
def test_every_warm_start_is_improved_or_kept(start: str) -> None:
    report = run(tiny.llama(), warm_start=start)
    assert all(layer.error_after <= layer.error_before * (1 + 1e-9) for layer in report.layers)


def test_given_masks_are_a_warm_start() -> None:
    wanda = run(tiny.llama(), method="wanda")
    report = run(tiny.llama(), warm_start=wanda.masks)
    assert report.settings["warm_start"] == "given masks"
    assert report.error_after < wanda.error_after
    assert report.layers[0].error_before == pytest.approx(wanda.layers[0].error_after)
    with pytest.raises(InputError, match=r"breaks the pattern row at density 0\.25"):
        run(tiny.llama(), warm_start=wanda.masks, density=0.25)
    with pytest.raises(InputError, match="has no mask for"):
        run(tiny.llama(), warm_start={})


def test_density_one_keeps_everything() -> None:
    model = tiny.llama()
    before = state(model)
    report = run(model, density=1)
    assert report.density == 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_an_exhausted_time_budget_still_gives_full_masks() -> None:
    report = run(tiny.llama(), max_time=1e-6)
    assert report.density == 0.5
    assert report.totals()["stopped_early"] == 14
    assert report.totals()["steps"] == 0


def test_dead_inputs_are_pruned_first() -> None:
    x = torch.randn(50, 12)
    x[:, [1, 4, 7]] = 0
    report = prune(tiny.mlp(), x)
    assert report.layers[0].dead_inputs == 3
    assert not report.masks["0.weight"][:, [1, 4, 7]].any()
    assert bool((report.masks["0.weight"].sum(1) == 6).all())


def test_the_head_is_pruned_when_asked() -> None:
    model = tiny.llama(tie_word_embeddings=False)
    report = run(model, prune_head=True)
    assert report.layers[-1].name == "lm_head"
    assert "lm_head" not in [layer.name for layer in run(tiny.llama()).layers]


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("boom")])
def test_a_failure_gives_the_weights_back(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    model, calls = tiny.llama(), []
    before = state(model)
    real = pruning.descend_rows

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise failure
        return real(*args)

    monkeypatch.setattr(pruning, "descend_rows", failing)
    with pytest.raises(type(failure)):
        run(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_infinite_activations_name_the_layer_and_lose_nothing() -> None:
    model = tiny.mlp()
    model[0].bias.data[3] = float("inf")
    before = state(model)
    with pytest.raises(InputError, match="inputs of layer '2' hold NaN or infinite"):
        prune(model, torch.randn(8, 12))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, "density is 0.0"),
        ({"density": 1.5}, "density is 1.5"),
        ({"density": float("nan")}, "density is nan"),
        ({"pattern": "3:8"}, "keeps 0.375"),
        ({"pattern": "rows"}, "There is no pattern 'rows'"),
        ({"pattern": "3:6", "density": 0.5}, r"has 16 inputs, which 6 does not divide"),
        ({"solver": "greedi"}, "did you mean 'greedy'"),
        ({"method": "wandaa"}, "did you mean 'wanda'"),
        ({"warm_start": "magnitud"}, "did you mean 'magnitude'"),
        ({"max_time": "5x"}, "'5x' is not understood"),
        ({"max_time": -1}, "is not understood"),
        ({"solver": Small(), "block_size": 64}, "'Small' takes at most 28 variables"),
        ({"block_time": "soon"}, "'soon' is not understood"),
        ({"workers": -1}, "workers is -1"),
        ({"workers": "two"}, "workers is 'two'"),
        ({"gram_devices": ("cpu", "cuda:99")}, "'cuda:99'"),
        ({"block_size": 1}, "block_size is 1"),
        ({"include": ["*.nothing"]}, "matches none"),
    ],
)
def test_bad_arguments_are_one_sentence(settings: dict[str, Any], message: str) -> None:
    model = tiny.llama()
    before = state(model)
    with pytest.raises(InputError, match=message):
        run(model, **settings)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_masks_do_not_depend_on_how_many_devices_multiply_the_inputs() -> None:
    alone, shared = run(tiny.llama()), run(tiny.llama(), gram_devices=("cpu", "cpu"))
    for name, mask in alone.masks.items():
        assert torch.equal(mask, shared.masks[name])
    assert shared.error_after == alone.error_after


def test_bad_calibration() -> None:
    with pytest.raises(InputError, match="no batch"):
        prune(tiny.mlp(), [])
    with pytest.raises(InputError, match="needs a tokenizer"):
        prune(tiny.llama(), "pydoc")
    with pytest.raises(InputError, match="at most 64 tokens"):
        prune(tiny.llama(), "pydoc", tokenizer=tiny.tokenizer(), sequence_length=65)


def test_nan_weights_name_the_layer() -> None:
    model = tiny.llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj"):
        run(model)


def test_half_precision_models_are_pruned_exactly() -> None:
    report = run(tiny.llama().bfloat16())
    assert report.density == 0.5
    assert report.error_after < report.error_before


def test_the_saved_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = tiny.save(tmp_path / "dense")
    text = tmp_path / "text.txt"
    text.write_text(tiny.text(), encoding="utf-8")
    report = prune(str(source), str(text), samples=4, sequence_length=16, output=tmp_path / "pruned")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    masks = KeepMasks.load(tmp_path / "pruned" / "masks.safetensors")
    assert masks.verify(loaded) == {}
    assert set(masks) == set(report.masks)
    assert "quantization_config" not in json.loads((tmp_path / "pruned" / "config.json").read_text())
    saved = json.loads((tmp_path / "pruned" / "report.json").read_text())
    assert saved["totals"]["density"] == 0.5
    assert saved["calibration"]["tokens"] == 64
    # the masks of the report turn the dense model into the pruned one
    again = AutoModelForCausalLM.from_pretrained(source)
    masks.apply(again)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True))
    with pytest.raises(InputError, match="not empty"):
        prune(str(source), str(text), samples=4, sequence_length=16, output=tmp_path / "pruned")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("1h", 3600), (5, 5), (1e-6, 1e-6), (None, None)],
)
def test_times_are_read(text: Any, seconds: float | None) -> None:
    assert parse_seconds(text) == seconds


def test_a_density_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"keeps none of the 16 weights in a row"):
        run(tiny.llama(), density=0.01)


@pytest.mark.slow
def test_small_solvers_get_small_blocks() -> None:
    report = run(tiny.llama(), solver=Small(), include=["*.0.self_attn.k_proj"])
    assert report.settings["block_size"] == 28
    assert report.layers[0].error_after < report.layers[0].error_before


def test_output_needs_a_model_that_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes a transformers model"):
        prune(tiny.mlp(), torch.randn(8, 12), output=tmp_path / "out", tokenizer=tiny.tokenizer())


# -- method="loss": the descent on the loss after the warm start

QUICK: dict[str, Any] = {
    "block_size": 64,
    "blocks_per_step": 2,
    "samples": 300,
    "scoring_samples": 300,
    "max_samples": 600,
    "max_blocks": 12,
}
WINDOWS: dict[str, Any] = {
    "block_size": 32,
    "blocks_per_step": 7,
    "samples": 20,
    "scoring_samples": 20,
    "max_samples": 24,
    "max_blocks": 56,
    "micro_batch": 4,
    "caution": 1.0,
    "damping": 0.0,
    "frozen_kept": 0.0,
    "frozen_pruned": 0.0,
}


def on_loss(model: nn.Module, calibration: Any = None, **settings: Any) -> Any:
    source = digits.digits()[0] if calibration is None else calibration
    given = {"density": 0.2, "pattern": "layer", "method": "loss", "loss_settings": QUICK, **settings}
    return prune(model, source, **given)


def check_loss(model: nn.Module, dense: nn.Module, report: Any) -> None:
    """Masks, zeros, counts and what the report says of them agree, and it is plain data."""
    before = dict(dense.named_parameters())
    layers = {layer.name: layer for layer in find_layers(model)}
    pattern, density = Pattern.parse(report.settings["pattern"]), report.settings["density"]
    moved = report.settings["loss_settings"]["budget"] == "global"
    assert [entry.name for entry in report.layers] == list(layers)
    assert set(report.masks) == {layer.parameter_name for layer in layers.values()}
    for entry in report.layers:
        layer = layers[entry.name]
        stored = report.masks[layer.parameter_name]
        assert torch.equal(layer.parameter, before[layer.parameter_name] * stored)
        assert torch.equal(layer.parameter != 0, stored)
        assert entry.kept == int(stored.sum())
        assert entry.density == entry.kept / stored.numel()
        assert moved or pattern.violations(layer.as_matrix(stored), density) == 0
    for name, parameter in model.named_parameters():
        assert name in report.masks or torch.equal(parameter, before[name])
    trace = report.loss
    assert trace.best_loss <= trace.start_loss
    assert trace.blocks == sum(step.blocks for step in trace.steps)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["loss"]["best_loss"] == trace.best_loss
    assert data["settings"]["method"] == "loss"
    assert data["settings"]["loss_settings"]["block_size"] > 0
    assert report.seconds["total"] >= report.seconds["loss"] > 0
    told = " ".join(str(report).split())
    assert f"blocks of the loss (loss) by {report.settings['loss_settings']['solver']}" in told
    assert f"held-out loss {trace.start_loss:.5f} to {trace.best_loss:.5f} in {trace.blocks} blocks" in told


def swapped(start: Mapping[str, torch.Tensor], report: Any) -> list[int]:
    return [int((start[name] != mask).sum()) for name, mask in report.masks.items()]


@pytest.mark.gate(6)
@pytest.mark.parametrize("start", [*LOSS_STARTS, "masks"])
@pytest.mark.parametrize(("pattern", "density"), [("layer", 0.2), ("row", 0.2), ("2:4", 0.5)])
def test_the_loss_falls_from_every_warm_start_in_every_pattern(start: str, pattern: str, density: float) -> None:
    shape = {"pattern": pattern, "density": density, "seed": 3}
    given = on_loss(digits.reader(), warm_start="wanda", **shape).masks if start == "masks" else start
    begin = on_loss(digits.reader(), warm_start=given, **shape, loss_settings={**QUICK, "max_blocks": 0})
    assert begin.loss.steps == ()
    assert [layer.swapped for layer in begin.layers] == [0, 0]
    if start == "masks":
        assert swapped(given, begin) == [0, 0]
        assert begin.settings["warm_start"] == "given masks"
    model = digits.reader()
    report = on_loss(model, warm_start=given, **shape)
    check_loss(model, digits.reader(), report)
    assert [layer.swapped for layer in report.layers] == swapped(begin.masks, report)
    assert sum(layer.swapped for layer in report.layers) > 0
    assert report.loss.start_loss == pytest.approx(begin.loss.start_loss, rel=1e-6)
    # the masks of a run before leave less to gain
    assert report.loss.best_loss < (0.98 if start == "masks" else 0.8) * report.loss.start_loss


@pytest.mark.parametrize(
    ("start", "kind"),
    # random ones differ: a run on Grams knows which inputs are dead and prunes those first
    [("magnitude", "magnitude"), ("wanda", "wanda"), ("greedy", "greedy"), ("gram", None)],
)
def test_the_warm_start_is_that_of_a_run_without_the_loss(start: str, kind: str | None) -> None:
    shape = {"density": 0.3, "pattern": "row", "seed": 1}
    fisher = on_loss(digits.reader(), warm_start=start, **shape, loss_settings={"max_blocks": 0})
    settings = {} if kind is None else {"warm_start": kind, "solver": _Nothing(), "max_sweeps": 0, "max_time": 1e-6}
    gram = prune(digits.reader(), digits.digits()[0], loss="classification", **shape, **settings)
    # sums of the same samples in another order
    assert sum(swapped(gram.masks, fisher)) <= (20 if kind is None else 2)


def test_the_gradient_warm_start_keeps_what_the_loss_depends_on() -> None:
    scores = []
    for start in ("gradient", "random"):
        model = digits.reader()
        report = on_loss(model, warm_start=start, loss_settings={"max_blocks": 0})
        objective = Objective(digits.reader(), Classification())
        layers = find_layers(objective.model)
        found = moments(objective, digits.digits()[0], torch.arange(1000), layers)
        kept = [(layer.matrix() * found[layer.name].mean).abs()[report.masks[layer.parameter_name]] for layer in layers]
        scores.append(sum(float(part.sum()) for part in kept))
        for layer in report.layers:
            (note,) = (note for note in layer.notes if "not measured" in note)
            assert "needs no inputs" in note
    assert scores[0] > 2 * scores[1]


@pytest.mark.parametrize("start", ["wanda", "greedy", "magnitude"])
def test_errors_of_layers_are_those_of_the_masks_that_the_loss_chose(start: str) -> None:
    model, x = digits.reader(), digits.digits()[0].tensors[0]
    dense = measured.weights(model)
    report = on_loss(model, warm_start=start, gram_samples=len(x))
    assert any(layer.swapped for layer in report.layers)
    found = measured.measured(model, dense, [x])
    for layer in report.layers:
        if start == "magnitude":
            assert layer.relative_after is None
        else:
            assert layer.relative_after == pytest.approx(found[layer.name], rel=1e-6)
            assert (layer.relative_after != layer.relative_before) == (layer.swapped > 0)


def squared_distance(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return (model(x) - nn.functional.one_hot(y, 10)).square().sum(1)


@pytest.mark.parametrize("form", ["samples", "batches", "iterator", "dicts", "function"])
def test_labelled_data_in_every_form(form: str) -> None:
    train, model = digits.digits()[0], digits.reader()
    x, y = train.tensors
    pairs = list(zip(x.split(100), y.split(100), strict=True))
    source: Any = {
        "samples": train,
        "batches": pairs,
        "iterator": iter(pairs),
        "function": train,
        "dicts": [{"input": inputs, "labels": labels} for inputs, labels in pairs],
    }[form]
    report = on_loss(model, source, loss=squared_distance if form == "function" else None)
    check_loss(model, digits.reader(), report)
    assert report.loss.best_loss < (0.99 if form == "function" else 0.7) * report.loss.start_loss
    assert report.settings["loss"] == ("Given" if form == "function" else "Classification")
    assert report.calibration == {"source": "given samples", "samples": 1300, "gram_samples": 1024}
    if form != "function":
        same = on_loss(digits.reader(), train)
        assert swapped(same.masks, report) == [0, 0]
        before = prune(digits.reader(), [x], 0.2, pattern="layer", method="wanda").masks
        start = digits.reader()
        before.apply(start)
        assert digits.share_right(model) > digits.share_right(start) + 0.2


def test_given_judges_are_asked_and_the_whole_calibration_is_drawn_from() -> None:
    train, test = digits.digits()
    model = digits.reader()
    report = on_loss(model, held_out=test)
    check_loss(model, digits.reader(), report)
    measured = Objective(model, Classification()).measure(test).mean()
    assert report.loss.best_loss == pytest.approx(float(measured), rel=1e-6)
    x, y = test.tensors
    again = on_loss(digits.reader(), held_out=[(x[:200], y[:200]), (x[200:], y[200:])])
    assert swapped(report.masks, again) == [0, 0]
    assert len(train) == 1300


@pytest.mark.gate(1)
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
@pytest.mark.parametrize(("pattern", "density"), [("layer", 0.37), ("row", 0.5), ("2:4", 0.5)])
def test_language_models_are_pruned_on_their_next_tokens(make: Any, pattern: str, density: float) -> None:
    model = make()
    # more than tokens at random, so that there is something to lose
    with torch.no_grad():
        for layer in find_layers(model):
            layer.assign(layer.matrix() * 8)
        model.get_output_embeddings().weight.mul_(20)
    dense = copy.deepcopy(model)
    tokens = model.generate(
        tiny.tokens(60, 2), max_new_tokens=14, do_sample=True, pad_token_id=0, eos_token_id=None, bos_token_id=None
    )
    report = on_loss(model, tokens, pattern=pattern, density=density, loss_settings=WINDOWS)
    check_loss(model, dense, report)
    assert report.settings["loss"] == "NextToken"
    assert report.calibration["samples"] == 60
    assert report.loss.best_loss < report.loss.start_loss
    assert sum(layer.swapped for layer in report.layers) > 0


def test_a_text_is_pruned_on_its_next_tokens(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text(tiny.text(), encoding="utf-8")
    model = tiny.llama()
    report = on_loss(
        model,
        str(file),
        tokenizer=tiny.tokenizer(),
        samples=4,
        sequence_length=16,
        loss_length=10,
        pattern="row",
        density=0.5,
        loss_settings=WINDOWS,
    )
    check_loss(model, tiny.llama(), report)
    assert (report.calibration["loss_windows"], report.calibration["loss_length"]) == (40, 10)
    assert report.layers[0].tokens == 64


def test_convolutions_are_pruned_on_the_loss() -> None:
    model = tiny.cnn().to(memory_format=torch.channels_last)
    dense = copy.deepcopy(model)
    samples = TensorSamples(tiny.images(400), dense(tiny.images(400)).argmax(1))
    report = on_loss(model, samples, density=0.5, warm_start="magnitude", loss_settings={**QUICK, "block_size": 16})
    check_loss(model, dense, report)
    assert report.loss.best_loss < report.loss.start_loss


def test_a_global_budget_keeps_the_total() -> None:
    model = digits.reader()
    report = on_loss(model, warm_start="magnitude", loss_settings={**QUICK, "budget": "global"})
    check_loss(model, digits.reader(), report)
    assert report.totals()["kept"] == round(0.2 * 2048) + round(0.2 * 320)
    assert [layer.kept for layer in report.layers] != [round(0.2 * 2048), round(0.2 * 320)]
    # masks that moved between layers are a warm start for another such run
    again = on_loss(digits.reader(), warm_start=report.masks, loss_settings={**QUICK, "budget": "global"})
    assert again.totals()["kept"] == report.totals()["kept"]
    with pytest.raises(InputError, match="breaks the pattern layer"):
        on_loss(digits.reader(), warm_start=report.masks)


def test_the_seed_decides_a_run_on_the_loss() -> None:
    first, again, other = (on_loss(digits.reader(), seed=seed) for seed in (1, 1, 2))
    assert swapped(first.masks, again) == [0, 0]
    assert first.loss.best_loss == again.loss.best_loss
    assert swapped(first.masks, other) != [0, 0]


def test_what_is_given_to_prune_is_for_the_blocks_of_the_loss() -> None:
    report = on_loss(
        digits.reader(),
        solver="local",
        solver_settings={"starts": 2},
        block_size=32,
        block_time="5s",
        polish=False,
        seed=4,
        loss_settings={"max_blocks": 2},
    )
    settings = report.settings["loss_settings"]
    assert {name: settings[name] for name in ("solver", "block_size", "block_time", "polish", "seed")} == {
        "solver": "local",
        "block_size": 32,
        "block_time": 5.0,
        "polish": False,
        "seed": 4,
    }
    assert settings["solver_settings"] == {"starts": 2}
    assert report.loss.steps[0].weights <= 32 * report.loss.steps[0].blocks
    # settings of the descent go before
    other = on_loss(digits.reader(), block_size=32, loss_settings={"block_size": 16, "max_blocks": 0})
    assert other.settings["loss_settings"]["block_size"] == 16
    preset = on_loss(digits.reader(), loss_settings={"preset": "paper", "max_blocks": 2, "block_size": 32})
    assert preset.settings["loss_settings"]["accept"] == "always"


def test_large_models_and_language_models_have_settings_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def micro_batch(model: nn.Module, source: Any = None) -> int:
        report = on_loss(model, source, loss_settings={"max_blocks": 0})
        return int(report.settings["loss_settings"]["micro_batch"])

    found = [micro_batch(digits.reader()), micro_batch(tiny.llama(), tiny.tokens(10))]
    monkeypatch.setattr(loss_blocks, "LARGE", 2000)
    found.append(micro_batch(digits.reader()))
    kinds = ("classifier", "language", "large")
    assert found == [LossDescent.preset(kind).micro_batch for kind in kinds]


@dataclass
class Failing:
    """The cross entropy until its k-th call."""

    calls: int
    seen: int = 0

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        self.seen += 1
        if self.seen == self.calls:
            raise RuntimeError("boom")
        if isinstance(batch, torch.Tensor):
            logits = model(batch).logits[:, :-1].transpose(1, 2)
            return nn.functional.cross_entropy(logits, batch[:, 1:], reduction="none").mean(1)
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


@pytest.mark.gate(3)
@pytest.mark.parametrize("kind", ["digits", "gpt2", "cnn"])
@pytest.mark.parametrize("start", ["wanda", "gradient", "gram"])
def test_a_loss_that_fails_gives_every_weight_back(kind: str, start: str) -> None:
    make, source = {
        "digits": (digits.reader, digits.digits()[0]),
        "gpt2": (tiny.gpt2, tiny.tokens(40)),
        "cnn": (
            lambda: tiny.cnn().to(memory_format=torch.channels_last),
            TensorSamples(tiny.images(60), torch.arange(60) % 5),
        ),
    }[kind]
    settings = {"density": 0.5, "warm_start": start, "loss_settings": {**WINDOWS, "accept": "always", "max_blocks": 8}}
    whole = Failing(0)
    on_loss(make(), source, loss=whole, **settings)
    assert whole.seen > 8
    for calls in {1, 2, 3, whole.seen // 4, whole.seen // 2, whole.seen - 1, whole.seen}:
        model = make()
        before = state(model)
        with pytest.raises(RuntimeError, match="boom"):
            on_loss(model, source, loss=Failing(calls), **settings)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_failure_of_the_watcher_gives_every_weight_back() -> None:
    def watch(step: LossStep) -> None:
        assert not torch.equal(model[0].weight, dense[0].weight)
        raise ValueError("the watcher stumbled")

    model, dense = digits.reader(), digits.reader()
    with pytest.raises(ValueError, match="the watcher stumbled"):
        on_loss(model, on_step=watch)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))


@pytest.mark.parametrize("after", [0, 3])
def test_an_interrupt_between_steps_keeps_the_best_masks(after: int) -> None:
    def watch(step: LossStep) -> None:
        if step.number == after:
            raise KeyboardInterrupt

    model = digits.reader()
    report = on_loss(model, on_step=watch, warm_start="magnitude")
    check_loss(model, digits.reader(), report)
    assert len(report.loss.steps) == after + 1
    assert report.loss.stopped == "It was interrupted; the best masks by then count."
    assert report.to_dict()["loss"]["stopped"] == report.loss.stopped
    assert report.loss.best_loss < report.loss.start_loss


def test_an_interrupt_before_the_descent_gives_every_weight_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(loss_blocks, "descend_loss", interrupted)
    model, dense = digits.reader(), digits.reader()
    with pytest.raises(KeyboardInterrupt):
        on_loss(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))


def test_the_time_of_a_run_ends_the_descent() -> None:
    model = digits.reader()
    report = on_loss(model, max_time=1e-6)
    check_loss(model, digits.reader(), report)
    assert report.loss.steps == ()
    assert report.loss.stopped == "The time was over."
    model = digits.reader()
    report = on_loss(model, max_time="3s", loss_settings={**QUICK, "max_blocks": 10**6, "patience": 10**6})
    check_loss(model, digits.reader(), report)
    assert report.loss.stopped == "The time was over."
    assert len(report.loss.steps) > 1
    assert report.seconds["total"] < 5


def test_the_watchers_time_does_not_count() -> None:
    def watch(step: LossStep) -> None:
        time.sleep(0.2)

    report = on_loss(digits.reader(), on_step=watch, loss_settings={**QUICK, "max_blocks": 6})
    assert len(report.loss.steps) == 3
    assert report.loss.steps[-1].seconds <= report.seconds["loss"] - 0.6
    assert report.loss.seconds <= report.seconds["loss"] - 0.6


@dataclass(frozen=True)
class OneCount(Small):
    """Takes one group a block."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False, groups=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"hessian": "fischer"},
            r"no Hessian 'fischer' \(did you mean 'fisher'\?\); give a method: gram, compensated or loss",
        ),
        ({"method": "gram", "loss_settings": {"samples": 3}}, "'gram' takes no loss; give method='loss'"),
        ({"method": "wanda"}, "loss_settings are given and the method 'wanda' takes no loss"),
        ({"method": "wanda", "hessian": "fisher"}, "The method 'wanda' takes no Hessian; leave hessian out"),
        (
            {"method": "gram", "warm_start": "gram", "loss_settings": None, "loss": "classification"},
            "no warm start 'gram'.* for the method 'Gram blocks'; use one of admm, .*wanda, or keep masks",
        ),
        ({"warm_start": "gradien"}, "did you mean 'gradient'"),
        ({"loss_settings": {"blocksize": 3}}, r"no setting 'blocksize' .*\(did you mean 'block_size'"),
        ({"loss_settings": {"preset": "papr"}}, r"no preset 'papr' \(did you mean 'paper'\?\)"),
        ({"loss_settings": {"solver": "gredy"}}, "did you mean 'greedy'"),
        (
            {"loss_settings": {"budget": "global"}, "pattern": "row"},
            "only move between layers with the pattern 'layer'",
        ),
        ({"loss": "clasification"}, "did you mean 'classification'"),
        ({"held_out": "pydoc"}, "held_out is 'pydoc'; give samples or batches"),
        ({"solver": Small(), "block_size": 64}, "'Small' takes at most 28 variables and the block has 64"),
        ({"loss_settings": {"solver": Small(), "block_size": 64}}, "'Small' takes at most 28 variables"),
        ({"solver": OneCount(), "pattern": "row"}, "'OneCount' takes one count, .* use the pattern 'layer'"),
        ({"block_size": 1, "loss_settings": None}, "block_size is 1"),
        ({"max_time": "soon"}, "'soon' is not understood"),
        ({"exclude": ["*"]}, "no linear or 2-D convolution layer"),
        ({"density": 1.0}, "give a density below 1"),
    ],
)
def test_bad_arguments_of_the_loss_are_one_sentence(settings: dict[str, Any], message: str) -> None:
    model, dense = digits.reader(), digits.reader()
    with pytest.raises(InputError, match=message):
        on_loss(model, **settings)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda x, y: x, "A batch of type Tensor holds no labels"),
        (lambda x, y: [x], "A batch of type Tensor holds no labels"),
        (lambda x, y: [{"input": x}], "A batch of type dict holds no labels"),
        (lambda x, y: [(x[:4], y[:4])], "holds 4 samples, too few to hold a fifth out"),
        (lambda x, y: [], "no samples"),
        (lambda x, y: [(x, y[:5])], "dimension 0 must count"),
        (lambda x, y: "pydoc", "needs a tokenizer"),
    ],
)
def test_calibration_that_the_loss_cannot_be_taken_over(source: Any, message: str) -> None:
    model, dense = digits.reader(), digits.reader()
    with pytest.raises(InputError, match=message):
        on_loss(model, source(*digits.digits()[0].tensors))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))


def test_a_model_without_layers_has_nothing_to_descend() -> None:
    with pytest.raises(InputError, match="no linear or 2-D convolution layer to prune"):
        on_loss(nn.Sequential(nn.ReLU()))


def test_a_loss_that_is_one_number_is_refused_before_anything_is_pruned() -> None:
    def mean(model: nn.Module, batch: Any) -> torch.Tensor:
        return squared_distance(model, batch).mean()

    model, dense = digits.reader(), digits.reader()
    with pytest.raises(InputError, match=r"leave out the mean \(reduction='none'\)"):
        on_loss(model, loss=mean)
    assert torch.equal(model[0].weight, dense[0].weight)


def test_small_solvers_get_small_blocks_of_the_loss_too() -> None:
    model = digits.reader()
    report = on_loss(model, solver=Small(), loss_settings={"max_blocks": 4, "blocks_per_step": 2})
    check_loss(model, digits.reader(), report)
    assert report.settings["loss_settings"]["block_size"] == 28
    assert [step.weights for step in report.loss.steps] == [56, 56]
    # a warm start by Grams has blocks of its own
    report = on_loss(digits.reader(), solver=Small(), warm_start="gram", loss_settings={"max_blocks": 0})
    assert (report.settings["solver"], report.settings["block_size"]) == ("greedy", 64)


ENDLESS = {"solver": "tabu", "solver_settings": {"steps": 10**9, "starts": 1}}


@pytest.mark.parametrize("hessian", ["gram", "compensated"])
def test_blocks_that_their_clock_cuts_are_told_with_the_result(hessian: str) -> None:
    some = {"include": ["*.0.mlp.up_proj"], "block_size": 8, "hessian": hessian, **ENDLESS}
    report = run(tiny.llama(), block_time=0.002, **some)
    (layer,) = report.layers
    assert layer.blocks.asked == layer.blocks.num_cut == 24
    said = "The clock cut 24 of 24 blocks of tabu: 24 x stopped at the time limit."
    assert said in report.warnings()
    assert said in " ".join(str(report).split())
    assert not report.all_blocks_lost


def test_blocks_that_the_budget_of_the_run_leaves_out_are_told_with_the_result() -> None:
    report = run(tiny.llama(), max_time=1e-3, include=["*.0.mlp.*"], **ENDLESS)
    assert report.warnings()[-1] == "The time budget ended the search in 3 of 3 layers."
    assert report.totals()["stopped_early"] == 3


def test_what_the_solver_brought_stands_beside_what_the_swaps_did() -> None:
    report = run(tiny.llama(), include=["*.0.mlp.up_proj"], solver=Back(), workers=0, block_time=None)
    assert report.layers[0].solver_share == 0.0
    assert report.error_after < report.error_before
    assert run(tiny.llama(), include=["*.0.mlp.up_proj"]).layers[0].solver_share > 0


@dataclass(frozen=True)
class Back(Solver):
    """Gives its start back."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        return single_answer(request.problem, request.warm_start, Status.FEASIBLE)


# --- what was not seen


def odd_name(model: nn.Module) -> str:
    return next(layer.name for layer in find_layers(model) if layer.module is model.odd)


def is_dense(model: nn.Module, before: dict[str, torch.Tensor], report: Any) -> bool:
    """True if a model's odd layer has its weights, and the report says that it is left so."""
    name = odd_name(model)
    return (
        torch.equal(model.odd.weight, before["odd.weight"])
        and [left.name for left in report.left_dense] == [name]
        and name not in [layer.name for layer in report.layers]
        and f"{name}.weight" not in report.masks
    )


@pytest.mark.gate(8)
@pytest.mark.parametrize("method", ["gram", "magnitude", "sparsegpt", "compensated"])
@pytest.mark.parametrize("kind", unseen.WITHOUT_INPUT)
def test_what_no_input_reaches_stays_dense_and_is_told(kind: Any, method: str) -> None:
    model = kind()
    before, settings = state(model), {"method": method}
    report = prune(model, unseen.inputs(), 0.5, **settings)
    assert is_dense(model, before, report)
    reason = "used by its weight only" if unseen.WITHOUT_INPUT[kind] else "not reached by any calibration input"
    said = f"left dense: {odd_name(model)} (1 layer, 256 weights), {reason}"
    assert said in " ".join(str(report).split())
    assert report.to_dict()["left_dense"][0]["weights"] == 256
    assert report.density == 0.5
    assert all(layer.tokens == 96 and layer.relative_after > 0 for layer in report.layers)


def test_what_is_asked_for_by_its_full_name_is_pruned_by_magnitude() -> None:
    for settings in ({}, {"method": "wanda"}, {"method": "sparsegpt"}, {"warm_start": "random"}):
        model = unseen.Base()
        dense = model.odd.weight.detach().clone()
        report = prune(model, unseen.inputs(), 0.5, include=["odd", "f*", "l*"], **settings)
        entry = next(layer for layer in report.layers if layer.name == "odd")
        assert report.left_dense == ()
        # the rows have 16 weights, so the median is the 8th
        assert torch.equal(report.masks["odd.weight"], dense.abs() > dense.abs().median(1, keepdim=True).values)
        assert torch.equal(model.odd.weight, dense * report.masks["odd.weight"])
        assert (entry.error_before, entry.error_after, entry.relative_after, entry.steps) == (None, None, None, 0)
        assert any("ranked by magnitude" in note for note in entry.notes)
    (entry,) = prune(unseen.Base(), unseen.inputs(), 0.5, include="odd").layers
    assert entry.name == "odd"
    model = unseen.Base()  # a pattern is no full name
    before = state(model)
    assert is_dense(model, before, prune(model, unseen.inputs(), 0.5, include=["od?", "first"]))


def test_given_masks_are_asked_for_by_name() -> None:
    given = prune(unseen.Base(), unseen.inputs(), 0.5, method="magnitude", include=["first", "odd", "last"]).masks
    given["odd.weight"] = ~given["odd.weight"]
    report = prune(unseen.Base(), unseen.inputs(), 0.5, warm_start=given)
    assert torch.equal(report.masks["odd.weight"], given["odd.weight"])
    entry = next(layer for layer in report.layers if layer.name == "odd")
    assert any("its mask was given" in note for note in entry.notes)


def test_a_model_of_which_nothing_is_reached_is_refused() -> None:
    model = unseen.Own()
    before = state(model)
    with pytest.raises(InputError, match=r"All 1 layers that are to be pruned \(odd\) are used by its weight only"):
        prune(model, unseen.inputs(), 0.5, include=["o*"])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_weight_that_is_used_besides_its_module_is_told_of() -> None:
    report = prune(unseen.Both(), unseen.inputs(), 0.5)
    notes = {layer.name: layer.notes for layer in report.layers}
    assert [name for name in notes if any("also used without a call" in note for note in notes[name])] == ["odd"]


@pytest.mark.parametrize("allocation", ["owl", "fisher"])
@pytest.mark.parametrize("kind", [unseen.Base, unseen.Expert, unseen.Attention])
def test_layers_left_dense_take_no_part_in_the_budget(kind: Any, allocation: str) -> None:
    model = kind()
    with torch.no_grad():
        model.first.weight[:2, :3] *= 20  # outliers
    before = state(model)
    report = prune(model, unseen.data(), 0.5, allocation=allocation, pattern="layer", loss="classification")
    assert is_dense(model, before, report)
    assert sum(layer.kept for layer in report.layers) == round(0.5 * (16 * 16 + 16 * 4))
    assert report.layers[0].density != report.layers[1].density


@pytest.mark.parametrize("kind", unseen.WITHOUT_GRADIENT)
@pytest.mark.parametrize("allocation", ["fisher", "kron"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_no_gradient_gives_no_density_and_no_rank(kind: Any, allocation: Any) -> None:
    report = prune(kind(), unseen.data(), 0.3, allocation=allocation, pattern="layer", loss="classification")
    by_name = {layer.name: layer for layer in report.layers}
    assert report.left_dense == ()
    assert by_name["odd"].kept == round(0.3 * 256)  # by its inputs, at the density of the run
    assert any("so it has the density of the run" in note for note in by_name["odd"].notes)
    assert by_name["first"].kept + by_name["last"].kept == round(0.3 * (256 + 64))
    assert by_name["odd"].relative_after < 0.5


@pytest.mark.gate(8)
@pytest.mark.parametrize("start", ["gradient", "magnitude", "random"])
@pytest.mark.parametrize("kind", [*unseen.WITHOUT_INPUT, *unseen.WITHOUT_GRADIENT])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_no_gradient_reaches_is_not_pruned_on_the_loss(kind: Any, start: str) -> None:
    model = kind()
    before = state(model)
    report = prune(
        model,
        unseen.data(),
        0.5,
        method="loss",
        warm_start=start,
        loss_settings={"max_blocks": 2, "samples": 32},
    )
    assert is_dense(model, before, report)
    assert report.left_dense[0].reason in (
        "not reached by any gradient of the loss",
        "used by its weight only, without a call of its module",
    )
    assert report.density == 0.5
    assert report.loss is not None
    assert set(report.loss.keep) == {"first", "last"}
    assert all((layer.error_after, layer.relative_before) == (None, None) for layer in report.layers)
    columns = {str(column.header).strip(): list(column.cells) for column in report.table().columns}
    assert {str(cell) for name in ("before", "after", "ratio") for cell in columns[name]} == {"-"}


@pytest.mark.parametrize("kind", unseen.WITHOUT_GRADIENT)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_inputs_reach_and_no_gradient_has_the_mask_of_its_warm_start(kind: Any) -> None:
    settings = {"max_blocks": 4, "samples": 32}
    model = kind()
    dense = measured.weights(model)
    report = prune(model, unseen.data(), 0.5, method="loss", warm_start="wanda", loss_settings=settings)
    wanda = prune(kind(), unseen.inputs(), 0.5, method="wanda")
    assert torch.equal(report.masks["odd.weight"], wanda.masks["odd.weight"])
    odd = next(layer for layer in report.layers if layer.name == "odd")
    assert any("it has the mask of its warm start" in note for note in odd.notes)
    found = measured.measured(model, dense, unseen.inputs())
    assert odd.relative_after == pytest.approx(found["odd"], rel=1e-6)


def test_a_layer_named_in_full_without_a_gradient_is_ranked_by_magnitude() -> None:
    report = prune(
        unseen.Frozen(),
        unseen.data(),
        0.5,
        method="loss",
        warm_start="gradient",
        include=["first", "odd", "last"],
        loss_settings={"max_blocks": 1, "samples": 32},
    )
    size = unseen.Frozen().odd.weight.abs()
    assert torch.equal(report.masks["odd.weight"], size > size.median(1, keepdim=True).values)


def test_weights_without_a_slope_are_ranked_by_magnitude_below_the_others() -> None:
    model = unseen.Base()
    with torch.no_grad():
        model.first.bias[:8] = -1e3  # these outputs are never above 0, so that nothing comes back to them
    size = model.first.weight.detach().abs()
    report = prune(
        model,
        unseen.data(),
        0.5,
        method="loss",
        warm_start="gradient",
        loss_settings={"max_blocks": 0, "samples": 32},
    )
    keep = report.masks["first.weight"]
    assert torch.equal(keep[:8], (size > size.median(1, keepdim=True).values)[:8])


def test_a_loss_that_depends_on_no_layer_is_refused() -> None:
    class Deaf(unseen.Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return super().forward(x)

    model = Deaf()
    before = state(model)
    with pytest.raises(InputError, match=r"All 3 layers .* are not reached by any gradient of the loss"):
        prune(model, unseen.data(), 0.5, method="loss")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
