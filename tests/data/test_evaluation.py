"""Perplexity against its definition."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from qubo_prune.data.evaluation import perplexity
from qubo_prune.errors import InputError


def test_perplexity_is_exp_of_the_mean_negative_log_likelihood() -> None:
    model, tokens = tiny.llama(), tiny.tokens(3, 10)
    total = 0.0
    with torch.no_grad():
        for window in tokens:
            probabilities = model(window[None]).logits[0].double().softmax(-1)
            for position in range(9):
                total -= math.log(float(probabilities[position, window[position + 1]]))
    result = perplexity(model, tokens, "given")
    assert result.tokens == 27
    assert result.perplexity == pytest.approx(math.exp(total / 27), rel=1e-5)
    assert result.to_dict()["source"] == "given"


def test_windows_of_one_token_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        perplexity(tiny.llama(), tiny.tokens(2, 1))
