from __future__ import annotations

import numpy as np
import pytest
from qubo_prune_solvers._nearby import nearby
from reference import random_feasible, random_problem, swaps

from qubo_prune.solver import Deadline


@pytest.mark.parametrize(("counts", "labels"), [(4, None), ((2, 1), [0, 0, 0, 0, 0, 1, 1, 1, 1])])
@pytest.mark.parametrize("wanted", [1, 5, 1000])
def test_no_swap_of_what_is_found_is_missing(rng, counts, labels, wanted):
    problem = random_problem(rng, 9, counts, labels)
    found = nearby(problem, random_feasible(rng, problem)[None], wanted, Deadline(None))
    energies = np.atleast_1d(problem.energy(found))
    assert (np.diff(energies) >= -1e-9).all()
    known = {x.tobytes() for x in found}
    assert len(known) == len(found) <= wanted
    assert all(problem.is_feasible(x) for x in found)
    for x in found:
        for other in swaps(problem, x):
            # if it is not among them there are as many as wanted, and it is no better than the last
            assert other.tobytes() in known or (len(found) == wanted and problem.energy(other) >= energies[-1] - 1e-9)


def test_time_that_is_over_leaves_what_was_given(rng):
    problem = random_problem(rng, 9, 4)
    start = random_feasible(rng, problem)
    assert np.array_equal(nearby(problem, start[None], 5, Deadline(0.0)), start[None])
