"""Keep masks: patterns, counts, files, and training that keeps them."""

from qubo_prune.masks.keep import KeepMasks, Pattern, keep_highest, keep_highest_together

__all__ = ["KeepMasks", "Pattern", "keep_highest", "keep_highest_together"]
