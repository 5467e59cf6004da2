"""Calibration data: what the layers' inputs come from, and the samples that the loss is taken over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from qubo_prune.data.forms import Rows, check_without_padding, in_plain_form, without_labels
from qubo_prune.data.labels import are_shares
from qubo_prune.data.losses import (
    Classification,
    Loss,
    LossFunction,
    MultiLabel,
    NextToken,
    Regression,
    make_loss,
    model_inputs,
)
from qubo_prune.data.samples import Samples, TensorSamples, collated, split, to_device
from qubo_prune.data.text import all_windows, check_length, token_windows
from qubo_prune.errors import InputError
from qubo_prune.files.digests import digest_of_batches
from qubo_prune.models.load import LoadedModel, device_of
from qubo_prune.models.padding import IGNORED, one_by_one
from qubo_prune.models.signature import Signature
from qubo_prune.solver.interface import derive_seed

Source = str | Tensor | Samples | Dataset[Any] | Iterable[Any]


#: Windows of a text on which the errors of the layers are measured besides those of the Grams.
GUARD = 4
#: Samples, evenly spread, that a checksum is taken over.
_DIGESTED = 64


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a run draws from.

    Attributes:
        inputs: model inputs for the layers' Grams, one batch each.
        described: source and sizes, for the report.
        samples: what the loss is taken over; ``None`` where no loss was asked for.
        loss: what it is, if there is one.
        held_out: model inputs on which the layers' errors are measured, none of them among ``inputs``.
    """

    inputs: list[Any]
    described: dict[str, Any]
    samples: Samples | None = None
    held_out: list[Any] = field(default_factory=list)
    loss: Loss | None = None

    def digest(self) -> str:
        """SHA-256 of the inputs, and of some of the samples."""
        given: list[Any] = [self.inputs, self.held_out]
        return digest_of_batches(*given, *(() if self.samples is None else _some_of(self.samples)))

    def without_last(self, count: int) -> Calibration:
        """The last ``count`` inputs held out."""
        if len(self.inputs) <= count:
            raise InputError(
                f"guard is {count} but the calibration holds {len(self.inputs)} batches; hold fewer out, or give more."
            )
        described = self.described | {"held_out": count}
        return replace(self, inputs=self.inputs[:-count], held_out=self.inputs[-count:], described=described)


def read_calibration(
    source: Source,
    loaded: LoadedModel,
    windows: int,
    length: int,
    loss: Loss | None = None,
    loss_length: int = 128,
    gram_samples: int = 1024,
    guard: int | None = None,
    named: bool = True,
    draw: int = 0,
) -> Calibration:
    """Model inputs, and samples for the loss if there is one.

    Args:
        source: a text source, token ids, inputs, batches, or :class:`~qubo_prune.data.samples.Samples`.
        loaded: the model, and its tokenizer for text sources.
        windows: token windows cut from a text.
        length: tokens of each.
        loss: tells what in a batch the model takes; ``None`` if batches are model inputs.
        loss_length: tokens of a window that the loss is taken over.
        gram_samples: samples of a data set that the layers' Grams are taken from, at most.
        guard: inputs to hold out: windows of a text besides the others, or the last of given batches;
            ``None`` for :data:`GUARD` of a text.
        named: the loss was asked for by name; else another one may fit the labels.
        draw: of the windows of a text, see :func:`~qubo_prune.data.text.token_windows`.
    """
    device, plain = device_of(loaded.model), in_plain_form(source, loaded, length, gram_samples)
    if isinstance(plain, str):
        more = GUARD if guard is None else guard
        return replace(_of_text(plain, loaded, windows, length, loss, loss_length, device, more, draw), loss=loss)
    given = _without_padding(_of_inputs(plain, loss, gram_samples, loaded, named), loaded)
    return given.without_last(guard) if guard else given


def digest_of_samples(samples: Samples) -> str:
    """SHA-256 of some samples, and of their number."""
    return digest_of_batches(*_some_of(samples))


def _some_of(samples: Samples) -> tuple[int, Any]:
    """The number of samples, and a batch of some: all of them may be more than the memory holds."""
    some = torch.linspace(0, len(samples) - 1, min(_DIGESTED, len(samples))).long()
    return len(samples), samples.batch(some)


def drawn_from(source: Source, loaded: LoadedModel, length: int, most: int, loss: Loss) -> Samples | str:
    """Samples of a loss from whatever may be given; a text source as it is."""
    plain = in_plain_form(source, loaded, length, most)
    return plain if isinstance(plain, str) else as_samples(plain, loss)


