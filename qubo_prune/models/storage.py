"""Where a model's weights are while it is pruned; here all of them in memory."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from qubo_prune.files.digests import digest_of_model
from qubo_prune.models.layers import Layer


@runtime_checkable
class States(Protocol):
    """Hidden states by the numbers of their batches."""

    def __getitem__(self, number: int, /) -> Tensor: ...
    def __setitem__(self, number: int, tensor: Tensor, /) -> None: ...
    def __iter__(self) -> Iterator[Tensor]: ...
    def append(self, tensor: Tensor, /) -> None:
        """Add the states of the next batch."""
        ...


#: From the weight of a layer as stored in the checkpoint, in the parameter's shape, to the pruned one.
Change = Callable[[Tensor], Tensor]


class WeightStorage(abc.ABC):
    """Gives a model's weights when they are needed, and keeps what a run must not lose."""

    #: All weights are in memory, so what was changed can be taken back there.
    in_memory: ClassVar[bool]
    #: Parts of the model that are loaded one at a time; ``None`` if all is in memory.
    blocks: Sequence[nn.Module] | None = None

    @abc.abstractmethod
    def check(self, layers: Sequence[Layer]) -> None:
        """Raise :class:`~qubo_prune.errors.InputError` if one of the layers cannot be pruned where it is."""

    @abc.abstractmethod
    def resident(self, module: nn.Module) -> AbstractContextManager[None]:
        """The module's weights are in memory temporarily."""

    @abc.abstractmethod
    def changed(self, layer: Layer, change: Change) -> None:
        """From now on the layer is pruned, wherever its weight is taken from."""

    @abc.abstractmethod
    def dense_weights(self) -> MutableMapping[str, Tensor]:
        """Where the dense matrices ``(d_out, d_in)`` of layers that have changed are kept, by their names."""

    @abc.abstractmethod
    def states(self, tensors: Iterable[Tensor] = ()) -> States:
        """Where hidden states are kept, these to begin with."""

    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256 of all parameters and buffers."""

    @abc.abstractmethod
    def saves(self) -> Callable[[Path], None] | None:
        """Writes the pruned weights and what belongs to them into a folder; ``None`` if the model itself can."""


class InMemory(WeightStorage):
    """Everything is in the model.

    Args:
        model: the model.
    """

    in_memory = True

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def check(self, layers: Sequence[Layer]) -> None:
        """All of them can."""

    def resident(self, module: nn.Module) -> AbstractContextManager[None]:
        """Nothing has to be done."""
        return nullcontext()

    def changed(self, layer: Layer, change: Change) -> None:
        """The model has the new weight."""

    def dense_weights(self) -> MutableMapping[str, Tensor]:
        """A plain mapping."""
        return {}

    def states(self, tensors: Iterable[Tensor] = ()) -> States:
        """A plain list."""
        return list(tensors)

    def digest(self) -> str:
        """Of the model's state."""
        return digest_of_model(self._model)

    def saves(self) -> Callable[[Path], None] | None:
        """The model writes itself."""
        return None
