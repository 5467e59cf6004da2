"""The conformance suite for methods: what every method is held to, for pytest and without it.

The author of a method inherits :class:`MethodContract` and gives one fixture::

    class TestMine(MethodContract):
        @pytest.fixture
        def method(self):
            return Mine()

``qubo-prune check-method NAME`` and :func:`check_method` run the same checks without pytest. A method that makes no
mask is given that of the method which its traits name as its start; one for the whole model decides a small classifier.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qubo_prune.checks import CheckOutcome, NotApplicable, outcome_of, require
from qubo_prune.clock import Deadline
from qubo_prune.data.losses import Objective, make_loss
from qubo_prune.data.samples import TensorSamples
from qubo_prune.errors import InputError
from qubo_prune.hessian.gram import Gram
from qubo_prune.masks.keep import Pattern, keep_highest
from qubo_prune.methods.base import (
    Decision,
    LayerMethod,
    LayerTask,
    Method,
    ModelDecision,
    ModelMethod,
    ModelTask,
    Traits,
)
from qubo_prune.methods.registry import make_any, make_method
from qubo_prune.methods.row_blocks import RowBlocks
from qubo_prune.models.layers import Layer, find_layers
from qubo_prune.progress import Progress
from qubo_prune.settings import kinds_of

#: Patterns with the densities that the checks ask for.
BUDGETS = (("row", 0.5), ("row", 0.2), ("layer", 0.37), ("2:4", 0.5))


def check_method(method: str | Method, **settings: Any) -> list[CheckOutcome]:
    """Run every check of :class:`MethodContract` on a method.

    Args:
        method: a name of the registry or ``package.module:Class``, or a method.
        **settings: fields of a named method.

    Raises:
        InputError: there is no such method.
        SolverError: it cannot be loaded.
    """
    made = make_any(method, **settings) if isinstance(method, str) else method
    if not isinstance(made, Method):
        raise TypeError(
            f"The method is of type {type(made).__name__}; give a name, or an object of qubo_prune.methods."
        )
    return list(run_method_checks(made))


def method_check_names() -> list[str]:
    """Names of the checks in their order, such as ``exact_counts``."""
    return [name.removeprefix("test_") for name in vars(MethodContract) if name.startswith("test_")]


def run_method_checks(method: Method) -> Iterator[CheckOutcome]:
    """The outcomes of all checks, one after another."""
    return (run_method_check(name, method) for name in method_check_names())


def run_method_check(name: str, method: Method) -> CheckOutcome:
    """Run one check by its name."""
    check: Callable[[Method], None] = getattr(MethodContract(), f"test_{name}")
    return outcome_of(name, lambda: check(method))


class MethodContract:
    """What every method is held to; see the module. One method of the class is one check."""

    def test_traits(self, method: Method) -> None:
        """They are declared as data."""
        traits = getattr(method, "traits", None)
        require(isinstance(traits, Traits), f"traits is a {type(traits).__name__}, not a Traits")
        require(bool(method.traits.label), "traits have no label")
        require(isinstance(method, (LayerMethod, ModelMethod)), "it is neither a LayerMethod nor a ModelMethod")
        declared: Any = getattr(type(method), "__dataclass_params__", None)
        require(getattr(declared, "frozen", False), "it is no frozen dataclass, whose fields are its settings")

    def test_settings(self, method: Method) -> None:
        """Fields have annotations by which texts are read, and defaults that fit them."""
        kinds = kinds_of(type(method))
        for name, kind in kinds.items():
            reserved = name in ("seed", "damping", "density", "pattern", "correction", "workers")
            require(
                not reserved or isinstance(method, RowBlocks), f"the field {name} has the name of what a task brings"
            )
            try:
                kind.read(getattr(method, name))
            except ValueError:
                require(False, f"the field {name} holds {getattr(method, name)!r}, and {kind} is declared")

    def test_goes_to_other_processes(self, method: Method) -> None:
        """It can be pickled, as is what it decides with."""
        again = pickle.loads(pickle.dumps(method))
        require(type(again) is type(method), "another class came back from pickle")

    def test_exact_counts(self, method: Method) -> None:
        """The mask has exactly the counts of the pattern, for every pattern."""
        for pattern, density in _asked(method):
            _decided(method, _task(pattern, density))

    def test_all_or_hardly_any_kept(self, method: Method) -> None:
        """Densities that leave no choice, or hardly one."""
        for pattern, density in (("row", 1.0), ("layer", 1.0), ("row", 0.1), ("4:4", 1.0)):
            _decided(method, _task(pattern, density))

    def test_one_input_or_one_output(self, method: Method) -> None:
        """Layers of a single column and of a single row."""
        for rows, columns, density in ((6, 1, 1.0), (1, 8, 0.5), (1, 1, 1.0)):
            _decided(method, _task("row", density, rows, columns))

    def test_several_grams(self, method: Method) -> None:
        """A grouped convolution, whose groups of rows have Grams of their own."""
        for pattern, density in _asked(method):
            _decided(method, _task(pattern, density, grams=2))

    def test_dead_inputs(self, method: Method) -> None:
        """Inputs that were always zero: weights stay finite and counts exact."""
        task = _task("row", 0.5)
        matrix = task.gram.matrix.clone()
        matrix[:4], matrix[:, :4] = 0, 0
        _decided(method, replace(task, gram=Gram(matrix, task.gram.tokens)))

    def test_no_inputs(self, method: Method) -> None:
        """Inputs that were all zero."""
        task = _task("row", 0.5)
        _decided(method, replace(task, gram=Gram(torch.zeros_like(task.gram.matrix), task.gram.tokens)))

    def test_types_of_weights(self, method: Method) -> None:
        """Weights of every floating type come back in it."""
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            task = _task("row", 0.5)
            _decided(method, replace(task, weight=task.weight.to(dtype)))

    def test_large_and_small_weights(self, method: Method) -> None:
        """Weights of 1e15 and of 1e-15."""
        for scale in (1e15, 1e-15):
            task = _task("row", 0.5)
            _decided(method, replace(task, weight=task.weight * scale))

    def test_weights_of_zero(self, method: Method) -> None:
        """A row, and a layer, of zeros."""
        task = _task("row", 0.5)
        weight = task.weight.clone()
        weight[0] = 0
        for each in (weight, torch.zeros_like(weight)):
            _decided(method, replace(task, weight=each))

    def test_same_seed_same_answer(self, method: Method) -> None:
        """Twice the same task gives the same bits."""
        if isinstance(method, ModelMethod):
            first, second = (_decided_model(method) for _ in range(2))
            same = all(torch.equal(first.decisions[n].keep, second.decisions[n].keep) for n in first.decisions)
            require(same, "another mask for the same seed")
            return
        first_one, second_one = (_decided(method, _task("row", 0.5)) for _ in range(2))
        require(torch.equal(first_one.keep, second_one.keep), "another mask for the same seed")
        weights = (first_one.weight, second_one.weight)
        require(
            weights[0] is weights[1] or torch.equal(*(w if w is not None else torch.empty(0) for w in weights)),
            "other weights for the same seed",
        )

    def test_the_task_stays(self, method: Method) -> None:
        """Nothing is written to the weights, the Gram or the mask so far."""
        one = _layer_method(method)
        for pattern, density in _asked(one):
            task = _task(pattern, density)
            weight, matrix = task.weight.clone(), task.gram.matrix.clone()
            so_far = _start(one, task)
            mask = None if so_far is None else so_far.keep.clone()
            one.decide(task, so_far)
            require(torch.equal(weight, task.weight), f"it wrote to the weights; {pattern}")
            require(torch.equal(matrix, task.gram.matrix), f"it wrote to the Gram; {pattern}")
            require(
                mask is None or so_far is None or torch.equal(mask, so_far.keep), f"it wrote to the mask; {pattern}"
            )

    def test_protected_weights(self, method: Method) -> None:
        """A method that declares it keeps the protected weights of the mask so far."""
        if not method.traits.protects:
            raise NotApplicable("it does not declare to keep protected weights")
        if method.traits.starts:
            raise NotApplicable("the mask of a start is brought to hold them by the run")
        task = _task("row", 0.5)
        start = _start(_layer_method(method), task)
        assert start is not None
        stays = start.keep & (torch.arange(start.keep.shape[1]) % 3 == 0)
        found = _decided(method, replace(task, stays=stays))
        require(bool((found.keep | ~stays).all()), "it pruned protected weights")

    def test_time_limit(self, method: Method) -> None:
        """A time that is over leaves a mask with exact counts."""
        _decided(method, replace(_task("row", 0.5), deadline=Deadline(0.0)))

    def test_a_whole_model(self, method: Method) -> None:
        """A method for the whole model holds its budget, and leaves the model as it says."""
        if not isinstance(method, ModelMethod):
            raise NotApplicable("it decides one layer at a time")
        _decided_model(method)


def _task(pattern: str, density: float, rows: int = 8, columns: int = 16, grams: int = 1) -> LayerTask:
    """A layer with correlated inputs."""
    draw = torch.Generator().manual_seed(rows * columns + grams)
    matrices = []
    for _ in range(grams):
        inputs = torch.randn(3 * columns + 5, columns, generator=draw, dtype=torch.float64).cumsum(1)
        matrices.append(2 / len(inputs) * inputs.T @ inputs)
    gram = Gram(matrices[0] if grams == 1 else torch.stack(matrices), 3 * columns + 5)
    weight = torch.randn(rows, columns, generator=draw)
    return LayerTask(weight, gram, Pattern.parse(pattern), density, seed=1, run_seed=2)


def _asked(method: Method) -> list[tuple[str, float]]:
    """The budgets that a method takes; at least one."""
    taken = []
    for pattern, density in BUDGETS:
        with suppress(InputError):
            method.check(Pattern.parse(pattern), density)
            taken.append((pattern, density))
    require(bool(taken), "its check refuses every budget")
    return taken


def _layer_method(method: Method) -> LayerMethod:
    if not isinstance(method, LayerMethod):
        raise NotApplicable("it decides a whole model")
    if method.traits.reads == "samples":
        raise NotApplicable("it reads samples of a loss, which a run prepares for it")
    return method


def _start(method: LayerMethod, task: LayerTask) -> Decision | None:
    """What a method that makes no mask begins with."""
    if method.traits.starts:
        return None
    made = make_method(method.traits.start)
    assert isinstance(made, LayerMethod)
    return made.decide(task)


def _decided(method: Method, task: LayerTask) -> Decision:
    """What a method decides of a task, checked."""
    one = _layer_method(method)
    try:
        one.check(task.pattern, task.density)
    except InputError as error:
        raise NotApplicable(f"its check refuses {task.pattern.name} at density {task.density:g}") from error
    task.notes.clear()
    so_far = _start(one, task)
    counts = None if so_far is None else task.pattern.counts(so_far.keep)
    found = one.decide(task, so_far)
    require(task.notes.total() >= 0, "notes are no counts")
    where = f"{task.pattern.name} at density {task.density:g}, weight {tuple(task.weight.shape)}"
    require(isinstance(found, Decision), f"decide gave a {type(found).__name__}, not a Decision")
    require(found.keep.shape == task.weight.shape, f"the mask has shape {tuple(found.keep.shape)}; {where}")
    require(found.keep.dtype == torch.bool, f"the mask is of type {found.keep.dtype}; {where}")
    if so_far is None or task.pattern.name != "layer" or task.gram.groups == 1:
        wrong = task.pattern.violations(found.keep, task.density) if one.exact else 0
        require(not wrong, f"{wrong} groups have other counts; {where}")
        require(counts is None or torch.equal(counts, task.pattern.counts(found.keep)), f"counts changed; {where}")
    else:  # groups of rows keep what the start gave them
        require(int(found.keep.sum()) == int(so_far.keep.sum()), f"another number is kept; {where}")
    if not one.moves_masks and so_far is not None:
        require(torch.equal(found.keep, so_far.keep), f"it declares to leave the mask and changed it; {where}")
    _check_weights(one, task, found, where)
    return found


def _check_weights(method: LayerMethod, task: LayerTask, found: Decision, where: str) -> None:
    if found.weight is None:
        return
    require(method.traits.updates, f"it gave weights and its traits say that it updates none; {where}")
    require(found.weight.dtype == task.weight.dtype, f"weights are of type {found.weight.dtype}; {where}")
    require(found.weight.shape == task.weight.shape, f"weights have shape {tuple(found.weight.shape)}; {where}")
    require(bool(found.weight.isfinite().all()), f"weights are not finite; {where}")
    require(not bool(found.weight[~found.keep].any()), f"pruned weights are not zero; {where}")


def _decided_model(method: ModelMethod) -> ModelDecision:
    """What a method decides of a small classifier, checked."""
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(60, 12, generator=draw)
    labels = (inputs[:, :3].sum(1) > 0).long() + (inputs[:, 3] > 0.5).long()
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) / 3)
    loss, layers, pattern = make_loss("classification"), find_layers(model), Pattern.parse("row")
    known = method.for_model(loss, 3, layers)
    known.check(pattern, 0.5)
    known.check_layers(layers)
    dense = {layer.name: layer.matrix().clone() for layer in layers}
    start = {layer.name: Decision(keep=_half(layer, pattern)) for layer in layers}
    for layer in layers:
        layer.assign(dense[layer.name] * start[layer.name].keep)
    others = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    task = ModelTask(
        Objective(model, loss, min(32, known.sampling.micro_batch)),
        layers,
        {name: weight.clone() for name, weight in dense.items()},
        TensorSamples(inputs[:40], labels[:40]),
        TensorSamples(inputs[40:], labels[40:]),
        pattern=pattern,
        deadline=Deadline(None),
        progress=Progress(False),
    )
    found = known.decide_all(task, start)
    require(isinstance(found, ModelDecision), f"decide_all gave a {type(found).__name__}, not a ModelDecision")
    require(found.decisions.keys() == dense.keys(), "it did not decide exactly the layers that it was given")
    _check_model(layers, found, known, pattern, dense)
    left = {name: tensor for name, tensor in model.named_parameters() if name.endswith("bias")}
    for name, bias in left.items():
        require(torch.equal(bias, others[name]), f"it changed {name}, which is in no layer of its task")
    return found


def _check_model(
    layers: Sequence[Layer],
    found: ModelDecision,
    method: ModelMethod,
    pattern: Pattern,
    dense: Mapping[str, Tensor],
) -> None:
    total = sum(int(decision.keep.sum()) for decision in found.decisions.values())
    require(2 * total == sum(weight.numel() for weight in dense.values()), "it kept another number of weights")
    for layer in layers:
        keep = found.decisions[layer.name].keep.to(layer.parameter.device)
        wrong = 0 if method.moves_between_layers else pattern.violations(keep, 0.5)
        require(not wrong, f"{wrong} groups of layer {layer.name} have other counts")
        left: Tensor = layer.matrix()
        require(not bool(left[~keep].any()), f"pruned weights of layer {layer.name} are not zero in the model")
        require(bool(left.isfinite().all()), f"weights of layer {layer.name} are not finite")
        same = method.traits.updates or torch.equal(left[keep], dense[layer.name][keep])
        require(same, f"kept weights of layer {layer.name} changed, and its traits say that it updates none")


def _half(layer: Layer, pattern: Pattern) -> Tensor:
    """The mask of the largest weights of a layer, half of them."""
    return keep_highest(layer.matrix().abs(), pattern, 0.5)
