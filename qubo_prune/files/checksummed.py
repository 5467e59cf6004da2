"""Tensors and plain data in one safetensors file with a checksum, so that damage is found and never loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.files.atomic import written_whole

#: Bytes of a file's header at most: names, shapes and the plain data.
MOST_HEADER = 2**26
#: Name of the metadata that holds kind, plain data and checksum.
_SEAL = "qubo_prune"


class Damaged(InputError):
    """A file is not what was written: cut short, changed, or of another kind."""


@dataclass(frozen=True, eq=False)
class Sealed:
    """What a file holds.

    Attributes:
        tensors: by name.
        info: plain data, as JSON has it.
    """

    tensors: Mapping[str, Tensor]
    info: Mapping[str, Any]


def write_sealed(path: str | Path, kind: str, content: Sealed, flushed: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        path: where to.
        kind: what the file is, with its version; :func:`read_sealed` asks for the same.
        content: tensors of any device, and plain data.
        flushed: wait until it is on the disk.

    Raises:
        InputError: the disk filled up.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.tensors.items()}
    info = json.dumps(content.info)
    seal = json.dumps({"format": kind, "info": info, "sha256": _digest(kind, info, tensors)})
    with written_whole(path, flushed) as aside:
        # one entry, since several come in an order that is another one every time
        save_file(tensors, aside, metadata={_SEAL: seal})


def read_sealed(path: str | Path, kind: str) -> Sealed:
    """Read what :func:`write_sealed` wrote.

    Raises:
        Damaged: the file is not complete and unchanged, or not of this kind.
        FileNotFoundError: there is no such file.
    """
    from safetensors import SafetensorError, safe_open

    _check_header(Path(path))
    try:
        with safe_open(path, framework="pt") as file:
            seal = json.loads((file.metadata() or {}).get(_SEAL, "{}"))
            if not isinstance(seal, dict) or seal.get("format") != kind:
                raise Damaged(f"{path} is not a file of the kind {kind}, or of another version of it.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        info, written = seal["info"], seal["sha256"]
        if _digest(kind, info, tensors) != written:
            raise Damaged(f"{path} was changed or damaged since it was written: its checksum is another one.")
        plain = json.loads(info)
        if not isinstance(plain, dict):
            raise Damaged(f"{path} holds no plain data by names.")
    except (SafetensorError, KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        if isinstance(error, Damaged):
            raise
        reason = " ".join(str(error).split())[:200]
        raise Damaged(f"{path} is cut short or damaged ({type(error).__name__}: {reason}).") from error
    return Sealed(tensors, plain)


def _check_header(path: Path) -> None:
    """Refuse what would take much memory before its checksum can be known."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MOST_HEADER:
        raise Damaged(f"{path} is damaged: it claims a header of {length} bytes, and {MOST_HEADER} are allowed.")


def _digest(kind: str, info: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of everything: names, types, shapes, bytes."""
    digest = hashlib.sha256(json.dumps([kind, info]).encode())
    for name in sorted(tensors):
        add_tensor(digest, name, tensors[name])
    return digest.hexdigest()


def add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor with its name, type and shape to a hash of :mod:`hashlib`."""
    digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
    if tensor.numel():
        digest.update(as_bytes(tensor.cpu()).numpy().data)


def as_bytes(tensor: Tensor) -> UInt8[Tensor, " bytes"]:
    """The bytes of a tensor on the CPU, without a copy where it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
