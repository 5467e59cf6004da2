"""Calls of a model with a batch of inputs, which can be made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qubo_prune.devices import told_if_full
from qubo_prune.models.replay import fresh
from qubo_prune.precision import caller_defaults


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of one call; ``slot`` says where the hidden states go (a position or a name)."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    slot: int | str | None = None

    def run(self, module: Callable[..., Any], hidden: Tensor | None = None) -> Any:
        """Call the module, with the hidden states in their place; what it writes to its inputs is lost.

        Raises:
            InputError: an input cannot be copied.
        """
        args, kwargs = list(self.args), dict(self.kwargs)
        if isinstance(self.slot, int):
            args[self.slot] = fresh(hidden)
        elif self.slot is not None:
            kwargs[self.slot] = fresh(hidden)
        else:  # a batch of the caller's
            args, kwargs = fresh(args), fresh(kwargs)
        sizes = [tuple(value.shape) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        with (
            caller_defaults(),
            told_if_full(
                f"in a forward pass of {type(module).__name__} over a batch of shape {sizes[0] if sizes else ()}",
                "give shorter windows or smaller batches, or put the model on a device with more memory",
            ),
        ):
            return module(*args, **kwargs)


def as_call(batch: Any) -> Call:
    """A batch of model inputs as a call: a tensor, a sequence of positional or a mapping of named ones.

    A key-value cache that the batch asks for by ``use_cache`` is switched off.
    """
    if isinstance(batch, Mapping):
        return Call((), {**batch, "use_cache": False} if batch.get("use_cache") else batch)
    if isinstance(batch, (tuple, list)):
        return Call(tuple(batch), {})
    return Call((batch,), {})


@contextmanager
def replaced(modules: Sequence[nn.Module], make: Callable[[int, Callable[..., Any]], Any]) -> Iterator[None]:
    """Temporarily replace the forward of each module by what ``make`` returns for its number and its own forward."""
    own = [module.__dict__.get("forward") for module in modules]
    for number, module in enumerate(modules):
        module.__dict__["forward"] = make(number, module.forward)
    try:
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            if before is None:
                del module.__dict__["forward"]
            else:  # a library such as accelerate had wrapped it
                module.__dict__["forward"] = before