def _without_padding(given: Calibration, loaded: LoadedModel) -> Calibration:
    """The inputs with the samples of padded batches one by one, by their real positions."""
    signature = Signature.of(loaded.model)
    inputs: list[Any] = []
    for number, batch in enumerate(given.inputs):
        samples = one_by_one(batch, signature, number)
        if samples[0] is not batch:
            check_without_padding(samples[0], loaded, number)
        inputs += samples
    described = given.described | ({"batches": len(inputs)} if "batches" in given.described else {})
    return replace(given, inputs=inputs, described=described)


def _of_inputs(
    source: Tensor | Samples | list[Any], loss: Loss | None, gram_samples: int, loaded: LoadedModel, named: bool
) -> Calibration:
    device, signature = device_of(loaded.model), Signature.of(loaded.model)
    if loss is None and not isinstance(source, Samples):
        given = _split(source) if isinstance(source, Tensor) else source
        batches = [to_device(without_labels(batch, loaded, at), device) for at, batch in enumerate(_some(given))]
        return Calibration(batches, {"source": "given inputs", "batches": len(batches)})
    samples = as_samples(source, loss)
    if not len(samples):
        raise InputError("The calibration holds no samples; give at least one.")
    if loss is not None:
        loss = fitting_loss(loss, named, samples, loaded.model)
    chosen = split(samples, [min(len(samples), gram_samples)], derive_seed(0, len(samples)))[0]
    parts = torch.split(torch.arange(len(chosen)), 1 if isinstance(loss, NextToken) else 128)

    def inputs_of(at: int, batch: Any) -> Any:
        return without_labels(batch, loaded, at) if loss is None else model_inputs(loss, batch, signature)

    inputs = [to_device(inputs_of(at, chosen.batch(part)), device) for at, part in enumerate(parts)]
    described = {"source": "given samples", "samples": len(samples), "gram_samples": len(chosen)}
    return Calibration(inputs, described, samples, loss=loss)


def _split(source: Tensor) -> list[Any]:
    """Token windows one by one, other inputs in batches that a layer takes at once."""
    return [batch for batch in torch.split(source, 128 if source.is_floating_point() else 1) if len(batch)]


def fitting_loss(loss: Loss, named: bool, samples: Samples, model: nn.Module) -> Loss:
    """The loss that was asked for by name, or the one that fits the labels of the first samples.

    Raises:
        InputError: a causal language model's tokens would be classified without being shifted.
    """
    batch = samples.batch(torch.arange(min(_DIGESTED, len(samples))))
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    labels = batch.get("labels") if isinstance(batch, Mapping) else batch[1] if pair else None
    tokens = not isinstance(labels, Tensor) or (labels.ndim == 2 and not labels.is_floating_point())
    causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")) and tokens
    if not isinstance(loss, Classification) or (named and not causal):
        return loss
    if named:
        raise InputError(
            f"loss is 'classification' and {type(model).__name__} predicts the next token; give loss='next-token', "
            "which shifts the labels, or a function of your own."
        )
    if causal or (labels is None and _has_ids(batch)):
        return NextToken()
    return loss if not isinstance(labels, Tensor) else _by_labels(labels, model)


def _has_ids(batch: Any) -> bool:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    return isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point()


_BY_PROBLEM: Mapping[str, Loss] = {
    "single_label_classification": Classification(),
    "multi_label_classification": MultiLabel(),
    "regression": Regression(),
}


def _by_labels(labels: Tensor, model: nn.Module) -> Loss:
    """As transformers reads labels; for other models, shares of classes sum to 1 and several labels are 0 or 1."""
    config = getattr(model, "config", None)
    problem = str(getattr(config, "problem_type", None))
    if problem in _BY_PROBLEM:
        return _BY_PROBLEM[problem]
    if not labels.is_floating_point():
        several = (
            labels.ndim == 2 and labels.shape[1] > 1 and type(model).__name__.endswith("ForSequenceClassification")
        )
        return MultiLabel() if several else Classification()
    if labels.ndim == 1 or labels.shape[1:] == (1,):
        return Regression()
    if labels.ndim == 2 and config is None and are_shares(labels):
        return Classification()
    binary = bool(((labels == 0) | (labels == 1) | (labels == IGNORED)).all())
    return MultiLabel() if binary else Regression()


