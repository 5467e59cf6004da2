"""Chains of methods: which orders can be run, what words mean, and that objects and words do the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch

from qubo_prune import Chain, prune
from qubo_prune.errors import InputError, QuboPruneError
from qubo_prune.methods.admm import Admm
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "the first step makes no mask"),
        ([GramBlocks()], "the first step makes no mask"),
        ([Wanda(), Magnitude()], "a step behind the first makes a mask"),
        ([Wanda(), LossBlocks(), Refit()], "has to be the last step"),
        ([Wanda(), GramBlocks(), CompensatedBlocks()], "blocks of rows stand in it twice"),
        ([Gradient(), GramBlocks()], "needs samples of a loss"),
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
    assert entry.words() == {
        "method": "sparsefw", "update": "refit", "method_settings": {"alpha": 0.5}, "damping": 0.1
    }  # fmt: skip
    assert Entry("no-longer-installed").label == "no-longer-installed"
    assert {"allocation", "solver", "warm_start"} <= set(ENTRY_SETTINGS)
    for old, now in (("icbs:gram", "gram"), ("icbs:compensated", "compensated"), ("icbs:fisher", "loss")):
        assert Entry.parse(old) == Entry(now)
