"""Files with a checksum: what was written comes back, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qubo_prune.files import checksummed as sealed
from qubo_prune.files.checksummed import Damaged, Sealed, read_sealed, write_sealed

KIND = "test.v1"
CONTENT = Sealed(
    {
        "mask": torch.tensor([True, False, True]),
        "half": torch.tensor([[0.1, -2.0]], dtype=torch.bfloat16),
        "transposed": torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T,
        "none": torch.zeros(0, 4),
        "scalar": torch.tensor(3),
    },
    {"name": "läyer <0>", "value": 0.1 + 0.2, "nothing": None, "list": [1, [2.5]]},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "file", KIND, CONTENT)
    return tmp_path / "file"


def test_what_was_written_comes_back_to_the_last_bit(file: Path) -> None:
    found = read_sealed(file, KIND)
    assert found.info == CONTENT.info
    assert found.tensors.keys() == CONTENT.tensors.keys()
    for name, tensor in CONTENT.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_nothing_is_left_beside_the_file(file: Path) -> None:
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def test_others_may_read_what_the_umask_lets_them(file: Path) -> None:
    assert file.stat().st_mode & 0o444 == (file.parent / "file").stat().st_mode & 0o444 != 0


@settings(max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, place: float, bit: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "file"
    write_sealed(path, KIND, CONTENT)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(Damaged, match="file"):
        read_sealed(path, KIND)


def test_every_cut_is_found(file: Path) -> None:
    content = file.read_bytes()
    for length in range(0, len(content), 7):
        file.write_bytes(content[:length])
        with pytest.raises(Damaged):
            read_sealed(file, KIND)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=200))
def test_other_bytes_are_no_such_file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(content)
    with pytest.raises(Damaged):
        read_sealed(path, KIND)


def test_another_kind_is_refused(file: Path) -> None:
    with pytest.raises(Damaged, match=r"test\.v2"):
        read_sealed(file, "test.v2")


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(Damaged, match=str(sealed.MOST_HEADER)):
        read_sealed(tmp_path / "file", KIND)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "file", KIND)


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    for number in range(5):
        write_sealed(tmp_path / str(number), KIND, CONTENT)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(5)}) == 1


def test_a_change_of_order_is_none(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = {name: torch.tensor(rng.normal(size=3)) for name in "abc"}
    write_sealed(tmp_path / "one", KIND, Sealed(tensors, {}))
    write_sealed(tmp_path / "other", KIND, Sealed(dict(reversed(tensors.items())), {}))
    assert read_sealed(tmp_path / "one", KIND).tensors.keys() == read_sealed(tmp_path / "other", KIND).tensors.keys()
