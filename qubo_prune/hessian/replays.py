"""Outputs that passes over a block keep for later passes, as far as there is room for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from qubo_prune.models.calls import replaced
from qubo_prune.models.layers import Layer
from qubo_prune.models.replay import fresh


class Room:
    """Bytes that are left for what is kept.

    Args:
        size: of all of it.
    """

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, value: Any) -> bool:
        """Take what the tensors in a value need, if there is as much."""
        need = _bytes(value)
        if need > self.left:
            return False
        self.left -= need
        return True

    def give_back(self, value: Any) -> None:
        """Have that to take again."""
        self.left += _bytes(value)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0


class Replays:
    """What layers give, batch by batch, so that a later pass over the batch need not compute it again.

    A layer's first call in a pass is answered from what it gave to the first call in an earlier one. That is right
    once neither the layer nor what runs before it changes any more; other calls are computed.

    Args:
        room: for the outputs.
    """

    def __init__(self, room: Room) -> None:
        self._room, self._open = room, True
        self._modules: list[nn.Module] = []
        self._outputs: dict[tuple[int, nn.Module], Tensor] = {}

    def add(self, layers: Sequence[Layer]) -> None:
        """From the next pass on keep, and replay, what these layers give; they do not change any more."""
        if self._open:
            self._modules += [layer.module for layer in layers if len(layer.modules) == 1]

    def close(self) -> None:
        """Forget all, and keep nothing any more."""
        self._open = False
        self._room.give_back(list(self._outputs.values()))
        self._modules.clear()
        self._outputs.clear()

    @contextmanager
    def over(self, number: int) -> Iterator[None]:
        """Within it a pass over the batch of that number takes what is kept, and keeps what is not."""

        def make(position: int, original: Callable[..., Any]) -> Callable[..., Any]:
            key, called = (number, self._modules[position]), False

            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal called
                first, called = not called, True
                if first and key in self._outputs:
                    return fresh(self._outputs[key])
                output = original(*args, **kwargs)
                if first and isinstance(output, Tensor) and self._room.take(output):
                    self._outputs[key] = fresh(output)
                return output

            return forward

        with replaced(self._modules, make):
            yield
