from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import pictures
import pytest
from PIL import Image

from qubo_prune.bench.networks import accuracy_and_loss
from qubo_prune.data.images import ImageFolder
from qubo_prune.errors import InputError
from qubo_prune.models.classifiers import load_classifier


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.classifier(tmp_path_factory.mktemp("classifier"))


def test_a_classifier_of_transformers_with_its_preprocessing(saved: Path, tmp_path: Path) -> None:
    loaded = load_classifier(str(saved))
    assert loaded.label2id == {"cat": 0, "dog": 1}
    pixels = loaded.transform(Image.new("RGB", (40, 30), (255, 0, 0)))
    assert pixels.shape == (3, 28, 28)
    assert pixels[:, 0, 0].tolist() == [1.0, -1.0, -1.0]
    for name in ("dog", "cat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9), "blue").save(tmp_path / name / "a.png")
    samples = ImageFolder(tmp_path, loaded.transform, loaded.label2id)
    accuracy, loss = accuracy_and_loss(loaded.model, samples)
    assert accuracy == 0.5  # the two images are the same
    assert loss > 0


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("./nowhere", "cpu", "There is no folder './nowhere'"),
        (".", "cpu", "The image classifier '.' could not be loaded"),
        ("anything", "gpu", r"The device 'gpu' \(did you mean 'cpu'\?\) cannot be used here"),
    ],
)
def test_classifiers_that_cannot_be_loaded(name: str, device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_classifier(name, device)


def test_timm_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *rest, **named):
        if name.split(".")[0] == "timm":
            raise ImportError(name)
        return real(name, *rest, **named)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match="pip install timm"):
        load_classifier("timm:resnet18")


@pytest.mark.parametrize("model_type", ["own", "keep"])
def test_code_of_a_checkpoint_is_neither_run_nor_asked_for(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Model"}
    if model_type == "own":
        config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\n")

    def asked(*prompt: object) -> str:
        raise AssertionError("it asked on the terminal")

    monkeypatch.setattr(builtins, "input", asked)
    if model_type == "own":
        with pytest.raises(InputError, match="could not be loaded"):
            load_classifier(str(folder))
    else:
        assert load_classifier(str(folder)).label2id == {"cat": 0, "dog": 1}
    assert not (tmp_path / "was-run").exists()
