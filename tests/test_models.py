"""Loading, and saving that is all or nothing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import tiny
import torch

from qubo_prune.errors import InputError
from qubo_prune.models import LoadedModel, check_output, load_model, save_model, written_aside


def test_a_saved_folder_loads_again(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model")
    loaded = load_model(str(folder))
    torch.testing.assert_close(loaded.model.lm_head.weight, tiny.llama().lm_head.weight)
    save_model(loaded, tmp_path / "copy", lambda path: None)
    again = load_model(str(tmp_path / "copy"))
    for one, other in zip(loaded.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any(p.name.startswith(".") for p in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("./missing", "There is no model at"),
        ("/missing/folder", "There is no model at"),
        ("missing.gguf", "There is no model at"),
    ],
)
def test_missing_models(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be loaded"):
        load_model(str(tmp_path))


def test_bad_type_and_device(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'float32'"):
        load_model("smollm2-135m", dtype="float23")
    with pytest.raises(InputError, match="'cpu' always can"):
        load_model(str(tiny.save(tmp_path / "m")), device="nonsense")


def test_output_folder_rules(tmp_path: Path) -> None:
    assert check_output(tmp_path / "new", False) == tmp_path / "new"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        check_output(tmp_path / "file", True)
    with pytest.raises(InputError, match="not empty"):
        check_output(tmp_path, False)
    assert check_output(tmp_path, True) == tmp_path


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


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full to fill up")
    loaded = LoadedModel(tiny.llama(), tiny.tokenizer(), "tiny")

    def write_rest(folder: Path) -> None:
        with full.open("w") as file:
            file.write("x" * 100_000)

    with pytest.raises(InputError, match="disk filled up"):
        save_model(loaded, tmp_path / "out", write_rest)
    assert not list(tmp_path.iterdir())


def test_the_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    old = tmp_path / "out"
    old.mkdir()
    (old / "stale").write_text("old")
    with written_aside(old) as folder:
        (folder / "fresh").write_text("new")
    assert [p.name for p in old.iterdir()] == ["fresh"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
