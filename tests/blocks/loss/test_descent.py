"""The descent on the loss, on a small network that reads digits and on models whose answer is known."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from reference import random_feasible
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

import qubo_prune.blocks.loss.descent as loss_descent
from qubo_prune.blocks.emission import emit_factor
from qubo_prune.blocks.loss.descent import LossDescent, _best_swaps, _energy, _Move, descend_loss
from qubo_prune.blocks.loss.selection import Block, Pairs, Pool
from qubo_prune.blocks.loss.trace import LossStep, LossTrace
from qubo_prune.data import Samples, TensorSamples
from qubo_prune.data.losses import Classification, Given, Loss, Objective
from qubo_prune.errors import InputError
from qubo_prune.hessian.gradients import Entries, block_gradients
from qubo_prune.masks import Pattern, keep_highest
from qubo_prune.models.layers import Layer, find_layers
from qubo_prune.solver import Capabilities, Deadline, Solver, SolveRequest, SolveResult, Status, single_answer
from qubo_prune.solver.block_counts import STOPPED, BlockCounts
from qubo_prune.solver.registry import make_solver, solver_class

SMALL: dict[str, Any] = {
    "damping": 0.0,
    "block_size": 64,
    "blocks_per_step": 2,
    "samples": 300,
    "scoring_samples": 300,
    "max_samples": 600,
    "max_blocks": 12,
}


@dataclass(frozen=True, eq=False)
class Digits:
    """A trained network and three sets of samples that share none."""

    model: nn.Module
    train: TensorSamples
    held_out: TensorSamples
    third: TensorSamples


@dataclass(frozen=True, eq=False)
class Run:
    """One descent, from the dense network of ``digits``.

    Attributes:
        model: as the descent left it.
        warm: the masks it began with.
        masks: the masks that the model held after each step.
        losses: held-out loss of the model after each step, measured anew.
    """

    model: nn.Module
    warm: dict[str, Tensor]
    trace: LossTrace
    masks: list[dict[str, Tensor]]
    losses: list[float]

    @property
    def layers(self) -> list[Layer]:
        return find_layers(self.model)


def trained(model: nn.Module, train: TensorSamples, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = train.tensors
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()


def images() -> list[TensorSamples]:
    """Handwritten digits of 8 x 8, in three sets."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x, y = torch.tensor(loaded.data, dtype=torch.float32) / 16, torch.tensor(loaded.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return [TensorSamples(x, y).subset(part) for part in torch.split(order, [1000, 400, 397])]


@pytest.fixture(scope="module")
def digits() -> Digits:
    train, held_out, third = images()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return Digits(trained(model, train, 150), train, held_out, third)


def descend(
    digits: Digits,
    pattern: str = "layer",
    density: float = 0.2,
    loss: Loss | None = None,
    on_step: Callable[[LossStep], None] | None = None,
    deadline: Deadline | None = None,
    train: Samples | None = None,
    **settings: Any,
) -> Run:
    model = copy.deepcopy(digits.model)
    layers, parsed = find_layers(model), Pattern.parse(pattern)
    warm = {layer.name: keep_highest(layer.matrix().abs(), parsed, density) for layer in layers}
    given = {name: keep.clone() for name, keep in warm.items()}
    objective = Objective(model, loss or Classification())
    masks: list[dict[str, Tensor]] = []
    losses: list[float] = []

    def watch(step: LossStep) -> None:
        masks.append({layer.name: layer.matrix() != 0 for layer in layers})
        losses.append(float(objective.measure(digits.held_out).mean()))
        if on_step is not None:
            on_step(step)

    trace = descend_loss(
        objective,
        layers,
        given,
        train or digits.train,
        digits.held_out,
        LossDescent(**{**SMALL, **settings}),
        parsed,
        deadline=deadline,
        on_step=watch,
    )
    assert all(torch.equal(given[name], keep) for name, keep in warm.items())
    return Run(model, warm, trace, masks, losses)


def check_end(digits: Digits, run: Run) -> None:
    """The model holds the masks of the trace, whose loss is the one told, and the values of the dense model."""
    dense = {layer.name: layer.matrix() for layer in find_layers(digits.model)}
    for layer in run.layers:
        assert torch.equal(layer.matrix(), dense[layer.name] * run.trace.keep[layer.name])
    own = {layer.parameter_name for layer in run.layers}
    for (name, value), before in zip(run.model.state_dict().items(), digits.model.state_dict().values(), strict=True):
        assert name in own or torch.equal(value, before)
    measured = Objective(run.model, Classification()).measure(digits.held_out).mean()
    assert run.trace.best_loss == pytest.approx(float(measured), rel=1e-6)
    assert run.trace.best_loss <= run.trace.start_loss


def accuracy(model: nn.Module, samples: TensorSamples) -> float:
    x, y = samples.tensors
    return float((model(x).argmax(1) == y).float().mean())


def warm_model(digits: Digits, run: Run) -> nn.Module:
    model = copy.deepcopy(digits.model)
    for layer in find_layers(model):
        layer.prune(run.warm[layer.name])
    return model


