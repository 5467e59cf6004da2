"""Settings of a class or function, checked against the types and ranges that it declares.

The fields of a dataclass say which settings there are, their annotations of what type each is, and the ``metadata``
of a field (see :func:`setting`) in which range. What comes from a command line is text, and is read as its field's
type.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import json
import math
import operator
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from qubo_prune.errors import InputError, SettingError, did_you_mean
from qubo_prune.files.parsing import short

T = TypeVar("T")

#: What the ``metadata`` of a field may hold.
LIMITS = ("least", "most", "above", "below")
_SEQUENCES = (list, tuple, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)


class Given(str):
    """A value as text from a command line, to be read as the type of its setting."""


def setting(
    default: T,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> T:
    """A field of a dataclass with a range, which every number in the field has to keep.

    Args:
        default: of the field.
        least: smallest value.
        most: largest value.
        above: all values are larger.
        below: all values are smaller.

    >>> @dataclass(frozen=True)
    ... class Annealer:
    ...     sweeps: int = setting(100, least=1)
    >>> checked_settings("annealer", Annealer, {"sweeps": Given("20")})
    {'sweeps': 20}
    """
    given = {"least": least, "most": most, "above": above, "below": below}
    limits = {name: value for name, value in given.items() if value is not None}
    field: T = dataclasses.field(default=default, metadata=limits)
    return field


@dataclass(frozen=True)
class Kind:
    """What a setting may be.

    Attributes:
        type: its annotation.
        limits: its range, as in :func:`setting`.
    """

    type: Any = Any
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def read(self, value: Any) -> Any:
        """The value in the setting's type; ``ValueError`` if it is of another, or out of range."""
        return _read(self.type, value, self.limits)

    def __str__(self) -> str:
        return _told(self.type, self.limits)


