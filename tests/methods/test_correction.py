"""The weights that give the dense model's outputs on drifted inputs, against least squares."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from qubo_prune.hessian import Gram, GramAccumulator
from qubo_prune.methods.correction import corrected


def gram_of(inputs: Tensor, dense: Tensor, groups: int = 1) -> Gram:
    accumulator = GramAccumulator("layer", groups, own_drift=True)
    for rows, others in zip(inputs.split(17), dense.split(17), strict=True):
        accumulator.add(rows, others)
    return accumulator.finish(inputs.shape[-1])


@pytest.fixture
def drifted() -> tuple[Tensor, Tensor, Tensor]:
    """Weights, inputs, and what the inputs are in the dense model."""
    draw = torch.Generator().manual_seed(2)
    inputs = torch.randn(120, 9, generator=draw, dtype=torch.float64) @ torch.randn(
        9, 9, generator=draw, dtype=torch.float64
    )
    dense = inputs + 0.3 * torch.randn(120, 9, generator=draw, dtype=torch.float64) + 0.2 * inputs.roll(1, 1)
    return torch.randn(4, 9, generator=draw, dtype=torch.float64), inputs, dense


def test_the_whole_way_is_the_ridge_regression_on_the_dense_outputs(drifted: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, inputs, dense = drifted
    gram = gram_of(inputs, dense)
    for damping in (0.0, 0.1):
        ridge = damping * float(gram.diagonal.mean()) * len(inputs) / 2  # of the sum of squares, not their mean
        rows = torch.cat([inputs, ridge**0.5 * torch.eye(9, dtype=torch.float64)])
        wanted = torch.cat([dense @ weight.T, ridge**0.5 * weight.T])
        expected = torch.linalg.lstsq(rows, wanted).solution.T
        torch.testing.assert_close(corrected(weight, gram, 1.0, damping, Counter()), expected)
        halfway = corrected(weight, gram, 0.5, damping, Counter())
        torch.testing.assert_close(halfway, (weight + expected) / 2)


def test_the_dense_output_error_is_the_measured_one(drifted: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, inputs, dense = drifted
    gram, new = gram_of(inputs, dense), weight * (weight > 0)
    measured = (inputs @ new.T - dense @ weight.T).square().mean(0)
    torch.testing.assert_close(gram.dense_output_error(weight, new), measured)
    assert float(gram.dense_output_error(weight, corrected(weight, gram, 1.0, 0.0, Counter())).sum()) < float(
        gram.dense_output_error(weight, weight).sum()
    )


def test_what_the_outputs_are_added_to_is_made_up_for(drifted: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, inputs, dense = drifted
    behind = 0.1 * torch.randn(120, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + inputs[:, 2:6]
    accumulator = GramAccumulator("layer", own_drift=True)
    for rows in torch.arange(120).split(17):
        accumulator.add(inputs[rows], dense[rows], behind[rows])
    gram = accumulator.finish(9)
    wanted = dense @ weight.T + behind
    expected = torch.linalg.lstsq(inputs, wanted).solution.T
    torch.testing.assert_close(corrected(weight, gram, 1.0, 0.0, Counter()), expected)
    new = weight * (weight > 0)
    measured = (inputs @ new.T - wanted).square().mean(0)
    torch.testing.assert_close(gram.dense_output_error(weight, new), measured)


def test_groups_are_corrected_apart(drifted: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, inputs, dense = drifted
    both = gram_of(torch.stack([inputs, dense], 1), torch.stack([dense, inputs], 1), groups=2)
    found = corrected(weight, both, 0.7, 0.05, Counter())
    torch.testing.assert_close(found[:2], corrected(weight[:2], gram_of(inputs, dense), 0.7, 0.05, Counter()))
    torch.testing.assert_close(found[2:], corrected(weight[2:], gram_of(dense, inputs), 0.7, 0.05, Counter()))


def test_weights_of_dead_inputs_stay(drifted: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, inputs, dense = drifted
    inputs[:, 3] = 0
    found = corrected(weight, gram_of(inputs, dense), 1.0, 0.1, Counter())
    assert torch.equal(found[:, 3], weight[:, 3])
    assert not torch.equal(found[:, 4], weight[:, 4])


def test_without_drift_nothing_is_corrected(drifted: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, inputs, dense = drifted
    assert corrected(weight, GramAccumulator("layer").finish(9), 1.0, 0.1, Counter()) is weight
    assert corrected(weight, gram_of(inputs, dense), 0.0, 0.1, Counter()) is weight


def test_damping_that_had_to_be_raised_is_noted(drifted: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, inputs, dense = drifted
    inputs[:, 5] = inputs[:, 4]
    notes: Counter[str] = Counter()
    assert torch.isfinite(corrected(weight, gram_of(inputs, dense), 1.0, 0.0, notes)).all()
    assert "raised" in next(iter(notes))
