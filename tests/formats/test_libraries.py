from __future__ import annotations

import doctest
from itertools import product

import dimod
import numpy as np
import pytest
from reference import BUDGETS, budgeted_problem, feasible_points, random_problem
from unchecked import without_type_checks

import qubo_prune.formats.libraries
from qubo_prune.errors import InputError, SolverError
from qubo_prune.formats.libraries import (
    assignment_from_spins,
    assignments_from_dwave_optimization,
    assignments_from_sampleset,
    from_cqm,
    suggested_penalty,
    to_bqm,
    to_cqm,
    to_dwave_optimization,
    to_ising,
    to_optimization_problem,
    to_quadratic_program,
)
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.problem import penalty as penalties
from qubo_prune.solver.dispatch import solve

LABELS = [0, 1, 0, 1, 1, 0]


@pytest.fixture(params=["one group", "two groups", "sparse", "factor form", "one variable", "empty"])
def problem(request, rng) -> BlockQubo:
    if request.param == "one group":
        return random_problem(rng, 6, 2)
    if request.param == "two groups":
        return random_problem(rng, 6, (1, 2), LABELS)
    if request.param == "sparse":
        return BlockQubo(np.diag([1.0, -2.0, 0.0, 0.0, 3.0, 0.0]), (0, 3), 0.25, LABELS)
    if request.param == "factor form":
        return BlockQubo(FactorForm(rng.normal(size=6), rng.normal(size=(6, 2))), 3, -1.0)
    if request.param == "one variable":
        return BlockQubo([[2.0]], 1, 0.5)
    return BlockQubo(np.zeros((0, 0)), 0, 1.5)


def all_points(n: int) -> np.ndarray:
    return np.array(list(product((0, 1), repeat=n))).reshape(2**n, n)


def penalised(problem: BlockQubo, x: np.ndarray, penalty: float) -> float:
    missed = problem.counts(x) - np.array(problem.num_pruned)
    return problem.energy(x) + penalty * float(missed @ missed)


