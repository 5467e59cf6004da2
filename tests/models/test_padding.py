"""Padded batches give what the same texts give one by one, whatever the form of their mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from qubo_prune import Report, prune
from qubo_prune.data.losses import Classification, Loss, NextToken, Objective
from qubo_prune.errors import InputError
from qubo_prune.hessian.gradients import Entries, block_gradients, moments
from qubo_prune.models.layers import find_layers
from qubo_prune.models.padding import equal_lengths, one_by_one
from qubo_prune.models.signature import Signature

LENGTHS = (9, 4, 12, 7, 9, 5)
WIDTH = max(LENGTHS)
OPEN = Signature()


def texts(seed: int = 3) -> list[Tensor]:
    """Token ids ``(1, length)`` of unequal lengths."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(1, tiny.VOCABULARY, (1, length), generator=draw) for length in LENGTHS]


def places(side: str) -> list[Tensor]:
    """Where the tokens of each text are in a padded batch."""
    draw = torch.Generator().manual_seed(5)
    return [
        torch.arange(length)
        if side == "right"
        else torch.arange(WIDTH - length, WIDTH)
        if side == "left"
        else torch.randperm(WIDTH, generator=draw)[:length].sort().values
        for length in LENGTHS
    ]


def padded(side: str = "right") -> tuple[Tensor, Tensor]:
    """Ids and mask ``(texts, WIDTH)``; tokens of padding are arbitrary."""
    ids, mask = torch.full((len(LENGTHS), WIDTH), 11), torch.zeros(len(LENGTHS), WIDTH, dtype=torch.long)
    for row, (text, where) in enumerate(zip(texts(), places(side), strict=True)):
        ids[row, where], mask[row, where] = text[0], 1
    return ids, mask


def causal(mask: Tensor) -> Tensor:
    """``(B, 1, T, T)``: what each position may attend to."""
    ones = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril()
    return ones & mask.bool()[:, None, None, :]


def with_full_rows(mask: Tensor) -> Tensor:
    """The same with rows that attend to nothing let attend to everything, as some back-ends want it."""
    attends = causal(mask)
    return attends | ~attends.any(3, keepdim=True)


def additive(attends: Tensor) -> Tensor:
    return torch.zeros(attends.shape).masked_fill(~attends, torch.finfo(torch.float32).min)


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "int": lambda mask: mask,
    "bool": lambda mask: mask.bool(),
    "float": lambda mask: mask.float(),
    "4-D bool": causal,
    "4-D additive": lambda mask: additive(causal(mask)),
    "4-D half": lambda mask: additive(causal(mask)).half().clamp(min=-1e4),
    "4-D full rows": with_full_rows,
    "4-D keys": lambda mask: mask.bool()[:, None, None, :],
    "3-D": lambda mask: causal(mask)[:, 0],
    "by type": lambda mask: {"full_attention": causal(mask), "sliding_attention": None},
    "two types": lambda mask: {"full_attention": additive(causal(mask)), "sliding_attention": mask.bool()},
}


@pytest.mark.parametrize("side", ["right", "left", "inner"])
@pytest.mark.parametrize("form", FORMS)
def test_padding_is_taken_out_by_every_form_of_mask(form: str, side: str) -> None:
    ids, mask = padded(side)
    batch = {"input_ids": ids, "attention_mask": FORMS[form](mask), "scale": 2.0, "token_type_ids": ids % 2}
    found = one_by_one(batch, OPEN)
    assert len(found) == len(LENGTHS)
    for sample, text in zip(found, texts(), strict=True):
        assert torch.equal(sample["input_ids"], text)
        assert torch.equal(sample["token_type_ids"], text % 2)
        assert sample["scale"] == 2.0
        # what is left of the mask is that of the text without padding
        whole = FORMS[form](torch.ones_like(text))
        for one, other in zip(_tensors(sample["attention_mask"]), _tensors(whole), strict=True):
            assert torch.equal(one, other)


def _tensors(mask: Any) -> list[Tensor]:
    return [each for each in (mask.values() if isinstance(mask, dict) else [mask]) if each is not None]


