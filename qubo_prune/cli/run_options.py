"""Options of commands that follow from the fields of settings: names, types, defaults, help, panels, completion."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from qubo_prune.cli import complete
from qubo_prune.cli.complete import Words, one_of
from qubo_prune.request import BLOCKS, BUDGETS, DATA, GROUPS, HOME, OUTPUT, RUN, WHAT, first_sentence, sentences_of

F = TypeVar("F", bound=Callable[..., Any])

#: The panels of the help, in their order.
PANELS = (WHAT, BLOCKS, BUDGETS, DATA, RUN, OUTPUT)


def field_of(name: str) -> dataclasses.Field[Any]:
    """A setting's field, by its name."""
    return next(each for each in dataclasses.fields(GROUPS[HOME[name]]) if each.name == name)


def of_field(name: str) -> Any:
    """The option of a setting, as ``typer.Option`` makes one."""
    field, owner = field_of(name), GROUPS[HOME[name]]
    given = field.metadata
    default, words = default_of(name), given["words"] or get_args(_bare(_hints(owner)[name]))
    known: Words = getattr(complete, words) if isinstance(words, str) else [w for w in words if isinstance(w, str)]
    return typer.Option(
        flag_of(name),
        metavar=None if given["metavar"] == "TEXT" else given["metavar"],
        help=given["off"] or _plain(first_sentence(sentences_of(owner).get(name, ""))),
        rich_help_panel=given["panel"],
        show_default=given["shown"] or default not in (None, False, ""),
        autocompletion=one_of(known) if known else None,
    )


def flag_of(name: str) -> str:
    """The option of a setting on the command line."""
    return field_of(name).metadata["flag"] or f"--{name.replace('_', '-')}"


def default_of(name: str) -> Any:
    """The default of the option: the field's, as a command line gives it."""
    default = field_of(name).default
    if isinstance(default, bool):
        return False  # a flag turns it over
    return None if default in ((), dataclasses.MISSING) else default


def type_of(name: str) -> Any:
    """The type of the option's value."""
    field, owner = field_of(name), GROUPS[HOME[name]]
    kind, optional = _bare(_hints(owner)[name]), default_of(name) is None
    parts = [part for part in (get_args(kind) if _is_union(kind) else (kind,)) if part is not type(None)]
    origins = [get_origin(part) or part for part in parts]
    if field.metadata["metavar"] == "TEXT":
        found: Any = str
    elif any(_holds_several(origin) for origin in origins):
        return list[str] | None
    else:
        known = (bool, int, float, Path)
        found = next((each for each in known if each in origins), str)
    return found | None if optional else found


def _holds_several(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, (Mapping, Sequence)) and origin is not str


def _hints(owner: type[Any]) -> dict[str, Any]:
    """Annotations, with what only type checkers see as anything."""
    return get_type_hints(owner, localns={"Tensor": Any})


def _bare(kind: Any) -> Any:
    """A union without ``None``, where one part is left."""
    parts = [part for part in get_args(kind) if part is not type(None)] if _is_union(kind) else []
    return parts[0] if len(parts) == 1 else kind


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _plain(text: str) -> str:
    """A sentence of a docstring without its markup."""
    return text.replace("``", "")


def parameter_of(name: str) -> inspect.Parameter:
    """A setting as a parameter of a command."""
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default_of(name),
        annotation=Annotated[type_of(name), of_field(name)],
    )


def with_settings(names: Iterable[str]) -> Callable[[F], F]:
    """Give a command the options of settings, which it gets as ``**settings``; they stand in the order of the panels.

    Args:
        names: of the settings.
    """

    def decorate(function: F) -> F:
        hints = get_type_hints(function, include_extras=True)
        own = [
            each.replace(annotation=hints.get(each.name, each.annotation), kind=inspect.Parameter.KEYWORD_ONLY)
            for each in inspect.signature(function).parameters.values()
            if each.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        every = sorted([*own, *map(parameter_of, names)], key=_place)

        @functools.wraps(function)
        def command(**given: Any) -> Any:
            return function(**given)

        made: Any = command
        made.__signature__ = inspect.Signature(every)
        made.__annotations__ = {each.name: each.annotation for each in every}
        del made.__wrapped__
        return made  # type: ignore[no-any-return]

    return decorate


def _place(parameter: inspect.Parameter) -> int:
    """Of the panel that a parameter is in."""
    marks = getattr(parameter.annotation, "__metadata__", ())
    panel = next((mark.rich_help_panel for mark in marks if getattr(mark, "rich_help_panel", None)), None)
    return PANELS.index(panel) if panel in PANELS else -1


def run_settings() -> list[str]:
    """The settings of a run that the command line has."""
    return [each.name for owner in GROUPS.values() for each in dataclasses.fields(owner) if each.metadata["panel"]]


def said_of(name: str, help: str) -> str:
    """All that is said of an option, in Markdown: of a setting what its field says, else the help."""
    if name not in HOME:
        return _without_roles(help)
    said, off = sentences_of(GROUPS[HOME[name]]).get(name, ""), field_of(name).metadata["off"]
    if off is not None:
        said = f"{off}{said.removeprefix(first_sentence(said))}"
    return _without_roles(said)


def _without_roles(text: str) -> str:
    """A docstring's sentence as Markdown."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