def close(value: float) -> object:
    return pytest.approx(value, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("penalty", [None, 0.0, 7.5])
def test_bqm_energy_is_the_energy_and_the_penalty_everywhere(problem, penalty):
    bqm = to_bqm(problem, penalty)
    strength = suggested_penalty(problem) if penalty is None else penalty
    assert sorted(bqm.variables) == list(range(problem.num_variables))
    assert bqm.vartype is dimod.BINARY
    for x in all_points(problem.num_variables):
        assert bqm.energy(dict(enumerate(x))) == close(penalised(problem, x, strength))


def test_bqm_holds_only_pairs_that_interact():
    problem = BlockQubo(np.diag([1.0, 2.0, 3.0, 4.0]), (1, 1), labels=[0, 0, 1, 1])
    assert to_bqm(problem, 0.0).num_interactions == 0
    assert {tuple(sorted(pair)) for pair in to_bqm(problem, 1.0).quadratic} == {(0, 1), (2, 3)}


@pytest.mark.parametrize("penalty", [-1.0, np.inf, np.nan])
def test_a_penalty_must_be_finite_and_not_negative(penalty):
    with pytest.raises(InputError, match="penalty"):
        to_bqm(BlockQubo(np.eye(2), 1), penalty)


def test_cqm_holds_the_energy_and_the_counts(problem):
    cqm = to_cqm(problem)
    feasible = {tuple(x) for x in feasible_points(problem).astype(int).tolist()}
    assert len(cqm.constraints) == problem.num_groups
    for x in all_points(problem.num_variables):
        sample = dict(enumerate(x))
        # dimod gives the energy 0 to the empty sample of an empty objective
        objective = cqm.objective.energy(sample) if sample else cqm.objective.offset
        assert objective == close(problem.energy(x))
        assert cqm.check_feasible(sample) == (tuple(x.tolist()) in feasible)


def test_cqm_there_and_back_is_the_same_problem(problem):
    back = from_cqm(to_cqm(problem))
    np.testing.assert_allclose(back.dense(), problem.dense(), rtol=1e-15)
    assert back.num_pruned == problem.num_pruned
    assert back.offset == problem.offset
    assert back.labels.tolist() == problem.labels.tolist()


@pytest.mark.parametrize("kind", BUDGETS)
def test_cqm_and_quadratic_program_hold_the_budgets(rng, kind):
    problem = budgeted_problem(rng, 6, kind)
    cqm, program = to_cqm(problem), to_quadratic_program(problem)
    back = from_cqm(cqm)
    assert np.array_equal(back.costs, problem.costs)
    assert np.array_equal(back.budget, problem.budget)
    assert back.num_pruned == problem.num_pruned
    for x in all_points(6):
        assert cqm.check_feasible(dict(enumerate(x)), atol=1e-9) == problem.is_feasible(x)
        rows = [c for c in program.linear_constraints if c.name.startswith("budget")]
        met = (problem.counts(x) == problem.num_pruned).all() and all(c.evaluate(x) >= c.rhs - 1e-9 for c in rows)
        assert met == problem.is_feasible(x)


def test_at_most_becomes_the_negative_of_at_least():
    cqm = dimod.ConstrainedQuadraticModel()
    x, y = dimod.Binaries([0, 1])
    cqm.set_objective(-x - 2 * y)
    cqm.add_constraint(3 * x + 5 * y + 1 <= 7)
    problem = from_cqm(cqm)
    assert (problem.num_groups, problem.costs.tolist(), problem.budget.tolist()) == (0, [[-3.0, -5.0]], [-6.0])


@pytest.mark.parametrize("kind", BUDGETS)
def test_budgets_become_penalties_with_slack_variables_behind_the_others(rng, kind):
    problem = budgeted_problem(rng, 6, kind)
    bqm, free = to_bqm(problem, 2.5), penalties.penalised(problem, 2.5)
    assert list(bqm.variables) == list(range(free.num_variables))
    for z in rng.random((20, free.num_variables)) < 0.5:
        assert bqm.energy(dict(enumerate(z.astype(int)))) == close(free.energy(z))
    fields, couplings, offset = to_ising(problem, 2.5)
    spins = 2 * z.astype(int) - 1
    energy = offset + sum(h * spins[i] for i, h in fields.items())
    energy += sum(value * spins[i] * spins[j] for (i, j), value in couplings.items())
    assert energy == close(free.energy(z))


def test_from_cqm_reads_a_model_in_any_order_of_variables():
    cqm = dimod.ConstrainedQuadraticModel()
    x = {i: dimod.Binary(i) for i in (2, 0, 1)}
    cqm.set_objective(3 * x[2] - 4 * x[0] * x[1] + 5)
    cqm.add_constraint(x[2] + x[0] + x[1] - 1 == 1, label="count")
    problem = from_cqm(cqm)
    assert problem.num_pruned == (2,)
    assert problem.energy([1, 1, 0]) == 1
    assert problem.energy([0, 1, 1]) == 8


def _cqm(change: str) -> dimod.ConstrainedQuadraticModel:
    cqm = dimod.ConstrainedQuadraticModel()
    x, y = dimod.Binaries([0, 1])
    cqm.set_objective(x + 2 * y)
    if change == "names":
        cqm.add_constraint(x + y + dimod.Binary("z") == 1)
    elif change == "integer":
        cqm.add_constraint(x + y + dimod.Integer(2) == 1)
    elif change == "spin":
        cqm.add_constraint(x + y + dimod.Spin(2) == 1)
    elif change == "inequality":
        cqm.add_constraint(x + y <= 1, weight=2.0)
    elif change == "weights":
        cqm.add_constraint(x + 2 * y == 1)
    elif change == "quadratic":
        cqm.add_constraint(x + y + x * y == 1)
    elif change == "fraction":
        cqm.add_constraint(x + y == 0.5)
    elif change == "soft":
        cqm.add_constraint(x + y == 1, weight=2.0)
    elif change == "uncovered":
        cqm.add_constraint(x == 1)
    elif change == "overlap":
        cqm.add_constraint(x + y == 1)
        cqm.add_constraint(y == 1)
    elif change == "impossible":
        cqm.add_constraint(x + y == 3)
    return cqm


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("names", "name them 0 to 2"),
        ("integer", "Variable 2 of the model is INTEGER"),
        ("spin", "Variable 2 of the model is SPIN"),
        ("inequality", "of inequalities only hard linear ones"),
        ("weights", "whole number"),
        ("quadratic", "whole number"),
        ("fraction", "0.5"),
        ("soft", "hard constraints"),
        ("uncovered", "Variable 1 is in no constraint"),
        ("overlap", "disjoint"),
        ("impossible", "num_pruned is 3"),
    ],
)
def test_from_cqm_refuses_every_other_model(change, message):
    with pytest.raises(InputError, match=message):
        from_cqm(_cqm(change))


