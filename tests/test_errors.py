from __future__ import annotations

import pytest

from qubo_prune.errors import InputError, QuboPruneError, SolverError, did_you_mean


def test_near_names_are_offered_and_far_ones_are_not():
    assert did_you_mean("gredy", ["greedy", "exact"]) == " (did you mean 'greedy'?)"
    assert did_you_mean("seed", ["seeds", "zzz", "sed"]) == " (did you mean 'seeds' or 'sed'?)"
    assert did_you_mean("qqq", ["greedy", "exact"]) == ""
    assert did_you_mean("greedy", []) == ""


@pytest.mark.parametrize(("kind", "base"), [(InputError, ValueError), (SolverError, QuboPruneError)])
def test_every_error_can_be_caught_by_one_class(kind, base):
    assert issubclass(kind, QuboPruneError)
    assert issubclass(kind, base)
