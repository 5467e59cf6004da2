from __future__ import annotations

from itertools import product

import dimod
import numpy as np
import pytest
from unchecked import without_type_checks

from qubo_prune.errors import InputError
from qubo_prune.problem import BlockQubo
from qubo_prune.problem.named import by_position, of_bqm, of_dict


def random_bqm(rng, names, vartype: str, dtype: type = float) -> dimod.BinaryQuadraticModel:
    bqm = dimod.BinaryQuadraticModel(vartype, dtype=dtype)
    for name in names:
        bqm.add_variable(name, float(np.float32(rng.normal())))
    for i, first in enumerate(names):
        for second in names[:i]:
            if rng.random() < 0.7:
                bqm.add_interaction(first, second, float(np.float32(rng.normal())))
    bqm.offset = 0.75
    return bqm


@pytest.mark.parametrize("dtype", [np.float64, np.float32, object])
@pytest.mark.parametrize("vartype", ["BINARY", "SPIN"])
def test_a_model_has_the_energies_of_its_problem_everywhere(rng, vartype, dtype):
    bqm = random_bqm(rng, ["b", ("a", 1), 7, "c"], vartype, dtype)
    problem = BlockQubo.from_bqm(bqm, num_pruned=None)
    assert problem.names == ("b", ("a", 1), 7, "c")
    assert problem.free
    for x in product((0, 1), repeat=4):
        values = x if vartype == "BINARY" else [2 * value - 1 for value in x]
        expected = float(bqm.energy(dict(zip(problem.names, values, strict=True))))
        # a model in single precision computes its energy so
        assert problem.energy(np.array(x)) == pytest.approx(
            expected, rel=1e-6, abs=1e-6 if dtype is np.float32 else 1e-12
        )


def test_a_view_of_spins_is_a_model_too(rng):
    bqm = random_bqm(rng, ["a", "b", "c"], "SPIN")
    spins, binary = BlockQubo.from_bqm(bqm, 1), BlockQubo.from_bqm(bqm.binary, 1)
    assert np.allclose(spins.dense(), binary.dense())
    assert spins.offset == pytest.approx(binary.offset)


@pytest.mark.parametrize("names", [[2, 0, 1], [np.int64(1), 2, 0]])
def test_numbers_are_positions_in_whatever_order_they_come(rng, names):
    bqm = random_bqm(rng, names, "BINARY")
    problem = BlockQubo.from_bqm(bqm, num_pruned=1)
    assert problem.names == range(3)
    assert np.allclose(problem.diagonal, [float(bqm.linear[i]) for i in range(3)])
    qubo = {(int(i), int(i)): float(bqm.linear[i]) for i in names}
    assert BlockQubo.from_qubo(qubo, 1).names == range(3)
    assert np.allclose(BlockQubo.from_qubo(qubo, 1).diagonal, problem.diagonal)


def test_other_numbers_are_names():
    assert of_dict({(3, 3): 1.0, (1, 1): 2.0}).names == (3, 1)
    assert of_dict({(1, 1): 1.0, (2, 2): 2.0}).names == (1, 2)
    assert of_dict({(True, True): 1.0, (False, False): 2.0}).names == (True, False)


def test_a_dict_has_the_energies_of_its_problem(rng):
    keys = [("a", "a"), ("b", "a"), ("a", "b"), ("c", "a"), (("d", 0), "c")]
    qubo = {key: float(rng.normal()) for key in keys}
    problem = BlockQubo.from_qubo(qubo, num_pruned=2, offset=-1.5)
    assert problem.names == ("a", "b", "c", ("d", 0))
    assert problem.positions == {"a": 0, "b": 1, "c": 2, ("d", 0): 3}
    for x in product((0, 1), repeat=4):
        value = dict(zip(problem.names, x, strict=True))
        expected = -1.5 + sum(c * value[i] * value[j] for (i, j), c in qubo.items())
        assert problem.energy(np.array(x)) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_nothing_at_all_is_a_problem():
    assert BlockQubo.from_qubo({}, 0, offset=2.0).energy([]) == 2.0
    assert BlockQubo.from_bqm(dimod.BinaryQuadraticModel("SPIN"), None).num_variables == 0