def _of_text(
    source: str,
    loaded: LoadedModel,
    count: int,
    length: int,
    loss: Loss | None,
    loss_length: int,
    device: torch.device,
    guard: int,
    draw: int,
) -> Calibration:
    if loaded.tokenizer is None:
        raise InputError(
            f"The calibration {source!r} is a text source, which needs a tokenizer; pass tokenizer=, "
            "or give token ids or model inputs instead."
        )
    check_length(loaded.model, length)
    windows = token_windows(loaded.tokenizer, source, "calibration", count, length, guard, draw)
    described, samples = windows.describe() | {"held_out": len(windows.held_out)}, None
    if loss is not None:
        check_length(loaded.model, loss_length)
        tokens = all_windows(loaded.tokenizer, source, "calibration", loss_length)
        samples = TensorSamples(tokens)
        described |= {"loss_windows": len(tokens), "loss_length": loss_length}
    inputs, held_out = (
        list(torch.split(tokens.to(device), 1)) if len(tokens) else [] for tokens in (windows.tokens, windows.held_out)
    )
    return Calibration(inputs, described, samples, held_out)


def as_samples(source: Samples | Tensor | Dataset[Any] | Iterable[Any], loss: Loss | None = None) -> Samples:
    """Samples as they are, those of one tensor, or the joined ones of batches."""
    if isinstance(source, Tensor):
        return TensorSamples(source)
    if isinstance(source, Samples):
        return source
    batches = list(cast("Iterable[Any]", source))
    if isinstance(loss, NextToken):
        batches = _named_pairs(batches)
    return _rows_of(batches) if _uneven(batches) else collated(batches)


def _named_pairs(batches: list[Any]) -> list[Any]:
    """Pairs of token ids and a mask or labels, by name."""
    if not all(_is_pair(batch) for batch in batches):
        return batches
    mask = all(second.dtype == torch.bool or bool(((second == 0) | (second == 1)).all()) for _, second in batches)
    return [{"input_ids": ids, "attention_mask" if mask else "labels": second} for ids, second in batches]


def _is_pair(batch: Any) -> bool:
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(each, Tensor) for each in batch):
        return False
    return bool(batch[0].ndim == 2 and batch[0].shape == batch[1].shape and not batch[0].is_floating_point())


def _uneven(batches: list[Any]) -> bool:
    """Whether all hold token ids, of unequal length."""
    if not batches or not all(map(_has_ids, batches)) or len({type(batch) for batch in batches}) > 1:
        return False
    return len({_ids_of(batch).shape[1] for batch in batches}) > 1


def _ids_of(batch: Any) -> Tensor:
    ids = batch["input_ids"] if isinstance(batch, Mapping) else batch
    assert isinstance(ids, Tensor)
    return ids


def _rows_of(batches: list[Any]) -> Samples:
    """Samples of unequal length, from batches of token ids with what is beside them."""
    named = [batch if isinstance(batch, Mapping) else {"input_ids": batch} for batch in batches]
    alone = [one for number, batch in enumerate(named) for one in one_by_one(batch, Signature(), number)]
    rows = [{name: each[row] for name, each in one.items()} for one in alone for row in range(len(_ids_of(one)))]
    return Rows(rows, lambda row: row)


def choose_loss(loss: str | Loss | LossFunction | None, source: Source) -> Loss:
    """The loss asked for; by default next-token for text and token ids, classification for all else."""
    if loss is not None:
        return make_loss(loss)
    tokens = isinstance(source, Tensor) and not source.is_floating_point() and source.ndim == 2
    return NextToken() if isinstance(source, str) or tokens else Classification()


def split_held_out(samples: Samples, held_out: Source | None, most: int, seed: int) -> tuple[Samples, Samples]:
    """Samples to draw from, and held-out ones; by default a fifth of the data, ``most`` at most."""
    if held_out is not None:
        if isinstance(held_out, str):
            raise InputError(f"held_out is {held_out!r}; give samples or batches, or leave it out for a share of them.")
        return samples, as_samples(held_out)
    count = min(most, len(samples) // 5)
    if count < 1:
        raise InputError(
            f"The calibration holds {len(samples)} samples, too few to hold a fifth out; give at least 5, or held_out."
        )
    kept, judges = split(samples, [len(samples) - count, count], seed)
    return kept, judges


def _some(batches: list[Any]) -> list[Any]:
    if not batches:
        raise InputError("The calibration holds no batch; give at least one model input.")
    return batches
