from __future__ import annotations

import sys
import types
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from qiskit_optimization.algorithms import (
    CobylaOptimizer,
    MinimumEigenOptimizer,
    OptimizationAlgorithm,
    OptimizationResult,
    OptimizationResultStatus,
    ScipyMilpOptimizer,
)
from qiskit_optimization.minimum_eigensolvers import NumPyMinimumEigensolver
from qiskit_optimization.utils import algorithm_globals
from qubo_prune_solvers.qiskit_optimizer import QiskitOptimizer
from reference import minimum, random_problem

from qubo_prune import solve
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver.registry import make_solver


class Trying(OptimizationAlgorithm):
    """Takes the best of some random points, and constraints if it is told to."""

    def __init__(self, constraints: bool = True, tries: int = 200) -> None:
        self.constraints, self.tries = constraints, tries
        self.seen = None

    def get_compatibility_msg(self, problem):
        return "no constraints, please" if problem.linear_constraints and not self.constraints else ""

    def solve(self, problem):
        self.seen = problem
        points = algorithm_globals.random.integers(0, 2, (self.tries, problem.get_num_vars()))
        values = [problem.objective.evaluate(x) if problem.is_feasible(x) else np.inf for x in points]
        best = int(np.argmin(values))
        # as of a solver with tolerances
        x = np.clip(points[best] + 1e-7, 0, 1 - 1e-7)
        return OptimizationResult(x, values[best], problem.variables, OptimizationResultStatus.SUCCESS)


def make_eigen_optimizer():
    return MinimumEigenOptimizer(NumPyMinimumEigensolver())


@pytest.mark.parametrize(
    ("n", "counts", "labels"), [(0, 0, None), (1, 1, None), (5, 2, None), (6, (2, 1), [0, 1] * 3), (5, 5, None)]
)
@pytest.mark.parametrize("constraints", [True, False])
def test_algorithms_with_and_without_constraints_plug_in(rng, n, counts, labels, constraints):
    problem = random_problem(rng, n, counts, labels)
    solver = QiskitOptimizer(Trying(constraints))
    assert solver.capabilities.cardinality == constraints
    result = solve(problem, solver)
    assert problem.is_feasible(result.assignment)
    assert result.energy == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("counts", ["auto", "constraint"])
def test_an_eigensolver_solves_the_block(rng, counts):
    problem = random_problem(rng, 6, (1, 2), [0, 1] * 3)
    result = solve(problem, QiskitOptimizer(make_eigen_optimizer(), counts))
    assert result.energy == pytest.approx(minimum(problem), rel=1e-9)


def test_algorithms_that_make_penalties_themselves_get_those_of_the_framework():
    assert not QiskitOptimizer(make_eigen_optimizer()).capabilities.cardinality
    assert QiskitOptimizer(make_eigen_optimizer(), "constraint").capabilities.cardinality
    assert not QiskitOptimizer(Trying(), "penalty").capabilities.cardinality


def test_factor_form_is_solved_alike(rng):
    problem = BlockQubo(FactorForm(rng.normal(size=6), rng.normal(size=(6, 2))), 3)
    assert solve(problem, QiskitOptimizer(Trying())).energy == pytest.approx(minimum(problem), rel=1e-9)


def test_the_counts_are_constraints_of_the_program(rng):
    algorithm = Trying()
    solve(random_problem(rng, 6, (2, 1), [0, 1] * 3), QiskitOptimizer(algorithm))
    constraints = algorithm.seen.linear_constraints
    assert [(c.linear.to_dict(), c.rhs) for c in constraints] == [({0: 1, 2: 1, 4: 1}, 2), ({1: 1, 3: 1, 5: 1}, 1)]


def test_an_algorithm_that_takes_no_such_problem_is_refused_with_its_reason():
    with pytest.raises(InputError, match=r"CobylaOptimizer takes no binary quadratic problems.*use another"):
        QiskitOptimizer(CobylaOptimizer())
    with pytest.raises(InputError, match=r"ScipyMilpOptimizer takes no .*only linear objective"):
        QiskitOptimizer(ScipyMilpOptimizer())
    with pytest.raises(InputError, match=r"Trying takes no .* with counts \(no constraints, please\)"):
        QiskitOptimizer(Trying(constraints=False), "constraint")
    with pytest.raises(InputError, match="3 is no OptimizationAlgorithm"):
        QiskitOptimizer(3)


