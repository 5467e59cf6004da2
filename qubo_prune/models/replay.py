"""What of a model's call can be made again: copies of what a run may change, and traces of what it did change."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qubo_prune.errors import InputError
from qubo_prune.models.load import hooked

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type)
_SEQUENCES = (list, tuple, set, frozenset, deque)


def fresh(value: Any) -> Any:
    """Return a copy of a model input, so that a forward pass that writes to it leaves the original as it is.

    Raises:
        InputError: the value is of a kind that cannot be copied.
    """
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, _PLAIN):
        return value
    if type(value) in (list, tuple):
        return type(value)(map(fresh, value))
    if type(value) is dict:
        return {name: fresh(part) for name, part in value.items()}
    try:
        return copy.deepcopy(value)
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"A batch holds a {type(value).__name__}, which cannot be copied ({error}), and each batch goes through "
            "the model several times; give tensors, numbers, and lists or dicts of them."
        ) from error


def trace(value: Any, seen: frozenset[int] = frozenset()) -> Any:
    """Return what changes if someone writes to a value: identities and versions of its tensors, and its entries."""
    if isinstance(value, Tensor):
        return id(value), tuple(value.shape), 0 if value.is_inference() else value._version
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, nn.Module) or id(value) in seen:
        return id(value)
    inside = seen | {id(value)}
    if isinstance(value, Mapping):
        return id(value), tuple((name, trace(part, inside)) for name, part in value.items())
    if isinstance(value, _SEQUENCES):
        return id(value), tuple(trace(part, inside) for part in value)
    return id(value), trace(getattr(value, "__dict__", None), inside)


def is_mutable(value: Any) -> bool:
    """True if a block could leave something in a value for another one: not tensors, plain values, tuples of them."""
    if isinstance(value, tuple):
        return any(map(is_mutable, value))
    return not isinstance(value, (Tensor, nn.Module, *_PLAIN))


def alike(one: Any, other: Any) -> bool:
    """True if two values hold equal tensors and numbers in the same places; objects are compared by their fields."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, _PLAIN):
        return bool(one == other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    fields = [getattr(value, "__dict__", None) for value in (one, other)]
    if fields[0] is None:  # an object of slots, an array, a set
        try:
            return bool(np.all(one == other))
        except Exception:  # whatever a comparison says, such as of arrays that do not fit
            return False
    return alike(*fields)


def spoilt(value: Any) -> Any:
    """Return other tensors of the same shapes, NaN where that can be, to see whether anybody reads them."""
    if isinstance(value, Tensor):
        return torch.full_like(value, torch.nan) if value.is_floating_point() else torch.zeros_like(value)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(map(spoilt, value))
    return value


@contextmanager
def draws(module: nn.Module) -> Iterator[list[bool]]:
    """Tell of each call of a module whether random numbers were drawn in it."""
    before: list[Any] = []
    drawn: list[bool] = []

    def begin(called: nn.Module, args: Any) -> None:
        before[:] = _random_states()

    def end(called: nn.Module, args: Any, output: Any) -> None:
        drawn.append(before != _random_states())

    # around the call alone: what is done beside it, such as checks of types, may draw numbers too
    with hooked([module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)]):
        yield drawn


def _random_states() -> list[Any]:
    """The state of the generators that models draw from."""
    numpys = np.random.get_state(legacy=False)["state"]
    states = [torch.get_rng_state().tolist(), random.getstate(), numpys["key"].tolist(), numpys["pos"]]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += [state.tolist() for state in torch.cuda.get_rng_state_all()]
    return states
