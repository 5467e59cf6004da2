from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import feasible_points, random_feasible, random_layer

from qubo_prune.blocks.emission import emit, emit_block, emit_factor, emit_rows, emit_whole_rows
from qubo_prune.masks import Pattern
from qubo_prune.problem import FactorForm


def quadratic_model(h, g, w, u, ridge, x) -> float:
    delta = u * (1 - x) - w
    return float(g @ delta + delta @ h @ delta / 2 + ridge * delta @ delta)


def random_state(rng, n: int, same_values: bool):
    """Curvature, gradient, current weights, kept values and current mask of a block."""
    h = rng.normal(size=(n, n))
    x = rng.permutation(n) < n // 2
    u = rng.normal(size=n)
    # kept weights that a later update would move have another value than now
    w = np.where(x, 0.0, u if same_values else rng.normal(size=n))
    return h + h.T, rng.normal(size=n), w, u, x


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("same_values", [True, False])
def test_energy_is_the_quadratic_model_of_the_move(rng, ridge, same_values):
    for n in (1, 2, 7):
        h, g, w, u, x = random_state(rng, n, same_values)
        problem = emit(h, g, w, u, int(x.sum()), ridge)
        for point in feasible_points(problem):
            expected = quadratic_model(h, g, w, u, ridge, point)
            assert problem.energy(point) == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_energy_of_the_current_mask_is_zero(rng, ridge):
    for n in (1, 5, 30):
        h, g, w, u, x = random_state(rng, n, same_values=True)
        problem = emit(h, g, w, u, int(x.sum()), ridge)
        assert abs(problem.energy(x)) < 1e-12 * max(1.0, np.abs(problem.dense()).sum())


def test_couplings_keep_their_sign_and_size(rng):
    h, g, w, u, x = random_state(rng, 8, same_values=True)
    q = emit(h, g, w, u, int(x.sum())).dense()
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(q[off], (np.outer(u, u) * h / 2)[off], rtol=1e-12)
    assert (q[off] < 0).any()
    assert (q[off] > 0).any()


def test_groups_reach_the_problem(rng):
    h, g, w, u, _ = random_state(rng, 4, same_values=True)
    problem = emit(h, g, w, u, [1, 2], labels=[0, 1, 0, 1])
    assert problem.num_pruned == (1, 2)
    assert problem.labels.tolist() == [0, 1, 0, 1]


def block_of_pattern(rng, pattern: str, d_out: int, d_in: int):
    """Rows, columns and group labels of a block such as the pattern would form."""
    if pattern == "row":
        rows = torch.full((6,), 1)
        columns = torch.tensor(rng.permutation(d_in)[:6])
        labels = np.zeros(6, dtype=int)
    elif pattern == "rows apart":
        rows = torch.tensor([0, 0, 0, 2, 2, 2])
        columns = torch.tensor([*rng.permutation(d_in)[:3], *rng.permutation(d_in)[:3]])
        labels = np.array([0, 0, 0, 1, 1, 1])
    elif pattern == "layer":
        place = torch.tensor(rng.permutation(d_out * d_in)[:8])
        rows, columns, labels = place // d_in, place % d_in, np.zeros(8, dtype=int)
    else:
        rows = torch.full((8,), 2)
        columns = torch.arange(8)
        labels = np.arange(8) // 4
    return rows, columns, labels


@pytest.mark.parametrize("pattern", ["row", "rows apart", "layer", "2:4"])
def test_block_energy_is_the_measured_change_of_the_output_error(rng, pattern):
    for trial in range(5):
        layer = random_layer(rng, 3, 8)
        kept = pattern if pattern in ("layer", "2:4") else "row"
        keep = layer.random_keep(kept, 0.5, seed=trial)
        rows, columns, labels = block_of_pattern(rng, pattern, 3, 8)
        problem = emit_block(layer.weight, keep, layer.gram.matrix, rows, columns, labels)
        current = ~keep[rows, columns].numpy()
        error = layer.error(keep)
        assert problem.is_feasible(current)
        assert abs(problem.energy(current)) < 1e-12 * error
        for _ in range(20):
            x = random_feasible(rng, problem)
            moved = keep.clone()
            moved[rows, columns] = torch.tensor(~x)
            measured = layer.error(moved) - error
            assert abs(problem.energy(x) - measured) < 1e-9 * error
        assert int(moved.sum()) == int(keep.sum())