@pytest.mark.parametrize("penalty", [None, 3.0])
def test_ising_energy_is_that_of_the_bqm_and_spin_up_prunes(problem, penalty):
    fields, couplings, offset = to_ising(problem, penalty)
    strength = suggested_penalty(problem) if penalty is None else penalty
    assert sorted(fields) == list(range(problem.num_variables))
    assert all(i < j for i, j in couplings)
    for x in all_points(problem.num_variables):
        s = 2 * x - 1
        energy = sum(h * s[i] for i, h in fields.items())
        energy += sum(j * s[a] * s[b] for (a, b), j in couplings.items()) + offset
        assert energy == close(penalised(problem, x, strength))
        assert np.array_equal(assignment_from_spins(s), x == 1)


def test_spins_become_assignments_in_every_shape():
    assert assignment_from_spins([[1, -1], [-1, -1]]).tolist() == [[True, False], [False, False]]
    assert assignment_from_spins({1: 1, 0: -1}).tolist() == [False, True]
    for wrong in ([0, 1], [1, np.nan], [2, 1]):
        with pytest.raises(InputError, match="only -1 and \\+1"):
            assignment_from_spins(wrong)
    with pytest.raises(InputError, match="name them 0 to 1"):
        assignment_from_spins({0: 1, 2: -1})


def test_quadratic_program_holds_the_energy_and_the_counts(problem):
    program = to_quadratic_program(problem)
    feasible = {tuple(x) for x in feasible_points(problem).astype(int).tolist()}
    assert [v.name for v in program.variables] == [f"x{i}" for i in range(problem.num_variables)]
    assert all(v.vartype.name == "BINARY" for v in program.variables)
    assert program.objective.sense.name == "MINIMIZE"
    for x in all_points(problem.num_variables):
        assert program.objective.evaluate(x) == close(problem.energy(x))
        met = all(c.sense.name == "EQ" and c.evaluate(x) == c.rhs for c in program.linear_constraints)
        assert met == (tuple(x.tolist()) in feasible)


def test_suggested_penalty_is_twice_the_multiplier_of_the_count():
    costs = [1.0, 2.0, 5.0, 9.0]
    assert suggested_penalty(BlockQubo(np.diag(costs), 2)) == pytest.approx(7.0)
    # group 0 lies between 1 and 2, group 1 between 5 and 9
    assert suggested_penalty(BlockQubo(np.diag(costs), (1, 1), labels=[0, 0, 1, 1])) == pytest.approx(14.0)


@pytest.mark.parametrize("count", [0, 3])
def test_a_group_with_one_kind_only_has_the_multiplier_of_that_side(count):
    problem = BlockQubo(np.diag([2.0, 3.0, 5.0]), count)
    assert suggested_penalty(problem) == pytest.approx(2 * (2.0 if count == 0 else 5.0))


