"""Losses sample by sample, held against sums written out by hand."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qubo_prune.data import TensorSamples, collated
from qubo_prune.data.losses import LOSSES, Classification, Given, Loss, NextToken, Objective, make_loss
from qubo_prune.errors import InputError

CHANCES = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.2, 0.2, 0.6]], dtype=torch.float64)


def bigram() -> nn.Module:
    """A language model over three tokens whose probabilities are ``CHANCES[token]``."""
    return nn.Embedding.from_pretrained(CHANCES.log())


class Wrapped(nn.Module):
    """Output and keywords as transformers has them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values: Tensor, scale: float | Tensor = 1.0) -> Any:
        return SimpleNamespace(logits=self.inner(pixel_values) * scale)


def squares(model: nn.Module, batch: Any) -> Tensor:
    """A loss function of a user's own."""
    x, y = batch
    return (model(x)[:, 0] - y).square()


def test_classification_is_minus_the_log_probability_of_the_label() -> None:
    tokens, labels = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 0, 2])
    found = Objective(bigram(), Classification()).measure(TensorSamples(tokens, labels))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([-math.log(p) for p in (0.5, 0.75, 0.2, 0.25)], rel=1e-6)


def test_batches_may_be_tuples_lists_or_dicts() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.rand(6, 4), torch.tensor([0, 1, 2, 2, 1, 0])
    logits = model(x).detach().double()
    for wrapper, batch, factor in (
        (model, (x, y), 1.0),
        (model, [x, y], 1.0),
        (Wrapped(model), (x, y), 1.0),
        (Wrapped(model), {"pixel_values": x, "labels": y}, 1.0),
        (Wrapped(model), {"labels": y, "scale": torch.full((6, 1), 3.0), "pixel_values": x}, 3.0),
    ):
        expected = -(factor * logits).log_softmax(1)[torch.arange(6), y]
        found = Objective(wrapper, Classification()).measure(collated([batch]))
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_next_token_is_the_mean_over_the_tokens_of_a_window_but_the_first() -> None:
    windows = torch.tensor([[0, 0, 1, 2], [2, 2, 2, 2]])
    first = -(math.log(0.5) + math.log(0.25) + math.log(0.125)) / 3
    for batch in (windows, (windows,), [windows], {"input_ids": windows}):
        found = Objective(bigram(), NextToken()).measure(collated([batch]))
        assert found.tolist() == pytest.approx([first, -math.log(0.6)], rel=1e-6)


@pytest.mark.parametrize(
    "batch",
    [
        torch.rand(2, 4),
        torch.tensor([1, 2]),
        torch.tensor([[1], [2]]),
        torch.zeros(2, 3, 4, dtype=torch.long),
        {"tokens": torch.tensor([[1, 2]])},
        (torch.tensor([[1, 2]]), torch.tensor([1])),
    ],
)
def test_what_holds_no_token_windows(batch: Any) -> None:
    with pytest.raises(InputError, match=f"A batch of type {type(batch).__name__} holds no token windows"):
        NextToken().predict(bigram(), batch)


@pytest.mark.parametrize("batch", [torch.rand(2, 4), (torch.rand(2, 4),), {"pixel_values": torch.rand(2, 4)}, "text"])
def test_what_holds_no_labels(batch: Any) -> None:
    with pytest.raises(InputError, match=f"A batch of type {type(batch).__name__} holds no labels"):
        Classification().predict(nn.Linear(4, 2), batch)


def test_a_model_that_gives_no_logits() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(InputError, match=r"The model returned tuple; a tensor of logits or an output with \.logits"):
        Classification().predict(Two(), (torch.rand(2, 3), torch.tensor([0, 1])))


def test_the_micro_batch_changes_nothing_and_the_order_is_that_of_the_indices() -> None:
    torch.manual_seed(0)
    samples = TensorSamples(torch.rand(11, 4), torch.randint(0, 3, (11,)))
    model = nn.Linear(4, 3)
    whole = Objective(model, Classification()).measure(samples)
    assert not whole.requires_grad
    chosen = torch.tensor([7, 0, 10, 3, 3])
    for size in (1, 2, 4, 11, 100):
        objective = Objective(model, Classification(), micro_batch=size)
        assert objective.measure(samples).tolist() == pytest.approx(whole.tolist(), rel=1e-6)
        assert objective.measure(samples, chosen).tolist() == pytest.approx(whole[chosen].tolist(), rel=1e-6)
        assert [len(part.rows) for part in objective.parts(samples, chosen)] == [size] * (5 // size) + [
            5 % size
        ] * bool(5 % size)


