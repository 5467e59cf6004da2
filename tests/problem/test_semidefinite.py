"""The convex problems below against the energies of all assignments, at every step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from qubo_prune.problem.semidefinite import Lifted
from qubo_prune.solver import Deadline


def feasible(labels: Tensor, counts: list[int]) -> Tensor:
    points = torch.tensor(list(itertools.product([0.0, 1.0], repeat=len(labels))), dtype=torch.float64)
    sums = torch.stack([points[:, labels == g].sum(1) for g in range(len(counts))], 1)
    return points[(sums == torch.tensor(counts)).all(1)]


def started(seed: int, labels: Tensor, counts: list[int], spread: float = 0.0) -> tuple[Lifted, Tensor]:
    """A relaxation from multipliers that prove nothing much, and Q."""
    draw, n = torch.Generator().manual_seed(seed), len(labels)
    inputs = torch.randn(n + 2, n, generator=draw, dtype=torch.float64)
    u = torch.randn(n, generator=draw, dtype=torch.float64) * torch.exp(spread * torch.randn(n, generator=draw))
    convex = u[:, None] * (inputs.T @ inputs) * u / n
    q = convex + torch.randn(n, generator=draw, dtype=torch.float64).diag()
    sizes = torch.bincount(labels, minlength=len(counts))
    point = (torch.tensor(counts) / sizes.clamp(min=1))[labels].double()
    return Lifted(q, convex.diagonal().sqrt(), labels, torch.tensor(counts), convex, point), q


CASES = [
    ([0] * 8, [4]),
    ([0] * 8, [0]),
    ([0] * 8, [8]),
    ([0] * 8, [1]),
    ([0, 1] * 4, [1, 3]),
    ([0, 0, 2, 2, 2, 0, 0, 0], [2, 0, 2]),
    ([0, 1, 2, 3] * 2, [1, 1, 0, 2]),
    ([0, 0], [1]),
]


@pytest.mark.parametrize("spread", [0.0, 3.0])
@pytest.mark.parametrize(("labels", "counts"), CASES)
def test_the_convex_problem_is_below_every_energy_after_every_step(
    labels: list[int], counts: list[int], spread: float
) -> None:
    groups = torch.tensor(labels)
    points = feasible(groups, counts)
    for seed in range(3):
        lifted, q = started(seed, groups, counts, spread)
        energies = ((points @ q) * points).sum(1)
        for steps in (0, 1, 1, 1, 7, 30):
            assert lifted.improve(steps, Deadline(None)) == steps
            below = lifted.convex_below()
            bends = below.hessian[0]
            assert float(torch.linalg.eigvalsh(bends)[0]) >= -1e-12 * float(bends.abs().max())
            convex = ((points @ bends) * points).sum(1) / 2 + points @ below.linear[0] + below.offset[0]
            assert bool((convex <= energies).all())
            assert torch.equal(below.num_pruned[0], torch.tensor(counts))


def test_of_one_assignment_the_energy_is_met() -> None:
    lifted, q = started(0, torch.tensor([0] * 6), [6])
    lifted.improve(300, Deadline(None))
    below = lifted.convex_below()
    one = torch.ones(6, dtype=torch.float64)
    found = one @ below.hessian[0] @ one / 2 + below.linear[0].sum() + below.offset[0]
    assert float(found) == pytest.approx(float(q.sum()), rel=1e-3)


def test_time_ends_it_and_scales_do_not_matter() -> None:
    labels = torch.zeros(8, dtype=torch.long)
    lifted, q = started(1, labels, [4])
    assert lifted.improve(10, Deadline(0.0)) == 0
    sizes, point = q.diagonal().abs().sqrt(), torch.full((8,), 0.5, dtype=torch.float64)
    convex = q - (q.diagonal() - q.abs().sum(1)).diag()
    offsets = []
    for scale in (1.0, 2.0**40, 2.0**-40):
        scaled = Lifted(scale * q, scale**0.5 * sizes, labels, torch.tensor([4]), scale * convex, point)
        scaled.improve(40, Deadline(None))
        offsets.append(float(scaled.convex_below().offset[0]) / scale)
    np.testing.assert_allclose(offsets, offsets[0], rtol=1e-9)
