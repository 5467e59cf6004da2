"""Chains of methods: which orders can be run, what words mean, and that objects and words do the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch

from qubo_prune import Chain, prune
from qubo_prune.errors import InputError, QuboPruneError
from qubo_prune.masks.keep import keep_highest
from qubo_prune.methods.admm import Admm
from qubo_prune.methods.base import (
    Decision,
    LayerMethod,
    LayerTask,
    ModelDecision,
    ModelMethod,
    ModelTask,
    Sampling,
    Traits,
)
from qubo_prune.methods.chain import ENTRY_SETTINGS, DenseWeights, Entry, chain_of
from qubo_prune.methods.compensated_blocks import CompensatedBlocks
from qubo_prune.methods.gradient import Gradient
from qubo_prune.methods.gram_blocks import GramBlocks
from qubo_prune.methods.loss_blocks import LossBlocks
from qubo_prune.methods.magnitude import Magnitude
from qubo_prune.methods.refit import Refit
from qubo_prune.methods.sparsefw import SparseFW
from qubo_prune.methods.wanda import Wanda
from qubo_prune.request import MethodSettings


def steps(**words: Any) -> list[str]:
    return [type(step).__name__ for step in chain_of(MethodSettings(**words)).steps]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ({}, ["Wanda", "GramBlocks"]),
        ({"method": "gram", "warm_start": "admm", "update": "refit"}, ["Admm", "GramBlocks", "Refit"]),
        ({"method": "compensated"}, ["Admm", "CompensatedBlocks", "Refit"]),
        ({"method": "compensated", "update": "none"}, ["Admm", "CompensatedBlocks", "DenseWeights"]),
        ({"method": "admm"}, ["Admm"]),
        ({"method": "admm", "update": "none"}, ["Admm", "DenseWeights"]),
        ({"method": "wanda", "update": "sparsegpt"}, ["Wanda", "SparseGptUpdate"]),
        ({"method": "loss"}, ["Wanda", "LossBlocks"]),
        ({"method": "icbs"}, ["Wanda", "LossBlocks"]),
        ({"method": "icbs", "warm_start": "gradient"}, ["Gradient", "LossBlocks"]),
        ({"method": "loss", "warm_start": "gram"}, ["Wanda", "GramBlocks", "LossBlocks"]),
        ({"hessian": "fisher"}, ["Wanda", "LossBlocks"]),
        ({"method": "icbs", "hessian": "gram"}, ["Wanda", "GramBlocks"]),
        ({"method": "icbs", "hessian": "compensated"}, ["Admm", "CompensatedBlocks", "Refit"]),
        ({"method": "random"}, ["Random"]),
        ({"method": "qubo_prune.methods.ria:Ria", "update": "refit"}, ["Ria", "Refit"]),
    ],
)
def test_what_words_mean(words: dict[str, Any], found: list[str]) -> None:
    assert steps(**words) == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"method": "wandda"}, r"no method 'wandda' \(did you mean 'wanda'"),
        ({"method": "refit"}, "no method 'refit'"),
        ({"method": 3}, "The method is of type int"),
        ({"method": Wanda}, "The method is the class Wanda; give a name such as 'gram', or an object"),
        ({"update": "refitt"}, r"no update 'refitt' \(did you mean 'refit'"),
        ({"method": "sparsefw", "method_settings": {"alhpa": 1}}, "no setting 'alhpa' .did you mean 'alpha'"),
        ({"method": "sparsefw", "method_settings": {"alpha": 3}}, "setting alpha .* is 3; a number from 0 to 1"),
        ({"method": "wanda", "method_settings": {"alpha": 1}}, "no setting 'alpha'; it has none"),
        ({"method": "wanda", "hessian": "gram"}, "The method 'wanda' takes no Hessian"),
        ({"hessian": "fischer"}, "did you mean 'fisher'"),
        ({"warm_start": "gradient"}, "no warm start 'gradient'"),
        ({"warm_start": "gram"}, "no warm start 'gram'"),
        ({"method": "loss", "update": "refit"}, "The update 'refit' needs the Grams"),
        ({"loss_settings": {"samples": 3}}, "the method 'gram' takes no loss"),
        ({"method": Wanda(), "method_settings": {"alpha": 1}}, "is made already"),
        ({"method": Chain([Wanda()]), "update": "refit"}, "is made already"),
        ({"method": "json:JSONDecoder"}, "is not a subclass of"),
        ({"method": "no.such.module:Thing"}, "cannot be loaded"),
    ],
)
def test_words_that_cannot_be_done_are_one_sentence(words: dict[str, Any], said: str) -> None:
    with pytest.raises(QuboPruneError, match=said):
        steps(**words)


@dataclass(frozen=True)
class Sampled(LayerMethod):
    """Says that it reads samples, and has no way to."""

    traits = Traits("sampled", reads="samples")

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        return Decision(keep=task.highest(task.wanda()))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "the first step makes no mask"),
        ([GramBlocks()], "the first step makes no mask"),
        ([Wanda(), Magnitude()], "a step behind the first makes a mask"),
        ([Wanda(), LossBlocks(), Refit()], "has to be the last step"),
        ([Wanda(), GramBlocks(), CompensatedBlocks()], "blocks of rows stand in it twice"),
        ([Gradient(), GramBlocks()], "needs samples of a loss"),
        ([Sampled(), LossBlocks()], "is no SampledStart"),
    ],
)
def test_orders_that_cannot_be_run(given: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Chain(given)


def test_what_follows_from_the_steps() -> None:
    assert Chain([Wanda(), GramBlocks()]).updates is False
    assert Chain([Admm()]).updates is True
    assert Chain([Admm(), GramBlocks()]).updates is False
    assert Chain([Admm(), DenseWeights()]).updates is False
    assert Chain([Admm(), CompensatedBlocks(), Refit()]).correction == 0.5
    assert Chain([Admm(), CompensatedBlocks(), DenseWeights()]).correction == 0.0
    assert Chain([Wanda(), Refit()]).protects is True
    assert Chain([Admm()]).protects is False
    assert Chain([Wanda(), GramBlocks()]).protects is False
    assert Chain([Admm(), CompensatedBlocks(), Refit()]).protects is True
    assert Chain([Magnitude(), LossBlocks()]).needs_inputs is False
    assert Chain([Wanda(), LossBlocks()]).needs_inputs is True
    assert Chain([Magnitude()]).needs_inputs is True  # its error is measured


@pytest.mark.parametrize(
    ("words", "chain"),
    [
        ({"method": "gram", "solver": "tabu", "block_size": 8}, [Wanda(), GramBlocks("tabu", block_size=8)]),
        ({"method": "sparsefw", "method_settings": {"alpha": 0.5}}, [SparseFW(0.5)]),
        (
            {"method": "compensated", "block_size": 8},
            [Admm(), CompensatedBlocks(block_size=8), Refit()],
        ),
        ({"method": "gram", "warm_start": "magnitude", "block_size": 8}, [Magnitude(), GramBlocks(block_size=8)]),
    ],
)
def test_objects_and_words_do_the_same(words: dict[str, Any], chain: list[Any]) -> None:
    first = tiny.llama()
    second = copy.deepcopy(first)
    named = prune(first, tiny.tokens(), seed=3, **words)
    made = prune(second, tiny.tokens(), seed=3, method=Chain(chain))
    assert named.settings["steps"] == made.settings["steps"]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert named.relative_error == made.relative_error


def test_one_object_gets_what_belongs_to_it() -> None:
    words, objects = tiny.llama(), tiny.llama()
    prune(words, tiny.tokens(), method="compensated", block_size=8)
    report = prune(objects, tiny.tokens(), method=CompensatedBlocks(block_size=8))
    assert report.settings["method"] == "CompensatedBlocks"
    assert all(torch.equal(a, b) for a, b in zip(words.parameters(), objects.parameters(), strict=True))


def test_entries_of_a_comparison() -> None:
    entry = Entry.parse("sparsefw+refit@alpha=0.5@damping=0.1")
    assert entry == Entry("sparsefw", "refit", (("alpha", 0.5), ("damping", 0.1)))
    assert str(entry) == "sparsefw+refit@alpha=0.5@damping=0.1"
    assert entry.label == "SparseFW + refit, alpha 0.5, damping 0.1"
    assert entry.words() == {"method": "sparsefw", "update": "refit", "method_settings": {"alpha": 0.5}, "damping": 0.1}
    assert Entry("no-longer-installed").label == "no-longer-installed"
    assert {"allocation", "solver", "warm_start"} <= set(ENTRY_SETTINGS)
    for old, now in (("icbs:gram", "gram"), ("icbs:compensated", "compensated"), ("icbs:fisher", "loss")):
        assert Entry.parse(old) == Entry(now)


@dataclass(frozen=True)
class Faulty(LayerMethod):
    """Wanda whose decision for one layer is wrong."""

    fault: str

    traits = Traits("faulty", updates=True)

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        keep = task.highest(task.wanda())
        weight = task.weight.masked_fill(~keep, 0)
        if task.name.endswith("1.mlp.up_proj"):
            if self.fault == "counts":
                keep[0] = True
                weight = task.weight.masked_fill(~keep, 0)
            if self.fault == "zeros":
                weight = task.weight
            if self.fault == "nan":
                weight = weight * torch.nan
            if self.fault == "shape":
                keep = keep[1:]
            if self.fault == "type":
                weight = weight.double()
        return Decision(keep=keep, weight=weight)


@dataclass(frozen=True)
class Greedier(LayerMethod):
    """Prunes more than it was given."""

    traits = Traits("greedier", starts=False)

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        assert so_far is not None
        return Decision(keep=so_far.keep & (torch.arange(so_far.keep.shape[1]) > 0))


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (Faulty("counts"), "a mask that breaks the pattern row at density 0.5"),
        (Faulty("zeros"), "pruned weights that are not zero"),
        (Faulty("nan"), "weights that are not finite"),
        (Faulty("shape"), "a mask of shape"),
        (Faulty("type"), "weights of shape .* and type torch.float64"),
        (Greedier(), "a mask with other counts than it was given"),
    ],
)
def test_a_wrong_decision_names_method_and_layer_and_changes_nothing(method: LayerMethod, said: str) -> None:
    model = tiny.llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer = "layers.1.mlp.up_proj" if isinstance(method, Faulty) else "layers.0.self_attn.q_proj"
    with pytest.raises(InputError, match=rf"The method '\w+' left layer '.*{layer}' with {said}"):
        prune(model, tiny.tokens(), method=method)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    if isinstance(method, Faulty):
        prune(model, tiny.tokens(), method=method, exclude=["*.1.mlp.up_proj"])


@dataclass(frozen=True)
class Whole(ModelMethod):
    """Prunes all layers by magnitude, or forgets one."""

    forgets: bool = False

    traits = Traits("whole", reads="samples", starts=False)

    @property
    def sampling(self) -> Sampling:
        return Sampling(4, 2, 2)

    def decide_all(self, task: ModelTask, so_far: Mapping[str, Decision]) -> ModelDecision:
        decided = {}
        for layer in task.layers:
            keep = keep_highest(task.dense[layer.name].abs(), task.pattern, 0.5)
            layer.assign(task.dense[layer.name] * keep)
            decided[layer.name] = Decision(keep=keep)
        if self.forgets:
            decided.popitem()
        return ModelDecision(decided)


def test_a_method_for_the_whole_model_of_ones_own() -> None:
    model, magnitude = tiny.mlp(), tiny.mlp()
    batches = [(torch.randn(8, 12), torch.arange(8) % 2) for _ in range(4)]
    report = prune(model, batches, method=Whole(), loss="classification")
    prune(magnitude, [inputs for inputs, _ in batches], method="magnitude")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), magnitude.parameters(), strict=True))
    assert report.loss is None
    assert report.settings["method"] == "Whole"
    assert "Whole" in str(report)
    with pytest.raises(InputError, match=r"The method 'whole' left layer .* without a mask of its counts"):
        prune(tiny.mlp(), batches, method=Whole(forgets=True), loss="classification")
