"""Methods: scores, published ones, blocks, updates of kept weights, and chains of them; budgets of layers."""

from qubo_prune.methods.base import (
    Decision,
    LayerMethod,
    LayerTask,
    Method,
    ModelDecision,
    ModelMethod,
    ModelTask,
    PublishedMethod,
    Score,
    Traits,
    Update,
)
from qubo_prune.methods.chain import Chain
from qubo_prune.methods.registry import describe_methods, make_method
from qubo_prune.methods.row_blocks import RowBlocks

__all__ = [
    "Chain",
    "Decision",
    "LayerMethod",
    "LayerTask",
    "Method",
    "ModelDecision",
    "ModelMethod",
    "ModelTask",
    "PublishedMethod",
    "RowBlocks",
    "Score",
    "Traits",
    "Update",
    "describe_methods",
    "make_method",
]
