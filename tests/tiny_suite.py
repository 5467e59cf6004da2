"""Suites of block QUBOs of tiny models: made in a second, so that every test may have its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tiny
import torch
from torch import Tensor

from qubo_prune.bench.making import make
from qubo_prune.bench.origins import Origin
from qubo_prune.bench.suite import Suite
from qubo_prune.bench.suites import Family
from qubo_prune.data import TensorSamples
from qubo_prune.errors import InputError
from qubo_prune.solver import Capabilities, Solver, SolveRequest, SolveResult, Status, ranked_answers


def inputs(count: int = 48) -> Tensor:
    """What :func:`mlp_origin` reads: correlated, so that couplings matter."""
    draw = torch.Generator().manual_seed(5)
    return torch.randn(count, 12, generator=draw) @ torch.randn(12, 12, generator=draw) / 2


def mlp_origin(samples: int = 16, loss: Any = "classification") -> Origin:
    """Three linear layers, ``0`` (20 x 12), ``2`` (16 x 20) and ``4`` (4 x 16); Grams over 48 samples."""
    read = inputs()
    labels = torch.randint(0, 4, (len(read),), generator=torch.Generator().manual_seed(6))
    return Origin(
        "mlp",
        "a tiny perceptron",
        "random inputs",
        tiny.mlp().eval(),
        list(torch.split(read, 16)),
        TensorSamples(read[:samples], labels[:samples]),
        loss,
    )


def cnn_origin() -> Origin:
    """Convolutions, of which ``0`` is 8 x 36."""
    images = tiny.images(12)
    labels = torch.arange(12) % 5
    return Origin(
        "cnn",
        "a tiny convolutional network",
        "random images",
        tiny.cnn(),
        list(torch.split(images, 4)),
        TensorSamples(images, labels),
        "classification",
    )


def llama_origin() -> Origin:
    """A language model of two decoder layers of 16."""
    tokens = tiny.tokens(6, 16)
    return Origin(
        "llama",
        "a tiny language model",
        "random tokens",
        tiny.llama(),
        list(torch.split(tokens, 2)),
        TensorSamples(tokens),
        "next-token",
    )


FAMILIES = (
    Family("mlp", "2", "hidden", "gram", {0.5: (8, 12, 20), 0.75: (8,)}, "random inputs"),
    Family("mlp", "2", "hidden", "compensated", {0.5: (10,)}, "weights that adapt"),
    Family("mlp", "2", "hidden", "fisher", {0.5: (10, 24)}, "across rows"),
    Family("cnn", "0", "conv", "gram", {0.5: (30,)}, "unfolded images"),
)
#: Two easy problems and one in factor form, where only the handling of runs matters.
FEW = (
    Family("mlp", "2", "hidden", "gram", {0.5: (8, 12)}, "random inputs"),
    Family("mlp", "2", "hidden", "fisher", {0.5: (24,)}, "across rows"),
)


def made(folder: Path, families: Sequence[Family] = FAMILIES, **settings: Any) -> Suite:
    """The suite of these families in a folder."""
    known = {"mlp": mlp_origin, "cnn": cnn_origin}
    origins = [known[name]() for name in dict.fromkeys(family.origin for family in families)]
    return make(folder, "tiny", families, origins, **settings)


@dataclass(frozen=True)
class Breaks(Solver):
    """Raises what a stranger's solver may raise; its message has several lines."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise RuntimeError('no "licence",\nnor\r\na server')


@dataclass(frozen=True)
class Refuses(Solver):
    """Takes no problem at all, and says so only when asked."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise InputError("This one is refused.")


@dataclass(frozen=True)
class Small(Solver):
    """Takes up to ten variables, and gives its start back."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False, max_variables=10)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        return ranked_answers(request.problem, request.warm_start, Status.FEASIBLE)
