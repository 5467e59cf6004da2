"""Pruned weights as bit-packed files: safetensors with one bit for each weight, and the values of those kept.

A packed tensor NAME stands in the file as ``NAME.mask`` (uint8, ``numpy.packbits`` of the flattened
keep mask) and ``NAME.values`` (the kept entries in their order, in the tensor's own type); any
other stands under its own name as it is. The metadata hold ``format``, a JSON table ``tensors`` of
shapes, types and hashes, and ``sha256``, the hash of that table. Everything comes back bit for bit,
payloads of NaN and the sign of zero included. Nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.files.atomic import written_whole
from qubo_prune.files.checksummed import as_bytes
from qubo_prune.masks.keep import KeepMasks

FORMAT = "qubo_prune.sparse.v1"

#: The types that are packed, each with an integer type that carries its bits.
_CARRIERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
_MASK, _VALUES = ".mask", ".values"


@dataclass(frozen=True)
class StoredSize:
    """How much room a tensor takes.

    Attributes:
        shape: of the tensor.
        dtype: its type, such as ``"bfloat16"``.
        kept: entries its mask keeps; None if it is stored as it is.
        stored: bytes in the file, without its part of the header.
        dense: bytes as a plain tensor.
    """

    shape: tuple[int, ...]
    dtype: str
    kept: int | None
    stored: int
    dense: int


@dataclass(frozen=True)
class _Entry:
    """A tensor's row in the table of a file; hashes are of the tensor's bytes and of the packed mask's."""

    shape: list[int]
    dtype: str
    sha256: str
    mask_sha256: str | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return int(getattr(torch, self.dtype).itemsize)

    @property
    def packed(self) -> bool:
        return self.mask_sha256 is not None

    def names(self, name: str) -> list[str]:
        return [name + _MASK, name + _VALUES] if self.packed else [name]

    @classmethod
    def read(cls, raw: dict[str, Any]) -> _Entry:
        entry = cls(**raw)
        if not isinstance(getattr(torch, entry.dtype), torch.dtype) or not isinstance(entry.shape, list):
            raise TypeError
        if not all(type(extent) is int and extent >= 0 for extent in entry.shape):
            raise TypeError
        return entry


