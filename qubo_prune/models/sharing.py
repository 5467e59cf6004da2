"""Which parameters of a model share memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter where a module holds it.

    Attributes:
        name: dotted path of the module in the model.
        module: the module.
        leaf: the parameter's name there.
        parameter: the parameter.
    """

    name: str
    module: nn.Module
    leaf: str
    parameter: nn.Parameter


class Sharing:
    """All places of a model's parameters, by the memory they are in.

    Args:
        model: in memory or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[int, list[tuple[range, Place]]] = {}
        for name, module in model.named_modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    storage, span = _memory(parameter)
                    self._places.setdefault(storage, []).append((span, Place(name, module, leaf, parameter)))

    def others(self, module: nn.Module, parameter: nn.Parameter) -> list[Place]:
        """Places but that in the module whose memory overlaps that of one of its parameters."""
        storage, span = _memory(parameter)
        return [
            place
            for other, place in self._places.get(storage, [])
            if place.module is not module and max(span.start, other.start) < min(span.stop, other.stop)
        ]


def _memory(parameter: nn.Parameter) -> tuple[int, range]:
    """A number for the parameter's storage, and the bytes of it that it spans."""
    try:
        storage = parameter.untyped_storage()._cdata
        entries, begin = extent(parameter), parameter.storage_offset()
    except (RuntimeError, NotImplementedError, AttributeError, ValueError):  # lazy, sparse, or of a kind of its own
        return id(parameter), range(1)
    size = parameter.element_size()
    return storage, range(begin * size, (begin + entries) * size)


def extent(tensor: Tensor) -> int:
    """How many entries of its storage a tensor spans, from its first to its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return sum((size - 1) * step for size, step in steps) + 1 if tensor.numel() else 0
