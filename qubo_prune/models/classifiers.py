"""Image classifiers of transformers or timm by name, with the preprocessing that belongs to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from qubo_prune.errors import InputError
from qubo_prune.files.parsing import expanded
from qubo_prune.models.load import usable_device


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """A loaded classifier.

    Attributes:
        model: from pixel values ``(b, 3, h, w)`` to logits, or to an output with ``logits``.
        transform: from an RGB image to its pixel values ``(3, h, w)``.
        label2id: from a class's name to its number, if the model knows names.
        name: what it was asked by.
        processor: what ``save_pretrained`` belongs to besides the model's; ``None`` for timm.
    """

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    label2id: Mapping[str, int] | None
    name: str
    processor: Any = None


def load_classifier(name: str, device: str = "cpu") -> ImageClassifier:
    """Load an image classifier with the preprocessing of its images.

    Args:
        name: a hub id or local folder of transformers, or ``timm:NAME`` for a pretrained model of timm.
        device: where the weights go, for example ``cpu`` or ``cuda``.

    Raises:
        InputError: there is no such model or device, or timm is not installed.
    """
    where = usable_device(device)
    loaded = _from_timm(name) if name.startswith("timm:") else _from_transformers(name)
    loaded.model.to(where).eval()
    return loaded


def _from_transformers(name: str) -> ImageClassifier:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    path = expanded(name)
    if not path.is_dir() and (path.is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise InputError(f"There is no folder {name!r}; give one saved by save_pretrained, a hub id or timm:NAME.")
    source = str(path) if path.is_dir() else name
    try:
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        # without a word on this, transformers asks on the terminal whether to run a checkpoint's own code
        model = AutoModelForImageClassification.from_pretrained(source, trust_remote_code=False, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _not_loaded(name, error) from error

    def transform(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return ImageClassifier(model, transform, dict(model.config.label2id), name, processor)


def _from_timm(name: str) -> ImageClassifier:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # the latter where torchvision was built for another torch
        raise InputError(
            f"The model {name!r} needs the package timm, which cannot be imported here ({error}): pip install timm, "
            "with the torchvision that belongs to the torch that is here."
        ) from error
    try:
        model = timm.create_model(name.removeprefix("timm:"), pretrained=True)
    except Exception as error:  # the library raises whatever its network and file layers raise
        raise _not_loaded(name, error) from error
    settings = timm.data.resolve_model_data_config(model)
    return ImageClassifier(model, timm.data.create_transform(**settings, is_training=False), None, name)


def _not_loaded(name: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300]
    return InputError(
        f"The image classifier {name!r} could not be loaded ({type(error).__name__}: {reason}); give a hub id, a "
        "folder saved by save_pretrained (with its image processor), or timm:NAME."
    )
