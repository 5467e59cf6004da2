"""The loss of a model, sample by sample: what blocks at the level of the loss are measured by."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from qubo_prune.data import Samples, to_device
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.models import device_of, evaluating
from qubo_prune.precision import caller_defaults, pinned

LossFunction = Callable[[nn.Module, Any], Tensor]


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

    def drawn(self, prediction: Tensor, generator: torch.Generator) -> Float[Tensor, " b"]:
        """The loss of each sample with labels drawn from the model's own distribution."""
        raise NotImplementedError(f"{type(self).__name__} cannot draw labels")


@dataclass(frozen=True)
class Classification(Loss):
    """Cross entropy of class logits; a batch is ``(inputs, labels)`` or a dict with ``labels``."""

    likelihood = True

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        self._labels(batch)
        inputs = self.inputs(batch)
        return _single(logits_of(model(**inputs) if isinstance(inputs, Mapping) else model(inputs)))

    def losses(self, prediction: Tensor, batch: Any) -> Float[Tensor, " b"]:
        return functional.cross_entropy(prediction, self._labels(batch).to(prediction.device), reduction="none")

    def drawn(self, prediction: Tensor, generator: torch.Generator) -> Float[Tensor, " b"]:
        return functional.cross_entropy(prediction, _draw(prediction, generator), reduction="none")

    @staticmethod
    def _labels(batch: Any) -> Int[Tensor, " b"]:
        if isinstance(batch, Mapping) and "labels" in batch:
            return batch["labels"]  # type: ignore[no-any-return]
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[1]  # type: ignore[no-any-return]
        raise InputError(
            f"A batch of type {type(batch).__name__} holds no labels; give (inputs, labels), or a dict with 'labels'."
        )


@dataclass(frozen=True)
class NextToken(Loss):
    """Mean negative log-likelihood of a window's tokens but the first, in nats per token.

    A batch is token ids ``(b, length)``, or a dict with ``input_ids``; each window is one sample.
    """

    likelihood = True

    def inputs(self, batch: Any) -> Any:
        return self._tokens(batch)

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        return _single(logits_of(model(self._tokens(batch).to(device_of(model))))[:, :-1])

    def losses(self, prediction: Tensor, batch: Any) -> Float[Tensor, " b"]:
        labels = self._tokens(batch)[:, 1:].to(prediction.device)
        return functional.cross_entropy(prediction.transpose(1, 2), labels, reduction="none").mean(1)

    def drawn(self, prediction: Tensor, generator: torch.Generator) -> Float[Tensor, " b"]:
        b, length, classes = prediction.shape
        labels = _draw(prediction.reshape(-1, classes), generator).reshape(b, length)
        return functional.cross_entropy(prediction.transpose(1, 2), labels, reduction="none").mean(1)

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


LOSSES: Mapping[str, Loss] = {"classification": Classification(), "next-token": NextToken()}


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
            return torch.cat([self.losses_of(samples, part)[1].double() for part in self.parts(chosen)])

    def parts(self, indices: Int[Tensor, " b"]) -> Iterator[Int[Tensor, " m"]]:
        """The micro-batches of a batch."""
        return iter(torch.split(indices, self.micro_batch))

    def losses_of(self, samples: Samples, indices: Int[Tensor, " m"]) -> tuple[Tensor, Float[Tensor, " m"]]:
        """Prediction and losses of one micro-batch; raises :class:`InputError` if one is not finite."""
        batch = to_device(samples.batch(indices), device_of(self.model))
        with caller_defaults():
            prediction = self.loss.predict(self.model, batch)
            losses = self.loss.losses(prediction, batch)
        if losses.shape != indices.shape:
            raise InputError(
                f"The loss function returned {len(losses)} values for a batch of {len(indices)} samples; one value "
                "per sample is needed."
            )
        if not torch.isfinite(losses).all():
            wrong = int(indices[(~torch.isfinite(losses)).nonzero()[0, 0]])
            raise InputError(
                f"The loss is NaN or infinite in sample {wrong} (batch of samples {int(indices[0])} to "
                f"{int(indices[-1])}{self._origin(batch)}); check that sample and the model, or use a wider dtype such "
                "as float32."
            )
        return prediction, losses

    def _origin(self, batch: Any) -> str:
        """Which module's output is the first that is not finite, for a message; empty if all are finite."""
        found: list[str] = []

        def look(name: str) -> Callable[..., None]:
            def see(module: nn.Module, args: Any, output: Any) -> None:
                if isinstance(output, Tensor) and not torch.isfinite(output).all():
                    found.append(name)

            return see

        handles = [module.register_forward_hook(look(name)) for name, module in self.model.named_modules() if name]
        try:
            with torch.no_grad(), caller_defaults():
                self.loss.predict(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()
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


def _draw(logits: Float[Tensor, "b classes"], generator: torch.Generator) -> Int[Tensor, " b"]:
    """One label per row from ``softmax(logits)``, drawn on the CPU so that devices agree."""
    chances = logits.detach().softmax(1).cpu()
    return torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)
