from __future__ import annotations

import pytest
import torch
from torch import nn

from qubo_prune.data.losses import Classification, Objective, make_loss
from qubo_prune.data.samples import TensorSamples, collated
from qubo_prune.hessian.output_factor import FLOOR, OutputFactor, as_tensors, of_tensors, output_factors
from qubo_prune.models.layers import find_layers


class Twice(nn.Module):
    """Linear layers, the second of which sees several positions of a sample, and one that the loss does not see."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(5, 2)

    def forward(self, x):
        self.idle(x)
        return self.second(torch.tanh(self.first(x))).sum(1)


def squares(model, batch):
    inputs, wanted = batch
    return (model(inputs) - wanted).square().sum(1)


@pytest.fixture
def model():
    torch.manual_seed(3)
    return Twice()


def by_hand(model, x, y):
    """Per-sample gradients at the outputs by autograd, one sample at a time."""
    sums = {"first": torch.zeros(4), "second": torch.zeros(3)}
    reads = {"first": torch.zeros(5), "second": torch.zeros(4)}
    for one, label in zip(x, y, strict=True):
        hidden = model.first(one[None])
        after = torch.tanh(hidden)
        out = model.second(after)
        loss = (out.sum(1) - label[None]).square().sum()
        for name, output in (("first", hidden), ("second", out)):
            (grad,) = torch.autograd.grad(loss, output, retain_graph=True)
            sums[name] += grad.square().sum((0, 1))
        reads["first"] += one.square().sum(0)
        reads["second"] += after.detach().square().sum((0, 1))
    positions = x.shape[0] * x.shape[1]
    return {name: (sums[name] / len(x), reads[name] / positions) for name in sums}


def test_the_factors_are_those_of_gradients_one_by_one(model):
    x, y = torch.randn(6, 7, 5), torch.randn(6, 3)
    objective = Objective(model, make_loss(squares), 4)
    found = output_factors(objective, collated([(x, y)]), torch.arange(6), find_layers(model), 0)
    wanted = by_hand(model, x, y)
    assert found.keys() == wanted.keys()  # nothing comes back to the idle layer
    for name, (returned, read) in wanted.items():
        assert torch.allclose(found[name].returned, returned, rtol=1e-5)
        assert torch.allclose(found[name].read[0], read, rtol=1e-5)


def test_labels_are_drawn_from_the_model():
    """At the outputs of the last layer the second moment of ``p - e_y`` is ``p (1 - p)`` in the mean over y."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(1, 4).repeat(20000, 1)
    # the given labels are all alike, and do not count
    samples = collated([(x, torch.zeros(len(x), dtype=torch.long))])
    found = output_factors(
        Objective(model, Classification(), 5000), samples, torch.arange(len(x)), find_layers(model), 5
    )
    p = model(x[:1])[0].softmax(-1).detach()
    assert torch.allclose(found["0"].returned, p * (1 - p), rtol=0.05)
    again = output_factors(
        Objective(model, Classification(), 5000), samples, torch.arange(len(x)), find_layers(model), 5
    )
    assert torch.equal(again["0"].returned, found["0"].returned)


def test_a_rise_is_what_the_factors_say_of_a_single_weight(model):
    x = torch.randn(8, 3, 5)
    objective = Objective(model, make_loss(lambda m, batch: m(batch).square().sum(1)), 8)
    layer = find_layers(model)[0]
    found = output_factors(objective, TensorSamples(x), torch.arange(8), [layer], 0)["first"]
    rises = found.rises(layer.matrix())
    hessian = 2 * x.flatten(0, 1).square().mean(0)  # the diagonal of the Gram
    for r, j in ((0, 0), (3, 4), (2, 1)):
        wanted = 0.5 * layer.matrix()[r, j] ** 2 * found.returned[r] * hessian[j]
        assert rises[r, j] == pytest.approx(float(wanted), rel=1e-5)


def test_weights_are_relative_and_none_is_nothing():
    factor = OutputFactor(torch.tensor([0.0, 1.0, 3.0, 0.0]), torch.ones(1, 2))
    assert factor.weights.tolist() == pytest.approx([FLOOR, 1.0, 3.0, FLOOR])


def test_a_folder_keeps_them():
    factors = {
        "a returned b": OutputFactor(torch.rand(3), torch.rand(1, 2)),
        "c": OutputFactor(torch.rand(1), torch.rand(2, 4)),
    }
    back = of_tensors(as_tensors(factors))
    assert back.keys() == factors.keys()
    for name, factor in factors.items():
        assert torch.equal(back[name].returned, factor.returned)
        assert torch.equal(back[name].read, factor.read)
