"""Solvers against each other on block QUBOs of real layers.

``load_suite`` and ``real_block`` are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

#: Where what was trained or fitted here is kept.
CACHE = Path(".cache") / "qubo_prune"

_HOME = {"load_suite": "making", "real_block": "instances"}

__all__ = ["CACHE", "load_suite", "real_block"]

if TYPE_CHECKING:
    from qubo_prune.bench.instances import real_block
    from qubo_prune.bench.making import load_suite


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
