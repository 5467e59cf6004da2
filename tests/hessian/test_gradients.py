"""Gradients of single samples, held against ``vmap(grad)`` and against differences of measured losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
import unseen
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import qubo_prune.hessian.gradients as gradients_module
from qubo_prune import solve
from qubo_prune.blocks.emission import emit_factor
from qubo_prune.data import TensorSamples
from qubo_prune.data.losses import Classification, Given, Loss, NextToken, Objective
from qubo_prune.errors import InputError
from qubo_prune.hessian.gradients import Entries, Moments, block_gradients, moments, separable, without_gradient
from qubo_prune.models.layers import Layer, find_layers
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver.swaps.kernels import form_of

B = 7


@dataclass(frozen=True, eq=False)
class Case:
    """A float64 model whose layers are half pruned, with samples to judge it by."""

    model: nn.Module
    samples: TensorSamples
    loss: Loss

    @property
    def layers(self) -> list[Layer]:
        return find_layers(self.model)

    def objective(self, micro_batch: int = 3) -> Objective:
        # 3 does not divide B
        return Objective(self.model, self.loss, micro_batch)


def pruned(model: nn.Module) -> nn.Module:
    """The model in float64 with every other weight of its layers zero."""
    model = model.double().eval()
    for number, layer in enumerate(find_layers(model)):
        keep = torch.rand(layer.shape, generator=torch.Generator().manual_seed(number)) < 0.5
        layer.prune(keep)
    return model


def classifier(model: nn.Module, *shape: int, classes: int = 4) -> Case:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(B, *shape, generator=generator, dtype=torch.float64)
    return Case(pruned(model), TensorSamples(x, torch.randint(0, classes, (B,), generator=generator)), Classification())


def language(model: nn.Module) -> Case:
    return Case(pruned(model), TensorSamples(tiny.tokens(B, 9)), NextToken())


def convolutions() -> nn.Module:
    """Plain, grouped, depthwise, strided; every output is changed in place."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, padding="same", groups=2, padding_mode="circular"),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, (3, 2), groups=6, dilation=(1, 2)),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 5, 3, stride=2, bias=False),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(20, 4),
    )


class Repeating(nn.Module):
    """One layer called twice in a forward pass, before and after a change in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.again, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.again(x).relu_()
        return self.head(torch.tanh(self.again(first + x)))


class Ignoring(nn.Module):
    """One call of ``again`` and everything that ``unused`` gives have no influence on the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.again, self.unused, self.never = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.again(x * 3)
        out = self.again(x)
        self.unused(x)
        return out + torch.zeros_like(self.again(x * 2))


class Stacking(nn.Module):
    """Windows of one sample become samples of their own, and come back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inner, self.head = nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.reshape(-1, 3)
        return self.head(torch.tanh(self.inner(windows)).reshape(len(x), -1, 5).mean(1))


CASES: dict[str, Callable[[], Case]] = {
    "mlp": lambda: classifier(tiny.mlp(), 12),
    "in place": lambda: classifier(nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)), 6),
    "positions": lambda: classifier(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Flatten(), nn.Linear(20, 4)), 4, 3),
    "convolutions": lambda: classifier(convolutions(), 2, 8, 7),
    "called twice": lambda: classifier(Repeating(), 6),
    "partly ignored": lambda: classifier(Ignoring(), 6),
    "stacked windows": lambda: classifier(Stacking(), 12),
    "gpt2": lambda: language(tiny.gpt2()),
    "llama": lambda: language(tiny.llama()),
}
by_case = pytest.mark.parametrize("name", CASES)


def per_sample(case: Case) -> dict[str, Tensor]:
    """``G_b`` of every layer by layer name, ``(B, d_out, d_in)``, from vmap of grad."""
    parameters = {name: value.detach() for name, value in case.model.named_parameters()}

    def loss(values: dict[str, Tensor], *sample: Tensor) -> Tensor:
        output = functional_call(case.model, values, (sample[0][None],))
        if len(sample) == 2:
            return cross_entropy(output, sample[1][None])
        return cross_entropy(output.logits[0, :-1], sample[0][1:])

    with sdpa_kernel(SDPBackend.MATH):
        found = vmap(grad(loss), in_dims=(None, *[0] * len(case.samples.tensors)))(parameters, *case.samples.tensors)
    return {
        layer.name: torch.stack([layer.as_matrix(each) for each in found[layer.parameter_name]])
        for layer in case.layers
    }


def some_entries(layer: Layer, count: int, seed: int = 0) -> Entries:
    d_out, d_in = layer.shape
    places = torch.randperm(d_out * d_in, generator=torch.Generator().manual_seed(seed))[:count]
    return Entries(layer, places // d_in, places % d_in)


def near(found: Tensor, expected: Tensor) -> None:
    """Equal to the precision of float32."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@contextmanager
