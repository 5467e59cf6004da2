"""Which layers a model's inputs reach, and which weights it uses without calling their modules."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qubo_prune.errors import InputError
from qubo_prune.models.calls import as_call
from qubo_prune.models.layers import Layer
from qubo_prune.models.load import evaluating, hooked
from qubo_prune.models.names import kinds
from qubo_prune.models.replay import draws
from qubo_prune.models.sharing import extent

#: Why a layer is left dense, as the end of a sentence that begins with it.
NO_INPUT = "not reached by any calibration input"
NO_INPUT_NOW = "not reached by any calibration input once the layers before it are pruned"
NO_CALL = "used by its weight only, without a call of its module"
NO_GRADIENT = "not reached by any gradient of the loss"

#: By how much two equal passes may differ, since devices sum in an order of their own.
_SLACK = 1e-3


@dataclass(frozen=True)
class Uses:
    """What forward passes did with the layers, by their names.

    Attributes:
        called: layers whose module was called with some input.
        beside: layers whose weight was used outside of such a call.
    """

    called: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, list[str]]:
        """Plain data."""
        return {"called": sorted(self.called), "beside": sorted(self.beside)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Sequence[str]]) -> Uses:
        """What :meth:`to_dict` gave."""
        return cls(frozenset(plain["called"]), frozenset(plain["beside"]))

    def why_not_reached(self, name: str) -> str:
        """Why a layer has no inputs."""
        if name in self.called:
            return NO_INPUT_NOW
        return NO_CALL if name in self.beside else NO_INPUT


def uses_of(model: nn.Module, layers: Sequence[Layer], batches: Sequence[Any]) -> Uses:
    """See how a forward pass uses the weights of layers, and that it gives them the same inputs when it is repeated.

    Args:
        model: in memory; it is run without gradients, in evaluation mode.
        layers: to look at.
        batches: model inputs, as :func:`qubo_prune.models.calls.as_call` takes them. The first one goes through the
            model, and others for as long as some layer has not been called.

    Raises:
        InputError: the model keeps something from one call to the next that changes the inputs of a layer.
    """
    watch = _Watch(layers)
    with torch.no_grad(), evaluating(model), watch.hooked():
        with watch, draws(model) as drawn:
            as_call(batches[0]).run(model)
        first, watch.inputs = watch.inputs, []
        for batch in batches[1:]:
            if len(watch.called) < len(layers):
                as_call(batch).run(model)
        watch.inputs = []
        try:
            as_call(batches[0]).run(model)
        except InputError:  # the memory is used up
            raise
        except Exception as error:  # whatever it says when it meets what it has kept
            raise _keeps(f"fails when one batch goes through it again ({type(error).__name__}: {error})") from error
    # what random numbers change is looked at block by block
    if not any(drawn):
        _check_repeated(first, watch.inputs)
    return Uses(frozenset(watch.called), frozenset(watch.beside))


def _check_repeated(first: Sequence[_Read], second: Sequence[_Read]) -> None:
    """Raise :class:`InputError` if two passes over one batch have not read the same."""
    for one, other in itertools.zip_longest(_measured(first), _measured(second)):
        if one is None or other is None or not _same(*one, *other):
            read = (one or other)[0]
            raise _keeps(f"gives the layer {read.layer!r} other inputs when one batch goes through it again")


def _keeps(what: str) -> InputError:
    return InputError(
        f"The model {what}, so it keeps something from one call to the next, and errors of its layers cannot be "
        "measured; let each call begin anew (reset what it keeps at the start of forward)."
    )


@dataclass(frozen=True, eq=False)
class _Read:
    """What a layer read in one call: its shape, its sum and its norm, which stay where they are until all is read."""

    layer: str
    shape: torch.Size
    sums: Tensor

    @classmethod
    def of(cls, layer: str, tensor: Tensor | None) -> _Read:
        if tensor is None or not tensor.is_floating_point():
            return cls(layer, torch.Size() if tensor is None else tensor.shape, torch.zeros(2, dtype=torch.float64))
        sums = torch.stack([tensor.sum(dtype=torch.float64), vector_norm(tensor, dtype=torch.float64)])
        return cls(layer, tensor.shape, sums)


def _measured(reads: Sequence[_Read]) -> list[tuple[_Read, float, float]]:
    """The reads with their numbers; each device is waited for once."""
    numbers: dict[int, tuple[float, float]] = {}
    for device in {read.sums.device for read in reads}:
        own = [at for at, read in enumerate(reads) if read.sums.device == device]
        numbers.update(zip(own, map(tuple, torch.stack([reads[at].sums for at in own]).tolist()), strict=True))
    return [(read, *numbers[at]) for at, read in enumerate(reads)]


def _same(one: _Read, total: float, norm: float, other: _Read, its_total: float, its_norm: float) -> bool:
    """True up to what the order of sums can change."""
    if (one.layer, one.shape) != (other.layer, other.shape):
        return False
    if not math.isfinite(norm + its_norm):
        return math.isfinite(norm) == math.isfinite(its_norm)
    slack = _SLACK * max(norm, its_norm)
    return abs(norm - its_norm) <= slack and abs(total - its_total) <= slack * math.sqrt(math.prod(one.shape))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a forward pass, and which of them read the memory of a layer's weight."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers = sorted(layers, key=_begin)
        self._begins = [_begin(layer) for layer in self._layers]
        self._running: list[str] = []
        self.called: set[str] = set()
        self.beside: set[str] = set()
        self.inputs: list[_Read] = []

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Know which layers' modules are being called."""
        handles = []
        for layer in self._layers:
            for module in layer.modules:
                handles.append(module.register_forward_pre_hook(self._enter(layer.name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
        with hooked(handles):
            yield

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._running.append(name)
            if any(isinstance(value, Tensor) and value.numel() for value in (*args, *kwargs.values())):
                self.called.add(name)
            read = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            self.inputs.append(_Read.of(name, read))

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        read = self._owners((args, kwargs))
        # a view of a weight is no use of it yet, nor is a new tensor of its shape or type
        if read and not read & self._owners(output) and not _makes_new(func):
            self.beside |= read.difference(self._running)
        return output

    def _owners(self, values: Any) -> set[str]:
        """The layers whose weights some of the tensors lie in."""
        tensors = (value for value in tree_leaves(values) if type(value) in (Tensor, nn.Parameter))
        return {name for tensor in tensors if (name := self._owner(tensor)) is not None}

    def _owner(self, tensor: Tensor) -> str | None:
        if tensor.is_meta or not tensor.numel() or tensor.layout != torch.strided:
            return None
        place = (str(tensor.device), tensor.data_ptr())
        at = bisect.bisect_right(self._begins, place) - 1
        if at < 0 or self._begins[at][0] != place[0]:
            return None
        layer = self._layers[at]
        size = extent(layer.parameter) * layer.parameter.element_size()
        return layer.name if place[1] < self._begins[at][1] + size else None


def _begin(layer: Layer) -> tuple[str, int]:
    return str(layer.parameter.device), layer.parameter.data_ptr()


def _makes_new(func: Any) -> bool:
    """True of operations that take a tensor for its shape and type only."""
    name: str = func.overloadpacket.__name__
    return name.startswith("new_") or name.endswith("_like")


def nothing_reached(layers: Sequence[Layer], reason: str, instead: str) -> InputError:
    """What is said if a run would leave all its layers dense."""
    names = ", ".join(kinds([layer.name for layer in layers])[:4])
    return InputError(
        f"All {len(layers)} layers that are to be pruned ({names}) are {reason}, so nothing would be pruned; give "
        f"{instead}."
    )
