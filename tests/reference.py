"""Slow and obvious: what the tests hold the package against. Enumeration, dense float64, loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qubo_prune.hessian import Gram, GramAccumulator
from qubo_prune.masks import Pattern, keep_highest
from qubo_prune.problem import BlockBatch, BlockQubo


def feasible_points(problem: BlockQubo) -> NDArray[np.bool_]:
    """Every feasible assignment of a small problem, ``(k, n)``."""
    choices = [
        combinations(np.flatnonzero(problem.labels == group).tolist(), count)
        for group, count in enumerate(problem.num_pruned)
    ]
    points = []
    for chosen in product(*choices):
        x = np.zeros(problem.num_variables, dtype=bool)
        x[[i for members in chosen for i in members]] = True
        points.append(x)
    return np.array(points).reshape(len(points), problem.num_variables)


def energy(problem: BlockQubo, x: NDArray[np.bool_]) -> float:
    """``offset + sum_ij Q_ij x_i x_j`` term by term."""
    q, chosen = problem.dense(), np.flatnonzero(x)
    return problem.offset + sum(float(q[i, j]) for i in chosen for j in chosen)


def minimum(problem: BlockQubo) -> float:
    """The lowest energy of a small problem, by enumeration."""
    return min(energy(problem, x) for x in feasible_points(problem))


def swaps(problem: BlockQubo, x: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """Every assignment that exchanges a kept and a pruned variable of one group."""
    for kept, pruned in product(np.flatnonzero(~x), np.flatnonzero(x)):
        if problem.labels[kept] == problem.labels[pruned]:
            other = x.copy()
            other[kept], other[pruned] = True, False
            yield other


def random_feasible(rng: np.random.Generator, problem: BlockQubo) -> NDArray[np.bool_]:
    """A random assignment that meets the counts."""
    x = np.zeros(problem.num_variables, dtype=bool)
    for group, count in enumerate(problem.num_pruned):
        x[rng.permutation(np.flatnonzero(problem.labels == group))[:count]] = True
    return x


def random_problem(
    rng: np.random.Generator, n: int, num_pruned: int | tuple[int, ...], labels: object = None
) -> BlockQubo:
    """A dense indefinite problem with couplings of both signs."""
    return BlockQubo(rng.normal(size=(n, n)), num_pruned, float(rng.normal()), labels)


def random_batch(
    rng: np.random.Generator, rows: int, n: int, counts: list[int], labels: object = None, shared: bool = True
) -> BlockBatch:
    """A batch on random Gram matrices, with linear terms and offsets."""
    inputs = rng.normal(size=(n + 5, n) if shared else (rows, n + 5, n))
    return BlockBatch(
        hessian=torch.tensor(np.swapaxes(inputs, -1, -2) @ inputs),
        values=torch.tensor(rng.normal(size=(rows, n))),
        linear=torch.tensor(rng.normal(size=(rows, n))),
        offset=torch.tensor(rng.normal(size=rows)),
        labels=torch.zeros(n, dtype=torch.long) if labels is None else torch.tensor(labels),
        num_pruned=torch.tensor([counts] * rows),
    )


def random_starts(rng: np.random.Generator, batch: BlockBatch) -> Tensor:
    """A feasible random assignment for every row."""
    return torch.tensor(np.array([random_feasible(rng, batch.problem(r)) for r in range(batch.num_rows)]))


def batch_energy(batch: BlockBatch, row: int, x: NDArray[np.bool_]) -> float:
    """``1/2 (u*x)' H (u*x) + l'x + offset`` of one row."""
    hessian = (batch.hessian if batch.shared else batch.hessian[row]).numpy()
    masked = batch.values[row].numpy() * x
    return float(masked @ hessian @ masked / 2 + batch.linear[row].numpy() @ x + float(batch.offset[row]))


@dataclass(frozen=True, eq=False)
class Layer:
    """A random layer: dense weights, inputs ``(tokens, d_in)`` and their Gram."""

    weight: Tensor
    inputs: Tensor
    gram: Gram

    def error(self, keep: Tensor) -> float:
        """Measured mean squared output error of the masked layer."""
        return float(self.row_errors(self.weight * keep).sum())

    def row_errors(self, weight: Tensor) -> Tensor:
        """``||(w_r - w0_r) X||^2 / N`` of every row."""
        moved = self.inputs @ (weight - self.weight).double().T
        return moved.square().sum(0) / len(self.inputs)

    def random_keep(self, pattern: str, density: float, seed: int = 0) -> Tensor:
        scores = torch.rand(self.weight.shape, generator=torch.Generator().manual_seed(seed))
        return keep_highest(scores, Pattern.parse(pattern), density)


def random_layer(rng: np.random.Generator, d_out: int, d_in: int, tokens: int = 0, dead: tuple[int, ...] = ()) -> Layer:
    """Correlated inputs, so that the couplings matter; ``dead`` inputs are always zero."""
    mixing = rng.normal(size=(d_in, d_in)) / d_in**0.5 + np.eye(d_in) / 2
    inputs = rng.normal(size=(tokens or 3 * d_in, d_in)) @ mixing
    inputs[:, list(dead)] = 0
    accumulator = GramAccumulator("layer")
    accumulator.add(torch.tensor(inputs))
    return Layer(torch.tensor(rng.normal(size=(d_out, d_in))), torch.tensor(inputs), accumulator.finish(d_in))
