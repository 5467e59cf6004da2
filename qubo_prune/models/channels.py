"""Channels between layers that may stand in any order: rows of some layers with columns of another.

Between the first and the second matrix of an MLP everything works channel by channel, so that the rows of the one, or
of gate and up together, and the columns of the other may be reordered alike and the model stays the same. Which layers
are such is guessed from their shapes and seen by doing it: what changes the model's outputs by more than rounding is
taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qubo_prune.models.calls import Call
from qubo_prune.models.layers import Layer, within
from qubo_prune.models.load import hooked
from qubo_prune.models.stack import find_stack


@dataclass(frozen=True, eq=False)
class Channels:
    """Layers whose outputs are, channel by channel, what another one reads.

    Attributes:
        makers: layers that make the channels.
        reader: the layer that reads them.
    """

    makers: tuple[Layer, ...]
    reader: Layer

    def reorder(self, order: Int[Tensor, " channels"]) -> None:
        """Put channel ``order[k]`` in place k, in all of the layers."""
        order = order.to(self.reader.parameter.device)
        self.reader.assign(self.reader.matrix()[:, order].clone())
        for layer in self.makers:
            layer.assign(layer.matrix()[order.to(layer.parameter.device)].clone())
            bias = getattr(layer.module, "bias", None)
            if isinstance(bias, Tensor):
                bias.detach().copy_(bias.detach()[order.to(bias.device)].clone())


def candidates(model: nn.Module, layers: Sequence[Layer]) -> list[Channels]:
    """What may be channels by shapes and places: in one module, or in one block of the stack, or in the model."""
    plain = [layer for layer in layers if len(layer.modules) == 1 and layer.parameter.ndim == 2 and layer.groups == 1]
    blocks = [list(within(plain, block)) for block in find_stack(model, layers) or [model]]
    found = []
    for block in blocks:
        for number, reader in enumerate(block):
            width = reader.shape[1]
            if width == reader.shape[0]:
                continue  # an attention's output, whose heads hold their places
            wide = [layer for layer in block[:number] if layer.shape[0] == width]
            home = reader.name.rpartition(".")[0]
            beside = [layer for layer in wide if layer.name.rpartition(".")[0] == home]
            makers = beside or wide
            if makers:
                found.append(Channels(tuple(makers), reader))
    return found


def reordered(
    found: Sequence[Channels], orders: Mapping[str, Tensor], output: Callable[[], Tensor], tolerance: float = 1e-3
) -> list[Channels]:
    """Reorder the channels, by the names of their readers, and keep what leaves the output as it is.

    Args:
        found: what may be channels.
        orders: by reader.
        output: the model's output for one batch, as it is when it is called.
        tolerance: largest change, relative to the largest entry of the output, that is rounding.

    Returns:
        those that have their new order; what the batch does not reach keeps its old one.
    """
    ran: set[nn.Module] = set()
    members = {layer.module for each in found for layer in (*each.makers, each.reader)}
    with hooked([module.register_forward_hook(lambda module, *_: ran.add(module)) for module in members]):
        before = output()
    # of what this batch does not reach nothing would be seen
    found = [each for each in found if all(layer.module in ran for layer in (*each.makers, each.reader))]

    def same() -> bool:
        return bool((output() - before).abs().max() <= tolerance * before.abs().max())

    for each in found:
        each.reorder(orders[each.reader.name])
    if same():
        return found
    for each in reversed(found):
        each.reorder(orders[each.reader.name].argsort())
    kept = []
    for each in found:
        each.reorder(orders[each.reader.name])
        if same():
            kept.append(each)
        else:
            each.reorder(orders[each.reader.name].argsort())
    return kept


def input_power(model: nn.Module, layers: Sequence[Layer], calls: Sequence[Call]) -> dict[str, Float[Tensor, " d_in"]]:
    """The mean square of each input of the layers, float64; zeros for a layer that nothing reaches."""
    sums = {layer.name: torch.zeros(layer.shape[1], dtype=torch.float64) for layer in layers}
    counts = dict.fromkeys(sums, 0)

    def add(layer: Layer) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows = (args[0] if args else next(iter(kwargs.values()))).detach().reshape(-1, layer.shape[1])
            sums[layer.name] += rows.double().square().sum(0).cpu()
            counts[layer.name] += len(rows)

        return see

    handles = [layer.module.register_forward_pre_hook(add(layer), with_kwargs=True) for layer in layers]
    with hooked(handles), torch.no_grad():
        for call in calls:
            call.run(model)
    return {name: total / max(1, counts[name]) for name, total in sums.items()}


def first_tensor(output: Any) -> Tensor:
    """What a model gives, or the first tensor of it."""
    found = output
    while not isinstance(found, Tensor):
        found = next(iter(found.values() if isinstance(found, Mapping) else found))
    return found.float()
