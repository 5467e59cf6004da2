from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import batch_energy, energy, random_batch, random_feasible, random_problem, random_starts
from unchecked import without_type_checks

from qubo_prune.errors import InputError
from qubo_prune.problem import BlockBatch, BlockQubo, FactorForm
from qubo_prune.problem.repair import repair

TWO = np.eye(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"q": np.zeros((2, 3)), "num_pruned": 1}, r"\(2, 3\)"),
        ({"q": np.zeros(4), "num_pruned": 1}, r"\(4,\)"),
        ({"q": [[1.0, np.nan], [0.0, 1.0]], "num_pruned": 1}, "NaN"),
        ({"q": [[1.0, np.inf], [0.0, 1.0]], "num_pruned": 1}, "infinite"),
        ({"q": TWO, "num_pruned": 3}, "num_pruned is 3 in group 0"),
        ({"q": TWO, "num_pruned": -1}, "num_pruned is -1"),
        ({"q": TWO, "num_pruned": (1, 1)}, "num_pruned is 1 in group 1, which has 0 variables"),
        ({"q": TWO, "num_pruned": (1,), "labels": [0]}, "labels"),
        ({"q": TWO, "num_pruned": (1,), "labels": [0, 1]}, "labels go from 0 to 1, but 1 counts"),
        ({"q": TWO, "num_pruned": (1,), "labels": [-1, 0]}, "labels go from -1"),
        ({"q": TWO, "num_pruned": 1, "offset": np.inf}, "offset is inf"),
    ],
)
def test_unusable_problems_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        BlockQubo(**arguments)


@pytest.mark.parametrize(
    ("diagonal", "factor"),
    [(np.ones(3), np.ones((2, 1))), (np.ones((3, 1)), np.ones((3, 1))), (np.ones(3), np.ones(3))],
)
def test_factor_form_refuses_shapes_that_disagree(diagonal, factor):
    with pytest.raises(InputError, match=r"\(n, rank\)"):
        FactorForm(diagonal, factor)


def test_factor_form_refuses_nan():
    with pytest.raises(InputError, match="factor"):
        FactorForm(np.ones(2), np.full((2, 1), np.nan))


def test_an_unsymmetric_matrix_has_the_same_energies(rng):
    q = rng.normal(size=(6, 6))
    problem = BlockQubo(q, 3, 0.5)
    assert np.array_equal(problem.dense(), problem.dense().T)
    for x in rng.integers(0, 2, size=(20, 6)):
        assert problem.energy(x) == pytest.approx(0.5 + x @ q @ x, rel=1e-12, abs=1e-12)


def test_factor_form_has_the_energies_of_its_dense_matrix(rng):
    form = FactorForm(rng.normal(size=7), rng.normal(size=(7, 3)))
    sparse = BlockQubo(form, 3, 1.0)
    dense = BlockQubo(np.diag(form.diagonal) + form.factor @ form.factor.T, 3, 1.0)
    points = rng.integers(0, 2, size=(30, 7))
    np.testing.assert_allclose(sparse.energy(points), dense.energy(points), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sparse.diagonal, dense.diagonal, rtol=1e-12)
    np.testing.assert_allclose(sparse.dense(), dense.dense(), rtol=1e-12, atol=1e-12)
    assert "factor form" in repr(sparse)
    assert "dense" in repr(dense)


def test_energy_is_the_sum_over_pairs(rng):
    problem = random_problem(rng, 6, 2)
    x = random_feasible(rng, problem)
    assert problem.energy(x) == pytest.approx(energy(problem, x), rel=1e-12)


def test_energy_of_one_point_is_a_float_and_of_many_an_array(rng):
    problem = random_problem(rng, 4, 2)
    points = rng.integers(0, 2, size=(3, 4))
    many = problem.energy(points)
    assert isinstance(problem.energy(points[0]), float)
    assert many.shape == (3,)
    assert many[1] == pytest.approx(problem.energy(points[1]))
    assert problem.energy(np.zeros((0, 4))).shape == (0,)
    for wrong in (np.zeros(3), np.zeros((2, 3)), np.zeros((1, 1, 4))):
        with pytest.raises(InputError, match="x has shape"):
            problem.energy(wrong)


