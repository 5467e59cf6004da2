"""The run of like blocks that most of a model's weights are in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qubo_prune.models.layers import Layer, is_prunable


def find_stack(model: nn.Module, layers: Sequence[Layer]) -> list[nn.Module] | None:
    """The model's longest run of like blocks: the outermost list that holds most of the weights."""
    wanted = {id(module): layer.parameter.numel() for layer in layers for module in layer.modules}
    best, most = None, 0
    for module in model.modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or len(module) < 2:
            continue
        blocks = list(module)
        if len({type(block) for block in blocks}) > 1 or is_prunable(blocks[0]):
            continue
        held = sum(wanted.get(id(part), 0) for part in module.modules())
        if held > most:
            best, most = blocks, held
    return best
