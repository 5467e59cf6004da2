"""Errors of pruned layers as hooks on a model measure them, in float64, by the layers' own functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qubo_prune.models.calls import as_call
from qubo_prune.models.layers import is_prunable


class See(Protocol):
    """Takes the name of a module, the module, and its input."""

    def __call__(self, name: str, module: nn.Module, x: Tensor, /) -> None: ...


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolution modules by name; one for each weight, however many modules share it."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if is_prunable(module) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            found[name] = module
    return found


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of their weights."""
    return {name: module.weight.detach().clone() for name, module in prunable(model).items()}


@contextmanager
def watched(model: nn.Module, see: See) -> Iterator[None]:
    """Hand on every input of a linear or convolution module, under the name of the first that has its weight."""
    names = {id(module.weight): name for name, module in prunable(model).items()}

    def hook(name: str) -> Any:
        return lambda module, args, kwargs: see(name, module, args[0] if args else kwargs["input"])

    handles = [
        module.register_forward_pre_hook(hook(names[id(module.weight)]), with_kwargs=True)
        for module in model.modules()
        if is_prunable(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def outputs(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What a module computes of an input with a weight, without its bias, in float64."""
    x, weight = x.double(), weight.double()
    if not isinstance(module, nn.Conv2d):
        return F.linear(x, weight) if isinstance(module, nn.Linear) else x @ weight
    padding: Any = module.padding
    if module.padding_mode != "zeros":
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = 0
    return F.conv2d(x, weight, None, module.stride, padding, module.dilation, module.groups)


def measured(model: nn.Module, dense: Mapping[str, Tensor], batches: Sequence[Any]) -> dict[str, float]:
    """The relative error of every layer that runs, on all inputs that it has in the pruned model.

    With inputs x, the weight W of the model and the dense one V it is the sum of ``|(V - W) x|^2`` over all calls, as
    a share of that of ``|V x|^2``.
    """
    sums: dict[str, tuple[float, float]] = {}

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        error, power = sums.get(name, (0.0, 0.0))
        change = dense[name].double() - module.weight.detach().double()
        sums[name] = (
            error + float(outputs(module, x, change).square().sum()),
            power + float(outputs(module, x, dense[name]).square().sum()),
        )

    with torch.no_grad(), watched(model, see):
        for batch in batches:
            as_call(batch).run(model)
    return {name: error / power if power else 0.0 for name, (error, power) in sums.items()}