def checked_settings(name: str, owner: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a solver in the types of its fields.

    Args:
        name: of the solver, for messages.
        owner: a dataclass, whose fields are the settings; another class has none.
        settings: values, or :class:`Given` texts.

    Raises:
        SettingError: there is no such setting (the message gives near ones), or its value does not fit.
    """
    kinds = kinds_of(owner) if dataclasses.is_dataclass(owner) else {}
    check_settings(name, settings, kinds)
    return checked_values(name, kinds, settings)


def checked_values(name: str, kinds: Mapping[str, Kind], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a solver in their types; one of which nothing is known may be anything.

    Raises:
        SettingError: a value does not fit.
    """
    return {
        key: checked(f"The setting {key} of the solver {name!r}", value, kinds.get(key, Kind()))
        for key, value in settings.items()
    }


def check_settings(name: str, settings: Iterable[str], known: Iterable[str]) -> None:
    """Raise :class:`SettingError`, with near names, for a setting that is not among those known."""
    known = list(known)
    for key in settings:
        if key not in known:
            raise SettingError(
                f"The solver {name!r} has no setting {key!r}{did_you_mean(key, known)}; "
                f"it has {', '.join(known) or 'none'}."
            )


def check_instance(name: str, solver: Any) -> None:
    """Raise :class:`SettingError` if a field of a solver that was made in Python does not fit."""
    if dataclasses.is_dataclass(solver):
        kinds = kinds_of(type(solver))
        checked_values(name, kinds, {key: getattr(solver, key) for key in kinds if hasattr(solver, key)})


def checked(what: str, value: Any, kind: Kind) -> Any:
    """A value in the type of its setting.

    Args:
        what: begins the message.
        value: what was given.
        kind: what is allowed.

    Raises:
        SettingError: the value does not fit.
    """
    try:
        return kind.read(value)
    except (ValueError, RecursionError):
        near = did_you_mean(value, _words(kind.type)) if isinstance(value, str) else ""
        raise SettingError(f"{what} is {short(value, 80)}{near}; {kind} is needed.") from None


def kinds_of(owner: Any) -> dict[str, Kind]:
    """What the settings of a dataclass, or the arguments of a function, may be, by name."""
    if dataclasses.is_dataclass(owner):
        hints = _hints(owner)
        return {
            field.name: Kind(
                _with_default(hints.get(field.name, Any), field.default),
                _limits(field),
            )
            for field in dataclasses.fields(owner)
            if field.init
        }
    made: Any = owner
    hints = _hints(made.__init__ if isinstance(owner, type) else owner)
    return {
        name: Kind(_with_default(hints.get(name, Any), parameter.default))
        for name, parameter in _parameters(owner).items()
    }


def _limits(field: dataclasses.Field[Any]) -> dict[str, float]:
    """The range of a field; infinity is in it only if it is the default."""
    limits = {name: limit for name, limit in field.metadata.items() if name in LIMITS}
    endless = isinstance(field.default, float) and math.isinf(field.default)
    return {**limits, "infinite": True} if endless else limits


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return {}


def _with_default(kind: Any, default: Any) -> Any:
    """The annotation; where the default is ``None``, that too is allowed."""
    return Union[kind, None] if default is None and kind is not Any else kind  # noqa: UP007


def _hints(owner: Any) -> dict[str, Any]:
    """Annotations as types; one that means nothing here is left out."""
    try:
        return typing.get_type_hints(owner)
    except Exception:  # a name that only type checkers see, or that was local to a function
        module = sys.modules.get(getattr(owner, "__module__", ""))
        found: dict[str, Any] = {}
        for name, annotation in _annotations(owner).items():
            single = types.SimpleNamespace(__annotations__={name: annotation})
            try:
                found |= typing.get_type_hints(single, vars(module) if module else None)
            except Exception:
                continue
        return found


def _annotations(owner: Any) -> dict[str, Any]:
    bases = reversed(owner.__mro__) if isinstance(owner, type) else (owner,)
    return {name: kind for base in bases for name, kind in getattr(base, "__annotations__", {}).items()}


# -- values


def _read(kind: Any, value: Any, limits: Mapping[str, float]) -> Any:
    kind, origin = _bare(kind), get_origin(_bare(kind))
    if origin in (Union, types.UnionType):
        return _of_union(get_args(kind), value, limits)
    if origin is Literal:
        return _of_literal(get_args(kind), value)
    simple = _SIMPLE.get(kind)
    if simple is not None:
        return simple(value, limits)
    given = _from_json(value)
    if origin in _SEQUENCES or kind in _SEQUENCES:
        return _of_sequence(kind, given, limits)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _of_enum(kind, given)
    if kind is Path and isinstance(given, str):
        return Path(given)
    return _of_class(origin or kind, given)


def _bare(kind: Any) -> Any:
    """Without what stands around a type for other readers."""
    while hasattr(kind, "__metadata__") or get_origin(kind) in (typing.ClassVar, typing.Final):
        kind = get_args(kind)[0]
    return getattr(kind, "__supertype__", kind)


def _of_union(kinds: tuple[Any, ...], value: Any, limits: Mapping[str, float]) -> Any:
    # any text is a str or a path, so what else it may be is tried before
    for kind in sorted(kinds, key=lambda kind: kind in (str, Path)):
        try:
            return _read(kind, value, limits)
        except ValueError:
            continue
    raise ValueError


def _of_literal(allowed: tuple[Any, ...], value: Any) -> Any:
    for choice in (str(value) if isinstance(value, Given) else value, _from_json(value)):
        for word in allowed:
            if type(word) is type(choice) and word == choice:
                return word
    raise ValueError


def _of_sequence(kind: Any, value: Any, limits: Mapping[str, float]) -> Any:
    if isinstance(value, str) or not isinstance(value, (list, tuple, np.ndarray)):
        raise ValueError
    parts, exact = get_args(kind), (get_origin(kind) or kind) is tuple
    each = [parts[0] if parts else Any] * len(value)
    if exact and parts and parts[-1] is not Ellipsis:
        each = list(parts)
    if len(each) != len(value):
        raise ValueError
    read = [_read(part, entry, limits) for part, entry in zip(each, value, strict=True)]
    return tuple(read) if exact or isinstance(value, tuple) else read


def _of_enum(kind: type[enum.Enum], value: Any) -> Any:
    for member in kind:
        if value is member or value == member.value or value == member.name:
            return member
    raise ValueError


def _of_class(kind: Any, value: Any) -> Any:
    try:
        fits = callable(value) if kind is collections.abc.Callable else isinstance(value, kind)
    except TypeError:  # isinstance takes no such annotation
        return value
    if not fits:
        raise ValueError
    return value


def _of_nothing(value: Any, limits: Mapping[str, float]) -> None:
    if not (value is None or (isinstance(value, Given) and value.lower() in ("none", "null"))):
        raise ValueError


def _of_bool(value: Any, limits: Mapping[str, float]) -> bool:
    if isinstance(value, Given) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError
    return bool(value)


def _of_int(value: Any, limits: Mapping[str, float]) -> int:
    number = _from_json(value)
    if isinstance(number, (bool, np.bool_)):
        raise ValueError
    if isinstance(number, (float, np.floating)) and float(number).is_integer():
        number = int(number)
    try:
        whole = operator.index(number)
    except TypeError:
        raise ValueError from None
    _check_range(whole, limits)
    return whole


def _of_float(value: Any, limits: Mapping[str, float]) -> float:
    number = _from_json(value)
    if not isinstance(number, (int, float, np.integer, np.floating)) or isinstance(number, bool):
        raise ValueError
    try:
        real = float(number)
    except OverflowError:
        raise ValueError from None
    if math.isnan(real) or (math.isinf(real) and not limits.get("infinite")):
        raise ValueError
    _check_range(real, limits)
    # a whole number is one, and shows itself as it was given
    return number if isinstance(number, int) else real


def _of_text(value: Any, limits: Mapping[str, float]) -> str:
    if isinstance(value, Given):
        text = _from_json(value) if value.startswith('"') else value
        return str(text)
    if not isinstance(value, str):
        raise ValueError
    return value


def _of_anything(value: Any, limits: Mapping[str, float]) -> Any:
    return _from_json(value)


_SIMPLE: Mapping[Any, Callable[[Any, Mapping[str, float]], Any]] = {
    Any: _of_anything,
    object: _of_anything,
    inspect.Parameter.empty: _of_anything,
    None: _of_nothing,
    type(None): _of_nothing,
    bool: _of_bool,
    int: _of_int,
    float: _of_float,
    str: _of_text,
}


def _check_range(value: float, limits: Mapping[str, float]) -> None:
    keeps = {"least": operator.ge, "most": operator.le, "above": operator.gt, "below": operator.lt}
    if not all(keep(value, limits[name]) for name, keep in keeps.items() if name in limits):
        raise ValueError


def _from_json(value: Any) -> Any:
    """What a text of the command line says as JSON, or the text itself where it is none."""
    if not isinstance(value, Given):
        return value
    read = setting_value(value)
    return str(read) if isinstance(read, Given) else read


def setting_value(text: str) -> Any:
    """A setting from the command line: JSON, or the text itself (:class:`Given`) where it is none.

    Raises:
        InputError: it is JSON that is nested without end, or a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return Given(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"The value {text[:40]!r}... of a setting cannot be read ({error}); give a shorter one."
        ) from None


# -- messages


_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    str: "a text",
    type(None): "none",
    None: "none",
    Any: "a value",
    object: "a value",
    Path: "a path",
}


def _told(kind: Any, limits: Mapping[str, float]) -> str:
    """What is allowed, in words."""
    kind, origin = _bare(kind), get_origin(_bare(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_told(part, limits) for part in get_args(kind)))
    if origin is Literal:
        words = [repr(word) for word in get_args(kind)]
        return f"one of {', '.join(words)}" if len(words) > 1 else words[0]
    if kind in (int, float):
        return f"{'a whole number' if kind is int else 'a number'}{_range(limits)}"
    if origin in _SEQUENCES or kind in _SEQUENCES:
        return _told_sequence(kind, limits)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return f"one of {', '.join(member.name for member in kind)}"
    return _WORDS.get(kind) or f"a {getattr(origin or kind, '__name__', kind)}"


def _told_sequence(kind: Any, limits: Mapping[str, float]) -> str:
    parts = get_args(kind)
    if not parts:
        return "a list"
    if (get_origin(kind) is tuple) and parts[-1] is not Ellipsis:
        return f"a list of {len(parts)}: {', '.join(_told(part, limits) for part in parts)}"
    return f"a list, each {_told(parts[0], limits)},"


def _range(limits: Mapping[str, float]) -> str:
    words = [
        text.format(f"{limits[name]:g}")
        for name, text in (
            ("least", "from {} on"),
            ("above", "above {}"),
            ("most", "at most {}"),
            ("below", "below {}"),
        )
        if name in limits
    ]
    if "least" in limits and "most" in limits:
        words = [f"from {limits['least']:g} to {limits['most']:g}"]
    return f" {' and '.join(words)}" if words else ""


def _words(kind: Any) -> list[str]:
    """The words among which a text has to be."""
    kind = _bare(kind)
    if get_origin(kind) is Literal:
        return [word for word in get_args(kind) if isinstance(word, str)]
    return (
        [word for part in get_args(kind) for word in _words(part)]
        if get_origin(kind) in (Union, types.UnionType)
        else []
    )
