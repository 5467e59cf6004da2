"""Arguments in the plain forms that people give them in: numbers and times as text, one pattern without a list."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from qubo_prune.choices import WholeRow
from qubo_prune.errors import InputError
from qubo_prune.files.parsing import short

#: What else a list of several numbers may mean.
_SEVERAL = {"density": " (for layers of their own densities give densities=, for several runs compare)"}


def as_shares(name: str, value: Any) -> dict[str, float]:
    """Numbers by patterns of names."""
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is of type {type(value).__name__}; give a dict of pattern and kept share.")
    return {key: as_number(f"{name}[{key!r}]", share) for key, share in value.items()}


def as_number(name: str, value: Any) -> float:
    """A number of any type, or text of one such as ``0.5`` or ``1/2``."""
    single = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if not isinstance(single, bool):
        try:
            return float(Fraction(single.strip()) if isinstance(single, str) else single)
        except (TypeError, ValueError, OverflowError, ZeroDivisionError, RuntimeError):
            pass
    raise InputError(f"{name} is {_shown(value)}; give one number, such as 0.5{_SEVERAL.get(name, '')}.")


def as_count(name: str, value: Any) -> int:
    """A whole number of any type, or text of one."""
    try:
        found = as_number(name, value)
    except InputError:
        found = math.nan
    if not math.isfinite(found) or found != int(found):
        raise InputError(f"{name} is {_shown(value)}; give a whole number, such as 32.")
    return int(found)


def as_block_size(name: str, value: Any) -> int | WholeRow:
    """Weights per block: a whole number of any type, or the word ``row`` for whole rows."""
    if isinstance(value, str) and value.strip() == "row":
        return "row"
    try:
        return as_count(name, value)
    except InputError:
        raise InputError(
            f"{name} is {_shown(value)}; give a whole number, such as 64, or 'row' for whole rows."
        ) from None


def as_names(name: str, value: Any) -> tuple[str, ...]:
    """Names or patterns; one alone needs no list."""
    if isinstance(value, str):
        return (value,)
    names = tuple(value) if isinstance(value, Iterable) else (value,)
    wrong = [each for each in names if not isinstance(each, str)]
    if wrong or not isinstance(value, Iterable):
        raise InputError(f"{name} is {_shown(value)}; give one text, or a list of them.")
    return names


def parse_seconds(value: float | str | None) -> float | None:
    """Seconds from a number or from text such as ``90``, ``500ms``, ``90s``, ``5m``, ``1.5h``."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(ms|[smh]?)\s*", str(value))
    try:
        seconds = float(match[1]) * {"": 1, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise InputError(f"The time {value!r} is not understood; give a positive number such as 90s, 5m or 1h.")
    return seconds


def text_as_seconds(value: float | str | None) -> float | None:
    """A time limit with text read as :func:`parse_seconds` reads it, and numbers as they are."""
    return parse_seconds(value) if isinstance(value, str) else value


def as_time(name: str, value: Any) -> float | None:
    """Seconds, as :func:`parse_seconds` reads them."""
    return parse_seconds(value)


def as_limit(name: str, value: Any) -> float | None:
    """A time limit in seconds, from a number or text as :func:`parse_seconds` reads it."""
    if value is None or isinstance(value, str):
        return parse_seconds(value)
    seconds = as_number(name, value)
    if not seconds > 0:
        raise InputError(f"{name} is {value}; pass a positive number of seconds or None.")
    return seconds


def _shown(value: Any) -> str:
    return f"{short(value, 57)} of type {type(value).__name__}"