def nothing_by_chance() -> Iterator[None]:
    """Memory that is never written reads as NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@by_case
def test_moments_are_those_of_every_samples_gradient(name: str) -> None:
    case = CASES[name]()
    expected = per_sample(case)
    found = moments(case.objective(), case.samples, torch.arange(B), case.layers)
    assert list(found) == [layer.name for layer in case.layers]
    for layer, moment in found.items():
        near(moment.mean, expected[layer].mean(0))
        near(moment.square, expected[layer].square().mean(0))
        assert moment.samples == B


@by_case
@pytest.mark.parametrize("count", [2, 10_000])
def test_block_entries_are_those_of_every_samples_gradient(name: str, count: int) -> None:
    case = CASES[name]()
    expected = per_sample(case)
    layers = case.layers
    # blocks of one layer and of several, some of the same layer
    blocks = [[some_entries(layer, count, seed=1)] for layer in layers] + [
        [some_entries(part, count) for part in layers]
    ]
    order = torch.tensor([4, 0, 6, 1, 5])
    with nothing_by_chance():
        found = block_gradients(case.objective(), case.samples, order, blocks)
    for block, given in zip(blocks, found.given, strict=True):
        wanted = [expected[part.layer.name][order][:, part.rows, part.columns] for part in block]
        near(given, torch.cat(wanted, 1))
    assert all(a is b for a, b in zip(found.given, found.curvature, strict=True))
    assert torch.equal(found.losses, case.objective().measure(case.samples, order))


@by_case
def test_the_mean_gradient_is_the_slope_of_the_measured_loss(name: str) -> None:
    case = CASES[name]()
    objective, everything = case.objective(), torch.arange(B)
    # a Llama computes its norms in float32 whatever it is given
    step, slack = (3e-3, 1e-6) if name == "llama" else (1e-5, 1e-9)
    found = moments(objective, case.samples, everything, case.layers)
    for layer in case.layers[:: max(1, len(case.layers) // 3)]:
        matrix = layer.matrix()
        steepest = found[layer.name].mean.abs()
        # the steepest kept and the steepest pruned weight
        for side in (matrix != 0, matrix == 0):
            place = divmod(int(steepest.masked_fill(~side, -1).argmax()), matrix.shape[1])
            own, losses = matrix[place].clone(), []
            for value in (own + step, own - step):
                matrix[place] = value
                losses.append(float(objective.measure(case.samples).mean()))
            matrix[place] = own
            slope = (losses[0] - losses[1]) / (2 * step)
            assert float(found[layer.name].mean[place]) == pytest.approx(slope, rel=1e-4, abs=slack)


@by_case
def test_the_micro_batch_changes_nothing(name: str) -> None:
    case = CASES[name]()
    blocks = [[some_entries(layer, 5) for layer in case.layers]]
    kinds = []
    for size in (1, 2, 5, B, 100):
        objective = case.objective(size)
        found = moments(objective, case.samples, torch.arange(B), case.layers)
        block = block_gradients(objective, case.samples, torch.arange(B), blocks)
        kinds.append((found, block))
    first, first_block = kinds[0]
    for found, block in kinds[1:]:
        near(block.given[0], first_block.given[0].double())
        torch.testing.assert_close(block.losses, first_block.losses, rtol=1e-12, atol=0)
        for layer, moment in found.items():
            near(moment.mean, first[layer].mean.double())
            near(moment.square, first[layer].square.double())


@pytest.mark.parametrize("name", ["mlp", "positions", "convolutions", "llama"])
def test_working_arrays_of_any_size_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]()
    everything, blocks = torch.arange(B), [[some_entries(layer, 3)] for layer in case.layers]
    whole = moments(case.objective(B), case.samples, everything, case.layers)
    entries = block_gradients(case.objective(B), case.samples, everything, blocks).given
    monkeypatch.setattr(gradients_module, "_ROOM", 100)
    for layer, moment in moments(case.objective(B), case.samples, everything, case.layers).items():
        near(moment.square, whole[layer].square.double())
    for found, expected in zip(
        block_gradients(case.objective(B), case.samples, everything, blocks).given, entries, strict=True
    ):
        near(found, expected.double())


def test_gradients_added_up_before_they_are_squared_estimate_the_mean_square() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Flatten(), nn.Linear(20, 4))
    count = 3002
    samples = TensorSamples(torch.randn(count, 4, 3), torch.randint(0, 4, (count,)))
    layers, everything = find_layers(model), torch.arange(count)
    exact, estimate = (
        moments(Objective(model, Classification(), 250), samples, everything, layers, group=group) for group in (1, 4)
    )
    for name in exact:
        near(estimate[name].mean, exact[name].mean.double())
        assert estimate[name].samples == count
    # one position a sample: exact anyway
    near(estimate["3"].square, exact["3"].square.double())
    # the others have about 750 sums of four
    off = estimate["0"].square / exact["0"].square - 1
    assert off.abs().max() > 1e-4
    assert off.abs().max() < 0.3
    assert abs(float(off.mean())) < 0.05


@by_case
def test_the_model_is_left_as_it_was(name: str) -> None:
    case = CASES[name]()
    model, layers = case.model, case.layers
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    first = next(iter(model.children()))
    first.eval()
    layers[-1].parameter.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    generator = torch.Generator().manual_seed(0)
    moments(case.objective(), case.samples, torch.arange(B), layers)
    block_gradients(case.objective(), case.samples, torch.arange(B), [[some_entries(layers[0], 2)]], generator)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_model_is_left_as_it_was_after_an_error() -> None:
    case = CASES["mlp"]()
    case.model.train()

    def failing(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        model(batch[0])
        raise RuntimeError("a fault of the user's own")

    with pytest.raises(RuntimeError, match="a fault of the user's own"):
        moments(Objective(case.model, Given(failing)), case.samples, torch.arange(B), case.layers)
    samples = TensorSamples(torch.full((B, 12), torch.nan, dtype=torch.float64), case.samples.tensors[1])
    with pytest.raises(InputError, match="NaN or infinite in sample 0"):
        moments(case.objective(), samples, torch.arange(B), case.layers)
    assert all(module.training for module in case.model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in case.model.parameters())
    assert not any(module._forward_hooks for module in case.model.modules())


def test_gradients_are_taken_where_none_are_recorded() -> None:
    case = CASES["mlp"]()
    expected = moments(case.objective(), case.samples, torch.arange(B), case.layers)
    with torch.no_grad():
        found = moments(case.objective(), case.samples, torch.arange(B), case.layers)
    assert all(torch.equal(found[name].mean, expected[name].mean) for name in expected)


def test_layers_that_the_loss_does_not_depend_on_have_zero_gradients() -> None:
    case = CASES["partly ignored"]()
    by_name = {layer.name: layer for layer in case.layers}
    blocks = [[some_entries(by_name[name], 4) for name in ("never", "again")], [some_entries(by_name["unused"], 3)]]
    with nothing_by_chance():
        found = block_gradients(
            case.objective(), case.samples, torch.arange(B), blocks, torch.Generator().manual_seed(0)
        )
    for gradients in (found.given, found.curvature):
        assert not gradients[0][:, :4].any()
        assert gradients[0][:, 4:].any()
        assert not gradients[1].any()
    # and if there are no others, the loss has nothing to differentiate by
    idle = [by_name["never"], by_name["unused"]]
    alone = [[some_entries(layer, 4)] for layer in idle]
    found = block_gradients(case.objective(), case.samples, torch.arange(B), alone, torch.Generator().manual_seed(0))
    assert not any(part.any() for part in (*found.given, *found.curvature))
    assert torch.equal(found.losses, case.objective().measure(case.samples))
    for moment in moments(case.objective(), case.samples, torch.arange(B), idle).values():
        assert not moment.mean.any()
        assert not moment.square.any()


def test_samples_that_cannot_be_told_apart_are_an_error() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(torch.cat([x, x.mean(0, keepdim=True)]))[: len(x)]

    case = classifier(Mixing(), 12)
    with pytest.raises(
        InputError, match=r"'inner' was called with 4 inputs for a batch of 3 samples.*micro_batch to 1"
    ):
        moments(case.objective(3), case.samples, torch.arange(B), case.layers)


def test_inputs_that_are_changed_after_they_were_read_are_an_error() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            hidden += self.inner(hidden)
            return self.head(hidden)

    case = classifier(Overwriting(), 6)
    with pytest.raises(InputError, match="changes in place what the layer 'inner' has read"):
        moments(case.objective(), case.samples, torch.arange(B), case.layers)
    head = [layer for layer in case.layers if layer.name != "inner"]
    assert moments(case.objective(), case.samples, torch.arange(B), head)["first"].mean.any()


@pytest.mark.parametrize("name", ["mlp", "convolutions", "gpt2"])
def test_drawn_labels_change_the_curvature_and_nothing_else(name: str) -> None:
    case = CASES[name]()
    blocks = [[some_entries(layer, 6)] for layer in case.layers]

    def found(seed: int | None) -> gradients_module.BlockGradients:
        drawn = None if seed is None else torch.Generator().manual_seed(seed)
        return block_gradients(case.objective(), case.samples, torch.arange(B), blocks, drawn)

    plain, first, again, other = found(None), found(1), found(1), found(2)
    for number in range(len(blocks)):
        for result in (first, again, other):
            assert torch.equal(result.given[number], plain.given[number])
        assert torch.equal(first.curvature[number], again.curvature[number])
    assert any(not torch.equal(a, b) for a, b in zip(first.curvature, other.curvature, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.curvature, plain.given, strict=True))
    assert torch.equal(first.losses, plain.losses)


def test_drawn_labels_have_no_mean_gradient_and_the_square_of_the_fisher_matrix() -> None:
    case = CASES["in place"]()
    layers, draws = case.layers, 1000
    blocks = [[some_entries(layer, 8) for layer in layers]]
    generator = torch.Generator().manual_seed(11)
    many = torch.arange(B).repeat(draws)
    found = block_gradients(case.objective(700), case.samples, many, blocks, generator)
    each = found.curvature[0].double().reshape(draws, B, -1)
    assert torch.equal(found.given[0][:B], found.given[0][-B:])
    # the same for each label there is, by the model's probability of it
    x = case.samples.tensors[0]
    chances = case.model(x).detach().softmax(1)
    expected = torch.zeros(B, 16, dtype=torch.float64)
    for label in range(4):
        labelled = TensorSamples(x, torch.full((B,), label))
        gradients = block_gradients(case.objective(), labelled, torch.arange(B), blocks).given[0].double()
        expected += chances[:, label, None] * gradients.square()
    error = (each.var(0) / draws).sqrt()
    assert error.max() > 0
    assert (each.mean(0).abs() <= 5 * error + 1e-9).all()
    error = (each.square().var(0) / draws).sqrt()
    assert ((each.square().mean(0) - expected).abs() <= 5 * error + 1e-9).all()


def test_the_uncertainty_is_the_standard_error_of_the_mean() -> None:
    case = CASES["mlp"]()
    expected = per_sample(case)
    found = moments(case.objective(), case.samples, torch.arange(B), case.layers)
    for name, moment in found.items():
        error = expected[name].std(0, unbiased=False) / B**0.5
        torch.testing.assert_close(moment.uncertainty.double(), error, rtol=1e-3, atol=1e-4 * float(error.max()))
    # rounding must not make a root of something negative
    constant = Moments(
        torch.full((1, 2), 0.1), torch.full((1, 2), 0.01) * (1 - 1e-6), 4, torch.ones(1, 2), torch.ones(1)
    )
    assert torch.equal(constant.uncertainty, torch.zeros(1, 2))


def test_the_factored_curvature_is_inputs_times_returning_gradients() -> None:
    case = CASES["mlp"]()
    found = moments(case.objective(), case.samples, torch.arange(B), case.layers)
    first = case.layers[0]
    inputs = case.samples.batch(torch.arange(B))[0]
    moment = found[first.name]
    flat = first.unfold(inputs).flatten(0, 2).float()
    torch.testing.assert_close(moment.read[0], flat.square().mean(0))
    torch.testing.assert_close(moment.input_power, flat.square().mean(0).expand(first.shape))
    torch.testing.assert_close(moment.factored, moment.returned[:, None] * moment.input_power)
    # with one position per sample E o^2 is what the gradient of the bias has as its mean square
    assert (moment.returned > 0).any()


def test_samples_that_a_model_mixes_are_told_of() -> None:
    class FeaturesFirst(nn.Module):
        """Puts positions in front of samples, as sequence-first models do."""

        def __init__(self) -> None:
            super().__init__()
            self.inside, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.tanh(self.inside(x.transpose(0, 1)))).mean(0)

    torch.manual_seed(0)
    mixed = FeaturesFirst().double()
    samples = TensorSamples(torch.randn(6, 2, 4).double(), torch.randint(0, 3, (6,)))
    assert not separable(Objective(mixed, Classification(), 6), samples, find_layers(mixed), 0)
    case = CASES["mlp"]()
    assert separable(case.objective(), case.samples, case.layers, 0)


class Largest(TorchDispatchMode):
    """The most elements that any result of an operation has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, Tensor):
                self.elements = max(self.elements, made.numel())
        return result


