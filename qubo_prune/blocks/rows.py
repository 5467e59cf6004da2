"""Descent on the rows of a layer, by the names of its users; the Gram's is the plain one.

The loop and what a Hessian has to provide for it are in :mod:`qubo_prune.blocks.row_descent`, the Gram's part of it in
:mod:`qubo_prune.blocks.gram_rows`.
"""

from __future__ import annotations

from qubo_prune.blocks.gram_rows import descend
from qubo_prune.blocks.row_descent import UNFED, Descent, DescentResult, TracePoint, descend_rows, tell_sweep

__all__ = ["UNFED", "Descent", "DescentResult", "TracePoint", "descend", "descend_rows", "tell_sweep"]
