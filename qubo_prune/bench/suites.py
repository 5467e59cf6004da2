"""Named suites of block QUBOs of real layers: which families there are, and which instances of each."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qubo_prune.errors import InputError, did_you_mean

#: What blocks are emitted from: a Gram, a Gram for weights that adapt, the Fisher matrix of a loss.
HESSIANS = ("gram", "compensated", "fisher")
#: Of the suites: raised whenever an instance of theirs changes.
VERSION = 1


@dataclass(frozen=True)
class Family:
    """Instances of one layer and one local Hessian.

    Attributes:
        origin: one of :data:`qubo_prune.bench.origins.ORIGINS`.
        layer: its full name in the model.
        short: its name in the names of instances.
        hessian: one of :data:`HESSIANS`.
        sizes: block sizes n by density, the kept share.
        about: what is special about it, one sentence.
    """

    origin: str
    layer: str
    short: str
    hessian: str
    sizes: Mapping[float, Sequence[int]]
    about: str

    @property
    def name(self) -> str:
        """Origin, layer and Hessian."""
        return f"{self.origin}-{self.short}-{self.hessian}"

    def instance(self, n: int, density: float) -> str:
        """Name of one instance."""
        return f"{self.name}-n{n:04d}-d{round(100 * density):02d}"

    def seed(self, n: int, density: float) -> int:
        """The same for the same instance everywhere."""
        return zlib.crc32(self.instance(n, density).encode())

    @property
    def instances(self) -> list[str]:
        """Names of all."""
        return [self.instance(n, density) for density, sizes in self.sizes.items() for n in sizes]


_SMALL, _MIDDLE, _LARGE = (12, 16, 24, 32), (64, 128), (256, 512)


def _sizes(half: Iterable[int], others: Sequence[int]) -> dict[float, tuple[int, ...]]:
    return {0.3: tuple(others), 0.5: tuple(half), 0.75: tuple(others)}


def _smollm2(short: str) -> str:
    part = "mlp" if short in ("down", "gate") else "self_attn"
    return f"model.layers.14.{part}.{short}_proj"


_QUERY = "couplings of middle strength, the whole row among them"
_OUTPUT = "inputs that follow one another closely: the hardest rows of the model, the whole row among them"
_DOWN = "inputs that are nearly uncorrelated: easy"

STANDARD = (
    Family("smollm2", _smollm2("q"), "q14", "gram", _sizes((*_SMALL, *_MIDDLE, *_LARGE, 576), (32, 128, 512)), _QUERY),
    Family("smollm2", _smollm2("o"), "o14", "gram", _sizes((*_SMALL, *_MIDDLE, *_LARGE, 576), (32, 128, 512)), _OUTPUT),
    Family(
        "smollm2", _smollm2("down"), "down14", "gram", _sizes((16, 32, *_MIDDLE, *_LARGE, 1024), (128, 1024)), _DOWN
    ),
    Family(
        "dinov2",
        "backbone.encoder.layer.6.attention.o_proj",
        "out6",
        "gram",
        _sizes((16, 32, *_MIDDLE, 256, 384), (128,)),
        "a vision transformer's attention output, with its whole row",
    ),
    Family(
        "dinov2",
        "backbone.encoder.layer.6.mlp.fc2",
        "fc6",
        "gram",
        _sizes((32, *_MIDDLE, *_LARGE, 1024), (256,)),
        "the second linear layer of a vision transformer's MLP",
    ),
    Family(
        "crepe",
        "blocks.2.conv",
        "conv3",
        "gram",
        _sizes((12, 32, *_MIDDLE, *_LARGE, 1024), (128, 512)),
        "a convolution along time, unfolded: neighbouring samples are nearly equal",
    ),
    Family(
        "smollm2",
        _smollm2("q"),
        "q14",
        "compensated",
        _sizes((16, 32, *_MIDDLE, *_LARGE), (64,)),
        "what is left of the couplings once the other weights of the row have adapted",
    ),
    Family(
        "smollm2",
        _smollm2("o"),
        "o14",
        "compensated",
        _sizes((16, 32, *_MIDDLE, *_LARGE), (64,)),
        "the same for the hardest rows",
    ),
    Family(
        "dinov2",
        "backbone.encoder.layer.6.attention.o_proj",
        "out6",
        "compensated",
        _sizes((16, 64, 128, 256), ()),
        "the same in a vision transformer",
    ),
    Family(
        "smollm2",
        _smollm2("q"),
        "q14",
        "fisher",
        {0.5: (12, 24, *_MIDDLE, 256, 1024, 4096)},
        "across rows, from gradients of the next-token loss; above 128 variables in factor form of rank 128",
    ),
    Family(
        "dinov2",
        "backbone.encoder.layer.6.mlp.fc2",
        "fc6",
        "fisher",
        {0.5: (24, 128, 1024, 4096)},
        "across rows, from gradients of a classifier's loss",
    ),
    Family(
        "crepe",
        "blocks.2.conv",
        "conv3",
        "fisher",
        {0.5: (12, 64, 512, 4096)},
        "across rows, from gradients of a pitch tracker's loss",
    ),
)

SMOKE = (
    Family("crepe", "blocks.2.conv", "conv3", "gram", {0.5: (8, 12, 32, 128)}, "a convolution along time, unfolded"),
    Family("crepe", "blocks.2.conv", "conv3", "compensated", {0.5: (16,), 0.75: (16,)}, "weights that adapt"),
    Family("crepe", "blocks.2.conv", "conv3", "fisher", {0.5: (12, 256)}, "gradients of the loss, across rows"),
)

#: ``standard`` is what is compared on; ``smoke`` takes seconds and says nothing about solvers.
SUITES: Mapping[str, tuple[Family, ...]] = {"standard": STANDARD, "smoke": SMOKE}


def suite_families(name: str) -> tuple[Family, ...]:
    """The families of a suite.

    Raises:
        InputError: there is no such suite.
    """
    if name not in SUITES:
        raise InputError(f"There is no suite {name!r}{did_you_mean(name, SUITES)}; use one of {', '.join(SUITES)}.")
    return SUITES[name]
