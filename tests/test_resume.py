"""A run that was interrupted goes on and ends with the same bits as one that never was."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
from qubo_prune_solvers.greedy import Greedy
from torch import Tensor, nn

from qubo_prune import prune
from qubo_prune.report import Report
from qubo_prune.solver import BatchRequest, BatchResult, Capabilities, Solver, SolveRequest, SolveResult

#: Calls that solvers take before they are interrupted; none if negative.
left = -1


class Killed(BaseException):
    """Nobody catches it."""


def count_down() -> None:
    global left
    if left == 0:
        raise Killed
    left -= 1


@dataclass(frozen=True)
class OneByOne(Solver):
    """Greedy, one problem at a time."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        count_down()
        return Greedy().solve(request)


@dataclass(frozen=True)
class Batched(Solver):
    """Greedy in batches; it fails in every third row."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False, batched=True)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        return Greedy().solve(request)

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        count_down()
        result = Greedy().solve_batch(request)
        answers = result.assignments.clone()
        answers[::3] = False
        return replace(result, assignments=answers)


@dataclass(frozen=True)
class Job:
    """A run that can be made again and again."""

    make: Callable[[], nn.Module]
    data: Callable[[], Any]
    settings: dict[str, Any]

    def run(self, **more: Any) -> tuple[dict[str, Tensor], Report]:
        torch.manual_seed(len(more))  # what the world outside draws is no part of a run
        model = self.make()
        report = prune(model, self.data(), **{**self.settings, **more})
        return {name: value.clone() for name, value in model.state_dict().items()}, report


def told(report: Report) -> Any:
    """What a report tells but for times."""
    plain = report.to_dict()
    for part in (plain, *plain["layers"], *([plain["loss"], *plain["loss"]["steps"]] if plain["loss"] else [])):
        part.pop("seconds", None)
        part.pop("solver_seconds", None)
    for layer in plain["layers"]:
        layer["trace"] = [(point["energy"], point["accepted"]) for point in layer["trace"]]
    plain.pop("peak_memory_bytes")
    plain.pop("memory_estimate_bytes")
    return json.loads(json.dumps(plain))


def is_the_same(found: tuple[dict[str, Tensor], Report], whole: tuple[dict[str, Tensor], Report]) -> None:
    (state, report), (wanted, reported) = found, whole
    assert state.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(state[name], wanted[name]), name
    assert dict(report.masks).keys() == dict(reported.masks).keys()
    for name in reported.masks:
        assert torch.equal(report.masks[name], reported.masks[name]), name
    assert told(report) == told(reported)


def llama(**settings: Any) -> Job:
    return Job(tiny.llama, tiny.tokens, {"density": 0.5, "block_size": 8, "workers": 0, **settings})


def classifier(**settings: Any) -> Job:
    loss = {"max_blocks": 6, "samples": 60, "scoring_samples": 40, "held_out": 60, "patience": 100, "batch_check": 30}
    return Job(
        tiny.mlp, lambda: [(torch.randn(40, 12, generator=torch.Generator().manual_seed(i)), torch.arange(40) % 4)
                           for i in range(6)],
        {"density": 0.5, "hessian": "fisher", "pattern": "layer", "block_size": 16, "loss_settings": loss, **settings},
    )  # fmt: skip


JOBS = {
    "gram, one by one": llama(solver=OneByOne()),
    "gram, batches": llama(solver=Batched(), max_sweeps=3),
    "layer": llama(solver=Batched(), pattern="layer", density=0.37),
    "2:4 by ADMM, refitted": llama(solver=OneByOne(), pattern="2:4", warm_start="admm", update="refit"),
    "compensated": llama(solver=OneByOne(), hessian="compensated", max_sweeps=2),
    "compensated, batches": llama(solver=Batched(), hessian="compensated", pattern="layer", allocation="owl"),
    "transposed": Job(tiny.gpt2, tiny.tokens, {"density": 0.4, "solver": OneByOne(), "correction": 0.5, "workers": 0,
                                               "update": "refit", "block_size": 8}),
    "half precision": Job(lambda: tiny.llama().to(torch.bfloat16), tiny.tokens,
                          {"solver": OneByOne(), "hessian": "compensated", "block_size": 8, "workers": 0}),
    "convolutions": Job(tiny.cnn, tiny.images, {"solver": Batched(), "block_size": 8}),
    "loss": classifier(solver=OneByOne()),
    "loss, by gradient": classifier(solver=OneByOne(), warm_start="gradient"),
    "loss as in the paper": classifier(solver=OneByOne(), loss_settings={
        "preset": "paper", "max_blocks": 6, "samples": 60, "held_out": 60, "batch_check": 30, "block_size": 16}),
    "loss after blocks": classifier(solver=OneByOne(), warm_start="gram", allocation="fisher",
                                    loss="classification"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def nobody_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "left", -1)


@pytest.mark.parametrize("job", JOBS.values(), ids=list(JOBS))
def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    global left
    monkeypatch.setattr("qubo_prune.journal.CHECKPOINT_SECONDS", 0.0)
    whole = job.run()
    left = 10**9
    job.run()
    calls = 10**9 - left
    assert calls > 3
    folder = tmp_path / "run"
    # interrupted again and again, each time a bit later, by what the solver has still to do
    for step in itertools.count():
        left = max(4, 1 + calls // 5)  # steps of the loss decide three blocks
        try:
            found = job.run(run_folder=folder, resume=step > 0)
        except Killed:
            assert step < 12
            continue
        break
    assert step >= 1
    is_the_same(found, whole)


def test_a_run_with_a_folder_is_the_run_without_one(tmp_path: Path) -> None:
    job = llama()
    is_the_same(job.run(run_folder=tmp_path / "run"), job.run())


def test_a_run_that_is_done_can_be_asked_for_again(tmp_path: Path) -> None:
    job = llama(hessian="compensated")
    first = job.run(run_folder=tmp_path / "run")
    is_the_same(job.run(run_folder=tmp_path / "run", resume=True), first)
