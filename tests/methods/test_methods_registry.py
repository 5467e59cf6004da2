from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from published import PUBLISHED
from reference import Layer, random_layer

from qubo_prune.errors import InputError
from qubo_prune.hessian import Gram
from qubo_prune.hessian.linalg import UNSEEN
from qubo_prune.masks import Pattern, keep_highest
from qubo_prune.methods.base import Decision, LayerTask
from qubo_prune.methods.registry import choose
from qubo_prune.methods.scores import score
from qubo_prune.methods.sparsefw import SparseFW
from qubo_prune.methods.update import update

PATTERNS = [("row", 0.4), ("layer", 0.35), ("2:4", 0.5)]
UPDATING = [name for name, peer in PUBLISHED.items() if peer.traits.updates]
MASKS = [name for name, peer in PUBLISHED.items() if not peer.traits.updates]


@pytest.fixture
def layer(rng) -> Layer:
    return random_layer(rng, 7, 24)


def highest(scores: NDArray[np.float64], pattern: str, density: float) -> NDArray[np.bool_]:
    """Exact counts by sorting; of equal scores the later stays."""
    parsed, keep = Pattern.parse(pattern), np.zeros(scores.shape, dtype=bool)
    grouped, wide = keep.reshape(1, -1), scores.reshape(1, -1)
    if pattern != "layer":
        size = parsed.of or scores.shape[1]
        grouped, wide = keep.reshape(-1, size), scores.reshape(-1, size)
    count = parsed.num_kept(scores.shape, density) // len(grouped)
    for mask, values in zip(grouped, wide, strict=True):
        mask[np.argsort(values, kind="stable")[len(values) - count :]] = True
    return keep


def damped(gram: Gram, damping: float = 0.01) -> NDArray[np.float64]:
    return (gram.matrix + damping * gram.diagonal.mean() * torch.eye(len(gram.matrix), dtype=torch.float64)).numpy()


def unit(gram: Gram) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    hessian = damped(gram)
    scale = np.sqrt(np.diag(hessian))
    return hessian / np.outer(scale, scale), scale


def wanda(layer: Layer, pattern: str, density: float) -> NDArray[np.bool_]:
    norms = layer.inputs.norm(dim=0).numpy()
    return highest(np.abs(layer.weight.numpy()) * norms, pattern, density)


def chosen(name: str, layer: Layer, pattern: str, density: float) -> Decision:
    return choose(name, layer.weight, layer.gram, Pattern.parse(pattern), density)


def error(layer: Layer, choice: Decision) -> float:
    """Measured mean squared output error."""
    weight = layer.weight * choice.keep if choice.weight is None else choice.weight
    return float(layer.row_errors(weight).sum())


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(
    ("pattern", "density"),
    [(p, d) for p in ("row", "layer") for d in (0.1, 0.33, 0.5, 0.9, 1.0)]
    + [("2:4", 0.5), ("1:4", 0.25), ("5:8", 0.625), ("2:3", 2 / 3), ("4:4", 1.0)],
)
def test_counts_are_exact_and_pruned_weights_zero(layer, name, pattern, density):
    found = chosen(name, layer, pattern, density)
    assert found.keep.shape == layer.weight.shape
    assert Pattern.parse(pattern).violations(found.keep, density) == 0
    assert found.notes == {}
    assert (found.weight is not None) == PUBLISHED[name].traits.updates
    if found.weight is not None:
        assert torch.equal(found.weight != 0, found.keep)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_every_method_gives_one_answer_and_beats_a_random_mask(layer, name, pattern, density):
    first, again = chosen(name, layer, pattern, density), chosen(name, layer, pattern, density)
    assert torch.equal(first.keep, again.keep)
    assert error(layer, first) == error(layer, again)
    assert error(layer, first) < layer.error(layer.random_keep(pattern, density))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_stay(layer, name, pattern, density, dtype):
    weight = torch.nn.Parameter(layer.weight.to(dtype))
    found = choose(name, weight, layer.gram, pattern, density)
    assert Pattern.parse(pattern).violations(found.keep, density) == 0
    if found.weight is not None:
        assert found.weight.dtype == dtype
        assert not (found.weight * ~found.keep).any()
        # of weights that were rounded, nearly the same comes out
        assert error(layer, found) < 1.3 * error(layer, chosen(name, layer, pattern, density)) + 1e-3