def test_a_large_block_never_forms_its_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    n, b = 4096, 64
    model = nn.Sequential(nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 4))
    samples = TensorSamples(torch.randn(b, 96), torch.randint(0, 4, (b,)))
    layer = find_layers(model)[0]
    entries = some_entries(layer, n)
    value = entries.of(layer.matrix()).clone()
    x = torch.rand(n, generator=torch.Generator().manual_seed(0)) < 0.5
    monkeypatch.setattr(BlockQubo, "dense", lambda *_: pytest.fail("Q was formed"))
    with Largest() as watch:
        found = block_gradients(Objective(model, Classification()), samples, torch.arange(b), [[entries]])
        factor, gradient = found.curvature[0], found.given[0].mean(0)
        problem = emit_factor(factor, gradient, value * ~x, value, [int(x.sum())])
    assert n < watch.elements <= n * b
    assert isinstance(problem.q, FactorForm)
    assert problem.q.factor.shape == (n, b)
    assert form_of(problem).matrix.size == 0
    result = solve(problem, "greedy", warm_start=x.numpy())
    delta = value.double() * (x.double() - torch.tensor(result.assignment).double())
    response = factor.double() @ delta
    assert result.energy < -1e-6
    assert result.energy == pytest.approx(float(gradient.double() @ delta + response @ response / (2 * b)), rel=1e-6)


