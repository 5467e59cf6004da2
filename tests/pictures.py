"""A tiny image classifier and pictures for it."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image


def classifier(folder: Path) -> Path:
    """A vision transformer of two layers for cats and dogs, as a folder that transformers loads."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    names = {0: "cat", 1: "dog"}
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=28,
        patch_size=14,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def folder(path: Path, count: int) -> Path:
    """Reddish cats and bluish dogs, so many of each, in a folder for each."""
    for number in range(count):
        for name, tint in (("cat", (200, 10, 0)), ("dog", (0, 10, 200))):
            (path / name).mkdir(parents=True, exist_ok=True)
            colour = tuple((value + 5 * number) % 256 for value in tint)
            Image.new("RGB", (20, 24), colour).save(path / name / f"{number:03}.png")
    return path
