"""Samples, their subsets and batches."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch

from qubo_prune.data import Fresh, Samples, TensorSamples, collated, split
from qubo_prune.errors import InputError


def _numbers(count: int) -> TensorSamples:
    return TensorSamples(torch.arange(count))


def test_a_batch_is_the_chosen_entries_in_their_order() -> None:
    images, labels = torch.rand(5, 1, 2), torch.arange(5)
    samples = TensorSamples(images, labels)
    x, y = samples.batch(torch.tensor([3, 0]))
    assert torch.equal(x, images[[3, 0]])
    assert y.tolist() == [3, 0]
    assert len(samples) == 5
    assert samples.subset(torch.tensor([4, 1])).batch(torch.tensor([0]))[1].tolist() == [4]
    assert isinstance(samples, Samples)


def test_one_tensor_comes_as_itself() -> None:
    assert _numbers(4).batch(torch.tensor([2, 1])).tolist() == [2, 1]


@pytest.mark.parametrize("tensors", [(), (torch.zeros(3), torch.zeros(2)), (torch.zeros(3), torch.tensor(1.0))])
def test_tensors_that_are_no_samples(tensors: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(InputError, match="give at least one tensor, all of the same length"):
        TensorSamples(*tensors)


def test_a_split_is_disjoint_and_follows_from_its_seed() -> None:
    def drawn(seed: int) -> list[list[int]]:
        return [part.batch(torch.arange(len(part))).tolist() for part in split(_numbers(10), [4, 3], seed)]

    first, second = drawn(0)
    assert (len(first), len(second)) == (4, 3)
    assert not set(first) & set(second)
    assert set(first) | set(second) <= set(range(10))
    assert drawn(0) == [first, second]
    assert drawn(1) != [first, second]


@pytest.mark.parametrize("sizes", [[6, 5], [10, 0], [-1, 2], []])
def test_splits_that_cannot_be(sizes: list[int]) -> None:
    with pytest.raises(InputError, match="10 samples cannot be split into disjoint sets"):
        split(_numbers(10), sizes, 0)


def test_fresh_batches_hold_every_sample_once_an_epoch() -> None:
    fresh = Fresh(_numbers(12), seed=3)
    epochs = [torch.cat([fresh.draw(4) for _ in range(3)]) for _ in range(2)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert not torch.equal(*epochs)
    again = Fresh(_numbers(12), seed=3)
    assert torch.equal(torch.cat([again.draw(4) for _ in range(3)]), epochs[0])
    assert not torch.equal(Fresh(_numbers(12), seed=4).draw(12), epochs[0])


def test_a_fresh_batch_never_holds_a_sample_twice() -> None:
    fresh = Fresh(_numbers(10), seed=0)
    for _ in range(20):
        assert len(set(fresh.draw(7).tolist())) == 7


@pytest.mark.parametrize("count", [0, 11])
def test_fresh_batches_that_cannot_be(count: int) -> None:
    with pytest.raises(InputError, match=f"A batch of {count} was asked of 10 samples"):
        Fresh(_numbers(10), seed=0).draw(count)


LONG, LAST = torch.tensor([0, 1]), torch.tensor([2])


def _plain(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: value.tolist() for key, value in batch.items()}
    return [value.tolist() for value in batch] if isinstance(batch, tuple | list) else batch.tolist()


@pytest.mark.parametrize(
    ("batches", "kind", "expected"),
    [
        ([LONG, LAST], torch.Tensor, [2, 0]),
        ([(LONG, LONG + 5), (LAST, LAST + 5)], tuple, [[2, 0], [7, 5]]),
        ([[LONG], [LAST]], list, [[2, 0]]),
        (
            [{"a": LONG, "b": torch.eye(2)}, {"b": torch.ones(1, 2), "a": LAST}],
            dict,
            {"a": [2, 0], "b": [[1.0, 1.0], [1.0, 0.0]]},
        ),
        ([UserDict(a=LONG), UserDict(a=LAST)], dict, {"a": [2, 0]}),
    ],
)
def test_joined_batches_keep_their_structure(batches: list[Any], kind: type, expected: Any) -> None:
    samples = collated(iter(batches))
    assert len(samples) == 3
    drawn = samples.batch(torch.tensor([2, 0]))
    assert type(drawn) is kind
    assert _plain(drawn) == expected


def test_a_data_loader_is_joined() -> None:
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.arange(5), torch.rand(5, 2)), batch_size=2
    )
    assert _plain(collated(loader).batch(torch.tensor([4, 2])))[0] == [4, 2]


two, three = torch.zeros(2), torch.zeros(3)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "hold no samples"),
        ([torch.zeros(0, 3)], "hold no samples"),
        (["text"], "Batch 0 is of type str;"),
        ([two, {"a": 3}], "Batch 1 is of type dict and its entry 'a' is int;"),
        ([()], "Batch 0 is of type tuple;"),
        ([(two, two), two], "Batch 1 is a tensor, but batch 0 is a tuple of 2 tensors"),
        ([{"a": two}, {"b": two}], "Batch 1 is a dict of b, but batch 0 is a dict of a"),
        ([(two,), (two, two)], "Batch 1 is a tuple of 2 tensors, but batch 0 is a tuple of 1"),
        ([(two, three)], r"batch 0 have shapes 0 \(2,\), 1 \(3,\)"),
        ([torch.tensor(1.0)], r"batch 0 have shapes 0 \(\)"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], r"Entry 0 of batch 1 holds samples of shape \(4,\)"),
        ([two, two.long()], "torch.int64, but those of batch 0"),
    ],
)
def test_batches_that_cannot_be_joined(batches: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        collated(batches)
