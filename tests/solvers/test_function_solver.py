from __future__ import annotations

import doctest
import sys
import time
import types

import numpy as np
import pytest
import torch
from qubo_prune_solvers import function
from qubo_prune_solvers.function import CallableSolver
from reference import minimum, random_feasible, random_problem

from qubo_prune import solve
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo
from qubo_prune.solver import SolveRequest, Status, ranked_answers
from qubo_prune.solver.registry import make_solver
from qubo_prune.testing import SolverContract


@pytest.fixture
def module(monkeypatch):
    """A module of a stranger's, importable as ``stranger``."""
    stranger = types.ModuleType("stranger")
    monkeypatch.setitem(sys.modules, "stranger", stranger)
    return stranger


def cheapest(q, num_pruned):
    return np.diag(q).argsort().argsort() < num_pruned


def cheapest_of_each(problem):
    costs, x = problem.diagonal, np.zeros(problem.num_variables, dtype=bool)
    for group, count in enumerate(problem.num_pruned):
        members = np.flatnonzero(problem.labels == group)
        x[members[costs[members].argsort(kind="stable")[:count]]] = True
    return x


def first_ones(problem):
    return np.arange(problem.num_variables) < problem.num_pruned[0]


def test_a_function_is_passed_what_it_names(rng):
    problem = random_problem(rng, 6, (1, 2), [0, 0, 0, 1, 1, 1])
    warm, seen = random_feasible(rng, problem), {}

    def note(q, num_pruned, labels, seed, warm_start, time_limit, num_answers, temperatures):
        seen.update(locals())
        return warm_start

    request = SolveRequest(problem, warm, seed=9, time_limit=3.0, num_answers=2, temperatures=(1.0, 0.5))
    assert np.array_equal(CallableSolver(note).solve(request).assignment, warm)
    assert np.array_equal(seen.pop("q"), problem.dense())
    assert np.array_equal(seen.pop("labels"), problem.labels)
    assert np.array_equal(seen.pop("warm_start"), warm)
    del seen["seen"]
    assert seen == {"num_pruned": (1, 2), "seed": 9, "time_limit": 3.0, "num_answers": 2, "temperatures": (1.0, 0.5)}


@pytest.mark.parametrize(
    "call",
    [
        lambda block: first_ones(block),
        lambda p, seed: first_ones(p),
        lambda seed, problem: first_ones(problem),
        lambda *everything: first_ones(everything[0]),
        lambda problem, **rest: first_ones(problem),
        lambda block, /: first_ones(block),
        lambda num_pruned, q: np.arange(len(q)) < num_pruned,
    ],
)
def test_a_first_argument_of_another_name_is_the_problem(rng, call):
    result = solve(random_problem(rng, 5, 2), CallableSolver(call), polish=False)
    assert result.assignment.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    "answer",
    [
        [1, 0, 1, 0],
        (True, False, True, False),
        np.array([1.0, 0.0, 1.0, 0.0]),
        torch.tensor([True, False, True, False]),
        [[1, 0, 1, 0], [1, 1, 0, 0]],
    ],
)
def test_answers_may_be_anything_like_an_array(answer):
    problem = BlockQubo(np.diag([1.0, 2.0, 1.0, 2.0]), 2)
    assert solve(problem, CallableSolver(lambda problem: answer)).assignment.tolist() == [True, False, True, False]


def test_an_answer_may_be_a_whole_result(rng):
    problem = random_problem(rng, 4, 2)
    solver = CallableSolver(lambda p: ranked_answers(p, first_ones(p), Status.LOCAL_OPTIMUM, info={"rounds": 3}))
    assert solve(problem, solver).info["rounds"] == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1, 0], r"shape \(1, 2\)"),
        ([0.5, 0.5, 1, 0], r"\[0\.0, 0\.5, 1\.0\]; only 0 and 1"),
        ([-1, 1, -1, 1], r"\[-1, 1\]; only 0 and 1"),
        (None, r"shape \(1, 1\)"),
    ],
)
def test_other_answers_say_what_is_wrong_and_keep_the_warm_start(rng, answer, message):
    problem = random_problem(rng, 4, 2)
    solver = CallableSolver(lambda problem: answer)
    with pytest.raises(SolverError, match=message):
        solve(problem, solver)
    assert solve(problem, solver, warm_start=[1, 1, 0, 0]).status is Status.FAILED


