"""Means and deviations over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qubo_prune.bench.spread import deviation, told


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.5, 0.5, 0.5], [-3.0, 1e3, 2.5, 7.0]])
def test_the_deviation_is_that_of_a_sample(values: list[float]) -> None:
    assert deviation(values) == pytest.approx(np.std(values, ddof=1))
    assert deviation(values[:1]) == 0.0


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_finite_has_none(odd: float) -> None:
    assert math.isnan(deviation([1.0, odd]))


def test_one_value_is_told_alone() -> None:
    assert told([81.0, 82.0, 83.0], 2, "%") == "82.00 ±1.00 %"
    assert told([14.5125], 3) == "14.512"
    assert told([14.0, 15.0], 1) == "14.5 ±0.7"
    assert told([math.nan], 1, "%") == told([math.nan, 2.0], 1) == ""