def test_the_counts_have_to_be_said(rng):
    bqm = random_bqm(rng, ["a", "b"], "BINARY")
    bqm.add_linear_equality_constraint([("a", 1.0), ("b", 1.0)], 10.0, -1.0)
    with pytest.raises(InputError, match=r"give num_pruned=m .*, or num_pruned=None if any number may be 1\.$"):
        BlockQubo.from_bqm(bqm)
    with pytest.raises(InputError, match=r"^A QUBO as a dict does not tell how many"):
        BlockQubo.from_qubo({("a", "a"): 1.0})
    assert BlockQubo.from_bqm(bqm, None).free
    assert BlockQubo.from_bqm(bqm, 1).num_pruned == (1,)
    # a penalty stays, and is 0 where the count is met
    assert BlockQubo.from_bqm(bqm, 1).energy([1, 0]) == pytest.approx(float(bqm.linear["a"]) + float(bqm.offset))


def test_groups_can_be_given_by_name():
    qubo = {("a", "a"): 1.0, ("b", "b"): 2.0, ("c", "c"): 3.0}
    by_name = BlockQubo.from_qubo(qubo, [1, 0], labels={"c": 1, "a": 0, "b": 0})
    assert by_name.labels.tolist() == BlockQubo.from_qubo(qubo, [1, 0], labels=[0, 0, 1]).labels.tolist() == [0, 0, 1]
    with pytest.raises(InputError, match=r"labels lacks 'c' and names 'd'"):
        BlockQubo.from_qubo(qubo, [1, 0], labels={"a": 0, "b": 0, "d": 1})


@pytest.mark.parametrize(
    ("qubo", "message"),
    [
        ({("a",): 1.0}, r"has the key \('a',\); give pairs"),
        ({"ab": 1.0}, "has the key 'ab'"),
        ({("a", "b"): "1"}, r"value at \('a', 'b'\) is '1'; give a number"),
        ({("a", "b"): 1j}, "is 1j"),
        ({("a", "b"): None}, "is None"),
        ({("a", "b"): np.nan}, "NaN"),
        ([(0, 1)], "of type list; give a dict"),
    ],
)
def test_what_is_no_qubo_is_refused(qubo, message):
    with without_type_checks(), pytest.raises(InputError, match=message):
        BlockQubo.from_qubo(qubo, num_pruned=0)


@pytest.mark.parametrize("model", [dimod.ConstrainedQuadraticModel(), {("a", "b"): 1.0}, None])
def test_what_is_no_model_is_refused(model):
    with without_type_checks(), pytest.raises(InputError, match=r"give a dimod\.BinaryQuadraticModel"):
        of_bqm(model)


def test_names_belong_to_one_variable_each():
    problem = BlockQubo(np.eye(2), 1, names=["a", "b"])
    assert problem.names == ("a", "b")
    assert BlockQubo(np.eye(2), 1).names == range(2)
    for names in (["a"], ["a", "a"]):
        with pytest.raises(InputError, match=r"names holds 1 different names for 2 variables"):
            BlockQubo(np.eye(2), 1, names=names)


def test_a_problem_without_names_is_the_same_problem(rng):
    q = rng.normal(size=(4, 4))
    for counts, labels in ((None, None), ([1, 1], [0, 1, 1, 0])):
        named = BlockQubo(q, counts, 0.5, labels, names="abcd")
        bare = named.without_names()
        assert bare.names == range(4)
        assert bare.without_names() is bare
        assert np.array_equal(bare.dense(), named.dense())
        assert (bare.offset, bare.num_pruned) == (named.offset, named.num_pruned)
        assert np.array_equal(bare.labels, named.labels)


def test_values_by_name_are_told_apart():
    assert by_position({"b": 1, "a": 2}, ["a", "b"], "it") == [2, 1]
    with pytest.raises(InputError, match=r"^it lacks 0, 1, 2, 3, 4 and 3 more; give a value for each of 0, 1"):
        by_position({}, range(8), "it")
