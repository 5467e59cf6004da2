"""Block QUBOs: the problem, its counts and penalties, repair, reduction, certified bounds."""

from qubo_prune.problem.qubo import BlockBatch, BlockQubo, FactorForm

__all__ = ["BlockBatch", "BlockQubo", "FactorForm"]
