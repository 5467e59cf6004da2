"""A run's folder: one process has it, it knows whose it is, and damage is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_prune.errors import InputError
from qubo_prune.files.checksummed import Damaged
from qubo_prune.files.digests import digest_of_batches, digest_of_model
from qubo_prune.run.folder import MANIFEST, is_running, opened, read_manifest


def begun(folder: Path, **configuration: Any) -> Path:
    with opened(folder, resume=False) as run:
        run.identify("configuration", lambda: configuration)
        run.put("thing", {"value": 1}, {"tensor": torch.arange(3)})
    return folder


def test_what_is_put_comes_back_in_another_call(tmp_path: Path) -> None:
    with opened(begun(tmp_path / "run", density=0.5), resume=True) as run:
        assert run.resumed
        found = run.get("thing")
        assert found is not None
        assert found.info == {"value": 1}
        assert torch.equal(found.tensors["tensor"], torch.arange(3))
        assert run.get("other") is None
        run.drop("thing")
        run.drop("thing")
        assert run.get("thing") is None


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    with pytest.raises(InputError, match=r"holds a run already.*resume"), opened(tmp_path / "run", resume=False):
        pass


def test_to_resume_what_is_not_there_begins_it(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "run", resume=True) as run:
        assert not run.resumed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"density": 0.4}, r"density was 0\.5 and is 0\.4"),
        ({"solver": "tabu"}, 'solver was "greedy" and is "tabu"'),
        ({"densities": {"a": 0.1}}, r"densities\.a was null and is 0\.1"),
        ({"include": ["x"]}, r'include was \[\] and is \["x"\]'),
        ({"more": 1}, "more was null and is 1"),
    ],
)
def test_the_difference_to_another_run_is_named(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    usual = {"density": 0.5, "solver": "greedy", "densities": {}, "include": ()}
    begun(tmp_path / "run", **usual)
    with opened(tmp_path / "run", resume=True) as run:
        run.identify("configuration", lambda: usual)
        with pytest.raises(InputError, match=said):
            run.identify("configuration", lambda: usual | given)


def test_nan_is_no_difference_to_itself(tmp_path: Path) -> None:
    begun(tmp_path / "run", value=float("nan"))
    with opened(tmp_path / "run", resume=True) as run:
        run.identify("configuration", lambda: {"value": float("nan")})


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    script = """
import sys, time
from qubo_prune.run.folder import opened
with opened(sys.argv[1], resume=True):
    print("in", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        assert is_running(tmp_path)
        with pytest.raises(InputError, match="Another process works"), opened(tmp_path, resume=True):
            pass
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert not is_running(tmp_path)
    with opened(tmp_path, resume=True):
        assert is_running(tmp_path)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    (folder / "records" / ".thing.safetensors.partial-1").write_bytes(b"half")
    (folder / ".run.json.partial-1").write_bytes(b"half")
    with opened(folder, resume=True) as run:
        assert run.get("thing") is not None
    assert not list(folder.rglob("*partial*"))


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"thesis\.tex"), opened(tmp_path, resume=True):
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made"), opened(tmp_path / "file", resume=False):
        pass


def test_a_damaged_record_is_told_from_a_missing_one(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run")
    file = folder / "records" / "thing.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with opened(folder, resume=True) as run:
        with pytest.raises(Damaged):
            run.get("thing")
        assert run.get_or_lost("thing") == (None, True)
        assert run.get_or_lost("other") == (None, False)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": "other"}', '{"format": "qubo_prune.run.folder.v1", "parts": []}', "[" * 100_000],
)
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    folder = begun(tmp_path / "run")
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"run\.json"), opened(folder, resume=True):
        pass


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_bytes_for_a_manifest_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match=r"run\.json"):
        read_manifest(folder)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run"):
        read_manifest(tmp_path)


def test_one_weight_or_one_token_makes_another_checksum() -> None:
    model, data = tiny.llama(), tiny.tokens()
    of_model, of_data = digest_of_model(model), digest_of_batches([data, {"a": 1}])
    assert digest_of_model(tiny.llama()) == of_model
    with torch.no_grad():
        next(model.parameters()).view(-1)[5] += 1e-3
    assert digest_of_model(model) != of_model
    assert digest_of_batches([data.clone(), {"a": 1}]) == of_data
    data[0, 0] += 1
    assert digest_of_batches([data, {"a": 1}]) != of_data
    assert digest_of_batches([[data], {"a": 1}]) != digest_of_batches([data, {"a": 1}])


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    folder = begun(tmp_path / "run", density=0.5)
    assert json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["parts"] == {"configuration": {"density": 0.5}}
