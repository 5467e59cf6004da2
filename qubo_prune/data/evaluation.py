"""Perplexity of a causal language model on held-out text."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from qubo_prune.data.text import check_length, token_windows
from qubo_prune.devices import told_if_full
from qubo_prune.errors import InputError
from qubo_prune.models.load import device_of
from qubo_prune.precision import caller_defaults, pinned
from qubo_prune.progress import Progress


@dataclass(frozen=True)
class Perplexity:
    """``exp`` of the mean negative log-likelihood of the predicted tokens.

    Attributes:
        perplexity: the figure.
        tokens: how many tokens were predicted (each window predicts all but its first).
        windows: number of windows.
        length: tokens per window.
        source: the text.
        seconds: wall-clock time.
    """

    perplexity: float
    tokens: int
    windows: int
    length: int
    source: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)


@pinned()
def perplexity(
    model: nn.Module,
    tokens: Int[Tensor, "windows length"],
    source: str = "",
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity over windows of token ids, each scored on its own.

    Args:
        model: maps ``(1, length)`` token ids to an output with ``logits`` ``(1, length, vocabulary)``.
        tokens: the windows; length at least 2.
        source: name of the text, for the result.
    """
    if tokens.shape[1] < 2:
        raise InputError(f"The windows have {tokens.shape[1]} token; at least 2 are needed to predict one.")
    began, total = time.perf_counter(), 0.0
    device = device_of(model)
    with torch.no_grad(), (progress or Progress()).task("perplexity", len(tokens)) as advance:
        for window in tokens:
            ids = window[None, :].to(device)
            doing = f"while the perplexity of a window of {ids.shape[1]} tokens was measured"
            with caller_defaults(), told_if_full(doing, "give shorter windows (sequence_length)"):
                output = model(ids)
            logits = output.logits[0, :-1].float()
            total += float(functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            advance(1, "")
    count = tokens.shape[0] * (tokens.shape[1] - 1)
    seconds = time.perf_counter() - began
    value = math.exp(total / count) if total / count < 700 else math.inf
    return Perplexity(value, count, tokens.shape[0], tokens.shape[1], source, seconds)


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    text: str = "pydoc",
    samples: int = 24,
    sequence_length: int = 512,
    progress: Progress | None = None,
) -> Perplexity:
    """Perplexity on a text source (see :func:`qubo_prune.data.text.read_text`)."""
    check_length(model, sequence_length)
    windows = token_windows(tokenizer, text, "evaluation", samples, sequence_length)
    return perplexity(model, windows.tokens, text, progress)
