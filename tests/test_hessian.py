from __future__ import annotations

import numpy as np
import pytest
import torch

from qubo_prune.errors import InputError
from qubo_prune.hessian import GramAccumulator


def accumulate(*batches: torch.Tensor, name: str = "layer"):
    accumulator = GramAccumulator(name)
    for batch in batches:
        accumulator.add(batch)
    return accumulator.finish(batches[0].shape[-1])


def test_gram_is_twice_the_mean_outer_product_over_batches_of_any_shape(rng):
    inputs = rng.normal(size=(30, 5))
    batches = (inputs[:6].reshape(2, 3, 5), inputs[6:10], inputs[10:11].reshape(5), inputs[11:])
    gram = accumulate(*(torch.tensor(b) for b in batches))
    assert gram.tokens == 30
    assert gram.matrix.dtype == torch.float64
    np.testing.assert_allclose(gram.matrix, 2 / 30 * inputs.T @ inputs, rtol=1e-12, atol=1e-12)
    assert torch.equal(gram.matrix, gram.matrix.T)


def test_output_error_is_the_measured_mean_squared_error(rng):
    inputs, change = rng.normal(size=(40, 6)), rng.normal(size=(3, 6))
    measured = ((inputs @ change.T) ** 2).sum(0) / 40
    np.testing.assert_allclose(
        accumulate(torch.tensor(inputs)).output_error(torch.tensor(change)), measured, rtol=1e-10
    )


def test_dead_inputs_are_those_that_were_zero_in_every_token(rng):
    inputs = torch.tensor(rng.normal(size=(10, 4)))
    inputs[:, 2] = 0
    inputs[:-1, 3] = 0
    assert accumulate(inputs[:5], inputs[5:]).dead.tolist() == [False, False, True, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused_naming_layer_and_feature(rng, bad):
    inputs = torch.tensor(rng.normal(size=(10, 4)))
    inputs[7, 2] = bad
    with pytest.raises(InputError, match=r"'model\.down_proj'.*feature 2"):
        accumulate(inputs, name="model.down_proj")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_inputs_lose_nothing_but_their_own_precision(rng, dtype):
    # 300^2 overflows half precision
    inputs = torch.tensor(300 * rng.normal(size=(50, 4))).to(dtype)
    exact = accumulate(inputs.double()).matrix
    torch.testing.assert_close(accumulate(inputs).matrix, exact, rtol=1e-5, atol=1e-5 * float(exact.max()))


@pytest.mark.parametrize("batches", [(), (torch.zeros(0, 3),)])
def test_without_data_every_input_is_dead(batches):
    accumulator = GramAccumulator("layer")
    for batch in batches:
        accumulator.add(batch)
    gram = accumulator.finish(3)
    assert gram.tokens == 0
    assert torch.equal(gram.matrix, torch.zeros(3, 3, dtype=torch.float64))
    assert gram.dead.all()


def test_inputs_are_not_written_to_and_carry_no_gradient(rng):
    inputs = torch.tensor(rng.normal(size=(5, 3)), requires_grad=True)
    before = inputs.detach().clone()
    gram = accumulate(inputs)
    assert not gram.matrix.requires_grad
    assert torch.equal(inputs.detach(), before)
