"""Channels that may be reordered: found, done, seen to change nothing, or taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from qubo_prune import InputError, prune
from qubo_prune.models.calls import as_call
from qubo_prune.models.channels import Channels, candidates, first_tensor, input_power, reordered
from qubo_prune.models.layers import find_layers

MODELS: dict[str, tuple[Callable[[], Any], Any, set[str]]] = {
    "llama": (tiny.llama, tiny.tokens(), {"down_proj"}),
    "gemma": (tiny.gemma, tiny.tokens(), {"down_proj"}),
    "gpt2": (tiny.gpt2, tiny.tokens(), {"c_proj"}),
    "bert": (tiny.bert, tiny.tokens(), {"dense"}),
    "vit": (tiny.vit, tiny.images(4), {"dense", "fc2", "2"}),
    "mlp": (tiny.mlp, torch.randn(5, 12), {"2", "4"}),
}


def _orders(found: list[Channels]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {each.reader.name: torch.randperm(each.reader.shape[1], generator=generator) for each in found}


@pytest.mark.parametrize("kind", MODELS)
def test_models_are_the_same_with_their_channels_in_another_order(kind: str) -> None:
    make, batch, readers = MODELS[kind]
    model, dense = make().eval(), make().eval()
    layers = find_layers(model)
    with torch.no_grad():
        expected = first_tensor(dense(batch))
        found = candidates(model, layers)
        done = reordered(found, _orders(found), lambda: first_tensor(model(batch)))
        assert done
        assert {each.reader.name.rpartition(".")[2] for each in done} <= readers
        torch.testing.assert_close(first_tensor(model(batch)), expected, rtol=1e-4, atol=1e-5)
    changed = {
        name
        for (name, new), old in zip(model.named_parameters(), dense.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    touched = {layer.name for each in done for layer in (*each.makers, each.reader)}
    assert {name.rpartition(".")[0] for name in changed} == touched


class _Mixed(nn.Module):
    """Channels that are mixed between two layers, beside some that are not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)
        self.c, self.d = nn.Linear(4, 6), nn.Linear(6, 4)
        self.unused = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).cumsum(-1)) + self.d(self.c(x).tanh())


def test_what_would_change_the_model_is_taken_back() -> None:
    model = _Mixed()
    before = {name: value.clone() for name, value in model.named_parameters()}
    layers = [layer for layer in find_layers(model) if layer.name != "unused"]
    found = candidates(model, layers)
    assert {each.reader.name for each in found} >= {"b", "d"}
    x = torch.randn(7, 4)
    with torch.no_grad():
        done = reordered(found, _orders(found), lambda: model(x))
    assert [each.reader.name for each in done] == ["d"]
    assert torch.equal(model.a.weight, before["a.weight"])
    assert torch.equal(model.b.weight, before["b.weight"])
    assert not torch.equal(model.d.weight, before["d.weight"])


def test_what_a_batch_does_not_reach_keeps_its_order() -> None:
    model = _Mixed()
    layers = {layer.name: layer for layer in find_layers(model)}
    found = [Channels((layers["unused"],), layers["d"])]
    before = model.unused.weight.clone()
    with torch.no_grad():
        assert reordered(found, _orders(found), lambda: model(torch.randn(7, 4))) == []
    assert torch.equal(model.unused.weight, before)


def test_the_power_of_inputs_is_their_mean_square() -> None:
    model, batches = tiny.mlp(), [torch.randn(5, 12), torch.randn(3, 12)]
    layers = find_layers(model)
    found = input_power(model, layers, [as_call(batch) for batch in batches])
    torch.testing.assert_close(found["0"], torch.cat(batches).double().square().mean(0))
    assert (found["2"] >= 0).all()


@pytest.mark.parametrize("update", [None, "refit"])
def test_a_run_prunes_less_in_the_new_order(update: str | None) -> None:
    batches, errors = list(torch.split(tiny.tokens(16, 24), 1)), {}
    for reorder in (False, True):
        model = tiny.llama()
        report = prune(model, batches, 0.5, method="wanda", update=update, pattern="2:4", reorder=reorder)
        errors[reorder] = sum(layer.error_after or 0 for layer in report.layers if "down_proj" in layer.name)
        names = [f"model.layers.{number}.mlp.down_proj" for number in range(2)]
        assert report.settings.get("reordered") == (names if reorder else None)
        for name, mask in report.masks.items():
            weight = dict(model.named_parameters())[name]
            assert not bool(weight[~mask].any())
            assert bool((mask.reshape(len(mask), -1, 4).sum(-1) == 2).all())
    assert errors[True] < errors[False]


def test_a_run_that_fails_gives_the_model_back_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    before = [parameter.clone() for parameter in model.parameters()]

    def fails(*args: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("qubo_prune.run.layerwise.LayerRun.measure_all", fails)
    with pytest.raises(RuntimeError):
        prune(model, list(torch.split(tiny.tokens(), 1)), 0.5, method="wanda", pattern="2:4", reorder=True)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "row"}, "give a pattern such as 2:4"),
        ({"pattern": "2:4", "method": "gram", "warm_start": {"x": torch.ones(2, 2)}}, "leave one of the two out"),
    ],
)
def test_what_cannot_be_reordered_is_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prune(tiny.llama(), tiny.tokens(), 0.5, reorder=True, **{"method": "wanda", **settings})