def test_weights_of_different_rows_are_not_coupled_and_negative_couplings_survive(rng):
    layer = random_layer(rng, 3, 8)
    rows, columns, _ = block_of_pattern(rng, "layer", 3, 8)
    q = emit_block(layer.weight, layer.random_keep("layer", 0.5), layer.gram.matrix, rows, columns).dense()
    for i in range(8):
        for j in range(i):
            u = float(layer.weight[rows[i], columns[i]] * layer.weight[rows[j], columns[j]])
            expected = u * float(layer.gram.matrix[columns[i], columns[j]]) / 2
            assert q[i, j] == pytest.approx(expected if rows[i] == rows[j] else 0.0, rel=1e-12)
    assert (q[~np.eye(8, dtype=bool)] < 0).any()


def test_an_empty_block_has_no_variables(rng):
    layer = random_layer(rng, 2, 4)
    nothing = torch.zeros(0, dtype=torch.long)
    problem = emit_block(layer.weight, layer.random_keep("row", 0.5), layer.gram.matrix, nothing, nothing)
    assert problem.num_variables == 0
    assert problem.energy(np.zeros(0)) == 0


@pytest.mark.parametrize(("pattern", "num_groups"), [("row", 1), ("2:4", 2)])
def test_rows_emit_what_their_blocks_emit_and_what_is_measured(rng, pattern, num_groups):
    layer = random_layer(rng, 4, 12)
    keep = layer.random_keep(pattern, 0.5)
    x = (~keep).double()
    field = (layer.weight * x) @ layer.gram.matrix
    if pattern == "row":
        columns = torch.stack([torch.tensor(rng.permutation(12)[:6]) for _ in range(4)])
        labels = torch.zeros(6, dtype=torch.long)
    else:
        columns = torch.tensor([[0, 1, 2, 3, 8, 9, 10, 11]] * 4)
        labels = torch.arange(8) // 4
    batch = emit_rows(layer.weight, x, layer.gram.matrix, field, columns, labels, num_groups)
    errors = layer.row_errors(layer.weight * keep)
    current = x.gather(1, columns) > 0
    assert (batch.energy(current).abs() < 1e-12 * errors).all()
    assert torch.equal(batch.counts(current), batch.num_pruned)
    for row in range(4):
        single = emit_block(
            layer.weight,
            keep,
            layer.gram.matrix,
            torch.full((len(labels),), row),
            columns[row],
            labels.numpy(),
        )
        problem = batch.problem(row)
        np.testing.assert_allclose(problem.dense(), single.dense(), rtol=1e-9, atol=1e-12)
        assert problem.offset == pytest.approx(single.offset, rel=1e-9)
        assert problem.num_pruned == single.num_pruned
        for _ in range(10):
            point = random_feasible(rng, problem)
            moved = keep.clone()
            moved[row, columns[row]] = torch.tensor(~point)
            measured = layer.row_errors(layer.weight * moved)[row] - errors[row]
            assert abs(problem.energy(point) - float(measured)) < 1e-9 * float(errors[row])


@pytest.mark.parametrize("pattern", ["row", "2:4", "layer"])
def test_whole_rows_share_one_hessian_and_measure_true(rng, pattern):
    layer = random_layer(rng, 4, 8)
    keep = layer.random_keep(pattern, 0.5)
    x = (~keep).double()
    labels = Pattern.parse(pattern).labels(8)
    field = (layer.weight * x) @ layer.gram.matrix
    groups = int(labels.max()) + 1
    batch = emit_whole_rows(layer.weight, x, layer.gram.matrix, field, labels, groups)
    assert batch.shared
    errors = layer.row_errors(layer.weight * keep)
    assert (batch.energy(~keep).abs() < 1e-12 * errors.sum()).all()
    assert torch.equal(batch.counts(~keep), batch.num_pruned)
    for row in range(4):
        problem = batch.problem(row)
        for _ in range(10):
            point = random_feasible(rng, problem)
            moved = keep.clone()
            moved[row] = torch.tensor(~point)
            measured = layer.row_errors(layer.weight * moved)[row] - errors[row]
            assert abs(problem.energy(point) - float(measured)) < 1e-9 * float(errors.sum())


