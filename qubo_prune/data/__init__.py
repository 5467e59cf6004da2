"""Calibration and held-out data: texts, images, samples, batches, losses."""

from qubo_prune.data.samples import Fresh, Samples, Subset, TensorSamples, collated, split

__all__ = ["Fresh", "Samples", "Subset", "TensorSamples", "collated", "split"]
