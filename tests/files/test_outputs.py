"""What a result may replace, and that whatever fails leaves the old one whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

from qubo_prune.cli import app
from qubo_prune.errors import InputError
from qubo_prune.files.outputs import (
    LISTING,
    check_added,
    check_file,
    check_output,
    list_files,
    strangers,
    written_aside,
)


def earlier(folder: Path, **files: str) -> Path:
    """A folder that holds an earlier result."""
    with written_aside(folder) as aside:
        for name, text in (files or {"model": "old"}).items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_text(text)
    return folder


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to stand in, with a model, a text, and an earlier result."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "models" / "tiny").mkdir(parents=True)
    (folder / "models" / "tiny" / "config.json").write_text("{}")
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("text")
    (folder / "link").symlink_to(folder / "models")
    earlier(folder / "out")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "me"))
    (tmp_path / "home" / "me").mkdir(parents=True)
    return folder


NEEDED = {
    "model": "models/tiny",
    "calibration text": "texts",
    "run folder": "run",
    "held-out text": ["pydoc", "x/y"],
    "run folder of later": Path("later/run"),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("output", "told"),
    [
        (".", "is the current directory"),
        ("", "is the current directory"),
        ("../work", "is the current directory"),
        ("models/../../work/.", "is the current directory"),
        ("..", "holds the current directory"),
        ("/", "holds the current directory"),
        ("~", "is the home directory"),
        ("~/..", "holds the home directory"),
        ("models/tiny", "is the model"),
        ("models", "holds the model"),
        ("link", "holds the model"),
        ("link/tiny", "is the model"),
        ("link/tiny/pruned", "lies in the model 'models/tiny'"),
        ("texts", "is the calibration text"),
        ("texts/new/er", "lies in the calibration text 'texts'"),
        ("run", "is the run folder"),
        ("run/out", "lies in the run folder 'run'"),
        ("texts/a.txt", "is a file"),
        ("out/model/new", "is no folder to write into"),
        ("later/run/out", "lies in the run folder of later"),
        ("later", "holds the run folder of later"),
        ("loop", "is no path"),
        ("x" * 300, "is no path"),
        ("a\0b", "is no path"),
        ("~nobody-of-this-name/out", "is no path"),
    ],
)
def test_what_a_run_needs_is_never_an_output(work: Path, output: str, told: str, overwrite: bool) -> None:
    (work / "run").mkdir()
    (work / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=told) as caught:
        check_output(output, overwrite, NEEDED)
    assert "\n" not in str(caught.value)


def test_a_model_in_a_file_and_its_folder(work: Path) -> None:
    (work / "models" / "m.gguf").write_text("")
    needed = {"model": work / "models" / "m.gguf"}
    with pytest.raises(InputError, match="holds the model"):
        check_output("models", True, needed)
    assert check_output("models/out", True, needed) == work / "models" / "out"


def test_new_empty_and_earlier_folders_are_outputs(work: Path) -> None:
    assert check_output("new/er", False, NEEDED) == work / "new" / "er"
    (work / "empty").mkdir()
    assert check_output("empty", False, NEEDED) == work / "empty"
    with pytest.raises(InputError, match="is not empty; give another one or --overwrite"):
        check_output("out", False, NEEDED)
    assert check_output("out", True, NEEDED) == work / "out"
    assert not (work / "new").exists()


def test_a_folder_with_anything_strange_stays(work: Path) -> None:
    changes: list[Callable[[Path], Any]] = [
        lambda out: (out / "notes.md").write_text("mine"),
        lambda out: (out / "deep" / "er").mkdir(parents=True),
        lambda out: (out / "notes").symlink_to(work / "texts"),
        lambda out: ((out / "model").unlink(), (out / "model").symlink_to(work / "texts" / "a.txt")),
        lambda out: (out / LISTING).unlink(),
        lambda out: (out / LISTING).write_text("{"),
        lambda out: (out / LISTING).write_text(json.dumps({"format": "other", "files": ["model"]})),
        lambda out: (out / "report.json").write_text("{}"),
    ]
    names = ["notes.md", "deep/er", "notes", "model", "model", "model", "model", "report.json"]
    for change, name in zip(changes, names, strict=True):
        shutil.rmtree(work / "out")
        change(earlier(work / "out"))
        with pytest.raises(InputError, match=f"holds .*'{name}'.*, which no earlier result here wrote"):
            check_output("out", True)
        with pytest.raises(InputError, match=r"is not empty; give another one\.$"):
            check_output("out", False)


def test_many_strange_files_are_not_all_named(work: Path) -> None:
    for i in range(9):
        (work / "out" / f"f{i}").write_text("")
    with pytest.raises(InputError, match=r"holds 'f\d', 'f\d', 'f\d' and more, which"):
        check_output("out", True)


def test_a_mount_point_is_no_output(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "out")
    with pytest.raises(InputError, match="is a mount point"):
        check_output("out", True)


def test_a_link_to_a_folder_stays_and_its_folder_is_replaced(work: Path) -> None:
    (work / "latest").symlink_to("out")
    target = check_output("latest", True)
    with written_aside(target) as aside:
        (aside / "model").write_text("new")
    assert (work / "latest").is_symlink()
    assert (work / "out" / "model").read_text() == "new"


def test_a_folder_that_cannot_be_read_is_one_sentence(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", fail)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        check_output("models", True)


def test_the_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    old = earlier(tmp_path / "out", **{"stale": "old", "deep/er": "old"})
    with written_aside(old) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "fresh").write_text("new")
    assert sorted(content(old)) == [LISTING, "sub/fresh"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert strangers(old) == []
    assert old.stat().st_mode & 0o777 == 0o755


def test_what_came_into_the_old_folder_meanwhile_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = earlier(tmp_path / "out")
    with written_aside(old) as folder:
        (folder / "model").write_text("new")
        (old / "notes").write_text("mine")
    assert content(old)["model"] == "new"
    kept = [p for p in tmp_path.rglob("notes") if p.read_text() == "mine"]
    assert len(kept) == 1
    assert str(kept[0].parent) in caplog.text
    assert [p.name for p in kept[0].parent.iterdir()] == ["notes"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), InputError),
        (RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("other"), RuntimeError),
    ],
)
def test_what_fails_while_writing_leaves_the_old_folder_whole(
    tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "precious").write_text("data")
    with pytest.raises(raised), written_aside(old) as folder:  # noqa: PT012
        (folder / "half").write_text("written")
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (old / "precious").read_text() == "data"


#: What writing and swapping call of the system.
CALLS = ("mkdir", "open", "fsync", "chmod", "rename", "replace", "rmdir", "unlink", "stat", "lstat", "scandir", "close")


class Failing:
    """Lets one call of the system fail: before it acts, or after it has."""

    def __init__(self, number: int, error: BaseException, after: bool) -> None:
        self.left, self.error, self.after, self.failed = number, error, after, ""

    def wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def fails(*args: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left:
                return call(*args, **named)
            self.failed = name
            if self.after:
                call(*args, **named)
            raise self.error

        return fails


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_whatever_fails_the_old_folder_is_back_or_the_new_one_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: bool
) -> None:
    seen = set()
    for number in range(1, 200):
        place = tmp_path / str(number)
        place.mkdir()
        old = earlier(place / "out", a="old", b="old")
        before = content(old)
        failing, caught = Failing(number, error, after), None
        with monkeypatch.context() as patch:
            # what has opened something cannot fail after it, or nobody would close it
            for name in CALLS if not after else set(CALLS) - {"open", "scandir"}:
                patch.setattr(os, name, failing.wrapped(name, getattr(os, name)))
            try:
                with written_aside(old) as aside:
                    (aside / "a").write_text("new")
            except BaseException as found:
                caught = found
        seen.add(failing.failed)
        now = content(old)
        if caught is None:
            assert now["a"] == "new"
        else:
            assert now == before, (number, failing.failed)
            assert isinstance(caught, InputError | OSError | KeyboardInterrupt)
        # what a broken call keeps from being removed is left, but never in the place of a result
        assert all(p.name == "out" or p.name.startswith(".out.") for p in place.iterdir())
        if not failing.failed:
            break
    assert {"mkdir", "fsync", "chmod", "rename"} <= seen
    assert "" in seen


def test_if_the_old_folder_cannot_even_be_put_back_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = earlier(tmp_path / "out")
    calls: list[Any] = []

    def rename(self: Path, to: Path) -> Any:
        calls.append(to)
        if len(calls) > 1:
            raise OSError(errno.EIO, "broken")
        os.rename(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with (
        pytest.raises(InputError, match=r"nor be put back .* what was in it is in") as caught,
        written_aside(old) as new,
    ):
        (new / "model").write_text("new")
    (left,) = (p for p in tmp_path.rglob("model"))
    assert left.read_text() == "old"
    assert str(left.parent) in str(caught.value)


# folders that files are added to


def test_files_are_added_beside_others_and_never_over_them(tmp_path: Path) -> None:
    assert check_added(tmp_path / "new", ["README.md"]) == tmp_path / "new"
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'README\.md', which would be replaced and which no earlier result"):
        check_added(tmp_path, ["README.md", "rows.csv"])
    assert check_added(tmp_path, ["rows.csv"]) == tmp_path
    list_files(tmp_path, ["rows.csv"])
    (tmp_path / "rows.csv").write_text("ours")
    assert check_added(tmp_path, ["rows.csv"]) == tmp_path
    list_files(tmp_path, ["report.md"])
    assert json.loads((tmp_path / LISTING).read_text())["files"] == ["report.md", "rows.csv"]
    with pytest.raises(InputError, match="is a file; give a folder"):
        check_added(tmp_path / "rows.csv", [])


def test_a_folder_of_an_earlier_version_is_known_by_a_file_in_it(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("ours")
    (tmp_path / "run.json").write_text('{"format": "qubo_prune.run"}')
    assert check_added(tmp_path, ["rows.csv"], ("run.json", "qubo_prune.run")) == tmp_path
    (tmp_path / "run.json").write_text('{"format": "other"}')
    with pytest.raises(InputError, match=r"rows\.csv"):
        check_added(tmp_path, ["rows.csv"], ("run.json", "qubo_prune.run"))


# single files


def test_a_file_is_new_or_an_earlier_result_and_never_what_is_read(tmp_path: Path) -> None:
    def ours(plain: Any) -> bool:
        return isinstance(plain, dict) and "answers" in plain

    problem, answer = tmp_path / "p.json", tmp_path / "a.json"
    problem.write_text('{"answers": 1}')
    (tmp_path / "link.json").symlink_to(problem)
    (tmp_path / "hard.json").hardlink_to(problem)
    for name in ("p.json", "link.json", "hard.json", "../" + tmp_path.name + "/p.json"):
        with pytest.raises(InputError, match="is the problem, which would be replaced"):
            check_file(tmp_path / name, ours, {"problem": problem})
    assert check_file(answer, ours, {"problem": problem}) == answer
    answer.write_text('{"answers": []}')
    assert check_file(answer, ours, {"problem": problem}) == answer
    for text in ("{}", "[]", "notes", "\0"):
        answer.write_text(text)
        with pytest.raises(InputError, match="is a file that no earlier result here wrote"):
            check_file(answer, ours, {"problem": problem})
    for wrong in (tmp_path, tmp_path / "no" / "a.json", "", "a\0b", "x" * 300):
        with pytest.raises(InputError, match=r"give a file in a folder|is no path"):
            check_file(wrong, ours, {})
    for device in ("/dev/null", "/dev/stdout"):
        assert check_file(device, ours, {}) == Path(device)


# on the command line


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory ``work``, stood in, with ``models/tiny`` and ``text.txt``."""
    folder = tmp_path / "work"
    (folder / "models").mkdir(parents=True)
    tiny.save(folder / "models" / "tiny")
    (folder / "text.txt").write_text(tiny.text(), encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


SMALL = ["--calibration", "text.txt", "--samples", "4", "--sequence-length", "16", "-q"]
LOSSES = [".", "../work", "..", "models", "models/tiny", "models/tiny/out", "/"]


@pytest.mark.parametrize(
    "command", [["prune"], ["compare"], ["bench", "blocks", "--model"], ["bench", "llm", "--model"]]
)
def test_no_command_takes_the_model_the_text_or_the_directory(
    models: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # refused before it is called
    before = sorted(p.name for p in models.rglob("*"))
    overwrite = [] if command[-2:] == ["llm", "--model"] else ["--overwrite"]
    for output in LOSSES:
        code, said = call(*command, "models/tiny", "--calibration", "text.txt", *overwrite, "--output", output)
        assert code == 2, output
        assert said.startswith("Error: The output folder")
        assert len(said.strip().splitlines()) == 1
    assert sorted(p.name for p in models.rglob("*")) == before


def test_an_earlier_result_is_replaced_and_one_with_notes_in_it_is_not(models: Path) -> None:
    prune = ["prune", "models/tiny", *SMALL, "--output", "out", "--method", "wanda"]
    assert call(*prune)[0] == 0
    assert (models / "out" / LISTING).is_file()
    code, said = call(*prune)
    assert (code, "is not empty; give another one or --overwrite" in said) == (2, True)
    assert call(*prune, "--overwrite")[0] == 0
    (models / "out" / "notes.md").write_text("mine")
    code, said = call(*prune, "--overwrite")
    assert (code, "holds 'notes.md', which no earlier result here wrote" in said) == (2, True)
    # the result is a model: it cannot be pruned onto itself, and not even from Python
    (models / "out" / "notes.md").unlink()
    code, said = call("prune", "out", *SMALL, "--output", "out", "--overwrite")
    assert (code, "is the model" in said) == (2, True)


def test_a_run_folder_and_an_output_stay_apart(models: Path) -> None:
    common = ["prune", "models/tiny", *SMALL, "--method", "wanda"]
    for output, told in (("run", "is the run folder"), ("run/out", "lies in the run folder")):
        (models / "run").mkdir(exist_ok=True)
        code, said = call(*common, "--run-folder", "run", "--output", output)
        assert (code, told in said) == (2, True)
    (models / "outer").mkdir()
    (models / "outer" / "run").mkdir()
    code, said = call(*common, "--run-folder", "outer/run", "--output", "outer", "--overwrite")
    assert (code, "holds the run folder" in said) == (2, True)
    code, said = call(*common, "--run-folder", "models/tiny", "--resume", "--output", "out")
    assert (code, "which no run wrote" in said) == (2, True)


def test_a_module_is_not_saved_over_the_folder_it_was_loaded_from(models: Path) -> None:
    from qubo_prune import prune
    from qubo_prune.models import load_model

    loaded = load_model("models/tiny")
    with pytest.raises(InputError, match="is the model"):
        prune(
            loaded.model,
            [tiny.tokens()],
            0.5,
            tokenizer=loaded.tokenizer,
            output="models/tiny",
            overwrite=True,
            method="wanda",
        )


def test_the_folder_of_images_is_no_output(tmp_path: Path) -> None:
    import pictures

    source, images = pictures.classifier(tmp_path / "dense"), pictures.folder(tmp_path / "images", 4)
    code, said = call("prune", source, "--images", images, "--output", images, "--overwrite")
    assert (code, "is the folder of images" in said) == (2, True)


def test_temporary_names_are_short_enough_for_long_ones(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 250)
    for _ in range(2):
        earlier(target)
    assert [p.name for p in tmp_path.iterdir()] == [target.name]
    assert tempfile.gettempprefix()
