"""Where results are written: what may be replaced there, and how one result takes the place of another.

Every folder that is written gets a list of its files, :data:`LISTING`. Only files of that list are ever replaced or
removed; a folder that holds anything else, or that the run itself needs, is rejected before anything is loaded.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from qubo_prune.errors import InputError
from qubo_prune.files.atomic import atomic_write, disk_full, flush_all, is_stream
from qubo_prune.files.parsing import limited_text, short, strict_json

#: The list of files in a folder that was written here.
LISTING = ".qubo-prune.json"
_FORMAT = "qubo_prune.output"
#: Bytes of a list, and names of strange files in a message, at most.
_MOST_BYTES, _MOST_NAMES = 2**24, 3

#: What a run reads or keeps: paths, one or several, or texts that may be one and are passed over if they are none here.
Needed = Mapping[str, str | Path | Sequence[str | Path] | None]

_log = logging.getLogger(__name__)


def located(path: str | Path, what: str = "output folder") -> Path:
    """The absolute path behind links, ``..`` and ``~``; raises :class:`InputError` if no system takes it."""
    try:
        found = Path(path).expanduser().resolve()
        found.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, an unknown user, a null byte, too long
        raise InputError(f"The {what} {short(str(path))} is no path ({error}); give another one.") from None
    return found


def check_output(output: str | Path, overwrite: bool, needed: Needed | None = None) -> Path:
    """The folder to write to, links followed; nothing is made.

    Args:
        output: the folder.
        overwrite: an earlier result that is there may be replaced.
        needed: what the run reads or keeps.

    Raises:
        InputError: it is, holds or lies in something that is needed, or it holds what may not be replaced.
    """
    path = located(output)
    if path.exists() and not path.is_dir():
        raise InputError(f"The output {str(output)!r} is a file; give a folder.")
    _check_apart(path, output, needed or {})
    if path.is_dir():
        _check_replaceable(path, output, overwrite)
    _check_place(path.parent, output)
    return path


def _check_place(path: Path, output: str | Path) -> None:
    """Raise :class:`InputError` unless the path, or what is there of it, is a folder to write into."""
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(
            f"The output folder {str(output)!r} cannot be made: {there} is no folder to write into; give another "
            "folder."
        )


def _check_apart(path: Path, output: str | Path, needed: Needed) -> None:
    with suppress(FileNotFoundError):  # a current directory that was removed
        _check_around(path, output, "current directory", Path.cwd())
    with suppress(RuntimeError):  # no home
        _check_around(path, output, "home directory", Path.home())
    for what, given in needed.items():
        for place in [given] if isinstance(given, str | Path) else given or ():
            if isinstance(place, str) and not _is_there(place):
                continue
            found = located(place, what)
            _check_around(path, output, what, found)
            if not found.is_file() and found in path.parents:
                raise InputError(
                    f"The output folder {str(output)!r} lies in the {what} {str(place)!r}; give one outside of it."
                )


def _check_around(path: Path, output: str | Path, what: str, place: Path) -> None:
    place = place.resolve()
    if path == place or path in place.parents:
        does = "is" if path == place else "holds"
        raise InputError(
            f"The output folder {str(output)!r} {does} the {what}, which would be replaced; give another folder."
        )


def _is_there(place: str | Path) -> bool:
    try:
        return str(place) != "" and Path(place).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _check_replaceable(path: Path, output: str | Path, overwrite: bool) -> None:
    try:
        strange = strangers(path)
        empty = not any(path.iterdir())
    except OSError as error:
        raise InputError(
            f"The output folder {str(output)!r} cannot be read: {error.strerror}; give another folder."
        ) from error
    if not empty and not overwrite:
        rest = "; give another one." if strange else "; give another one or --overwrite."
        raise InputError(f"The output folder {str(output)!r} is not empty{rest}")
    if strange:
        raise InputError(
            f"The output folder {str(output)!r} holds {_named(strange)}, which no earlier result here wrote; give "
            "another folder, or move that elsewhere first."
        )
    if path.is_mount():
        raise InputError(f"The output folder {str(output)!r} is a mount point, which stays; give a folder in it.")


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(map(short, names[:_MOST_NAMES]))
    return f"{shown} and more" if len(names) > _MOST_NAMES else shown


def strangers(folder: Path) -> list[str]:
    """Some of what a folder holds besides the files of its list, if there is anything."""
    known = _listed(folder)
    if not known:
        return sorted(entry.name for entry in folder.iterdir() if entry.name != LISTING)

    def fail(error: OSError) -> None:
        raise error

    found: list[str] = []
    for place, folders, files in os.walk(folder, onerror=fail):
        at = Path(place).relative_to(folder)
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in [*files, *links]:
            inner = (at / name).as_posix()
            if (inner not in known and inner != LISTING) or not _is_plain_file(folder / inner):
                found.append(inner)
        if not folders and not files and place != str(folder):
            found.append(at.as_posix())
        if len(found) > _MOST_NAMES:
            break
    return sorted(found)


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _listed(folder: Path) -> frozenset[str]:
    """The files of a folder's list; none without one."""
    try:
        plain: Any = strict_json(limited_text(folder / LISTING, _MOST_BYTES))
        names = plain["files"] if plain["format"] == _FORMAT else []
        return frozenset(name for name in names if isinstance(name, str))
    except (InputError, FileNotFoundError, KeyError, TypeError):
        return frozenset()