def test_samples_of_one_length_go_together() -> None:
    ids, mask = padded("left")
    parts = equal_lengths({"input_ids": ids, "attention_mask": mask}, OPEN, len(ids))
    assert [part.rows.tolist() for part in parts] == [[0, 4], [1], [2], [3], [5]]
    for part in parts:
        expected = torch.cat([texts()[row] for row in part.rows])
        assert torch.equal(part.batch["input_ids"], expected)
        assert torch.equal(part.batch["attention_mask"], torch.ones_like(expected))


def test_what_has_no_padding_stays_as_it_is() -> None:
    ids = tiny.tokens(3, 6)
    packed = torch.block_diag(torch.ones(2, 2), torch.ones(4, 4)).bool().tril().expand(3, 1, 6, 6)
    for batch in (
        ids,
        (ids, torch.ones_like(ids)),
        {"input_ids": ids},
        {"input_ids": ids, "attention_mask": None},
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        {"input_ids": ids, "attention_mask": causal(torch.ones_like(ids))},
        {"input_ids": ids, "attention_mask": packed},
        {"input_ids": ids, "attention_mask": additive(packed)},
        {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 0, 1, 2, 3]])},
        {"input_ids": ids, "attention_mask": {"full_attention": None}},
        {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 2, 2, 2, 3]]).expand(3, 6)},  # sequences' numbers
        {"pixel_values": torch.rand(2, 3, 4, 4), "attention_mask": torch.ones(2, 5)},
        {"input_ids": ids, "attention_mask": torch.ones(3, 9)},  # what was cached before counts, too
    ):
        assert one_by_one(batch, Signature.of(tiny.llama()))[0] is batch
        [part] = equal_lengths(batch, OPEN, 3)
        assert part.batch is batch
        assert part.rows.tolist() == [0, 1, 2]


def test_positional_masks_are_named_by_the_forward_pass() -> None:
    class Wrapped(nn.Module):
        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return ids

    ids, mask = padded()
    for model in (tiny.llama(), tiny.bert(), Wrapped(), torch.compile(Wrapped(), backend="eager")):
        found = one_by_one((ids, mask), Signature.of(model))
        assert [torch.equal(one[0], text) for one, text in zip(found, texts(), strict=True)] == [True] * 6
        assert all(bool(one[1].all()) for one in found)


def test_every_tensor_that_runs_along_the_sequence_is_cut() -> None:
    ids, mask = padded("left")
    width, count = WIDTH, len(ids)
    values = {
        "inputs_embeds": torch.rand(count, width, 4),
        "labels": ids,
        "bbox": torch.rand(count, width, 4),
        "position_ids": mask.cumsum(1),
        "perm_mask": torch.rand(count, width, width),
        "class": torch.arange(count),
        "pixel_values": torch.rand(count, 3, width, width),
        "flag": None,
        "one": torch.arange(width)[None],
        "cache_position": torch.arange(width),
        "number": torch.tensor(3),
    }
    kinds = torch.arange(3 * count * width).reshape(3, count, width)
    found = one_by_one({"attention_mask": mask, "mrope": kinds, **values}, OPEN)
    for row, (sample, where) in enumerate(zip(found, places("left"), strict=True)):
        for name in ("inputs_embeds", "labels", "bbox", "position_ids"):
            assert torch.equal(sample[name], values[name][row : row + 1, where])
        assert torch.equal(sample["perm_mask"][0], values["perm_mask"][row][where][:, where])
        assert torch.equal(sample["mrope"], kinds[:, row : row + 1, where])
        assert torch.equal(sample["pixel_values"], values["pixel_values"][row : row + 1])
        assert (sample["class"].tolist(), sample["flag"], int(sample["number"])) == ([row], None, 3)
        assert torch.equal(sample["one"][0], where)
        assert sample["cache_position"].tolist() == list(range(len(where)))


def test_sounds_are_cut_where_their_mask_has_their_length() -> None:
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    waves, bands = torch.rand(2, 5), torch.rand(2, 3, 5)
    found = one_by_one({"input_values": waves, "attention_mask": mask}, OPEN)
    assert torch.equal(found[0]["input_values"], waves[:1, :3])
    found = one_by_one({"input_features": bands, "attention_mask": mask}, OPEN)
    assert torch.equal(found[0]["input_features"], bands[:1, :, :3])


