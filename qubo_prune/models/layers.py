"""Prunable layers of a model, each seen as a weight matrix ``(d_out, d_in)``.

For every layer, with B samples, T positions in each and ``G = layer.groups``::

    fold_outputs(module(x)) - bias == einsum("btgd,god->btgo", unfold(x), matrix().reshape(G, d_out // G, d_in))
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qubo_prune.arguments import as_names
from qubo_prune.errors import InputError
from qubo_prune.models.names import matches, no_match, plain_name
from qubo_prune.models.prunable import is_prunable as is_prunable
from qubo_prune.models.prunable import looks_prunable, objection, own_weight
from qubo_prune.models.sharing import Sharing

Resident = Callable[[nn.Module], AbstractContextManager[None]]

#: Bytes that unfolded inputs take at most at a time.
CHUNK_BYTES = 2**28


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear map ``rows @ W'`` inside a model; the rows are the module's inputs, unfolded if it is a convolution.

    A convolution's rows are the patches under its kernel, in the order of its stored weight (input
    channel, kernel row, kernel column), so ``d_in = C_in / groups * kh * kw`` and W's row is an
    output channel. Output rows ``k * d_out / groups`` onwards read group k of the inputs only.

    Attributes:
        name: dotted path of the module in the model.
        module: ``nn.Linear``, the ``Conv1D`` of transformers, which stores W transposed, or ``nn.Conv2d``.
        twins: further modules of the same kind that share its weight, and so are pruned with it.
    """

    name: str
    module: nn.Module
    twins: tuple[nn.Module, ...] = ()

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """All modules that have its weight."""
        return (self.module, *self.twins)

    @property
    def _conv(self) -> nn.Conv2d | None:
        return self.module if isinstance(self.module, nn.Conv2d) else None

    @property
    def transposed(self) -> bool:
        """True if the parameter holds ``(d_in, d_out)``."""
        return not isinstance(self.module, (nn.Linear, nn.Conv2d))

    @property
    def groups(self) -> int:
        """Parts that the inputs and outputs fall into, each with a map of its own; 1 if not a grouped convolution."""
        return self._conv.groups if self._conv else 1

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
        first, *others = self.parameter.shape
        rest = math.prod(others)
        return (rest, first) if self.transposed else (first, rest)

    def as_matrix(self, stored: Tensor) -> Tensor:
        """A tensor of the parameter's shape, such as a mask or a gradient, as ``(d_out, d_in)``."""
        return stored.T if self.transposed else stored.reshape(self.shape)

    def stored(self, matrix: Tensor) -> Tensor:
        """A tensor ``(d_out, d_in)``, such as a keep mask, in the parameter's shape."""
        return matrix.T if self.transposed else matrix.reshape(self.parameter.shape)

    def matrix(self) -> Float[Tensor, "d_out d_in"]:
        """The weight as ``(d_out, d_in)`` without gradient, to read; :meth:`assign` and :meth:`prune` write.

        It shares the parameter's memory where that has the matrix' order; a ``channels_last``
        kernel has not and is copied.
        """
        return self.as_matrix(self.parameter.detach())

    def assign(self, matrix: Float[Tensor, "d_out d_in"]) -> None:
        """Write new weights, in place."""
        self.parameter.detach().copy_(self.stored(matrix))

    def remember(self, keep: Bool[Tensor, "d_out d_in"]) -> Removed:
        """The weights that the mask will remove, to put them back later."""
        pruned = self._pruned(keep)
        return Removed(self, pruned, self.parameter.detach()[pruned])

    def prune(self, keep: Bool[Tensor, "d_out d_in"]) -> None:
        """Set the pruned weights to zero, in place."""
        self.parameter.detach().masked_fill_(self._pruned(keep), 0)

    def _pruned(self, keep: Tensor) -> Tensor:
        return ~self.stored(keep).to(self.parameter.device)

    @property
    def window(self) -> tuple[Any, ...]:
        """How rows are cut out of an input: layers that agree here and read one tensor see the same rows."""
        conv = self._conv
        if conv is None:
            return ()
        geometry = (conv.kernel_size, conv.stride, conv.dilation, tuple(_padding(conv)))
        return (*geometry, conv.padding_mode, conv.groups)

    def unfold(self, inputs: Tensor) -> Float[Tensor, "B T groups d_in"]:
        """The rows that W multiplies: B samples, T positions in each, apart by groups.

        Inputs of a linear layer are ``(B, ..., d_in)``, or ``(d_in,)`` for one sample; those of a
        convolution ``(B, C_in, height, width)`` or without B, padded as the module pads them.
        """
        if self._conv is not None:
            windows = _windows(self._conv, inputs)
            return windows.reshape(windows.shape[0], -1, self.groups, self.shape[1])
        return _flat(inputs)[:, :, None]

    def rows(self, inputs: Tensor, limit: int = CHUNK_BYTES) -> Iterator[Float[Tensor, "n groups d_in"]]:
        """The rows of :meth:`unfold` in the same order, in chunks of at most ``limit`` bytes (but whole rows)."""
        if self._conv is None:
            yield self.unfold(inputs).flatten(0, 1)
            return
        windows = _windows(self._conv, inputs)
        row = math.prod(windows.shape[3:]) * windows.element_size()
        for part in _parts(windows, max(1, limit // row)):
            yield part.reshape(-1, self.groups, self.shape[1])

    def fold_outputs(self, outputs: Tensor) -> Float[Tensor, "B T d_out"]:
        """Outputs of the module, or their gradients, by the positions of :meth:`unfold`."""
        if self._conv is not None:
            return _batched(outputs).flatten(2).transpose(1, 2)
        return _flat(outputs)


def _flat(values: Tensor) -> Tensor:
    """``(B, ..., d)`` as ``(B, T, d)``."""
    *leading, width = values.shape
    samples, *middle = leading or [1]
    return values.reshape(samples, math.prod(middle), width)


def _batched(images: Tensor) -> Tensor:
    return images if images.ndim == 4 else images[None]


def _padding(conv: nn.Conv2d) -> list[int]:
    """Zeros or copies around the image as ``F.pad`` takes them: left, right, top, bottom."""
    if conv.padding == "valid":
        return [0, 0, 0, 0]
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [amount for total in reversed(totals) for amount in (total // 2, total - total // 2)]
    assert not isinstance(conv.padding, str)
    return [amount for amount in reversed(conv.padding) for _ in range(2)]


def _windows(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What each output position sees, as a view of the padded inputs: ``(B, h, w, C_in, kh, kw)``."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    images = F.pad(_batched(inputs), _padding(conv), mode=mode)
    samples, channels, *extent = images.shape
    per_sample, per_channel, *steps = images.stride()
    positions = [
        (size - reach * (kernel - 1) - 1) // stride + 1
        for size, reach, kernel, stride in zip(extent, conv.dilation, conv.kernel_size, conv.stride, strict=True)
    ]
    return images.as_strided(
        (samples, *positions, channels, *conv.kernel_size),
        (
            per_sample,
            *(a * b for a, b in zip(steps, conv.stride, strict=True)),
            per_channel,
            *(a * b for a, b in zip(steps, conv.dilation, strict=True)),
        ),
        images.storage_offset(),
    )


def _parts(windows: Tensor, rows: int) -> Iterator[Tensor]:
    """Windows of at most so many rows at a time: whole images if they fit, or lines, or parts of lines."""
    _, height, width = windows.shape[:3]
    images = max(1, rows // max(1, height * width))
    lines = max(1, rows // max(1, images * width))
    columns = max(1, rows // max(1, images * lines))
    for some in torch.split(windows, images):
        for band in torch.split(some, lines, 1):
            yield from torch.split(band, columns, 2)


@dataclass(frozen=True, eq=False)
class Removed:
    """The weights that a mask removed from a layer.

    Attributes:
        layer: the layer.
        pruned: where, in the parameter's shape.
        values: the weights there.
    """

    layer: Layer
    pruned: Tensor
    values: Tensor

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The layer's matrix with the removed weights in their places; a copy."""
        weight = self.layer.parameter.detach().clone()
        weight[self.pruned] = self.values
        return self.layer.as_matrix(weight)

    def restore(self) -> None:
        """Write the removed weights back."""
        self.layer.parameter.detach()[self.pruned] = self.values


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A module that a run may prune, with the names of all modules that share its weight.

    Attributes:
        apart: why it stays dense unless ``prune_head`` says otherwise; ``None`` if it is like all others.
        view: name of a module that holds another parameter in the same memory, if there is one.
    """

    layer: Layer
    names: tuple[str, ...]
    apart: str | None
    view: str | None

    def is_among(self, patterns: Sequence[str]) -> bool:
        return any(matches(name, patterns) for name in self.names)


def _candidates(model: nn.Module) -> Iterator[_Candidate]:
    heads, sharing, seen = _output_heads(model), Sharing(model), set[int]()
    for name, module in model.named_modules():
        if not looks_prunable(module):
            continue
        weight = own_weight(module)
        if weight is None:
            yield _Candidate(Layer(plain_name(name), module), (plain_name(name),), None, None)
        elif id(weight) not in seen:
            seen.add(id(weight))
            others = sharing.others(module, weight)
            tied = next((place for place in others if not is_prunable(place.module)), None)
            apart = f"shares its weight with {plain_name(tied.name)!r}" if tied else None
            same = [place for place in others if place.parameter is weight]
            twins = tuple(place.module for place in same if is_prunable(place.module))
            names = [plain_name(place.name) for place in ([] if tied else same)]
            if any(head in heads for head in (module, *(place.module for place in others))):
                apart = apart or "is the output head"
            view = next((plain_name(place.name) for place in others if place.parameter is not weight), None)
            yield _Candidate(Layer(plain_name(name), module, twins), (plain_name(name), *names), apart, view)


def every_layer(model: nn.Module) -> list[Layer]:
    """All layers of a model, the output head included, whether or not they can be pruned."""
    return [candidate.layer for candidate in _candidates(model)]


def tied_to_others(model: nn.Module, layers: Sequence[Layer]) -> bool:
    """Whether the weight of one of the layers is also used by a module that is no layer, such as an embedding."""
    sharing = Sharing(model)
    return any(
        not is_prunable(place.module) for layer in layers for place in sharing.others(layer.module, layer.parameter)
    )


def find_layers(
    model: nn.Module,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    prune_head: bool = False,
) -> list[Layer]:
    """Prunable layers in the order of the modules; a weight shared by several counts once.

    Args:
        model: any module; embeddings are never included.
        include: shell-style patterns of layer names (``"*.mlp.*"``); all layers if empty. A shared weight goes by
            the names of all its modules.
        exclude: patterns of layers to leave dense.
        prune_head: also take output heads that transformers reports for the model or a part of it, and layers
            whose weight is tied to an embedding, or to another module that is no layer; that becomes sparse
            with it.

    Raises:
        InputError: a pattern matches no layer, nothing is left to prune, or a layer cannot be pruned rightly.
    """
    _check_whole(model)
    include, exclude = as_names("include", include), as_names("exclude", exclude)
    every = list(_candidates(model))
    found = [candidate for candidate in every if prune_head or candidate.apart is None]
    names = [name for candidate in found for name in candidate.names]
    for pattern in (*include, *exclude):
        if not fnmatch.filter(names, pattern):
            left = next((one for one in every if one.is_among([pattern])), None)
            if left is None:
                raise no_match(pattern, names)
            if pattern in include:
                raise InputError(
                    f"The layer {left.layer.name!r} {left.apart}, so it stays dense unless you say otherwise; give "
                    "prune_head=True (--prune-head) to prune it, or leave it out of include."
                )
    chosen = [one for one in found if (not include or one.is_among(include)) and not one.is_among(exclude)]
    if not chosen:
        raise InputError(
            "The model has no linear or 2-D convolution layer to prune; widen include or exclude, or check the model."
        )
    for candidate in chosen:
        _check(candidate)
    return [candidate.layer for candidate in chosen]


def _check(candidate: _Candidate) -> None:
    """Refuse a layer that could not be pruned rightly."""
    name = candidate.layer.name
    for module in candidate.layer.modules:
        wrong = objection(name, module)
        if wrong is not None:
            raise InputError(wrong)
    _check_twins(candidate.layer)
    if candidate.view is not None:
        raise InputError(
            f"The layer {name!r} has its weight in the memory of another parameter, that of {candidate.view!r}, so one "
            "would change with the other; let both modules hold the same nn.Parameter, or give one of them a copy, "
            "or exclude that layer."
        )


def _check_twins(layer: Layer) -> None:
    """Refuse modules of one weight that cut other rows out of their inputs."""
    if len({(type(twin), Layer(layer.name, twin).window) for twin in layer.modules}) > 1:
        raise InputError(
            f"The layer {layer.name!r} shares its weight with a module of another kind or geometry, so that one mask "
            "would have two sorts of inputs; exclude that layer, or give each module a weight of its own."
        )


def _check_whole(model: nn.Module) -> None:
    """Refuse a model of which this process holds parts only."""
    for name, module in model.named_modules():
        if not is_prunable(module):
            if type(module).__name__ == "FullyShardedDataParallel":
                inside = next((inner for inner, part in module.named_modules() if is_prunable(part)), "")
                raise _in_parts(".".join(filter(None, (name, inside))), "is wrapped by FullyShardedDataParallel")
            continue
        weight = getattr(module, "weight", None)
        if hasattr(weight, "device_mesh"):  # FSDP2, tensor parallelism
            raise _in_parts(name, "is a DTensor, spread over a mesh of devices")
        if hasattr(weight, "ds_id") and isinstance(weight, Tensor) and not weight.numel():
            raise _in_parts(name, "is empty here, since DeepSpeed spreads it over processes")


def _in_parts(name: str, why: str) -> InputError:
    return InputError(
        f"The weight of layer {name!r} {why}; pruning needs whole weights in one process, so load the model plainly, "
        "without sharding or parallelism (on several devices by device_map), and prune it before it is wrapped."
    )


def _output_heads(model: nn.Module) -> set[nn.Module]:
    """What models of transformers, here or inside of another one, report as their heads."""
    return {head for part in model.modules() if (head := _output_head(part)) is not None}


def _output_head(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    try:
        head = get() if callable(get) else None
    except (NotImplementedError, AttributeError):  # a base class that has none
        return None
    return head if isinstance(head, nn.Module) else None


def check_finite(layers: Sequence[Layer], resident: Resident | None = None) -> None:
    """Raise :class:`InputError` naming the first layer whose weights are not there, or not finite.

    Args:
        layers: to look at.
        resident: has a module's weights in memory temporarily, if they are not.
    """
    for layer in layers:
        with nullcontext() if resident is None else resident(layer.module):
            if layer.parameter.is_meta:
                raise InputError(
                    f"The weights of layer {layer.name!r} are not in memory (device meta: offloaded, or never loaded); "
                    "load the model whole, give weights='disk' with its folder, or exclude that layer."
                )
            finite = _is_finite(layer.parameter.detach())
        if not finite:
            raise InputError(
                f"The weights of layer {layer.name!r} hold NaN or infinite values; repair the checkpoint "
                "or exclude that layer."
            )


def _is_finite(weight: Tensor) -> bool:
    # the extremes are NaN or infinite if any entry is, and take one pass without copies
    return not weight.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(weight))).all())


def within(layers: Sequence[Layer], module: nn.Module) -> Iterator[Layer]:
    """Those of the layers that are part of a module."""
    inside = {id(part) for part in module.modules()}
    return (layer for layer in layers if any(id(part) in inside for part in layer.modules))