def list_files(folder: Path, names: Iterable[str]) -> None:
    """Add files to a folder's list."""
    text = json.dumps({"format": _FORMAT, "files": sorted(_listed(folder) | set(names))}, indent=1)
    atomic_write(folder / LISTING, text + "\n")


def check_added(folder: str | Path, names: Iterable[str], sign: tuple[str, str] | None = None) -> Path:
    """A folder that files are added to, one after another, beside what else is in it; nothing is made.

    Args:
        folder: the folder.
        names: of the files.
        sign: a file with a ``format`` by which a folder without a list is known, such as one of an earlier version.

    Raises:
        InputError: it is no folder, or one of the files is there and was not written here.
    """
    path = located(folder)
    if path.exists() and not path.is_dir():
        raise InputError(f"The output {str(folder)!r} is a file; give a folder.")
    _check_place(path, folder)
    known = _listed(path)
    taken = [name for name in names if os.path.lexists(path / name) and name not in known]
    if taken and not (sign is not None and _has_format(path / sign[0], sign[1])):
        raise InputError(
            f"The output folder {str(folder)!r} holds {_named(taken)}, which would be replaced and which no earlier "
            "result here wrote; give another folder."
        )
    return path


def _has_format(file: Path, format: str) -> bool:
    try:
        plain = strict_json(limited_text(file, 2**28), constants=True)
    except (InputError, FileNotFoundError):
        return False
    return isinstance(plain, dict) and plain.get("format") == format


def check_file(output: str | Path, ours: Callable[[Any], bool], needed: Needed) -> Path:
    """A JSON file to write; devices and pipes are taken as they are.

    Args:
        output: the file.
        ours: whether the content of a JSON file is an earlier result.
        needed: what the command reads.

    Raises:
        InputError: there is no folder for it, it is needed, or it holds something else.
    """
    given, path = str(output), located(output, "output")
    if not given or path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{given or repr(given)} cannot be written: give a file in a folder that is there.")
    for what, places in needed.items():
        for place in [places] if isinstance(places, str | Path) else places or ():
            if _is_there(place) and path.exists() and path.samefile(Path(place).expanduser()):
                raise InputError(f"The output {given!r} is the {what}, which would be replaced; give another file.")
    if path.is_file() and path.stat().st_size and not is_stream(Path(output).expanduser()):
        try:
            earlier = ours(strict_json(limited_text(path, 2**28), constants=True))
        except (InputError, FileNotFoundError):
            earlier = False
        if not earlier:
            raise InputError(f"The output {given!r} is a file that no earlier result here wrote; give another one.")
    return Path(output).expanduser()


def made_output(path: Path) -> Path:
    """A folder that was checked, once the one around it is there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The output folder {str(path)!r} cannot be made: {error.strerror}; give another folder."
        ) from error
    return path


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write into; it takes the target's place only once complete, with its list.

    If anything fails, a full disk or an interrupt included, it is removed and the target is as it was. Of an old
    folder, only files of its list are removed.

    Raises:
        InputError: the disk filled up, or there is no place for the folder.
    """
    made_output(target)
    try:
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name[:50]}.partial-", dir=target.parent))
    except OSError as error:
        raise InputError(
            f"The output folder {str(target)!r} cannot be made: {error.strerror}; give another folder."
        ) from error
    try:
        yield aside
        list_files(aside, (path.relative_to(aside).as_posix() for path in aside.rglob("*") if path.is_file()))
        flush_all(aside)
        _replace(target, aside)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if disk_full(error):
            raise InputError(
                f"The disk filled up while {str(target)!r} was written; nothing was changed there. Free some "
                "space or give another output folder."
            ) from error
        raise


def _replace(target: Path, aside: Path) -> None:
    aside.chmod(0o755)  # mkdtemp makes it private
    if not os.path.lexists(target):
        aside.rename(target)
        return
    holder = Path(tempfile.mkdtemp(prefix=f".{target.name[:50]}.old-", dir=target.parent))
    old = holder / target.name
    try:
        target.rename(old)
        aside.rename(target)
    except BaseException as error:
        _bring_back(old, target, aside, error)
        raise
    # the new folder is there, whatever becomes of the old one: an interrupt that comes now is too late
    with suppress(OSError, KeyboardInterrupt):
        _remove_listed(old)


def _bring_back(old: Path, target: Path, aside: Path, error: BaseException) -> None:
    """Undo a swap, however far it went."""
    try:
        if old.exists():
            if os.path.lexists(target):
                target.rename(aside)
            old.rename(target)
    except OSError as again:
        raise InputError(
            f"The output folder {str(target)!r} could not be replaced ({error}), nor be put back ({again}); what was "
            f"in it is in {str(old)!r}."
        ) from error
    with suppress(OSError):
        old.parent.rmdir()


def _remove_listed(old: Path) -> None:
    """Remove an old folder but for files that came into it while the new one was made."""
    for name in (*_listed(old), LISTING):
        if _is_plain_file(old / name):
            (old / name).unlink()
    for place, _, _ in os.walk(old, topdown=False):
        with suppress(OSError):  # something strange is in it
            os.rmdir(place)
    if old.exists():
        _log.warning("Files that no result wrote were in the output folder and are now in %s.", old)
    else:
        old.parent.rmdir()
