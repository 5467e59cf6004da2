"""The real models that the instances come from: weights, Grams of what their layers read, gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qubo_prune.bench import CACHE
from qubo_prune.data.losses import Objective, make_loss
from qubo_prune.data.samples import Samples, TensorSamples
from qubo_prune.data.text import check_length, token_windows
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.hessian.gradients import Entries, block_gradients
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.stream import Seconds, stream
from qubo_prune.models.layers import Layer, find_layers
from qubo_prune.models.load import load_model
from qubo_prune.progress import Progress


@dataclass(frozen=True, eq=False)
class Origin:
    """A model with the samples that its Hessians are taken over.

    Attributes:
        name: for the names of instances.
        about: what the model is and where it comes from, one sentence.
        reads: what the Grams and the gradients were taken over, one sentence.
        model: in evaluation mode.
        calls: model inputs that the Grams are summed over.
        samples: what the gradients of the loss are taken over.
        loss: as :func:`qubo_prune.data.losses.make_loss` takes it.
    """

    name: str
    about: str
    reads: str
    model: nn.Module
    calls: Sequence[Any]
    samples: Samples
    loss: Any
    _grams: dict[str, Gram] = field(default_factory=dict, repr=False)

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """All of them, by name."""
        return {layer.name: layer for layer in find_layers(self.model)}

    def layer(self, name: str) -> Layer:
        """The layer of that full name.

        Raises:
            InputError: there is none.
        """
        if name not in self.layers:
            raise InputError(f"{self.name} has no layer {name!r}{did_you_mean(name, self.layers)}; give its full name.")
        return self.layers[name]

    def read_grams(self, names: Sequence[str], progress: Progress | None = None) -> None:
        """Sum the Grams of these layers, in the dense model, in one pass."""
        wanted = [self.layer(name) for name in names if name not in self._grams]
        if not wanted:
            return

        def visit(layer: Layer, gram: Gram) -> None:
            self._grams[layer.name] = gram
            advance(1, layer.name)

        with (progress or Progress()).task(f"{self.name}: Grams", len(wanted)) as advance:
            stream(self.model, wanted, self.calls, visit, Seconds())

    def gram(self, name: str) -> Gram:
        """The Gram of a layer's inputs; read on its own if :meth:`read_grams` did not."""
        self.read_grams([name])
        return self._grams[name]

    def gradients(self, blocks: Sequence[Entries], weight: Tensor) -> list[Tensor]:
        """Per-sample gradients ``(B, n)`` of the blocks, all of one layer, which for that has other weights.

        Args:
            blocks: weights of the layer.
            weight: ``(d_out, d_in)`` what the layer is set to while the gradients are taken.
        """
        layer, samples = blocks[0].layer, torch.arange(len(self.samples))
        dense = layer.matrix().detach().clone()
        objective = Objective(self.model, make_loss(self.loss), micro_batch=16)
        try:
            layer.assign(weight)
            found = block_gradients(objective, self.samples, samples, [[entries] for entries in blocks])
        finally:
            layer.assign(dense)
        return found.given


def language_model(
    source: str, name: str, calibration: str = "pydoc", windows: int = 32, length: int = 512, samples: int = 128
) -> Origin:
    """A language model, its Grams over windows of a text, its gradients over shorter windows of the same text."""
    loaded = load_model(source)
    check_length(loaded.model, length)
    tokens = token_windows(loaded.tokenizer, calibration, "calibration", windows, length).tokens
    short = tokens.reshape(-1, min(64, length))[:samples]
    return Origin(
        name,
        f"the language model {source}",
        f"Grams over {tokens.numel()} tokens ({windows} windows of {length}) of {calibration}, gradients of "
        f"the next-token loss over {len(short)} windows of {short.shape[1]}",
        loaded.model,
        list(torch.split(tokens, 1)),
        TensorSamples(short),
        "next-token",
    )


def smollm2() -> Origin:
    """SmolLM2-135M on the standard library's documentation."""
    return language_model("smollm2-135m", "smollm2")


def smollm2_short() -> Origin:
    """The same on the first eighth of that text: read in seconds, and enough for Grams of full rank."""
    return language_model("smollm2-135m", "smollm2-short", windows=4, samples=16)


def dinov2(cache: Path = CACHE) -> Origin:
    """DINOv2-small with a linear probe, on training images of Fashion-MNIST."""
    from qubo_prune.bench.workloads import Vit

    vit = Vit(cache=cache)
    images, labels = vit.train.batch(torch.arange(256))
    return Origin(
        "dinov2",
        "the vision transformer DINOv2-small (ViT-S/14) with a linear probe for Fashion-MNIST",
        "Grams over 256 training images of 42 x 42, gradients of the cross entropy over 128 of them",
        vit.model(0),
        list(torch.split(images, 64)),
        TensorSamples(images[:128], labels[:128]),
        "classification",
    )


def crepe() -> Origin:
    """CREPE's tiny network on synthetic tones."""
    from qubo_prune.bench.tones import make_tones, pitch_network
    from qubo_prune.bench.workloads import tone_losses

    tones = make_tones(256, seed=1)
    return Origin(
        "crepe",
        "the convolutional pitch tracker CREPE tiny",
        "Grams over 256 synthetic tones, gradients of CREPE's own loss over 128 of them",
        pitch_network("tiny"),
        list(torch.split(tones.frames, 64)),
        TensorSamples(tones.frames[:128], tones.bins[:128]),
        tone_losses,
    )


#: The models of the suites, by the name that instances have them by.
ORIGINS: Mapping[str, Callable[[], Origin]] = {
    "smollm2": smollm2,
    "smollm2-short": smollm2_short,
    "dinov2": dinov2,
    "crepe": crepe,
}
