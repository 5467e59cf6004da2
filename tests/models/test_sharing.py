"""Parameters that share memory are found, whatever form the sharing has."""

from __future__ import annotations

from typing import Any

import measured
import pytest
import tiny
import torch
from torch import Tensor, nn

from qubo_prune.errors import InputError
from qubo_prune.models.layers import find_layers
from qubo_prune.models.sharing import Sharing
from qubo_prune.run.prune import prune


class Tied(nn.Module):
    """Token ids to logits, with a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.body, self.head = nn.Embedding(64, 8), nn.Linear(8, 8), nn.Linear(8, 64, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(ids)).relu())


class Table(nn.Module):
    """An embedding of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(64, 8))

    def forward(self, ids: Tensor) -> Tensor:
        return self.values[ids]


def own_table() -> nn.Module:
    model = Tied()
    model.embedding = Table()
    model.head.weight = model.embedding.values
    return model


def view() -> nn.Module:
    """Two parameters in one memory."""
    model = Tied()
    model.head.weight = nn.Parameter(model.embedding.weight.data)
    return model


def bag() -> nn.Module:
    model = Tied()
    model.bag = nn.EmbeddingBag(64, 8)
    model.bag.weight = model.head.weight
    return model


def functional() -> nn.Module:
    """A head that is no module at all."""
    model = Tied()
    del model.head
    model.forward = lambda ids: nn.functional.linear(model.body(model.embedding(ids)), model.embedding.weight)
    return model


def untied_and_wrapped() -> nn.Module:
    """A head that transformers reports of a part of the model."""
    return tiny.Wrapped(tiny.llama())


TIED = {
    "plain": (Tied, ["body"]),
    "wrapped": (lambda: nn.Sequential(Tied()), ["0.body"]),
    "a table of one's own": (own_table, ["body"]),
    "a view": (view, ["body"]),
    "a bag": (bag, ["body"]),
    "functional": (functional, ["body"]),
}


@pytest.mark.parametrize("kind", TIED)
def test_weights_that_an_embedding_shares_stay_dense(kind: str) -> None:
    make, expected = TIED[kind]
    model, batches = make(), list(tiny.tokens(3).split(1))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    report = prune(model, batches, 0.5)
    assert [layer.name for layer in report.layers] == expected
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) == (name.removesuffix(".weight") not in expected)


def test_a_tied_head_is_pruned_whole_if_asked() -> None:
    for model, name in ((Tied(), "head"), (nn.Sequential(Tied()), "0.head")):
        report = prune(model, list(tiny.tokens(3).split(1)), 0.5, prune_head=True, method="compensated")
        assert name in [layer.name for layer in report.layers]
        tied = model if isinstance(model, Tied) else model[0]
        assert tied.head.weight is tied.embedding.weight
        assert int((tied.embedding.weight == 0).sum()) == 64 * 4


@pytest.mark.parametrize("update", ["none", "refit"])
def test_errors_of_a_tied_head_and_of_what_reads_its_embedding_are_those_of_the_pruned_model(update: str) -> None:
    for model in (Tied(), nn.Sequential(Tied()), tiny.llama(tie_word_embeddings=True)):
        batches, dense = list(tiny.tokens(6).split(1)), measured.weights(model)
        report = prune(model, batches, 0.5, prune_head=True, method="compensated", update=update)
        found = measured.measured(model, dense, batches)
        assert len(report.layers) > 1
        assert {layer.name: layer.relative_after for layer in report.layers} == pytest.approx(found, rel=1e-6)
        assert all("is tied to one that other parts" in " ".join(layer.notes) for layer in report.layers)


def test_the_way_to_a_tied_head_is_said_where_it_was_asked_for() -> None:
    with pytest.raises(InputError, match=r"'head' shares its weight with 'embedding', so it stays dense .*prune_head"):
        find_layers(Tied(), include=["head"])
    with pytest.raises(InputError, match=r"'lm\.lm_head' is the output head, so it stays dense"):
        find_layers(untied_and_wrapped(), include=["*lm_head"])
    assert [layer.name for layer in find_layers(Tied(), exclude=["head"])] == ["body"]
    with pytest.raises(InputError, match="matches none"):
        find_layers(Tied(), exclude=["heads"])


def test_heads_within_a_model_stay_dense_as_its_own_would() -> None:
    names = [layer.name for layer in find_layers(untied_and_wrapped())]
    assert names == [f"lm.{layer.name}" for layer in find_layers(tiny.llama())]
    assert "lm_head" not in " ".join(layer.name for layer in find_layers(nn.Sequential(tiny.t5())))


def test_two_parameters_in_one_memory_are_refused_since_one_would_change_with_the_other() -> None:
    one, other = nn.Linear(8, 8), nn.Linear(8, 8)
    for shared in (one.weight.data, one.weight.data.T, one.weight.data[:4]):
        other.weight = nn.Parameter(shared)
        model: nn.Module = nn.Sequential(one, nn.Linear(8, 8), other)
        for include, exclude in ([], []), (["0"], []), ([], ["2"]):
            with pytest.raises(InputError, match="'0' has its weight in the memory of another parameter, that of '2'"):
                find_layers(model, include, exclude)
        assert [layer.name for layer in find_layers(model, exclude=["0", "2"])] == ["1"]
    with pytest.raises(InputError, match=r"'head' has its weight in the memory .* 'embedding'.* same nn.Parameter"):
        find_layers(view(), prune_head=True)


def test_a_weight_of_several_layers_goes_by_all_their_names() -> None:
    one, other = nn.Linear(8, 8), nn.Linear(8, 8)
    other.weight = one.weight
    model = nn.Sequential(one, nn.Linear(8, 8), other)
    given: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["0", "1"]),
        ({"include": ["2"]}, ["0"]),
        ({"exclude": ["2"]}, ["1"]),
        ({"exclude": ["0"]}, ["1"]),
    ]
    for patterns, expected in given:
        assert [layer.name for layer in find_layers(model, **patterns)] == expected


def test_parts_of_one_memory_that_do_not_overlap_are_apart() -> None:
    flat = torch.randn(3 * 64)
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)))
    for layer, part in zip(model, flat.split(64), strict=True):
        layer.weight = nn.Parameter(part.view(8, 8))
    assert len(find_layers(model)) == 3
    report = prune(model, [torch.randn(16, 8)], 0.5)
    assert report.masks.verify(model) == {}
    assert int((flat == 0).sum()) == 3 * 32


def test_overlaps_are_those_of_bytes() -> None:
    flat, names = torch.randn(40), {"first": (0, 10), "inner": (8, 12), "last": (12, 40), "none": (9, 9)}
    model = nn.Module()
    for name, (begin, end) in names.items():
        model.add_module(name, nn.ParameterList([nn.Parameter(flat[begin:end])]))
    found = {
        name: [place.name for place in Sharing(model).others(part, part[0])] for name, part in model._modules.items()
    }
    assert found == {"first": ["inner"], "inner": ["first"], "last": [], "none": []}


def test_weights_without_memory_share_nothing_but_themselves() -> None:
    with torch.device("meta"):
        model = Tied()
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))
    assert [layer.name for layer in find_layers(lazy, exclude=["0"])] == ["1"]
    assert [place.name for place in Sharing(model).others(model.head, model.head.weight)] == ["embedding"]
    assert Sharing(model).others(model.body, model.body.weight) == []
