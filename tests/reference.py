"""Slow and obvious: what the tests hold the package against. Enumeration, dense float64, loops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qubo_prune.hessian import Gram, GramAccumulator
from qubo_prune.masks import Pattern, keep_highest
from qubo_prune.problem import BlockBatch, BlockQubo, FactorForm


def feasible_points(problem: BlockQubo) -> NDArray[np.bool_]:
    """Every feasible assignment of a small problem, ``(k, n)``."""
    if problem.num_budgets:
        points = np.array(list(product((False, True), repeat=problem.num_variables)))
        return points[[meets(problem, x) for x in points]]
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


def meets(problem: BlockQubo, x: NDArray[np.bool_]) -> bool:
    """Counts and budgets, sum by sum; sums without the rounding of their order."""
    counts = [sum(x[problem.labels == group]) == count for group, count in enumerate(problem.num_pruned)]
    sums = [math.fsum(costs[x]) - least for costs, least in zip(problem.costs, problem.budget, strict=True)]
    return all(counts) and all(over >= -1e-11 * np.abs(problem.costs).sum() for over in sums)


def elementary_moves(problem: BlockQubo, x: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """Where a flip of a variable without a count leads to, or a swap of two of one group, as far as it is allowed."""
    flips = [(i,) for i in range(problem.num_variables)]
    for move in [*flips, *product(np.flatnonzero(x), np.flatnonzero(~x))]:
        other = x.copy()
        other[list(move)] = ~other[list(move)]
        if meets(problem, other):
            yield other


def budgeted_problem(rng: np.random.Generator, n: int, kind: str) -> BlockQubo:
    """A dense problem with budgets that bind.

    Args:
        rng: random numbers.
        n: a multiple of 3.
        kind: ``count``, ``groups`` (of three, one each), ``alone`` (no counts), ``two`` (budgets, of both signs, no
            counts), ``fractions`` (of a count), ``factor`` (form, no counts).
    """
    inputs, weights = rng.normal(size=(n, n + 2)), rng.normal(size=n)
    q: Any = weights[:, None] * (inputs @ inputs.T) * weights / n
    costs = rng.integers(1, 20, size=n).astype(float)
    if kind == "groups":
        return BlockQubo(q, [1] * (n // 3), 0.5, np.arange(n) // 3, costs=costs, budget=0.4 * costs.sum())
    if kind == "two":
        both = np.stack([costs, -rng.permutation(costs)])
        return BlockQubo(q, None, 0.5, costs=both, budget=[0.4 * costs.sum(), -0.7 * costs.sum()])
    if kind == "factor":
        form = FactorForm(np.abs(rng.normal(size=n)), rng.normal(size=(n, 2)))
        return BlockQubo(form, None, costs=costs, budget=costs.sum() / 2)
    count = None if kind == "alone" else n // 2
    if kind == "fractions":
        costs = rng.random(n)
    highest = np.sort(costs)[-(n // 2) :].sum()
    return BlockQubo(q, count, 0.5, costs=costs, budget=0.85 * highest)


BUDGETS = ("count", "groups", "alone", "two", "fractions", "factor")


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
