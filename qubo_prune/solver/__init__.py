"""Solvers: the contract, how a problem is handed to one and its answer verified, and where it runs."""

from qubo_prune.clock import Deadline
from qubo_prune.seeds import derive_seed
from qubo_prune.solver.interface import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Ledger,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    ranked_answers,
    single_answer,
    to_numpy_bool,
)

__all__ = [
    "BatchRequest",
    "BatchResult",
    "Capabilities",
    "Deadline",
    "Ledger",
    "SolveRequest",
    "SolveResult",
    "Solver",
    "Status",
    "derive_seed",
    "ranked_answers",
    "single_answer",
    "to_numpy_bool",
]
