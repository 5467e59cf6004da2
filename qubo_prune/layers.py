"""Prunable layers of a model, each seen as a weight matrix ``(d_out, d_in)``."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qubo_prune.errors import InputError, did_you_mean


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear map ``inputs @ W'`` inside a model.

    Attributes:
        name: dotted path of the module in the model.
        module: ``nn.Linear``, or the ``Conv1D`` of transformers, which stores W transposed.
    """

    name: str
    module: nn.Module

    @property
    def transposed(self) -> bool:
        """True if the parameter holds ``(d_in, d_out)``."""
        return not isinstance(self.module, nn.Linear)

    @property
    def parameter(self) -> nn.Parameter:
        """The stored weight."""
        weight = self.module.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def parameter_name(self) -> str:
        """Name of the weight in the model's state dict."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``."""
        rows, columns = self.parameter.shape
        return (columns, rows) if self.transposed else (rows, columns)

    def matrix(self) -> Float[Tensor, "d_out d_in"]:
        """The weight as ``(d_out, d_in)``, a view without gradient."""
        weight = self.parameter.detach()
        return weight.T if self.transposed else weight

    def remember(self, keep: Bool[Tensor, "d_out d_in"]) -> Removed:
        """The weights that the mask will remove, to put them back later."""
        pruned = ~keep.to(self.parameter.device)
        return Removed(self, pruned, self.matrix()[pruned])

    def prune(self, keep: Bool[Tensor, "d_out d_in"]) -> None:
        """Set the pruned weights to zero, in place."""
        self.matrix().masked_fill_(~keep.to(self.parameter.device), 0)


@dataclass(frozen=True, eq=False)
class Removed:
    """The weights that a mask removed from a layer."""

    layer: Layer
    pruned: Tensor
    values: Tensor

    def restore(self) -> None:
        """Write the removed weights back."""
        self.layer.matrix()[self.pruned] = self.values


def is_prunable(module: nn.Module) -> bool:
    """True for ``nn.Linear`` and the ``Conv1D`` of transformers."""
    if isinstance(module, nn.Linear):
        return True
    # by name, so that a plain PyTorch model does not import transformers
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def find_layers(
    model: nn.Module,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    prune_head: bool = False,
) -> list[Layer]:
    """Prunable layers in the order of the modules; a weight shared by several counts once.

    Args:
        model: any module; embeddings are never included.
        include: shell-style patterns of layer names (``"*.mlp.*"``); all layers if empty.
        exclude: patterns of layers to leave dense.
        prune_head: also take the output head that transformers reports for the model; if its
            weight is tied to the embedding, that becomes sparse with it.

    Raises:
        InputError: a pattern matches no layer, or nothing is left to prune.
    """
    head = None if prune_head else _output_head(model)
    found, seen = [], set()
    for name, module in model.named_modules():
        if is_prunable(module) and module is not head and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found.append(Layer(name, module))
    names = [layer.name for layer in found]
    for pattern in (*include, *exclude):
        if not fnmatch.filter(names, pattern):
            raise InputError(
                f"The pattern {pattern!r} matches none of the model's {len(names)} linear layers"
                f"{did_you_mean(pattern, names)}; names look like {names[0] if names else 'none'!r}."
            )
    chosen = [
        layer for layer in found if (not include or _matches(layer.name, include)) and not _matches(layer.name, exclude)
    ]
    if not chosen:
        raise InputError("The model has no linear layer to prune; widen include or exclude, or check the model.")
    return chosen


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _output_head(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) else None


def check_finite(layers: Sequence[Layer]) -> None:
    """Raise :class:`InputError` naming the first layer whose weights are not finite."""
    for layer in layers:
        if not torch.isfinite(layer.parameter).all():
            raise InputError(
                f"The weights of layer {layer.name!r} hold NaN or infinite values; repair the checkpoint "
                "or exclude that layer."
            )


def within(layers: Sequence[Layer], module: nn.Module) -> Iterator[Layer]:
    """Those of the layers that are part of a module."""
    inside = {id(part) for part in module.modules()}
    return (layer for layer in layers if id(layer.module) in inside)
