"""Block QUBOs: the problem, its counts and bounds, its forms in files and in other libraries."""

from qubo_prune.problem.qubo import BlockBatch, BlockQubo, FactorForm

__all__ = ["BlockBatch", "BlockQubo", "FactorForm"]