def test_wide_models_are_measured_in_their_own_precision() -> None:
    tokens = torch.tensor([[0, 1, 2, 2]])
    exact = -sum(math.log(p) for p in (0.25, 0.125, 0.6)) / 3
    found = Objective(bigram(), NextToken()).measure(TensorSamples(tokens))
    assert float(found) == pytest.approx(exact, rel=1e-14)
    found = Objective(bigram(), Classification()).measure(TensorSamples(torch.tensor([2]), torch.tensor([1])))
    assert float(found) == pytest.approx(-math.log(0.2), rel=1e-14)
    half = Objective(nn.Linear(4, 2).bfloat16(), Classification())
    prediction, losses = half.losses_of((torch.rand(3, 4).bfloat16(), torch.tensor([0, 1, 1])), torch.arange(3))
    assert prediction.dtype == losses.dtype == torch.float32


def test_a_loss_is_measured_in_evaluation_mode_and_the_mode_comes_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 3))
    samples = TensorSamples(torch.rand(16, 4), torch.randint(0, 3, (16,)))
    objective = Objective(model, Classification())
    model.eval()
    expected = objective.measure(samples)
    model.train()
    model[2].eval()
    assert torch.equal(objective.measure(samples), expected)
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    with pytest.raises(InputError, match="NaN"):
        objective.measure(TensorSamples(torch.full((2, 4), torch.nan), torch.tensor([0, 1])))
    assert model.training
    assert int(model[2].num_batches_tracked) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_names_the_sample(value: float) -> None:
    y = torch.zeros(12)
    y[7] = value
    samples = TensorSamples(torch.rand(12, 2), y)
    objective = Objective(nn.Linear(2, 1), Given(squares), micro_batch=3)
    order = torch.tensor([0, 1, 2, 9, 7, 5, 3])
    with pytest.raises(InputError, match=r"NaN or infinite in sample 7 \(batch of samples 9 to 5\)"):
        objective.measure(samples, order)
    assert len(objective.measure(samples, torch.tensor([0, 6, 8, 11]))) == 4


def test_a_function_of_the_users_own_gives_one_value_per_sample() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(5, 2), torch.rand(5)
    model = nn.Linear(2, 1)
    found = Objective(model, make_loss(squares), micro_batch=2).measure(TensorSamples(x, y))
    (first, second), bias = model.weight.tolist()[0], model.bias.item()
    expected = [(first * a + second * b + bias - t) ** 2 for (a, b), t in zip(x.tolist(), y.tolist(), strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda model, batch: squares(model, batch).mean(), r"returned \(\); a tensor \(b,\).*leave out the mean"),
        (lambda model, batch: squares(model, batch)[:, None], r"returned \(4, 1\); a tensor \(b,\)"),
        (lambda model, batch: squares(model, batch)[1:], "returned 3 values for a batch of 4 samples"),
    ],
)
def test_a_function_that_gives_something_else(function: Any, said: str) -> None:
    samples = TensorSamples(torch.rand(4, 2), torch.rand(4))
    with pytest.raises(InputError, match=said):
        Objective(nn.Linear(2, 1), Given(function)).measure(samples)


def test_labels_are_drawn_from_what_the_model_predicts() -> None:
    count = 4000
    prediction = CHANCES.log()[:1].repeat(count, 1)
    losses = Classification().drawn(prediction, torch.Generator().manual_seed(0))
    found = Counter(round(float(loss), 6) for loss in losses)
    assert found.keys() == {round(-math.log(p), 6) for p in (0.5, 0.25)}
    # five standard errors
    assert found[round(-math.log(0.5), 6)] / count == pytest.approx(0.5, abs=5 * 0.5 / count**0.5)
    windows = torch.zeros(count // 4, 5, dtype=torch.long)
    model = Objective(bigram(), NextToken())
    drawn = NextToken().drawn(NextToken().predict(model.model, windows), torch.Generator().manual_seed(0))
    assert drawn.shape == (count // 4,)
    entropy = -float((CHANCES[0] * CHANCES[0].log()).sum())
    assert float(drawn.mean()) == pytest.approx(entropy, abs=0.03)


def test_a_draw_follows_its_generator() -> None:
    prediction = torch.randn(50, 3, generator=torch.Generator().manual_seed(5))
    first, again, other = (
        Classification().drawn(prediction, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_only_likelihoods_draw_labels() -> None:
    assert all(loss.likelihood for loss in LOSSES.values())
    given = Given(squares)
    assert not given.likelihood
    with pytest.raises(NotImplementedError, match="Given cannot draw labels"):
        given.drawn(torch.zeros(2), torch.Generator())


def test_losses_by_name_by_function_and_as_they_are() -> None:
    assert make_loss("classification") == Classification()
    assert make_loss("next-token") == NextToken()
    own: Loss = Given(squares)
    assert make_loss(own) is own
    assert make_loss(squares) == own
    with pytest.raises(InputError, match=r"no loss 'next_token' \(did you mean 'next-token'\?\); use one of classif"):
        make_loss("next_token")
