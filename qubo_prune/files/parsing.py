"""Text and JSON from files that anybody may have written: of limited size, every key once, numbers that are numbers."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from qubo_prune.errors import InputError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def short(value: Any, most: int = 40) -> str:
    """The value's ``repr`` for a message, cut off after ``most`` characters; its type if that has none."""
    try:
        text = repr(value)
    except Exception:  # of an object of somebody else's
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def expanded(path: str | Path) -> Path:
    """The path with ``~`` as the home directory; raises :class:`InputError` if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"The path {short(str(path))} is not understood ({error}); write it out.") from None


def limited_text(path: Path, most: int) -> str:
    """The text of a file of at most ``most`` bytes, UTF-8; a byte-order mark is left out.

    Raises:
        FileNotFoundError: there is no such file; folders, pipes and devices are none.
        InputError: it is larger, it is no text, or it cannot be read.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(path)
        with path.open("rb") as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise InputError(f"the file has {path.stat().st_size} bytes; at most {most} are read.")
        return plain_text(content)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror}); check its name and its permissions.") from None


#: What a text of another encoding begins with; the longer ones first, since one begins with another.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def plain_text(content: bytes) -> str:
    """UTF-8 as text with the line ends of Unix and without a byte-order mark.

    Raises:
        InputError: it is another encoding, or no text.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            raise InputError(f"the file is {encoding} by its byte-order mark; save it as UTF-8.")
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"byte {error.start} is not UTF-8; only text files are read.") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strict_json(text: str, constants: bool = False) -> Any:
    """The value of a JSON text in which every key of an object stands once.

    Args:
        text: the text.
        constants: ``NaN``, ``Infinity`` and ``-Infinity`` are taken too, as Python writes them.

    Raises:
        InputError: it is no JSON, a key stands twice, or it is nested too deeply.
    """

    def refuse(constant: str) -> Any:
        raise InputError(f"line {_line_of(constant, text)}: {constant} is found; only finite numbers are allowed.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"the key {short(key)} stands twice; give it once.")
            found[key] = value
        return found

    try:
        return json.loads(text, parse_constant=None if constants else refuse, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InputError(f"line {error.lineno}, column {error.colno}: {error.msg}; this is no JSON.") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"this JSON cannot be read: {error}.") from None


def _line_of(constant: str, text: str) -> int:
    """Where a constant stands outside of strings."""
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|-?\b(?:NaN|Infinity)\b', text):
        if match[0] == constant:
            return text.count("\n", 0, match.start()) + 1
    return 1


def is_plain(text: Any, most: int = 1000) -> bool:
    """Whether something is a text of one line without control characters, and not longer than ``most``."""
    return isinstance(text, str) and len(text) <= most and not _CONTROL.search(text)


def one_line(text: str, most: int) -> str:
    """A text in one line, without control characters, cut off after ``most`` characters."""
    return " ".join(_CONTROL.sub(" ", text).split())[:most]
