"""Copies of what a forward pass may change, and traces of what it has changed."""

from __future__ import annotations

from collections import UserDict, deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qubo_prune.errors import InputError
from qubo_prune.models.replay import alike, fresh, is_mutable, spoilt, trace


class _Box:
    """An object with fields."""

    def __init__(self, content: Any) -> None:
        self.content = content


def _deep() -> dict[str, Any]:
    return {"list": [torch.ones(2)], "box": _Box({"keys": torch.ones(3)}), "tuple": (torch.ones(1), "a", None)}


def test_a_copy_is_alike_and_apart() -> None:
    value = _deep()
    copied = fresh(value)
    assert alike(value, copied)
    copied["list"].append(1)
    copied["box"].content["keys"] += 1
    copied["tuple"][0].zero_()
    assert alike(value, _deep())
    assert not alike(value, copied)


def test_what_cannot_be_copied_is_named() -> None:
    with pytest.raises(InputError, match="A batch holds a generator, which cannot be copied"):
        fresh(one for one in (1, 2))


def test_tensors_of_inference_mode_become_usable() -> None:
    with torch.inference_mode():
        made = torch.ones(2)
    trace(made)
    assert made.is_inference()
    assert not fresh([made])[0].is_inference()


WRITERS = {
    "in place": lambda value: value["list"][0].add_(1),
    "in a tuple": lambda value: value["tuple"][0].zero_(),
    "another entry": lambda value: value["list"].append(None),
    "another tensor": lambda value: setattr(value["box"], "content", {"keys": torch.ones(3)}),
    "deep inside": lambda value: value["box"].content.update(keys=torch.cat([torch.ones(1), torch.ones(2)])),
    "a number": lambda value: setattr(value["box"], "length", 3),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_whatever_is_written_changes_the_trace(kind: str) -> None:
    value = _deep()
    before = trace(value)
    assert trace(value) == before
    WRITERS[kind](value)
    assert trace(value) != before


def test_traces_of_values_that_hold_themselves_end() -> None:
    box = _Box([])
    box.content.append(box)
    before = trace(box)
    box.content.append(1)
    assert trace(box) != before


def test_only_what_may_carry_something_is_mutable() -> None:
    assert not any(map(is_mutable, (None, 1, "a", torch.ones(1), (torch.ones(1), (2, None)), nn.ReLU(), torch.float32)))
    assert all(map(is_mutable, ([], {}, UserDict(), deque(), _Box(1), (1, [2]))))


@dataclass(frozen=True, slots=True)
class Slots:
    number: int


def test_objects_without_a_dict_are_compared_as_they_compare_themselves() -> None:
    assert alike(Slots(1), Slots(1))
    assert alike(np.arange(3), np.arange(3))
    assert alike({1, 2}, {2, 1})
    for one, other in ((Slots(1), Slots(2)), (np.arange(3), np.ones(3)), (np.ones(2), np.ones(3)), ({1}, {2})):
        assert not alike(one, other)


def test_alike_goes_by_values_and_types() -> None:
    assert alike({"a": [1, torch.ones(2)]}, {"a": [1, torch.ones(2)]})
    different = [{"a": 1}, {"b": torch.ones(2)}, {"a": torch.ones(3)}, {"a": torch.ones(2).double()}, [torch.ones(2)]]
    assert not any(alike({"a": torch.ones(2)}, other) for other in different)


def test_spoilt_tensors_keep_their_shapes_only() -> None:
    floating, (whole, kept) = spoilt((torch.ones(2), [torch.ones(3, dtype=torch.long), "a"]))
    assert floating.shape == (2,)
    assert floating.isnan().all()
    assert whole.tolist() == [0, 0, 0]
    assert kept == "a"
