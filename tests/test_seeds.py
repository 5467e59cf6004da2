from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from reference import random_layer
from tiny import llama
from unchecked import without_type_checks

from qubo_prune import prune
from qubo_prune.bench.solvers import compare_solvers
from qubo_prune.blocks.certificate import block_optima
from qubo_prune.data import split
from qubo_prune.errors import InputError
from qubo_prune.masks import Pattern
from qubo_prune.methods.scores import score
from qubo_prune.run.compare import compare
from qubo_prune.run.estimate import estimate_run
from qubo_prune.seeds import HIGHEST_SEED, checked_seed, derive_seed

WRONG = [-1, 2**63, 2**64, 1.5, True, "1", None]
TOKENS = torch.zeros(2, 4, dtype=torch.long)


def certify(seed: object) -> object:
    layer = random_layer(np.random.default_rng(0), 3, 4)
    return block_optima(layer.weight, layer.gram, layer.random_keep("row", 0.5), Pattern.parse("row"), seed)


def random_score(seed: object) -> object:
    layer = random_layer(np.random.default_rng(0), 3, 4)
    return score("random", layer.weight, layer.gram, seed)


TAKING: dict[str, Callable[[object], object]] = {
    "derive_seed": lambda seed: derive_seed(seed, 1),
    "prune": lambda seed: prune(llama(), TOKENS, 0.5, seed=seed),
    "a dry run": lambda seed: estimate_run(llama(), TOKENS, 0.5, seed=seed),
    "compare": lambda seed: compare("there-is-no-such-model", ["wanda"], seed=seed),
    "compare_solvers": lambda seed: compare_solvers([], [], seed),
    "block_optima": certify,
    "score": random_score,
    "split": lambda seed: split([1, 2, 3], [1], seed),
}


@pytest.mark.parametrize("seed", WRONG)
@pytest.mark.parametrize("taker", TAKING)
def test_every_taker_of_a_seed_refuses_the_same_ones(taker, seed):
    with (
        without_type_checks(),
        pytest.raises(InputError, match=r"seed is .*; pass a whole number from 0 to 2\*\*63"),
    ):
        TAKING[taker](seed)


def test_all_others_pass():
    assert [checked_seed(seed) for seed in (0, 7, np.int64(3), HIGHEST_SEED)] == [0, 7, 3, HIGHEST_SEED]
    for taker in (derive_seed, random_score, certify):
        taker(HIGHEST_SEED)
