from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from qubo_prune.bench import networks
from qubo_prune.bench.networks import accuracy_and_loss, garment_net, mlpnet, train, trained
from qubo_prune.data import TensorSamples
from qubo_prune.data.images import fashion_mnist, mnist
from qubo_prune.errors import InputError
from qubo_prune.masks import Pattern, keep_highest


def _striped(count: int, seed: int = 0) -> TensorSamples:
    """Images with one bright row; its number is the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    images = torch.rand(count, 1, 28, 28, generator=generator) * 0.2
    images[torch.arange(count), 0, labels * 2] = 1.0
    return TensorSamples(images, labels)


def _idx_folder(folder: Path) -> Path:
    folder.mkdir()
    images, labels = _striped(640).tensors
    for part in ("train", "t10k"):
        header = struct.pack(">HBB3I", 0, 8, 3, *images.shape[::2], 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + (images * 255).byte().numpy().tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, len(labels)) + labels.byte().numpy().tobytes()
        )
    return folder


def _shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}


def test_the_networks_are_those_of_the_papers() -> None:
    assert _shapes(garment_net()) == {
        "hidden1.weight": (512, 784),
        "hidden1.bias": (512,),
        "hidden2.weight": (512, 512),
        "hidden2.bias": (512,),
        "output.weight": (10, 512),
        "output.bias": (10,),
    }
    assert _shapes(mlpnet()) == {"hidden1.weight": (40, 784), "hidden2.weight": (20, 40), "output.weight": (10, 20)}
    for net in (garment_net(), mlpnet()):
        assert net(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_weights_follow_from_the_seed_alone() -> None:
    first, same, other = (mlpnet(seed).hidden1.weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert float(first.detach().abs().max()) <= 1 / 28


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.1), ("adam", 1e-3)])
def test_training_learns_and_follows_from_its_seed(optimizer: networks.Optimizer, rate: float) -> None:
    nets = [mlpnet(), mlpnet(), mlpnet()]
    for net, seed in zip(nets, (5, 5, 6), strict=True):
        train(net, _striped(640), 10, seed, optimizer=optimizer, learning_rate=rate, batch=32)
    assert torch.equal(nets[0].hidden1.weight, nets[1].hidden1.weight)
    assert not torch.equal(nets[0].hidden1.weight, nets[2].hidden1.weight)
    accuracy, loss = accuracy_and_loss(nets[0], _striped(200, seed=1))
    assert accuracy > 0.9
    assert loss < 0.5 < accuracy_and_loss(mlpnet(), _striped(200, seed=1))[1]


def test_accuracy_and_loss_by_hand() -> None:
    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    class Wrapped(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> Output:  # as models of transformers answer
            return Output(super().forward(inputs))

    samples = TensorSamples(torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1]))
    for kind in (nn.Linear, Wrapped):
        net = kind(2, 2, bias=False).train()
        nn.init.eye_(net.weight)
        accuracy, loss = accuracy_and_loss(net, samples, batch=2)
        assert accuracy == pytest.approx(2 / 3)
        assert loss == pytest.approx(math.log1p(math.exp(2)) - 4 / 3)
        assert net.training


def test_a_network_is_trained_once_per_settings_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = _idx_folder(tmp_path / "data"), tmp_path / "cache"
    net = trained("mlpnet", cache, seed=1, data=data)
    assert not net.training
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])  # an unreadable file counts as none
    assert torch.equal(trained("mlpnet", cache, seed=1, data=data).output.weight, net.output.weight)
    trained("mlpnet", cache, seed=2, data=data)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(networks, "train", None)
    again = trained("mlpnet", cache, seed=1, data=data)
    assert torch.equal(again.hidden1.weight, net.hidden1.weight)


def test_unknown_networks_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no network 'garmnet' \(did you mean 'garment'.*; use garment, mlpnet"):
        trained("garmnet", tmp_path)


def _magnitude_pruned(net: nn.Module, density: float) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Linear):
            keep = keep_highest(module.weight.detach().abs(), Pattern.parse("layer"), density)
            module.weight.data *= keep
    return net


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read", "density", "dense", "pruned"),
    [("garment", fashion_mnist, 0.1, (0.86, 0.88), (0.5, 0.75)), ("mlpnet", mnist, 0.5, (0.93, 0.96), (0.8, 0.95))],
)
def test_the_real_networks_are_where_the_papers_have_them(tmp_path: Path, name, read, density, dense, pruned) -> None:
    try:
        _, test = read()
    except InputError as error:
        pytest.skip(str(error))
    net = trained(name, tmp_path)
    assert dense[0] < accuracy_and_loss(net, TensorSamples(*test))[0] < dense[1]
    assert pruned[0] < accuracy_and_loss(_magnitude_pruned(net, density), TensorSamples(*test))[0] < pruned[1]
