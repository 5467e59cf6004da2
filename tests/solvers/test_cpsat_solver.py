from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
from qubo_prune_solvers.cpsat import CpSat
from reference import energy, minimum, random_feasible, random_problem

from qubo_prune import plugins, solve
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import SolveRequest, Status
from qubo_prune.solver.registry import make_solver
from qubo_prune.testing import SolverContract


def gram_block(rng: np.random.Generator, n: int, linear: float = 0.0) -> BlockQubo:
    """Weights on correlated inputs, half of them to prune, and the pull of the weights around them."""
    mixing, weights = rng.normal(size=(2 * n, n)), rng.normal(size=n)
    mixing += rng.normal(size=(2 * n, 1))
    q = weights[:, None] * (mixing.T @ mixing / n) * weights[None, :] / 2
    return BlockQubo(q + linear * np.diag(rng.normal(size=n)), n // 2)


@pytest.mark.parametrize(
    ("n", "counts", "labels"),
    [
        (0, 0, None),
        (0, (), None),
        (1, 0, None),
        (1, 1, None),
        (2, 1, None),
        (6, 0, None),
        (6, 6, None),
        (9, 1, None),
        (10, 5, None),
        (8, (2, 1), [0, 1, 0, 1, 0, 1, 0, 1]),
        (9, (1, 0, 2), [2, 0, 1, 2, 0, 1, 2, 0, 2]),
        (7, (1, 0, 1, 1), [0, 0, 2, 2, 3, 3, 3]),
        (12, (2, 2, 2), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
    ],
)
def test_the_optimum_is_that_of_enumeration(rng, n, counts, labels):
    for _ in range(3):
        problem = random_problem(rng, n, counts, labels)
        result = CpSat().solve(SolveRequest(problem))
        assert problem.is_feasible(result.assignment)
        assert result.status is Status.OPTIMAL
        assert result.energy == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)
        assert result.lower_bound <= result.energy
        assert result.lower_bound == pytest.approx(result.energy, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("linear", [0.0, 1.0])
def test_the_optimum_of_gram_blocks_is_that_of_enumeration(rng, linear):
    for n in (12, 16):
        problem = gram_block(rng, n, linear)
        assert CpSat().solve(SolveRequest(problem)).energy == pytest.approx(minimum(problem), rel=1e-9)


@pytest.mark.gate(1)
@pytest.mark.parametrize("n", [22, 28])
def test_it_agrees_with_exact(rng, n):
    problem = gram_block(rng, n, 0.3)
    start = solve(problem, "greedy").assignment
    result = solve(problem, "cpsat", warm_start=start)
    assert result.status is Status.OPTIMAL
    assert result.energy == pytest.approx(solve(problem, "exact").energy, rel=1e-9)


def test_groups_that_do_not_interact_are_solved_together(rng):
    q = np.zeros((8, 8))
    q[:4, :4], q[4:, 4:] = rng.normal(size=(4, 4)), np.diag(rng.normal(size=4))
    problem = BlockQubo(q, (2, 2), labels=[0] * 4 + [1] * 4)
    assert CpSat().solve(SolveRequest(problem)).energy == pytest.approx(minimum(problem), rel=1e-9)


def test_a_problem_without_counts_is_solved_as_it_is(rng):
    problem = BlockQubo(rng.normal(size=(6, 6)), None)
    best = min(energy(problem, np.array(x)) for x in product((0, 1), repeat=6))
    assert CpSat().solve(SolveRequest(problem)).energy == pytest.approx(best, rel=1e-9)


def test_the_bound_and_the_rounding_hold_for_every_assignment(rng, monkeypatch):
    # coarse coefficients, so that rounding decides
    monkeypatch.setattr("qubo_prune_solvers.cpsat._TOTAL", 60)
    for _ in range(10):
        problem = random_problem(rng, 8, (2, 2), [0, 1] * 4)
        result = CpSat().solve(SolveRequest(problem))
        best = minimum(problem)
        assert result.info["rounding"] > 0.01
        assert result.lower_bound <= best <= result.energy + 1e-9
        assert result.energy - best <= 2 * result.info["rounding"]


def test_the_rounding_is_next_to_nothing_by_default(rng):
    problem = random_problem(rng, 10, 5)
    result = CpSat().solve(SolveRequest(problem))
    assert 0 < result.info["rounding"] < 1e-8
    assert result.info["proof"] == "optimum of the rounded objective"


def test_factor_form_is_solved_alike(rng):
    problem = BlockQubo(FactorForm(rng.normal(size=8), rng.normal(size=(8, 2))), 3, 1.0)
    assert solve(problem, "cpsat").energy == pytest.approx(minimum(problem), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_energies_are_solved_alike(rng, scale):
    q = rng.normal(size=(8, 8))
    result = solve(BlockQubo(scale * q, 4), "cpsat")
    assert result.status is Status.OPTIMAL
    assert result.energy == pytest.approx(scale * minimum(BlockQubo(q, 4)), rel=1e-9)


def test_equal_energies_are_no_trouble():
    result = solve(BlockQubo(np.zeros((6, 6)), 3, 2.0), "cpsat")
    assert (result.status, result.energy) == (Status.OPTIMAL, 2.0)


def test_a_tiny_term_beside_huge_ones_is_reported_as_rounding():
    problem = BlockQubo(np.diag([1e12, 1e12, 2.0, 1e-6]), 1)
    result = CpSat().solve(SolveRequest(problem))
    assert result.lower_bound <= 1e-6 <= result.energy
    assert result.energy - 1e-6 <= 2 * result.info["rounding"]
    # dispatch takes the huge ones out before
    assert solve(problem, "cpsat", polish=False).energy == 1e-6


def test_a_warm_start_is_the_least_it_answers(rng):
    problem = gram_block(rng, 60)
    start = solve(problem, "greedy").assignment
    result = CpSat().solve(SolveRequest(problem, start, time_limit=0.5))
    assert result.energy <= problem.energy(start) + 1e-9
    assert result.status is Status.TIME_LIMIT
    if result.lower_bound is not None:
        assert result.lower_bound <= result.energy


def test_the_time_limit_is_kept(rng):
    problem = gram_block(rng, 60)
    began = time.perf_counter()
    result = solve(problem, "cpsat", time_limit=1.0, warm_start=random_feasible(rng, problem))
    assert time.perf_counter() - began < 10
    assert result.status is Status.TIME_LIMIT
    assert problem.is_feasible(result.assignment)


def test_without_time_and_without_a_start_there_is_no_answer(rng):
    problem = gram_block(rng, 60)
    with pytest.raises(SolverError, match="before CP-SAT found an assignment"):
        solve(problem, "cpsat", time_limit=1e-6)
    start = random_feasible(rng, problem)
    result = CpSat().solve(SolveRequest(problem, start, time_limit=1e-6))
    assert result.info["instead"] == "warm start"
    assert np.array_equal(result.assignment, start)


def test_a_seed_decides_the_answer(rng):
    problem = BlockQubo(np.ones((10, 10)), 5)
    one, same = (solve(problem, "cpsat", seed=2**62, polish=False) for _ in range(2))
    assert np.array_equal(one.assignment, same.assignment)


def test_several_workers_agree_and_are_declared(rng):
    problem = gram_block(rng, 14)
    assert solve(problem, "cpsat", workers=2).energy == pytest.approx(minimum(problem), rel=1e-9)
    assert CpSat(workers=2).capabilities.parallel
    assert not CpSat().capabilities.parallel
    assert CpSat.capabilities.exact


def test_large_blocks_are_refused_with_advice():
    problem = BlockQubo(np.eye(129), 60)
    for ask in (lambda: solve(problem, "cpsat"), lambda: CpSat().solve(SolveRequest(problem))):
        with pytest.raises(InputError, match=r"128 variables.*has 129.*'greedy'"):
            ask()


def test_the_package_to_install_is_named(monkeypatch):
    found = plugins._importable
    monkeypatch.setattr(plugins, "_importable", lambda module: module != "ortools" and found(module))
    with pytest.raises(SolverError, match="'cpsat' needs a package that is missing: pip install ortools"):
        make_solver("cpsat")


class TestContract(SolverContract):
    @pytest.fixture
    def solver(self):
        return CpSat()
