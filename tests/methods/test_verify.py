"""What methods decide is verified: what they write to, claim, leave in the model, and raise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from qubo_prune import Chain, prune
from qubo_prune.blocks.loss.descent import LossDescent
from qubo_prune.errors import InputError, MethodError
from qubo_prune.methods.base import (
    Decision,
    LayerMethod,
    LayerTask,
    ModelDecision,
    ModelMethod,
    ModelTask,
    Sampling,
    Traits,
    Update,
)
from qubo_prune.methods.gram_blocks import GramBlocks
from qubo_prune.methods.sparsefw import SparseFW
from qubo_prune.methods.wanda import Wanda

INPUTS = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
LABELS = INPUTS[:, :4].argmax(1)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def refused(method: Any, said: str, kind: type[Exception] = InputError, **settings: Any) -> None:
    """A run is refused with these words, and the model is as it was."""
    model = tiny.mlp()
    before = state(model)
    data: Any = [(INPUTS, LABELS)] if isinstance(method, ModelMethod) else INPUTS
    with pytest.raises(kind, match=said or None):
        prune(model, data, 0.5, method=method, **settings)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@dataclass(frozen=True, eq=False)
class Start(LayerMethod):
    """Wanda, and something besides."""

    does: Callable[[LayerTask], Any]

    traits = Traits("start")

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        answer = self.does(task)
        return (
            Decision(keep=task.highest(task.wanda())) if answer is None or isinstance(answer, torch.Tensor) else answer
        )


@dataclass(frozen=True, eq=False)
class Step(LayerMethod):
    """Keeps the mask, and does something besides."""

    does: Callable[[LayerTask, Decision], Any]

    traits = Traits("step", starts=False, protects=True)

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        assert so_far is not None
        answer = self.does(task, so_far)
        return answer if isinstance(answer, Decision) else so_far


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda task: task.weight.mul_(7), "left layer '0' with the weights of its task changed"),
        (lambda task: task.gram.matrix.mul_(0), "left layer '0' with the Gram of its task changed"),
    ],
)
def test_a_method_that_writes_to_its_task_is_refused(does: Any, said: str) -> None:
    refused(Start(does), said)


def test_what_was_written_before_an_error_is_not_in_the_model() -> None:
    def fails(task: LayerTask) -> None:
        task.weight.mul_(7)
        raise InputError("no")

    def interrupted(task: LayerTask) -> None:
        task.weight.mul_(7)
        raise KeyboardInterrupt

    refused(Start(fails), "no")
    refused(Start(interrupted), "", KeyboardInterrupt)


def test_the_mask_so_far_is_not_to_be_written_to() -> None:
    step = Step(lambda task, so_far: so_far.keep.fill_(True))
    refused(Chain([Wanda(), step]), "the mask so far of its task changed")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (3, "a int, which is no Decision"),
        ([], "a list, which is no Decision"),
        (Decision(keep=[True]), "a list, which is no Decision with a mask in a tensor"),  # type: ignore[arg-type]
        (Decision(keep=torch.ones(1), weight=3), "weights of type int"),  # type: ignore[arg-type]
        (Decision(keep=torch.ones(1), search="x"), "a search of type str"),  # type: ignore[arg-type]
        (Decision(keep=torch.ones(1), notes=["x"]), "notes that are no sentences"),  # type: ignore[arg-type]
        (Decision(keep=torch.ones(1), notes={"x": "y"}), "notes that are no sentences"),  # type: ignore[dict-item]
        (Decision(keep=torch.ones(1), weight=torch.ones(1)), "weights, and its traits say that it updates none"),
        (Decision(keep=torch.ones(1)), r"a mask of shape \(1,\) and type torch.float32"),
    ],
)
def test_answers_of_a_wrong_kind_name_method_and_layer(answer: Any, said: str) -> None:
    refused(Start(lambda task: answer), f"The method 'start' left layer '0' with {said}")


def test_what_a_stranger_raises_is_one_sentence() -> None:
    def fails(task: LayerTask) -> None:
        raise RuntimeError("no such thing")

    said = r"The method 'start' failed at layer '0' \(RuntimeError: no such thing\); take another method"
    refused(Start(fails), said, MethodError)


def test_declarations_are_held() -> None:
    @dataclass(frozen=True)
    class Moving(LayerMethod):
        traits = Traits("moving", starts=False)
        moves_masks = False

        def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
            return Decision(keep=task.highest(-task.wanda()))

    refused(Chain([Wanda(), Moving()]), "another mask, and it says that it moves none")
    lowest = Step(lambda task, so_far: Decision(keep=task.highest(-task.wanda())))
    refused(Chain([Wanda(), lowest]), "protected weights pruned", protect=0.2)


@pytest.mark.parametrize("shape", [(1, -1), (-1, 1)])
def test_an_update_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    @dataclass(frozen=True)
    class Flat(Update):
        traits = Traits("flat", starts=False, updates=True)

        def fitted(self, weight: Any, hessian: Any, keep: Any, notes: Any) -> Any:
            return weight.mean(0, keepdim=True) if shape == (1, -1) else weight.mean(1, keepdim=True)

    refused(Chain([Wanda(), Flat()]), "The update 'flat' made weights of shape")


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        (GramBlocks(), "block_time", -2.0),
        (GramBlocks(), "block_size", "x"),
        (GramBlocks(), "polish", "no"),
        (SparseFW(), "alpha", 5.0),
    ],
)
def test_fields_of_objects_are_checked_as_those_of_names(method: Any, field: str, value: Any) -> None:
    object.__setattr__(method, field, value)  # as its class would, which checks no types
    refused(method, f"setting {field} of the method .* is {value!r}".replace(".0", ""))


def test_times_of_blocks_may_be_text() -> None:
    assert GramBlocks(block_time="500ms") == GramBlocks(block_time=0.5)
    assert LossDescent(block_time="2s") == LossDescent(block_time=2.0)
    for made in (GramBlocks, LossDescent):
        with pytest.raises(InputError, match="The time 'soon' is not understood"):
            made(block_time="soon")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["wanda"], "A step of the chain is of type str"),
        ([Wanda(), None], "A step of the chain is of type NoneType"),
        ([Wanda], "A step of the chain is the class Wanda"),
        ("wanda", "The steps of a chain are of type str"),
        (Wanda(), "The steps of a chain are of type Wanda"),
    ],
)
def test_chains_of_something_else_are_one_sentence(steps: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Chain(steps)


# --- methods for the whole model


@dataclass(frozen=True, eq=False)
class Whole(ModelMethod):
    """Leaves the masks as they are, and does something besides."""

    does: Callable[[ModelTask], Any]

    traits = Traits("whole", reads="samples", starts=False)

    @property
    def sampling(self) -> Sampling:
        return Sampling(20, 10, 10)

    def decide_all(self, task: ModelTask, so_far: Mapping[str, Decision]) -> Any:
        answer = self.does(task)
        return ModelDecision(dict(so_far)) if answer is None else answer


def dense_again(task: ModelTask) -> None:
    for layer in task.layers:
        layer.assign(task.dense[layer.name])


def tripled(task: ModelTask) -> None:
    task.layers[1].assign(3 * task.layers[1].matrix())


def other_bias(task: ModelTask) -> None:
    bias = task.objective.model.get_parameter("2.bias")
    bias.detach().add_(1)


def dense_weights_spoilt(task: ModelTask) -> None:
    for value in task.dense.values():
        value.mul_(5)
    raise KeyboardInterrupt


def bias_then_interrupt(task: ModelTask) -> None:
    other_bias(task)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("does", "said", "kind"),
    [
        (dense_again, "left layer '0' with pruned weights that are not zero", InputError),
        (tripled, "left layer '2' with other kept weights", InputError),
        (other_bias, "changed '2.bias', which is in no layer of its task", InputError),
        (dense_weights_spoilt, "", KeyboardInterrupt),
        (bias_then_interrupt, "", KeyboardInterrupt),
        (lambda task: 3, "answered a int, no ModelDecision", InputError),
        (lambda task: ModelDecision({}), "left layer '0' without a mask of its counts", InputError),
        (lambda task: 1 / 0, r"failed at the whole model \(ZeroDivisionError", MethodError),
    ],
)
def test_what_is_left_in_the_model_is_what_was_decided(does: Any, said: str, kind: type[Exception]) -> None:
    refused(Whole(does), said, kind)


def test_a_right_one_is_taken() -> None:
    model = tiny.mlp()
    report = prune(model, [(INPUTS, LABELS)], 0.5, method=Whole(lambda task: None))
    assert report.density == 0.5
    assert report.masks.verify(model) == {}
