"""Calibration data in the forms that people have it in: each gives the run of the plain tensors, or one sentence."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from unchecked import without_type_checks

from qubo_prune import Report, prune
from qubo_prune.data import TensorSamples
from qubo_prune.data.calibration import as_samples, fitting_loss, read_calibration
from qubo_prune.data.forms import joined
from qubo_prune.data.losses import Classification, Loss, MultiLabel, NextToken, Regression
from qubo_prune.errors import InputError
from qubo_prune.models import LoadedModel

LENGTHS = (7, 4, 9, 5)


def texts() -> list[str]:
    """Words of the tokenizer."""
    return [" ".join(f"w{1 + (5 * row + at * 7) % 60}" for at in range(length)) for row, length in enumerate(LENGTHS)]


def ids() -> list[Tensor]:
    """Their ids ``(1, length)``."""
    return [torch.tensor([tiny.tokenizer()(text)["input_ids"]]) for text in texts()]


def lists() -> list[list[int]]:
    return [each[0].tolist() for each in ids()]


def encoded(**settings: Any) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = "<unk>"
    return tokenizer(texts(), **settings)


def read(source: Any, model: nn.Module, loss: Loss | None = None, **settings: Any) -> Any:
    loaded = LoadedModel(model, tiny.tokenizer(), "test")
    with without_type_checks():
        return read_calibration(source, loaded, 4, 32, loss, **settings)


FORMS: dict[str, Any] = {
    "texts": lambda: texts(),
    "texts of a generator": lambda: (text for text in texts()),
    "lists of ids": lambda: lists(),
    "ids without a dimension of samples": lambda: [torch.tensor(row) for row in lists()],
    "arrays of ids": lambda: [np.array([row], dtype=np.uint16) for row in lists()],
    "an encoding": lambda: encoded(padding=True, return_tensors="pt"),
    "a plain dict": lambda: dict(encoded(padding=True, return_tensors="pt")),
    "arrays of an encoding": lambda: encoded(padding=True, return_tensors="np"),
    "an encoding of lists": lambda: encoded(),
    "encodings in a list": lambda: [tiny.tokenizer()(text, return_tensors="pt") for text in texts()],
    "encodings of one text": lambda: [tiny.tokenizer()(text) for text in texts()],
    "batches of two": lambda: [UserDict(encoded(padding=True, return_tensors="pt"))],
    "a data set of ids": lambda: datasets.Dataset.from_dict({"input_ids": lists(), "name": ["a"] * 4}),
    "a formatted data set": lambda: datasets.Dataset.from_dict(dict(encoded(padding=True))).with_format("torch"),
    "a data set of texts": lambda: datasets.Dataset.from_dict({"text": texts(), "label": [0, 1, 0, 1]}),
    "a stream of texts": lambda: datasets.Dataset.from_dict({"text": texts()}).to_iterable_dataset(),
}


@pytest.mark.parametrize("form", FORMS)
def test_token_ids_in_every_form_are_those_of_the_texts(form: str) -> None:
    found = read(FORMS[form](), tiny.llama())
    inputs = [batch["input_ids"] if isinstance(batch, dict) else batch for batch in found.inputs]
    assert sorted(each[0].tolist() for each in inputs) == sorted(lists())
    assert all(bool(batch["attention_mask"].all()) for batch in found.inputs if isinstance(batch, dict))


def test_one_list_of_ids_is_one_text() -> None:
    [found] = read([5, 3, 9], tiny.llama()).inputs
    assert found.tolist() == [[5, 3, 9]]


def test_arrays_have_the_type_of_the_model() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 3))
    model = nn.Linear(3, 2)
    for source in (rows, rows.tolist(), [rows[:4], rows[4:]], [(rows,)]):
        found = read(source, model).inputs
        flat = torch.cat([each[0] if isinstance(each, tuple) else each for each in found])
        assert flat.dtype == torch.float32
        assert flat.numpy() == pytest.approx(rows, rel=1e-6)
    assert read(rows, model.double()).inputs[0].dtype == torch.float64


class Switched(nn.Module):
    """Takes a second argument that labels cannot be."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        """Once or twice."""
        return self.linear(x) * (2 if twice else 1)


class Conditioned(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Scaled by the second."""
        return self.linear(x) * t[:, None]


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(3, 2)), Switched()])
def test_labels_of_a_loader_are_told_from_inputs(model: nn.Module) -> None:
    x, y = torch.rand(6, 3), torch.arange(6)
    for source in (DataLoader(TensorDataset(x, y), batch_size=4), TensorDataset(x, y), TensorSamples(x, y)):
        found = read(source, model).inputs
        assert sorted(torch.cat(found)[:, 0].tolist()) == sorted(x[:, 0].tolist())
    assert isinstance(read([(x, y)], Conditioned()).inputs[0], tuple)


