"""Which layers a model's inputs reach, and which weights it uses without calling their modules."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qubo_prune.layers import Layer
from qubo_prune.models import evaluating, hooked
from qubo_prune.network import as_call
from qubo_prune.sharing import extent

#: Why a layer is left dense, as the end of a sentence that begins with it.
NO_INPUT = "not reached by any calibration input"
NO_INPUT_NOW = "not reached by any calibration input once the layers before it are pruned"
NO_CALL = "used by its weight only, without a call of its module"
NO_GRADIENT = "not reached by any gradient of the loss"


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
    """See how a forward pass uses the weights of layers.

    Args:
        model: in memory; it is run without gradients, in evaluation mode.
        layers: to look at.
        batches: model inputs, as :func:`qubo_prune.network.as_call` takes them. The first one goes through the model,
            and others for as long as some layer has not been called.
    """
    watch = _Watch(layers)
    with torch.no_grad(), evaluating(model), watch.hooked():
        with watch:
            as_call(batches[0]).run(model)
        for batch in batches[1:]:
            if len(watch.called) < len(layers):
                as_call(batch).run(model)
    return Uses(frozenset(watch.called), frozenset(watch.beside))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation of a forward pass, and which of them read the memory of a layer's weight."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers = sorted(layers, key=_begin)
        self._begins = [_begin(layer) for layer in self._layers]
        self._running: list[str] = []
        self.called: set[str] = set()
        self.beside: set[str] = set()

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
