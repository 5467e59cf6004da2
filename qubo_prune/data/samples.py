"""Samples that the loss is taken over: joined batches, disjoint splits, fresh random batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.seeds import checked_seed


@runtime_checkable
class Samples(Protocol):
    """Samples that can be drawn one by one, as batches in the form that the loss function takes."""

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def batch(self, indices: Int[Tensor, " b"]) -> Any:
        """The batch of these samples, in this order."""
        ...


class TensorSamples:
    """Samples held in tensors; sample i is entry i along dimension 0 of each.

    A batch is the tuple of the tensors' entries, or the entries themselves if there is one tensor.

    Raises:
        InputError: no tensor was given, or their lengths differ.
    """

    def __init__(self, *tensors: Tensor) -> None:
        lengths = [len(tensor) if tensor.ndim else 0 for tensor in tensors]
        if len(set(lengths)) != 1:
            raise InputError(
                f"The tensors hold {', '.join(map(str, lengths)) or 'no'} samples; give at least one tensor, "
                "all of the same length along dimension 0."
            )
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(self, indices: Int[Tensor, " b"]) -> Any:
        chosen = tuple(tensor[indices.to(tensor.device)] for tensor in self.tensors)
        return chosen[0] if len(chosen) == 1 else chosen

    def subset(self, indices: Int[Tensor, " s"]) -> TensorSamples:
        """A copy of these samples only."""
        return TensorSamples(*(tensor[indices.to(tensor.device)] for tensor in self.tensors))


@dataclass(frozen=True, eq=False)
class Subset:
    """Some samples of others, by their indices there."""

    samples: Samples
    indices: Int[Tensor, " s"]

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Int[Tensor, " b"]) -> Any:
        return self.samples.batch(self.indices[indices])


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(to_device(value, device) for value in batch)
    return batch


def split(samples: Samples, sizes: Sequence[int], seed: int) -> list[Subset]:
    """Disjoint random subsets of these sizes.

    Raises:
        InputError: a size is below 1, or there are too few samples.
    """
    if min(sizes, default=0) < 1 or sum(sizes) > len(samples):
        raise InputError(
            f"{len(samples)} samples cannot be split into disjoint sets of {', '.join(map(str, sizes)) or 'no size'}; "
            "each size must be at least 1 and their sum at most the number of samples."
        )
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(checked_seed(seed)))
    ends = itertools.accumulate(sizes)
    return [Subset(samples, order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


class Fresh:
    """Draws random batches without replacement, in a new order in every epoch.

    A batch that the rest of an epoch cannot fill starts the next epoch, so no batch holds a sample
    twice. The same seed draws the same batches.
    """

    def __init__(self, samples: Samples, seed: int) -> None:
        self._samples = samples
        self._generator = torch.Generator().manual_seed(checked_seed(seed))
        self._left = torch.empty(0, dtype=torch.long)

    def indices(self, count: int) -> Int[Tensor, " b"]:
        """The indices of the next ``count`` samples; uses them up as :meth:`draw` does."""
        if not 1 <= count <= len(self._samples):
            raise InputError(
                f"A batch of {count} was asked of {len(self._samples)} samples; it must be at least 1 and at most "
                "that many."
            )
        if len(self._left) < count:
            self._left = torch.randperm(len(self._samples), generator=self._generator)
        drawn, self._left = self._left[:count], self._left[count:]
        return drawn

    def state(self) -> dict[str, Tensor]:
        """Where it is, for :meth:`recover`."""
        return {"left": self._left.clone(), "generator": self._generator.get_state()}

    def recover(self, state: Mapping[str, Tensor]) -> None:
        """Go on from where another one was."""
        self._left = state["left"]
        self._generator.set_state(state["generator"])

    def draw(self, count: int) -> Any:
        """The next batch of ``count`` samples; raises :class:`InputError` if there are not that many."""
        return self._samples.batch(self.indices(count))


@dataclass(frozen=True, eq=False)
class _Joined:
    """Samples of which a batch is built from one batch per leaf."""

    leaves: TensorSamples
    build: Callable[[Sequence[Tensor]], Any]

    def __len__(self) -> int:
        return len(self.leaves)

    def batch(self, indices: Int[Tensor, " b"]) -> Any:
        chosen = self.leaves.batch(indices)
        return self.build(chosen if isinstance(chosen, tuple) else (chosen,))


def collated(batches: Iterable[Any]) -> Samples:
    """Join batches so that single samples can be drawn; drawn batches have the structure of the given ones.

    Args:
        batches: a data loader, a list and so on of tensors, tuples or lists of tensors, or dicts of
            tensors; dimension 0 of each tensor counts samples.

    Raises:
        InputError: there is no batch, or the batches (numbered from 0) cannot be joined.
    """
    first: dict[Any, Tensor] | None = None
    build: Callable[[Sequence[Tensor]], Any] = tuple
    kind, parts = "", []
    for number, batch in enumerate(batches):
        leaves = _leaves(batch, number)
        if first is None:
            first, kind, build = leaves, _kind(batch), _builder(batch)
        elif _kind(batch) != kind or leaves.keys() != first.keys():
            raise InputError(
                f"Batch {number} is {_described(_kind(batch), leaves)}, but batch 0 is {_described(kind, first)}; "
                "give batches of one structure."
            )
        _check_sizes(leaves, first, number)
        parts.append([leaves[key] for key in first])
    if not parts or not sum(len(leaves[0]) for leaves in parts):
        raise InputError("The batches hold no samples; give at least one (an iterator can be read only once).")
    return _Joined(TensorSamples(*map(torch.cat, zip(*parts, strict=True))), build)


def _kind(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return "tensor"
    return "dict" if isinstance(batch, Mapping) else type(batch).__name__


def _builder(batch: Any) -> Callable[[Sequence[Tensor]], Any]:
    if isinstance(batch, Tensor):
        return lambda leaves: leaves[0]
    if isinstance(batch, Mapping):
        names = tuple(batch)
        return lambda leaves: dict(zip(names, leaves, strict=True))
    return list if isinstance(batch, list) else tuple


def _leaves(batch: Any, number: int) -> dict[Any, Tensor]:
    """The batch's tensors by their key or position."""
    if isinstance(batch, Tensor):
        leaves: dict[Any, Any] = {0: batch}
    elif isinstance(batch, Mapping):
        leaves = dict(batch)
    elif isinstance(batch, tuple | list):
        leaves = dict(enumerate(batch))
    else:
        leaves = {}
    wrong = [f"{key!r} is {type(leaf).__name__}" for key, leaf in leaves.items() if not isinstance(leaf, Tensor)]
    if not leaves or wrong:
        raise InputError(
            f"Batch {number} is of type {type(batch).__name__}{f' and its entry {wrong[0]}' if wrong else ''}; give "
            "tensors, tuples or lists of tensors, or dicts of tensors."
        )
    return leaves


def _described(kind: str, leaves: Mapping[Any, Tensor]) -> str:
    if kind == "tensor":
        return "a tensor"
    entries = ", ".join(map(str, leaves)) if kind == "dict" else f"{len(leaves)} tensors"
    return f"a {kind} of {entries}"


def _check_sizes(leaves: Mapping[Any, Tensor], first: Mapping[Any, Tensor], number: int) -> None:
    lengths = {key: len(leaf) if leaf.ndim else None for key, leaf in leaves.items()}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        shapes = ", ".join(f"{key!r} {tuple(leaf.shape)}" for key, leaf in leaves.items())
        raise InputError(
            f"The tensors of batch {number} have shapes {shapes}; dimension 0 must count the batch's samples in each."
        )
    for key, leaf in leaves.items():
        if leaf.shape[1:] != first[key].shape[1:] or leaf.dtype != first[key].dtype:
            raise InputError(
                f"Entry {key!r} of batch {number} holds samples of shape {tuple(leaf.shape[1:])} and {leaf.dtype}, "
                f"but those of batch 0 have {tuple(first[key].shape[1:])} and {first[key].dtype}; pad or cut all "
                "samples to one shape."
            )
