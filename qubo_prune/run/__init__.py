"""Runs: checked arguments, pruning layer by layer, folders to go on from, estimates, comparisons."""
