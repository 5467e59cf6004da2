"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qubo_prune.errors import InputError
from qubo_prune.files.atomic import atomic_write, disk_full, written_whole


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file", "old")
    atomic_write(tmp_path / "file", "nëw")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "nëw"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with written_whole(tmp_path / "file") as aside:
            aside.write_text("half", encoding="utf-8")
            raise error

    atomic_write(tmp_path / "file", "old")
    with pytest.raises(error):
        fail()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_umask_holds(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_is_told_and_the_file_stays(tmp_path: Path) -> None:
    # a limit of the size of files is the nearest that a test can come to a full disk without one
    script = f"""
import resource, signal, sys
from pathlib import Path
from qubo_prune.files.atomic import atomic_write
from qubo_prune.errors import InputError
file = Path({str(tmp_path / "file")!r})
atomic_write(file, "old")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic_write(file, "x" * 5000)
except (InputError, OSError) as error:
    print(type(error).__name__)
print(file.read_text(encoding="utf-8"), [path.name for path in file.parent.iterdir()])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["InputError", "old ['file']"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_space_left_is_bad_input(tmp_path: Path, number: int) -> None:
    with pytest.raises(InputError, match="disk filled up"), written_whole(tmp_path / "file"):
        raise OSError(number, os.strerror(number))


def test_other_trouble_is_not_called_a_full_disk() -> None:
    assert not disk_full(OSError(errno.EACCES, "no"))
    assert not disk_full(RuntimeError("no"))