def save_sparse(tensors: Mapping[str, Tensor], path: str | Path, masks: Mapping[str, Tensor] | None = None) -> None:
    """Write tensors, such as a state dict, each packed where that is smaller; a file that is there is replaced.

    The file appears under its name only once it is complete and on the disk. Tensors that are one
    and the same (tied weights) are stored once and come back as one.

    Args:
        tensors: by name, of any shape and device and any type that safetensors knows. Packed are
            float64, float32, float16 and bfloat16 of two or more dimensions.
        path: the file.
        masks: keep masks (``True`` = keep) by name, bool, in the tensor's shape. Tensors that have
            one are packed with it, even where that is larger, so that a kept weight that happens to
            be zero stays known as kept. Without a mask an entry counts as kept if any of its bits
            is set, which ``-0.0`` has.

    Raises:
        InputError: a mask has no tensor, does not fit it or prunes what is not ``+0.0``; a tensor or
            its name cannot be stored; or the file cannot be written.
    """
    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        raise InputError(f"{target} cannot be written: give a file in a folder that is there.")
    masks = {} if masks is None else masks
    for name in masks:
        if name not in tensors:
            raise InputError(
                f"The mask {name!r} has no tensor{did_you_mean(name, tensors)}; pass the tensors that the masks were "
                "made for, or leave that mask out."
            )
    table: dict[str, _Entry | dict[str, str]] = {}
    parts: dict[str, Tensor] = {}
    taken: set[int] = set()
    for first, *others in _tied(tensors):
        entry, stored = _pack(first, _plain(tensors[first], taken), _mask_of([first, *others], masks))
        if entry.packed and not tensors.keys().isdisjoint(stored):
            raise InputError(f"There are tensors {first!r} and {first + _MASK!r} or {first + _VALUES!r}; rename one.")
        parts |= stored
        table |= {first: entry, **{other: {"same_as": first} for other in others}}
    _write(target, parts, {name: table[name] for name in tensors})


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a file, dense, on the CPU and in the order in which they were saved.

    Raises:
        InputError: the file is missing, of another format, cut off or damaged.
    """
    with _opened(path) as (file, table, ties):
        found = {name: _read(file, name, entry) for name, entry in table.items()}
        return {name: found[first] for name, first in ties.items()}


def load_masks(path: str | Path) -> KeepMasks:
    """Read the keep masks of the packed tensors, without the values.

    Raises:
        InputError: as :func:`load_sparse`, but damaged values are not noticed.
    """
    with _opened(path) as (file, table, _):
        masks = KeepMasks()
        for name, entry in table.items():
            if entry.packed:
                masks[name] = torch.from_numpy(_read_mask(file, name, entry)).reshape(entry.shape)
        return masks


def sizes(path: str | Path) -> dict[str, StoredSize]:
    """The room each tensor takes, tied ones once, from the file's header alone.

    Raises:
        InputError: the file is missing, of another format or cut off.
    """
    with _opened(path) as (file, table, _):
        found = {}
        for name, entry in table.items():
            dense, kept = entry.size * entry.itemsize, None
            stored = dense
            if entry.packed:
                (kept,), (mask,) = (file.get_slice(part).get_shape() for part in (name + _VALUES, name + _MASK))
                stored = mask + kept * entry.itemsize
            found[name] = StoredSize(tuple(entry.shape), entry.dtype, kept, stored, dense)
        return found


def _tied(tensors: Mapping[str, Tensor]) -> list[list[str]]:
    """Names by tensor: those in one list are views of the same memory in the same way."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype)
        view = (*memory, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())
        groups.setdefault(view if tensor.numel() else name, []).append(name)
    return list(groups.values())


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise InputError(
            f"{name!r} is {tensor.layout} on {tensor.device}; only dense tensors that hold data can be stored, so "
            "convert it or leave it out."
        )
    if name == "__metadata__":
        raise InputError("No tensor of a safetensors file can have the name '__metadata__'; rename it.")


def _plain(tensor: Tensor, taken: set[int]) -> Tensor:
    """The tensor on the CPU, contiguous, alone in its memory, which safetensors asks for."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    memory = plain.untyped_storage()
    if memory.nbytes() != plain.nbytes or memory.data_ptr() in taken:
        return plain.clone()
    taken.add(memory.data_ptr())
    return plain


def _mask_of(names: list[str], masks: Mapping[str, Tensor]) -> Tensor | None:
    """The mask that was given for a tensor under any of its names."""
    given = [name for name in names if name in masks]
    if not given:
        return None
    keep = masks[given[0]].cpu()
    for other in given[1:]:
        if not torch.equal(masks[other].cpu(), keep):
            raise InputError(f"{given[0]!r} and {other!r} are one tensor but have different masks; pass one of them.")
    return keep


def _pack(name: str, tensor: Tensor, keep: Tensor | None) -> tuple[_Entry, dict[str, Tensor]]:
    """A tensor's row in the table and what is stored of it."""
    entry = _Entry(list(tensor.shape), str(tensor.dtype).removeprefix("torch."), _hash(tensor))
    if tensor.dtype not in _CARRIERS:
        if keep is not None:
            raise InputError(f"{name!r} has a mask but is {tensor.dtype}; only floating-point tensors can be packed.")
        return entry, {name: tensor}
    bits: NDArray[Any] = tensor.flatten().view(_CARRIERS[tensor.dtype]).numpy()
    kept = bits != 0 if keep is None else _checked_mask(name, tensor, keep, bits)
    mask = torch.from_numpy(np.packbits(kept))
    packed_bytes = len(mask) + int(kept.sum()) * tensor.itemsize
    if keep is None and (tensor.ndim < 2 or packed_bytes >= tensor.nbytes):
        return entry, {name: tensor}
    values = torch.from_numpy(bits[kept]).view(tensor.dtype)
    return replace(entry, mask_sha256=_hash(mask)), {name + _MASK: mask, name + _VALUES: values}


