"""Emitted problems against measured output errors, dense algebra and autograd."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import tiny_suite
import torch
from least_squares import refitted
from reference import Layer, minimum, random_feasible, random_layer
from torch import Tensor
from torch.nn import functional

from qubo_prune.bench.emitted import RIDGE, Emitted, compensated_block, count_of, fisher_blocks, gram_block
from qubo_prune.bench.instances import Captured
from qubo_prune.bench.origins import Origin
from qubo_prune.errors import InputError
from qubo_prune.problem import BlockBatch, FactorForm
from qubo_prune.problem.bounds import lower_bounds

D_OUT, D_IN = 6, 18
DAMPING = 0.01


def some_layer(seed: int = 3) -> tuple[Layer, Captured]:
    layer = random_layer(np.random.default_rng(seed), D_OUT, D_IN)
    return layer, Captured("layer", layer.weight, layer.gram)


def some_points(n: int, seed: int = 0, count: int = 40) -> np.ndarray:
    """Assignments of any counts, none and all among them."""
    points = np.random.default_rng(seed).random((count, n)) < np.linspace(0, 1, count)[:, None]
    points[0], points[-1] = False, True
    return points


def agree_everywhere(emitted: Emitted) -> None:
    """The convex form has the energies of the problem, whatever x."""
    assert isinstance(emitted.convex, BlockBatch)
    assert emitted.convex.num_rows == 1
    assert tuple(emitted.convex.num_pruned[0].tolist()) == emitted.problem.num_pruned
    points = some_points(emitted.problem.num_variables)
    energies = np.array([emitted.problem.energy(x) for x in points])
    convex = np.array([float(emitted.convex.energy(torch.tensor(x)[None])) for x in points])
    np.testing.assert_allclose(convex, energies, rtol=1e-9, atol=1e-9 * np.abs(energies).max())
    assert float(torch.linalg.eigvalsh(emitted.convex.hessian).min()) > -1e-9 * float(
        emitted.convex.hessian.abs().max()
    )


@pytest.mark.parametrize(
    ("n", "density", "pruned"), [(12, 0.5, 6), (16, 0.75, 4), (10, 0.3, 7), (8, 1.0, 0), (9, 1 / 3, 6)]
)
def test_counts_are_exact(n: int, density: float, pruned: int) -> None:
    assert count_of(n, density) == pruned


@pytest.mark.parametrize(("n", "density"), [(5, 0.5), (12, 0.25), (D_IN, 0.5)])
def test_a_gram_energy_is_the_measured_output_error(n: int, density: float) -> None:
    layer, captured = some_layer()
    emitted = gram_block(captured, n, density, seed=7)
    # the weights are all different, so the values tell which they are
    places = [int((layer.weight == value).nonzero()[0] @ torch.tensor([D_IN, 1])) for value in emitted.convex.values[0]]
    rows, columns = {place // D_IN for place in places}, [place % D_IN for place in places]
    assert len(rows) == 1
    assert len(set(columns)) == n
    assert emitted.problem.num_pruned == (count_of(n, density),)
    for x in some_points(n):
        keep = torch.ones(D_OUT, D_IN, dtype=torch.bool)
        keep[min(rows), torch.tensor(columns)] = torch.tensor(~x)
        assert emitted.problem.energy(x) == pytest.approx(layer.error(keep), rel=1e-9, abs=1e-12)
    agree_everywhere(emitted)


def test_a_gram_start_is_wandas_choice() -> None:
    _, captured = some_layer()
    emitted = gram_block(captured, 11, 0.5, seed=1)
    worth = emitted.problem.diagonal  # w^2 H / 2, in Wanda's order
    assert emitted.problem.is_feasible(emitted.start)
    assert worth[emitted.start].max() <= worth[~emitted.start].min()


@pytest.mark.parametrize("block", [gram_block, compensated_block])
def test_the_same_seed_gives_the_same_block_and_others_other_ones(block: object) -> None:
    _, captured = some_layer()
    assert callable(block)
    blocks = [block(captured, 8, 0.5, seed).problem.dense() for seed in (0, 0, 1, 2, 3)]
    assert np.array_equal(blocks[0], blocks[1])
    assert any(not np.allclose(blocks[0], other) for other in blocks[2:])


def bordered(row: Tensor, damped: Tensor, gram: Tensor, n: int, density: float) -> tuple[Tensor, Tensor]:
    """Wanda's pruned set of a row, and the block at its border, by dense algebra and loops."""
    d, pruned = len(row), n - round(n * density)
    x = torch.zeros(d, dtype=torch.bool)
    x[(row.abs() * gram.diagonal().sqrt()).argsort()[: d - round(d * density)]] = True
    values, energy = refitted(row, damped, x)
    inverse = torch.linalg.inv(damped)
    costs = {int(i): float(values[i] ** 2 / inverse[i, i]) / 2 for i in (~x).nonzero()[:, 0]}
    gains = {}
    for p in x.nonzero()[:, 0].tolist():
        without = x.clone()
        without[p] = False
        gains[p] = energy - refitted(row, damped, without)[1]
    kept = sorted(costs, key=lambda i: costs[i])[: n - pruned]
    return x, torch.tensor(kept + sorted(gains, key=lambda p: -gains[p])[:pruned])


