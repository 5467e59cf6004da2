"""A layer's proven bound, against enumeration of its masks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from qubo_prune import InputError, prune
from qubo_prune.certificate import least_error
from qubo_prune.hessian import Gram
from qubo_prune.masks import Pattern, keep_highest


def layer(rows: int = 3, d: int = 6, groups: int = 1) -> tuple[Tensor, Gram]:
    draw = torch.Generator().manual_seed(4)
    inputs = torch.randn(groups, 50, d, generator=draw, dtype=torch.float64) @ torch.randn(
        d, d, generator=draw, dtype=torch.float64
    )
    matrix = 2 / 50 * inputs.mT @ inputs
    return torch.randn(rows, d, generator=draw), Gram(matrix if groups > 1 else matrix[0], 50)


def least(weight: Tensor, gram: Gram, pattern: Pattern, density: float) -> float:
    """The least error over all masks of the pattern."""
    best = torch.inf
    masks = torch.tensor(list(itertools.product([False, True], repeat=weight.numel()))).reshape(-1, *weight.shape)
    for keep in masks:
        if pattern.violations(keep, density) == 0:
            best = min(best, float(gram.output_error(weight * ~keep).sum()))
    return best


@pytest.mark.parametrize("kind", ["plain", "trace", "row"])
@pytest.mark.parametrize("pattern", ["row", "layer", "1:2"])
def test_no_mask_of_the_counts_is_below(pattern: str, kind: str) -> None:
    weight, gram = layer(rows=2, d=4)
    chosen = Pattern.parse(pattern)
    keep = keep_highest(weight.abs(), chosen, 0.5)
    found = least_error(weight, gram, keep, chosen, kind)
    assert 0 <= found <= least(weight, gram, chosen, 0.5)
    if kind == "row":
        assert found > 0.5 * least(weight, gram, chosen, 0.5)


def test_groups_of_a_convolution_are_bounded_apart() -> None:
    weight, gram = layer(rows=4, groups=2)
    row = Pattern.parse("row")
    keep = keep_highest(weight.abs(), row, 0.5)
    parts = [
        least_error(weight[2 * k : 2 * k + 2], part, keep[2 * k : 2 * k + 2], row)
        for k, part in enumerate(gram.parts())
    ]
    assert least_error(weight, gram, keep, row) == pytest.approx(sum(parts), rel=1e-2)


@pytest.mark.parametrize("pattern", ["row", "layer", "2:4"])
def test_a_run_reports_what_was_proven(pattern: str) -> None:
    report = prune(tiny.llama(num_hidden_layers=1), tiny.tokens(), 0.5, pattern=pattern, certify="trace")
    assert all(0 < layer.least_error <= layer.error_after for layer in report.layers)
    assert 0 <= report.gap < 0.7
    assert report.gap == report.totals()["gap"]
    assert "(proven)" in str(report)
    assert report.seconds["bounds"] > 0
    assert report.layers[0].to_dict()["gap"] == report.layers[0].gap
    without = prune(tiny.llama(num_hidden_layers=1), tiny.tokens(), 0.5, pattern=pattern)
    assert without.gap is None
    assert without.layers[0].gap is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"certify": "trac"}, "did you mean 'trace'"),
        ({"certify": "trace", "hessian": "compensated"}, "'compensated'"),
        ({"certify": "trace", "method": "admm"}, "'admm'"),
        ({"certify": "trace", "update": "refit"}, "'refit'"),
        ({"certify": "trace", "hessian": "fisher"}, "'fisher'"),
    ],
)
def test_what_cannot_be_certified_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        prune(tiny.llama(), tiny.tokens(), 0.5, **settings)