def test_the_seed_decides_and_the_library_keeps_its_own(rng):
    problem = random_problem(rng, 12, 6)
    algorithm_globals.random_seed = 77
    solver = QiskitOptimizer(Trying(tries=30))
    one, same, other = (solve(problem, solver, seed=seed, polish=False) for seed in (2**62, 2**62, 1))
    assert np.array_equal(one.assignment, same.assignment)
    assert not np.array_equal(one.assignment, other.assignment)
    assert algorithm_globals.random_seed == 77


def test_a_path_names_a_class_a_function_or_an_algorithm(monkeypatch):
    stranger = types.ModuleType("stranger")
    stranger.Trying, stranger.make, stranger.made = Trying, make_eigen_optimizer, Trying()
    monkeypatch.setitem(sys.modules, "stranger", stranger)
    assert make_solver("qiskit:stranger:Trying", tries=3, counts="penalty").algorithm.tries == 3
    assert isinstance(make_solver("qiskit:stranger:make").algorithm, MinimumEigenOptimizer)
    assert make_solver("qiskit:stranger:made").algorithm is stranger.made
    with pytest.raises(TypeError, match=r"'qiskit:stranger:Trying' has no setting 'trys' \(did you mean 'tries'\?\)"):
        make_solver("qiskit:stranger:Trying", trys=3)
    with pytest.raises(InputError, match=r"cannot be made.*min_eigen_solver.*Name a function"):
        make_solver("qiskit:qiskit_optimization.algorithms:MinimumEigenOptimizer")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qiskit_optimization.algorithms", None)
    with pytest.raises(SolverError, match="cannot be loaded: ModuleNotFoundError"):
        make_solver("qiskit:qiskit_optimization.algorithms:CplexOptimizer")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([0.5, 0, 1, 0], r"Fixed answered with \[0\.0, 0\.5, 1\.0\]; only 0 and 1"),
        ([-1, 1, 1, -1], "Fixed answered with .* only 0 and 1"),
        (None, "Fixed answered with no assignment"),
    ],
)
def test_answers_that_are_not_binary_are_named(rng, x, message):
    class Fixed(Trying):
        def solve(self, program):
            return SimpleNamespace(x=x, samples=(), status=SimpleNamespace(name="SUCCESS"))

    with pytest.raises(SolverError, match=message):
        solve(random_problem(rng, 4, 2), QiskitOptimizer(Fixed()))


def test_answers_within_rounding_of_binary_ones_pass(rng):
    class Nearly(Trying):
        def solve(self, program):
            x = np.array([1 - 1e-9, 1e-9, 1.0, 0.0])
            return SimpleNamespace(x=x, samples=(), status=SimpleNamespace(name="SUCCESS"))

    assert solve(random_problem(rng, 4, 2), QiskitOptimizer(Nearly()), polish=False).assignment.tolist() == [1, 0, 1, 0]


# --- qiskit-addon-opt-mapper ----------------------------------------------------------------------------


def trying_of_the_addon(constraints: bool = True):
    """A solver of the addon that takes the best of all points, and constraints if it is told to."""
    solvers = pytest.importorskip("qiskit_addon_opt_mapper.solvers", reason="qiskit-addon-opt-mapper is not installed")

    class Enumerating(solvers.OptimizationSolver):
        def get_compatibility_msg(self, problem):
            return "no constraints, please" if problem.linear_constraints and not constraints else ""

        def solve(self, problem):
            points = np.array(list(product((0, 1), repeat=problem.get_num_vars())))
            values = [problem.objective.evaluate(x) if problem.is_feasible(x) else np.inf for x in points]
            best = int(np.argmin(values))
            status = solvers.SolverResultStatus.SUCCESS
            return solvers.SolverResult(points[best], values[best], problem.variables, status)

    return Enumerating()


@pytest.mark.parametrize("constraints", [True, False])
@pytest.mark.parametrize(("n", "counts", "labels"), [(5, 2, None), (6, (2, 1), [0, 1] * 3), (4, 4, None)])
def test_solvers_of_the_addon_plug_in_alike(rng, n, counts, labels, constraints):
    problem = random_problem(rng, n, counts, labels)
    solver = QiskitOptimizer(trying_of_the_addon(constraints))
    assert solver.capabilities.cardinality == constraints
    assert solver.capabilities.requires == (("qiskit_addon_opt_mapper", "qiskit-addon-opt-mapper"),)
    result = solve(problem, solver)
    assert result.energy == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)
    assert result.info["algorithm"] == "Enumerating"


def test_a_linear_solver_of_the_addon_is_refused_with_its_own_reason():
    solvers = pytest.importorskip("qiskit_addon_opt_mapper.solvers", reason="qiskit-addon-opt-mapper is not installed")
    with pytest.raises(InputError, match="only linear objective"):
        QiskitOptimizer(solvers.ScipyMilpSolver())
