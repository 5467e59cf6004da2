"""Ctrl-C while a solver is at work: exit code 130, one sentence, nothing written."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from qubo_prune_solvers._interrupts import interruptible
from tiny import save, text

from qubo_prune import BlockQubo, write_problem
from qubo_prune.cli.options import plain_errors
from qubo_prune.solver import Deadline
from qubo_prune.solver.swaps.kernels import in_threads

#: Runs the command line, and says on standard error when a function of that path is entered.
_TELLING = """
import importlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
module, _, path = sys.argv.pop(1).partition(":")
owner = importlib.import_module(module)
*outer, name = path.split(".")
for part in outer:
    owner = getattr(owner, part)
real = getattr(owner, name)
def telling(*args, **kwargs):
    print("AT WORK", file=sys.stderr, flush=True)
    return real(*args, **kwargs)
setattr(owner, name, telling)
from qubo_prune.cli import main
main()
"""
_FOREVER = {
    "tabu": ("qubo_prune_solvers.tabu:Tabu.search", ["steps=10000000", "threads=2"]),
    "cpsat": ("ortools.sat.python.cp_model:CpSolver.solve", []),
    "tabu alone": ("qubo_prune_solvers.tabu:Tabu.search", ["steps=10000000", "threads=1"]),
    "anneal": ("qubo_prune_solvers.anneal:Anneal.search", ["sweeps=10000000", "threads=2"]),
    "local": ("qubo_prune_solvers.local:Local.search", ["rounds=10000000", "threads=2"]),
    "neal": ("qubo_prune_solvers.neal:interruptible", ["num_sweeps=1000000000", "num_reads=1"]),
    "dwave-tabu": ("qubo_prune_solvers.dwave_tabu:interruptible", ["num_restarts=100000000"]),
    "exact": ("qubo_prune_solvers._branching:Tree.grow", []),
}
_QUICK = ("tabu", "cpsat")


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("problems") / "problem.json"
    write_problem(BlockQubo(rng.normal(size=(120, 120)), 60), path)
    return path


def interrupted(place: str, *arguments: str) -> tuple[int, str]:
    """Exit code and messages of a command that is interrupted once it enters a function."""
    command = [sys.executable, "-c", _TELLING, place, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        said = []
        for line in lines:
            said.append(line)
            if "AT WORK" in line:
                break
        process.send_signal(signal.SIGINT)
        # far more than it needs: what does not end by itself would run for hours
        _, rest = process.communicate(timeout=60)
    return process.returncode, "".join(said) + rest


@pytest.mark.parametrize(
    "case", [case if case in _QUICK else pytest.param(case, marks=pytest.mark.slow) for case in _FOREVER]
)
def test_an_interrupt_ends_a_solver_and_writes_nothing(problem: Path, tmp_path: Path, case: str) -> None:
    place, settings = _FOREVER[case]
    output = tmp_path / "answer.json"
    options = [part for setting in settings for part in ("--set", setting)]
    arguments = ["solve", str(problem), "--solver", case.split()[0], *options, "--output", str(output), "--quiet"]
    code, errors = interrupted(place, *arguments)
    assert code == 130, errors
    assert "Interrupted; nothing was written." in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


_RUNS = {
    "threads": ("qubo_prune_solvers.tabu:Tabu.search", "tabu", ["steps=10000000"]),
    "a worker's process": (
        "qubo_prune.solver.workers:Workers.submit",
        "neal",
        ["num_sweeps=1000000000", "num_reads=1"],
    ),
    "a blocking call": ("ortools.sat.python.cp_model:CpSolver.solve", "cpsat", []),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", _RUNS)
def test_an_interrupt_ends_a_run_and_writes_nothing(tmp_path: Path, case: str) -> None:
    place, solver, settings = _RUNS[case]
    model = save(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(text(), encoding="utf-8")
    options = [part for setting in settings for part in ("--set", setting)]
    workers = ["--workers", "1" if "process" in case else "0"]
    code, errors = interrupted(
        place,
        "prune",
        str(model),
        "--calibration",
        str(tmp_path / "text.txt"),
        "--samples",
        "2",
        "--sequence-length",
        "16",
        "--solver",
        solver,
        *options,
        "--block-time",
        "none",
        *workers,
        "--block-size",
        "32",
        "--output",
        str(tmp_path / "out"),
        "--quiet",
    )
    assert code == 130, errors
    assert "Interrupted; nothing was written." in errors
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "text.txt"]


def test_threads_that_one_fails_are_ended() -> None:
    clock = Deadline(None)
    begun = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            begun.wait(30)
            raise KeyboardInterrupt
        begun.set()
        while not clock.expired:
            pass
        return number

    with pytest.raises(KeyboardInterrupt):
        in_threads(work, [0, 1], 2, clock)
    assert clock.cancelled


def test_deadlines_end_with_the_one_they_are_within() -> None:
    whole = Deadline(None)
    part, limited = Deadline(None, whole), Deadline(60.0, Deadline(None, whole))
    assert (part.remaining, part.expired, limited.expired) == (None, False, False)
    assert Deadline(60.0, Deadline(0.0)).expired
    whole.cancel()
    assert part.expired
    assert limited.expired
    assert (part.remaining, limited.remaining) == (0.0, 0.0)


def test_a_blocking_call_gives_what_it_gives() -> None:
    stopped: list[int] = []
    assert interruptible(lambda: 3, lambda: stopped.append(1)) == 3

    def fail() -> int:
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"):
        interruptible(fail, lambda: stopped.append(1))
    assert not stopped


def test_a_blocking_call_is_asked_to_end() -> None:
    end = threading.Event()

    def block() -> bool:
        signal.raise_signal(signal.SIGINT)
        return end.wait(30)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interruptible(block, end.set)
    finally:
        signal.signal(signal.SIGINT, before)
    assert end.is_set()


class Dying:
    """Is interrupted while it is taken away."""

    def __init__(self, sent: signal.Signals) -> None:
        self.sent = sent

    def __del__(self) -> None:
        signal.raise_signal(self.sent)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_falls_into_a_finaliser_is_not_lost(sent: signal.Signals, code: int) -> None:
    def lose_it() -> None:
        with plain_errors("nothing was written."):
            dying = Dying(sent)
            del dying
            time.sleep(10)

    before, hook = signal.signal(signal.SIGINT, signal.default_int_handler), sys.unraisablehook
    try:
        with pytest.raises(typer.Exit) as left:
            lose_it()
    finally:
        signal.signal(signal.SIGINT, before)
    assert left.value.exit_code == code
    assert sys.unraisablehook is hook
