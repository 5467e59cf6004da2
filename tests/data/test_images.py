"""Readers of image files, on files written here and on Fashion-MNIST where it is installed."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qubo_prune.data import Samples
from qubo_prune.data.images import ImageFolder, Labelled, fashion_mnist, idx_folder, mnist, read_idx
from qubo_prune.errors import InputError


def _idx(*shape: int) -> bytes:
    values = bytes(i % 256 for i in range(math.prod(shape)))
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values


def _write_folder(folder: Path, images: tuple[int, ...] = (3, 2, 2)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(_idx(*images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(3), mtime=0))
    return folder


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_files_are_read_plain_and_packed(tmp_path: Path, pack) -> None:
    file = tmp_path / "values"
    file.write_bytes(pack(_idx(2, 3, 50)))
    read = read_idx(file)
    assert read.dtype == torch.uint8
    assert torch.equal(read, (torch.arange(300) % 256).to(torch.uint8).reshape(2, 3, 50))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x0d\x01\x00\x00", "begins with 00 00 0d 01"),
        (_idx(2, 3)[:-1], "has 17 bytes, but its header announces 18"),
        (_idx(2, 3)[:7], "it is damaged"),
        (_idx(2, 3) + b"x", "has 19 bytes, but"),
        (gzip.compress(_idx(2, 3), mtime=0)[:-9], "cannot be read"),
        (gzip.compress(_idx(2, 3), mtime=0)[:12] + b"garbage", "cannot be read"),
    ],
)
def test_broken_idx_files(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "broken"
    file.write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_idx(file)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere cannot be read"):
        read_idx(tmp_path / "nowhere")


def test_a_folder_of_idx_files(tmp_path: Path) -> None:
    train, (images, labels) = idx_folder(_write_folder(tmp_path))
    assert len(train[0]) == 3
    assert images.shape == (3, 1, 2, 2)
    assert torch.allclose(images.flatten() * 255, torch.arange(12.0))
    assert labels.tolist() == [0, 1, 2]
    assert labels.dtype == torch.int64


def test_folders_that_lack_something(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds neither train-images-idx3-ubyte nor .*\.gz"):
        idx_folder(tmp_path)
    with pytest.raises(InputError, match=r"has the shape \(2, 2, 2\) and .* \(3,\)"):
        idx_folder(_write_folder(tmp_path / "uneven", (2, 2, 2)))


def test_data_sets_are_found_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("qubo_prune.data.images._DEBIAN", tmp_path / "not-installed")
    with pytest.raises(InputError, match="run 'make data'"):
        fashion_mnist()
    with pytest.raises(InputError, match="run 'make data'"):
        mnist()
    _write_folder(tmp_path / ".cache" / "fashion-mnist")
    _write_folder(tmp_path / ".cache" / "mnist")
    assert len(fashion_mnist()[0][1]) == len(mnist()[1][1]) == 3


@pytest.mark.parametrize("reader", [fashion_mnist, mnist])
def test_the_real_data_sets(reader) -> None:
    try:
        train, test = reader()
    except InputError as error:
        pytest.skip(str(error))

    def check(part: Labelled, count: int) -> None:
        images, labels = part
        assert images.shape == (count, 1, 28, 28)
        assert (float(images.min()), float(images.max())) == (0.0, 1.0)
        assert sorted(set(labels.tolist())) == list(range(10))

    check(train, 60_000)
    check(test, 10_000)


def _tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, color in (("cat/b.png", "red"), ("cat/a.JPG", "white"), ("dog/c.bmp", "blue"), ("dog/d.webp", "black")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), color).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image", encoding="utf-8")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_a_folder_of_images(pictures: Path) -> None:
    samples = ImageFolder(pictures, _tensor)
    assert isinstance(samples, Samples)
    assert [file.name for file in samples.files] == ["a.JPG", "b.png", "c.bmp", "d.webp"]
    images, labels = samples.batch(torch.tensor([2, 1]))
    assert images.shape == (2, 3, 3, 4)
    assert images[:, :, 0, 0].tolist() == [[0, 0, 255], [255, 0, 0]]
    assert labels.tolist() == [1, 0]
    mapped = ImageFolder(pictures, _tensor, {"dog": 7, "bird": 1, "cat": 3})
    assert mapped.labels.tolist() == [3, 3, 7, 7]


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("L", (2, 2), 9).save(tmp_path / "a" / "grey.png")
    Image.new("RGBA", (2, 2), (1, 2, 3, 4)).save(tmp_path / "a" / "rgba.png")
    images, _ = ImageFolder(tmp_path, _tensor).batch(torch.tensor([0, 1]))
    assert images[:, :, 0, 0].tolist() == [[9, 9, 9], [1, 2, 3]]


def test_image_folders_that_cannot_be_used(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no class 'cat', .*\(did you mean 'cats'\?\)"):
        ImageFolder(pictures, _tensor, {"cats": 0, "dog": 1})
    for folder in (pictures / "cat", pictures / "nowhere"):
        with pytest.raises(InputError, match="has no subfolders"):
            ImageFolder(folder, _tensor)
    (tmp_path / "outer" / "empty").mkdir(parents=True)
    with pytest.raises(InputError, match="hold no image"):
        ImageFolder(tmp_path / "outer", _tensor)


def test_images_that_cannot_be_used(pictures: Path) -> None:
    Image.new("RGB", (5, 5)).save(pictures / "dog" / "wide.png")
    samples = ImageFolder(pictures, _tensor)
    with pytest.raises(InputError, match=r"wide\.png became a tensor of shape \(3, 5, 5\), others of \(3, 3, 4\)"):
        samples.batch(torch.arange(5))
    data = (pictures / "dog" / "wide.png").read_bytes()
    for broken in (data[:45], b"no image"):
        (pictures / "dog" / "wide.png").write_bytes(broken)
        with pytest.raises(InputError, match=r"The image .*wide\.png cannot be read"):
            samples.batch(torch.tensor([4]))
