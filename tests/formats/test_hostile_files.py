"""Untrusted files: any bytes give an object that is whole, or one sentence; in bounded time, in no other folder."""

from __future__ import annotations

import gzip
import json
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import TOKENS, damaged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from reference import random_problem

from qubo_prune.data import images, text
from qubo_prune.data.images import read_idx, read_image
from qubo_prune.data.text import read_text
from qubo_prune.errors import InputError
from qubo_prune.formats import text as files
from qubo_prune.formats.text import FORMATS, read_problem, write_problem
from qubo_prune.masks.packed import load_masks, load_sparse, save_sparse, sizes
from qubo_prune.problem import BlockQubo
from qubo_prune.settings import setting_value
from qubo_prune.solver.registry import make_solver

fuzz = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_or_refused(read: Callable[[], Any]) -> Any:
    """What is read, or ``None`` where it was refused, in one sentence, within ten seconds."""
    began, found, said = time.perf_counter(), None, ""
    try:
        found = read()
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 2000
    assert time.perf_counter() - began < 10
    return found


# problem files


@pytest.mark.parametrize("format", FORMATS)
@fuzz
@given(data=st.data())
def test_damaged_problem_files_are_whole_problems_or_refused(tmp_path: Path, format: str, data: st.DataObject) -> None:
    path = tmp_path / f"p.{format}"
    write_problem(random_problem(np.random.default_rng(0), 4, (1, 1), [0, 1, 0, 1]), path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    problem = read_or_refused(lambda: read_problem(path))
    if problem is not None:
        assert np.isfinite(problem.dense()).all()
        assert np.isfinite(problem.offset)
        assert sum(problem.num_pruned) <= problem.num_variables


@pytest.mark.parametrize("format", FORMATS)
@fuzz
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_problem_or_refused(tmp_path: Path, format: str, content: bytes) -> None:
    path = tmp_path / f"p.{format}"
    path.write_bytes(content)
    read_or_refused(lambda: read_problem(path))


JSON = '{"format": "qubo_prune.problem", "version": 1, "num_variables": %s, "num_pruned": null, "entries": []}'


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.json", JSON % 19_000, r"a matrix of 19000 variables takes 2\.7 GiB; at most 10000"),
        ("p.json", JSON % 10**12, "num_variables holds 1000000000000"),
        ("p.coo", "# num_variables=19000\n", "a matrix of 19000 variables"),
        ("p.coo", "0 19999 1\n", "a matrix of 20000 variables"),
        ("p.ising", "0 19999 1\n", "a matrix of 20000 variables"),
        ("p.qubo", "p qubo 0 19999 0 0\n", "a matrix of 19999 variables"),
        ("p.lp", "Minimize\nBinary\n" + "\n".join(f"v{i}" for i in range(10_001)) + "\nEnd", "at most 10000"),
        ("p.coo", "0 0 " + "9" * 2_000_000 + "x\n", "the value '9+... is found"),
        ("p.coo", "# num_variables=3 4\n0 0 1\n", "num_variables is '3 4'; one is needed"),
        ("p.json", "{" + ",".join(f'"k{i}":1' for i in range(100_000)) + "}", "the format is None"),
        ("p.json", (JSON % 2).replace('"version": 1', '"version": true'), "the version is True"),
        ("p.json", (JSON % 2).replace('"version": 1', '"version": 1.0'), r"the version is 1\.0"),
        ("p.json", (JSON % 2).replace('"qubo_prune.problem"', '"' + "x" * 10**6 + '"'), r"the format is 'x+\.\.\.;"),
        ("p.lp", "Minimize\n" + "a" * 10**6 + "\nEnd", r"the variable 'a+\.\.\. is not declared"),
        ("p.lp", "Minimize\n x\nSubject To\n x = 1e300\nBinary\n x\nEnd", "'1e300' is found; a whole number"),
        ("p.lp", "Minimize\n 9e307 x + 9e307 x + 9e307 x\nBinary\n x\nEnd", "NaN or infinite"),
        ("p.ising", "0 1 1e308\n0 2 1e308\n", "NaN or infinite"),
    ],
)
def test_what_would_fill_memory_time_or_screen_is_refused_at_once(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    (tmp_path / name).write_text(content)
    began = time.perf_counter()
    with pytest.raises(InputError, match=told) as caught:
        read_problem(tmp_path / name)
    assert time.perf_counter() - began < 5
    assert len(str(caught.value)) < 500


def test_matrices_beyond_the_limit_are_not_written_and_factors_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_MATRIX_VARIABLES", 2)
    from qubo_prune.problem import FactorForm

    with pytest.raises(InputError, match="a matrix of 3 variables"):
        write_problem(BlockQubo(np.eye(3), 1), tmp_path / "p.json")
    form = BlockQubo(FactorForm(np.ones(3), np.ones((3, 1))), 1)
    with pytest.raises(InputError, match="a matrix of 3 variables"):
        write_problem(form, tmp_path / "p.coo")
    write_problem(form, tmp_path / "p.json")
    assert read_problem(tmp_path / "p.json").num_variables == 3


def test_pipes_and_impossible_names_are_no_problem_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.json")
    with pytest.raises(InputError, match="no such file"):
        read_problem(tmp_path / "p.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_problem(tmp_path / ("x" * 300 + ".json"))


# packed sparse files


@fuzz
@given(data=st.data())
def test_damaged_sparse_files_are_refused_or_the_same(tmp_path: Path, data: st.DataObject) -> None:
    path, weight = tmp_path / "w", torch.eye(5)
    save_sparse({"w": weight}, path)
    whole = path.read_bytes()
    content = data.draw(damaged(whole))
    path.write_bytes(content)
    found = read_or_refused(lambda: load_sparse(path))
    assert found is None or torch.equal(found["w"], weight)
    for read in (load_masks, sizes):
        read_or_refused(lambda read=read: read(path))


@fuzz
@given(content=st.binary(max_size=200), length=st.integers(0, 2**64 - 1))
def test_any_bytes_are_no_sparse_file(tmp_path: Path, content: bytes, length: int) -> None:
    # a safetensors file begins with the length of its header
    for start in (b"", struct.pack("<Q", length), struct.pack("<Q", len(content))):
        (tmp_path / "w").write_bytes(start + content)
        for read in (load_sparse, load_masks, sizes):
            with pytest.raises(InputError):
                read(tmp_path / "w")


# calibration texts and images


@fuzz
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_text_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    found = read_or_refused(lambda: read_text(str(tmp_path / "t.txt"), "calibration"))
    with suppress(UnicodeDecodeError):
        assert found == content.decode().replace("\r\n", "\n").replace("\r", "\n")


def test_texts_beyond_the_limit_pipes_and_impossible_names_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("x" * 10)
    (tmp_path / "folder.txt").mkdir()
    os.mkfifo(tmp_path / "pipe.txt")
    assert read_text(str(tmp_path), "calibration") == "x" * 10 + "\n\n" + "x" * 10
    monkeypatch.setattr(text, "MAX_BYTES", 15)
    with pytest.raises(InputError, match=r"b\.txt is not UTF-8 text of at most 15 bytes, with the files before it"):
        read_text(str(tmp_path), "calibration")
    for name in ("x" * 300, "x" * 300 + ".txt"):
        with pytest.raises(InputError, match="cannot be read"):
            read_text(name, "calibration")


IDX = struct.pack(">HBB2I", 0, 8, 2, 2, 3) + bytes(range(6))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@fuzz
@given(data=st.data())
def test_damaged_idx_files_are_whole_arrays_or_refused(
    tmp_path: Path, pack: Callable[[bytes], bytes], data: st.DataObject
) -> None:
    (tmp_path / "idx").write_bytes(data.draw(damaged(pack(IDX))))
    found = read_or_refused(lambda: read_idx(tmp_path / "idx"))
    assert found is None or found.dtype == torch.uint8


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (struct.pack(">HBB255I", 0, 8, 255, *[1] * 255) + b"x", "announces 255 dimensions; at most 8"),
        (struct.pack(">HBB3I", 0, 8, 3, 0, 2**32 - 1, 2**32 - 1), "header announces"),
        (gzip.compress(IDX + bytes(10**6), mtime=0), "holds more than 2000 bytes once unpacked"),
    ],
)
def test_idx_files_that_announce_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, told: str
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 2000)
    (tmp_path / "idx").write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_idx(tmp_path / "idx")


