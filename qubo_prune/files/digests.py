"""Hashes of models and of data, to tell whether they are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from qubo_prune.files.checksummed import add_tensor


def digest_of_model(model: nn.Module, stored: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor) -> str:
    """SHA-256 of all parameters and buffers; ``stored`` gives the values of those that are not in memory."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):  # some modules keep other things there
            add_tensor(digest, name, stored(name, tensor))
    return digest.hexdigest()


def digest_of_batches(*given: Any) -> str:
    """SHA-256 of nested sequences and mappings of tensors and plain values."""
    digest = hashlib.sha256()
    _add(digest, given)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        add_tensor(digest, "", value)
    elif isinstance(value, Mapping):
        digest.update(b"{")
        for key in value:
            digest.update(repr(key).encode())
            _add(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(b"[%d" % len(value))
        for part in value:
            _add(digest, part)
    else:
        digest.update(repr(value).encode())
