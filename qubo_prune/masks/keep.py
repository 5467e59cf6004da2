"""Keep masks (``True`` = keep): patterns with exact counts, and their bit-packed files."""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from qubo_prune.choices import PATTERNS
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.files.checksummed import Damaged, Sealed, read_sealed, write_sealed
from qubo_prune.masks.enforce import enforce as enforce
from qubo_prune.models.names import plain_name

#: What a file of masks is; with its checksum since version 2.
_MASKS = "qubo_prune.keep_masks.v2"
#: Bytes of packed bits from which on they get pages of their own.
_PAGES = 2**14


@dataclass(frozen=True)
class Pattern:
    """Where the budget is balanced.

    ``row``: every output row holds ``round(density * d_in)`` weights. ``layer``: the whole matrix
    holds ``round(density * d_out * d_in)``. ``n:m``: every m consecutive weights along d_in hold n.
    ``round`` is Python's (halves go to the even number).
    """

    name: str
    keep: int = 0
    of: int = 0

    @classmethod
    def parse(cls, text: str | Pattern) -> Pattern:
        """Read ``"row"``, ``"layer"`` or ``"n:m"`` such as ``"2:4"``."""
        if isinstance(text, Pattern):
            return text
        if text in ("row", "layer"):
            return cls(text)
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match is None or not 0 < int(match[1]) <= int(match[2]):
            raise InputError(
                f"There is no pattern {text!r}{did_you_mean(text, PATTERNS)}; use 'row', 'layer' or n:m with 0 < n "
                "<= m such as '2:4'."
            )
        return cls(text, int(match[1]), int(match[2]))

    def check(self, density: float, name: str = "", d_in: int | None = None) -> None:
        """Raise :class:`InputError` if the density or a layer's width contradicts the pattern."""
        if not 0 < density <= 1:
            raise InputError(
                f"The density is {density}; it is the kept share and must be above 0 and at most 1, "
                "for example 0.5 to prune half of the weights."
            )
        if self.of and abs(density - self.keep / self.of) > 1e-9:
            raise InputError(
                f"The pattern {self.name} keeps {self.keep / self.of:g} of the weights but the density is "
                f"{density:g}; give density {self.keep / self.of:g} or another pattern."
            )
        if self.name == "row" and d_in is not None and round(density * d_in) == 0:
            raise InputError(
                f"The density {density:g} keeps none of the {d_in} weights in a row of layer {name!r}; give at "
                f"least {1 / d_in:.2g}, the pattern 'layer', or exclude that layer."
            )
        if self.of and d_in is not None and d_in % self.of:
            raise InputError(
                f"The layer {name!r} has {d_in} inputs, which {self.of} does not divide; use another "
                f"pattern than {self.name} or exclude that layer."
            )

    def labels(self, d_in: int) -> Int[Tensor, " d_in"]:
        """Group number of each column within a row (one group for ``row`` and ``layer``)."""
        return torch.arange(d_in) // (self.of or d_in)

    def num_kept(self, shape: tuple[int, int], density: float) -> int:
        """The exact number of weights a layer of that shape keeps."""
        rows, d_in = shape
        if self.name == "layer":
            return round(density * rows * d_in)
        return rows * (d_in // self.of * self.keep if self.of else round(density * d_in))

    def groups(self, matrix: Tensor) -> Tensor:
        """A matrix ``(d_out, d_in)`` as ``(groups, size)``, one row per budget."""
        return matrix.reshape(1, -1) if self.name == "layer" else matrix.reshape(-1, self.of or matrix.shape[1])

    def violations(self, keep: Bool[Tensor, "r d_in"], density: float) -> int:
        """How many groups do not hold exactly the asked number of weights."""
        return int(self.broken(keep, density).sum())

    def broken(self, keep: Bool[Tensor, "r d_in"], density: float) -> Bool[Tensor, " groups"]:
        """Which groups do not hold exactly the asked number of weights."""
        grouped = self.groups(keep)
        wanted = self.num_kept((keep.shape[0], keep.shape[1]), density) // max(1, len(grouped))
        return self.counts(keep) != wanted

    def counts(self, keep: Bool[Tensor, "r d_in"]) -> Int[Tensor, " groups"]:
        """How many weights each group holds."""
        return self.groups(keep).sum(1)

    def same_counts(self, keep: Bool[Tensor, "r d_in"], other: Bool[Tensor, "r d_in"]) -> bool:
        """True if every group holds as many weights in one mask as in the other."""
        return torch.equal(self.counts(keep), self.counts(other))


def keep_highest(scores: Float[Tensor, "r d_in"], pattern: Pattern, density: float) -> Bool[Tensor, "r d_in"]:
    """Keep exactly the pattern's count of highest scores; of equal ones the later column stays."""
    shape = scores.shape
    grouped = pattern.groups(scores)
    per_group = pattern.num_kept((shape[0], shape[1]), density) // len(grouped)
    num_pruned = grouped.shape[1] - per_group
    if num_pruned == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    last = kth_lowest(grouped, num_pruned)
    below, equal = grouped < last, grouped == last
    short = num_pruned - below.sum(1, keepdim=True)
    keep = ~(below | (equal & (equal.cumsum(1) <= short)))
    return keep.reshape(shape)


def kth_lowest(values: Float[Tensor, "r d"], k: int) -> Float[Tensor, "r 1"]:
    """The k-th lowest value of each row, counted from 1.

    On an accelerator by ``topk``: its ``kthvalue`` has one thread block a row, and no deterministic version on CUDA.
    """
    if values.device.type == "cpu":
        return values.kthvalue(k, dim=1, keepdim=True).values
    return values.topk(k, dim=1, largest=False, sorted=False).values.amax(1, keepdim=True)


def keep_highest_together(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Keep ``round(density * weights)`` of the highest scores of several matrices by one threshold."""
    flat = torch.cat([score.flatten() for score in scores.values()])[None, :]
    kept = keep_highest(flat, Pattern("layer"), density)[0]
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


def packed_bits(mask: Bool[Tensor, ...]) -> UInt8[Tensor, " bytes"]:
    """A bool tensor in memory order, eight entries in a byte, the first in its highest bit."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpacked_bits(packed: UInt8[Tensor, " bytes"], shape: tuple[int, ...]) -> Bool[Tensor, ...]:
    """The tensor of this shape that :func:`packed_bits` packed."""
    bits = np.unpackbits(packed.numpy(), count=math.prod(shape))
    return torch.from_numpy(bits.astype(bool)).reshape(shape)


def _off_the_heap(bits: np.ndarray) -> np.ndarray:
    """The same in pages of its own.

    What stays for a whole run would settle in holes that the work on a layer leaves in the heap, and the work on the
    next one would then take new memory.
    """
    if bits.nbytes < _PAGES:
        return bits
    pages = np.frombuffer(mmap.mmap(-1, bits.nbytes), np.uint8)
    pages[:] = bits
    return pages


class KeepMasks(Mapping[str, Tensor]):
    """Keep masks by parameter name, held bit-packed (1 bit a weight); items are bool tensors."""

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        self._packed: dict[str, tuple[tuple[int, ...], np.ndarray]] = {}
        for name, mask in (masks or {}).items():
            self[name] = mask

    def __setitem__(self, name: str, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise InputError(f"The mask {name!r} has type {mask.dtype}; masks are bool, True = keep.")
        self._packed[name] = (tuple(mask.shape), _off_the_heap(packed_bits(mask).numpy()))

    def __getitem__(self, name: str) -> Tensor:
        shape, packed = self._packed[name]
        return unpacked_bits(torch.from_numpy(packed), shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file of packed bits with a checksum; shapes stand in its metadata."""
        shapes = {name: list(shape) for name, (shape, _) in self._packed.items()}
        packed = {name: torch.from_numpy(bits) for name, (_, bits) in self._packed.items()}
        write_sealed(path, _MASKS, Sealed(packed, {"shapes": shapes}))

    @classmethod
    def load(cls, path: str | Path) -> KeepMasks:
        """Read what :meth:`save` wrote; raises :class:`InputError` if it is not such a file, or damaged."""
        masks = cls()
        try:
            content = read_sealed(path, _MASKS)
            for name, shape in content.info["shapes"].items():
                packed = content.tensors[name].numpy()
                if min(shape, default=0) < 0 or packed.dtype != np.uint8 or packed.size != (math.prod(shape) + 7) // 8:
                    raise InputError(f"{path}: mask {name!r} does not fit its shape {shape}.")
                masks._packed[name] = (tuple(shape), packed)
        except Damaged as error:
            raise InputError(f"{error} Pass a masks.safetensors of this package, as it was written.") from error
        except FileNotFoundError:
            raise InputError(f"There is no mask file {path}.") from None
        except OSError as error:
            raise InputError(f"The mask file {path} cannot be read: {error.strerror}.") from error
        except InputError:
            raise
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{path} does not list the shapes of its masks; write it anew.") from error
        return masks

    def apply(self, model: nn.Module) -> None:
        """Set the pruned weights of a model to zero, in place."""
        with torch.no_grad():
            for name, parameter in self._parameters(model):
                parameter.masked_fill_(~self[name].to(parameter.device), 0)

    def verify(self, model: nn.Module) -> dict[str, int]:
        """Count, by parameter name, the pruned weights that are not zero; empty if all is well."""
        wrong = {}
        for name, parameter in self._parameters(model):
            count = int(((parameter != 0) & ~self[name].to(parameter.device)).sum())
            if count:
                wrong[name] = count
        return wrong

    def _parameters(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        named = model.named_parameters(remove_duplicate=False)
        parameters = {plain_name(name): parameter for name, parameter in named}
        for name, (shape, _) in self._packed.items():
            if name not in parameters or tuple(parameters[name].shape) != shape:
                given = tuple(parameters[name].shape) if name in parameters else "missing"
                raise InputError(f"The mask {name!r} has shape {shape}, the model's parameter is {given}.")
            yield name, parameters[name]
