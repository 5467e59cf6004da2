from __future__ import annotations

import pytest
import torch
from reference import random_layer

from qubo_prune.errors import InputError
from qubo_prune.hessian import Gram
from qubo_prune.methods.scores import SCORES, score


def test_magnitude_is_the_absolute_weight(rng):
    layer = random_layer(rng, 3, 5)
    assert torch.equal(score("magnitude", layer.weight, layer.gram, 0), layer.weight.abs())


def test_wanda_orders_weights_by_magnitude_times_input_norm(rng):
    layer = random_layer(rng, 4, 6)
    formula = layer.weight.abs() * layer.inputs.norm(dim=0)
    scores = score("wanda", layer.weight, layer.gram, 0)
    assert torch.equal(scores.flatten().argsort(), formula.flatten().argsort())
    ratio = scores / formula
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


@pytest.mark.parametrize("kind", SCORES)
def test_dead_inputs_score_below_everything(rng, kind):
    layer = random_layer(rng, 3, 6, dead=(1, 4))
    weight = layer.weight.clone()
    weight[:, 0] = 0
    scores = score(kind, weight, layer.gram, 0)
    alive = [0, 2, 3, 5]
    assert scores[:, [1, 4]].max() < scores[:, alive].min()


def test_random_follows_the_seed_alone(rng):
    layer = random_layer(rng, 3, 6)
    first, again, other = (score("random", layer.weight, layer.gram, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first, score("random", -2 * layer.weight, layer.gram, 1))


def test_without_data_the_weights_decide(rng):
    weight = torch.tensor(rng.normal(size=(2, 3)))
    empty = Gram(torch.zeros(3, 3, dtype=torch.float64), 0)
    assert torch.equal(score("wanda", weight, empty, 0), weight.abs())
    assert torch.equal(score("magnitude", weight, empty, 0), weight.abs())
    assert score("random", weight, empty, 0).min() >= 0


def test_unknown_scores_name_near_ones(rng):
    layer = random_layer(rng, 2, 3)
    with pytest.raises(InputError, match=r"'wandaa' \(did you mean 'wanda'"):
        score("wandaa", layer.weight, layer.gram, 0)
