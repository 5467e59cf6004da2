from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qubo_prune.errors import InputError
from qubo_prune.masks import KeepMasks, Pattern, keep_highest
from qubo_prune.masks.packed import FORMAT, load_masks, load_sparse, save_sparse, sizes
from qubo_prune.models.layers import find_layers

WIDTHS = {torch.float64: 8, torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}
DENSE = (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Names in their order, shapes, types, and every bit."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert raw(found[name]) == raw(tensor)


def hits(rng: np.random.Generator, shape: Sequence[int], chance: float) -> torch.Tensor:
    return torch.from_numpy(np.asarray(rng.random(shape) < chance))


@st.composite
def any_tensor(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (*WIDTHS, *DENSE)) -> torch.Tensor:
    """Random bits, which hold NaN of any payload, infinities and denormals; zeros of both signs between them."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    chance = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    size = int(np.prod(shape))
    if dtype == torch.bool:
        return hits(rng, shape, chance)
    bits = torch.from_numpy(rng.integers(0, 256, (size, dtype.itemsize), dtype=np.uint8))
    bits[hits(rng, [size], chance)] = 0
    tensor = bits.flatten().view(dtype).reshape(shape)
    if dtype in WIDTHS:
        tensor[hits(rng, shape, 0.1)] = -0.0
    return tensor


@st.composite
def masked(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor with its mask: kept entries may be zeros of both signs or NaN."""
    tensor = draw(any_tensor(tuple(WIDTHS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    keep = hits(rng, tensor.shape, draw(st.sampled_from([0.0, 0.5, 1.0])))
    return tensor.masked_fill(~keep, 0), keep


@quick
@given(st.lists(any_tensor(), max_size=5))
def test_everything_comes_back_bit_for_bit(tmp_path, some):
    tensors = {f"t{number}": tensor for number, tensor in enumerate(some)}
    save_sparse(tensors, tmp_path / "file")
    assert_same(load_sparse(tmp_path / "file"), tensors)
    for name, size in sizes(tmp_path / "file").items():
        tensor = tensors[name]
        assert size.shape == tensor.shape
        assert f"torch.{size.dtype}" == str(tensor.dtype)
        assert size.stored <= size.dense == tensor.nbytes
        if size.kept is None:
            assert size.stored == size.dense
        else:
            assert tensor.ndim >= 2
            assert size.stored == (tensor.numel() + 7) // 8 + size.kept * WIDTHS[tensor.dtype]


@quick
@given(st.lists(masked(), max_size=4))
def test_masks_come_back_with_kept_zeros(tmp_path, some):
    tensors = {f"t{number}": tensor for number, (tensor, _) in enumerate(some)}
    masks = {f"t{number}": keep for number, (_, keep) in enumerate(some)}
    save_sparse(tensors, tmp_path / "file", KeepMasks(masks))
    assert_same(load_sparse(tmp_path / "file"), tensors)
    found = load_masks(tmp_path / "file")
    assert list(found) == list(masks)
    assert all(torch.equal(found[name], keep) for name, keep in masks.items())
    assert {name: size.kept for name, size in sizes(tmp_path / "file").items()} == {
        name: int(keep.sum()) for name, keep in masks.items()
    }


def test_without_masks_minus_zero_is_kept(tmp_path):
    weight = torch.tensor([[0.0, -0.0, 1.0, 0.0]] * 4)
    save_sparse({"w": weight}, tmp_path / "file")
    assert load_masks(tmp_path / "file")["w"].tolist() == [[False, True, True, False]] * 4
    assert_same(load_sparse(tmp_path / "file"), {"w": weight})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pattern", "density"), [("row", 0.5), ("2:4", 0.5), ("layer", 0.1)])
def test_the_file_has_the_size_that_arithmetic_gives(tmp_path, dtype, pattern, density):
    weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    keep = keep_highest(weight.float().abs(), Pattern.parse(pattern), density)
    weight.masked_fill_(~keep, 0)
    save_sparse({"w": weight}, tmp_path / "file", {"w": keep})
    expected = 96 * 64 // 8 + round(density * 96 * 64) * dtype.itemsize
    assert sizes(tmp_path / "file")["w"].stored == expected
    assert expected < os.path.getsize(tmp_path / "file") < expected + 1000


def test_a_model_with_tied_weights(tmp_path):
    model = tiny.llama(tie_word_embeddings=True)
    layers = find_layers(model, prune_head=True)
    masks = KeepMasks(
        {x.parameter_name: keep_highest(x.parameter.detach().abs(), Pattern("row"), 0.25) for x in layers}
    )
    masks.apply(model)
    state = model.state_dict()
    save_sparse(state, tmp_path / "file", masks)
    found = load_sparse(tmp_path / "file")
    assert_same(found, state)
    assert found["lm_head.weight"] is found["model.embed_tokens.weight"]
    assert len(sizes(tmp_path / "file")) == len(state) - 1
    other = tiny.llama(tie_word_embeddings=True)
    other.load_state_dict(found)
    load_masks(tmp_path / "file").apply(other)
    assert torch.equal(other(tiny.tokens()).logits, model(tiny.tokens()).logits)


def test_views_of_one_memory_are_not_tied(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    views = {"base": base, "rows": base[1:3], "turned": base.T, "flat": base.view(24), "other": base.view(torch.int32)}
    save_sparse(views, tmp_path / "file")
    found = load_sparse(tmp_path / "file")
    assert_same(found, views)
    found["base"].zero_()
    assert found["turned"].any()


def test_lazy_views_are_not_tied_to_what_they_view(tmp_path):
    number = torch.tensor([1 + 2j, 3 - 4j])
    save_sparse({"a": number, "conj": number.conj(), "imag": number.imag, "neg": number.conj().imag}, tmp_path / "file")
    found = load_sparse(tmp_path / "file")
    assert found["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert found["imag"].tolist() == [2, -4]
    assert found["neg"].tolist() == [-2, 4]


def test_layouts_of_memory_and_gradients_do_not_matter(tmp_path):
    kernel = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).relu()
    tensors = {
        "channels_last": kernel.to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(kernel[0, 0]),
    }
    save_sparse(tensors, tmp_path / "file")
    assert_same(load_sparse(tmp_path / "file"), {name: tensor.detach() for name, tensor in tensors.items()})


def test_any_safetensors_reader_sees_mask_and_values(tmp_path):
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    bias = torch.zeros(3)
    save_sparse({"w": weight, "b": bias}, tmp_path / "file")
    found = load_file(tmp_path / "file")
    assert found["w.mask"].tolist() == [0b10010000]
    assert found["w.values"].tolist() == [1, 2]
    assert found["b"].tolist() == [0, 0, 0]
    with safe_open(tmp_path / "file", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == FORMAT
    table = json.loads(metadata["tensors"])
    assert table["w"]["shape"] == [2, 2]
    assert table["w"]["dtype"] == "float32"
    assert table["w"]["sha256"] == hashlib.sha256(raw(weight)).hexdigest()
    assert table["b"]["sha256"] == hashlib.sha256(raw(bias)).hexdigest()


# --- what cannot be saved ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "masks", "message"),
    [
        ({"w": torch.eye(2)}, {"v": torch.eye(2) == 1}, "'v' has no tensor.*leave that mask out"),
        ({"w": torch.eye(2)}, {"w": torch.eye(3) == 1}, r"shape \(3, 3\).*the shape \(2, 2\).*masks are bool"),
        ({"w": torch.eye(2)}, {"w": torch.eye(2)}, "torch.float32.*masks are bool"),
        ({"w": torch.eye(2)}, {"w": torch.eye(2) == 0}, r"2 pruned weights of 'w' are not \+0.0.*KeepMasks.apply"),
        ({"w": -torch.zeros(2, 2)}, {"w": torch.eye(2) == 1}, r"2 pruned weights of 'w' are not \+0.0"),
        ({"w": torch.eye(2).long()}, {"w": torch.eye(2) == 1}, "only floating-point tensors"),
        ({"w": torch.zeros(9, 9), "w.mask": torch.zeros(2)}, {}, "rename one"),
        ({"__metadata__": torch.zeros(2)}, {}, "rename it"),
        ({"w": torch.zeros(2, 2).to_sparse()}, {}, "only dense tensors"),
        ({"w": torch.zeros(2, 2, device="meta")}, {}, "only dense tensors"),
        ({"w": torch.zeros(2, dtype=torch.complex128)}, {}, "complex128 cannot be stored"),
    ],
)
def test_what_cannot_be_saved_leaves_the_old_file(tmp_path, tensors, masks, message):
    (tmp_path / "file").write_text("old")
    with pytest.raises(InputError, match=message):
        save_sparse(tensors, tmp_path / "file", masks)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_tied_tensors_with_masks_that_differ(tmp_path):
    weight, keep = torch.zeros(2, 2), torch.eye(2) == 1
    save_sparse({"a": weight, "b": weight}, tmp_path / "file", {"a": keep, "b": keep.clone()})
    with pytest.raises(InputError, match="'a' and 'b' are one tensor"):
        save_sparse({"a": weight, "b": weight}, tmp_path / "file", {"a": keep, "b": ~keep})


@pytest.mark.parametrize("where", [".", "missing/file"])
def test_places_that_cannot_be_written(tmp_path, where):
    with pytest.raises(InputError, match="folder that is there"):
        save_sparse({}, tmp_path / where)


def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch):
    save_sparse({"w": torch.eye(2)}, tmp_path / "file")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk filled up"):
        save_sparse({"w": torch.ones(2, 2)}, tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
    assert_same(load_sparse(tmp_path / "file"), {"w": torch.eye(2)})


def test_the_file_is_as_readable_as_any_other(tmp_path):
    save_sparse({}, tmp_path / "file")
    (tmp_path / "plain").touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- what cannot be read ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with packed, dense, empty, tied and masked tensors."""
    path = tmp_path_factory.mktemp("sound") / "file"
    weight = torch.arange(12.0).reshape(3, 4).masked_fill(torch.arange(12).reshape(3, 4) % 2 == 0, 0)
    tensors = {"w": weight, "tied": weight, "bias": torch.ones(3), "none": torch.zeros(0, 4), "z": torch.zeros(2, 3)}
    save_sparse(tensors, path, {"z": torch.eye(2, 3) == 1})
    return path.read_bytes()


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(tmp_path, sound, data):
    place = data.draw(st.integers(0, 8 * len(sound) - 1))
    flipped = bytearray(sound)
    flipped[place // 8] ^= 1 << place % 8
    (tmp_path / "file").write_bytes(flipped)
    with pytest.raises(InputError, match="file"):
        load_sparse(tmp_path / "file")


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_cut_goes_unnoticed(tmp_path, sound, data):
    (tmp_path / "file").write_bytes(sound[: data.draw(st.integers(0, len(sound) - 1))])
    for read in (load_sparse, load_masks, sizes):
        with pytest.raises(InputError, match="file"):
            read(tmp_path / "file")
    (tmp_path / "file").write_bytes(sound + b"\0")
    with pytest.raises(InputError, match="file"):
        load_sparse(tmp_path / "file")


def write(path: Path, parts: dict[str, torch.Tensor], table: Any, **metadata: str) -> None:
    """A file whose hash of the table is right."""
    text = table if isinstance(table, str) else json.dumps(table)
    digest = hashlib.sha256(text.encode()).hexdigest()
    save_file(parts, path, metadata={"format": FORMAT, "tensors": text, "sha256": digest, **metadata})


def test_other_files(tmp_path):
    for read in (load_sparse, load_masks, sizes):
        with pytest.raises(InputError, match="no file"):
            read(tmp_path / "missing")
        with pytest.raises(InputError, match="not a readable"):
            read(tmp_path)
    save_file({"w": torch.eye(2)}, tmp_path / "plain")
    with pytest.raises(InputError, match=f"of the format None, not '{FORMAT}'"):
        load_sparse(tmp_path / "plain")
    KeepMasks({"w": torch.eye(2) == 1}).save(tmp_path / "masks")
    with pytest.raises(InputError, match=r"not .qubo_prune\.sparse\.v1."):
        load_sparse(tmp_path / "masks")
    write(tmp_path / "newer", {}, {}, format="qubo_prune.sparse.v2")
    with pytest.raises(InputError, match=r"sparse.v2"):
        load_sparse(tmp_path / "newer")
    write(tmp_path / "hash", {}, {}, sha256="0")
    with pytest.raises(InputError, match="its table does not have the hash"):
        load_sparse(tmp_path / "hash")


def entry(tensor: torch.Tensor, mask: torch.Tensor | None = None, **changes: Any) -> dict[str, Any]:
    row = {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype)[6:],
        "sha256": hashlib.sha256(raw(tensor)).hexdigest(),
    }
    if mask is not None:
        row["mask_sha256"] = hashlib.sha256(raw(mask)).hexdigest()
    return {**row, **changes}


WEIGHT, MASK, VALUES = torch.eye(2), torch.tensor([0b10010000], dtype=torch.uint8), torch.ones(2)
PARTS = {"w.mask": MASK, "w.values": VALUES}


def test_a_file_made_by_hand(tmp_path):
    write(tmp_path / "file", PARTS, {"w": entry(WEIGHT, MASK)})
    assert_same(load_sparse(tmp_path / "file"), {"w": WEIGHT})


@pytest.mark.parametrize(
    ("parts", "table", "message"),
    [
        (PARTS, {}, "does not hold the tensors of its table"),
        ({"w.mask": MASK}, {"w": entry(WEIGHT, MASK)}, "does not hold the tensors of its table"),
        ({**PARTS, "x": WEIGHT}, {"w": entry(WEIGHT, MASK)}, "does not hold the tensors of its table"),
        (PARTS, {"w": entry(WEIGHT, MASK), "v": {"same_as": "u"}}, "table cannot be read"),
        ({**PARTS, "w.values": torch.ones(3)}, {"w": entry(WEIGHT, MASK)}, "do not fit its mask"),
        ({**PARTS, "w.values": torch.ones(1)}, {"w": entry(WEIGHT, MASK)}, "do not fit its mask"),
        ({**PARTS, "w.values": torch.ones(2, 1)}, {"w": entry(WEIGHT, MASK)}, "do not fit its mask"),
        ({**PARTS, "w.values": torch.ones(2).long()}, {"w": entry(WEIGHT, MASK)}, "do not fit its mask"),
        ({**PARTS, "w.values": torch.ones(2).half()}, {"w": entry(WEIGHT, MASK)}, "type and shape of the table"),
        ({**PARTS, "w.values": 2 * torch.ones(2)}, {"w": entry(WEIGHT, MASK)}, "'w' does not have the hash"),
        (PARTS, {"w": entry(WEIGHT, MASK, sha256="0")}, "'w' does not have the hash"),
        (PARTS, {"w": entry(WEIGHT, MASK, mask_sha256="0")}, "mask of 'w' does not have the hash"),
        ({**PARTS, "w.mask": MASK ^ 1}, {"w": entry(WEIGHT, MASK)}, "mask of 'w' does not have the hash"),
        (PARTS, {"w": entry(WEIGHT, MASK, shape=[3, 3])}, "mask of 'w' does not fit its shape"),
        ({**PARTS, "w.mask": MASK.char()}, {"w": entry(WEIGHT, MASK)}, "mask of 'w' does not fit its shape"),
        (PARTS, {"w": entry(WEIGHT, MASK, shape=[2**40, 2**40])}, "mask of 'w' does not fit its shape"),
        (PARTS, {"w": entry(WEIGHT, MASK, shape=[4])}, None),
        ({"w": WEIGHT}, {"w": entry(WEIGHT)}, None),
        ({"w": WEIGHT}, {"w": entry(WEIGHT, shape=[4])}, "type and shape of the table"),
        ({"w": WEIGHT}, {"w": entry(WEIGHT, dtype="float16")}, "type and shape of the table"),
        ({"w": WEIGHT}, {"w": entry(WEIGHT, shape=[2, -2])}, "table cannot be read"),
        ({"w": WEIGHT}, {"w": entry(WEIGHT, shape=[2, True])}, "table cannot be read"),
        ({"w": WEIGHT}, {"w": entry(WEIGHT, shape=4)}, "table cannot be read"),
        ({"w": WEIGHT}, {"w": entry(WEIGHT, dtype="load")}, "table cannot be read"),
        ({"w": WEIGHT}, {"w": entry(WEIGHT, dtype="no")}, "table cannot be read"),
        ({"w": WEIGHT}, {"w": entry(WEIGHT, more=1)}, "table cannot be read"),
        ({"w": WEIGHT}, {"w": {}}, "table cannot be read"),
        ({"w": WEIGHT}, {"w": []}, "table cannot be read"),
        ({"w": WEIGHT}, [], "table cannot be read"),
        ({"w": WEIGHT}, "{", "table cannot be read"),
        ({"w": WEIGHT}, "[" * 100_000, "table cannot be read"),
    ],
)
def test_contradictions_are_found_even_under_a_right_hash(tmp_path, parts, table, message):
    write(tmp_path / "file", parts, table)
    if message is None:
        assert load_sparse(tmp_path / "file")["w"].flatten().tolist() == WEIGHT.flatten().tolist()
        return
    with pytest.raises(InputError, match=message):
        load_sparse(tmp_path / "file")
