"""What part of a model's weights a run prunes: what is left dense, what is passed over, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from qubo_prune.models.layers import Layer, is_prunable
from qubo_prune.models.names import folded, matches, plain_name

T = TypeVar("T")

#: Parameters of one kind that have this share of the model's weights together are named if they are passed over.
LARGE = 0.01
#: Kinds that a sentence lists at most.
_LISTED = 8


@dataclass(frozen=True)
class LeftDense:
    """A layer of the run that was not pruned.

    Attributes:
        name: dotted path in the model.
        weights: how many it has.
        reason: why, as the end of a sentence that begins with the layer.
    """

    name: str
    weights: int
    reason: str


@dataclass(frozen=True)
class PassedOver:
    """Large parameters of one kind that are no layers of the run.

    Attributes:
        name: of the parameters, numbers left open.
        parameters: how many.
        weights: of all of them together.
        reason: why they are no layers of the run, as the end of a sentence that begins with them.
    """

    name: str
    parameters: int
    weights: int
    reason: str


@dataclass(frozen=True)
class Coverage:
    """The weights of a model, whether a run prunes them or not.

    Attributes:
        weights: all of them, biases and embeddings included, shared ones counted once.
        passed_over: the large ones that are in no layer of the run.
    """

    weights: int
    passed_over: tuple[PassedOver, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"weights": self.weights, "passed_over": [dataclasses.asdict(each) for each in self.passed_over]}

    @classmethod
    def of(
        cls, model: nn.Module, layers: Sequence[Layer], include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> Coverage:
        """The weights of a model of which a run prunes some layers.

        Args:
            model: in memory or not.
            layers: of the run.
            include: the patterns by which they were chosen.
            exclude: likewise.
        """
        owners = _owners(model)
        total = sum(each[0].parameter.numel() for each in owners.values())
        inside = {_identity(layer.parameter) for layer in layers}
        found: dict[tuple[str, str], list[int]] = {}
        for key, places in owners.items():
            if key not in inside and places[0].parameter.ndim > 1:
                kind = folded(places[0].name), _reason(places, include, exclude)
                found.setdefault(kind, []).append(places[0].parameter.numel())
        large = [
            PassedOver(name, len(sizes), sum(sizes), reason)
            for (name, reason), sizes in found.items()
            if sum(sizes) >= LARGE * total
        ]
        return cls(total, tuple(large))


@dataclass(frozen=True, eq=False)
class _Place:
    """A parameter under one of its names."""

    name: str
    parameter: nn.Parameter
    module_name: str
    module: nn.Module

    @property
    def is_matrix_of_layer(self) -> bool:
        return is_prunable(self.module) and self.name.rpartition(".")[2] == "weight"


def _owners(model: nn.Module) -> dict[tuple[Any, ...], list[_Place]]:
    """Every parameter once, with all its places."""
    found: dict[tuple[Any, ...], list[_Place]] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        for own, parameter in module._parameters.items():
            if parameter is not None and not nn.parameter.is_lazy(parameter):
                name = plain_name(f"{module_name}.{own}" if module_name else own)
                place = _Place(name, parameter, plain_name(module_name), module)
                found.setdefault(_identity(parameter), []).append(place)
    return found


def _identity(parameter: nn.Parameter) -> tuple[Any, ...]:
    """The same for parameters that are one, or that share all their memory."""
    if parameter.is_meta or type(parameter.data) is not torch.Tensor or not parameter.numel():
        return (id(parameter),)
    return (parameter.device, parameter.data_ptr(), parameter.numel())


def _reason(places: Sequence[_Place], include: Sequence[str], exclude: Sequence[str]) -> str:
    """Why a parameter is in no layer of a run."""
    if any(isinstance(place.module, (nn.Embedding, nn.EmbeddingBag)) for place in places):
        return "an embedding"
    names = [place.module_name for place in places if place.is_matrix_of_layer]
    if names:
        # a shared weight goes by the names of all its modules
        wanted = not include or any(matches(name, include) for name in names)
        left_out = not wanted or any(matches(name, exclude) for name in names)
        return "left out by include or exclude" if left_out else "the output head, which prune_head=True includes"
    place, kind = places[0], type(places[0].module).__name__
    if place.parameter.ndim == 3 and "expert" in f"{place.name} {kind}".lower():
        return "experts in one parameter, which are not pruned"
    return f"a parameter of {kind}, which is no linear layer or 2-D convolution"


# --- in words ---------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """A share in percent, with one place below ten.

    >>> percent(0.134), percent(0.0042)
    ('13 %', '0.4 %')
    """
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def sentences(coverage: Coverage | None, left: Sequence[LeftDense]) -> list[str]:
    """A line for each reason why layers were left dense, then for each why parameters were passed over."""
    lines = []
    for reason, layers in _by(lambda each: each.reason, left).items():
        weights = sum(each.weights for each in layers)
        layer = "layer" if len(layers) == 1 else "layers"
        names = _listed([folded(each.name) for each in layers])
        lines.append(f"left dense: {names} ({len(layers)} {layer}, {weights:,} weights), {reason}")
    if coverage is not None:
        for reason, kinds in _by(lambda each: each.reason, coverage.passed_over).items():
            share = percent(sum(each.weights for each in kinds) / coverage.weights)
            lines.append(f"passed over: {_listed([each.name for each in kinds])} ({share} of the weights), {reason}")
    return lines


def _by(key: Callable[[T], str], entries: Sequence[T]) -> Mapping[str, list[T]]:
    found: dict[str, list[T]] = {}
    for each in entries:
        found.setdefault(key(each), []).append(each)
    return found


def _listed(names: Sequence[str]) -> str:
    kinds = list(dict.fromkeys(names))
    more = f" and {len(kinds) - _LISTED} other kinds" if len(kinds) > _LISTED else ""
    return f"{', '.join(kinds[:_LISTED])}{more}"
