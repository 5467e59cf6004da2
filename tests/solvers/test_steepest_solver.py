from __future__ import annotations

import time

import numpy as np
import pytest
from qubo_prune_solvers.steepest import Steepest
from reference import minimum, random_problem

from qubo_prune import plugins, solve
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import SolveRequest, Status
from qubo_prune.solver.registry import make_solver
from qubo_prune.testing import SolverContract


@pytest.mark.parametrize(
    ("n", "counts", "labels"),
    [(0, 0, None), (1, 0, None), (1, 1, None), (2, 1, None), (9, 9, None), (10, 5, None), (8, (2, 1), [0, 1] * 4)],
)
def test_small_problems_are_solved_to_the_optimum(rng, n, counts, labels):
    problem = random_problem(rng, n, counts, labels)
    result = solve(problem, "steepest")
    assert problem.is_feasible(result.assignment)
    assert result.energy == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)


def test_no_flip_improves_any_answer(rng):
    problem = BlockQubo(rng.normal(size=(30, 30)), None)
    for x in Steepest(num_reads=25).solve(SolveRequest(problem)).assignments:
        assert (np.where(x, -1, 1) * problem.flip_costs(x) >= -1e-9).all()


def test_factor_form_is_solved_alike(rng):
    problem = BlockQubo(FactorForm(rng.normal(size=10), rng.normal(size=(10, 2))), 4)
    assert solve(problem, "steepest").energy == pytest.approx(minimum(problem), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_energies_are_solved_alike(rng, scale):
    q = rng.normal(size=(20, 20))
    plain, scaled = (Steepest().solve(SolveRequest(BlockQubo(factor * q, None))) for factor in (1.0, scale))
    assert np.array_equal(plain.assignments[0], scaled.assignments[0])


def test_a_seed_decides_the_answers(rng):
    problem = BlockQubo(rng.normal(size=(50, 50)), None)
    first, again = (Steepest().solve(SolveRequest(problem, seed=2**62)) for _ in range(2))
    other = Steepest().solve(SolveRequest(problem, seed=1))
    assert np.array_equal(first.assignments, again.assignments)
    assert not np.array_equal(first.assignments, other.assignments)


def test_the_first_descent_begins_at_the_warm_start():
    problem = BlockQubo([[1.0, -3.0, 0.0], [-3.0, 1.0, 0.0], [0.0, 0.0, 1.0]], None)
    for warm in ([True, True, False], [False, False, False]):
        result = Steepest(num_reads=1).solve(SolveRequest(problem, np.array(warm)))
        assert result.assignments.tolist() == [warm]


def test_a_time_limit_ends_the_descents(rng):
    problem = random_problem(rng, 200, 100)
    began = time.perf_counter()
    result = solve(problem, Steepest(num_reads=10**5), time_limit=0.1)
    assert time.perf_counter() - began < 5
    assert result.status is Status.TIME_LIMIT
    assert 10 <= result.info["reads"] < 10**5


def test_counts_are_refused_without_dispatch(rng):
    with pytest.raises(InputError, match="counts"):
        Steepest().solve(SolveRequest(random_problem(rng, 4, 2)))


def test_the_package_to_install_is_named(monkeypatch):
    found = plugins._importable
    monkeypatch.setattr(plugins, "_importable", lambda module: module != "dwave.samplers" and found(module))
    with pytest.raises(SolverError, match="'steepest' needs a package that is missing: pip install dwave-samplers"):
        make_solver("steepest")


class TestContract(SolverContract):
    @pytest.fixture
    def solver(self):
        return Steepest()
