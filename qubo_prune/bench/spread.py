"""Means and standard deviations over the seeds of a measurement."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def deviation(values: Sequence[float]) -> float:
    """The standard deviation ``sqrt(sum (v - mean)^2 / (n - 1))`` of n values; 0 for one, NaN if any is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0


def told(values: Sequence[float], digits: int, unit: str = "") -> str:
    """The mean with its deviation, such as ``83.35 ±0.41 %``; the mean alone of one value, nothing if it is NaN.

    Args:
        values: one for each seed.
        digits: behind the decimal point, of both.
        unit: written behind them, after a space.
    """
    mean = statistics.fmean(values)
    if math.isnan(mean):
        return ""
    spread = f" ±{deviation(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}{' ' if unit else ''}{unit}"