def test_a_function_that_meets_no_counts_gets_penalties_and_is_repaired(rng):
    problem = random_problem(rng, 8, 4)

    def descend(problem):
        assert problem.free
        return np.zeros(8)

    result = solve(problem, CallableSolver(descend, counts=False), polish=False)
    assert problem.is_feasible(result.assignment)
    assert result.ledger.raw is None


def test_no_variables_need_no_answer():
    assert solve(BlockQubo(np.zeros((0, 0)), 0, 1.5), CallableSolver(lambda problem: [])).energy == 1.5


def test_inputs_cannot_be_written_to(rng):
    problem = random_problem(rng, 6, 3)
    before, warm = problem.dense().copy(), random_feasible(rng, problem)
    kept = warm.copy()

    def scribble(q, num_pruned, labels, warm_start):
        answer = warm_start.copy()
        q[:], labels[:], warm_start[:] = 0, 0, False
        return answer

    solve(problem, CallableSolver(scribble), warm_start=warm)
    assert np.array_equal(problem.dense(), before)
    assert np.array_equal(warm, kept)


def test_a_time_limit_is_left_to_those_who_name_it():
    def waits(problem, time_limit):
        time.sleep(time_limit)
        return first_ones(problem)

    def sleeps(problem):
        time.sleep(60)

    problem = BlockQubo(np.eye(4), 2)
    assert CallableSolver(waits).capabilities.anytime
    assert solve(problem, CallableSolver(waits), time_limit=0.1).status is Status.TIME_LIMIT
    result = solve(problem, CallableSolver(sleeps), time_limit=0.5, warm_start=[0, 0, 1, 1])
    assert result.status is Status.OVERRAN
    assert result.seconds < 30


def test_who_names_a_seed_is_stochastic():
    assert CallableSolver(lambda problem, seed: None).capabilities.stochastic
    assert not CallableSolver(cheapest).capabilities.stochastic
    assert CallableSolver(cheapest).capabilities.cardinality
    assert not CallableSolver(cheapest, counts=False).capabilities.cardinality


def test_settings_reach_the_function(module, rng):
    module.pick = lambda problem, at=0: np.roll(first_ones(problem), at)
    problem = random_problem(rng, 4, 1)
    solver = make_solver("callable:stranger:pick", at=2)
    assert solve(problem, solver, polish=False).assignment.tolist() == [False, False, True, False]
    with pytest.raises(TypeError, match=r"no setting 'art' \(did you mean 'at'\?\)"):
        make_solver("callable:stranger:pick", art=2)
    assert make_solver("callable:stranger:pick", counts=False).counts is False


def test_a_class_is_made_with_its_settings_and_called(module, rng):
    class Shifted:
        def __init__(self, by):
            self.by = by

        def __call__(self, problem, twice=False):
            return np.roll(first_ones(problem), self.by * (1 + twice))

    module.Shifted = Shifted
    problem = random_problem(rng, 4, 1)
    solver = make_solver("callable:stranger:Shifted", by=1, twice=True)
    assert solve(problem, solver, polish=False).assignment.tolist() == [False, False, True, False]
    with pytest.raises(InputError, match=r"cannot be made with no settings \(TypeError.*it takes by"):
        make_solver("callable:stranger:Shifted")


def test_what_is_not_callable_is_refused(module):
    module.thing = 3
    with pytest.raises(InputError, match="3 is not callable"):
        make_solver("callable:stranger:thing")
    with pytest.raises(SolverError, match="AttributeError"):
        make_solver("callable:stranger:other")


def test_a_good_function_finds_the_optimum(rng):
    problem = BlockQubo(np.diag(rng.normal(size=9)), 4)
    assert solve(problem, CallableSolver(cheapest)).energy == pytest.approx(minimum(problem))


def test_the_example_of_the_documentation_runs():
    assert doctest.testmod(function).failed == 0


class TestContract(SolverContract):
    @pytest.fixture
    def solver(self):
        return CallableSolver(cheapest_of_each)
