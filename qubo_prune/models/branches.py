"""Forward passes of variants of a model that differ from some block on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from qubo_prune.models.calls import replaced
from qubo_prune.models.load import hooked
from qubo_prune.models.replay import fresh


class Branches:
    """What blocks have given, batch by batch, so that a pass of a variant need not run those that are the same.

    Memory: the outputs of all blocks for all batches.

    Args:
        blocks: a stack, in the order in which its blocks run; each once in a pass, and given nothing but what the
            model and the block before it give.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = list(blocks)
        self._outputs: dict[tuple[int, int], Any] = {}

    @contextmanager
    def kept(self, number: int) -> Iterator[None]:
        """Within it a pass over the batch of that number keeps what the blocks give."""

        def keep(position: int) -> Callable[..., None]:
            def note(module: nn.Module, args: Any, output: Any) -> None:
                self._outputs[number, position] = fresh(output)

            return note

        with hooked([block.register_forward_hook(keep(position)) for position, block in enumerate(self._blocks)]):
            yield

    @contextmanager
    def after(self, number: int, start: int) -> Iterator[None]:
        """Within it a pass over that batch takes what blocks before number ``start`` have given, as it was kept."""

        def make(position: int, original: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: fresh(self._outputs[number, position])

        with replaced(self._blocks[:start], make):
            yield
