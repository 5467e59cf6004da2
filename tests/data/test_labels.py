"""Losses by labels of every form, held against sums written out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional

from qubo_prune.data import TensorSamples
from qubo_prune.data.labels import NoLabel, class_losses, several_losses, square_losses
from qubo_prune.data.losses import Classification, MultiLabel, NextToken, Objective, Regression, make_loss
from qubo_prune.errors import InputError


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_classes_of_positions_are_a_mean_over_those_that_count() -> None:
    given, labels = logits(2, 4, 3), torch.tensor([[0, -100, 2, 1], [-100, -100, -100, 2]])
    chances = given.log_softmax(-1)
    first = -(chances[0, 0, 0] + chances[0, 2, 2] + chances[0, 3, 1]) / 3
    expected = [float(first), float(-chances[1, 3, 2])]
    assert class_losses(given, labels).tolist() == pytest.approx(expected, rel=1e-12)
    assert class_losses(given.transpose(1, 2), labels).tolist() == pytest.approx(expected, rel=1e-12)
    assert class_losses(given[:, 0], torch.tensor([[1], [2]])).tolist() == pytest.approx(
        [float(-chances[0, 0, 1]), float(-chances[1, 0, 2])], rel=1e-12
    )


def test_shares_of_classes_and_several_labels_and_numbers() -> None:
    given = logits(2, 3)
    shares = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    expected = -(shares * given.log_softmax(-1)).sum(1)
    assert class_losses(given, shares).tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    labels = torch.tensor([[1, 0, 1], [-100, 1, 0]])
    terms = [[functional.logsigmoid(x if y else -x) for x, y in zip(*row, strict=True)] for row in zip(given, labels)]  # noqa: B905
    expected = torch.stack([-sum(terms[0]) / 3, -(terms[1][1] + terms[1][2]) / 2])  # type: ignore[arg-type,call-overload]
    assert several_losses(given, labels).tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert several_losses(given, labels.double()).tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert square_losses(torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 2.5])).tolist() == [4.0, 0.25]
    assert square_losses(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 1.0]])).tolist() == [2.5]


@pytest.mark.parametrize(
    ("loss", "given", "labels", "said"),
    [
        (class_losses, logits(2, 3), torch.tensor([0, 3]), "hold class 3, and the model gives logits of 3 classes"),
        (class_losses, logits(2, 3), torch.tensor([0, -1]), "hold class -1, and the model gives"),
        (class_losses, logits(2, 3), torch.tensor([[0, 1], [1, 1]]), r"taken for classes and have shape \(2, 2\)"),
        (class_losses, logits(2, 1), torch.tensor([0, 1]), "gives one output a sample.*give loss='regression'"),
        (
            class_losses,
            logits(2, 3),
            torch.tensor([[1.0, 1, 0], [0, 0, 1]]),
            "no shares of classes.*loss='multi-label'",
        ),
        (class_losses, logits(2, 3), torch.tensor([0.5, 1.5]), "taken for shares of classes"),
        (several_losses, logits(2, 3), torch.tensor([0, 1]), r"several labels a sample and have shape \(2,\)"),
        (square_losses, logits(2, 3), torch.tensor([0.5, 1.5]), r"taken for numbers.*gives \(2, 3\)"),
    ],
)
def test_labels_that_do_not_fit(loss: Any, given: Tensor, labels: Tensor, said: str) -> None:
    with pytest.raises(InputError, match=said):
        loss(given, labels)


@pytest.mark.parametrize("labels", [torch.tensor([1, -100]), torch.tensor([[0, 1], [-100, -100]])])
def test_a_sample_without_a_label_is_named(labels: Tensor) -> None:
    with pytest.raises(NoLabel) as caught:
        class_losses(logits(*labels.shape, 3), labels)
    assert caught.value.row == 1
    wide = logits(4, labels[0].numel(), 3)

    class Constant(nn.Module):
        def forward(self, rows: Tensor) -> Any:
            return SimpleNamespace(logits=wide[rows].squeeze(1))

    samples = TensorSamples(torch.arange(4), torch.stack([labels[0], labels[0], labels[0], labels[1]]))
    with pytest.raises(InputError, match="Sample 3 has no label but -100; leave it out"):
        Objective(Constant(), Classification()).measure(samples, torch.tensor([1, 3, 0]))


def test_next_tokens_take_labels_and_all_that_the_model_takes() -> None:
    model, ids = tiny.llama(), tiny.tokens(2, 6)
    labels = ids.clone()
    labels[0, :3] = -100
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    given = model(ids, position_ids=positions).logits.detach().double().log_softmax(-1)
    steps = -given[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    expected = [float(steps[0, 2:].mean()), float(steps[1].mean())]
    batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
    prediction = NextToken().predict(model, batch)
    assert NextToken().losses(prediction, batch).tolist() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match=r"The labels are \(2, 5\) beside token ids \(2, 6\)"):
        NextToken().losses(prediction, {**batch, "labels": labels[:, 1:]})
    with pytest.raises(InputError, match="has an encoder and a decoder"):
        NextToken().predict(tiny.t5(), ids)


def test_a_decoder_reads_its_labels() -> None:
    model, ids, labels = tiny.bart(), tiny.tokens(2, 6), tiny.tokens(2, 4) % 60
    labels[1, 1] = -100
    batch = {"input_ids": ids, "labels": labels}
    found = Classification().losses(Classification().predict(model, batch), batch)
    expected = [model(input_ids=ids[row : row + 1], labels=labels[row : row + 1]).loss.item() for row in (0, 1)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_labels_are_drawn_from_the_distribution_of_each_loss() -> None:
    count, draw = 20000, torch.Generator().manual_seed(0)
    prediction = torch.full((count, 1), 1.0986)  # chances 3 : 1
    drawn = MultiLabel().drawn(prediction, draw)
    assert float((drawn < 0.5).float().mean()) == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / count))
    drawn = Regression().drawn(prediction, draw)  # a normal density of variance 1/2 has the squared error as exponent
    assert float(drawn.mean()) == pytest.approx(0.5, abs=5 * math.sqrt(0.5 / count))
    assert make_loss("multi-label") == MultiLabel()
    assert make_loss("regression") == Regression()
