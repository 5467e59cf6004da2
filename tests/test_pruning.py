"""The main job on small models: exact counts, honest errors, nothing lost."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
from qubo_prune_solvers.greedy import Greedy
from torch import nn

import qubo_prune.pruning as pruning
from qubo_prune import InputError, KeepMasks, prune
from qubo_prune.layers import find_layers
from qubo_prune.masks import Pattern
from qubo_prune.solver import Capabilities, Solver, SolveRequest, SolveResult


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


@pytest.mark.parametrize("method", pruning.METHODS)
@pytest.mark.parametrize(("pattern", "density"), [("row", 0.5), ("row", 0.3), ("layer", 0.37)])
def test_convolutions_hold_exactly_their_counts(tmp_path: Path, method: str, pattern: str, density: float) -> None:
    model = tiny.cnn()
    dense, before = copy.deepcopy(model), state(model)
    report = prune(model, tiny.images(), density=density, pattern=pattern, method=method)
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


@pytest.mark.parametrize("start", [*pruning.WARM_STARTS, "masks"])
def test_grouped_convolutions_take_every_warm_start(start: str) -> None:
    given = prune(tiny.cnn(), tiny.images(), method="magnitude").masks if start == "masks" else start
    report = prune(tiny.cnn(), tiny.images(), warm_start=given)
    assert all(layer.error_after <= layer.error_before * (1 + 1e-9) for layer in report.layers)
    assert [int(mask.sum()) for mask in report.masks.values()] == [layer.kept for layer in report.layers]


def test_convolutions_come_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.cnn().to(memory_format=torch.channels_last)
    before, calls, real = state(model), [], pruning.descend

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("boom")
        return real(*args)

    monkeypatch.setattr(pruning, "descend", failing)
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
            "icbs": {},
            "wanda": {"method": "wanda"},
            "nothing": {"solver": _Nothing(), "max_time": 1e-6},
        }.items()
    }
    assert errors["icbs"] < errors["wanda"] == errors["nothing"]


class _Nothing(pruning.Solver):
    """Answers with the warm start."""

    def solve(self, request: Any, /) -> Any:
        from qubo_prune.solver import Status, single_answer

        return single_answer(request.problem, request.warm_start, Status.FEASIBLE)


def test_the_same_seed_gives_the_same_masks() -> None:
    first, second = (run(tiny.llama(), warm_start="random", seed=5) for _ in range(2))
    other = run(tiny.llama(), warm_start="random", seed=6)
    assert all(torch.equal(first.masks[name], second.masks[name]) for name in first.masks)
    assert not all(torch.equal(first.masks[name], other.masks[name]) for name in first.masks)


@pytest.mark.parametrize("start", pruning.WARM_STARTS)
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
    real = pruning.descend

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            raise failure
        return real(*args)

    monkeypatch.setattr(pruning, "descend", failing)
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
        ({"pattern": "rows"}, "pattern 'rows' is not known"),
        ({"pattern": "3:6", "density": 0.5}, r"has 16 inputs, which 6 does not divide"),
        ({"solver": "greedi"}, "did you mean 'greedy'"),
        ({"method": "wandaa"}, "did you mean 'wanda'"),
        ({"warm_start": "magnitud"}, "did you mean 'magnitude'"),
        ({"max_time": "5x"}, "'5x' is not understood"),
        ({"max_time": -1}, "is not understood"),
        ({"solver": Small(), "block_size": 64}, "'Small' takes at most 28 variables"),
        ({"block_time": "soon"}, "'soon' is not understood"),
        ({"workers": -1}, "workers is -1"),
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
    import json

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
    assert pruning.parse_seconds(text) == seconds


def test_a_density_that_keeps_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"keeps none of the 16 weights in a row"):
        run(tiny.llama(), density=0.01)


def test_small_solvers_get_small_blocks() -> None:
    report = run(tiny.llama(), solver=Small(), include=["*.0.self_attn.k_proj"])
    assert report.settings["block_size"] == 28
    assert report.layers[0].error_after < report.layers[0].error_before


def test_output_needs_a_model_that_can_be_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes a transformers model"):
        prune(tiny.mlp(), torch.randn(8, 12), output=tmp_path / "out", tokenizer=tiny.tokenizer())
