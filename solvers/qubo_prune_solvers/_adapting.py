"""What the adapters share: making things from settings, and looking at what a function takes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self, SupportsIndex

from qubo_prune.errors import InputError
from qubo_prune.settings import checked_values, kinds_of
from qubo_prune.solver.registry import Adapter


class Remade(Adapter):
    """An adapter that travels to another process as its path, to be made there anew.

    Objects of other libraries often cannot be copied, or no longer once they have been used.
    """

    _recipe: ClassVar[functools.partial[Any] | None] = None

    def remade_from(self, path: str, settings: Mapping[str, Any]) -> Self:
        """The same adapter; a copy of it will be ``from_path(path, **settings)``."""
        object.__setattr__(self, "_recipe", functools.partial(type(self).from_path, path, **settings))
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        return super().__reduce_ex__(protocol) if self._recipe is None else (self._recipe, ())


def argument_names(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments of a function or constructor, ``*args`` and ``**kwargs`` left out."""
    nameless = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in _parameters(function) if p.kind not in nameless]


def takes_any_name(function: Callable[..., Any]) -> bool:
    """True if the function has ``**kwargs``."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _parameters(function))


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # some built-in functions have no signature
        return []


def make(name: str, factory: Callable[..., Any], settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Call a class or function with the settings that its signature names; the thing and the rest.

    Raises:
        InputError: a setting is not of the type that the signature says, or it raises, for instance because it
            needs an object that no setting can be.
    """
    names = argument_names(factory)
    own = checked_values(name, kinds_of(factory), {key: value for key, value in settings.items() if key in names})
    try:
        thing = factory(**own)
    except Exception as error:  # a stranger's constructor may raise anything
        raise InputError(
            f"{name!r} cannot be made with {own or 'no settings'} ({type(error).__name__}: {error}); it takes "
            f"{', '.join(names) or 'none'}. Name a function without arguments that makes it, or make it in Python "
            "and pass it to the adapter."
        ) from error
    return thing, {key: value for key, value in settings.items() if key not in own}
