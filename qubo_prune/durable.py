"""Files and folders that are on the disk whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qubo_prune.errors import InputError


@contextmanager
def written_whole(path: str | Path, flushed: bool = True) -> Iterator[Path]:
    """A name beside ``path`` to write a file under, which takes its place only once complete and flushed.

    If anything fails, an interrupt included, the file is as it was.

    Args:
        path: the file.
        flushed: wait until it is on the disk; only what nobody will look for after a power cut can do without.

    Raises:
        InputError: the disk filled up.
    """
    target = Path(path)
    aside = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        aside.touch()
        mode = aside.stat().st_mode  # what the umask lets be; some writers make their files private
        yield aside
        aside.chmod(mode)
        if flushed:
            flush(aside)
        aside.replace(target)
        if flushed:
            flush(target.parent)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if disk_full(error):
            raise InputError(
                f"The disk filled up while {str(target)!r} was written; it is as it was. Free some space, or give a "
                "place on another disk."
            ) from error
        raise


def write_whole(path: str | Path, text: str) -> None:
    """A text file, in UTF-8, that appears only once complete."""
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


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
