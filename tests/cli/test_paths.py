"""Every command with paths that are no good: exit code 2 and one sentence, whatever is wrong with them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pictures
import pytest
import tiny
from typer.testing import CliRunner

from qubo_prune.cli import app
from qubo_prune.formats.text import write_problem
from qubo_prune.problem import BlockQubo

PRUNE = "prune dense --calibration text.txt --samples 4 --sequence-length 16"
#: Where a command takes a path that it reads; ``PATH`` is put there.
READS = (
    "prune PATH --output out",
    "prune PATH --dry-run",
    "prune PATH --weights disk --output out",
    "prune dense --calibration PATH --output out",
    "prune dense --calibration text.txt --images PATH --output out",
    "prune dense --calibration text.txt --warm-start PATH.safetensors --output out",
    "watch PATH",
    "watch PATH --once --json",
    "eval PATH",
    "eval dense --text PATH",
    "compare PATH --text text.txt",
    "compare dense --text PATH",
    "compare dense --calibration PATH",
    "solve PATH --format json",
    "solve PATH --format coo",
    "solve PATH --format lp",
    "bench report PATH",
    "bench solvers --suite PATH --output out",
    "bench garment --data PATH --output out",
    "bench mlpnet --data PATH",
    "bench vit --model dense --images PATH --test-images PATH",
    "bench llm --model PATH",
    "bench llm --model dense --methods wanda --calibration PATH",
    "bench llm --model dense --methods wanda --text PATH",
    "bench blocks --model PATH",
    "bench blocks --model dense --calibration PATH",
    "instances check PATH",
    "instances list PATH",
)
#: Where it takes one that it writes.
WRITES = (
    f"{PRUNE} --output PATH",
    f"{PRUNE} --output PATH --overwrite",
    f"{PRUNE} --output out --run-folder PATH",
    f"{PRUNE} --output out --log-file PATH",
    "compare dense --calibration text.txt --output PATH",
    "solve problem.json --output PATH",
    "bench solvers --suite smoke --output PATH",
    "bench tones --output PATH",
    "bench llm --model dense --calibration text.txt --output PATH",
    "bench blocks --model dense --calibration text.txt --output PATH",
    "instances make PATH --suite smoke",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory to stand in, with one of everything; nothing may change in it."""
    folder = tmp_path_factory.mktemp("work")
    tiny.save(folder / "dense")
    pictures.classifier(folder / "tiny-vit")
    (folder / "text.txt").write_text(tiny.text(), encoding="utf-8")
    write_problem(BlockQubo(np.eye(4), 2), folder / "problem.json")
    (folder / "empty").write_text("")
    (folder / "nothing").mkdir()
    (folder / "latin.txt").write_bytes("grün".encode("latin-1"))
    (folder / "wide.txt").write_text("wide", encoding="utf-16")
    (folder / "broken").symlink_to("missing")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(autouse=True)
