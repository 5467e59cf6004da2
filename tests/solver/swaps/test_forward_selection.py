from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import energy, random_batch

from qubo_prune.problem import BlockQubo
from qubo_prune.solver.swaps.forward_selection import forward_selection


def slow_forward_selection(problem: BlockQubo) -> np.ndarray:
    x = np.zeros(problem.num_variables, dtype=bool)
    for _ in range(sum(problem.num_pruned)):
        counts = problem.counts(x)
        options = []
        for i in np.flatnonzero(~x):
            if counts[problem.labels[i]] < problem.num_pruned[problem.labels[i]]:
                longer = x.copy()
                longer[i] = True
                options.append((energy(problem, longer), i))
        x[min(options)[1]] = True
    return x


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("counts", "labels"), [([4], None), ([2, 3], [0, 0, 1, 1, 0, 1, 0, 1])])
def test_each_step_prunes_what_costs_least(rng, shared, counts, labels):
    batch = random_batch(rng, 5, 8, counts, labels, shared)
    x = forward_selection(batch, torch.float64)
    for row in range(5):
        assert np.array_equal(x[row].numpy(), slow_forward_selection(batch.problem(row)))


def test_rows_may_have_different_counts(rng):
    batch = random_batch(rng, 4, 6, [0])
    batch.num_pruned[:, 0] = torch.tensor([0, 2, 5, 6])
    x = forward_selection(batch)
    assert x.sum(1).tolist() == [0, 2, 5, 6]


def test_a_batch_without_rows_gives_none(rng):
    batch = random_batch(rng, 2, 4, [2]).rows(slice(0, 0))
    assert forward_selection(batch).shape == (0, 4)
