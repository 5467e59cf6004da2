"""Hidden states in a file without a name, which is gone when the process ends, however it ends."""

from __future__ import annotations

import math
import mmap
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qubo_prune.files.checksummed import as_bytes
from qubo_prune.files.safetensors import mapped


@dataclass(frozen=True)
class _Slot:
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    device: torch.device

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class StateFile:
    """A list of tensors in a file; each is paged in while it is used.

    Args:
        folder: where the file is made.
        tensors: those to begin with.
    """

    def __init__(self, folder: Path, tensors: Iterable[Tensor] = ()) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115, lives as long as this
        weakref.finalize(self, self._file.close)
        self._slots: list[_Slot] = []
        self._end = 0
        for tensor in tensors:
            self.append(tensor)

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Tensor:
        slot = self._slots[number]
        return mapped(self._file, slot.begin, slot.bytes).view(slot.dtype).reshape(slot.shape).to(slot.device)

    def __setitem__(self, number: int, tensor: Tensor) -> None:
        before = self._slots[number]
        slot = _Slot(before.begin, tensor.dtype, tuple(tensor.shape), tensor.device)
        if slot.bytes > before.bytes:
            raise ValueError(f"The states of batch {number} have grown from {before.bytes} to {slot.bytes} bytes.")
        self._slots[number] = slot
        self._write(slot.begin, tensor)

    def append(self, tensor: Tensor) -> None:
        """Add a tensor."""
        slot = _Slot(self._end, tensor.dtype, tuple(tensor.shape), tensor.device)
        self._slots.append(slot)
        self._write(slot.begin, tensor)
        # each begins on a page of its own, as memory would give it
        self._end += math.ceil(slot.bytes / mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY

    def _write(self, begin: int, tensor: Tensor) -> None:
        data = as_bytes(tensor.cpu()).numpy().data
        self._file.seek(begin)
        while len(data):  # a file without a buffer may take a part only
            data = data[self._file.write(data) :]