@pytest.mark.parametrize("kind", [*unseen.WITHOUT_INPUT, *unseen.WITHOUT_GRADIENT])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_moments_say_whether_a_gradient_came_back(kind: Any) -> None:
    model = kind().eval()
    x, y = (torch.cat(part) for part in zip(*unseen.data(), strict=True))
    objective, samples = Objective(model, Classification(), 16), TensorSamples(x, y)
    layers, order = find_layers(model), torch.arange(len(x))
    odd = next(layer.name for layer in layers if layer.module is model.odd)
    found = moments(objective, samples, order, layers)
    assert {name: each.reached for name, each in found.items()} == {"first": True, "last": True, odd: False}
    assert {each.positions for name, each in found.items() if name != odd} == {96}
    assert found[odd].positions == 0
    assert without_gradient(objective, samples, order, layers) == [odd]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_gradient_of_zeros_is_none() -> None:
    class Unheard(unseen.Base):
        def middle(self, x: Tensor) -> Tensor:
            return x + 0 * self.odd(x)

    model = Unheard().eval()
    x, y = (torch.cat(part) for part in zip(*unseen.data(), strict=True))
    objective, samples = Objective(model, Classification(), 16), TensorSamples(x, y)
    found = moments(objective, samples, torch.arange(len(x)), find_layers(model))["odd"]
    assert (found.positions, found.reached) == (96, False)
    assert without_gradient(objective, samples, torch.arange(len(x)), find_layers(model)) == ["odd"]


def test_a_pass_that_looks_for_gradients_ends_when_all_layers_have_one() -> None:
    model, calls = unseen.Base().eval(), []
    x, y = (torch.cat(part) for part in zip(*unseen.data(), strict=True))
    objective, samples = Objective(model, Classification(), 16), TensorSamples(x, y)
    model.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    layers = [layer for layer in find_layers(model) if layer.name != "odd"]
    assert without_gradient(objective, samples, torch.arange(len(x)), layers) == []
    assert calls == [16]
