"""What a run draws from: texts, token ids, tensors, batches and samples, with and without a loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from qubo_prune.data import Subset, TensorSamples
from qubo_prune.data.calibration import as_samples, choose_loss, read_calibration, split_held_out
from qubo_prune.data.losses import Classification, Given, Loss, NextToken
from qubo_prune.errors import InputError
from qubo_prune.models import LoadedModel


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(205), encoding="utf-8")
    return str(path)


def read(source: Any, loss: Loss | None = None, model: nn.Module | None = None, **sizes: int) -> Any:
    loaded = LoadedModel(model or nn.Linear(3, 2), tiny.tokenizer(), "test")
    settings = {"windows": 4, "length": 10, "loss_length": 20, **sizes}
    return read_calibration(source, loaded, loss=loss, **settings)


def rows(count: int, width: int = 3) -> Tensor:
    """Rows that tell their number."""
    return torch.arange(count * width, dtype=torch.float32).reshape(count, width)


# -- without a loss


def test_a_text_becomes_windows_one_by_one(text: str) -> None:
    found = read(text)
    assert [tuple(window.shape) for window in found.inputs] == [(1, 10)] * 4
    assert found.samples is None
    assert found.described["source"] == text
    assert (found.described["windows"], found.described["tokens"], found.described["tokens_available"]) == (4, 40, 205)
    assert "loss_windows" not in found.described


def test_token_ids_go_one_by_one_and_other_inputs_in_batches() -> None:
    tokens, pixels = tiny.tokens(5, 8), rows(300)
    found = read(tokens)
    assert torch.equal(torch.cat(found.inputs), tokens)
    assert [len(batch) for batch in found.inputs] == [1] * 5
    assert found.described == {"source": "given inputs", "batches": 5}
    found = read(pixels)
    assert torch.equal(torch.cat(found.inputs), pixels)
    assert [len(batch) for batch in found.inputs] == [128, 128, 44]
    assert found.samples is None


class Anything(nn.Module):
    """Takes whatever it is given."""

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Nothing comes out."""


def test_batches_of_inputs_stay_as_they_are() -> None:
    given = [rows(2), (rows(2), rows(1)), [rows(2)], {"x": rows(2), "flag": True}]
    for source in (given, iter(given)):
        found = read(source, model=Anything())
        assert torch.equal(found.inputs[0], given[0])
        assert isinstance(found.inputs[1], tuple)
        assert torch.equal(found.inputs[1][1], rows(1))
        assert torch.equal(found.inputs[2][0], rows(2))
        assert found.inputs[3]["flag"] is True
        assert found.described == {"source": "given inputs", "batches": 4}
        assert found.samples is None


def test_samples_without_a_loss_are_inputs() -> None:
    samples = TensorSamples(rows(200))
    found = read(samples)
    assert [len(batch) for batch in found.inputs] == [128, 72]
    assert sorted(torch.cat(found.inputs)[:, 0].tolist()) == rows(200)[:, 0].tolist()
    assert found.samples is samples


# -- with a loss


def test_a_text_with_a_loss_gives_all_its_windows_as_samples(text: str) -> None:
    found = read(text, NextToken())
    assert [tuple(window.shape) for window in found.inputs] == [(1, 10)] * 4
    assert len(found.samples) == 205 // 20
    assert found.samples.batch(torch.tensor([3, 1])).shape == (2, 20)
    assert (found.described["loss_windows"], found.described["loss_length"]) == (10, 20)
    # the same text, cut in two ways
    flat = found.samples.batch(torch.arange(10)).flatten()
    assert torch.equal(found.inputs[0][0], flat[:10])


def test_token_ids_with_a_loss_are_samples_of_one_window() -> None:
    tokens = tiny.tokens(5, 8)
    found = read(tokens, NextToken())
    assert [tuple(window.shape) for window in found.inputs] == [(1, 8)] * 5
    assert sorted(map(tuple, torch.cat(found.inputs).tolist())) == sorted(map(tuple, tokens.tolist()))
    assert torch.equal(found.samples.batch(torch.arange(5)), tokens)
    assert found.described == {"source": "given samples", "samples": 5, "gram_samples": 5}


@pytest.mark.parametrize("form", ["samples", "tuples", "dicts"])
def test_labels_are_left_out_of_the_inputs(form: str) -> None:
    x, y = rows(150), torch.arange(150)
    source: Any = {
        "samples": TensorSamples(x, y),
        "tuples": zip(torch.split(x, 40), torch.split(y, 40), strict=True),
        "dicts": [{"x": x[at : at + 50], "labels": y[at : at + 50]} for at in (0, 50, 100)],
    }[form]
    found = read(source, Classification())
    inputs = [batch["x"] if form == "dicts" else batch for batch in found.inputs]
    assert all(list(batch) == ["x"] for batch in found.inputs if form == "dicts")
    assert [len(batch) for batch in inputs] == [128, 22]
    assert sorted(torch.cat(inputs)[:, 0].tolist()) == x[:, 0].tolist()
    assert len(found.samples) == 150
    drawn = found.samples.batch(torch.tensor([7, 149]))
    labels = drawn["labels"] if form == "dicts" else drawn[1]
    assert labels.tolist() == [7, 149]


