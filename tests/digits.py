"""Handwritten digits of 8 x 8, and a small network that reads them."""

from __future__ import annotations

import copy
import functools
import struct
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from qubo_prune.data import TensorSamples


@functools.cache
def digits() -> tuple[TensorSamples, TensorSamples]:
    """1300 images to prune with and 497 to score with, as ``(b, 64)`` with their labels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x, y = torch.tensor(loaded.data, dtype=torch.float32) / 16, torch.tensor(loaded.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return TensorSamples(x[order[:1300]], y[order[:1300]]), TensorSamples(x[order[1300:]], y[order[1300:]])


@functools.cache
def _trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = digits()[0].tensors
    for _ in range(150):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()


def reader() -> nn.Module:
    """A trained 64-32-10 network; a new copy on each call."""
    return copy.deepcopy(_trained())


def share_right(model: nn.Module) -> float:
    """Accuracy on the images to score with."""
    x, y = digits()[1].tensors
    return float((model(x).argmax(1) == y).float().mean())


def idx_folder(folder: Path) -> Path:
    """The same digits enlarged to 28 x 28, in a folder with the four files of MNIST."""
    folder.mkdir()
    for part, samples in zip(("train", "t10k"), digits(), strict=True):
        x, y = samples.tensors
        pixels = (interpolate(x.reshape(-1, 1, 8, 8), size=(28, 28)) * 255).byte().numpy()
        header = struct.pack(">HBB3I", 0, 8, 3, len(x), 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, len(y)) + y.byte().numpy().tobytes()
        )
    return folder
