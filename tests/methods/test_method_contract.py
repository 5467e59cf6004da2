"""The contract of methods: ours keep to it, and it finds what does not."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from qubo_prune.errors import InputError
from qubo_prune.methods.base import Decision, LayerMethod, LayerTask, Method, Score, Traits
from qubo_prune.methods.contract import MethodContract, check_method, method_check_names, run_method_check
from qubo_prune.methods.registry import describe_methods, make_any
from qubo_prune.testing import MethodContract as handed_on

NAMES = [info.name if info.role != "update" else f"update.{info.name}" for info in describe_methods()]
CHEAP = [name for name in NAMES if name not in ("icbs", "loss")]


@pytest.mark.parametrize("name", CHEAP)
def test_our_methods_keep_to_it(name: str) -> None:
    outcomes = check_method(make_any(name))
    assert [(each.name, each.message) for each in outcomes if each.passed is False] == []
    assert sum(each.passed is True for each in outcomes) >= (3 if name == "gradient" else 14)


@pytest.mark.slow
def test_blocks_of_the_loss_keep_to_it() -> None:
    outcomes = check_method("loss")
    assert [(each.name, each.message) for each in outcomes if each.passed is False] == []
    assert {each.name for each in outcomes if each.passed} >= {"a_whole_model", "same_seed_same_answer"}


class TestWithPytest(MethodContract):
    @pytest.fixture(params=["wanda", "update.refit"])
    def method(self, request: pytest.FixtureRequest) -> Method:
        return make_any(request.param)


def test_it_is_where_people_look_for_it() -> None:
    assert handed_on is MethodContract


def failing(method: Method) -> dict[str, str]:
    return {each.name: each.message for each in check_method(method) if each.passed is False}


@dataclass(frozen=True)
class Broken(LayerMethod):
    """Wanda with one fault."""

    fault: str = ""

    traits = Traits("broken", updates=True)

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        keep = task.highest(task.wanda())
        weight = task.weight.masked_fill(~keep, 0)
        if self.fault == "counts":
            keep = keep.clone()
            keep[0, 0] = ~keep[0, 0]
            return Decision(keep=keep)
        if self.fault == "nan":
            return Decision(keep=keep, weight=weight.masked_fill(keep, torch.nan))
        if self.fault == "pruned weights":
            return Decision(keep=keep, weight=weight + ~keep)
        if self.fault == "writes":
            task.weight.mul_(1.5)
        if self.fault == "dtype":
            return Decision(keep=keep, weight=weight.float())
        if self.fault == "draws":
            return Decision(keep=task.highest(torch.rand(keep.shape)))
        if self.fault == "mask type":
            return Decision(keep=keep.to(torch.uint8))
        if self.fault == "raises":
            raise RuntimeError("a stranger's fault")
        return Decision(keep=keep, weight=weight)


@pytest.mark.parametrize(
    ("fault", "check", "said"),
    [
        ("counts", "exact_counts", "groups have other counts; row at density 0.5"),
        ("nan", "exact_counts", "weights are not finite"),
        ("pruned weights", "exact_counts", "pruned weights are not zero"),
        ("writes", "the_task_stays", "it wrote to the weights"),
        ("dtype", "types_of_weights", "weights are of type torch.float32"),
        ("draws", "same_seed_same_answer", "another mask for the same seed"),
        ("mask type", "exact_counts", "the mask is of type torch.uint8"),
        ("raises", "exact_counts", "it raised RuntimeError: a stranger's fault"),
    ],
)
def test_a_fault_is_found_and_named(fault: str, check: str, said: str) -> None:
    assert failing(Broken("")) == {}
    outcome = run_method_check(check, Broken(fault))
    assert outcome.passed is False
    assert said in outcome.message


def test_weights_that_are_not_declared_are_found() -> None:
    @dataclass(frozen=True)
    class Quiet(Broken):
        traits = Traits("quiet")

    assert "its traits say that it updates none" in failing(Quiet())["exact_counts"]


def test_settings_that_are_no_fields_are_found() -> None:
    class Loose(Score):
        traits = Traits("loose")

        def scores(self, task: LayerTask) -> Any:
            return task.weight.abs()

    assert "no frozen dataclass" in failing(Loose())["traits"]


def test_protected_weights_that_go_are_found() -> None:
    @dataclass(frozen=True)
    class Careless(LayerMethod):
        traits = Traits("careless", starts=False, protects=True)

        def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
            assert so_far is not None
            return replace(
                so_far, keep=task.highest(torch.arange(float(task.weight.numel())).reshape(task.weight.shape) % 7)
            )

    assert "it pruned protected weights" in failing(Careless())["protected_weights"]


def test_an_update_that_moves_the_mask_is_found() -> None:
    @dataclass(frozen=True)
    class Wandering(LayerMethod):
        traits = Traits("wandering", starts=False)
        moves_masks = False

        def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
            return Decision(keep=task.highest(-task.wanda()))

    assert "declares to leave the mask and changed it" in failing(Wandering())["exact_counts"]


def test_names_and_settings() -> None:
    names = method_check_names()
    assert len(names) == len(set(names)) > 12
    assert all(each.passed is not False for each in itertools.islice(check_method("sparsefw", alpha=0.2), 3))
    with pytest.raises(InputError, match="did you mean 'alpha'"):
        check_method("sparsefw", alhpa=0.2)
    with pytest.raises(InputError, match="did you mean 'sparsefw'"):
        check_method("sparsfw")
