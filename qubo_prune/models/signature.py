"""What a model's forward pass takes: names of its arguments, and whether it has an encoder and a decoder."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
#: Where wrappers whose forward takes anything keep the model that they call.
_INNER = ("_orig_mod", "base_model", "module")


@dataclass(frozen=True)
class Signature:
    """Arguments of a model's forward pass.

    Attributes:
        positions: names by position.
        names: all names that it knows.
        open: it takes names besides, or any number of positions.
        required: positions without a default.
        encoder_decoder: labels run along the decoder's sequence, not along the inputs'.
    """

    positions: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    open: bool = True
    required: int = 0
    encoder_decoder: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> Signature:
        """Read it from the model, or from the one that a wrapper holds; open if neither says anything."""
        config = getattr(model, "config", None)
        parameters = list(_parameters(model).values())
        by_place = [each for each in parameters if each.kind in _BY_PLACE]
        return cls(
            tuple(each.name for each in by_place),
            frozenset(each.name for each in parameters if each.kind not in _ANY),
            any(each.kind in _ANY for each in parameters),
            sum(each.default is inspect.Parameter.empty for each in by_place),
            bool(getattr(config, "is_encoder_decoder", False)),
        )

    def takes(self, name: str) -> bool:
        """Whether an argument of this name may be given."""
        return self.open or name in self.names


def _parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    inner: Any = model
    while True:
        try:
            found = dict(inspect.signature(inner.forward).parameters)
        except (TypeError, ValueError):  # a forward that is no Python function
            return {"inputs": inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL)}
        held = [getattr(inner, name, None) for name in _INNER]
        deeper = next((each for each in held if isinstance(each, nn.Module)), None)
        if deeper is None or any(each.kind not in _ANY for each in found.values()):
            return found
        inner = deeper
