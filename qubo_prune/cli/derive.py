"""Options of commands from the fields of dataclasses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_origin, get_type_hints

import typer

from qubo_prune.cli.complete import one_of


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of a dataclass in the place of each parameter that is one.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Size:
    ...     width: int = 3
    >>> @with_options
    ... def show(*, size: Size, depth: int = 1) -> None:
    ...     print(size, depth)
    >>> show(width=5, depth=2)
    Size(width=5) 2
    >>> list(inspect.signature(show).parameters)
    ['width', 'depth']
    """
    hints = get_type_hints(function, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}

    @wraps(function)
    def command(**given: Any) -> None:
        made = {name: cls(**{o.name: given.pop(o.name) for o in options_of(cls)}) for name, cls in groups.items()}
        function(**given, **made)

    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        one = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        parameters += options_of(groups[name]) if name in groups else [one]
    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def options_of(cls: type) -> list[inspect.Parameter]:
    """A keyword for each field of a dataclass, as Typer reads it: the name in kebab case, the type, the default.

    What else there is of an option stands in the type, as in those of :mod:`qubo_prune.cli.options`, or else in the
    field's metadata: ``help``, ``panel``, and ``choices``, the values that shells offer.
    """
    hints = get_type_hints(cls, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(field),
            annotation=_option(hints[field.name], field.metadata),
        )
        for field in fields(cls)
        if field.init
    ]


def _default(field: Field[Any]) -> Any:
    """What a field is if nothing is given; an option without one has to be."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _option(hint: Any, metadata: Mapping[str, Any]) -> Any:
    if get_origin(hint) is Annotated:
        return hint
    choices = metadata.get("choices")
    complete = one_of(choices) if choices else None
    said = typer.Option(help=metadata.get("help"), rich_help_panel=metadata.get("panel"), autocompletion=complete)
    return Annotated[hint, said]