@pytest.mark.parametrize(("n", "density"), [(8, 0.5), (10, 0.75), (D_IN, 0.5)])
def test_a_compensated_energy_is_that_of_the_schur_complement(n: int, density: float) -> None:
    layer, captured = some_layer()
    emitted = compensated_block(captured, n, density, seed=4)
    gram = layer.gram.matrix
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(D_IN, dtype=torch.float64)
    fitting = []
    for row in layer.weight:
        x, block = bordered(row, damped, gram, n, density)
        free = ~x
        free[block] = True
        u = refitted(row, damped, ~free)[0][block]
        at = [free.nonzero()[:, 0].tolist().index(int(column)) for column in block]
        schur = torch.linalg.inv(torch.linalg.inv(damped[free][:, free])[at][:, at])
        if np.allclose(emitted.problem.dense(), (u[:, None] * schur * u / 2).numpy(), rtol=1e-7, atol=1e-10):
            fitting.append((row, x, block, ~free))
    assert len(fitting) == 1
    ((row, x, block, outside),) = fitting
    assert np.array_equal(emitted.start, x[block].numpy())
    assert emitted.problem.is_feasible(emitted.start)
    assert emitted.problem.offset == 0
    everything = refitted(row, damped, outside)[1]
    for point in some_points(n):
        mask = outside.clone()
        mask[block] = torch.tensor(point)
        exact, energy = refitted(row, damped, mask)[1] - everything, emitted.problem.energy(point)
        assert energy >= exact - 1e-9
        assert energy >= -1e-12
        if point.sum() == n:  # nothing of the block adapts, so nothing is left to bound
            assert energy == pytest.approx(exact, rel=1e-8)
    assert emitted.facts == {"damping": DAMPING, "row_weights": D_IN}
    agree_everywhere(emitted)


class Fisher:
    """Two blocks of the perceptron's layer 2, with all that the reference needs, in float64."""

    def __init__(self, samples: int, density: float = 0.5) -> None:
        self.origin = tiny_suite.mlp_origin(samples)
        gram = self.origin.gram("2")
        self.before = self.origin.model[2].weight.detach().clone()
        self.sizes = (10, 24)
        self.blocks = fisher_blocks(self.origin, "2", gram, self.sizes, density)
        weight = self.before.double()
        wanda = (weight.square() * gram.diagonal).flatten()
        order = wanda.argsort()
        kept = round(density * weight.numel())
        self.keep = torch.ones(weight.numel(), dtype=torch.bool)
        self.keep[order[: weight.numel() - kept]] = False
        self.weight, self.wanda, self.samples = weight.flatten(), wanda, samples

    def places(self, n: int, density: float = 0.5) -> list[int]:
        """The kept weights next to Wanda's border and the pruned ones."""
        order = self.wanda.argsort().tolist()
        border = int((~self.keep).sum())
        pruned = n - round(n * density)
        return sorted(order[border - pruned : border] + order[border : border + n - pruned])

    def gradients(self) -> Tensor:
        """``(B, weights)`` at the masked weights, one sample at a time."""
        model = tiny.mlp().double().eval()
        model[2].weight.data = (self.weight * self.keep).reshape(self.before.shape)
        read, labels = self.origin.samples.batch(torch.arange(self.samples))
        found = []
        for sample in range(self.samples):
            loss = functional.cross_entropy(model(read[sample : sample + 1].double()), labels[sample : sample + 1])
            found.append(torch.autograd.grad(loss, model[2].weight)[0].flatten())
        return torch.stack(found)


