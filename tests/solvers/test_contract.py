"""Every solver of this package, as it is registered and with its default settings, meets the contract."""

from __future__ import annotations

import pytest

from qubo_prune.solver.registry import describe_solvers, make_solver
from qubo_prune.testing import check_names, run_check

OURS = [info for info in describe_solvers() if info.distribution == "qubo-prune"]


def test_every_solver_can_be_used_here():
    assert {info.name for info in OURS} >= {"exact", "greedy"}
    assert {info.name: info.error for info in OURS if info.error} == {}


@pytest.mark.parametrize("check", check_names())
@pytest.mark.parametrize("name", [info.name for info in OURS])
def test_the_contract_holds(name, check):
    # a check that does not apply passes: nothing is skipped, so that a missing package cannot hide
    outcome = run_check(check, make_solver(name))
    assert outcome.passed is not False, outcome.message