# against slow ones


@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_ria_is_its_formula(layer, pattern, density):
    own, norms = layer.weight.abs().numpy(), layer.inputs.norm(dim=0).numpy()
    scores = np.zeros(own.shape)
    for i, j in product(*map(range, own.shape)):
        scores[i, j] = (own[i, j] / own[i].sum() + own[i, j] / own[:, j].sum()) * norms[j] ** 0.5
    assert np.array_equal(chosen("ria", layer, pattern, density).keep.numpy(), highest(scores, pattern, density))


def test_ria_takes_zero_rows_and_columns(layer):
    weight = layer.weight.clone()
    weight[1], weight[:, 3] = 0, 0
    found = choose("ria", weight, layer.gram, "layer", 0.5)
    assert not found.keep[1].any()
    assert not found.keep[:, 3].any()


def sparsegpt_in_loops(layer: Layer, pattern: str, density: float) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Optimal brain surgeon from the inverse of what is left of H at every column."""
    (d_out, d_in), hessian, parsed = layer.weight.shape, damped(layer.gram), Pattern.parse(pattern)
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(d_in)]
    weight, keep = layer.weight.numpy().copy(), np.zeros((d_out, d_in), dtype=bool)
    step, total = parsed.of or 128, parsed.num_kept((d_out, d_in), density)
    taken = 0
    for j in range(d_in):
        if j % step == 0:
            stop = min(j + step, d_in)
            costs = np.array([weight[:, c] ** 2 / inverses[c][0, 0] for c in range(j, stop)]).T
            if parsed.of:
                keep[:, j:stop] = highest(costs, pattern, density)
            else:
                upto = int(np.floor(total / (d_out if pattern == "row" else 1) * stop / d_in + 0.5))
                size = costs.shape[1] if pattern == "row" else costs.size
                keep[:, j:stop] = highest(costs, pattern, (upto - taken) / size)
                taken = upto
        for row in np.flatnonzero(~keep[:, j]):
            weight[row, j:] -= weight[row, j] / inverses[j][0, 0] * inverses[j][0]
            weight[row, j] = 0
    return keep, weight


@pytest.mark.parametrize("d_in", [24, 168])
@pytest.mark.parametrize(("pattern", "density"), [*PATTERNS, ("2:3", 2 / 3), ("row", 0.29), ("layer", 0.71)])
def test_sparsegpt_equals_an_elimination_column_by_column(rng, d_in, pattern, density):
    layer = random_layer(rng, 4, d_in)
    found = chosen("sparsegpt", layer, pattern, density)
    keep, weight = sparsegpt_in_loops(layer, pattern, density)
    assert np.array_equal(found.keep.numpy(), keep)
    np.testing.assert_allclose(found.weight.numpy(), weight, rtol=1e-6, atol=1e-8)
    refilled = update("sparsegpt", layer.weight, layer.gram, found.keep)
    np.testing.assert_allclose(refilled.weight.numpy(), weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_admm_equals_a_plain_loop(layer, pattern, density):
    hessian, scale = unit(layer.gram)
    inverse = np.linalg.inv(hessian + np.eye(len(hessian)))
    dense = layer.weight.numpy() * scale
    moving, dual, keep = dense.copy(), np.zeros(dense.shape), np.ones(dense.shape, dtype=bool)
    for t in range(1, 21):
        if t <= 15:
            pruned = (1 - density) * (1 - (1 - t / 15) ** 3)
            final = t == 15 or pattern == "2:4"
            keep = highest(np.abs(moving + dual), pattern, density if final else 1 - pruned)
        sparse = keep * (moving + dual)
        dual += moving - sparse
        moving = (dense @ hessian + sparse - dual) @ inverse
    found = chosen("admm", layer, pattern, density)
    assert np.array_equal(found.keep.numpy(), keep)
    np.testing.assert_allclose(found.weight.numpy(), keep * (moving + dual) / scale, rtol=1e-7, atol=1e-9)


def alps_in_loops(layer: Layer, pattern: str, density: float) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    hessian, scale = unit(layer.gram)
    dense = layer.weight.numpy() * scale
    before = highest(np.abs(dense), pattern, density)
    sparse, dual, rho, kept = dense * before, np.zeros(dense.shape), 0.1, before.sum()
    keep = before
    for t in range(1, 301):
        moving = (dense @ hessian - dual + rho * sparse) @ np.linalg.inv(hessian + rho * np.eye(len(hessian)))
        keep = highest(np.abs(moving + dual / rho), pattern, density)
        sparse = (moving + dual / rho) * keep
        dual += rho * (moving - sparse)
        if t % 3 == 0:
            changed = (keep != before).sum()
            if changed == 0:
                break
            rho *= 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1
            before = keep
    weight = sparse.copy()
    for row, mask in enumerate(keep):
        # conjugate gradients on the support of one row
        matrix, values = hessian[np.ix_(mask, mask)], sparse[row, mask]
        left = (hessian @ dense[row])[mask] - matrix @ values
        direction = left
        for _ in range(10):
            length = left @ left / (direction @ matrix @ direction)
            values = values + length * direction
            fresh = left - length * matrix @ direction
            direction = fresh + fresh @ fresh / (left @ left) * direction
            left = fresh
        weight[row, mask] = values
    return keep, weight / scale


@pytest.mark.parametrize(("pattern", "density"), [("row", 0.5), ("layer", 0.75), ("2:4", 0.5)])
def test_alps_equals_a_plain_loop(rng, pattern, density):
    layer = random_layer(rng, 5, 32)
    found = chosen("alps", layer, pattern, density)
    keep, weight = alps_in_loops(layer, pattern, density)
    assert np.array_equal(found.keep.numpy(), keep)
    np.testing.assert_allclose(found.weight.numpy(), weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
@pytest.mark.parametrize("seed", range(4))
def test_alps_is_at_least_as_good_as_admm(seed, pattern, density):
    layer = random_layer(np.random.default_rng(seed), 16, 40)
    assert error(layer, chosen("alps", layer, pattern, density)) < 1.02 * error(
        layer, chosen("admm", layer, pattern, density)
    )


@pytest.mark.parametrize("name", UPDATING)
@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_a_refit_improves_every_updated_weight(layer, name, pattern, density):
    found = chosen(name, layer, pattern, density)
    best = update("refit", layer.weight, layer.gram, found.keep).weight
    change, hessian = (layer.weight - best).numpy(), damped(layer.gram)
    own = (layer.weight - found.weight).numpy()
    lowest, reached = (np.einsum("ri,ij,rj->", move, hessian, move) for move in (change, own))
    assert lowest <= reached * (1 + 1e-9)
    if name == "alps":  # its conjugate gradients nearly get there
        assert reached < 1.1 * lowest


def row_error(layer: Layer, row: int, keep: NDArray[np.bool_]) -> float:
    pruned = layer.weight.numpy()[row] * ~keep
    return float(pruned @ layer.gram.matrix.numpy() @ pruned / 2)


def same_group(pattern: str, i: int, j: int) -> bool:
    size = Pattern.parse(pattern).of
    return not size or i // size == j // size


@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_dsnot_grows_and_prunes_as_its_rule_says(layer, pattern, density):
    keep, norms = wanda(layer, pattern, density), layer.inputs.norm(dim=0).numpy()
    for row, mask in enumerate(keep):
        weight = layer.weight.numpy()[row]
        for _ in range(50):
            pull = weight * (layer.gram.matrix.numpy() @ (weight * ~mask))
            now = row_error(layer, row, mask)
            right = [k for k in np.flatnonzero(mask) if pull[k] < 0]
            gains = {}
            for p in np.flatnonzero(~mask):
                if any(same_group(pattern, p, k) for k in right):
                    other = mask.copy()
                    other[p] = True
                    gains[p] = now - row_error(layer, row, other)
            if not gains:
                break
            p = max(gains, key=lambda c: gains[c])
            k = min((k for k in right if same_group(pattern, p, k)), key=lambda c: abs(weight[c]) * norms[c])
            other = mask.copy()
            other[p], other[k] = True, False
            if row_error(layer, row, other) >= now:
                break
            mask[:] = other
    found = chosen("dsnot", layer, pattern, density)
    assert np.array_equal(found.keep.numpy(), keep)
    assert layer.error(found.keep) < layer.error(torch.tensor(wanda(layer, pattern, density)))
    if pattern == "layer":
        assert np.array_equal(keep.sum(1), wanda(layer, pattern, density).sum(1))


def frank_wolfe_in_loops(layer: Layer, pattern: str, density: float, steps: int, fixed: NDArray[np.bool_]):
    weight, hessian = layer.weight.numpy(), layer.gram.matrix.numpy()
    relaxed = wanda(layer, pattern, density).astype(float)
    for t in range(steps):
        # the gradient of 1/2 ((1-m)*w)'H((1-m)*w), term by term
        gradient = np.zeros(weight.shape)
        for r, i, j in product(range(len(weight)), *map(range, hessian.shape)):
            gradient[r, i] -= weight[r, i] * hessian[i, j] * (1 - relaxed[r, j]) * weight[r, j]
        corner = highest(np.where(fixed, np.inf, -gradient), pattern, density)
        relaxed += 2 / (t + 2) * (corner - relaxed)
    return relaxed


@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_first_steps_of_sparsefw_equal_a_loop(layer, pattern, density, steps):
    scores = np.abs(layer.weight.numpy()) * layer.inputs.norm(dim=0).numpy()
    fixed = {
        "row": highest(scores, "row", 9 / 24),
        "layer": highest(scores, "layer", 53 / 168),
        "2:4": highest(scores, "1:4", 0.25),
    }[pattern]
    relaxed = frank_wolfe_in_loops(layer, pattern, density, steps, fixed)
    task = LayerTask(layer.weight, layer.gram, Pattern.parse(pattern), density, 0.01, Counter())
    found, weight = SparseFW(iterations=steps).masked(task)
    assert weight is None
    assert np.array_equal(found.numpy(), highest(np.where(fixed, np.inf, relaxed.round(12)), pattern, density))
    assert found[torch.tensor(fixed)].all()


@pytest.mark.parametrize(("pattern", "density"), [("row", 0.4), ("layer", 0.35)])
def test_sparsefw_relaxes_to_a_better_mask_when_more_weights_are_free(rng, pattern, density):
    layer = random_layer(rng, 16, 40)
    start = layer.error(keep_highest(score("wanda", layer.weight, layer.gram, 0), Pattern.parse(pattern), density))
    task = LayerTask(layer.weight, layer.gram, Pattern.parse(pattern), density, 0.01, Counter())
    tight, loose = (layer.error(SparseFW(alpha).masked(task)[0]) for alpha in (0.9, 0.2))
    assert loose < tight < start


@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_no_swap_improves_the_mask_of_sparseswaps(layer, pattern, density):
    keep = chosen("sparseswaps", layer, pattern, density).keep.numpy()
    start = wanda(layer, pattern, density)
    assert np.array_equal(keep.sum(1), start.sum(1))
    for row, mask in enumerate(keep):
        now = row_error(layer, row, mask)
        assert now <= row_error(layer, row, start[row])
        for k, p in product(np.flatnonzero(mask), np.flatnonzero(~mask)):
            if same_group(pattern, k, p):
                other = mask.copy()
                other[k], other[p] = False, True
                assert row_error(layer, row, other) >= now * (1 - 1e-9)


# data that lacks something


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_dead_inputs_are_pruned_first(rng, name, pattern, density):
    layer = random_layer(rng, 6, 24, dead=(3, 8, 21))
    found = chosen(name, layer, pattern, density)
    assert Pattern.parse(pattern).violations(found.keep, density) == 0
    if pattern != "2:4":
        assert not found.keep[:, layer.gram.dead].any()
    mostly = random_layer(rng, 6, 24, dead=tuple(range(18)))
    found = chosen(name, mostly, pattern, density)
    assert Pattern.parse(pattern).violations(found.keep, density) == 0
    assert found.notes == {}
    if pattern == "row" and name != "sparsegpt":  # each slab has its count there
        assert found.keep[:, 18:].all()
    if found.weight is not None:
        dead = (mostly.weight * found.keep)[:, :18]
        torch.testing.assert_close(found.weight[:, :18], dead)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_without_data_the_largest_weights_stay_and_a_note_says_so(layer, name, pattern, density):
    empty = Gram(torch.zeros(24, 24, dtype=torch.float64), 0)
    found = choose(name, layer.weight, empty, pattern, density)
    assert Pattern.parse(pattern).violations(found.keep, density) == 0
    assert found.notes == {UNSEEN: 1}
    if name != "ria":
        assert torch.equal(found.keep, keep_highest(layer.weight.abs(), Pattern.parse(pattern), density))
    if found.weight is not None:
        assert torch.equal(found.weight, layer.weight * found.keep)


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_singular_grams_are_damped_more_where_they_must_be(rng, name, pattern, density):
    layer = random_layer(rng, 5, 20, tokens=6)
    found = choose(name, layer.weight, layer.gram, Pattern.parse(pattern), density, damping=0.0)
    assert Pattern.parse(pattern).violations(found.keep, density) == 0
    assert np.isfinite(error(layer, found))
    raised = [note for note in found.notes if "damping was raised from 0 to" in note]
    assert len(raised) == (name == "sparsegpt")


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_groups_of_a_convolution_have_their_own_grams(rng, name, pattern, density):
    layers = [random_layer(rng, 3, 12), random_layer(rng, 3, 12), random_layer(rng, 3, 12, dead=tuple(range(12)))]
    weight = torch.cat([layer.weight for layer in layers])
    gram = Gram(torch.stack([layer.gram.matrix for layer in layers]), 36)
    found = choose(name, weight, gram, pattern, density)
    assert Pattern.parse(pattern).violations(found.keep, density) == 0
    assert found.notes == {UNSEEN: 1}
    if pattern == "layer":
        counts = keep_highest(score("wanda", weight, gram, 0), Pattern("layer"), density).split(3)
        if name != "ria":
            assert [int(mask.sum()) for mask in found.keep.split(3)] == [int(mask.sum()) for mask in counts]
        return
    apart = [chosen(name, layer, pattern, density) for layer in layers]
    if name == "ria":  # rows without data score by their weights only where the whole layer has none
        assert torch.equal(found.keep[:6], torch.cat([choice.keep for choice in apart[:2]]))
        return
    assert torch.equal(found.keep, torch.cat([choice.keep for choice in apart]))
    if found.weight is not None:
        torch.testing.assert_close(found.weight, torch.cat([choice.weight for choice in apart]))


def test_wrong_input_says_what_to_do(layer):
    with pytest.raises(InputError, match=r"'sparsgpt' \(did you mean 'sparsegpt'"):
        choose("sparsgpt", layer.weight, layer.gram, "row", 0.5)
    with pytest.raises(InputError, match="same d_in"):
        choose("ria", layer.weight[:, :20], layer.gram, "row", 0.5)
    with pytest.raises(InputError, match=r"keeps 0\.5 of the weights"):
        choose("ria", layer.weight, layer.gram, "2:4", 0.3)
    with pytest.raises(InputError, match="damping is 2"):
        choose("alps", layer.weight, layer.gram, "row", 0.5, damping=2)
