"""A checkpoint of safetensors files: one tensor at a time is read, and a copy with other values is written.

Only the bytes of the tensor in question are mapped into memory, never a whole file, so that neither the size of the
checkpoint nor that of a shard matters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.files.checksummed import MOST_HEADER, as_bytes

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True)
class Place:
    """Where a tensor is.

    Attributes:
        file: the shard.
        begin: its first byte in there.
        bytes: how many it has.
    """

    file: Path
    begin: int
    bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Shard:
    header: bytes  # with its length ahead
    places: dict[str, Place]  # in the order of their bytes


class Checkpoint:
    """The weights in a folder that ``save_pretrained`` wrote: one file, or several and their index.

    Args:
        folder: of the checkpoint.

    Raises:
        InputError: there are no such files, or one of them is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards = {file: _read_shard(file) for file in _files(folder)}
        self.places = {name: place for shard in self._shards.values() for name, place in shard.places.items()}
        missing = [name for name in _indexed(folder) if name not in self.places]
        if missing:
            raise InputError(f"The index {str(folder / INDEX)!r} lists {missing[0]!r}, which no file holds; repair it.")

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(place.bytes for place in self.places.values())

    def read(self, name: str) -> Tensor:
        """A tensor, in memory of its own."""
        return _mapped(self.places[name]).clone()

    def write(self, folder: Path, change: Callable[[str, Tensor], Tensor]) -> None:
        """Write the same files, with the same names, types and order of tensors.

        Args:
            folder: to write to.
            change: from a tensor's name and its value here to that there, of the same type and shape.
        """
        for file, shard in self._shards.items():
            with (folder / file.name).open("wb") as copy:
                copy.write(shard.header)
                for name, place in shard.places.items():
                    tensor = change(name, _mapped(place))
                    assert (tensor.dtype, tuple(tensor.shape)) == (place.dtype, place.shape)
                    copy.write(as_bytes(tensor).numpy().data)
        index = self.folder / INDEX
        if index.is_file():
            (folder / INDEX).write_bytes(index.read_bytes())


def mapped(file: IO[bytes] | Path, begin: int, count: int) -> UInt8[Tensor, " bytes"]:
    """Bytes of a file as a tensor that the file is paged into; what is written to it stays out of the file."""
    if not count:
        return torch.empty(0, dtype=torch.uint8)
    return torch.from_numpy(np.memmap(file, np.uint8, "c", begin, (count,)))


def _mapped(place: Place) -> Tensor:
    return mapped(place.file, place.begin, place.bytes).view(place.dtype).reshape(place.shape)


def is_checkpoint(folder: Path) -> bool:
    """True if a folder holds what :class:`Checkpoint` reads."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def _files(folder: Path) -> Iterable[Path]:
    """The shards; of both kinds the single file counts, as it does for transformers."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise InputError(
            f"The folder {str(folder)!r} holds neither {SINGLE} nor {INDEX}; give one that save_pretrained wrote."
        )
    return [folder / name for name in sorted(set(_indexed(folder).values()))]


def _indexed(folder: Path) -> dict[str, str]:
    """Files by the names of tensors, as the index has them; empty if it does not count."""
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return {}
    if index.stat().st_size > MOST_HEADER:
        raise InputError(f"The index {str(index)!r} has more than {MOST_HEADER} bytes; repair it.")
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        # a name with a folder in it would lead out of the checkpoint
        good = bool(names) and all(Path(file).name == file != ".." for file in names.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise InputError(f"The index {str(index)!r} has no weight_map of tensors to files beside it; repair it.")
    return dict(names)


def _read_shard(file: Path) -> _Shard:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = stream.read(8)
            count = int.from_bytes(length, "little")
            header = stream.read(count) if count <= MOST_HEADER else b""
    except OSError as error:
        raise InputError(f"The weights {str(file)!r} cannot be read: {error.strerror}.") from error
    try:
        if len(length) < 8 or len(header) != count:
            raise ValueError("its header is cut short, or not of safetensors")
        places = _places(file, json.loads(header), 8 + count, size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"The weights {str(file)!r} are damaged ({type(error).__name__}: {reason}).") from error
    return _Shard(length + header, places)


def _places(file: Path, header: dict[str, Any], start: int, size: int) -> dict[str, Place]:
    """What a header says, checked: the tensors lie one behind the other and fill the file."""
    places: dict[str, Place] = {}
    for name, told in header.items():
        if name == "__metadata__":
            continue
        if told["dtype"] not in _TYPES:
            raise ValueError(f"{name} has the type {told['dtype']}, which is not known here")
        begin, end = told["data_offsets"]
        place = Place(file, start + begin, end - begin, _TYPES[told["dtype"]], tuple(told["shape"]))
        if place.bytes != math.prod(place.shape) * place.dtype.itemsize or min(place.shape, default=0) < 0:
            raise ValueError(f"{name} does not have the bytes of its shape")
        places[name] = place
    places = dict(sorted(places.items(), key=lambda item: (item[1].begin, item[1].bytes)))
    end = start
    for name, place in places.items():
        if place.begin != end:
            raise ValueError(f"{name} does not begin where the tensor before it ends")
        end += place.bytes
    if end != size:
        raise ValueError(f"it has {size} bytes and should have {end}")
    return places
