from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from published import UPDATES
from reference import Layer, random_layer

from qubo_prune.errors import InputError
from qubo_prune.hessian import Gram
from qubo_prune.hessian.linalg import UNSEEN, inverse_factor
from qubo_prune.methods import refit as module
from qubo_prune.methods.sparsegpt import sweep
from qubo_prune.methods.update import update

PATTERNS = ["row", "layer", "2:4"]
ADAPTING = [kind for kind in UPDATES if kind != "none"]


@pytest.fixture
def layer(rng) -> Layer:
    return random_layer(rng, 7, 24)


def damped(gram: Gram, damping: float) -> torch.Tensor:
    return gram.matrix + damping * gram.diagonal.mean() * torch.eye(len(gram.matrix), dtype=torch.float64)


def objective(layer: Layer, weight: torch.Tensor, damping: float) -> float:
    """``1/2 sum_r (v - w)'H(v - w)`` with the damped H."""
    change = (weight - layer.weight).numpy()
    return float(np.einsum("ri,ij,rj->", change, damped(layer.gram, damping).numpy(), change) / 2)


def grouped(layers: list[Layer]) -> tuple[torch.Tensor, Gram]:
    stack = torch.stack([layer.gram.matrix for layer in layers])
    return torch.cat([layer.weight for layer in layers]), Gram(stack, layers[0].gram.tokens)


def least_squares(layer: Layer, keep: torch.Tensor, damping: float) -> torch.Tensor:
    """Row by row from the inputs themselves: damping is one more token for each input."""
    tokens, d_in = layer.inputs.shape
    extra = np.sqrt(damping * float(layer.gram.diagonal.mean()) * tokens / 2) * np.eye(d_in)
    inputs = np.vstack([layer.inputs.numpy(), extra])
    result = np.zeros(layer.weight.shape)
    for row, (weight, mask) in enumerate(zip(layer.weight.numpy(), keep.numpy(), strict=True)):
        result[row, mask] = np.linalg.lstsq(inputs[:, mask], inputs @ weight, rcond=None)[0]
    return torch.tensor(result)


def admm_in_loops(layer: Layer, keep: torch.Tensor, damping: float) -> torch.Tensor:
    hessian = damped(layer.gram, damping).numpy()
    scale = np.sqrt(np.diag(hessian))
    unit = hessian / np.outer(scale, scale)
    inverse = np.linalg.inv(unit + np.eye(len(unit)))
    result = np.zeros(layer.weight.shape)
    for row, (weight, mask) in enumerate(zip(layer.weight.numpy(), keep.numpy(), strict=True)):
        dense = weight * scale
        moving, dual = dense.copy(), np.zeros(len(dense))
        for _ in range(20):
            sparse = mask * (moving + dual)
            dual = dual + moving - sparse
            moving = inverse @ (unit @ dense + sparse - dual)
        result[row] = mask * (moving + dual) / scale
    return torch.tensor(result)


def brain_surgeon(layer: Layer, keep: torch.Tensor, damping: float) -> torch.Tensor:
    """Column by column: remove a weight, move the later ones by the inverse of what is left of H."""
    hessian = damped(layer.gram, damping).numpy()
    result = layer.weight.numpy().copy()
    for row, mask in enumerate(keep.numpy()):
        for j in np.flatnonzero(~mask):
            inverse = np.linalg.inv(hessian[j:, j:])
            result[row, j:] -= result[row, j] / inverse[0, 0] * inverse[0]
            result[row, j] = 0
    return torch.tensor(result)


SLOW = {"refit": least_squares, "admm": admm_in_loops, "sparsegpt": brain_surgeon}


@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_updates_equal_slow_ones_written_from_the_formulas(layer, kind, pattern, damping):
    keep = layer.random_keep(pattern, 0.5)
    found = update(kind, layer.weight, layer.gram, keep, damping)
    torch.testing.assert_close(found.weight, SLOW[kind](layer, keep, damping), rtol=1e-8, atol=1e-9)
    assert (found.damping, found.notes) == (damping, {})


