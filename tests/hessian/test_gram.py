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


def test_groups_have_a_gram_each(rng):
    inputs, change = torch.tensor(rng.normal(size=(40, 3, 4))), torch.tensor(rng.normal(size=(6, 4)))
    inputs[:, 1, 2] = 0
    accumulator = GramAccumulator("layer", groups=3)
    for batch in (inputs[:24].reshape(2, 12, 3, 4), inputs[24:]):
        accumulator.add(batch)
    gram = accumulator.finish(4)
    alone = [accumulate(inputs[:, group]) for group in range(3)]
    assert (gram.groups, gram.tokens, gram.matrix.shape) == (3, 40, (3, 4, 4))
    assert [part.tokens for part in gram.parts()] == [40, 40, 40]
    for part, other in zip(gram.parts(), alone, strict=True):
        torch.testing.assert_close(part.matrix, other.matrix, rtol=1e-12, atol=1e-12)
    assert gram.dead.nonzero().tolist() == [[1, 2]]
    assert gram.for_rows(gram.dead, 6).nonzero().tolist() == [[2, 2], [3, 2]]
    assert [rows.tolist() for rows in gram.split(change)] == [change[i : i + 2].tolist() for i in (0, 2, 4)]
    errors = [other.output_error(rows) for other, rows in zip(alone, gram.split(change), strict=True)]
    torch.testing.assert_close(gram.output_error(change), torch.cat(errors))


def test_groups_without_data_are_dead_and_bad_inputs_are_named_by_their_feature():
    assert GramAccumulator("layer", groups=2).finish(3).dead.shape == (2, 3)
    bad = torch.zeros(5, 2, 3)
    bad[4, 1, 0] = float("nan")
    with pytest.raises(InputError, match=r"'conv'.*feature 3"):
        GramAccumulator("conv", groups=2).add(bad)


def test_one_group_is_a_plain_gram(rng):
    gram = accumulate(torch.tensor(rng.normal(size=(9, 4))))
    assert gram.groups == 1
    assert torch.equal(gram.parts()[0].matrix, gram.matrix)
    assert gram.for_rows(gram.dead, 7).shape == (1, 4)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_the_sum_does_not_depend_on_the_number_of_devices(rng, count):
    batches = [torch.tensor(rng.normal(size=(size, 4)), dtype=torch.float32) for size in (5, 1, 9, 4, 7)]
    dense = [batch + torch.tensor(rng.normal(size=batch.shape), dtype=torch.float32) for batch in batches]
    behind = [torch.tensor(rng.normal(size=(len(batch), 3)), dtype=torch.float32) for batch in batches]

    def total(devices: tuple[str, ...]):
        accumulator = GramAccumulator("layer", own_drift=True, devices=devices)
        for parts in zip(batches, dense, behind, strict=True):
            accumulator.add(*parts)
        return accumulator.finish(4)

    alone, shared = total(()), total(("cpu",) * count)
    assert shared.tokens == alone.tokens == 26
    assert torch.equal(shared.matrix, alone.matrix)
    assert torch.equal(shared.drift.cross, alone.drift.cross)
    assert torch.equal(shared.drift.own, alone.drift.own)


def test_inputs_that_are_not_finite_are_found_when_their_device_is_waited_for(rng):
    accumulator = GramAccumulator("layer", devices=("cpu", "cpu", "cpu"))
    accumulator.add(torch.tensor([[1.0, np.nan]]))
    accumulator.add(torch.ones(1, 2))
    with pytest.raises(InputError, match=r"'layer'.*feature 1"):
        accumulator.finish(2)