def factor_state(rng, b: int, n: int, groups: int = 1, same_values: bool = True):
    """Per-sample gradients, gradient, current weights, kept values, mask, labels, counts and prices of a block."""
    labels = np.arange(n) % groups
    x = rng.random(n) < 0.5
    u = rng.normal(size=n)
    w = np.where(x, 0.0, u if same_values else rng.normal(size=n))
    f, g = rng.normal(size=(b, n)), rng.normal(size=n)
    return f, g, w, u, x, labels, [int(x[labels == group].sum()) for group in range(groups)], rng.random(n)


def emitted_factor(f, g, w, u, labels, counts, ridge=0.0, price=None):
    tensors = [torch.tensor(part) for part in (f, g, w, u)]
    return emit_factor(*tensors, counts, labels, ridge, None if price is None else torch.tensor(price))


# fewer samples than weights, as many, more
@pytest.mark.parametrize("b", [1, 4, 8, 9, 30])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("priced", [True, False])
def test_factor_energy_is_the_quadratic_model_and_the_price_of_what_changes(rng, b, groups, ridge, priced):
    f, g, w, u, x, labels, counts, price = factor_state(rng, b, 9, groups)
    problem = emitted_factor(f, g, w, u, labels, counts, ridge, price if priced else None)
    assert isinstance(problem.q, FactorForm) == (b < 9)
    assert problem.num_pruned == tuple(counts)
    assert problem.labels.tolist() == labels.tolist()
    assert abs(problem.energy(x)) < 1e-12 * max(1.0, np.abs(problem.dense()).sum())
    hessian = f.T @ f / b
    for point in feasible_points(problem):
        expected = quadratic_model(hessian, g, w, u, ridge, point) + priced * float(price @ (point != x))
        assert problem.energy(point) == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("b", [3, 20])
def test_factor_energy_holds_where_kept_weights_would_move(rng, b):
    f, g, w, u, _, labels, counts, _ = factor_state(rng, b, 9, 2, same_values=False)
    problem = emitted_factor(f, g, w, u, labels, counts, 0.2)
    for point in feasible_points(problem):
        expected = quadratic_model(f.T @ f / b, g, w, u, 0.2, point)
        assert problem.energy(point) == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("b", [4, 40])
def test_factor_and_matrix_emit_the_same_problem(rng, b):
    f, g, w, u, _, labels, counts, _ = factor_state(rng, b, 12, 3, same_values=False)
    problem = emitted_factor(f, g, w, u, labels, counts, 0.1)
    other = emit(f.T @ f / b, g, w, u, counts, 0.1, labels)
    np.testing.assert_allclose(problem.dense(), other.dense(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(problem.diagonal, other.diagonal, rtol=1e-9, atol=1e-12)
    assert problem.offset == pytest.approx(other.offset, rel=1e-9)
    # the same curvature from as many samples as it takes to leave the factor form
    more = emitted_factor(np.tile(f, (4, 1)), g, w, u, labels, counts, 0.1)
    assert isinstance(problem.q, FactorForm) != isinstance(more.q, FactorForm) or b > 12
    np.testing.assert_allclose(more.dense(), problem.dense(), rtol=1e-9, atol=1e-12)


def test_a_weight_whose_value_is_zero_is_never_priced_nor_coupled(rng):
    f, g, w, u, x, labels, counts, _ = factor_state(rng, 5, 6)
    u[:2], w[:2], x[:2] = 0.0, 0.0, (False, True)
    counts = [int(x.sum())]
    price = np.abs(rng.normal(size=6)) * np.abs(u)
    problem = emitted_factor(f, g, w, u, labels, counts, 0.0, price)
    exchanged = x.copy()
    exchanged[:2] = True, False
    assert abs(problem.energy(x)) < 1e-12
    assert problem.energy(exchanged) == pytest.approx(problem.energy(x), abs=1e-12)


def test_half_precision_is_emitted_in_float64(rng):
    f, g, w, u, x, labels, counts, _ = factor_state(rng, 4, 9)
    single = [torch.tensor(part, dtype=torch.float32) for part in (f, g, w, u)]
    problem = emit_factor(*single, counts, labels)
    f, g, w, u = (part.double().numpy() for part in single)
    point = random_feasible(rng, problem)
    assert problem.energy(point) == pytest.approx(quadratic_model(f.T @ f / 4, g, w, u, 0.0, point), rel=1e-12)
    assert abs(problem.energy(x)) < 1e-12 * np.abs(problem.dense()).sum()