@pytest.mark.parametrize("samples", [8, 16, 40])
@pytest.mark.parametrize("density", [0.5, 0.75])
def test_a_fisher_energy_is_the_quadratic_model_from_the_masked_weights_on(samples: int, density: float) -> None:
    case = Fisher(samples, density)
    gradients = case.gradients()
    for n, emitted in zip(case.sizes, case.blocks, strict=True):
        places = case.places(n, density)
        g, u = gradients[:, places], case.weight[places]
        now = u * case.keep[places]
        assert np.array_equal(emitted.start, (~case.keep[places]).numpy())
        assert emitted.problem.num_pruned == (n - round(n * density),)
        hessian = g.T @ g / samples
        energies, expected = [], []
        for x in some_points(n):
            delta = u * torch.tensor(~x) - now
            model = g.mean(0) @ delta + delta @ hessian @ delta / 2 + RIDGE * delta @ delta
            energies.append(emitted.problem.energy(x))
            expected.append(float(model))
        np.testing.assert_allclose(energies, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        assert emitted.problem.energy(emitted.start) == pytest.approx(0, abs=1e-9 * np.abs(expected).max())
        assert isinstance(emitted.problem.q, FactorForm) == (samples < n)
        assert emitted.facts == {"samples": samples, "ridge": RIDGE}
        agree_everywhere(emitted)
    assert torch.equal(case.origin.model[2].weight, case.before)


def test_a_fisher_block_goes_across_rows() -> None:
    case = Fisher(8)
    assert len({place // 20 for place in case.places(24)}) > 1


@pytest.fixture(scope="module")
def origin() -> Origin:
    return tiny_suite.mlp_origin()


def test_blocks_that_do_not_fit_are_refused(origin: Origin) -> None:
    _, captured = some_layer()
    with pytest.raises(InputError, match=f"block of {D_IN + 1} does not fit into 'layer'"):
        gram_block(captured, D_IN + 1, 0.5, 0)
    with pytest.raises(InputError, match=f"block of {D_IN + 1} at density 0.5 does not fit into a row of 'layer'"):
        compensated_block(captured, D_IN + 1, 0.5, 0)
    before = origin.model[2].weight.detach().clone()
    assert len(fisher_blocks(origin, "2", origin.gram("2"), [320], 0.5)) == 1  # all of the layer
    with pytest.raises(InputError, match="block of 322 does not fit into a layer of 320 weights"):
        fisher_blocks(origin, "2", origin.gram("2"), [322], 0.5)
    assert torch.equal(origin.model[2].weight, before)


def test_bounds_of_the_convex_form_are_below_all_energies() -> None:
    """The plain bound, which takes the convex form at its word, is below every feasible energy."""
    _, captured = some_layer()
    blocks = [gram_block(captured, 8, 0.5, 0), compensated_block(captured, 8, 0.5, 0), *Fisher(16).blocks]
    rng = np.random.default_rng(0)
    for emitted in blocks:
        bound = float(lower_bounds(emitted.convex, "plain").lower.sum())
        lowest = (
            minimum(emitted.problem)
            if emitted.problem.num_variables <= 10
            else min(float(emitted.problem.energy(random_feasible(rng, emitted.problem))) for _ in range(200))
        )
        assert bound <= lowest