def test_the_problem_neither_writes_to_its_input_nor_follows_it(rng):
    q, labels = rng.normal(size=(3, 3)), np.array([0, 1, 1])
    kept_q, kept_labels = q.copy(), labels.copy()
    problem = BlockQubo(q, (1, 1), labels=labels)
    before = problem.energy([1, 1, 0])
    assert np.array_equal(q, kept_q)
    assert np.array_equal(labels, kept_labels)
    q[:], labels[:] = 0, 0
    assert problem.energy([1, 1, 0]) == before
    assert problem.labels.tolist() == [0, 1, 1]
    for array in (problem.q, problem.labels, problem.diagonal):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_feasible_means_binary_and_exact_in_every_group():
    problem = BlockQubo(np.zeros((4, 4)), (1, 2), labels=[0, 0, 1, 1])
    assert problem.num_groups == 2
    assert problem.is_feasible([1, 0, 1, 1])
    assert problem.is_feasible(np.array([False, True, True, True]))
    assert problem.counts([1, 1, 0, 1]).tolist() == [2, 1]
    for wrong in (
        [1, 1, 1, 0],
        [1, 0, 1],
        [[1, 0, 1, 1]],
        [2, 0, 1, 1],
        [np.nan, 1, 1, 1],
        [0.5, 0, 1, 1],
    ):
        assert not problem.is_feasible(wrong)


def test_a_problem_may_be_empty():
    problem = BlockQubo(np.zeros((0, 0)), 0, 2.5)
    assert problem.num_variables == 0
    assert problem.is_feasible(np.zeros(0))
    assert problem.energy(np.zeros(0)) == 2.5


@pytest.mark.parametrize("shared", [True, False])
def test_batch_energies_are_those_of_its_problems(rng, shared):
    batch = random_batch(rng, 4, 6, [1, 2], [0, 1, 0, 1, 1, 0], shared)
    x, y = random_starts(rng, batch), random_starts(rng, batch)
    change = batch.energy_change(x, y)
    for row in range(4):
        problem, point = batch.problem(row), x[row].numpy()
        expected = batch_energy(batch, row, point)
        assert float(batch.energy(x)[row]) == pytest.approx(expected, rel=1e-12)
        assert problem.energy(point) == pytest.approx(expected, rel=1e-12)
        assert problem.num_pruned == (1, 2)
        assert problem.is_feasible(point)
        difference = batch_energy(batch, row, y[row].numpy()) - expected
        assert float(change[row]) == pytest.approx(difference, rel=1e-9, abs=1e-10)
    assert batch.counts(x).tolist() == [[1, 2]] * 4


def test_energy_change_writes_to_neither_mask(rng):
    batch = random_batch(rng, 2, 5, [2])
    x, y = random_starts(rng, batch), random_starts(rng, batch)
    kept_x, kept_y = x.clone(), y.clone()
    batch.energy_change(x, y)
    assert torch.equal(x, kept_x)
    assert torch.equal(y, kept_y)
    assert batch.energy_change(x, x).abs().max() == 0


