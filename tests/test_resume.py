"""A run that was interrupted goes on and ends with the same bits as one that never was."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
import unseen
from qubo_prune_solvers.greedy import Greedy
from torch import Tensor, nn

from qubo_prune import Chain, InputError, prune
from qubo_prune.methods import Decision, LayerMethod, LayerTask, Traits
from qubo_prune.methods.given import GivenMasks
from qubo_prune.report import Report
from qubo_prune.run.folder import is_running
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
        tiny.mlp,
        lambda: [
            (torch.randn(40, 12, generator=torch.Generator().manual_seed(i)), torch.arange(40) % 4) for i in range(6)
        ],
        {"density": 0.5, "method": "loss", "pattern": "layer", "block_size": 16, "loss_settings": loss, **settings},
    )


JOBS = {
    "gram, one by one": llama(solver=OneByOne()),
    "gram, batches": llama(solver=Batched(), max_sweeps=3),
    "layer": llama(solver=Batched(), pattern="layer", density=0.37),
    "whole rows, one by one": llama(solver=OneByOne(), block_size="row", row_swaps=False),
    "whole rows, batches": llama(solver=Batched(), block_size="row", pattern="layer", max_sweeps=2),
    "2:4 by ADMM, refitted": llama(solver=OneByOne(), pattern="2:4", warm_start="admm", update="refit"),
    "compensated": llama(solver=OneByOne(), method="compensated", max_sweeps=2),
    "compensated, batches": llama(solver=Batched(), method="compensated", pattern="layer", allocation="owl"),
    "decoder layers fitted": llama(solver=OneByOne(), update="block"),
    "all layers fitted": llama(solver=OneByOne(), update="block+distill"),
    "outputs by the loss": llama(
        solver=OneByOne(), method="compensated", pattern="layer", hessian="kron", allocation="kron"
    ),
    "transposed": Job(
        tiny.gpt2,
        tiny.tokens,
        {"density": 0.4, "solver": OneByOne(), "correction": 0.5, "workers": 0, "update": "refit", "block_size": 8},
    ),
    "half precision": Job(
        lambda: tiny.llama().to(torch.bfloat16),
        tiny.tokens,
        {"solver": OneByOne(), "method": "compensated", "block_size": 8, "workers": 0},
    ),
    "convolutions": Job(tiny.cnn, tiny.images, {"solver": Batched(), "block_size": 8}),
    "loss": classifier(solver=OneByOne()),
    "loss, by gradient": classifier(solver=OneByOne(), warm_start="gradient"),
    "loss as in the paper": classifier(
        solver=OneByOne(),
        loss_settings={
            "preset": "paper",
            "max_blocks": 6,
            "samples": 60,
            "held_out": 60,
            "batch_check": 30,
            "block_size": 16,
        },
    ),
    "loss after blocks": classifier(solver=OneByOne(), warm_start="gram", allocation="fisher", loss="classification"),
}


@pytest.fixture(autouse=True)
def nobody_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "left", -1)


@pytest.mark.gate(5)
@pytest.mark.parametrize("job", JOBS.values(), ids=list(JOBS))
def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    global left
    monkeypatch.setattr("qubo_prune.run.journal.CHECKPOINT_SECONDS", 0.0)
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
    job = llama(method="compensated")
    first = job.run(run_folder=tmp_path / "run")
    is_the_same(job.run(run_folder=tmp_path / "run", resume=True), first)


@pytest.mark.parametrize("settings", [{}, {"allocation": "owl", "pattern": "layer"}])
def test_layers_left_dense_are_so_in_a_run_that_goes_on(tmp_path: Path, settings: dict[str, Any]) -> None:
    job = Job(unseen.Expert, unseen.inputs, {"solver": OneByOne(), "block_size": 4, "workers": 0, **settings})
    whole = job.run()
    assert [layer.name for layer in whole[1].left_dense] == ["odd"]
    for calls in (3, 18):
        interrupted(job, tmp_path / f"run-{calls}", calls)
        is_the_same(job.run(run_folder=tmp_path / f"run-{calls}", resume=True), whole)
    is_the_same(job.run(run_folder=tmp_path / "run-18", resume=True), whole)


# -- what a folder is refused for, and what it forgives


def interrupted(job: Job, folder: Path, calls: int) -> None:
    global left
    left = calls
    with pytest.raises(Killed):
        job.run(run_folder=folder)
    left = -1


@pytest.mark.gate(2)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"density": 0.4}, "configuration: density was 0.5 and is 0.4"),
        ({"solver": Batched()}, "configuration: .*OneByOne"),
        ({"seed": 1}, "configuration: seed was 0 and is 1"),
        ({"exclude": ["*.mlp.*"]}, "configuration: exclude"),
        ({"warm_start": "magnitude"}, "configuration: warm_start"),
    ],
)
def test_another_configuration_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    job = llama(solver=OneByOne())
    interrupted(job, tmp_path / "run", 30)
    with pytest.raises(InputError, match=said):
        job.run(run_folder=tmp_path / "run", resume=True, **changes)
    is_the_same(job.run(run_folder=tmp_path / "run", resume=True), job.run())


def test_another_model_or_calibration_is_refused(tmp_path: Path) -> None:
    job = llama(solver=OneByOne())
    interrupted(job, tmp_path / "run", 30)
    with pytest.raises(InputError, match="another model"):
        replace(job, make=lambda: tiny.llama(hidden_size=32)).run(run_folder=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="another calibration"):
        replace(job, data=lambda: tiny.tokens(5)).run(run_folder=tmp_path / "run", resume=True)


@pytest.mark.slow
def test_another_number_of_workers_is_the_same_run(tmp_path: Path) -> None:
    job = llama(solver=OneByOne())
    interrupted(job, tmp_path / "run", 30)
    is_the_same(job.run(run_folder=tmp_path / "run", resume=True, workers=2), job.run())


def test_resume_takes_a_folder() -> None:
    with pytest.raises(InputError, match="run_folder"):
        llama().run(resume=True)


@pytest.mark.gate(2)
@pytest.mark.parametrize("settings", [{"solver": Batched()}, {"solver": Batched(), "method": "compensated"}])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_layer_is_pruned_again_and_says_so(tmp_path: Path, settings: dict[str, Any], damage: str) -> None:
    job = llama(**settings)
    whole = job.run(run_folder=tmp_path / "run")
    file = tmp_path / "run" / "records" / "layer-00004.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-20] ^= 4
    file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    state, report = job.run(run_folder=tmp_path / "run", resume=True)
    for name, tensor in whole[0].items():
        assert torch.equal(state[name], tensor)
    said = [layer for layer in report.layers if any("damaged" in note for note in layer.notes)]
    assert len(said) == 1
    # what was redone is kept again
    is_the_same(job.run(run_folder=tmp_path / "run", resume=True), (state, report))


def test_a_record_of_another_layer_is_refused(tmp_path: Path) -> None:
    job = llama(solver=Batched())
    job.run(run_folder=tmp_path / "run")
    records = tmp_path / "run" / "records"
    (records / "layer-00000.safetensors").replace(records / "layer-00001.safetensors")
    with pytest.raises(InputError, match="start the run anew"):
        job.run(run_folder=tmp_path / "run", resume=True)


def test_answers_that_are_damaged_are_asked_for_again(tmp_path: Path) -> None:
    job = llama(solver=OneByOne())
    interrupted(job, tmp_path / "run", 30)
    (file,) = (tmp_path / "run" / "records").glob("*-answers.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    is_the_same(job.run(run_folder=tmp_path / "run", resume=True), job.run())


def test_a_model_that_failed_has_its_weights_back_and_the_folder_what_was_decided(tmp_path: Path) -> None:
    global left
    model, job = tiny.llama(), llama(solver=OneByOne())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    left = 60
    with pytest.raises(Killed):
        prune(model, tiny.tokens(), **job.settings, run_folder=tmp_path / "run")
    left = -1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert (tmp_path / "run" / "records" / "layer-00000.safetensors").is_file()


def test_the_time_of_a_run_is_that_of_all_its_parts(tmp_path: Path) -> None:
    job = llama(solver=OneByOne())
    interrupted(job, tmp_path / "run", 60)
    (state,) = (tmp_path / "run" / "records").glob("progress.safetensors")
    assert state.is_file()
    first = time.perf_counter()
    _, report = job.run(run_folder=tmp_path / "run", resume=True)
    assert report.seconds["total"] > time.perf_counter() - first - 1e-9
    assert report.seconds["search"] >= sum(layer.seconds for layer in report.layers) * (1 - 1e-9)


# -- a real model, killed for good

KILLS = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.slow
def test_runs_that_are_killed_go_on_to_the_same_bits() -> None:
    done = subprocess.run([sys.executable, KILLS, "--kills", "6"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 results are the same" in done.stdout


# -- what the system may do to a command

SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
import qubo_prune.run.journal
from qubo_prune.cli import main
qubo_prune.run.journal.CHECKPOINT_SECONDS = 0.0
sys.argv[0] = "qubo-prune"
main()
"""


