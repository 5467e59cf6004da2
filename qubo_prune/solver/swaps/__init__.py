"""Descent by swaps: the kernels that the framework polishes with and that back-ends share."""
