"""Curvature: Grams of layers' inputs, gradients of the loss, and the stream of data that they come from."""

from qubo_prune.hessian.gram import Drift, Gram, GramAccumulator

__all__ = ["Drift", "Gram", "GramAccumulator"]
