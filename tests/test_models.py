"""Loading, and saving that is all or nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
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


def test_loading_is_silent_and_leaves_the_bars_of_others_as_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    folder, shown = tiny.save(tmp_path / "model"), transformers_logging.is_progress_bar_enabled()
    try:
        for switch in (transformers_logging.enable_progress_bar, transformers_logging.disable_progress_bar):
            switch()
            before = transformers_logging.is_progress_bar_enabled()
            capfd.readouterr()
            load_model(str(folder))
            assert "%" not in "".join(capfd.readouterr())
            assert transformers_logging.is_progress_bar_enabled() == before
    finally:
        (transformers_logging.enable_progress_bar if shown else transformers_logging.disable_progress_bar)()


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


EVIL = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def with_code(folder: Path, marker: Path, model_type: str) -> Path:
    """A checkpoint that brings a file of code, which leaves a trace when it is run."""
    tiny.save(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": names}))
    (folder / "own.py").write_text(EVIL.format(marker=str(marker)))
    return folder


LOADS = """
import sys
from pathlib import Path
from qubo_prune.models import load_model
from qubo_prune.errors import InputError
marker = Path(sys.argv[1])
for folder, trust in zip(sys.argv[2::2], sys.argv[3::2]):
    try:
        said = type(load_model(folder, trust_remote_code=trust == "trusted").model).__module__
    except InputError as error:
        said = str(error)
    print(marker.exists(), said)
"""


def test_code_of_a_checkpoint_runs_only_if_the_user_says_so(tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    own, known = (with_code(tmp_path / kind, marker, kind) for kind in ("own", "llama"))
    # a pipe that nobody writes to and nobody closes: whoever asks there waits until the time is over
    unanswered, writer = os.pipe()
    loads = [str(own), "untrusted", str(known), "untrusted", str(own), "trusted"]
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOADS, str(marker), *loads], stdin=unanswered, capture_output=True, text=True,
            timeout=120, env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}, check=True,
        )  # fmt: skip
    finally:
        os.close(unanswered)
        os.close(writer)
    refused, plain, trusted = done.stdout.strip().splitlines()
    assert re.match("False The model '.*own' comes with code of its own, which is run only if you say so", refused)
    assert plain.startswith("False transformers.models.llama")  # the library's own class takes it
    assert trusted.startswith("True transformers_modules")
    assert "[y/N]" not in done.stdout + done.stderr
