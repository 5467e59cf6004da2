"""Files and folders that are on the disk whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qubo_prune.errors import InputError


@contextmanager
def written_whole(path: str | Path, flushed: bool = True) -> Iterator[Path]:
    """A name beside ``path`` to write a file under, which takes its place only once complete and flushed.

    If anything fails, an interrupt included, the file is as it was. A link is replaced, not what it leads to. Devices
    and pipes, such as ``/dev/stdout``, are never replaced: what was written goes into them.

    Args:
        path: the file.
        flushed: wait until it is on the disk; only what nobody will look for after a power cut can do without.

    Raises:
        InputError: the disk filled up, or there is no place for the file.
    """
    target = Path(path)
    if is_stream(target):
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder, target.name)
            yield aside
            with aside.open("rb") as source, target.open("wb") as stream:
                shutil.copyfileobj(source, stream)
        return
    # names have at most 255 bytes
    aside = target.with_name(f".{target.name[:40]}.partial-{os.getpid()}")
    _check_place(target, aside)
    try:
        mode = aside.stat().st_mode  # what the umask lets be; some writers make their files private
        yield aside
        aside.chmod(mode)
        if flushed:
            flush(aside)
        aside.replace(target)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if disk_full(error):
            raise _full(target) from error
        raise
    if flushed:
        with suppress(OSError):  # the file is there, whole, whether or not a power cut would undo that
            flush(target.parent)


def _check_place(target: Path, aside: Path) -> None:
    """Begin the file beside the target; raises :class:`InputError` where that cannot be."""
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        aside.touch()
    except (OSError, ValueError) as error:
        if disk_full(error):
            raise _full(target) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{str(target)!r} cannot be written ({reason}); give a file in a folder that is there and open to you."
        ) from error


def is_stream(path: Path) -> bool:
    """Whether a path names a device, a pipe, or what the process has open already."""
    beginning = path.absolute().parts[1:2]
    return beginning in (("dev",), ("proc",)) or (path.exists() and not path.is_file() and not path.is_dir())


def atomic_write(path: str | Path, text: str) -> None:
    """A text file, in UTF-8, that appears only once complete; what UTF-8 cannot say of a file's name is escaped."""
    with written_whole(path) as aside:
        aside.write_bytes(text.encode("utf-8", "backslashreplace"))


def _full(target: Path) -> InputError:
    return InputError(
        f"The disk filled up while {str(target)!r} was written; it is as it was. Free some space, or give a place on "
        "another disk."
    )


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    """The same for a folder and everything in it."""
    for path in (*folder.rglob("*"), folder):
        flush(path)


def disk_full(error: BaseException) -> bool:
    """True if it says that no space was left, or none that a limit allows."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # the writer of safetensors is compiled and gives the reason as text only
    return "No space left on device" in str(error)