def _checked_mask(name: str, tensor: Tensor, keep: Tensor, bits: NDArray[Any]) -> NDArray[np.bool_]:
    if keep.dtype != torch.bool or keep.shape != tensor.shape:
        raise InputError(
            f"The mask {name!r} is {keep.dtype} of shape {tuple(keep.shape)}, its tensor has the shape "
            f"{tuple(tensor.shape)}; masks are bool (True = keep) and have the shape of their tensor."
        )
    kept: NDArray[np.bool_] = keep.flatten().numpy()
    wrong = np.count_nonzero(bits[~kept])
    if wrong:
        raise InputError(
            f"{wrong} pruned weights of {name!r} are not +0.0 and would be lost; call KeepMasks.apply(model) first."
        )
    return kept


def _hash(tensor: Tensor) -> str:
    # an empty tensor of numpy's has strides that torch cannot view as bytes
    content = as_bytes(tensor).numpy().data if tensor.numel() else b""
    return hashlib.sha256(content).hexdigest()


def _write(target: Path, parts: dict[str, Tensor], table: dict[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    text = json.dumps(table, default=asdict)
    metadata = {"format": FORMAT, "tensors": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    try:
        with written_whole(target) as aside:
            save_file(parts, aside, metadata=metadata)
    except KeyError as error:
        raise InputError(f"Tensors of type {error} cannot be stored in safetensors; convert them first.") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target} cannot be written ({error}); free some space or give another file.") from error


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, dict[str, _Entry], dict[str, str]]]:
    """The open file, its table, and for every name the one under which its tensor is stored."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(f"{path} is of the format {metadata.get('format')!r}, not {FORMAT!r}; use its reader.")
            if hashlib.sha256(metadata["tensors"].encode()).hexdigest() != metadata["sha256"]:
                raise _Damage("its table does not have the hash that was written")
            rows = json.loads(metadata["tensors"])
            ties = {name: row.get("same_as", name) for name, row in rows.items()}
            table = {name: _Entry.read(row) for name, row in rows.items() if ties[name] == name}
            if {*file.keys()} != {part for name, entry in table.items() for part in entry.names(name)}:
                raise _Damage("it does not hold the tensors of its table")
            yield file, table, ties
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"There is no file {path}; give one that save_sparse wrote.") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not a readable safetensors file ({error}); restore it or write it anew."
        ) from error
    except _Damage as damage:
        raise InputError(f"{path} is damaged: {damage}; restore it or write it anew.") from damage
    except (KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: its table cannot be read; restore it or write it anew.") from error


class _Damage(ValueError):
    """What a file holds contradicts itself."""


def _read(file: Any, name: str, entry: _Entry) -> Tensor:
    tensor = _unpack(file, name, entry) if entry.packed else file.get_tensor(name)
    if str(tensor.dtype) != f"torch.{entry.dtype}" or list(tensor.shape) != entry.shape:
        raise _Damage(f"{name!r} does not have the type and shape of the table")
    if _hash(tensor) != entry.sha256:
        raise _Damage(f"{name!r} does not have the hash that was written")
    return tensor


def _unpack(file: Any, name: str, entry: _Entry) -> Tensor:
    kept, values = _read_mask(file, name, entry), file.get_tensor(name + _VALUES)
    if list(values.shape) != [np.count_nonzero(kept)] or values.dtype not in _CARRIERS:
        raise _Damage(f"the values of {name!r} do not fit its mask")
    carried = values.view(_CARRIERS[values.dtype]).numpy()
    bits = np.zeros(entry.size, carried.dtype)
    bits[kept] = carried
    return torch.from_numpy(bits).view(values.dtype).reshape(entry.shape)


def _read_mask(file: Any, name: str, entry: _Entry) -> NDArray[np.bool_]:
    """The keep mask of a packed tensor, flat."""
    mask: Tensor = file.get_tensor(name + _MASK)
    if mask.dtype != torch.uint8 or list(mask.shape) != [(entry.size + 7) // 8]:
        raise _Damage(f"the mask of {name!r} does not fit its shape {entry.shape}")
    if _hash(mask) != entry.mask_sha256:
        raise _Damage(f"the mask of {name!r} does not have the hash that was written")
    return np.unpackbits(mask.numpy(), count=entry.size).view(np.bool_)