def test_a_decoder_has_a_mask_of_its_own_or_labels() -> None:
    ids, mask = padded()
    target, counted = ids[:, :6], torch.ones(6, 6, dtype=torch.long)
    counted[2, 4:] = 0
    both = {"input_ids": ids, "attention_mask": mask}
    found = one_by_one({**both, "decoder_input_ids": target, "decoder_attention_mask": counted}, OPEN)
    assert [one["decoder_input_ids"].shape[1] for one in found] == [6, 6, 4, 6, 6, 6]
    labels = target.masked_fill(counted == 0, -100)
    labels[0, 0] = -100  # not behind the last label: a position that the decoder runs through
    found = one_by_one({**both, "labels": labels}, Signature.of(tiny.t5()))
    assert [one["labels"].shape[1] for one in found] == [6, 6, 4, 6, 6, 6]
    assert found[0]["labels"][0, 0] == -100
    assert [one["input_ids"].shape[1] for one in found] == list(LENGTHS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_mask": torch.zeros(6, 5)}, r"'attention_mask' of batch 3 has shape \(6, 5\) beside 'input_ids'"),
        ({"attention_mask": torch.zeros(4, WIDTH)}, r"has shape \(4, 12\) beside 'input_ids' of shape \(6, 12\)"),
        ({"attention_mask": torch.zeros(6)}, r"has shape \(6,\); give \(samples, positions\)"),
        ({"attention_mask": torch.zeros(6, 1, 5, WIDTH).bool()}, r"has shape \(6, 1, 5, 12\); give \(samples"),
        ({"attention_mask": padded()[1] * -1e4}, "two dimensions and values other than 0 and 1; give 1 for real"),
        ({"attention_mask": "causal"}, "is of type str, in which padding cannot be seen"),
        ({"pixel_values": torch.rand(7, 3, 4, 4)}, r"entry 'pixel_values' of shape \(7, 3, 4, 4\) cannot be divided"),
        ({"pixel_mask": torch.zeros(6, 4, 4)}, "'pixel_mask' of batch 3 marks padding that cannot be taken out"),
        ({"attention_mask": padded()[1] * (torch.arange(6) != 4)[:, None]}, "Sample 4 of batch 3 is all padding"),
    ],
)
def test_padding_that_cannot_be_taken_out(changes: dict[str, Any], said: str) -> None:
    ids, mask = padded()
    with pytest.raises(InputError, match=said):
        one_by_one({"input_ids": ids, "attention_mask": mask, **changes}, OPEN, 3)


def test_a_decoder_without_any_label() -> None:
    batch = {"input_ids": tiny.tokens(2, 4), "labels": torch.full((2, 3), -100)}
    with pytest.raises(InputError, match="Sample 0 of batch 0 has no label but -100"):
        one_by_one(batch, Signature.of(tiny.t5()))


# -- whole runs


def same(one: Report, other: Report, tolerance: float = 1e-6) -> None:
    """Two runs decided the same and measured the same."""
    assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers]
    for layer, like in zip(one.layers, other.layers, strict=True):
        assert torch.equal(one.masks[f"{layer.name}.weight"], other.masks[f"{layer.name}.weight"]), layer.name
        assert layer.tokens == like.tokens
        for name in ("relative_before", "relative_after", "held_out_before", "held_out_after"):
            found, wanted = getattr(layer, name), getattr(like, name)
            assert found is wanted is None or found == pytest.approx(wanted, rel=tolerance, abs=1e-12)


def as_dicts(ids: Tensor, mask: Tensor) -> list[Any]:
    return [{"input_ids": ids[:4], "attention_mask": mask[:4]}, {"input_ids": ids[4:], "attention_mask": mask[4:]}]


RUNS: dict[str, dict[str, Any]] = {
    "gram": {},
    "layer": {"pattern": "layer", "method": "wanda"},
    "compensated": {"method": "compensated", "guard": 1, "block_size": 8},
    "corrected": {"method": "wanda", "update": "refit", "correction": 1.0},
}


