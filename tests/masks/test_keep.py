from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch import nn

from qubo_prune.errors import InputError
from qubo_prune.files.checksummed import Sealed, write_sealed
from qubo_prune.masks import KeepMasks, Pattern, keep_highest, keep_highest_together


@st.composite
def layers(draw):
    """Scores full of ties, a pattern that fits their shape and a density."""
    kind = draw(st.sampled_from(["row", "layer", "n:m"]))
    rows, of = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    d_in = of * draw(st.integers(1, 4))
    if kind == "n:m":
        keep = draw(st.integers(1, of))
        pattern, density = Pattern.parse(f"{keep}:{of}"), keep / of
    else:
        pattern, density = Pattern.parse(kind), draw(st.floats(0.01, 1.0))
    values = draw(st.lists(st.integers(-1, 1), min_size=rows * d_in, max_size=rows * d_in))
    return torch.tensor(values, dtype=torch.float64).reshape(rows, d_in), pattern, density


def budgets(keep: torch.Tensor, pattern: Pattern) -> list[int]:
    if pattern.name == "layer":
        return [int(keep.sum())]
    width = pattern.of or keep.shape[1]
    return [int(row[at : at + width].sum()) for row in keep for at in range(0, keep.shape[1], width)]


@settings(deadline=None, max_examples=150)
@given(layers())
def test_counts_are_exact_even_under_ties_and_the_highest_scores_stay(case):
    scores, pattern, density = case
    keep = keep_highest(scores, pattern, density)
    rows, d_in = scores.shape
    if pattern.name == "layer":
        wanted = round(density * rows * d_in)
    else:
        wanted = pattern.keep if pattern.of else round(density * d_in)
    assert set(budgets(keep, pattern)) == {wanted}
    assert pattern.num_kept((rows, d_in), density) == int(keep.sum())
    assert pattern.violations(keep, density) == 0
    for kept, values in zip(pattern.groups(keep), pattern.groups(scores), strict=True):
        if kept.any() and not kept.all():
            assert values[kept].min() >= values[~kept].max()


def test_of_equal_scores_the_later_column_stays():
    keep = keep_highest(torch.zeros(2, 4), Pattern.parse("row"), 0.5)
    assert keep.tolist() == [[False, False, True, True]] * 2


@pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.77, 1.0])
def test_one_threshold_over_several_matrices(rng, density):
    shapes = {"a": (3, 7), "b": (1, 1), "c": (4, 4)}
    scores = {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}
    keep = keep_highest_together(scores, density)
    assert {name: tuple(mask.shape) for name, mask in keep.items()} == shapes
    ranked = sorted((float(value) for score in scores.values() for value in score.flatten()), reverse=True)
    wanted = round(density * 38)
    for name, mask in keep.items():
        assert torch.equal(mask, scores[name] >= (ranked[wanted - 1] if wanted else torch.inf))
    assert sum(int(mask.sum()) for mask in keep.values()) == wanted


def test_one_threshold_is_exact_under_ties_and_may_empty_a_matrix():
    keep = keep_highest_together({"a": torch.zeros(2, 3), "b": torch.zeros(3, 2)}, 0.5)
    assert sum(int(mask.sum()) for mask in keep.values()) == 6
    keep = keep_highest_together({"small": torch.full((2, 2), 1.0), "large": torch.full((2, 2), 9.0)}, 0.5)
    assert not keep["small"].any()
    assert keep["large"].all()


def test_violations_count_the_groups_that_are_off():
    keep = torch.tensor([[True, True, False, False], [True, False, True, True]])
    assert Pattern.parse("row").violations(keep, 0.5) == 1
    assert Pattern.parse("1:2").violations(keep, 0.5) == 3
    assert Pattern.parse("layer").violations(keep, 0.5) == 1
    assert Pattern.parse("layer").violations(keep, 5 / 8) == 0


def test_patterns_are_read_from_their_names():
    assert Pattern.parse("row") == Pattern("row")
    assert Pattern.parse("2:4") == Pattern("2:4", 2, 4)
    assert Pattern.parse(Pattern("layer")) == Pattern("layer")
    assert Pattern.parse("2:4").labels(8).tolist() == [0] * 4 + [1] * 4
    assert Pattern.parse("row").labels(3).tolist() == [0, 0, 0]
    assert Pattern.parse("layer").labels(3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("text", ["", "rows", "4:2", "0:4", "2:4:8", "-1:4", "2.5:4", "2:0"])
def test_unknown_patterns_are_refused(text):
    with pytest.raises(InputError, match="'row', 'layer' or n:m"):
        Pattern.parse(text)


@pytest.mark.parametrize("density", [0.0, -0.5, 1.01, float("nan")])
def test_a_density_is_a_share(density):
    with pytest.raises(InputError, match="density"):
        Pattern.parse("row").check(density)


def test_a_pattern_must_fit_density_and_width():
    pattern = Pattern.parse("2:4")
    pattern.check(0.5, "layer", 8)
    Pattern.parse("row").check(1.0, "layer", 7)
    with pytest.raises(InputError, match=r"give density 0\.5"):
        pattern.check(0.6)
    with pytest.raises(InputError, match="'down_proj' has 6 inputs"):
        pattern.check(0.5, "down_proj", 6)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 7, bias=False))


