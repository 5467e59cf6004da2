"""Losses of samples from predictions and labels, over what counts: labels of -100 do not.

Labels are classes of samples or of positions, shares of classes, several labels a sample, or numbers.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from qubo_prune.errors import InputError
from qubo_prune.models.padding import IGNORED


class NoLabel(InputError):
    """A sample of a batch has no label that counts.

    Attributes:
        row: which one.
    """

    def __init__(self, row: int) -> None:
        super().__init__(f"Sample {row} of the batch has no label but {IGNORED}; leave that sample out.")
        self.row = row


def class_losses(logits: Tensor, labels: Tensor) -> Float[Tensor, " b"]:
    """Cross entropy of each sample, a mean over those of its positions that count.

    Args:
        logits: ``(b, classes)``, or ``(b, T, classes)`` or ``(b, classes, T)`` for positions.
        labels: classes ``(b,)`` or ``(b, T)``, or shares ``(b, classes)``.

    Raises:
        InputError: they do not fit, or a sample has no label.
    """
    if labels.is_floating_point():
        return functional.cross_entropy(logits, _shares(logits, labels), reduction="none")
    logits, labels = _aligned(logits, labels)
    if not labels.numel():
        raise NoLabel(0)
    counted = labels != IGNORED
    wrong = labels[counted & ((labels < 0) | (labels >= logits.shape[1]))]
    if len(wrong):
        raise InputError(
            f"The labels hold class {int(wrong[0])}, and the model gives logits of {logits.shape[1]} classes; give "
            f"classes from 0 on, or {IGNORED} for what is not to count."
        )
    values = functional.cross_entropy(logits, labels.long(), reduction="none", ignore_index=IGNORED)
    return mean_counted(values, counted)


def several_losses(logits: Float[Tensor, "b labels"], labels: Tensor) -> Float[Tensor, " b"]:
    """Binary cross entropy of each sample, a mean over those of its labels 0 or 1 that count."""
    if labels.shape != logits.shape:
        raise _unlike("several labels a sample", logits, labels)
    counted = labels != IGNORED
    values = functional.binary_cross_entropy_with_logits(
        logits, labels.to(logits.dtype).masked_fill(~counted, 0), reduction="none"
    )
    return mean_counted(values, counted)


def square_losses(outputs: Float[Tensor, "b ..."], labels: Tensor) -> Float[Tensor, " b"]:
    """Squared error of each sample, a mean over its numbers."""
    if labels.numel() != outputs.numel() or len(labels) != len(outputs):
        raise _unlike("numbers", outputs, labels)
    return (outputs - labels.to(outputs.dtype).reshape(outputs.shape)).square().reshape(len(outputs), -1).mean(1)


def mean_counted(values: Float[Tensor, "b ..."], counted: Bool[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """The mean over what counts of each sample; raises :class:`NoLabel` for one of which nothing does."""
    counts = counted.reshape(len(counted), -1).sum(1)
    if not counts.all():
        raise NoLabel(int((counts == 0).nonzero()[0]))
    return (values * counted).reshape(len(values), -1).sum(1) / counts if values.ndim > 1 else values


def drawn_classes(logits: Tensor, labels: Tensor | None, generator: torch.Generator) -> Int[Tensor, "b ..."]:
    """One class for each sample or position from ``softmax(logits)``; what did not count does not now.

    They are drawn on the CPU, so that devices agree.
    """
    own = None if labels is None or labels.is_floating_point() else labels
    logits, own = (logits.movedim(-1, 1), None) if own is None else _aligned(logits, own)
    chances = logits.detach().movedim(1, -1).softmax(-1)
    flat = chances.reshape(-1, chances.shape[-1]).cpu()
    drawn = torch.multinomial(flat, 1, generator=generator).reshape(chances.shape[:-1]).to(logits.device)
    return drawn if own is None else drawn.masked_fill(own == IGNORED, IGNORED)


def _aligned(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits with the classes along dimension 1, and labels of the other dimensions."""
    if labels.ndim == 2 and labels.shape[1] == 1 and logits.ndim == 2:
        labels = labels[:, 0]
    if logits.ndim == labels.ndim + 1 and logits.shape[:-1] == labels.shape:
        logits = logits.movedim(-1, 1)
    elif logits.ndim < 2 or (logits.shape[0], *logits.shape[2:]) != tuple(labels.shape):
        raise _unlike("classes", logits, labels)
    if logits.shape[1] == 1:
        raise InputError(
            "The model gives one output a sample, and the labels are classes; give loss='regression' for numbers, or "
            "loss='multi-label' for labels 0 or 1."
        )
    return logits, labels


def _shares(logits: Tensor, labels: Tensor) -> Tensor:
    """Labels that are shares of classes."""
    if labels.shape != logits.shape:
        raise _unlike("shares of classes", logits, labels)
    if not are_shares(labels):
        raise InputError(
            "The labels are floating point numbers that are no shares of classes, which sum to 1; give "
            "loss='multi-label' for several labels a sample, or loss='regression' for numbers."
        )
    return labels.to(logits.dtype)


def are_shares(labels: Tensor) -> bool:
    """Whether labels ``(b, classes)`` are shares: none is negative, and those of each sample sum to 1."""
    return bool((labels >= 0).all() and ((labels.sum(1) - 1).abs() < 1e-2).all())


def _unlike(kind: str, outputs: Tensor, labels: Tensor) -> InputError:
    return InputError(
        f"The labels are taken for {kind} and have shape {tuple(labels.shape)}, and the model gives "
        f"{tuple(outputs.shape)}; give labels that fit, or another loss (classification, multi-label, regression, "
        "next-token, or a function of your own)."
    )
