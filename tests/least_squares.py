"""Correlated inputs, and the weights that fit them best, by dense algebra."""

from __future__ import annotations

import torch
from torch import Tensor

from qubo_prune.hessian import Gram


def gram(seed: int, d: int, tokens: int = 40) -> Gram:
    """Correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, d, generator=draw, dtype=torch.float64)
    inputs = inputs @ torch.randn(d, d, generator=draw, dtype=torch.float64)
    return Gram(2 * inputs.T @ inputs / tokens, tokens)


def refitted(weight: Tensor, hessian: Tensor, x: Tensor) -> tuple[Tensor, float]:
    """The best row with the weights x pruned, and its ``1/2 (v - w)'H(v - w)``, by dense least squares."""
    kept, best = ~x, torch.zeros_like(weight)
    if kept.any():
        best[kept] = torch.linalg.solve(hessian[kept][:, kept], (hessian @ weight)[kept])
    change = best - weight
    return best, float(change @ hessian @ change) / 2
