"""Neural-network pruning as block QUBOs: any solver decides, block coordinate descent merges.

Names are loaded when they are first used, so importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "BlockQubo": "problem",
    "BlockBatch": "problem",
    "FactorForm": "problem",
    "Solver": "solver",
    "Capabilities": "solver",
    "SolveRequest": "solver",
    "SolveResult": "solver",
    "BatchRequest": "solver",
    "BatchResult": "solver",
    "Status": "solver",
    "Ledger": "solver",
    "available_solvers": "registry",
    "describe_solvers": "registry",
    "solve": "dispatch",
    "read_problem": "files",
    "write_problem": "files",
    "prune": "pruning",
    "Report": "report",
    "KeepMasks": "masks",
    "perplexity": "evaluation",
    "InputError": "errors",
    "QuboPruneError": "errors",
    "SolverError": "errors",
}

__all__ = [
    "BatchRequest",
    "BatchResult",
    "BlockBatch",
    "BlockQubo",
    "Capabilities",
    "FactorForm",
    "InputError",
    "KeepMasks",
    "Ledger",
    "QuboPruneError",
    "Report",
    "SolveRequest",
    "SolveResult",
    "Solver",
    "SolverError",
    "Status",
    "__version__",
    "available_solvers",
    "describe_solvers",
    "perplexity",
    "prune",
    "read_problem",
    "solve",
    "write_problem",
]

if TYPE_CHECKING:
    from qubo_prune.dispatch import solve
    from qubo_prune.errors import InputError, QuboPruneError, SolverError
    from qubo_prune.evaluation import perplexity
    from qubo_prune.files import read_problem, write_problem
    from qubo_prune.masks import KeepMasks
    from qubo_prune.problem import BlockBatch, BlockQubo, FactorForm
    from qubo_prune.pruning import prune
    from qubo_prune.registry import available_solvers, describe_solvers
    from qubo_prune.report import Report
    from qubo_prune.solver import (
        BatchRequest,
        BatchResult,
        Capabilities,
        Ledger,
        Solver,
        SolveRequest,
        SolveResult,
        Status,
    )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