def same_masks(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# -- the whole descent


@pytest.mark.parametrize(("pattern", "density"), [("layer", 0.2), ("row", 0.2), ("2:4", 0.5)])
def test_the_loss_falls_and_every_group_keeps_its_count(digits: Digits, pattern: str, density: float) -> None:
    run = descend(digits, pattern, density, max_blocks=24)
    trace, parsed = run.trace, Pattern.parse(pattern)
    check_end(digits, run)
    told = [trace.start_loss, *(step.held_out_loss for step in trace.steps)]
    assert all(after <= before for before, after in pairwise(told))
    assert told[-1] == trace.best_loss
    for masks, loss, step in zip(run.masks, run.losses, trace.steps, strict=True):
        assert loss == pytest.approx(step.held_out_loss, rel=1e-6)
        for name, keep in masks.items():
            # the same count in every group, whatever was swapped
            assert torch.equal(parsed.groups(keep).sum(1), parsed.groups(run.warm[name]).sum(1))
    for keep in trace.keep.values():
        assert parsed.violations(keep, density) == 0
    assert trace.blocks == 24
    assert trace.stopped == "All blocks were solved."
    before = accuracy(warm_model(digits, run), digits.third)
    assert accuracy(run.model, digits.third) > before + 0.1
    assert trace.correlation() > 0.5


def test_a_global_budget_moves_weights_between_layers(digits: Digits) -> None:
    run = descend(digits, budget="global", max_blocks=24)
    check_end(digits, run)
    totals = [sum(int(keep.sum()) for keep in masks.values()) for masks in (run.warm, *run.masks, run.trace.keep)]
    assert len(set(totals)) == 1
    assert any(int(run.trace.keep[name].sum()) != int(keep.sum()) for name, keep in run.warm.items())
    assert {pool for step in run.trace.steps for pool in step.pools} == {"2 layers"}
    assert accuracy(run.model, digits.third) > accuracy(warm_model(digits, run), digits.third) + 0.1


def test_a_layer_that_is_fully_kept_offers_its_weights_to_a_global_budget(digits: Digits) -> None:
    model = copy.deepcopy(digits.model)
    layers = find_layers(model)
    values = {layer.name: layer.matrix().clone() for layer in layers}
    # one threshold over both would never keep all of the first layer
    warm = {
        layers[0].name: torch.ones(layers[0].shape, dtype=torch.bool),
        layers[1].name: keep_highest(layers[1].matrix().abs(), Pattern("layer"), 0.1),
    }
    settings = {**SMALL, "budget": "global", "block_size": 40}
    trace = descend_loss(
        Objective(model, Classification()),
        layers,
        warm,
        digits.train,
        digits.held_out,
        LossDescent(**settings),
        Pattern("layer"),
    )
    before, after = ([int(masks[layer.name].sum()) for layer in layers] for masks in (warm, trace.keep))
    assert before == [2048, 32]
    assert sum(after) == 2080
    assert after[0] < 2048
    # each block pairs 20 of its kept weights with 20 pruned ones of the other layer
    assert all(step.weights == 80 for step in trace.steps)
    assert trace.best_loss < trace.start_loss
    for layer in layers:
        assert torch.equal(layer.matrix(), values[layer.name] * trace.keep[layer.name])


def test_what_steps_tell_is_what_happened(digits: Digits) -> None:
    run = descend(digits, max_blocks=24)
    loss, masks, seen = run.trace.start_loss, run.warm, set()
    for number, (step, after) in enumerate(zip(run.trace.steps, run.masks, strict=True)):
        changed = sum(int((after[name] & ~masks[name]).sum()) for name in after)
        seen.add(step.outcome)
        assert step.number == number
        assert len(step.pools) == step.blocks == 2
        assert 0 < step.weights <= 128
        assert 300 <= step.samples <= 600
        if step.outcome in ("accepted", "halved"):
            assert step.swaps == changed > 0
            assert step.predicted < 0
            assert step.held_out_change < 0
            assert step.held_out_loss == pytest.approx(loss + step.held_out_change)
        else:
            assert changed == 0
            assert step.held_out_loss == loss
            assert step.outcome == "rolled back" or step.swaps == 0
        assert 0 <= step.solver_seconds < step.seconds <= run.trace.seconds
        loss, masks = step.held_out_loss, after
    assert {"accepted", "halved"} <= seen


def test_the_seed_decides_everything(digits: Digits) -> None:
    def told(run: Run) -> list[LossStep]:
        return [dataclasses.replace(step, solver_seconds=0.0, seconds=0.0) for step in run.trace.steps]

    first, again, other = (descend(digits, seed=seed) for seed in (1, 1, 2))
    assert told(first) == told(again)
    assert same_masks(first.trace.keep, again.trace.keep)
    assert told(first) != told(other)
    assert not same_masks(first.trace.keep, other.trace.keep)


def test_settings_of_the_paper_run(digits: Digits) -> None:
    settings = LossDescent.preset("classifier", "paper", max_blocks=10, block_size=64)
    assert (settings.accept, settings.curvature, settings.selection) == ("always", "empirical", "salience")
    assert (settings.gradient_scale, settings.ridge, settings.tabu_share) == (0.75, 0.001, 0.4)
    run = descend(digits, **{entry.name: getattr(settings, entry.name) for entry in dataclasses.fields(settings)})
    check_end(digits, run)
    assert len({step.pools for step in run.trace.steps}) == 2
    assert run.trace.best_loss < run.trace.start_loss


@pytest.mark.parametrize("pattern", ["layer", "2:4"])
def test_a_convolutional_network_is_pruned_too(pattern: str) -> None:
    train, held_out, third = images()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(72, 12),
        nn.ReLU(),
        nn.Linear(12, 10),
    )
    if pattern == "2:4":
        # inputs of a layer in groups of four
        model[1], model[3] = nn.Conv2d(1, 8, 2), nn.Conv2d(8, 8, (2, 4), stride=2, groups=2)
        model[6] = nn.Linear(48, 12)
    digits = Digits(trained(model, train, 60), train, held_out, third)
    run = descend(digits, pattern, 0.5 if pattern == "2:4" else 0.3, samples=150, scoring_samples=150, batch_check=100)
    check_end(digits, run)
    for name, keep in run.trace.keep.items():
        groups = Pattern.parse(pattern).groups
        assert torch.equal(groups(keep).sum(1), groups(run.warm[name]).sum(1))
    measured = [
        float(Objective(model, Classification()).measure(digits.third).mean())
        for model in (run.model, warm_model(digits, run))
    ]
    assert measured[0] < measured[1]