@pytest.mark.parametrize("slab", [1, 5, 24])
def test_sparsegpt_does_not_depend_on_its_slabs(layer, slab):
    keep = layer.random_keep("row", 0.5)
    hessian = damped(layer.gram, 0.01)
    upper = inverse_factor(hessian)
    np.testing.assert_allclose((upper.T @ upper).numpy(), np.linalg.inv(hessian.numpy()), rtol=1e-8, atol=1e-10)
    found, mask = sweep(layer.weight, upper, lambda j, w, own: keep[:, j : j + w.shape[1]], slab, slab)
    assert torch.equal(mask, keep)
    torch.testing.assert_close(found, brain_surgeon(layer, keep, 0.01), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_pruned_weights_are_exactly_zero_and_dtypes_stay(layer, kind, pattern, dtype):
    keep = layer.random_keep(pattern, 0.5)
    found = update(kind, torch.nn.Parameter(layer.weight.to(dtype)), layer.gram, keep)
    assert found.weight.dtype == dtype
    assert not found.weight.requires_grad
    assert torch.equal(found.weight != 0, keep)
    exact = update(kind, layer.weight, layer.gram, keep).weight
    tolerance = {torch.float64: 0.0, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(found.weight.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("damping", [0.0, 0.01, 0.2])
def test_a_refit_is_the_best_of_its_support(layer, pattern, damping):
    keep = layer.random_keep(pattern, 0.4 if pattern != "2:4" else 0.5)
    found = {
        kind: objective(layer, update(kind, layer.weight, layer.gram, keep, damping).weight, damping)
        for kind in UPDATES
    }
    assert found["refit"] == min(found.values())
    assert found["refit"] < 0.9 * found["none"]
    assert found["admm"] < found["none"]


@pytest.mark.parametrize("kind", UPDATES)
def test_the_dense_mask_changes_nothing(layer, kind):
    keep = torch.ones_like(layer.weight, dtype=torch.bool)
    found = update(kind, layer.weight, layer.gram, keep)
    torch.testing.assert_close(found.weight, layer.weight)
    assert not update(kind, layer.weight, layer.gram, ~keep).weight.any()


def uneven_mask(rng: np.random.Generator, d_out: int, d_in: int) -> torch.Tensor:
    keep = torch.tensor(rng.random((d_out, d_in)) < rng.random((d_out, 1)))
    keep[0], keep[1] = True, False
    return keep


@pytest.mark.parametrize("threads", [1, 3])
def test_rows_of_any_count_are_refitted_on_any_number_of_threads(rng, threads):
    layer = random_layer(rng, 40, 30)
    keep = uneven_mask(rng, 40, 30)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = update("refit", layer.weight, layer.gram, keep)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found.weight, least_squares(layer, keep, 0.01), rtol=1e-7, atol=1e-9)


def uneven_inputs(rng: np.random.Generator, tokens: int = 90) -> Layer:
    """A layer with inputs of very different size, which a scaling takes away."""
    layer = random_layer(rng, 12, 30, tokens=tokens)
    sizes = torch.logspace(-3, 3, 30, dtype=torch.float64)
    return replace(layer, inputs=layer.inputs * sizes, gram=Gram(layer.gram.matrix * sizes * sizes[:, None], 90))


@pytest.mark.parametrize("damping", [1e-4, 0.3])
def test_rows_descend_to_the_least_squares_solution_all_at_once(rng, monkeypatch, damping):
    layer, keep = uneven_inputs(rng), uneven_mask(rng, 12, 30)
    monkeypatch.setattr(module, "_by_factors", None)  # no row is left for it
    found = update("refit", layer.weight, layer.gram, keep, damping)
    assert found.notes == {}
    torch.testing.assert_close(found.weight, least_squares(layer, keep, damping), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("limit", [4096, 29])
def test_rows_that_single_precision_does_not_solve_are_solved_otherwise(rng, monkeypatch, limit):
    layer, keep = uneven_inputs(rng, tokens=20), uneven_mask(rng, 12, 30)
    # in the scale of a unit diagonal its condition is beyond what single precision resolves
    hessian = damped(layer.gram, 0.0) + torch.diag(1e-9 * layer.gram.diagonal)
    unit, scale = module.unit_diagonal(hessian)
    inverse = torch.linalg.inv(unit).float()
    _, left = module.descend(layer.weight * scale, unit, keep, inverse)
    assert 0 < int(left.sum()) < 12
    monkeypatch.setattr(module, "CHOLESKY_LIMIT", limit)
    notes = Counter()
    found = module.refit(layer.weight, hessian, keep, notes)

    def error(values: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ri,ij,rj->r", values - layer.weight, hessian, values - layer.weight)

    exact = module._by_factors(layer.weight, hessian, keep)
    assert not notes
    assert torch.equal(found != 0, keep)
    assert bool((error(found) <= error(exact) * (1 + 1e-6) + 1e-12 * error(torch.zeros_like(exact))).all())


def test_conjugate_gradients_count_the_rows_that_they_leave_open(layer):
    keep = layer.random_keep("row", 0.5)
    hessian, start = damped(layer.gram, 0.01), layer.weight * keep
    values, left = module.conjugate_gradients(layer.weight, hessian, keep, start, 3, 1e-9)
    assert left == 7
    assert torch.equal(values != 0, keep)
    done, left = module.conjugate_gradients(layer.weight, hessian, keep, start, 100, 1e-9)
    assert left == 0
    assert objective(layer, done, 0.01) < objective(layer, values, 0.01) < objective(layer, start, 0.01)


@pytest.mark.parametrize("kind", ["refit", "sparsegpt"])
def test_a_singular_gram_raises_the_damping_and_says_so(rng, kind):
    layer = random_layer(rng, 5, 20, tokens=6)
    keep = layer.random_keep("row", 0.5)
    found = update(kind, layer.weight, layer.gram, keep, 0.0)
    assert 0 < found.damping <= 1e-4
    assert found.notes == {f"A Gram could not be factored, so its damping was raised from 0 to {found.damping:g}.": 1}
    torch.testing.assert_close(found.weight, SLOW[kind](layer, keep, found.damping), rtol=1e-3, atol=1e-4)
    assert update(kind, layer.weight, layer.gram, keep, 0.01).notes == {}


@pytest.mark.parametrize("kind", ADAPTING)
def test_what_is_no_gram_ends_in_an_error(layer, kind):
    keep = layer.random_keep("row", 0.5)
    wrong = Gram(layer.gram.matrix - 2 * torch.diag(layer.gram.diagonal), 9)
    wrong.diagonal.abs_()
    wrong.matrix[0, 1] = wrong.matrix[1, 0] = 1e6
    with pytest.raises(InputError, match="not positive semidefinite"):
        update(kind, layer.weight, wrong, keep)


@pytest.mark.parametrize("kind", UPDATES)
def test_weights_of_dead_inputs_stay_as_they_are(rng, kind):
    layer = random_layer(rng, 4, 16, dead=(2, 9))
    keep = layer.random_keep("row", 0.5)
    for damping in (0.0, 0.01):
        found = update(kind, layer.weight, layer.gram, keep, damping)
        assert found.notes == {}
        dead = layer.gram.dead
        torch.testing.assert_close(found.weight[:, dead], (layer.weight * keep)[:, dead])
        if kind == "refit":
            alive = Layer(layer.weight[:, ~dead], layer.inputs[:, ~dead], Gram(layer.gram.matrix[~dead][:, ~dead], 48))
            slow = least_squares(alive, keep[:, ~dead], damping * 14 / 16)
            torch.testing.assert_close(found.weight[:, ~dead], slow, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", UPDATES)
def test_a_layer_that_no_token_reached_keeps_its_weights_and_says_so(layer, kind):
    keep = layer.random_keep("row", 0.5)
    found = update(kind, layer.weight, Gram(torch.zeros(24, 24, dtype=torch.float64), 0), keep)
    assert torch.equal(found.weight, layer.weight * keep)
    assert found.notes == ({} if kind == "none" else {UNSEEN: 1})


@pytest.mark.parametrize("kind", UPDATES)
def test_groups_of_a_convolution_are_updated_with_their_own_grams(rng, kind):
    layers = [random_layer(rng, 3, 12), random_layer(rng, 3, 12), random_layer(rng, 3, 12, dead=tuple(range(12)))]
    weight, gram = grouped(layers)
    keep = torch.cat([layer.random_keep("row", 0.5, seed) for seed, layer in enumerate(layers)])
    found = update(kind, weight, gram, keep)
    apart = [
        update(kind, layer.weight, layer.gram, mask).weight for layer, mask in zip(layers, keep.split(3), strict=True)
    ]
    torch.testing.assert_close(found.weight, torch.cat(apart))
    assert found.notes == ({} if kind == "none" else {UNSEEN: 1})


def test_wrong_input_says_what_to_do(layer):
    keep = layer.random_keep("row", 0.5)
    with pytest.raises(InputError, match=r"'refitt' \(did you mean 'refit'"):
        update("refitt", layer.weight, layer.gram, keep)
    with pytest.raises(InputError, match="same d_in"):
        update("refit", layer.weight[:, :5], layer.gram, keep[:, :5])
    with pytest.raises(InputError, match="damping is -1"):
        update("refit", layer.weight, layer.gram, keep, -1.0)