def test_a_pipe_is_no_idx_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "idx")
    with pytest.raises(InputError, match="no such file"):
        read_idx(tmp_path / "idx")


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
@fuzz
@given(data=st.data())
def test_damaged_images_are_images_or_refused(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"i.{suffix}"
    Image.new("RGB", (7, 5), "red").save(path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    found = None
    with suppress(InputError):
        found = read_image(path)
    assert found is None or found.mode == "RGB"


@pytest.mark.parametrize(("width", "told"), [(9_000, "9000 x 9000 pixels, at most 67108864"), (20_000, "400000000")])
def test_an_image_that_announces_too_many_pixels_is_not_unpacked(tmp_path: Path, width: int, told: str) -> None:
    Image.new("1", (width, width)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    with pytest.raises(InputError, match=told):
        read_image(tmp_path / "bomb.png")


# settings from the command line


@fuzz
@given(value=st.text(max_size=50) | st.sampled_from([token.decode("latin1") for token in TOKENS]))
def test_any_setting_is_a_value_or_refused(value: str) -> None:
    read_or_refused(lambda: setting_value(value))


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 10_000, '{"a":' * 100_000])
def test_settings_without_end_are_refused(value: str) -> None:
    with pytest.raises(InputError, match="give a shorter one"):
        setting_value(value)


@fuzz
@given(value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.lists(st.integers()))
def test_solvers_take_any_value_of_a_setting_or_refuse_it(value: Any) -> None:
    with suppress(TypeError, ValueError):
        make_solver("tabu", tenure=value)
    with suppress(TypeError, ValueError):
        make_solver("greedy", **{json.dumps(value): value})