@pytest.mark.gate(3)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [tiny.llama, tiny.bert, tiny.mixtral, tiny.RoutedRows], ids=lambda make: make.__name__)
def test_a_padded_run_is_that_of_the_texts_one_by_one(make: Callable[[], nn.Module], side: str) -> None:
    one = prune(make(), texts(), 0.5)
    same(prune(make(), as_dicts(*padded(side)), 0.5), one)
    if make is not tiny.RoutedRows:
        assert max(layer.tokens for layer in one.layers) == sum(LENGTHS)


@pytest.mark.gate(2)
@pytest.mark.parametrize("run", RUNS)
def test_drift_updates_and_held_out_inputs_do_not_count_padding(run: str) -> None:
    one = prune(tiny.llama(), texts(), 0.5, **RUNS[run])
    same(prune(tiny.llama(), as_dicts(*padded("left")), 0.5, **RUNS[run]), one)


@pytest.mark.gate(2)
@pytest.mark.parametrize("form", ["bool", "float", "4-D bool", "4-D additive"])
def test_the_form_of_a_mask_does_not_change_a_run(form: str) -> None:
    ids, mask = padded()
    one = prune(tiny.llama(), texts(), 0.5, method="wanda")
    same(prune(tiny.llama(), as_dicts(ids, FORMS[form](mask)), 0.5, method="wanda"), one, 1e-5)


@pytest.mark.gate(1)
@pytest.mark.parametrize("make", [tiny.bart, tiny.t5], ids=lambda make: make.__name__)
def test_an_encoder_and_a_decoder_are_padded_apart(make: Callable[[], nn.Module]) -> None:
    ids, mask = padded()
    targets = [text[:, : 3 + row % 2] for row, text in enumerate(texts(8))]
    labels = torch.cat([nn.functional.pad(each, (0, 5 - each.shape[1]), value=-100) for each in targets])
    whole = [{"input_ids": ids, "attention_mask": mask, "labels": labels}]
    alone = [{"input_ids": text, "labels": each} for text, each in zip(texts(), targets, strict=True)]
    same(prune(make(), whole, 0.5), prune(make(), alone, 0.5))


# -- losses and gradients of samples


class Padded:
    """Samples of one length as a padded batch gives them."""

    def __init__(self, side: str, labels: str) -> None:
        self.ids, self.mask = padded(side)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Tensor) -> Any:
        """Ids, mask and labels."""
        ids, mask = self.ids[indices], self.mask[indices]
        beside = {
            "none": {},
            "tokens": {"labels": token_labels(ids).masked_fill(mask == 0, -100)},
            "classes": {"labels": indices % 3},
        }[self.labels]
        return {"input_ids": ids, "attention_mask": mask, **beside}


class Alone:
    """The same samples, which can be drawn one at a time only."""

    def __init__(self, labels: str) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(LENGTHS)

    def batch(self, indices: Tensor) -> Any:
        """Of one sample."""
        [index] = indices.tolist()
        ids = texts()[index]
        beside = {"none": {}, "tokens": {"labels": token_labels(ids)}, "classes": {"labels": indices % 3}}[self.labels]
        return {"input_ids": ids, **beside}


def token_labels(ids: Tensor) -> Tensor:
    """Labels of tokens, some of which do not count."""
    return (ids % 3).masked_fill(ids % 5 == 0, -100)


CASES: dict[str, tuple[Callable[[], nn.Module], Loss, str]] = {
    "next token": (tiny.llama, NextToken(), "none"),
    "labelled tokens": (tiny.llama, NextToken(), "tokens"),
    "experts": (tiny.mixtral, NextToken(), "none"),
    "classes": (tiny.bert, Classification(), "classes"),
    "tags": (tiny.tagger, Classification(), "tokens"),
}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_of_samples_do_not_count_padding(case: str, side: str) -> None:
    make, loss, labels = CASES[case]
    model, every = make(), torch.tensor([3, 0, 5, 1, 2, 4])
    together, alone = Objective(model, loss), Objective(model, loss, micro_batch=1)
    expected = alone.measure(Alone(labels), every)
    assert together.measure(Padded(side, labels), every).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    if case == "experts":
        return  # what an expert reads cannot be assigned to samples but one by one
    layers = find_layers(model)
    found, wanted = moments(together, Padded(side, labels), every, layers), moments(alone, Alone(labels), every, layers)
    for name, each in wanted.items():
        for part in ("mean", "square", "read", "returned"):
            torch.testing.assert_close(getattr(found[name], part), getattr(each, part), rtol=1e-4, atol=1e-8)
    entries = [Entries(layers[2], torch.tensor([0, 3, 5]), torch.tensor([1, 7, 2]))]
    columns = block_gradients(together, Padded(side, labels), every, [entries]).given[0]
    torch.testing.assert_close(columns, block_gradients(alone, Alone(labels), every, [entries]).given[0])