@pytest.mark.parametrize(
    "problem",
    [BlockQubo(np.zeros((4, 4)), 2), BlockQubo(np.zeros((0, 0)), 0), BlockQubo(np.diag([-1, 1.0]), 1)],
)
def test_suggested_penalty_is_always_positive(problem):
    assert 0 < suggested_penalty(problem) < np.inf


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_suggested_penalty_follows_the_scale_of_the_energies(rng, scale):
    q = rng.normal(size=(8, 20))
    q = q @ q.T
    small, scaled = suggested_penalty(BlockQubo(q, 3)), suggested_penalty(BlockQubo(scale * q, 3))
    assert scaled == pytest.approx(scale * small, rel=1e-6)


def test_suggested_penalty_leads_near_the_counts_and_stays_far_below_the_safe_rule(rng):
    for _ in range(10):
        factor = rng.normal(size=(10, 30))
        problem = BlockQubo(factor @ factor.T, 5)
        best = dimod.ExactSolver().sample(to_bqm(problem)).first.sample
        assert abs(sum(best.values()) - 5) <= 1
        assert suggested_penalty(problem) < np.abs(problem.dense()).sum()


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(qubo_prune.formats.libraries).failed == 0


# --- sample sets --------------------------------------------------------------------------------------


def samples(values: object, names: list, vartype: str = "BINARY") -> dimod.SampleSet:
    return dimod.SampleSet.from_samples((np.array(values), names), vartype, energy=np.zeros(len(values)))


def test_a_sample_set_is_read_by_name_and_in_its_order():
    binary = samples([[1, 0, 0], [0, 0, 1]], ["c", "a", "b"])
    expected = [[False, False, True], [False, True, False]]
    assert assignments_from_sampleset(binary, ["a", "b", "c"]).tolist() == expected
    spins = binary.change_vartype("SPIN", inplace=False)
    assert assignments_from_sampleset(spins, ["a", "b", "c"]).tolist() == expected
    problem = BlockQubo(np.eye(3), 1, names=["b", "c", "a"])
    assert assignments_from_sampleset(spins, problem).tolist() == [[False, True, False], [True, False, False]]
    numbers = samples([[1, 0]], [1, 0])
    assert assignments_from_sampleset(numbers, 2).tolist() == [[False, True]]
    assert assignments_from_sampleset(numbers, BlockQubo(np.eye(2), 1)).tolist() == [[False, True]]


def test_a_sample_set_has_the_variables_of_the_problem_and_no_others():
    with pytest.raises(InputError, match=r"^The sample set lacks 'c'; give a value for each of 'a', 'b', 'c'"):
        assignments_from_sampleset(samples([[0, 1]], ["a", "b"]), ["a", "b", "c"])
    with pytest.raises(InputError, match=r"^The sample set names 'slack'; give"):
        assignments_from_sampleset(samples([[0, 1]], ["a", "slack"]), ["a"])
    with pytest.raises(InputError, match=r"hold \[0, 2\]; only 0 and 1"):
        assignments_from_sampleset(samples([[0, 2]], ["a", "b"]), ["a", "b"])
    with pytest.raises(InputError, match="spins hold"):
        assignments_from_sampleset(samples([[0, 1]], ["a", "b"], "SPIN"), ["a", "b"])
    with without_type_checks(), pytest.raises(InputError, match=r"of type list; give a dimod\.SampleSet"):
        assignments_from_sampleset([[0, 1]], 2)


def test_results_go_to_a_sample_set_and_back(rng):
    qubo = {(i, j): float(rng.normal()) for i in "dacb" for j in "dacb"}
    result = solve(qubo, "neal", num_pruned=2, num_answers=3, polish=False, num_reads=20)
    found = result.to_sampleset()
    assert list(found.variables) == list(result.names) == list("dacb")
    assert found.vartype is dimod.BINARY
    assert found.record.num_occurrences.tolist() == [1] * len(result.energies)
    assert np.array_equal(found.record.energy, result.energies)
    assert found.info["status"] == result.status.name
    assert found.first.sample == result.sample
    for sample, energy in found.data(["sample", "energy"]):
        assert sum(v * sample[i] * sample[j] for (i, j), v in qubo.items()) == pytest.approx(energy)
        assert sum(sample.values()) == 2
    for there in (found, found.change_vartype("SPIN", inplace=False)):
        assert np.array_equal(assignments_from_sampleset(there, result.names), result.assignments)


