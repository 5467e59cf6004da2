"""Layers whose numbers are hostile: what real checkpoints and odd calibration data bring, made small."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from reference import Layer
from torch import Tensor

from qubo_prune.hessian import GramAccumulator

ROWS, WIDTH, TOKENS = 6, 24, 72


def _mixed(rng: np.random.Generator, tokens: int = TOKENS) -> NDArray[np.float64]:
    """Correlated inputs, so that the couplings matter."""
    return rng.normal(size=(tokens, WIDTH)) @ (rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5 + np.eye(WIDTH) / 2)


def _weights(rng: np.random.Generator) -> Tensor:
    return torch.tensor(rng.normal(size=(ROWS, WIDTH)), dtype=torch.float32)


def _layer(weight: Tensor, inputs: NDArray[np.float64], dtype: torch.dtype = torch.float32) -> Layer:
    """The Gram as a run takes it, from inputs in the given dtype; the reference reads the same in float64."""
    given = torch.tensor(inputs).to(dtype)
    accumulator = GramAccumulator("layer")
    for part in given.split(50):
        accumulator.add(part)
    return Layer(weight, given.double(), accumulator.finish(weight.shape[1]))


def duplicates(rng: np.random.Generator) -> Layer:
    """Every input is there twice, bit by bit."""
    inputs = _mixed(rng)
    inputs[:, WIDTH // 2 :] = inputs[:, : WIDTH // 2]
    return _layer(_weights(rng), inputs)


def constant(rng: np.random.Generator) -> Layer:
    """A third of the inputs never change, one of them is large."""
    inputs = _mixed(rng)
    inputs[:, ::3] = 1.0
    inputs[:, 3] = 1000.0
    return _layer(_weights(rng), inputs)


def dead(rng: np.random.Generator) -> Layer:
    """A third of the inputs are always zero."""
    inputs = _mixed(rng)
    inputs[:, 1::3] = 0.0
    return _layer(_weights(rng), inputs)


def one_alive(rng: np.random.Generator) -> Layer:
    """All inputs but one are always zero."""
    inputs = np.zeros((TOKENS, WIDTH))
    inputs[:, 5] = rng.normal(size=TOKENS)
    return _layer(_weights(rng), inputs)


def all_dead(rng: np.random.Generator) -> Layer:
    """Every input is always zero."""
    return _layer(_weights(rng), np.zeros((TOKENS, WIDTH)))


def ill_conditioned(rng: np.random.Generator) -> Layer:
    """A Gram of condition number 1e12, from inputs in float64."""
    left, _ = np.linalg.qr(rng.normal(size=(TOKENS, WIDTH)))
    right, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
    return _layer(_weights(rng), left * np.logspace(0, -6, WIDTH) @ right.T, torch.float64)


def uneven(rng: np.random.Generator) -> Layer:
    """Inputs of which the largest is a million times the smallest: condition number 1e12 by scale alone."""
    return _layer(_weights(rng), _mixed(rng) * np.logspace(0, -6, WIDTH))


def one_token(rng: np.random.Generator) -> Layer:
    """A Gram of rank one."""
    return _layer(_weights(rng), _mixed(rng, 1))


def few_tokens(rng: np.random.Generator) -> Layer:
    """A singular Gram: fewer tokens than inputs."""
    return _layer(_weights(rng), _mixed(rng, 7))


def massive(rng: np.random.Generator) -> Layer:
    """One input is a million times as large as the others."""
    inputs = _mixed(rng)
    inputs[:, 7] *= 1e6
    return _layer(_weights(rng), inputs)


def half(rng: np.random.Generator) -> Layer:
    """float16 weights and inputs at the rim of that type, whose squares overflow it."""
    inputs = _mixed(rng)
    inputs *= 60_000 / np.abs(inputs).max()
    weight = _weights(rng)
    return _layer((weight * (60_000 / weight.abs().max())).half(), inputs, torch.float16)


def brain(rng: np.random.Generator) -> Layer:
    """bfloat16 weights and inputs, whose squares overflow float32."""
    return _layer((_weights(rng) * 1e25).bfloat16(), _mixed(rng) * 1e25, torch.bfloat16)


def faint(rng: np.random.Generator) -> Layer:
    """Inputs whose squares underflow float32, though none is zero."""
    return _layer(_weights(rng), _mixed(rng) * 1e-25)


def subnormal(rng: np.random.Generator) -> Layer:
    """float16 weights and inputs below its normal numbers."""
    return _layer((_weights(rng) * 1e-6).half(), _mixed(rng) * 1e-6, torch.float16)


def ties(rng: np.random.Generator) -> Layer:
    """Equal weights on equal inputs: every score and every flip cost is that of all others."""
    return _layer(torch.ones(ROWS, WIDTH), np.repeat(rng.normal(size=(TOKENS, 1)), WIDTH, axis=1))


def zero_rows(rng: np.random.Generator) -> Layer:
    """Half of the rows and a column of the weights are zero already."""
    weight = _weights(rng)
    weight[::2], weight[:, 4] = 0.0, 0.0
    return _layer(weight, _mixed(rng))


LAYERS: dict[str, Callable[[np.random.Generator], Layer]] = {
    make.__name__: make
    for make in (
        duplicates,
        constant,
        dead,
        one_alive,
        all_dead,
        ill_conditioned,
        uneven,
        one_token,
        few_tokens,
        massive,
        half,
        brain,
        faint,
        subnormal,
        ties,
        zero_rows,
    )
}
