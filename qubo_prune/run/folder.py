"""The folder of a long run: its owner and lock, what was decided so far, and what happened.

``run.json`` says what the run was begun with. ``records/*.safetensors`` hold what was decided, each with a checksum
and written whole or not at all, so that a run may be killed at any moment. ``events.jsonl`` tells what happened.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor

from qubo_prune.errors import InputError, near_entry
from qubo_prune.files.atomic import atomic_write
from qubo_prune.files.checksummed import Damaged, Sealed, read_sealed, write_sealed
from qubo_prune.files.parsing import expanded, limited_text, strict_json

_FORMAT, _RECORD = "qubo_prune.run.folder.v1", "qubo_prune.record.v1"
MANIFEST, EVENTS, _LOCK = "run.json", "events.jsonl", "lock"
#: Bytes of a manifest that are read at most.
_MOST_MANIFEST = 2**24

_log = logging.getLogger(__name__)


class RunFolder:
    """A run's folder while this process has it; see :func:`opened`.

    Attributes:
        path: where it is.
        resumed: it held a run already.
        seconds: that this process has spent on it.
    """

    def __init__(self, path: Path, passing: bool = False) -> None:
        self.path, self.seconds, self._flushed = path, 0.0, not passing
        self.resumed = (path / MANIFEST).exists()
        self._identity = _read_manifest(path / MANIFEST) if self.resumed else {}
        (path / "records").mkdir(exist_ok=True)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def identify(self, part: str, given: Callable[[], Mapping[str, Any]]) -> None:
        """Say what the run is begun with, or check that it is what it was begun with.

        Args:
            part: what of it, such as ``configuration``.
            given: makes plain data.

        Raises:
            InputError: it is another run; the first difference is named.
        """
        with self._timed():
            self._identify(part, json.loads(json.dumps(given())))

    def _identify(self, part: str, plain: dict[str, Any]) -> None:
        if part in self._identity:
            difference = _difference(self._identity[part], plain)
            if difference:
                raise InputError(
                    f"The run in {str(self.path)!r} was begun with another {part}: {difference}; give what it was "
                    "begun with, or another run folder."
                )
            return
        self._identity[part] = plain
        text = json.dumps({"format": _FORMAT, "parts": self._identity}, indent=1)
        atomic_write(self.path / MANIFEST, text + "\n")

    def put(self, name: str, info: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Keep plain data and tensors under a name, in place of what was there."""
        with self._timed():
            write_sealed(self._file(name), _RECORD, Sealed(tensors or {}, dict(info)), self._flushed)
        _log.debug("Record %s was written.", name)

    def get(self, name: str) -> Sealed | None:
        """What is kept under a name; ``None`` if there is nothing.

        Raises:
            Damaged: it is there and cannot be trusted.
        """
        with self._timed():
            try:
                return read_sealed(self._file(name), _RECORD)
            except FileNotFoundError:
                return None

    def get_or_lost(self, name: str) -> tuple[Sealed | None, bool]:
        """What is kept under a name, and whether it is there but damaged, which is then as if there were nothing."""
        try:
            return self.get(name), False
        except Damaged as error:
            _log.warning("A record is done again: %s", error)
            return None, True

    def drop(self, name: str) -> None:
        """Forget what is kept under a name."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.path / "records" / f"{name}.safetensors"


@contextmanager
def opened(path: str | Path, resume: bool, passing: bool = False) -> Iterator[RunFolder]:
    """Take a run's folder for this process, and give it back.

    Args:
        path: the folder; made if it is not there.
        resume: go on with the run that it holds; begin one if it holds none.
        passing: the folder goes when the process ends, so nothing waits for the disk.

    Raises:
        InputError: it holds a run and ``resume`` is false, another process works in it, or it is no folder of a run.
    """
    folder = expanded(path).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The run folder {str(path)!r} cannot be made: {error.strerror}.") from error
    _check_entries(folder, path)
    # the system takes the lock back when the process ends, however it ends
    lock = filelock.FileLock(folder / _LOCK)
    try:
        # who only watches has the lock for a moment
        lock.acquire(timeout=1, poll_interval=0.02)
    except filelock.Timeout:
        raise _busy(path) from None
    try:
        if (folder / MANIFEST).exists() and not resume:
            raise _held(path)
        for left in folder.rglob(".*.partial-*"):  # of a process that was killed
            left.unlink(missing_ok=True)
        yield RunFolder(folder, passing)
    finally:
        lock.release()


def check_free(path: str | Path | None, resume: bool) -> None:
    """Raise what :func:`opened` would, without taking or changing anything.

    Args:
        path: of the folder, if one was named.
        resume: go on with the run that it holds.
    """
    if path is None:
        if resume:
            raise InputError("resume is given and no run_folder; name the folder of the run to go on with.")
        return
    folder = expanded(path).absolute()
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"The run folder {str(path)!r} cannot be made: there is a file of that name.")
    _check_entries(folder, path)
    if is_running(folder):
        raise _busy(path)
    if (folder / MANIFEST).exists() and not resume:
        raise _held(path)


def _check_entries(folder: Path, path: str | Path) -> None:
    known = {MANIFEST, EVENTS, _LOCK, "records"}
    strange = [entry.name for entry in folder.iterdir() if entry.name not in known and ".partial-" not in entry.name]
    if strange:
        raise InputError(f"The run folder {str(path)!r} holds {strange[0]!r}, which no run wrote; give an empty one.")


def _busy(path: str | Path) -> InputError:
    return InputError(f"Another process works in the run folder {str(path)!r}; wait for it, or give another folder.")


def _held(path: str | Path) -> InputError:
    return InputError(
        f"The run folder {str(path)!r} holds a run already; go on with it by resume, or give another folder."
    )


def is_running(path: Path) -> bool:
    """True if a process works in the folder now."""
    if not (path / _LOCK).exists():
        return False
    lock = filelock.FileLock(path / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def read_manifest(path: str | Path) -> dict[str, Any]:
    """What the run in a folder was begun with; raises :class:`InputError` if there is none."""
    file = Path(path) / MANIFEST
    if not file.is_file():
        raise InputError(f"There is no run in {str(path)!r}{near_entry(path)}; give the run folder of a prune command.")
    return _read_manifest(file)


def _read_manifest(file: Path) -> dict[str, Any]:
    wrong = f"{file} is not the manifest of a run of this version"
    try:
        plain = strict_json(limited_text(file, _MOST_MANIFEST), constants=True)
    except (InputError, FileNotFoundError) as error:
        raise InputError(f"{wrong}: {error}") from error
    if not isinstance(plain, dict) or plain.get("format") != _FORMAT or not isinstance(plain.get("parts"), dict):
        raise InputError(f"{wrong}; give another run folder.")
    parts: dict[str, Any] = plain["parts"]
    return parts


def _difference(before: Any, now: Any, name: str = "") -> str:
    """The first difference of two plain values as words; empty if there is none."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            found = _difference(before.get(key), now.get(key), f"{name}.{key}" if name else str(key))
            if found:
                return found
        return ""
    # NaN is itself here
    same = before == now or json.dumps(before) == json.dumps(now)
    return "" if same else f"{name} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