def test_a_loss_of_the_users_own_takes_pairs_as_inputs_and_labels() -> None:
    def own(model: nn.Module, batch: Any) -> Tensor:
        raise AssertionError("only runs that descend on it measure it")

    found = read([(rows(4), torch.arange(4))], Given(own))
    assert found.inputs[0].shape == (4, 3)
    assert len(read(rows(6), Given(own)).samples) == 6


def test_grams_take_some_of_many_samples() -> None:
    samples = TensorSamples(rows(400), torch.arange(400))
    first, again = (torch.cat(read(samples, Classification(), gram_samples=50).inputs)[:, 0] for _ in range(2))
    assert len(set(first.tolist())) == 50
    assert torch.equal(first, again)
    assert len(read(samples, Classification()).samples) == 400


# -- errors


@pytest.mark.parametrize("source", [[], iter([])])
def test_no_batch_is_an_error_with_and_without_a_loss(source: Any) -> None:
    with pytest.raises(InputError, match="no batch"):
        read(source)
    with pytest.raises(InputError, match="no samples"):
        read(source, Classification())


def test_a_tensor_without_rows_is_no_batch() -> None:
    with pytest.raises(InputError, match="no batch"):
        read(torch.empty(0, 3))


def test_texts_need_a_tokenizer_and_windows_that_the_model_takes(text: str) -> None:
    with pytest.raises(InputError, match="is a text source, which needs a tokenizer"):
        read_calibration(text, LoadedModel(tiny.llama(), None, "test"), 4, 10)
    with pytest.raises(InputError, match="The sequence length is 65, but the model takes at most 64"):
        read(text, model=tiny.llama(), windows=1, length=65)
    with pytest.raises(InputError, match="The sequence length is 65, but the model takes at most 64"):
        read(text, NextToken(), tiny.llama(), loss_length=65)
    with pytest.raises(InputError, match="has 205 tokens, fewer than one window of 300"):
        read(text, NextToken(), loss_length=300)


def test_inputs_that_hold_no_tokens_are_an_error() -> None:
    with pytest.raises(InputError, match="holds no token windows"):
        read([rows(4)], NextToken())


# -- which loss, and who judges


def test_the_loss_follows_from_the_source_unless_it_is_given() -> None:
    def own(model: nn.Module, batch: Any) -> Tensor:
        return batch

    assert choose_loss(None, "pydoc") == NextToken()
    assert choose_loss(None, tiny.tokens()) == NextToken()
    for source in (rows(3), torch.arange(3), TensorSamples(rows(3)), [(rows(3), torch.arange(3))]):
        assert choose_loss(None, source) == Classification()
    assert choose_loss("next-token", rows(3)) == NextToken()
    assert choose_loss(Classification(), "pydoc") == Classification()
    assert choose_loss(own, "pydoc") == Given(own)
    with pytest.raises(InputError, match=r"no loss 'next-tokens' \(did you mean 'next-token'\?\)"):
        choose_loss("next-tokens", "pydoc")


@pytest.mark.parametrize("count", [5, 9, 100, 1234])
def test_a_fifth_is_held_out_and_no_sample_is_on_both_sides(count: int) -> None:
    samples = TensorSamples(torch.arange(count))
    kept, judges = split_held_out(samples, None, 5000, seed=3)
    assert len(judges) == count // 5
    both = [part.batch(torch.arange(len(part))).tolist() for part in (kept, judges)]
    assert sorted(both[0] + both[1]) == list(range(count))
    again = split_held_out(samples, None, 5000, seed=3)
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(again, (kept, judges), strict=True))
    assert count < 9 or not torch.equal(split_held_out(samples, None, 5000, seed=4)[1].indices, judges.indices)


def test_judges_are_not_more_than_asked() -> None:
    kept, judges = split_held_out(TensorSamples(torch.arange(100)), None, 7, seed=0)
    assert (len(kept), len(judges)) == (93, 7)


def batches_of_two(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    return ((rows(2) + at, torch.tensor([at, at])) for at in range(count))


def test_given_judges_leave_the_calibration_whole() -> None:
    samples, own = TensorSamples(torch.arange(3)), Subset(TensorSamples(torch.arange(9)), torch.tensor([4, 2]))
    assert split_held_out(samples, own, 1, 0) == (samples, own)
    kept, judges = split_held_out(samples, batches_of_two(3), 1, 0)
    assert kept is samples
    assert judges.batch(torch.tensor([5, 0]))[1].tolist() == [2, 0]
    assert split_held_out(samples, tiny.tokens(6, 4), 1, 0)[1].batch(torch.tensor([1])).shape == (1, 4)


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_samples_to_hold_some_out(count: int) -> None:
    with pytest.raises(InputError, match=f"holds {count} samples, too few to hold a fifth out; give at least 5"):
        split_held_out(TensorSamples(torch.arange(count)), None, 100, 0)


def test_a_text_cannot_judge() -> None:
    with pytest.raises(InputError, match="held_out is 'pydoc'; give samples or batches"):
        split_held_out(TensorSamples(torch.arange(10)), "pydoc", 100, 0)


def test_samples_from_whatever_there_is() -> None:
    samples = TensorSamples(rows(4))
    assert as_samples(samples) is samples
    assert as_samples(rows(4)).batch(torch.tensor([2])).tolist() == [[6, 7, 8]]
    assert len(as_samples(batches_of_two(3))) == 6
