"""Orders of inputs for n:m."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from qubo_prune.masks.channel_order import channel_order, pruned_score
from qubo_prune.masks.keep import Pattern, keep_highest


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_the_score_is_that_of_what_the_pattern_prunes(kept: int, of: int) -> None:
    scores = np.random.default_rng(0).random((16, 5))
    keep = keep_highest(torch.from_numpy(scores.T.copy()), Pattern.parse(f"{kept}:{of}"), kept / of)
    assert pruned_score(scores, kept, of) == pytest.approx(float(scores.T[~keep.numpy()].sum()))


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (4, 8), (1, 2)])
def test_an_order_is_a_permutation_that_no_exchange_improves(kept: int, of: int) -> None:
    scores = np.random.default_rng(1).random((16, 6)) ** 3
    order = channel_order(scores, kept, of, rounds=5000)
    assert sorted(order) == list(range(16))
    found = pruned_score(scores[order], kept, of)
    assert found < pruned_score(scores, kept, of)
    for one, other in itertools.combinations(range(16), 2):
        if one // of != other // of:
            swapped = order.copy()
            swapped[[one, other]] = swapped[[other, one]]
            assert pruned_score(scores[swapped], kept, of) >= found * (1 - 1e-8)


def test_small_inputs_get_the_best_order_of_all() -> None:
    scores = np.array([[9.0], [8.0], [7.0], [6.0], [0.4], [0.3], [0.2], [0.1]])
    order = channel_order(scores, 2, 4)
    assert pruned_score(scores[order], 2, 4) == pytest.approx(1.0)  # two of the large ones in each group
    assert np.array_equal(order, channel_order(scores, 2, 4))
    assert np.array_equal(channel_order(scores, 4, 4), np.arange(8))
    assert np.array_equal(channel_order(scores[:4], 2, 4), np.arange(4))
