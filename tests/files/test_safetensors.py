"""Checkpoints are read tensor by tensor, and their copies are theirs byte for byte but for what was changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.files.safetensors import INDEX, SINGLE, Checkpoint, is_checkpoint

TENSORS: dict[str, Tensor] = {
    "a": torch.arange(6.0).reshape(2, 3),
    "half": torch.randn(3, 5).to(torch.bfloat16),
    "none": torch.empty(0, 4),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "flags": torch.tensor([True, False, True]),
    "whole": torch.tensor([[7]]),
}


def sharded(folder: Path) -> Path:
    names = list(TENSORS)
    parts = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
    for file, part in parts.items():
        save_file({name: TENSORS[name] for name in part}, folder / file, {"format": "pt", "of": file})
    index = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    return folder


def test_every_tensor_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert not is_checkpoint(tmp_path)
    checkpoint = Checkpoint(sharded(tmp_path))
    assert is_checkpoint(tmp_path)
    assert checkpoint.places.keys() == TENSORS.keys()
    assert checkpoint.bytes == sum(tensor.nbytes for tensor in TENSORS.values())
    for name, tensor in TENSORS.items():
        assert checkpoint.read(name).dtype == tensor.dtype
        assert torch.equal(checkpoint.read(name), tensor)


def test_what_is_read_can_be_changed_without_the_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(sharded(tmp_path))
    checkpoint.read("a").zero_()
    assert torch.equal(checkpoint.read("a"), TENSORS["a"])


def test_a_copy_without_changes_has_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    checkpoint = Checkpoint(sharded(tmp_path))
    checkpoint.write(tmp_path / "copy", lambda name, tensor: tensor)
    for name in ("model-1.safetensors", "model-2.safetensors", INDEX):
        assert (tmp_path / "copy" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_copy_has_the_changes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    Checkpoint(sharded(tmp_path)).write(
        tmp_path / "copy", lambda name, tensor: tensor * 2 if name in ("a", "half") else tensor
    )
    found = {
        name: tensor for n in (1, 2) for name, tensor in load_file(tmp_path / "copy" / f"model-{n}.safetensors").items()
    }
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor * 2 if name in ("a", "half") else tensor)
    assert torch.equal(Checkpoint(tmp_path).read("a"), TENSORS["a"])


def test_a_single_file_counts_before_an_index(tmp_path: Path) -> None:
    save_file({"other": torch.ones(2)}, sharded(tmp_path) / SINGLE)
    assert list(Checkpoint(tmp_path).places) == ["other"]


def header(told: object, data: bytes = b"") -> bytes:
    text = json.dumps(told).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"12345678", "cut short"),
        ((2**62).to_bytes(8, "little"), "cut short"),
        (header([1]), "damaged"),
        (header({"a": 1}), "damaged"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}), "should have"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"), "bytes of its shape"),
        (header({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, b"1234"), "bytes of its shape"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"), "does not begin"),
        (header({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), "F3"),
        (header({"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}, b"1234"), "damaged"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]}}, b"1234"), "damaged"),
    ],
)
def test_damaged_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(InputError, match=message):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "[" * 10**5])
def test_a_bad_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(InputError, match="no weight_map"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give one that save_pretrained wrote"):
        Checkpoint(tmp_path)