# -- what is predicted


def half_pruned(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {layer.name: torch.rand(layer.shape, generator=generator) < 0.5 for layer in find_layers(model)}


def test_a_blocks_energy_is_the_measured_change_to_first_order(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(0, 3, (40,))
    samples, keep = TensorSamples(x, y), half_pruned(base)
    off = []
    for scale in (1e-1, 1e-2, 1e-3):
        model = copy.deepcopy(base)
        layers = find_layers(model)
        parts = [
            Entries(layer, *torch.randint(0, 2, layer.shape, generator=generator(5)).nonzero().T) for layer in layers
        ]
        for part in parts:
            # the move of a block is as long as its values
            part.layer.matrix()[part.rows, part.columns] *= scale
        value = torch.cat([part.of(part.layer.matrix()) for part in parts])
        pruned = torch.cat([~part.of(keep[part.layer.name]) for part in parts])
        for layer in layers:
            layer.prune(keep[layer.name])
        objective = Objective(model, Classification())
        found = block_gradients(objective, samples, torch.arange(40), [parts])
        problem = emit_factor(
            found.curvature[0], found.given[0].double().mean(0), value * ~pruned, value, [int(pruned.sum())]
        )
        before, errors, changes = objective.measure(samples).mean(), [], []
        draw = np.random.default_rng(3)
        for _ in range(10):
            point = random_feasible(draw, problem)
            moved = value * torch.tensor(~point)
            at = 0
            for part in parts:
                part.layer.matrix()[part.rows, part.columns] = moved[at : at + len(part)]
                at += len(part)
            changes.append(float(objective.measure(samples).mean() - before))
            errors.append(abs(problem.energy(point) - changes[-1]))
        off.append(max(errors) / max(map(abs, changes)))
    # the error is of second order: a tenth of the move leaves a tenth of the relative error
    assert off[1] < 0.2 * off[0]
    assert off[2] < 0.2 * off[1]
    assert off[2] < 1e-2


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (model(x)[:, 0] - y).square()


def test_for_least_squares_the_gradient_is_exact_and_with_its_hessian_the_change(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    model = nn.Linear(7, 1).double()
    x, y = torch.randn(30, 7, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    samples, (layer,) = TensorSamples(x, y), find_layers(model)
    value = layer.matrix()[0].clone()
    keep = torch.tensor([[True, False, True, True, False, False, True]])
    layer.prune(keep)
    objective = Objective(model, Given(squared_error))
    part = Entries(layer, torch.zeros(7, dtype=torch.long), torch.arange(7))
    found = block_gradients(objective, samples, torch.arange(30), [[part]])
    residual = model(x)[:, 0].detach() - y
    torch.testing.assert_close(found.given[0].double(), 2 * residual[:, None] * x, rtol=1e-5, atol=1e-6)
    gradient = (2 * residual[:, None] * x).mean(0)
    problem = emit_factor(2**0.5 * x, gradient, layer.matrix()[0].clone(), value, [3])
    before = objective.measure(samples).mean()
    for _ in range(20):
        point = random_feasible(rng, problem)
        layer.assign((value * torch.tensor(~point))[None])
        assert problem.energy(point) == pytest.approx(float(objective.measure(samples).mean() - before), rel=1e-9)


@dataclass(frozen=True)
class Recorded:
    """Samples that remember what was asked of them."""

    samples: Samples
    asked: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Tensor) -> Any:
        self.asked.append(indices)
        return self.samples.batch(indices)


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_scale": 0.5, "ridge": 0.01}, {"caution": 2.0, "block_size": 8}, {"budget": "global"}],
)
def test_the_predicted_change_of_a_step_is_that_of_the_quadratic_model(
    digits: Digits, settings: dict[str, Any]
) -> None:
    recorded = Recorded(digits.train)
    wide = Digits(copy.deepcopy(digits.model), digits.train, digits.held_out, digits.third)
    run = descend(
        wide,
        train=recorded,
        accept="always",
        curvature="empirical",
        scoring_samples=0,
        samples=200,
        batch_check=50,
        max_blocks=2,
        **settings,
    )
    (step,) = run.trace.steps
    batch = next(indices for indices in recorded.asked if len(indices) > 2)  # two are tried alone first
    assert len(batch) == 200
    x, y = digits.train.batch(batch)
    model = warm_model(digits, run).double()
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(values: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, values, (one[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x.double(), y)
    after = copy.deepcopy(model)
    delta, gradients = [], []
    for layer, moved in zip(find_layers(model), find_layers(after), strict=True):
        dense = dict(digits.model.named_parameters())[layer.parameter_name].detach().double()
        moved.assign(dense * run.masks[0][layer.name])
        delta.append((moved.matrix() - layer.matrix()).flatten())
        gradients.append(each[layer.parameter_name].flatten(1))
    change, factor = torch.cat(delta), torch.cat(gradients, 1)
    hessian = factor.T @ factor / 200
    predicted = float(factor.mean(0) @ change + change @ hessian @ change / 2)
    assert step.swaps == int((change[change != 0] != 0).sum()) // 2 > 0
    assert step.predicted == pytest.approx(predicted, rel=1e-4)
    for told, samples, indices in (
        (step.batch_change, digits.train, batch[:50]),
        (step.held_out_change, digits.held_out, torch.arange(400)),
    ):
        measured = [Objective(m, Classification()).measure(doubled(samples), indices) for m in (after, model)]
        assert told == pytest.approx(float((measured[0] - measured[1]).mean()), rel=1e-4, abs=1e-6)
    spread = (measured[0] - measured[1]).std() / 20
    assert step.held_out_error == pytest.approx(float(spread), rel=1e-3)


def doubled(samples: TensorSamples) -> TensorSamples:
    x, y = samples.tensors
    return TensorSamples(x.double(), y)


@dataclass(frozen=True)
class Listening(Solver):
    """The swap descent, with the energies that it reached."""

    capabilities: ClassVar[Capabilities] = solver_class("greedy").capabilities

    energies: list[float] = field(default_factory=list)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        result = make_solver("greedy").solve(request)
        self.energies.append(request.problem.energy(result.assignment))
        return result


@pytest.mark.parametrize("curvature", ["sampled", "empirical"])
def test_the_blocks_of_a_step_are_decided_on_one_model(digits: Digits, curvature: str) -> None:
    listening = Listening()
    run = descend(
        digits,
        solver=listening,
        blocks_per_step=4,
        accept="always",
        caution=0.0,
        max_blocks=12,
        curvature=curvature,
    )
    assert len(listening.energies) == 12
    for number, step in enumerate(run.trace.steps):
        # later blocks know of earlier ones, so their energies add up to that of the whole step
        assert step.predicted == pytest.approx(sum(listening.energies[4 * number : 4 * number + 4]), rel=1e-6)
    assert same_masks(
        run.trace.keep, descend(digits, blocks_per_step=4, accept="always", caution=0.0, curvature=curvature).trace.keep
    )


def test_curvature_of_drawn_and_of_given_labels_differ(digits: Digits) -> None:
    sampled, empirical, automatic = (descend(digits, curvature=kind) for kind in ("sampled", "empirical", "auto"))
    assert same_masks(sampled.trace.keep, automatic.trace.keep)
    assert not same_masks(sampled.trace.keep, empirical.trace.keep)
    for run in (sampled, empirical):
        check_end(digits, run)
        assert run.trace.best_loss < run.trace.start_loss


# -- ends


def test_no_blocks_or_no_time_leave_the_warm_start(digits: Digits) -> None:
    for kind, sentence in (
        ({"max_blocks": 0}, "All blocks were solved."),
        ({"deadline": Deadline(0.0)}, "The time was over."),
    ):
        run = descend(digits, **kind)
        check_end(digits, run)
        assert same_masks(run.trace.keep, run.warm)
        assert run.trace.steps == ()
        assert run.trace.best_loss == run.trace.start_loss
        assert run.trace.stopped == sentence


def test_the_deadline_ends_a_run_between_its_steps(digits: Digits) -> None:
    run = descend(digits, deadline=Deadline(0.8), max_blocks=10**6, patience=10**6)
    assert run.trace.stopped == "The time was over."
    # the step that was begun is finished
    assert all(step.seconds > 0 for step in run.trace.steps)
    check_end(digits, run)


@pytest.mark.parametrize("after", [0, 3])
def test_an_interrupt_ends_with_the_best_masks(digits: Digits, after: int) -> None:
    def interrupt(step: LossStep) -> None:
        if step.number == after:
            raise KeyboardInterrupt

    run = descend(digits, on_step=interrupt)
    check_end(digits, run)
    assert run.trace.stopped == "It was interrupted; the best masks by then count."
    assert len(run.trace.steps) == after + 1
    assert same_masks(run.trace.keep, run.masks[-1])
    assert run.trace.best_loss < run.trace.start_loss


def test_an_error_leaves_the_best_masks_in_the_model(digits: Digits) -> None:
    model, seen = copy.deepcopy(digits.model), []
    layers = find_layers(model)
    warm = {layer.name: keep_highest(layer.matrix().abs(), Pattern("layer"), 0.2) for layer in layers}

    def fail(step: LossStep) -> None:
        seen.append({layer.name: layer.matrix() != 0 for layer in layers})
        if step.number == 2:
            for layer in layers:
                layer.assign(torch.zeros(layer.shape))
            raise RuntimeError("a fault of the watcher")

    with pytest.raises(RuntimeError, match="a fault of the watcher"):
        descend_loss(
            Objective(model, Classification()),
            layers,
            warm,
            digits.train,
            digits.held_out,
            LossDescent(**SMALL),
            Pattern("layer"),
            on_step=fail,
        )
    assert same_masks({layer.name: layer.matrix() != 0 for layer in layers}, seen[-1])


def test_taking_every_step_still_returns_the_best_masks_seen(digits: Digits) -> None:
    # steps from so few samples soon do harm
    run = descend(
        digits,
        accept="always",
        samples=8,
        scoring_samples=8,
        max_samples=8,
        caution=0.0,
        patience=1000,
        max_blocks=30,
    )
    check_end(digits, run)
    assert {step.outcome for step in run.trace.steps} <= {"accepted", "idle"}
    losses = [run.trace.start_loss, *run.losses]
    masks = [run.warm, *run.masks]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert 0 < best < len(losses) - 1
    assert run.trace.best_loss == pytest.approx(losses[best], rel=1e-6)
    assert same_masks(run.trace.keep, masks[best])
    assert any(step.held_out_change > 0 for step in run.trace.steps)


@dataclass(frozen=True)
class Stubborn(Solver):
    """Leaves every block as it is."""

    capabilities: ClassVar[Capabilities] = Capabilities(factor_form=True, anytime=True, swap_optimal=True)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        assert request.warm_start is not None
        return single_answer(request.problem, request.warm_start, Status.FEASIBLE)


@dataclass(frozen=True)
class Broken(Stubborn):
    """Fails at every block."""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise RuntimeError("out of order")


def test_without_swaps_samples_double_and_the_descent_ends(digits: Digits) -> None:
    run = descend(digits, solver=Stubborn(), samples=100, max_samples=400, patience=3, max_blocks=100)
    assert [step.samples for step in run.trace.steps] == [100, 200, 400, 400, 400]
    assert {step.outcome for step in run.trace.steps} == {"idle"}
    cautions = [step.caution for step in run.trace.steps]
    assert cautions == sorted(cautions, reverse=True) != cautions[::-1]
    assert run.trace.stopped == "The last 3 steps brought nothing, on the largest batches."
    assert same_masks(run.trace.keep, run.warm)


def test_taking_every_step_does_not_end_by_patience(digits: Digits) -> None:
    run = descend(digits, solver=Stubborn(), accept="always", patience=1, max_blocks=20)
    assert run.trace.blocks == 20
    assert run.trace.stopped == "All blocks were solved."
    assert {step.outcome for step in run.trace.steps} == {"idle"}


def signed(model: nn.Module, batch: Any) -> Tensor:
    x, y, sign = batch
    return sign * cross_entropy(model(x), y, reduction="none")


@pytest.mark.parametrize("halvings", [0, 2, 20])
def test_moves_that_fail_however_often_they_are_halved_are_rolled_back(digits: Digits, halvings: int) -> None:
    x, y = digits.train.tensors
    model = copy.deepcopy(digits.model)
    layers = find_layers(model)
    warm = {layer.name: keep_highest(layer.matrix().abs(), Pattern("layer"), 0.2) for layer in layers}
    # the judges are the samples of the model, and see every gain as a loss
    train, judges = (TensorSamples(x, y, torch.full((len(x),), sign)) for sign in (1.0, -1.0))
    whole = {"samples": 1000, "scoring_samples": 0, "max_samples": 1000, "blocks_per_step": 1, "batch_check": 1000}
    settings = {**SMALL, **whole, "halvings": halvings, "patience": 4, "max_blocks": 50}
    trace = descend_loss(
        Objective(model, Given(signed)), layers, warm, train, judges, LossDescent(**settings), Pattern("layer")
    )
    assert [step.outcome for step in trace.steps] == ["rolled back"] * 4
    for step in trace.steps:
        assert step.swaps > 0
        assert step.predicted < 0
        assert step.held_out_change > 0
        assert step.held_out_change == pytest.approx(-step.batch_change, rel=1e-4)
        assert step.held_out_loss == trace.start_loss == trace.best_loss
        assert halvings < 20 or step.swaps == 1
    assert same_masks(trace.keep, warm)
    assert all(torch.equal(layer.matrix() != 0, warm[layer.name]) for layer in layers)


def test_a_solver_that_fails_costs_its_blocks_and_is_told_of(digits: Digits) -> None:
    run = descend(digits, solver=Broken(), max_blocks=4, polish=False)
    assert run.trace.notes["The solver raised an error; the warm start was kept (RuntimeError: out of order)."] == 4
    assert run.trace.counts == BlockCounts(4, {"raised RuntimeError: out of order": 4})
    assert same_masks(run.trace.keep, run.warm)


def test_blocks_that_their_clock_cuts_are_counted(digits: Digits) -> None:
    """A search that would take hours: every block is cut, and the trace says so."""
    endless = {"solver": "tabu", "solver_settings": {"steps": 10**9, "starts": 1}, "block_time": 0.02}
    run = descend(digits, max_blocks=3, **endless)
    assert run.trace.counts == BlockCounts(3, {}, {STOPPED: 3})
    assert run.trace.to_dict()["solver_blocks"]["cut"] == {STOPPED: 3}
    said = " ".join(str(run.trace).split())
    assert "The clock cut 3 of 3 blocks of the solver: 3 x stopped at the time limit." in said


# -- which weights take part


@pytest.mark.parametrize("pattern", ["layer", "row"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_weights_rest_after_their_block_and_blocks_never_run_out(digits: Digits, pattern: str, share: float) -> None:
    settings: dict[str, Any] = {"blocks_per_step": 1, "accept": "always", "patience": 100, "max_blocks": 12}
    run = descend(digits, pattern, tabu_share=share, block_size=16, **settings)
    assert run.trace.blocks == len(run.trace.steps) == 12
    assert all(step.weights == 16 for step in run.trace.steps)
    for first, second in pairwise(changed_weights(run)):
        assert not (first & second)
    # two blocks of this size use up the kept weights of the output layer: the first one is set free then
    tight = descend(digits, pattern, tabu_share=share, **settings)
    assert all(step.weights == 64 for step in tight.trace.steps)
    assert tight.trace.notes == {}


def changed_weights(run: Run) -> list[set[tuple[str, int]]]:
    """Weights whose mask changed in each step."""
    sets, before = [], run.warm
    for masks in run.masks:
        sets.append(
            {
                (name, place)
                for name, keep in masks.items()
                for place in (keep != before[name]).flatten().nonzero()[:, 0].tolist()
            }
        )
        before = masks
    return sets


def test_without_rest_weights_change_again(digits: Digits) -> None:
    changes = changed_weights(descend(digits, blocks_per_step=1, accept="always", patience=100))
    assert any(first & second for first, second in pairwise(changes))


def test_a_block_larger_than_the_free_weights_takes_them_all(digits: Digits) -> None:
    run = descend(digits, block_size=10**6, max_blocks=6)
    check_end(digits, run)
    pairs = {name: int(keep.sum()) for name, keep in run.warm.items()}
    for step in run.trace.steps:
        assert step.weights == 2 * sum(pairs.values())
        assert sorted(step.pools) == sorted(pairs)
    notes = {text: times for text, times in run.trace.notes.items() if text.startswith("Blocks of")}
    assert sorted(notes) == sorted(
        f"Blocks of {name} hold all its {2 * count} free weights, fewer than asked." for name, count in pairs.items()
    )
    assert set(notes.values()) == {1}
    assert run.trace.best_loss < run.trace.start_loss


@pytest.mark.parametrize(("pruned", "kept"), [(0.42, 0.35), (0.9, 0.0), (0.0, 0.9)])
def test_frozen_weights_never_change(digits: Digits, pruned: float, kept: float) -> None:
    # each step scores with all samples, so the mean squares of the inputs are known here too
    whole = {"samples": 1000, "scoring_samples": 0, "max_samples": 1000}
    run = descend(digits, frozen_pruned=pruned, frozen_kept=kept, accept="always", patience=100, max_blocks=16, **whole)
    touched = set().union(*changed_weights(run))
    first = warm_model(digits, run)[0]
    x = digits.train.tensors[0]
    inputs = {"0": x, "2": first(x).relu().detach()}
    frozen = set()
    for layer in find_layers(digits.model):
        keep = run.warm[layer.name].flatten()
        score = (layer.matrix().abs() * inputs[layer.name].square().mean(0).sqrt()).flatten()
        lowest = sorted((~keep).nonzero()[:, 0].tolist(), key=lambda place, m=score: float(m[place]))
        highest = sorted(keep.nonzero()[:, 0].tolist(), key=lambda place, m=score: -float(m[place]))
        # all but the last, which rounding may exchange with the next
        chosen = lowest[: max(0, int(pruned * len(lowest)) - 1)] + highest[: max(0, int(kept * len(highest)) - 1)]
        frozen |= {(layer.name, place) for place in chosen}
    assert len(frozen) > 200
    assert len(touched) > 20
    assert not touched & frozen


def test_weights_of_value_zero_take_no_part(digits: Digits) -> None:
    model = copy.deepcopy(digits.model)
    layer = find_layers(model)[0]
    # of all that the warm start prunes in this layer, ten weights are worth restoring
    layer.prune(keep_highest(layer.matrix().abs(), Pattern("layer"), 0.2 + 10 / 2048))
    zeroed = layer.matrix() == 0
    run = descend(dataclasses.replace(digits, model=model), accept="always", patience=100, blocks_per_step=0)
    assert all(step.weights == 20 + 64 for step in run.trace.steps)
    assert not (run.trace.keep[layer.name] & zeroed).any()
    assert not same_masks(run.trace.keep, run.warm)


def test_values_may_be_given_for_a_model_that_is_pruned_already(digits: Digits) -> None:
    expected = descend(digits)
    model = warm_model(digits, expected)
    values = {layer.name: layer.matrix().clone() for layer in find_layers(digits.model)}
    trace = descend_loss(
        Objective(model, Classification()),
        find_layers(model),
        expected.warm,
        digits.train,
        digits.held_out,
        LossDescent(**SMALL),
        Pattern("layer"),
        values=values,
    )
    assert same_masks(trace.keep, expected.trace.keep)
    assert same_masks(dict(model.state_dict()), dict(expected.model.state_dict()))


# -- parts of moves


def move(rng: np.random.Generator, groups: int, swaps: list[int], per_group: int = 6) -> _Move:
    """A random move of a block with this many swaps in each group."""
    n = 2 * per_group * groups
    layer = Layer("layer", nn.Linear(n, 1, bias=False))
    kept, pruned = torch.arange(n // 2), torch.arange(n // 2, n)
    group = torch.arange(n // 2) % groups
    cost = torch.zeros(n // 2)
    block = Block.of(Pool((layer,)), Pairs(kept, pruned, group, cost, cost))
    x = block.x.clone()
    for number, count in enumerate(swaps):
        for side in (True, False):
            members = ((block.labels == number) & (block.x == side)).nonzero()[:, 0]
            chosen = members[torch.tensor(rng.permutation(len(members))[:count])]
            x[chosen] = ~x[chosen]
    value, gradient, factor = (torch.tensor(rng.normal(size=size)) for size in (n, n, (5, n)))
    return _Move(block, x, value, gradient, factor, torch.tensor(rng.random(n)))


def parts_of(moves: list[_Move]) -> list[Tensor]:
    """Each weight's part in the energy of all moves together: own and coupled terms, the latter shared out."""
    response = sum(move.factor @ move.delta for move in moves)
    return [
        move.delta * (move.gradient + move.stiffness * move.delta / 2 + move.factor.T @ response / 10) for move in moves
    ]


def swaps_by_hand(move: _Move, part: Tensor) -> list[float]:
    """Cost of the swaps of a move: in each group the k-th best pruned with the k-th best restored weight."""
    block, costs = move.block, []
    changed = move.x != block.x
    for group in range(int(block.labels.max()) + 1):
        sides = [sorted(part[(block.labels == group) & changed & (block.x == side)].tolist()) for side in (True, False)]
        costs += [a + b for a, b in zip(*sides, strict=True)]
    return costs


@pytest.mark.parametrize("swaps", [[5], [4, 0, 3], [6, 6], [1, 1, 1, 1], [2]])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.0])
def test_the_best_swaps_of_a_move_are_kept(rng: np.random.Generator, swaps: list[int], share: float) -> None:
    whole = move(rng, len(swaps), swaps)
    assert whole.swaps == sum(swaps)
    most = int(share * sum(swaps))
    (some,) = _best_swaps([whole], most)
    assert some.swaps == most
    block = whole.block
    for group in range(len(swaps)):
        member = block.labels == group
        assert int(some.x[member].sum()) == int(block.x[member].sum())
    # a part of the move
    changed, rest = some.x != block.x, whole.x != block.x
    assert not (changed & ~rest).any()
    # each weight's part in the energy of the whole move adds up to it, and the swaps kept are the cheapest
    (part,) = parts_of([whole])
    assert float(part.sum()) == pytest.approx(_energy([whole])[0])
    costs = sorted(swaps_by_hand(whole, part))
    assert float(part[changed].sum()) == pytest.approx(sum(costs[:most]), abs=1e-12)
    assert _best_swaps([whole], sum(swaps)) == [whole]


def test_of_several_moves_the_best_swaps_of_all_are_kept(rng: np.random.Generator) -> None:
    moves = [move(rng, 2, swaps) for swaps in ([5, 1], [0, 0], [6, 3])]
    parts = parts_of(moves)
    assert sum(float(part.sum()) for part in parts) == pytest.approx(_energy(moves)[0])
    costs = [swaps_by_hand(one, part) for one, part in zip(moves, parts, strict=True)]
    limit = sorted(cost for some in costs for cost in some)[6]
    kept = _best_swaps(moves, 7)
    assert [one.swaps for one in kept] == [sum(cost <= limit for cost in some) for some in costs]
    assert sum(one.swaps for one in kept) == 7


def test_halving_again_and_again_ends_with_nothing(rng: np.random.Generator) -> None:
    current, counts = [move(rng, 2, [5, 6])], []
    while current[0].swaps:
        counts.append(current[0].swaps)
        current = _best_swaps(current, counts[-1] // 2)
    assert counts == [11, 5, 2, 1]
    assert torch.equal(current[0].x, current[0].block.x)


def test_the_radius_limits_the_swaps_of_a_step_and_follows_what_they_do(digits: Digits) -> None:
    free = descend(digits, max_blocks=24)
    run = descend(digits, radius=6, max_blocks=24)
    check_end(digits, run)
    assert free.trace.steps[0].swaps > 6
    radius, grown = 6, False
    for step in run.trace.steps:
        assert step.swaps <= radius
        if step.outcome in ("halved", "rolled back"):
            radius = max(1, step.swaps if step.outcome == "halved" else step.swaps // 2)
        elif step.ratio > 0.5 and step.swaps == radius:
            radius, grown = 2 * radius, True
    assert grown
    assert run.trace.best_loss < run.trace.start_loss


def test_damping_leaves_fewer_swaps_worth_their_curvature(digits: Digits) -> None:
    settings = {"blocks_per_step": 1, "max_blocks": 1, "accept": "always", "caution": 0.0}
    swaps = [descend(digits, damping=damping, **settings).trace.steps[0].swaps for damping in (0.0, 1.0, 1000.0)]
    assert swaps[0] >= swaps[1] > swaps[2]
    run = descend(digits, damping=1.0, max_blocks=24)
    check_end(digits, run)
    assert run.trace.best_loss < 0.9 * run.trace.start_loss


# -- what cannot be done


def nothing(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).sum(1) * 0


def distance(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return (model(x) - nn.functional.one_hot(y, 10)).square().sum(1)


def test_a_loss_function_of_the_users_own_is_descended(digits: Digits) -> None:
    run = descend(digits, loss=Given(distance))
    assert run.trace.best_loss < 0.9 * run.trace.start_loss
    with pytest.raises(InputError, match="curvature is 'sampled' but labels cannot be drawn"):
        descend(digits, loss=Given(distance), curvature="sampled")


class Unheard(nn.Module):
    """Two layers that decide, and one that the loss does not depend on."""

    def __init__(self, digits: Digits, reached: bool) -> None:
        super().__init__()
        self.first, self.second = copy.deepcopy(digits.model[0]), copy.deepcopy(digits.model[2])
        self.unheard, self.reached = nn.Linear(64, 10), reached

    def forward(self, x: Tensor) -> Tensor:
        logits = self.second(self.first(x).relu())
        return logits + 0 * self.unheard(x) if self.reached else logits


@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize("order", ["log-size", "gain"])
def test_a_layer_without_a_gradient_is_descended_beside_others(digits: Digits, order: str, reached: bool) -> None:
    torch.manual_seed(1)
    model = Unheard(digits, reached)
    run = descend(dataclasses.replace(digits, model=model), layer_order=order, blocks_per_step=1, max_blocks=20)
    check_end(dataclasses.replace(digits, model=model), run)
    solved = {pool for step in run.trace.steps for pool in step.pools}
    assert solved == ({"first", "second", "unheard"} if order == "log-size" else {"first", "second"})
    assert {step.outcome for step in run.trace.steps if step.pools == ("unheard",)} <= {"idle"}
    assert run.trace.best_loss < run.trace.start_loss


def test_a_loss_without_a_gradient_is_an_error(digits: Digits) -> None:
    with pytest.raises(InputError, match="gradient of the loss is zero in every layer"):
        descend(digits, loss=Given(nothing))


def test_a_loss_that_is_not_finite_is_an_error_and_leaves_the_dense_weights(digits: Digits) -> None:
    model = copy.deepcopy(digits.model)
    layers = find_layers(model)
    warm = {layer.name: keep_highest(layer.matrix().abs(), Pattern("layer"), 0.2) for layer in layers}
    x, y = digits.held_out.tensors
    broken = x.clone()
    broken[17] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite in sample 17"):
        descend_loss(
            Objective(model, Classification()),
            layers,
            warm,
            digits.train,
            TensorSamples(broken, y),
            LossDescent(**SMALL),
            Pattern("layer"),
        )
    assert same_masks(dict(model.state_dict()), dict(digits.model.state_dict()))


def test_a_dense_model_has_nothing_to_swap(digits: Digits) -> None:
    with pytest.raises(InputError, match="No layer holds both a kept and a pruned weight"):
        descend(digits, density=1.0)


@pytest.mark.parametrize("pattern", ["row", "2:4"])
def test_weights_move_between_layers_in_the_pattern_layer_only(digits: Digits, pattern: str) -> None:
    with pytest.raises(InputError, match=f"budget is global and the pattern {pattern}"):
        descend(digits, pattern, 0.5, budget="global")


@pytest.mark.parametrize(
    ("there", "settings", "shares"),
    [
        (350, {"scoring_samples": 500}, (132, 218)),
        (350, {"samples": 10**6, "max_samples": 10**6, "scoring_samples": 0}, (350, 0)),
        (350, {"samples": 10**6, "scoring_samples": 10}, (349, 1)),
        (2, {"scoring_samples": 300}, (1, 1)),
        (1, {}, (1, 0)),
    ],
)
def test_fewer_samples_than_asked_are_shared_out_and_told_of_once(
    digits: Digits, monkeypatch: pytest.MonkeyPatch, there: int, settings: dict[str, Any], shares: tuple[int, int]
) -> None:
    drawn = drawn_batches(monkeypatch)
    run = descend(digits, train=digits.train.subset(torch.arange(there)), max_blocks=8, **settings)
    check_end(digits, run)
    asked = {**SMALL, **settings}
    note = (
        f"Steps asked for {asked['samples']} + {asked['scoring_samples']} samples; the {there} that there are were "
        "shared out."
    )
    assert run.trace.notes[note] == 1
    assert len(run.trace.steps) == 4
    for step, (scoring, batch) in zip(run.trace.steps, drawn, strict=True):
        assert (step.samples, len(batch)) == (shares[0], shares[0])
        assert len(scoring) == (shares[1] or shares[0])


def drawn_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], list[int]]]:
    """Indices that each step to come scores with and makes its model of."""
    scoring: list[list[int]] = []
    drawn: list[tuple[list[int], list[int]]] = []
    real_moments, real_gradients = loss_descent.moments, loss_descent.block_gradients

    def scored(objective: Objective, samples: Samples, indices: Tensor, *rest: Any) -> Any:
        scoring.append(indices.tolist())
        return real_moments(objective, samples, indices, *rest)

    def modelled(objective: Objective, samples: Samples, indices: Tensor, *rest: Any) -> Any:
        drawn.append((scoring[-1], indices.tolist()))
        return real_gradients(objective, samples, indices, *rest)

    monkeypatch.setattr(loss_descent, "moments", scored)
    monkeypatch.setattr(loss_descent, "block_gradients", modelled)
    return drawn


def test_scoring_and_model_batches_share_no_sample(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_batches(monkeypatch)
    # 400 of the 1000 samples a step, so epochs end within steps; later ones take more
    run = descend(
        digits, samples=150, scoring_samples=250, max_samples=500, solver=Stubborn(), patience=100, max_blocks=16
    )
    assert len({step.samples for step in run.trace.steps}) > 1
    assert len(drawn) == len(run.trace.steps) == 8
    for step, (scoring, batch) in zip(run.trace.steps, drawn, strict=True):
        assert len(set(scoring)) == len(scoring) == 250
        assert len(set(batch)) == len(batch) == step.samples
        assert not set(scoring) & set(batch)
    # without a size of its own the scoring takes the model's batch
    drawn.clear()
    descend(digits, scoring_samples=0)
    assert all(scoring == batch for scoring, batch in drawn)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("block_size", 1),
        ("blocks_per_step", -1),
        ("samples", 0),
        ("scoring_samples", -1),
        ("max_samples", 0),
        ("halvings", -1),
        ("caution", -0.1),
        ("ridge", -1.0),
        ("max_blocks", -1),
        ("patience", 0),
        ("batch_check", 0),
        ("micro_batch", 0),
        ("radius", -1),
        ("damping", -0.5),
        ("tabu_share", 1.0),
        ("tabu_share", -0.1),
        ("frozen_pruned", 1.5),
        ("frozen_kept", -0.5),
        ("curvature", "exact"),
        ("selection", "random"),
        ("layer_order", "size"),
        ("accept", "never"),
        ("budget", "row"),
    ],
)
def test_settings_that_cannot_be_name_their_field(name: str, value: Any) -> None:
    settings = LossDescent()
    # set late, past the type checks of these tests
    object.__setattr__(settings, name, value)
    with pytest.raises(InputError, match=rf"^{name} is {value!r}"):
        settings.__post_init__()


@pytest.mark.parametrize("preset", ["measured", "paper"])
def test_an_unknown_kind_of_model_is_named(preset: str) -> None:
    with pytest.raises(InputError, match=r"no kind of model 'vision'; use one of classifier, large, language"):
        LossDescent.preset("vision", preset)


def test_presets_and_changes_by_name() -> None:
    assert LossDescent.preset("classifier") == LossDescent()
    assert LossDescent.preset("language", ridge=0.5).ridge == 0.5
    assert LossDescent.preset("language", "paper").block_size == 4096
    with pytest.raises(InputError, match=r"no preset 'papers' \(did you mean 'paper'\?\)"):
        LossDescent.preset("classifier", "papers")
    with pytest.raises(InputError, match=r"no setting 'blocksize'.*\(did you mean 'block_size'"):
        LossDescent.preset("classifier", blocksize=3)