@pytest.fixture
def masks(model) -> KeepMasks:
    return KeepMasks({"0.weight": model[0].weight > 0, "1.weight": model[1].weight > 0})


def test_masks_come_back_as_they_were_given(model, masks):
    assert len(masks) == 2
    assert list(masks) == ["0.weight", "1.weight"]
    assert torch.equal(masks["0.weight"], model[0].weight > 0)
    assert masks["1.weight"].dtype == torch.bool
    with pytest.raises(KeyError):
        masks["2.weight"]


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 3), (8, 8), (0, 4)])
def test_masks_survive_their_file(tmp_path, rng, shape):
    mask = torch.tensor(rng.integers(0, 2, size=shape) > 0)
    KeepMasks({"a": mask, "b": ~mask}).save(tmp_path / "masks.safetensors")
    loaded = KeepMasks.load(tmp_path / "masks.safetensors")
    assert torch.equal(loaded["a"], mask)
    assert torch.equal(loaded["b"], ~mask)


def test_only_bool_is_a_mask():
    with pytest.raises(InputError, match="bool, True = keep"):
        KeepMasks({"a": torch.ones(2)})


def test_apply_zeroes_the_pruned_weights_alone_and_verify_counts_the_others(model, masks):
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrong = masks.verify(model)
    assert wrong == {name: int((dense[name] < 0).sum()) for name in masks}
    masks.apply(model)
    assert masks.verify(model) == {}
    for name, parameter in model.named_parameters():
        expected = dense[name].clamp(min=0) if name in masks else dense[name]
        assert torch.equal(parameter.detach(), expected)


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_a_mask_that_does_not_fit_the_model_is_refused(model, name):
    masks = KeepMasks({name: torch.ones(2, 2, dtype=torch.bool)})
    for use in (masks.apply, masks.verify):
        with pytest.raises(InputError, match=name):
            use(model)


MASKS = "qubo_prune.keep_masks.v2"


@pytest.mark.parametrize(
    ("kind", "tensor", "info"),
    [
        ("something.else.v1", torch.zeros(2, dtype=torch.uint8), {"shapes": {"a": [4, 4]}}),
        (MASKS, torch.zeros(2, dtype=torch.uint8), {}),
        (MASKS, torch.zeros(2, dtype=torch.uint8), {"shapes": {"b": [4, 4]}}),
        (MASKS, torch.zeros(2, dtype=torch.uint8), {"shapes": {"a": [4, 5]}}),
        (MASKS, torch.zeros(2, dtype=torch.uint8), {"shapes": {"a": "wide"}}),
        (MASKS, torch.zeros(2, dtype=torch.uint8), {"shapes": {"a": [-4, -4]}}),
        (MASKS, torch.zeros(2, dtype=torch.uint8), {"shapes": ["a"]}),
        (MASKS, torch.zeros(2), {"shapes": {"a": [4, 4]}}),
    ],
)
def test_foreign_files_are_refused(tmp_path, kind, tensor, info):
    path = tmp_path / "other.safetensors"
    write_sealed(path, kind, Sealed({"a": tensor}, info))
    with pytest.raises(InputError, match=r"other\.safetensors"):
        KeepMasks.load(path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": MASKS},
        {"qubo_prune": "[]"},
        {"qubo_prune": "{"},
        {"qubo_prune": f'{{"format": "{MASKS}"}}'},
        {"qubo_prune": f'{{"format": "{MASKS}", "info": "{{}}", "sha256": "{"0" * 64}"}}'},
        {"qubo_prune": f'{{"format": "{MASKS}", "info": 3, "sha256": "{"0" * 64}"}}'},
    ],
)
def test_files_without_their_checksum_are_refused(tmp_path, metadata):
    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(2, np.uint8)}, path, metadata=metadata)
    with pytest.raises(InputError, match=r"other\.safetensors"):
        KeepMasks.load(path)


def test_no_changed_byte_goes_unseen(tmp_path, masks, rng):
    path = tmp_path / "masks.safetensors"
    masks.save(path)
    content = path.read_bytes()
    for place in rng.choice(len(content), size=200):
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with pytest.raises(InputError, match=r"masks\.safetensors"):
            KeepMasks.load(path)


@pytest.mark.parametrize("content", [b"", b"not a mask file at all", b"\xff" * 100])
def test_corrupted_files_are_refused(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.safetensors"):
        KeepMasks.load(path)


def test_a_truncated_file_and_a_missing_one_are_refused(tmp_path, masks):
    path = tmp_path / "cut.safetensors"
    masks.save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        KeepMasks.load(path)
    with pytest.raises(InputError, match=r"no mask file .*missing\.safetensors"):
        KeepMasks.load(tmp_path / "missing.safetensors")