def test_shared_and_per_row_hessians_agree(rng):
    shared = random_batch(rng, 3, 6, [2])
    apart = BlockBatch(
        shared.hessian.repeat(3, 1, 1),
        shared.values,
        shared.linear,
        shared.offset,
        shared.labels,
        shared.num_pruned,
    )
    assert shared.shared
    assert not apart.shared
    x, y = random_starts(rng, shared), random_starts(rng, shared)
    torch.testing.assert_close(shared.energy(x), apart.energy(x))
    torch.testing.assert_close(shared.energy_change(x, y), apart.energy_change(x, y))
    np.testing.assert_allclose(shared.problem(1).dense(), apart.problem(1).dense(), rtol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_a_slice_of_rows_holds_their_problems(rng, shared):
    batch = random_batch(rng, 5, 4, [2], shared=shared)
    part = batch.rows(slice(2, 4))
    assert part.num_rows == 2
    for row in range(2):
        np.testing.assert_array_equal(part.problem(row).dense(), batch.problem(row + 2).dense())


def test_a_batch_of_one_has_the_energies_of_its_problem(rng):
    problem = random_problem(rng, 6, (1, 2), [0, 0, 0, 1, 1, 1])
    batch = BlockBatch.of(problem)
    x = random_feasible(rng, problem)
    assert float(batch.energy(torch.tensor(x)[None])[0]) == pytest.approx(problem.energy(x), rel=1e-12)
    np.testing.assert_allclose(batch.problem(0).dense(), problem.dense(), rtol=1e-12, atol=1e-15)
    assert (batch.num_rows, batch.num_variables, batch.num_groups) == (1, 6, 2)


@pytest.fixture(params=["dense", "factor form"])
def either_form(request, rng) -> BlockQubo:
    if request.param == "dense":
        return random_problem(rng, 7, 3)
    return BlockQubo(FactorForm(rng.normal(size=7), rng.normal(size=(7, 3))), 3, 0.5)


def test_a_flip_cost_is_what_pruning_adds_whether_kept_or_pruned(rng, either_form):
    for x in (np.zeros(7, dtype=bool), np.ones(7, dtype=bool), rng.random(7) < 0.5):
        costs = either_form.flip_costs(x)
        for i in range(7):
            pruned, kept = x.copy(), x.copy()
            pruned[i], kept[i] = True, False
            assert costs[i] == pytest.approx(energy(either_form, pruned) - energy(either_form, kept), rel=1e-9)


def test_couplings_are_what_pruning_adds_to_the_other_flip_costs(rng, either_form):
    x = rng.random(7) < 0.5
    for i in range(7):
        before, after = x.copy(), x.copy()
        before[i], after[i] = False, True
        change = either_form.flip_costs(after) - either_form.flip_costs(before)
        np.testing.assert_allclose(either_form.couplings(i), change, rtol=1e-9, atol=1e-12)
        assert either_form.couplings(i)[i] == 0


def test_couplings_do_not_write_to_the_problem(either_form):
    before = either_form.dense().copy()
    either_form.couplings(2)[:] = 9.0
    np.testing.assert_array_equal(either_form.dense(), before)


def test_a_free_problem_allows_every_binary_x(rng):
    free = BlockQubo(rng.normal(size=(4, 4)), None, 1.0)
    assert free.free
    assert not BlockQubo(np.eye(2), 1).free
    assert (free.num_groups, free.num_pruned, free.labels.tolist()) == (0, (), [-1] * 4)
    assert all(free.is_feasible(x) for x in ([0, 0, 0, 0], [1, 1, 0, 1], [True] * 4))
    assert not free.is_feasible([0, 2, 0, 0])
    assert not free.is_feasible([0, 1, 0])
    assert free.counts(np.ones(4)).tolist() == []
    assert "any number" in repr(free)


def test_a_free_problem_has_no_groups(rng):
    with pytest.raises(InputError, match="labels are given without num_pruned"):
        BlockQubo(np.eye(3), None, labels=[0, 0, 1])


@pytest.mark.parametrize("wrong", [[-1, 1, 1], [0.5, 0, 1], [2, 0, 0], [np.nan, 0, 1]])
def test_energies_are_of_zeros_and_ones_only(rng, wrong):
    for problem in (random_problem(rng, 3, 1), BlockQubo(FactorForm(np.ones(3), np.ones((3, 1))), None)):
        for ask in (problem.energy, problem.flip_costs, problem.counts):
            with (
                without_type_checks(),
                pytest.raises(InputError, match=r"x holds .*only 0 and 1 are allowed"),
            ):
                ask(np.array(wrong))
        with pytest.raises(InputError, match="x holds"):
            problem.energy(np.array([[1, 0, 0], wrong]))
        with pytest.raises(InputError, match=r"pass \(3,\)\."):
            problem.flip_costs(np.zeros((2, 3), dtype=bool))
    with without_type_checks(), pytest.raises(InputError, match="x holds"):
        repair(random_problem(rng, 3, 1), np.array(wrong))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_energies_of_a_batch_are_of_bools_only(rng, dtype):
    batch = random_batch(rng, 2, 4, [2])
    x = torch.ones(2, 4, dtype=dtype)
    good = x.bool()
    calls = [lambda: batch.energy(x), lambda: batch.flip_costs(x), lambda: batch.energy_change(good, x)]
    for call in calls:
        with without_type_checks(), pytest.raises(InputError, match=r"pass torch\.bool"):
            call()
