"""Hashes of models and of data, to tell whether they are the same."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import marshal
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
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


def identity(value: Any, opaque: tuple[type, ...] = (), _within: tuple[int, ...] = ()) -> Any:
    """What tells a setting from another one in any process, as plain data.

    Tensors and arrays by their checksums, dataclasses and other objects by their class and what they hold, functions by
    their code and what they close over.

    Args:
        value: of a setting.
        opaque: classes whose instances hold more than settings: such that are no dataclasses go by their class alone.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Tensor | np.ndarray):
        return {"sha256": digest_of_batches(torch.as_tensor(value))}
    if id(value) in _within:  # it holds itself
        return "..."

    def inner(part: Any) -> Any:
        return identity(part, opaque, (*_within, id(value)))

    if isinstance(value, Mapping):
        return {str(key): inner(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [inner(part) for part in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, types.FunctionType):
        code = hashlib.sha256(marshal.dumps(value.__code__)).hexdigest()
        return {
            "function": value.__qualname__,
            "code": code,
            "closes over": [inner(cell.cell_contents) for cell in value.__closure__ or ()],
        }
    if isinstance(value, types.MethodType):
        return {"method": value.__func__.__qualname__, "of": inner(value.__self__)}
    if isinstance(value, functools.partial):
        return {"partial": inner(value.func), "of": inner([list(value.args), value.keywords])}
    if isinstance(value, types.BuiltinFunctionType):
        return {"function": f"{value.__module__}.{value.__qualname__}"}
    kind = {"class": identity(type(value))}
    if dataclasses.is_dataclass(value):
        return kind | {each.name: inner(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, opaque) or not hasattr(value, "__dict__"):
        return kind
    return kind | {name: inner(part) for name, part in vars(value).items()}


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
