"""Two small networks of the pruning papers, trained here on data that a package brings."""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from qubo_prune.data.images import Labelled, fashion_mnist, mnist
from qubo_prune.data.losses import logits_of
from qubo_prune.data.samples import Fresh, Samples, TensorSamples, to_device
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.files.atomic import written_whole
from qubo_prune.files.parsing import expanded
from qubo_prune.models.load import device_of, evaluating
from qubo_prune.progress import Progress

Optimizer = Literal["sgd", "adam"]
_FORMAT = 1


def garment_net(seed: int = 0) -> nn.Sequential:
    """784-512-512-10 with ReLU and biases, for ``(b, 1, 28, 28)``: the garment classifier of iCBS's paper."""
    return _dense(seed, True, 784, 512, 512, 10)


def mlpnet(seed: int = 0) -> nn.Sequential:
    """784-40-20-10 with ReLU and no bias, for ``(b, 1, 28, 28)``: MLPNet of CBS's paper."""
    return _dense(seed, False, 784, 40, 20, 10)


def _dense(seed: int, bias: bool, *widths: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    last = len(widths) - 1
    for number, (d_in, d_out) in enumerate(pairwise(widths), start=1):
        layers["output" if number == last else f"hidden{number}"] = _linear(d_in, d_out, bias, generator)
        if number < last:
            layers[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(layers)


def _linear(d_in: int, d_out: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    """PyTorch's initial distribution, U(-1/sqrt(d_in), 1/sqrt(d_in)), drawn from the generator."""
    linear = nn.Linear(d_in, d_out, bias=bias)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.uniform_(-1 / math.sqrt(d_in), 1 / math.sqrt(d_in), generator=generator)
    return linear


def train(
    net: nn.Module,
    samples: Samples,
    epochs: int,
    seed: int,
    *,
    optimizer: Optimizer = "sgd",
    learning_rate: float = 0.1,
    batch: int = 64,
    progress: Progress | None = None,
) -> None:
    """Train with the mean cross entropy, in place, at a constant learning rate; ends in evaluation mode.

    Args:
        net: from inputs to logits ``(b, classes)``.
        samples: batches are ``(inputs, labels)``.
        epochs: passes over the samples (a last batch that is not full is left out).
        seed: of the order of the samples.
        optimizer: plain ``sgd``, or ``adam``.
        learning_rate: step size.
        batch: samples per step.
        progress: shows a bar.
    """
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    steps: Any = kind(net.parameters(), lr=learning_rate)
    fresh, size = Fresh(samples, seed), min(batch, len(samples))
    total = epochs * (len(samples) // size)
    device = device_of(net)
    net.train()
    with (progress or Progress()).task("training", total) as advance:
        for _ in range(total):
            inputs, labels = to_device(fresh.draw(size), device)
            steps.zero_grad()
            functional.cross_entropy(logits_of(net(inputs)), labels).backward()  # type: ignore[no-untyped-call]
            steps.step()
            advance(1, "")
    net.eval()


def accuracy_and_loss(net: nn.Module, samples: Samples, batch: int = 500) -> tuple[float, float]:
    """The share of samples whose highest logit is their label's, and the mean cross entropy in nats.

    Args:
        net: from inputs to logits ``(b, classes)``, or to an output that has ``logits``; taken in
            evaluation mode.
        samples: batches are ``(inputs, labels)``.
        batch: samples at once.
    """
    right, loss, device = 0, 0.0, device_of(net)
    with torch.no_grad(), evaluating(net):
        for indices in torch.split(torch.arange(len(samples)), batch):
            inputs, labels = to_device(samples.batch(indices), device)
            scores = logits_of(net(inputs)).float()
            right += int((scores.argmax(1) == labels).sum())
            loss += float(functional.cross_entropy(scores, labels, reduction="sum"))
    return right / len(samples), loss / len(samples)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: ``build(seed)``, its data, and the settings of :func:`train`."""

    build: Callable[[int], nn.Module]
    read: Callable[[str | Path | None], tuple[Labelled, Labelled]]
    epochs: int
    learning_rate: float
    batch: int = 64
    optimizer: Optimizer = "sgd"

    def described(self) -> dict[str, Any]:
        """The settings as plain data."""
        return {**asdict(self), "build": self.build.__name__, "read": self.read.__name__}


#: What :func:`trained` knows by name. Measured with seed 0, dense and magnitude pruning to density 0.1: garment 86.3 %
#: and 54.7 % per layer (iCBS: 86.2, 60.7), mlpnet 94.0 % and 89.6 % over all layers (CBS: 94.0, 90.3).
RECIPES = {
    "garment": Recipe(garment_net, fashion_mnist, epochs=6, learning_rate=0.05),
    "mlpnet": Recipe(mlpnet, mnist, epochs=5, learning_rate=0.03),
}


def trained(
    name: str, folder: str | Path, seed: int = 0, data: str | Path | None = None, progress: Progress | None = None
) -> nn.Module:
    """The trained network, from the cache folder if it was trained with the same settings before.

    Args:
        name: one of :data:`RECIPES`.
        folder: cache folder; made if need be. The file's name holds a hash of the settings.
        seed: of the initial weights and of the order of the samples.
        data: folder with idx files instead of the recipe's own data.
        progress: shows the training.

    Raises:
        InputError: the name is not known, or the data is not there.
    """
    if name not in RECIPES:
        raise InputError(f"There is no network {name!r}{did_you_mean(name, RECIPES)}; use {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    net = recipe.build(seed)
    file = cache_file(folder, name, {**recipe.described(), "seed": seed, "data": where(data)})
    if not load_cached(net, file):
        (images, labels), _ = recipe.read(data)
        train(
            net,
            TensorSamples(images, labels),
            recipe.epochs,
            seed,
            optimizer=recipe.optimizer,
            learning_rate=recipe.learning_rate,
            batch=recipe.batch,
            progress=progress,
        )
        store_cached(net, file)
    return net.eval()


def where(data: str | Path | None) -> str | None:
    """The folder's whole path, so that settings with another current folder differ."""
    return None if data is None else str(expanded(data).absolute())


def cache_file(folder: str | Path, name: str, settings: Mapping[str, Any]) -> Path:
    """The file in the cache folder for these settings (plain data): their hash is in its name."""
    described = json.dumps([_FORMAT, settings], sort_keys=True)
    digest = hashlib.sha256(described.encode()).hexdigest()[:16]
    return expanded(folder) / f"{name}-{digest}.safetensors"


def load_cached(net: nn.Module, file: Path) -> bool:
    """Load the file's tensors into the network; whether it was there and whole."""
    try:
        net.load_state_dict(load_file(file))
    except (OSError, SafetensorError):
        return False
    return True


def store_cached(net: nn.Module, file: Path) -> None:
    """Write the network's tensors to the file, which is there only once complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as aside:
        save_file(net.state_dict(), aside)
