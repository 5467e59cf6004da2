"""The loss of a model, sample by sample: what blocks at the level of the loss are measured by."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qubo_prune.data.labels import NoLabel, class_losses, drawn_classes, several_losses, square_losses
from qubo_prune.data.samples import Samples, to_device
from qubo_prune.devices import told_if_full
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.models.load import device_of, evaluating, hooked
from qubo_prune.models.padding import IGNORED, Part, equal_lengths
from qubo_prune.models.signature import Signature
from qubo_prune.precision import caller_defaults, pinned

#: What takes less memory of a device than a pass took.
_SMALLER = "set a smaller micro_batch in loss_settings, or a smaller loss_length where samples are windows of text"

LossFunction = Callable[[nn.Module, Any], Tensor]


def fits(samples: int) -> AbstractContextManager[None]:
    """Says what to do where the memory does not hold a pass over so many samples."""
    return told_if_full(f"in a pass over {samples} samples of the loss", _SMALLER)


class Loss(abc.ABC):
    """One loss value for each sample of a batch."""

    #: the loss is minus the logarithm of a probability that the model gives, so labels can be drawn from it
    likelihood: bool = False

    def inputs(self, batch: Any) -> Any:
        """What of a batch the model is called with: all but the labels."""
        if isinstance(batch, Mapping):
            return {name: value for name, value in batch.items() if name != "labels"}
        return batch[0] if isinstance(batch, (tuple, list)) and len(batch) == 2 else batch

    @abc.abstractmethod
    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """Run the model on a batch of b samples; what the other methods take."""

    @abc.abstractmethod
    def losses(self, prediction: Tensor, batch: Any) -> Float[Tensor, " b"]:
        """The loss of each sample."""

    def drawn(self, prediction: Tensor, generator: torch.Generator, batch: Any = None) -> Float[Tensor, " b"]:
        """The loss of each sample with labels drawn from the model's own distribution; the batch tells which count."""
        raise NotImplementedError(f"{type(self).__name__} cannot draw labels")


class _Labelled(Loss):
    """A loss of what a model gives and labels; a batch is ``(inputs, labels)`` or a dict with ``labels``."""

    likelihood = True

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        self._labels(batch)
        inputs = model_inputs(self, batch, Signature.of(model))
        return _single(logits_of(model(**inputs) if isinstance(inputs, Mapping) else model(inputs)))

    @staticmethod
    def _labels(batch: Any) -> Tensor:
        if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
            return batch["labels"]  # type: ignore[no-any-return]
        if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
            return batch[1]
        raise InputError(
            f"A batch of type {type(batch).__name__} holds no labels; give (inputs, labels), or a dict with 'labels'."
        )


@dataclass(frozen=True)
class Classification(_Labelled):
    """Cross entropy of class logits, for each sample or each position; of a sample's positions their mean.

    Labels are classes, of which -100 does not count, or shares of classes that sum to 1.
    """

    def losses(self, prediction: Tensor, batch: Any) -> Float[Tensor, " b"]:
        return class_losses(prediction, self._labels(batch).to(prediction.device))

    def drawn(self, prediction: Tensor, generator: torch.Generator, batch: Any = None) -> Float[Tensor, " b"]:
        own = None if batch is None else self._labels(batch).to(prediction.device)
        return class_losses(prediction, drawn_classes(prediction, own, generator))


@dataclass(frozen=True)
class MultiLabel(_Labelled):
    """Binary cross entropy of logits, a mean over a sample's labels 0 or 1, of which -100 does not count."""

    def losses(self, prediction: Tensor, batch: Any) -> Float[Tensor, " b"]:
        return several_losses(prediction, self._labels(batch).to(prediction.device))

    def drawn(self, prediction: Tensor, generator: torch.Generator, batch: Any = None) -> Float[Tensor, " b"]:
        chances = prediction.detach().sigmoid().cpu()
        drawn = torch.bernoulli(chances, generator=generator).to(prediction.device)
        if batch is not None:
            drawn = drawn.masked_fill(self._labels(batch).to(drawn.device) == IGNORED, IGNORED)
        return several_losses(prediction, drawn)


@dataclass(frozen=True)
class Regression(_Labelled):
    """Squared error, a mean over a sample's numbers: up to a constant minus the logarithm of a normal density."""

    def losses(self, prediction: Tensor, batch: Any) -> Float[Tensor, " b"]:
        return square_losses(prediction, self._labels(batch).to(prediction.device))

    def drawn(self, prediction: Tensor, generator: torch.Generator, batch: Any = None) -> Float[Tensor, " b"]:
        noise = torch.randn(prediction.shape, generator=generator, dtype=prediction.dtype) * math.sqrt(0.5)
        return square_losses(prediction, prediction.detach() + noise.to(prediction.device))


