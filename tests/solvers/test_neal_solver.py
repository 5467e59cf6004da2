from __future__ import annotations

import time

import numpy as np
import pytest
from qubo_prune_solvers.neal import Neal
from reference import minimum, random_feasible, random_problem

from qubo_prune import plugins, solve
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import SolveRequest, Status
from qubo_prune.solver.registry import make_solver
from qubo_prune.testing import SolverContract


@pytest.mark.parametrize(
    ("n", "counts", "labels"),
    [(0, 0, None), (1, 0, None), (1, 1, None), (9, 0, None), (9, 9, None), (12, 6, None), (8, (2, 1), [0, 1] * 4)],
)
def test_small_problems_are_solved_to_the_optimum(rng, n, counts, labels):
    problem = random_problem(rng, n, counts, labels)
    result = solve(problem, "neal", polish=False, penalty=5.0)
    assert problem.is_feasible(result.assignment)
    assert result.energy == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)


def test_factor_form_is_solved_alike(rng):
    problem = BlockQubo(FactorForm(rng.normal(size=10), rng.normal(size=(10, 2))), 4)
    assert solve(problem, "neal").energy == pytest.approx(minimum(problem), rel=1e-9)


def test_a_problem_without_counts_is_solved_as_it_is(rng):
    q = rng.normal(size=(8, 8))
    best = min(BlockQubo(q, m).energy(solve(BlockQubo(q, m), "exact").assignment) for m in range(9))
    assert solve(BlockQubo(q, None), "neal").energy == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_energies_are_solved_alike(rng, scale):
    q = rng.normal(size=(10, 10))
    assert solve(BlockQubo(scale * q, 5), "neal").energy == pytest.approx(scale * minimum(BlockQubo(q, 5)), rel=1e-9)


def test_a_seed_decides_the_answers(rng):
    problem = random_problem(rng, 60, 30)
    request = SolveRequest(BlockQubo(problem.dense(), None), seed=5)
    first, again = Neal(num_sweeps=3).solve(request), Neal(num_sweeps=3).solve(request)
    other = Neal(num_sweeps=3).solve(SolveRequest(request.problem, seed=6))
    assert np.array_equal(first.assignments, again.assignments)
    assert not np.array_equal(first.assignments, other.assignments)


def test_a_frozen_annealing_stays_at_a_warm_start_that_no_flip_improves():
    problem = BlockQubo([[1.0, -3.0, 0.0], [-3.0, 1.0, 0.0], [0.0, 0.0, 1.0]], None)
    for warm in ([True, True, False], [False, False, False]):
        request = SolveRequest(problem, np.array(warm))
        assert Neal(num_sweeps=1, beta_range=(1e9, 1e9)).solve(request).assignments.tolist() == [warm]


def test_reads_begin_at_the_warm_start_unless_told_otherwise(rng):
    problem = BlockQubo(rng.normal(size=(40, 40)), None)
    request = SolveRequest(problem, rng.random(40) < 0.5)
    # one frozen sweep has no choice, so that only the starts can differ
    frozen = {
        start: Neal(num_reads=4, num_sweeps=1, start=start, beta_range=(1e9, 1e9)) for start in ("warm", "random")
    }
    assert len(frozen["warm"].solve(request).assignments) == 1
    assert len(frozen["random"].solve(request).assignments) == 4
    assert len(frozen["warm"].solve(SolveRequest(problem)).assignments) == 4


def test_temperatures_come_from_the_request_and_are_colder_from_the_warm_start(rng):
    problem = random_problem(rng, 6, 3)
    free, warm = BlockQubo(problem.dense(), None), random_feasible(rng, problem)
    request = SolveRequest(free, warm, temperatures=(2.0, 0.002))
    assert Neal(start="random").solve(request).info["beta_range"] == (0.5, 500.0)
    assert Neal().solve(request).info["beta_range"] == (5.0, 500.0)
    assert Neal(beta_range=(1.0, 2.0)).solve(request).info["beta_range"] == (1.0, 2.0)


def test_a_time_limit_cuts_reads_or_sweeps_and_says_so(rng):
    problem = random_problem(rng, 100, 50)
    began = time.perf_counter()
    result = solve(problem, Neal(num_reads=100, num_sweeps=10**6), time_limit=0.3)
    assert time.perf_counter() - began < 5
    assert result.status is Status.TIME_LIMIT
    assert 1 <= result.info["sweeps"] < 10**6
    assert problem.is_feasible(result.assignment)


def test_the_least_time_still_gives_an_answer(rng):
    problem = random_problem(rng, 30, 15)
    result = solve(problem, "neal", time_limit=1e-6)
    assert result.info["sweeps"] == 1
    assert result.status is Status.TIME_LIMIT


def test_counts_are_refused_without_dispatch(rng):
    with pytest.raises(InputError, match="counts"):
        Neal().solve(SolveRequest(random_problem(rng, 4, 2)))


def test_the_package_to_install_is_named(monkeypatch):
    found = plugins._importable
    monkeypatch.setattr(plugins, "_importable", lambda module: module != "dwave.samplers" and found(module))
    with pytest.raises(SolverError, match="'neal' needs a package that is missing: pip install dwave-samplers"):
        make_solver("neal")


class TestContract(SolverContract):
    @pytest.fixture
    def solver(self):
        return Neal()
