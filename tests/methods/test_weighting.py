from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qubo_prune.hessian.gram import Gram
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.base import LayerTask
from qubo_prune.methods.refit import Refit
from qubo_prune.methods.wanda import Wanda
from qubo_prune.methods.weighting import unweighted, weighted


@pytest.fixture
def task():
    torch.manual_seed(0)
    x = torch.randn(40, 9, dtype=torch.float64) @ torch.randn(9, 9, dtype=torch.float64)
    return LayerTask(torch.randn(6, 9), Gram(2 / 40 * x.T @ x, 40), Pattern("layer"), 0.5)


WEIGHTS = torch.tensor([4.0, 1.0, 0.01, 9.0, 0.25, 1.0], dtype=torch.float64)


def test_scores_count_rows_by_their_weights(task):
    found = Wanda().decide(weighted(task, WEIGHTS))
    wanted = WEIGHTS.sqrt()[:, None] * task.weight.abs() * task.gram.diagonal.sqrt()
    lowest = wanted[found.keep].min()
    assert int(found.keep.sum()) == 27
    assert bool((wanted[~found.keep] <= lowest).all())
    # rows that count more keep more
    assert int(found.keep[3].sum()) > int(found.keep[2].sum())


def test_an_error_of_the_task_is_the_weighted_error(task):
    change = torch.randn(6, 9)
    both = replace(task, weight=change)
    error = task.gram.output_error(weighted(both, WEIGHTS).weight).sum()
    assert error == pytest.approx(float((WEIGHTS * task.gram.output_error(change)).sum()), rel=1e-5)


def test_a_fit_on_a_mask_is_that_of_the_weights_as_they_are(task):
    own = weighted(task, WEIGHTS)
    start = Wanda().decide(own)
    found = unweighted(Refit().decide(own, start), WEIGHTS, task.weight)
    assert torch.equal(found.keep, start.keep)
    assert bool((found.weight[~found.keep] == 0).all())
    assert torch.allclose(found.weight, Refit().decide(task, start).weight, rtol=1e-4, atol=1e-5)
    assert found.weight.dtype == task.weight.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_come_back_in_their_own_type(task, dtype):
    half = replace(task, weight=task.weight.to(dtype))
    own = weighted(half, WEIGHTS)
    assert own.weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    found = unweighted(Refit().decide(own, Wanda().decide(own)), WEIGHTS, half.weight)
    assert found.weight.dtype == dtype


def test_a_mask_alone_has_no_weights(task):
    start = Wanda().decide(weighted(task, WEIGHTS))
    assert unweighted(start, WEIGHTS, task.weight) is start
