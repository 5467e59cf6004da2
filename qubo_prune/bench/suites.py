"""Named suites of block QUBOs of real layers: which families there are, and which instances of each."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qubo_prune.choices import BOUNDS
from qubo_prune.errors import InputError, did_you_mean

#: What blocks are emitted from: a Gram, a Gram for weights that adapt, the Fisher matrix of a loss.
HESSIANS = ("gram", "compensated", "fisher")
#: Of the suites: raised whenever an instance of theirs changes.
VERSION = 2


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

    def part(self, names: Iterable[str] | None = None, sizes: Iterable[int] | None = None) -> Family:
        """The family with those instances alone that are asked for: by its own name or theirs, and by n."""
        names, sizes = None if names is None else set(names), None if sizes is None else set(sizes)
        everyone = names is None or self.name in names
        left = {
            density: tuple(
                n
                for n in widths
                if (sizes is None or n in sizes) and (everyone or self.instance(n, density) in (names or ()))
            )
            for density, widths in self.sizes.items()
        }
        return replace(self, sizes={density: widths for density, widths in left.items() if widths})


@dataclass(frozen=True)
class Effort:
    """How long what a suite is made of is searched for a proof.

    Attributes:
        proof_time: seconds for the branch and bound of each instance.
        bounds: kinds of certified bounds (:data:`~qubo_prune.choices.BOUNDS`) that are tried where the size allows
            them; all of them if empty.
    """

    proof_time: float = 10.0
    bounds: tuple[str, ...] = ()


_SMALL, _MIDDLE, _LARGE = (12, 16, 24, 32), (64, 128), (256, 512)


def _sizes(half: Iterable[int], others: Sequence[int]) -> dict[float, tuple[int, ...]]:
    return {0.3: tuple(others), 0.5: tuple(half), 0.75: tuple(others)}


def _smollm2(short: str) -> str:
    part = "mlp" if short in ("down", "gate") else "self_attn"
    return f"model.layers.14.{part}.{short}_proj"


_QUERY = "couplings of middle strength, the whole row among them"
_OUTPUT = "inputs that follow one another closely: the hardest rows of the model, the whole row among them"
_DOWN = "inputs that are nearly uncorrelated: blocks are easy, whole rows of 1536 are long"

STANDARD = (
    Family("smollm2", _smollm2("q"), "q14", "gram", _sizes((*_SMALL, *_MIDDLE, *_LARGE, 576), (32, 128, 512)), _QUERY),
    Family("smollm2", _smollm2("o"), "o14", "gram", _sizes((*_SMALL, *_MIDDLE, *_LARGE, 576), (32, 128, 512)), _OUTPUT),
    Family(
        "smollm2",
        _smollm2("down"),
        "down14",
        "gram",
        _sizes((16, 32, *_MIDDLE, *_LARGE, 1024, 1536), (128, 1024, 1536)),
        _DOWN,
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
    Family("crepe", "blocks.2.conv", "conv3", "fisher", {0.5: (12, 256)}, "gradients of the loss, across rows"),
    Family(
        "smollm2-short",
        _smollm2("o"),
        "o14",
        "gram",
        {0.5: (16, 64, 256, 576)},
        "the hardest rows of a language model: easy blocks, one of 256 and a whole row",
    ),
    Family("smollm2-short", _smollm2("o"), "o14", "compensated", {0.5: (32,)}, "weights that adapt"),
)

#: ``standard`` is what is compared on. ``smoke`` is made and run within about a minute: a whole row and a block of 256
#: that tell solvers apart, beside easy ones; too few to rank them by.
SUITES: Mapping[str, tuple[Family, ...]] = {"standard": STANDARD, "smoke": SMOKE}
#: What is spent on the instances of a suite, where that is not the default.
EFFORTS: Mapping[str, Effort] = {"smoke": Effort(proof_time=1.0, bounds=("plain", "trace"))}


def suite_families(name: str) -> tuple[Family, ...]:
    """The families of a suite.

    Raises:
        InputError: there is no such suite.
    """
    if name not in SUITES:
        raise InputError(f"There is no suite {name!r}{did_you_mean(name, SUITES)}; use one of {', '.join(SUITES)}.")
    return SUITES[name]


def suite_effort(name: str) -> Effort:
    """What is spent on the instances of a suite."""
    return EFFORTS.get(name, Effort())


def part_of(
    suite: str, families: Sequence[Family], names: Sequence[str] | None, sizes: Sequence[int] | None
) -> tuple[Family, ...]:
    """Families with those instances alone that are asked for; the others are left out.

    Args:
        suite: its name, for messages.
        families: all of them.
        names: of families or of instances; all where ``None``.
        sizes: n; all where ``None``.

    Raises:
        InputError: nothing is left, or one of the names is none.
    """
    known = [each for family in families for each in (family.name, *family.instances)]
    parts = tuple(part for family in families if (part := family.part(names, sizes)).sizes)
    if not parts or not set(names or ()) <= set(known):
        widths = {n for family in families for own in family.sizes.values() for n in own}
        raise none_such(suite, names, [family.name for family in families], known, widths)
    return parts


def none_such(
    suite: str, names: Sequence[str] | None, families: Sequence[str], known: Sequence[str], widths: Iterable[int]
) -> InputError:
    """What to say when a suite has none of the instances that are asked for."""
    near = "".join(did_you_mean(name, known) for name in names or () if name not in known)
    return InputError(
        f"The suite {suite!r} has no such instances{near}; its families are {', '.join(families)}, its sizes "
        f"{', '.join(map(str, sorted(widths)))}."
    )


def definition(families: Sequence[Family], effort: Effort) -> str:
    """A digest of all that the problems of a suite, and what is known of them, follow from; 12 letters."""
    plain = [
        [
            family.origin,
            family.layer,
            family.short,
            family.hessian,
            sorted((d, list(n)) for d, n in family.sizes.items()),
        ]
        for family in families
    ]
    # with a kind that is new, more is proven where all are tried
    told = json.dumps([VERSION, plain, effort.proof_time, effort.bounds or ["all", *BOUNDS]])
    return hashlib.sha256(told.encode()).hexdigest()[:12]