def test_a_result_without_names_has_numbers():
    result = solve(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], 1))
    assert result.names is None
    assert result.sample == {0: 1, 1: 0}
    assert list(result.to_sampleset().variables) == [0, 1]


# --- optimization models -------------------------------------------------------------------------------


def test_the_addon_of_qiskit_gets_the_same_program(problem):
    pytest.importorskip("qiskit_addon_opt_mapper", reason="qiskit-addon-opt-mapper is not installed")
    program, before = to_optimization_problem(problem), to_quadratic_program(problem)
    assert [v.name for v in program.variables] == [v.name for v in before.variables]
    for x in all_points(problem.num_variables):
        assert program.objective.evaluate(x) == close(problem.energy(x))
        assert program.is_feasible(x) == problem.is_feasible(x)
    told = [(c.name, c.linear.to_dict(), c.sense.name, c.rhs) for c in program.linear_constraints]
    assert told == [(c.name, c.linear.to_dict(), c.sense.name, c.rhs) for c in before.linear_constraints]


def test_a_model_of_dwave_optimization_has_the_energies_and_the_counts(problem):
    pytest.importorskip("dwave.optimization", reason="dwave-optimization is not installed")
    if not problem.num_variables:
        with pytest.raises(InputError, match="no variables"):
            to_dwave_optimization(problem)
        return
    model, points = to_dwave_optimization(problem), all_points(problem.num_variables)
    (x,) = model.iter_decisions()
    assert model.num_constraints() == sum(group in problem.labels for group in range(problem.num_groups))
    model.states.resize(len(points))
    with model.lock():
        for place, point in enumerate(points):
            x.set_state(place, point)
            assert float(model.objective.state(place)) == close(problem.energy(point))
            assert model.feasible(place) == problem.is_feasible(point)
    assert np.array_equal(assignments_from_dwave_optimization(model), points.astype(bool))


def test_a_free_problem_has_no_constraint_in_dwave_optimization():
    pytest.importorskip("dwave.optimization", reason="dwave-optimization is not installed")
    assert to_dwave_optimization(BlockQubo(np.eye(3), None)).num_constraints() == 0


def test_answers_are_read_from_solved_models_only():
    optimization = pytest.importorskip("dwave.optimization", reason="dwave-optimization is not installed")
    with pytest.raises(InputError, match="1 decisions and 0 states"):
        assignments_from_dwave_optimization(to_dwave_optimization(BlockQubo(np.eye(2), 1)))
    model = optimization.Model()
    model.minimize((model.integer(3, lower_bound=0, upper_bound=5) + model.binary(3)).sum())
    with pytest.raises(InputError, match="2 decisions"):
        assignments_from_dwave_optimization(model)
    model = optimization.Model()
    numbers = model.integer(2, lower_bound=0, upper_bound=5)
    model.minimize(numbers.sum())
    model.states.resize(1)
    numbers.set_state(0, [5, 0])
    with pytest.raises(InputError, match=r"states hold \[0.0, 5.0\]; only 0 and 1"):
        assignments_from_dwave_optimization(model)


@pytest.mark.parametrize(
    ("convert", "module", "package"),
    [
        (to_optimization_problem, "qiskit_addon_opt_mapper", "qiskit-addon-opt-mapper"),
        (to_dwave_optimization, "dwave.optimization", "dwave-optimization"),
    ],
)
def test_a_library_that_is_missing_is_named(monkeypatch, convert, module, package):
    monkeypatch.setattr("qubo_prune.plugins._importable", lambda name: name != module)
    with pytest.raises(SolverError, match=rf"The conversion '{convert.__name__}' needs .*: pip install {package}$"):
        convert(BlockQubo(np.eye(2), 1))