@dataclass(frozen=True)
class NextToken(Loss):
    """Mean negative log-likelihood of a window's tokens but the first, in nats per token.

    A batch is token ids ``(b, length)``, or a dict with ``input_ids`` and what else the model takes; each window is one
    sample. ``labels`` take the place of the tokens: those of -100 do not count.
    """

    likelihood = True

    def inputs(self, batch: Any) -> Any:
        tokens, others = self._tokens(batch), self._beside(batch)
        return {"input_ids": tokens, **others} if others else tokens

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        signature = Signature.of(model)
        if signature.encoder_decoder:
            raise InputError(
                f"{type(model).__name__} has an encoder and a decoder, whose labels are not its inputs; give batches "
                "with 'labels', and loss='classification'."
            )
        others = {name: value for name, value in self._beside(batch).items() if signature.takes(name)}
        return _single(logits_of(model(self._tokens(batch).to(device_of(model)), **others))[:, :-1])

    def losses(self, prediction: Tensor, batch: Any) -> Float[Tensor, " b"]:
        return class_losses(prediction, self._next(batch, prediction.device))

    def drawn(self, prediction: Tensor, generator: torch.Generator, batch: Any = None) -> Float[Tensor, " b"]:
        own = None if batch is None else self._next(batch, prediction.device)
        return class_losses(prediction, drawn_classes(prediction, own, generator))

    def _next(self, batch: Any, device: torch.device) -> Int[Tensor, "b rest"]:
        """What is to be predicted, from the second position on."""
        tokens = self._tokens(batch)
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if labels is not None and (not isinstance(labels, Tensor) or labels.shape != tokens.shape):
            given = tuple(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
            raise InputError(
                f"The labels are {given} beside token ids {tuple(tokens.shape)}; give one for each token, which the "
                "loss shifts itself, or leave them out."
            )
        return (tokens if labels is None else labels)[:, 1:].to(device)

    @staticmethod
    def _beside(batch: Any) -> dict[str, Any]:
        """What a batch has besides its token ids and labels."""
        if not isinstance(batch, Mapping):
            return {}
        return {name: value for name, value in batch.items() if name not in ("input_ids", "labels")}

    @staticmethod
    def _tokens(batch: Any) -> Int[Tensor, "b length"]:
        tokens = batch.get("input_ids") if isinstance(batch, Mapping) else batch
        if isinstance(tokens, (tuple, list)) and len(tokens) == 1:
            tokens = tokens[0]
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point() or tokens.shape[1] < 2:
            raise InputError(
                f"A batch of type {type(batch).__name__} holds no token windows; give ids (windows, length) with "
                "length at least 2, or a dict with 'input_ids'."
            )
        return tokens


def model_inputs(loss: Loss, batch: Any, signature: Signature) -> Any:
    """What of a batch a model is called with; one with a decoder makes the decoder's inputs from its labels."""
    if signature.encoder_decoder and isinstance(batch, Mapping):
        labels = batch.get("labels")
        told = "decoder_input_ids" in batch or "decoder_inputs_embeds" in batch
        if isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point() and not told:
            return dict(batch)
    return loss.inputs(batch)


@dataclass(frozen=True)
class Given(Loss):
    """A function ``(model, batch) -> losses`` of the user's own, one value per sample."""

    function: LossFunction

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        return self.function(model, batch)

    def losses(self, prediction: Tensor, batch: Any) -> Float[Tensor, " b"]:
        if not isinstance(prediction, Tensor) or prediction.ndim != 1:
            given = tuple(prediction.shape) if isinstance(prediction, Tensor) else type(prediction).__name__
            raise InputError(
                f"The loss function returned {given}; a tensor (b,) with one value per sample is needed, so leave "
                "out the mean (reduction='none')."
            )
        return prediction


LOSSES: Mapping[str, Loss] = {
    "classification": Classification(),
    "next-token": NextToken(),
    "multi-label": MultiLabel(),
    "regression": Regression(),
}


def make_loss(loss: str | Loss | LossFunction) -> Loss:
    """A loss by name, as it is, or from a function ``(model, batch) -> (b,)``."""
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Given(loss)
    if loss not in LOSSES:
        raise InputError(
            f"There is no loss {loss!r}{did_you_mean(loss, LOSSES)}; use one of {', '.join(LOSSES)}, or a function "
            "(model, batch) -> losses with one value per sample."
        )
    return LOSSES[loss]


@dataclass(frozen=True, eq=False)
class Objective:
    """A model with the loss that is to stay low.

    Attributes:
        model: run in evaluation mode.
        loss: one value per sample.
        micro_batch: samples that go through the model at once.
    """

    model: nn.Module
    loss: Loss
    micro_batch: int = 256

    @pinned()
    def measure(self, samples: Samples, indices: Int[Tensor, " b"] | None = None) -> Float[Tensor, " b"]:
        """The loss of each sample, float64, without gradients.

        Raises:
            InputError: a loss is NaN or infinite.
        """
        chosen = torch.arange(len(samples)) if indices is None else indices
        with torch.no_grad(), evaluating(self.model):
            parts = [
                (part.rows, self.losses_of(part.batch, chosen[part.rows])[1].double())
                for part in self.parts(samples, chosen)
            ]
        return in_order(parts)

    def parts(self, samples: Samples, indices: Int[Tensor, " b"]) -> Iterator[Part]:
        """The micro-batches of a batch, on the model's device and without padding.

        The rows of each are places in ``indices``.
        """
        device, signature = device_of(self.model), replace(Signature.of(self.model), positions=())
        for places in torch.split(torch.arange(len(indices)), self.micro_batch):
            batch = to_device(samples.batch(indices[places]), device)
            for part in equal_lengths(batch, signature, len(places)):
                yield Part(places[part.rows], part.batch)

    def losses_of(self, batch: Any, indices: Int[Tensor, " m"]) -> tuple[Tensor, Float[Tensor, " m"]]:
        """Prediction and losses of one micro-batch.

        Args:
            batch: samples, all of one length.
            indices: which samples they are, for messages.

        Raises:
            InputError: a loss is not finite, or a sample has no label that counts.
        """
        prediction = self.predicted(batch, len(indices))
        try:
            with caller_defaults(), fits(len(indices)):
                losses = self.loss.losses(prediction, batch)
        except NoLabel as error:
            raise InputError(f"Sample {int(indices[error.row])} has no label but {IGNORED}; leave it out.") from None
        if losses.shape != indices.shape:
            raise InputError(
                f"The loss function returned {len(losses)} values for a batch of {len(indices)} samples; one value "
                "per sample is needed."
            )
        self.check_finite(losses, batch, indices)
        return prediction, losses

    def predicted(self, batch: Any, count: int) -> Tensor:
        """Prediction of one micro-batch of that many samples."""
        with caller_defaults(), fits(count):
            return self.loss.predict(self.model, batch)

    def check_finite(self, losses: Float[Tensor, " m"], batch: Any, indices: Int[Tensor, " m"]) -> None:
        """Raise :class:`InputError` if a loss of a micro-batch is NaN or infinite."""
        if not torch.isfinite(losses).all():
            wrong = int(indices[(~torch.isfinite(losses)).nonzero()[0, 0]])
            raise InputError(
                f"The loss is NaN or infinite in sample {wrong} (batch of samples {int(indices[0])} to "
                f"{int(indices[-1])}{self._origin(batch)}); check that sample and the model, or use a wider dtype such "
                "as float32."
            )

    def _origin(self, batch: Any) -> str:
        """Which module's output is the first that is not finite, for a message; empty if all are finite."""
        found: list[str] = []

        def look(name: str) -> Callable[..., None]:
            def see(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and not torch.isfinite(output).all():
                    found.append(name)

            return see

        handles = [module.register_forward_hook(look(name)) for name, module in self.model.named_modules() if name]
        with hooked(handles), torch.no_grad(), caller_defaults():
            self.loss.predict(self.model, batch)
        return f"; the first output that is not finite is that of module {found[0]!r}" if found else ""


def logits_of(output: Any) -> Tensor:
    """An output's logits, or the output itself; raises :class:`InputError` if that is no tensor."""
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise InputError(
            f"The model returned {type(output).__name__}; a tensor of logits or an output with .logits is needed, "
            "or give a loss function of your own."
        )
    return logits


def _single(logits: Tensor) -> Tensor:
    """Half precision as float32, wider types as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def in_order(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Values of micro-batches, each with its rows, in the order of the rows."""
    rows, values = (torch.cat(each) for each in zip(*parts, strict=True))
    return values[rows.argsort().to(values.device)]
