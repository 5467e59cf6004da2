"""What happens in a run, as log records with plain data beside their sentence, and as JSON lines.

Every module logs to a logger of its own name, so that ``logging`` can be set up as usual. An event is a record with a
``kind`` and fields; a run's folder has them in ``events.jsonl``, one JSON object a line.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qubo_prune.errors import InputError
from qubo_prune.files.parsing import expanded

_ROOT = "qubo_prune"


def event(logger: logging.Logger, kind: str, sentence: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log a sentence with its data.

    Args:
        logger: of the module that it happens in.
        kind: of the event, one word.
        sentence: for people.
        level: of the record.
        **fields: plain data.
    """
    logger.log(level, "%s", sentence, extra={"event": {"kind": kind, **fields}})


class JsonLines(logging.Formatter):
    """A record as a JSON object: ``time`` (UTC), ``level``, ``logger``, ``message`` and an event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "event", {}), default=str)


def logged_to(
    path: str | Path | None, level: int = logging.INFO, only_events: bool = False
) -> AbstractContextManager[None]:
    """A context in which this package's records are appended to a file as JSON lines; none without a path.

    Args:
        path: the file.
        level: the lowest that is written.
        only_events: leave out records without a kind.

    Raises:
        InputError: the file cannot be written.
    """
    return nullcontext() if path is None else _logged_to(expanded(path), level, only_events)


@contextmanager
def _logged_to(path: Path, level: int, only_events: bool) -> Iterator[None]:
    _check_log(path)
    try:
        handler = _Handler(path, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"The log file {str(path)!r} cannot be written: {reason}; give a file in a folder that is there."
        ) from error
    handler.setFormatter(JsonLines())
    handler.setLevel(level)
    if only_events:
        handler.addFilter(lambda record: hasattr(record, "event"))
    logger = logging.getLogger(_ROOT)
    before = logger.level
    logger.addHandler(handler)
    if logger.getEffectiveLevel() > level:
        logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        with suppress(OSError):  # what a full disk did not take is lost
            handler.close()


def _check_log(path: Path) -> None:
    """Raise :class:`InputError` if lines would be appended to a file that is no log of this package."""
    try:
        if not path.is_file() or not path.stat().st_size:
            return
        with path.open("rb") as stream:
            first: Any = json.loads(stream.readline(2**20))
        ours = isinstance(first, dict) and {"time", "level", "logger", "message"} <= first.keys()
    except OSError:
        return  # opening it says why
    except ValueError:
        ours = False
    if not ours:
        raise InputError(f"The log file {str(path)!r} is there and no log of this program; give another one.")


class _Handler(logging.FileHandler):
    """A file whose trouble, such as a full disk, does not end a run of hours: the run goes on without the log."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on."""
