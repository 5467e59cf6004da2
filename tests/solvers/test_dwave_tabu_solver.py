from __future__ import annotations

import time

import numpy as np
import pytest
from qubo_prune_solvers.dwave_tabu import DwaveTabu
from reference import minimum, random_feasible, random_problem

from qubo_prune import plugins, solve
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import SolveRequest, Status
from qubo_prune.solver.registry import make_solver
from qubo_prune.testing import SolverContract


@pytest.mark.parametrize(
    ("n", "counts", "labels"),
    [(0, 0, None), (1, 0, None), (1, 1, None), (2, 1, None), (9, 9, None), (12, 6, None), (8, (2, 1), [0, 1] * 4)],
)
def test_small_problems_are_solved_to_the_optimum(rng, n, counts, labels):
    problem = random_problem(rng, n, counts, labels)
    result = solve(problem, "dwave-tabu", polish=False, penalty=5.0, num_reads=10)
    assert problem.is_feasible(result.assignment)
    assert result.energy == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)


def test_factor_form_is_solved_alike(rng):
    problem = BlockQubo(FactorForm(rng.normal(size=10), rng.normal(size=(10, 2))), 4)
    assert solve(problem, "dwave-tabu").energy == pytest.approx(minimum(problem), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_energies_are_solved_alike(rng, scale):
    q = rng.normal(size=(10, 10))
    best = scale * minimum(BlockQubo(q, 5))
    assert solve(BlockQubo(scale * q, 5), "dwave-tabu").energy == pytest.approx(best, rel=1e-9)


def test_a_seed_decides_the_answers():
    # nothing improves on anything here, so that searches end where they begin
    problem, tabu = BlockQubo(np.zeros((30, 30)), None), DwaveTabu(num_restarts=1)
    first, again = (tabu.solve(SolveRequest(problem, seed=2**62)) for _ in range(2))
    other = tabu.solve(SolveRequest(problem, seed=1))
    assert np.array_equal(first.assignments, again.assignments)
    assert not np.array_equal(first.assignments, other.assignments)


def test_without_a_limit_a_seed_decides_searches_too(rng):
    problem = random_problem(rng, 150, 75)
    first, again = (solve(problem, "dwave-tabu", seed=4, num_restarts=1) for _ in range(2))
    assert np.array_equal(first.assignments, again.assignments)


def test_the_first_read_begins_at_the_warm_start(rng):
    problem = BlockQubo(np.zeros((30, 30)), None)
    warm = random_feasible(rng, BlockQubo(np.zeros((30, 30)), 15))
    result = DwaveTabu(num_reads=1, num_restarts=0).solve(SolveRequest(problem, warm))
    assert result.assignments.tolist() == [warm.tolist()]


@pytest.mark.parametrize("tenure", [0, 3, 50])
def test_a_tenure_longer_than_the_problem_is_cut(rng, tenure):
    problem = random_problem(rng, 8, 4)
    assert solve(problem, "dwave-tabu", tenure=tenure).energy >= minimum(problem) - 1e-9


def test_the_time_limit_is_split_over_the_reads(rng):
    problem = random_problem(rng, 60, 30)
    began = time.perf_counter()
    result = solve(problem, DwaveTabu(num_reads=4, num_restarts=10**6), time_limit=0.4)
    assert 0.3 < time.perf_counter() - began < 4
    assert result.status is Status.TIME_LIMIT
    assert result.info["reads"] == 4


def test_a_timeout_of_its_own_ends_reads_too(rng):
    problem = random_problem(rng, 20, 10)
    result = solve(problem, DwaveTabu(num_reads=2, num_restarts=10**6, timeout=0.02))
    assert result.status is Status.TIME_LIMIT
    assert result.seconds < 4
    assert solve(problem, DwaveTabu(num_reads=1, num_restarts=1, timeout=60)).status is Status.FEASIBLE


def test_counts_are_refused_without_dispatch(rng):
    with pytest.raises(InputError, match="counts"):
        DwaveTabu().solve(SolveRequest(random_problem(rng, 4, 2)))


def test_the_package_to_install_is_named(monkeypatch):
    found = plugins._importable
    monkeypatch.setattr(plugins, "_importable", lambda module: module != "dwave.samplers" and found(module))
    with pytest.raises(SolverError, match="'dwave-tabu' needs a package that is missing: pip install dwave-samplers"):
        make_solver("dwave-tabu")


class TestContract(SolverContract):
    @pytest.fixture
    def solver(self):
        return DwaveTabu()