def test_labels_beside_token_ids_and_images() -> None:
    tokens, classes = tiny.tokens(4, 6), torch.arange(4) % 3
    [found] = read([(tokens, classes)], tiny.bert()).inputs
    assert torch.equal(found, tokens)
    for batch in ({"input_ids": tokens, "labels": classes}, ({"input_ids": tokens}, classes)):
        [found] = read([batch], tiny.bert()).inputs
        assert list(found) == ["input_ids"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (None, "The calibration is None of type NoneType; give a text source, token ids"),
        (5, "The calibration is 5 of type int; give a text source"),
        (b"text", "of type bytes; give a text source"),
        (torch.tensor(3.0), "of type Tensor; give a text source"),
        (object(), "an object of type object; give a text source"),
        (len, "an object of type builtin_function_or_method"),
        (iter(()), "no batch"),
        (["text", 3], "Entry 1 of the calibration is int, and others are texts"),
        ([torch.zeros(2, 3), "text"], "Batch 1 is a text and others are not"),
        ([torch.zeros(2, 3), None], "Batch 1 is None of type NoneType; give tensors"),
        ([[0.5, 1.0], [2.0]], "pad or cut all samples to one shape"),
        (np.array(["a", "b"]), "an array of type <U1; give numbers"),
        ({"train": datasets.Dataset.from_dict({"text": ["a"]})}, r"has the splits train; give one of them"),
        (datasets.Dataset.from_dict({"sentence": ["a"]}), "has the columns sentence, and the model takes input"),
        (datasets.Dataset.from_dict({"input": []}), "data set without rows"),
        ([{"x": torch.zeros(2, 3)}], "Batch 0 has the entry 'x', which the forward pass of Linear does not take"),
        ([""], "Text 0 has no tokens"),
    ],
)
def test_what_is_no_calibration_is_one_sentence(source: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(source, nn.Linear(3, 2))


def test_pairs_that_no_model_takes_name_the_batch_and_the_loss() -> None:
    with pytest.raises(InputError, match=r"neither both tensors of batch 0 nor the first alone.*loss='classification'"):
        read([(torch.rand(2, 5), torch.arange(2))], Switched())


def test_a_model_of_sounds_that_needs_its_padding_says_so() -> None:
    class Listening(nn.Module):
        def forward(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            if input_features.shape[-1] != 5:
                raise ValueError("features of length 5 are expected")
            return input_features

    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    batch = {"input_features": torch.rand(2, 3, 5), "attention_mask": mask}
    with pytest.raises(InputError, match="Listening does not run on the samples of batch 0 without their padding"):
        read([batch], Listening())
    assert len(read([{**batch, "attention_mask": mask | 1}], Listening()).inputs) == 1


def test_files_are_no_texts_and_texts_need_a_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(tiny.text(), encoding="utf-8")
    with pytest.raises(InputError, match=r"entries are taken for texts, and .* is a file"):
        read([str(path)], tiny.llama())
    assert len(read(path, tiny.llama()).inputs) == 4
    with pytest.raises(InputError, match="holds texts, which need a tokenizer"):
        read_calibration(texts(), LoadedModel(tiny.llama(), None, "test"), 4, 32)


def test_rows_of_unequal_length_are_padded_where_they_are_drawn_together() -> None:
    rows = [{"input_ids": torch.arange(n), "labels": torch.arange(n), "class": torch.tensor(n)} for n in (2, 3)]
    found = joined(rows)
    assert found["input_ids"].tolist() == [[0, 1, 0], [0, 1, 2]]
    assert found["labels"].tolist() == [[0, 1, -100], [0, 1, 2]]
    assert found["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert found["class"].tolist() == [2, 3]
    samples = as_samples([torch.ones(1, 2).long(), torch.ones(2, 3).long()], NextToken())
    assert samples.batch(torch.tensor([2, 0]))["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_pairs_of_token_ids_have_a_mask_or_labels() -> None:
    tokens = tiny.tokens(2, 5)
    mask = torch.ones_like(tokens)
    mask[1, 3:] = 0
    assert list(as_samples([(tokens, mask)], NextToken()).batch(torch.tensor([0]))) == ["input_ids", "attention_mask"]
    assert list(as_samples([(tokens, tokens)], NextToken()).batch(torch.tensor([0]))) == ["input_ids", "labels"]


@pytest.mark.parametrize(
    ("model", "labels", "expected"),
    [
        (tiny.mlp, torch.tensor([0, 1]), Classification()),
        (tiny.mlp, torch.tensor([0.5, 1.0]), Regression()),
        (tiny.mlp, torch.tensor([[0.5, 0.5], [1.0, 0.0]]), Classification()),
        (tiny.mlp, torch.tensor([[1.0, 1.0], [1.0, 0.0]]), MultiLabel()),
        (tiny.mlp, torch.tensor([[3.0, 1.5], [1.0, 0.0]]), Regression()),
        (tiny.bert, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), MultiLabel()),
        (tiny.bert, torch.tensor([[1, 0, 0], [0, 1, 1]]), MultiLabel()),
        (lambda: tiny.bert(problem_type="regression"), torch.tensor([[1.0, 2.0, 0.0]] * 2), Regression()),
        (tiny.tagger, torch.zeros(2, 4).long(), Classification()),
        (tiny.llama, torch.zeros(2, 4).long(), NextToken()),
        (tiny.llama, None, NextToken()),
    ],
)
def test_the_loss_fits_the_labels_and_the_model(model: Any, labels: Tensor | None, expected: Loss) -> None:
    tokens = tiny.tokens(2, 4)
    samples = as_samples([{"input_ids": tokens} if labels is None else {"input_ids": tokens, "labels": labels}])
    assert fitting_loss(Classification(), False, samples, model()) == expected
    assert fitting_loss(Regression(), True, samples, model()) == Regression()
    if expected == NextToken():
        with pytest.raises(InputError, match="LlamaForCausalLM predicts the next token; give loss='next-token'"):
            fitting_loss(Classification(), True, samples, model())


# -- whole runs

SMALL = {"samples": 4, "scoring_samples": 4, "block_size": 16, "max_blocks": 2}


def fisher(model: nn.Module, source: Any, **settings: Any) -> Report:
    return prune(
        model,
        source,
        0.5,
        method="loss",
        pattern="layer",
        held_out=source,
        warm_start="gradient",
        loss_settings=SMALL,
        tokenizer=tiny.tokenizer(),
        **settings,
    )


def test_a_run_by_the_loss_takes_texts_lists_and_data_sets() -> None:
    runs = [fisher(tiny.llama(), source) for source in (ids(), lists(), texts(), FORMS["an encoding"]())]
    for run in runs[1:]:
        assert all(torch.equal(run.masks[name], runs[0].masks[name]) for name in run.masks)
    assert runs[0].settings["loss"] == "NextToken"


def test_several_labels_and_numbers_run() -> None:
    tokens = tiny.tokens(6, 5)
    several = {"input_ids": tokens, "labels": (tokens[:, :3] % 2).float()}
    assert fisher(tiny.bert(), several).settings["loss"] == "MultiLabel"
    numbers = {"input_ids": tokens, "labels": tokens[:, 0].float()}
    assert fisher(tiny.bert(num_labels=1), numbers).settings["loss"] == "Regression"


def test_what_a_run_would_ignore_is_refused() -> None:
    with pytest.raises(InputError, match=r"held_out is given and the method 'gram' takes no loss; give guard="):
        prune(tiny.mlp(), torch.rand(4, 12), 0.5, held_out=torch.rand(4, 12))


class _Careless(nn.Module):
    """Takes one or two inputs, writes to them, and makes a tensor of the default type."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs[0].mul_(2)) @ torch.eye(6))  # type: ignore[no-any-return]


def test_trying_whether_labels_are_inputs_changes_nothing_and_keeps_the_callers_type() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        inputs = torch.randn(5, 6)
        before = inputs.clone()
        report = prune(_Careless(), [(inputs, torch.zeros(5))])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(inputs, before)
    assert [layer.tokens for layer in report.layers] == [5, 5]


def test_integers_that_no_tensor_holds_are_refused() -> None:
    with pytest.raises(InputError, match="holds the integer 18446744073709551615; those of up to"):
        prune(tiny.llama(), np.full((2, 8), 2**64 - 1, dtype=np.uint64), 0.5)
