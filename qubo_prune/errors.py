"""Errors whose message says what was given, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class QuboPruneError(Exception):
    """Base class of the errors this package raises on purpose."""


class InputError(QuboPruneError, ValueError):
    """The caller gave something that cannot be used; the command line exits with code 2."""


class SettingError(InputError, TypeError):
    """A setting that a solver does not have, or a value that does not fit it."""


class SolverError(QuboPruneError):
    """A solver could not be loaded, or answered with something that is not a solution."""


class MethodError(QuboPruneError, RuntimeError):
    """A method of another distribution failed, or decided what cannot be put into a model."""


def as_sentence(text: str) -> str:
    """The text with a capital and a full stop; an address at its beginning stays as it is."""
    text = text.strip()
    ended = text if not text or text[-1] in ".!?" else f"{text}."
    first = ended.split(maxsplit=1)[0] if ended else ""
    return ended if ":" in first[:-1] else ended[:1].upper() + ended[1:]


def near_entry(path: str | Path, *others: str) -> str:
    """Return near names, as :func:`did_you_mean` does, for a file or folder that does not exist.

    They are taken from what lies beside it, and from ``others``.
    """
    wanted = Path(path)
    with suppress(RuntimeError):  # no such user
        wanted = wanted.expanduser()
    try:
        beside = sorted(
            entry.name
            for entry in wanted.parent.iterdir()
            if not entry.name.startswith(".") and entry.name != wanted.name  # which is what was given
        )
    except (OSError, ValueError):
        beside = []
    return did_you_mean(wanted.name, [*beside, *others])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'a' or 'b'?)"`` for the nearest names, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
