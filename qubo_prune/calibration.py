"""Calibration data: what the layers' inputs come from, and the samples that the loss is taken over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qubo_prune.data import Samples, TensorSamples, collated, split, to_device
from qubo_prune.errors import InputError
from qubo_prune.models import LoadedModel, device_of
from qubo_prune.objective import Classification, Loss, LossFunction, NextToken, make_loss
from qubo_prune.padding import one_by_one
from qubo_prune.run_folder import digest_of_batches
from qubo_prune.signature import Signature
from qubo_prune.solver import derive_seed
from qubo_prune.text import all_windows, check_length, token_windows

Source = str | Tensor | Samples | Iterable[Any]


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
        held_out: model inputs on which the layers' errors are measured, none of them among ``inputs``.
    """

    inputs: list[Any]
    described: dict[str, Any]
    samples: Samples | None = None
    held_out: list[Any] = field(default_factory=list)

    def digest(self) -> str:
        """SHA-256 of the inputs, and of some of the samples."""
        given: list[Any] = [self.inputs, self.held_out]
        if self.samples is not None:  # all of them may be more than the memory holds
            some = torch.linspace(0, len(self.samples) - 1, min(_DIGESTED, len(self.samples))).long()
            given += [len(self.samples), self.samples.batch(some)]
        return digest_of_batches(*given)

    def without_last(self, count: int) -> Calibration:
        """The last ``count`` inputs held out."""
        if len(self.inputs) <= count:
            raise InputError(
                f"guard is {count} but the calibration holds {len(self.inputs)} batches; hold fewer out, or give more."
            )
        described = self.described | {"held_out": count}
        return replace(self, inputs=self.inputs[:-count], held_out=self.inputs[-count:], described=described)


def read_calibration(
    source: Source, loaded: LoadedModel, windows: int, length: int, loss: Loss | None = None, loss_length: int = 128,
    gram_samples: int = 1024, guard: int | None = None,
) -> Calibration:  # fmt: skip
    """Model inputs, and samples for the loss if there is one.

    Args:
        source: a text source, token ids, inputs, batches, or :class:`~qubo_prune.data.Samples`.
        loaded: the model, and its tokenizer for text sources.
        windows: token windows cut from a text.
        length: tokens of each.
        loss: tells what in a batch the model takes; ``None`` if batches are model inputs.
        loss_length: tokens of a window that the loss is taken over.
        gram_samples: samples of a data set that the layers' Grams are taken from, at most.
        guard: inputs to hold out: windows of a text besides the others, or the last of given batches;
            ``None`` for :data:`GUARD` of a text.
    """
    device = device_of(loaded.model)
    if isinstance(source, str):
        more = GUARD if guard is None else guard
        return _of_text(source, loaded, windows, length, loss, loss_length, device, more)
    given = _without_padding(_of_inputs(source, loss, gram_samples, device), loaded)
    return given.without_last(guard) if guard else given


def _without_padding(given: Calibration, loaded: LoadedModel) -> Calibration:
    """The inputs with the samples of padded batches one by one, by their real positions."""
    signature = Signature.of(loaded.model)
    inputs = [one for number, batch in enumerate(given.inputs) for one in one_by_one(batch, signature, number)]
    described = given.described | ({"batches": len(inputs)} if "batches" in given.described else {})
    return replace(given, inputs=inputs, described=described)


def _of_inputs(source: Source, loss: Loss | None, gram_samples: int, device: torch.device) -> Calibration:
    if isinstance(source, Tensor) and loss is None:
        # token windows go one by one, other inputs in batches that a layer takes at once
        batches: list[Any] = list(torch.split(source.to(device), 128 if source.is_floating_point() else 1))
        batches = [batch for batch in batches if len(batch)]
        return Calibration(_some(batches), {"source": "given inputs", "batches": len(batches)})
    if loss is None and not isinstance(source, Samples):
        batches = [to_device(batch, device) for batch in source]
        return Calibration(_some(batches), {"source": "given inputs", "batches": len(batches)})
    samples = as_samples(source)
    chosen = split(samples, [min(len(samples), gram_samples)], derive_seed(0, len(samples)))[0]
    parts = torch.split(torch.arange(len(chosen)), 1 if isinstance(loss, NextToken) else 128)
    given = (chosen.batch(part) for part in parts)
    inputs = [to_device(batch if loss is None else loss.inputs(batch), device) for batch in given]
    return Calibration(
        inputs, {"source": "given samples", "samples": len(samples), "gram_samples": len(chosen)}, samples
    )


def _of_text(
    source: str, loaded: LoadedModel, count: int, length: int, loss: Loss | None, loss_length: int,
    device: torch.device, guard: int,
) -> Calibration:  # fmt: skip
    if loaded.tokenizer is None:
        raise InputError(
            f"The calibration {source!r} is a text source, which needs a tokenizer; pass tokenizer=, "
            "or give token ids or model inputs instead."
        )
    check_length(loaded.model, length)
    windows = token_windows(loaded.tokenizer, source, "calibration", count, length, guard)
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


def as_samples(source: Samples | Tensor | Iterable[Any]) -> Samples:
    """Samples as they are, those of one tensor, or the joined ones of batches."""
    if isinstance(source, Tensor):
        return TensorSamples(source)
    return source if isinstance(source, Samples) else collated(source)


def choose_loss(loss: str | Loss | LossFunction | None, source: Source) -> Loss:
    """The loss asked for; by default next-token for text and token ids, classification for all else."""
    if loss is not None:
        return make_loss(loss)
    tokens = isinstance(source, Tensor) and not source.is_floating_point() and source.ndim == 2
    return NextToken() if isinstance(source, str) or tokens else Classification()


def judged_by(samples: Samples, held_out: Source | None, most: int, seed: int) -> tuple[Samples, Samples]:
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