@dataclass(frozen=True)
class Slow(OneByOne):
    """Greedy that takes its time."""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        time.sleep(0.01)
        return Greedy().solve(request)


@pytest.fixture(scope="module")
def job_of_a_command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("given")
    (folder / "text.txt").write_text(tiny.text(), encoding="utf-8")
    model = tiny.save(folder / "dense")
    return [
        "prune",
        str(model),
        "--calibration",
        str(folder / "text.txt"),
        "--samples",
        "4",
        "--sequence-length",
        "16",
        "--solver",
        "test_resume:Slow",
        "--workers",
        "0",
        "--block-time",
        "none",
        "--quiet",
    ]


@pytest.fixture(scope="module")
def whole(job_of_a_command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes that nobody ends."""
    output = tmp_path_factory.mktemp("whole") / "pruned"
    process = begin([*job_of_a_command, "--output", str(output)])
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return output


@pytest.fixture
def command(job_of_a_command: list[str], tmp_path: Path) -> list[str]:
    return [*job_of_a_command, "--run-folder", str(tmp_path / "run")]


def begin(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *command], stderr=subprocess.PIPE, text=True, env=environment
    )


def first_layer(folder: Path) -> None:
    """Wait until a run has decided something."""
    for _ in range(1200):
        if (folder / "records" / "layer-00001.safetensors").is_file():
            return
        time.sleep(0.05)
    raise AssertionError("no layer was decided within a minute")


@pytest.mark.gate(1)
@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [(signal.SIGTERM, 143, "Terminated; "), (signal.SIGINT, 130, "Interrupted; "), (signal.SIGKILL, -9, "")],
)
def test_a_command_that_is_ended_goes_on_with_resume(
    tmp_path: Path, command: list[str], whole: Path, sent: signal.Signals, code: int, said: str
) -> None:
    process = begin([*command, "--output", str(tmp_path / "pruned")])
    first_layer(tmp_path / "run")
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert error.startswith(said)
    assert "Traceback" not in error
    if said:
        assert "--resume goes on" in error
    assert not (tmp_path / "pruned").exists()
    assert not list(tmp_path.glob(".pruned*"))
    again = begin([*command, "--output", str(tmp_path / "pruned"), "--resume"])
    _, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    for name in ("model.safetensors", "masks.safetensors"):
        assert (tmp_path / "pruned" / name).read_bytes() == (whole / name).read_bytes()


@dataclass(frozen=True)
class Stuck(OneByOne):
    """It never ends."""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        time.sleep(3600)
        raise AssertionError


@pytest.mark.slow
def test_two_commands_on_one_folder_are_one_too_many(tmp_path: Path, command: list[str]) -> None:
    stuck = ["test_resume:Stuck" if word == "test_resume:Slow" else word for word in command]
    process = begin([*stuck, "--output", str(tmp_path / "pruned")])
    try:
        while not is_running(tmp_path / "run"):
            assert process.poll() is None
            time.sleep(0.05)
        second = begin([*stuck, "--output", str(tmp_path / "other"), "--resume"])
        _, error = second.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert second.returncode == 2
    assert "Another process works in the run folder" in error


def mask_start(step: int) -> dict[str, torch.Tensor]:
    return {
        name: (torch.arange(value.numel()).reshape(value.shape) % 2 == step)
        for name, value in tiny.mlp().named_parameters()
        if name.endswith("weight")
    }


@dataclass(frozen=True)
class Tuned(LayerMethod):
    """Wanda with fields that its text does not show, or not in full."""

    quiet: int = field(default=0, repr=False)
    large: Any = None

    traits = Traits("tuned")

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        return Decision(keep=task.highest(task.wanda()))


LARGE, OTHER = torch.zeros(5000), torch.zeros(5000).index_fill_(0, torch.tensor([2500]), 1.0)


def squared(model: Any, batch: Any) -> torch.Tensor:
    return model(batch[0]).square().mean(1)


def cubed(model: Any, batch: Any) -> torch.Tensor:
    return model(batch[0]).abs().pow(3).mean(1)


@pytest.mark.parametrize(
    ("begun", "resumed", "said"),
    [
        ({"method": Chain([GivenMasks(mask_start(0))])}, {"method": Chain([GivenMasks(mask_start(1))])}, "steps"),
        ({"warm_start": mask_start(0)}, {"warm_start": mask_start(1)}, "given_masks"),
        ({"method": Tuned(quiet=1)}, {"method": Tuned(quiet=2)}, "steps"),
        ({"method": Tuned(large=LARGE)}, {"method": Tuned(large=OTHER)}, "steps"),
        (
            {"method": "sparsefw", "method_settings": {"alpha": 0.5}},
            {"method": "sparsefw", "method_settings": {"alpha": 0.6}},
            "method_settings",
        ),
        ({"method": "loss", "loss": squared}, {"method": "loss", "loss": cubed}, "loss"),
        (
            {"method": "loss", "held_out": [(torch.ones(8, 12), torch.arange(8) % 4)]},
            {"method": "loss", "held_out": [(torch.zeros(8, 12), torch.arange(8) % 4)]},
            "held-out samples",
        ),
    ],
)
def test_a_run_with_other_objects_is_another_run(
    begun: dict[str, Any], resumed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    batches = [(torch.randn(40, 12, generator=torch.Generator().manual_seed(i)), torch.arange(40) % 4) for i in (0, 1)]
    shared = {"run_folder": tmp_path / "run", "loss_settings": {"max_blocks": 1, "samples": 20}}
    if begun.get("method") != "loss":
        shared.pop("loss_settings")
        shared["loss"] = "classification"
    prune(tiny.mlp(), batches, 0.5, **shared, **begun)
    with pytest.raises(InputError, match=f"was begun with another .*{said}"):
        prune(tiny.mlp(), batches, 0.5, **shared, **resumed, resume=True)
    prune(tiny.mlp(), batches, 0.5, **shared, **begun, resume=True)
