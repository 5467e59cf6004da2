from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import energy, random_problem

from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.problem.repair import repair

LABELS = [0, 1, 0, 2, 1, 0, 2, 2, 1]


def slow_repair(problem: BlockQubo, x: np.ndarray) -> np.ndarray:
    """Group by group, the flip towards the count after which the energy is lowest."""
    x = x.copy()
    for group, count in enumerate(problem.num_pruned):
        while (missing := count - int(x[problem.labels == group].sum())) != 0:
            candidates = []
            for i in np.flatnonzero((problem.labels == group) & (x != (missing > 0))):
                other = x.copy()
                other[i] = missing > 0
                candidates.append((energy(problem, other), other))
            x = min(candidates, key=lambda pair: pair[0])[1]
    return x


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), form=st.sampled_from(["dense", "groups", "factor", "factor groups"]))
def test_counts_are_met_by_the_cheapest_flips(seed, form):
    rng = np.random.default_rng(seed)
    counts = tuple(int(rng.integers(4)) for _ in range(3)) if "groups" in form else int(rng.integers(10))
    labels = LABELS if "groups" in form else None
    problem = random_problem(rng, 9, counts, labels)
    if "factor" in form:
        problem = BlockQubo(FactorForm(rng.normal(size=9), rng.normal(size=(9, 3))), counts, 0.0, labels)
    x = rng.random(9) < rng.random()
    before = x.copy()
    mended = repair(problem, x)
    assert problem.is_feasible(mended)
    assert mended.tolist() == slow_repair(problem, x).tolist()
    assert x.tolist() == before.tolist()


@pytest.mark.parametrize("counts", [3, None])
def test_what_needs_no_repair_stays_as_it_is(rng, counts):
    problem = BlockQubo(rng.normal(size=(6, 6)), counts)
    x = np.array([True, False, True, False, False, True])
    assert repair(problem, x).tolist() == x.tolist()


def test_the_problem_of_no_variables_is_left_alone():
    assert repair(BlockQubo(np.zeros((0, 0)), 0), np.zeros(0, dtype=bool)).tolist() == []