def nothing_long_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing looks for models elsewhere, and no suite or network is made."""

    def fail(*args: object, **named: object) -> None:
        raise AssertionError("this should have been refused before")

    def none(*args: object) -> Iterator[object]:
        fail()
        yield

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("qubo_prune.bench.making._origins", none)
    monkeypatch.setattr("qubo_prune.bench.networks.store_cached", fail)


def refused(line: str, path: str) -> str:
    """The sentence that a command ends with."""
    before = sorted(Path().rglob("*"))
    arguments = [word.replace("PATH", path) for word in line.split()]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SystemExit), (line, path, result.exception)
    assert (result.exit_code, result.stdout) == (2, ""), (line, path, result.stdout, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert lines, (line, path)
    assert lines[-1].startswith("Error: "), (line, path, result.stderr)
    assert "Traceback" not in result.stderr
    assert len(lines[-1]) < 1500
    assert sorted(Path().rglob("*")) == before, (line, path)
    return lines[-1]


NO_READS = {
    "nothing": "",
    "missing": "./missing",
    "long": "x" * 300,
    "null": "a\0b",
    "surrogate": "./\udcff\udc80",
    "user": "~no-such-user/x",
    "link": "./broken",
    "loop": "./loop",
    "empty": "./empty",
    "folder": "./nothing",
    "pipe": "./pipe",
    "device": "/dev/null",
    "inside": "text.txt/inside",
    "spaces": "  ",
    "dash": "./--help",
}
NO_WRITES = {
    "long": "x" * 300,
    "null": "a\0b",
    "user": "~no-such-user/x",
    "loop": "./loop/out",
    "file": "./text.txt",
    "inside": "text.txt/inside",
    "pipe": "pipe/inside",
    "device": "/dev/null/inside",
    "model": "dense/config.json",
}


ALL = [
    *((line, path) for line in READS for path in NO_READS.values()),
    *((line, path) for line in WRITES for path in NO_WRITES.values()),
]
#: Every command with one path that is not there and one more, each kind in turn.
SOME = [
    *((line, path) for i, line in enumerate(READS) for path in ("./missing", [*NO_READS.values()][i % len(NO_READS)])),
    *((line, path) for i, line in enumerate(WRITES) for path in [[*NO_WRITES.values()][i % len(NO_WRITES)]]),
]


@pytest.mark.parametrize(("line", "path"), SOME)
def test_a_path_that_is_no_good_is_one_sentence(work: Path, line: str, path: str) -> None:
    refused(line, path)


@pytest.mark.slow
def test_all_commands_and_all_such_paths(work: Path) -> None:
    for line, path in ALL:
        refused(line, path)


@pytest.mark.parametrize(
    ("line", "path", "told"),
    [
        (
            "prune PATH --output out",
            "tiny-vit",
            "'tiny-vit' is an image classifier (ViTForImageClassification), not a "
            "language model; to prune it, give --images with a folder",
        ),
        ("eval PATH", "tiny-vit", "is an image classifier"),
        ("prune dense --sequence-length 16 --calibration PATH --output out", "latin.txt", "is not UTF-8"),
        ("prune dense --sequence-length 16 --calibration PATH --output out", "wide.txt", "is UTF-16 by its byte"),
        ("solve PATH --format coo", "wide.txt", "is UTF-16 by its byte-order mark; save it as UTF-8"),
        ("solve PATH --format coo", "empty", "no line 'i j value' is found"),
        ("solve PATH --format json", "nothing", "there is no such file"),
        ("solve PATH --format json", "pipe", "is a pipe or a device; save it to a file, or give '-'"),
        ("solve problem.json --output PATH", "problem.json", "is the problem, which would be replaced"),
        ("solve problem.json --output PATH", "dense/config.json", "is a file that no earlier result here wrote"),
        (f"{PRUNE} --output out --log-file PATH", "text.txt", "is there and no log of this program"),
        (f"{PRUNE} --output out --run-folder PATH --resume", "dense", "which no run wrote"),
        ("watch PATH", "nothing", "There is no run in 'nothing'"),
        ("bench solvers --suite smoke --output PATH", "text.txt", "is a file; give a folder"),
        ("instances make PATH --suite smoke", "text.txt/inside", "is no folder to write into"),
    ],
)
def test_what_is_said_of_some_of_them(work: Path, line: str, path: str, told: str) -> None:
    assert told in refused(line, path)


@pytest.mark.parametrize(
    "line",
    [
        f"{PRUNE} --output out --seed -1",
        "solve problem.json --seed -1",
        "compare dense --text text.txt --seed -1",
        "bench solvers --suite smoke --seeds -1",
        "bench garment --seeds 0",
        "bench blocks --model dense --seed -1",
        "solve problem.json --answers -1",
        "solve problem.json --num-pruned -1",
        "solve problem.json --time-limit -1s",
        "solve",
        "watch",
        "nosuch",
        "solve problem.json --nosuch",
        "solve problem.json --seed x",
    ],
)
def test_numbers_and_words_that_are_no_good_are_one_sentence(work: Path, line: str) -> None:
    refused(line, "")


def test_a_page_of_another_kind_is_not_replaced_by_a_suite_or_a_report(work: Path) -> None:
    (work / "README.md").write_text("mine")
    try:
        said = refused("instances make PATH --suite smoke", ".")
        assert "holds 'README.md', which would be replaced" in said
    finally:
        (work / "README.md").unlink()


COMMAND = [sys.executable, "-c", "from qubo_prune.cli import main; main()"]


def test_a_problem_from_standard_input(work: Path) -> None:
    text = (work / "problem.json").read_text()
    result = CliRunner().invoke(app, ["solve", "-", "--format", "json", "--json"], input=text)
    assert result.exit_code == 0, result.stderr
    assert '"energy": 2.0' in result.stdout
    assert "Give --format" in refused("solve -", "") or "format" in refused("solve -", "")
    result = CliRunner().invoke(app, ["solve", "-", "--format", "coo"], input="1 1 1\n")
    assert (result.exit_code, "no line names the variable 0" in result.stderr) == (2, True)


@pytest.mark.slow
def test_an_answer_goes_to_a_device_and_leaves_it_one(work: Path) -> None:
    result = CliRunner().invoke(app, ["solve", "problem.json", "--output", "/dev/null", "-q"])
    assert result.exit_code == 0, result.stderr
    assert Path("/dev/null").is_char_device()
    done = subprocess.run(
        [*COMMAND, "solve", "problem.json", "--output", "/dev/stdout", "-q"], capture_output=True, text=True, check=True
    )
    assert '"energy": 2.0' in done.stdout


@pytest.mark.gate(1)
@pytest.mark.parametrize(("redirect", "code"), [("| (exec 0<&-; sleep 0)", 141), ("> /dev/full", 2)])
def test_output_that_nobody_takes_is_no_traceback(work: Path, redirect: str, code: int) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    script = f"import os, time; {COMMAND[-1]}" if code == 2 else f"import time; time.sleep(0.3); {COMMAND[-1]}"
    line = f'set -o pipefail; {sys.executable} -c "{script}" solve problem.json --json {redirect}'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == (code == 2)


@pytest.mark.slow
def test_a_name_that_no_encoding_has_is_solved_and_shown(work: Path) -> None:
    name = os.fsencode(work) + b"/\xff.json"
    Path(os.fsdecode(name)).write_text((work / "problem.json").read_text())
    try:
        for more in ([], ["--json"], ["--output", os.fsdecode(os.fsencode(work) + b"/out\xfe.json")]):
            done = subprocess.run([*COMMAND, "solve", os.fsdecode(name), *more], capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
            assert b"2" in done.stdout
    finally:
        for file in work.glob("*.json"):
            if file.name != "problem.json":
                file.unlink()


WRITERS = {
    "solve": "solve problem.json --output out.json -q",
    "prune": f"{PRUNE} --method wanda --output out -q",
    "run folder": f"{PRUNE} --method wanda --output out --run-folder run -q",
    "compare": "compare dense --methods wanda --calibration text.txt --text text.txt --samples 2 --eval-samples 2 "
    "--sequence-length 16 --output out -q",
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_at_every_step(
    work: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = sorted(work.rglob("*"))
    real, steps = os.fsync, [0, 10**9]

    def full(descriptor: int) -> None:
        steps[0] += 1
        if steps[0] >= steps[1]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    for last in (1, 2, 5):
        steps[:] = [0, last]
        result = CliRunner().invoke(app, WRITERS[name].split())
        if result.exit_code == 0:  # only that the folder's entry is on the disk could not be made sure
            assert last > 1
            break
        assert result.exit_code == 2, (last, result.exception)
        assert result.stderr.startswith("Error: The disk filled up while"), result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        shutil.rmtree(work / "run", ignore_errors=True)
        assert sorted(work.rglob("*")) == before
    for left in (work / "out", work / "run"):
        shutil.rmtree(left, ignore_errors=True)
    (work / "out.json").unlink(missing_ok=True)
