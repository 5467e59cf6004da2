"""Solvers against each other on block QUBOs of real layers."""

from pathlib import Path

#: Where what was trained or fitted here is kept.
CACHE = Path(".cache") / "qubo_prune"
