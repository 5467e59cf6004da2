"""Neural-network pruning as block QUBOs: any solver decides, block coordinate descent merges.

Names are loaded when they are first used, so importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qubo_prune.version import __version__

_HOME = {
    "BlockQubo": "problem.qubo",
    "BlockBatch": "problem.qubo",
    "FactorForm": "problem.qubo",
    "Solver": "solver.interface",
    "Capabilities": "solver.interface",
    "SolveRequest": "solver.interface",
    "SolveResult": "solver.interface",
    "BatchRequest": "solver.interface",
    "BatchResult": "solver.interface",
    "Status": "solver.interface",
    "Ledger": "solver.interface",
    "available_solvers": "solver.registry",
    "describe_solvers": "solver.registry",
    "solve": "solver.dispatch",
    "read_problem": "formats.text",
    "write_problem": "formats.text",
    "Budget": "request",
    "DataSettings": "request",
    "Placement": "request",
    "RunSettings": "request",
    "MethodSettings": "request",
    "Chain": "methods.chain",
    "describe_methods": "methods.registry",
    "prune": "run.prune",
    "estimate_run": "run.estimate",
    "RunEstimate": "run.estimate",
    "Report": "report.report",
    "KeepMasks": "masks.keep",
    "perplexity": "data.evaluation",
    "InputError": "errors",
    "QuboPruneError": "errors",
    "SolverError": "errors",
}

__all__ = [
    "BatchRequest",
    "BatchResult",
    "BlockBatch",
    "BlockQubo",
    "Budget",
    "Capabilities",
    "Chain",
    "DataSettings",
    "FactorForm",
    "InputError",
    "KeepMasks",
    "Ledger",
    "MethodSettings",
    "Placement",
    "QuboPruneError",
    "Report",
    "RunEstimate",
    "RunSettings",
    "SolveRequest",
    "SolveResult",
    "Solver",
    "SolverError",
    "Status",
    "__version__",
    "available_solvers",
    "describe_methods",
    "describe_solvers",
    "estimate_run",
    "perplexity",
    "prune",
    "read_problem",
    "solve",
    "write_problem",
]

if TYPE_CHECKING:
    from qubo_prune.data.evaluation import perplexity
    from qubo_prune.errors import InputError, QuboPruneError, SolverError
    from qubo_prune.formats.text import read_problem, write_problem
    from qubo_prune.masks.keep import KeepMasks
    from qubo_prune.methods.chain import Chain
    from qubo_prune.methods.registry import describe_methods
    from qubo_prune.problem.qubo import BlockBatch, BlockQubo, FactorForm
    from qubo_prune.report.report import Report
    from qubo_prune.request import Budget, DataSettings, MethodSettings, Placement, RunSettings
    from qubo_prune.run.estimate import RunEstimate, estimate_run
    from qubo_prune.run.prune import prune
    from qubo_prune.solver.dispatch import solve
    from qubo_prune.solver.interface import (
        BatchRequest,
        BatchResult,
        Capabilities,
        Ledger,
        Solver,
        SolveRequest,
        SolveResult,
        Status,
    )
    from qubo_prune.solver.registry import available_solvers, describe_solvers


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