def test_drawn_labels_count_where_labels_count() -> None:
    samples, layers = Padded("right", "tokens"), find_layers(tiny.tagger())
    objective = Objective(tiny.tagger(), Classification())
    entries = [Entries(layers[0], torch.tensor([0]), torch.tensor([1]))]
    block_gradients(objective, samples, torch.arange(6), [entries], torch.Generator().manual_seed(0))
    [part] = list(objective.parts(samples, torch.tensor([2])))
    prediction, _ = objective.losses_of(part.batch, torch.tensor([2]))
    certain = torch.full_like(prediction, -50.0)
    certain[..., 0] = 50.0
    certain[0, token_labels(texts()[2])[0] == -100] = 0.0  # here labels would be drawn that cost something
    drawn = Classification().drawn(certain, torch.Generator().manual_seed(0), part.batch)
    assert float(drawn) == pytest.approx(0, abs=1e-6)


def test_a_fisher_run_does_not_count_padding() -> None:
    settings = {
        "samples": 4,
        "scoring_samples": 4,
        "block_size": 16,
        "max_blocks": 2,
    }
    runs = [
        prune(
            tiny.bert(),
            samples,
            0.5,
            method="loss",
            pattern="layer",
            held_out=samples,
            warm_start="gradient",
            loss_settings=settings | {"micro_batch": size},
        )
        for samples, size in ((Padded("left", "classes"), 8), (Padded("right", "classes"), 1))
    ]
    same(*runs)
    assert runs[0].loss is not None
    assert runs[1].loss is not None
    assert runs[0].loss.best_loss == pytest.approx(runs[1].loss.best_loss, rel=1e-5)


class Within(nn.Module):
    """A model that finds its padding itself, where the ids are 0."""

    def __init__(self, by_place: bool = False) -> None:
        super().__init__()
        self.lm, self.by_place = tiny.llama(), by_place

    def forward(self, ids: Tensor) -> Tensor:
        real = (ids != 0).long()
        logits: Tensor = (self.lm(ids, real) if self.by_place else self.lm(ids, attention_mask=real)).logits
        return logits


class TorchsOwn(nn.Module):
    """An encoder of PyTorch's that is given a mask of the padding that the model finds itself."""

    def __init__(self, added: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.added = nn.Embedding(tiny.VOCABULARY, 16), added
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 1)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        padding = ids == 0
        if self.added:
            padding = torch.zeros(ids.shape).masked_fill(padding, -torch.inf)
        found: Tensor = self.head(self.encoder(self.embedding(ids), src_key_padding_mask=padding))
        return found


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (Within, "lm"),
        (lambda: Within(by_place=True), "lm"),
        (TorchsOwn, "encoder"),
        (lambda: TorchsOwn(added=True), "encoder"),
    ],
)
@pytest.mark.parametrize("method", ["gram", "wanda"])
def test_padding_that_the_model_alone_knows_is_refused(make: Callable[[], nn.Module], part: str, method: str) -> None:
    ids = torch.cat([nn.functional.pad(each, (0, WIDTH - each.shape[1])) for each in texts()])
    model = make().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # the first batch has none
    with pytest.raises(InputError, match=f"The part '{part}' of the model is given a mask of padding .*one by one"):
        prune(model, [texts()[0], ids], 0.5, method=method)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    prune(model, texts(), 0.5, method=method)  # every mask marks nothing
    assert not any(module._forward_pre_hooks for module in model.modules())
