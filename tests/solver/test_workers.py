"""Solvers in processes of their own: whatever they do costs them one block."""

from __future__ import annotations

import gc
import importlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import tiny
import torch
from reference import feasible_points, minimum, random_batch, random_feasible, random_problem, random_starts

from qubo_prune.errors import InputError, SolverError
from qubo_prune.run.prune import prune
from qubo_prune.solver import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Deadline,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    derive_seed,
    ranked_answers,
    single_answer,
    workers,
)
from qubo_prune.solver.block_counts import ENDED, LEFT_OUT, BlockCounts
from qubo_prune.solver.dispatch import Handling, solve, solve_batch
from qubo_prune.solver.workers import Crash, NotBegun, Overrun, Workers


class Stubborn(Exception):
    """Does not survive a copy: it cannot be made of its one argument."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def local() -> Any:
    class Local:
        """Only what travels by value gets out of the worker."""

    return Local()


def use_up_the_memory() -> None:
    """All that a limit leaves, which is lifted in the end for those who come after in this process."""
    import resource

    used, limits = psutil.Process().memory_info().vms, resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, limits[1]))
    hoard = []
    try:
        while True:
            hoard.append(bytearray(2**24))
    finally:
        hoard.clear()
        resource.setrlimit(resource.RLIMIT_AS, limits)


def misbehave(how: str, request: SolveRequest) -> SolveResult:
    """One of the ways in which a solver can go wrong."""
    start = request.warm_start
    if how == "sleeps":
        time.sleep(1000)
    if how == "computes on":
        while True:
            pass
    if how == "hangs in native code":
        # nothing of Python runs in here, and the interpreter's lock is held
        import ctypes

        ctypes.PyDLL(None).sleep(1000)
    if how == "dies":
        os._exit(7)
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "crashes":
        import ctypes

        ctypes.string_at(0)
    if how == "uses up the memory":
        use_up_the_memory()
    if how == "times out by itself":
        raise TimeoutError("the annealer is busy")
    if how == "leaves":
        sys.exit(3)
    if how == "raises what cannot be copied":
        raise Stubborn("this", "that")
    if how == "answers what cannot be copied":
        return single_answer(request.problem, start, Status.FEASIBLE, info={"lock": threading.Lock()})
    answer = single_answer(request.problem, start, Status.FEASIBLE, info={"local": local()})
    if how == "is worse":
        points = feasible_points(request.problem)
        return single_answer(request.problem, points[request.problem.energy(points).argmax()], Status.FEASIBLE)
    spoilt = {
        "NaN": np.full((1, len(start)), np.nan),
        "too short": start[None, 1:],
        "wrong counts": np.ones((1, len(start)), dtype=bool),
    }
    if how in spoilt:
        object.__setattr__(answer, "assignments", spoilt[how])
    return answer


TROUBLE = {
    "sleeps": (Status.OVERRAN, "at its time limit"),
    "computes on": (Status.OVERRAN, "at its time limit"),
    "hangs in native code": (Status.OVERRAN, "at its time limit"),
    "dies": (Status.FAILED, "its process died .* exit code 7.* twice"),
    "is killed": (Status.FAILED, "its process died .* exit code -9.* twice"),
    "crashes": (Status.FAILED, "its process died .* exit code -11.* twice"),
    "uses up the memory": (Status.FAILED, "MemoryError"),
    "times out by itself": (Status.FAILED, "TimeoutError: the annealer is busy"),
    "leaves": (Status.FAILED, "SystemExit: 3"),
    "raises what cannot be copied": (Status.FAILED, "Stubborn: this and that"),
    "answers what cannot be copied": (Status.FAILED, "TypeError: .*lock"),
    "NaN": (Status.INFEASIBLE, "only 0 and 1 are allowed"),
    "too short": (Status.INFEASIBLE, "shape \\(5,\\); \\(6,\\) is needed"),
    "wrong counts": (Status.INFEASIBLE, "no answer meets the counts"),
    "is worse": (Status.NOT_IMPROVED, ""),
}


@dataclass(frozen=True)
class Troubled(Solver):
    """Misbehaves in the first rows of a batch, each in its own way, and answers well in the others."""

    how: tuple[str, ...] = tuple(TROUBLE)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        for row, how in enumerate(self.how):
            if request.seed == derive_seed(0, row):
                return misbehave(how, request)
        points = feasible_points(request.problem)
        return ranked_answers(request.problem, points, Status.FEASIBLE)


@pytest.fixture(scope="module")
def rows() -> BatchRequest:
    rng = np.random.default_rng(5)
    problems = random_batch(rng, len(TROUBLE) + 4, 6, [3])
    return BatchRequest(problems, random_starts(rng, problems), row_time_limit=2.0)


@pytest.fixture(scope="module")
def answer(rows: BatchRequest) -> BatchResult:
    return solve_batch(Troubled(), rows, Handling(polish=False, workers=2))


@pytest.mark.gate(6)
@pytest.mark.parametrize("how", TROUBLE)
def test_a_solver_that_goes_wrong_loses_that_block_and_the_report_says_why(rows, answer, how):
    row = list(TROUBLE).index(how)
    status, detail = answer.failures[row]
    assert status is TROUBLE[how][0]
    assert re.search(TROUBLE[how][1], detail), detail
    assert torch.equal(answer.assignments[row], rows.warm_start[row])
    assert float(answer.change[row]) == 0


def test_the_blocks_after_it_are_solved(rows, answer):
    assert sorted(answer.failures) == list(range(len(TROUBLE)))
    for row in range(len(TROUBLE), rows.problems.num_rows):
        problem = rows.problems.problem(row)
        assert problem.energy(answer.assignments[row].numpy()) == pytest.approx(minimum(problem))


@dataclass(frozen=True)
class Drawing(Solver):
    """Draws by the seed."""

    capabilities: ClassVar[Capabilities] = Capabilities()

    def solve(self, request: SolveRequest, /) -> SolveResult:
        rng = np.random.default_rng(request.seed)
        drawn = [random_feasible(rng, request.problem) for _ in range(5)]
        return single_answer(request.problem, min(drawn, key=request.problem.energy), Status.FEASIBLE)


def test_the_result_does_not_depend_on_the_number_of_processes(rng):
    problems = random_batch(rng, 7, 12, [6])
    request = BatchRequest(problems, random_starts(rng, problems), seed=3)
    here, one, two = (solve_batch(Drawing(), request, Handling(False, workers=count)) for count in (0, 1, 2))
    assert (here.change < 0).any()
    for other in (one, two):
        assert torch.equal(here.assignments, other.assignments)
        assert torch.equal(here.change, other.change)
        assert here.failures == other.failures


@dataclass(frozen=True)
class Recorded(Drawing):
    """Writes down its process, then takes a moment; one of some solves kills its process, so often."""

    folder: Path
    deaths: tuple[tuple[int, int], ...] = ()

    def solve(self, request: SolveRequest, /) -> SolveResult:
        handle, _ = tempfile.mkstemp(prefix=f"{request.seed}-{os.getpid()}-", dir=self.folder)
        os.close(handle)
        for row, times in self.deaths:
            if request.seed == derive_seed(3, row) and len(list(self.folder.glob(f"{request.seed}-*"))) <= times:
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
        return super().solve(request)

    def processes(self) -> list[int]:
        """Those that it has run in, the last last."""
        files = sorted(self.folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
        return [int(file.name.split("-")[1]) for file in files]


AGAIN = "The block was solved again: its process died (Abnormal termination, exit code -9)."


@pytest.mark.gate(1)
@pytest.mark.parametrize("count", [1, 2])
def test_a_solve_whose_process_was_killed_is_begun_again_and_the_answer_is_the_same(rng, tmp_path, count):
    problems = random_batch(rng, 5, 12, [6])
    request = BatchRequest(problems, random_starts(rng, problems), seed=3)
    plain = solve_batch(Drawing(), request, Handling(False))
    solver = Recorded(tmp_path, ((1, 1), (3, 1)))
    killed = solve_batch(solver, request, Handling(False, workers=count))
    assert torch.equal(killed.assignments, plain.assignments)
    assert killed.failures == plain.failures
    assert killed.notes == {AGAIN: 2}
    assert len(solver.processes()) == 7


def test_a_solve_whose_process_dies_twice_keeps_its_start_and_the_others_do_not(rng, tmp_path):
    problems = random_batch(rng, 4, 12, [6])
    request = BatchRequest(problems, random_starts(rng, problems), seed=3)
    plain = solve_batch(Drawing(), request, Handling(False))
    answer = solve_batch(Recorded(tmp_path, ((2, 2),)), request, Handling(False, workers=2))
    expected = plain.assignments.clone()
    expected[2] = request.warm_start[2]
    assert torch.equal(answer.assignments, expected)
    assert answer.failures[2] == (Status.FAILED, "its process died (Abnormal termination, exit code -9) twice")


@pytest.mark.slow
def test_a_death_with_no_time_left_is_a_death(rng):
    request = SolveRequest(random_problem(rng, 6, 3), random_feasible(rng, random_problem(rng, 6, 3)))
    solver, clock = Workers(Sleeping(1000.0), 1), Deadline(4.0)
    wait = solver.submit(request, clock)
    (future,) = solver._here
    while not future.running():
        time.sleep(0.01)
    for process in worker_processes():
        process.kill()
    while not clock.expired:
        time.sleep(0.1)
    with pytest.raises(Crash, match=r"exit code -9.*no time to begin again"):
        wait()


def worker_processes() -> list[psutil.Process]:
    """The processes that solve for this one."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if any("popen_loky" in word for word in child.cmdline()):
                found.append(child)
    return found


@pytest.mark.slow
def test_masks_are_the_same_when_processes_are_killed_in_mid_run(tmp_path):
    def pruned(solver: Solver) -> dict[str, torch.Tensor]:
        inputs = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
        report = prune(tiny.mlp(), inputs, solver=solver, block_size=8, workers=2, polish=False)
        notes.append(Counter[str]())
        for layer in report.layers:
            notes[-1].update(layer.notes)
        return dict(report.masks)

    notes: list[Counter[str]] = []
    quick = pruned(Drawing())
    ended = threading.Event()
    solver = Recorded(tmp_path)
    killed: list[int] = []

    def kill() -> None:
        # a second between two deaths, so that no solve has both
        while not ended.wait(1.0):
            busy = [process for process in worker_processes() if process.pid in solver.processes()[-2:]]
            if busy and len(killed) < 3:
                busy[0].kill()
                killed.append(busy[0].pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        masks = pruned(solver)
    finally:
        ended.set()
        killer.join()
    assert killed
    assert masks.keys() == quick.keys()
    for name in quick:
        assert torch.equal(masks[name], quick[name])
    assert not any("warm start was kept" in note for note in (notes[1] - notes[0]))


@pytest.mark.slow
def test_processes_killed_between_solves_cost_nothing(rng):
    request = SolveRequest(random_problem(rng, 6, 3), seed=1)
    solver = Workers(Sleeping(0.0), 2)
    before = solver.submit(request)().assignment.tolist()
    for process in worker_processes():
        process.kill()
    waits = [solver.submit(request) for _ in range(3)]
    assert [wait().assignment.tolist() for wait in waits] == [before] * 3


def test_processes_that_cannot_be_had_are_a_crash(rng, monkeypatch):
    def broken(call: Any, pool: Any) -> Any:
        future: Future[bytes] = Future()
        future.set_exception(BrokenProcessPool("no more processes"))
        return future

    monkeypatch.setattr(workers, "_begin", broken)
    with pytest.raises(Crash, match=r"processes were lost \(no more processes\), again and again"):
        Workers(Sleeping(0.0), 1).submit(SolveRequest(random_problem(rng, 6, 3)))()


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_set_while_a_run_goes_on_changes_nothing(rng, monkeypatch, hours):
    problems = random_batch(rng, 5, 12, [6])
    request = BatchRequest(problems, random_starts(rng, problems), seed=3, time_limit=100.0, row_time_limit=50.0)
    plain = solve_batch(Drawing(), request, Handling(False))
    real, began = time.time, time.monotonic()

    def set_again_and_again() -> float:
        return real() + 3600 * hours * int(20 * (time.monotonic() - began))

    monkeypatch.setattr(time, "time", set_again_and_again)
    answer = solve_batch(Pausing(), request, Handling(False, workers=2))
    assert torch.equal(answer.assignments, plain.assignments)
    assert answer.failures == plain.failures
    assert not answer.notes


@dataclass(frozen=True)
class Pausing(Drawing):
    """Takes a moment."""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        time.sleep(0.3)
        return super().solve(request)


@dataclass(frozen=True)
class Deaf(Solver):
    """Hears no alarm."""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        time.sleep(1000)
        raise AssertionError


def test_a_solver_that_ignores_the_alarm_is_ended_too(rng, monkeypatch):
    monkeypatch.setattr(workers, "LOADING", 2.0)
    with pytest.raises(Overrun, match="long after its time limit"):
        Workers(Deaf(), 1).submit(SolveRequest(random_problem(rng, 6, 3), time_limit=0.1))()


@dataclass(frozen=True)
class Held(Solver):
    """Holds what cannot be sent to another process."""

    lock: Any

    def solve(self, request: SolveRequest, /) -> SolveResult:
        return single_answer(
            request.problem, random_feasible(np.random.default_rng(0), request.problem), Status.FEASIBLE
        )


def test_a_solver_that_cannot_be_sent_runs_here_and_the_result_says_so(rng):
    problem = random_problem(rng, 6, 3)
    result = solve(problem, Held(threading.Lock()), time_limit=5.0)
    assert problem.is_feasible(result.assignment)
    assert "cannot be sent to another process" in result.info["isolation"]
    with pytest.raises(TypeError, match="cannot be sent"):
        Workers(Held(threading.Lock()), 1)


def test_closures_travel(rng):
    problem = random_problem(rng, 6, 3)
    wanted = random_feasible(rng, problem)

    @dataclass(frozen=True)
    class Closed(Solver):
        def solve(self, request: SolveRequest, /) -> SolveResult:
            return single_answer(request.problem, wanted, Status.FEASIBLE, info={"pid": os.getpid()})

    result = solve(problem, Closed(), time_limit=10.0, polish=False)
    assert result.assignment.tolist() == wanted.tolist()
    assert result.info["pid"] != os.getpid()


@dataclass(frozen=True)
class Refusing(Solver):
    """Raises what it is given."""

    error: BaseException

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise self.error


def test_errors_of_a_worker_are_raised_here_with_their_traceback(rng):
    problem = random_problem(rng, 6, 3)
    with pytest.raises(InputError, match="only even blocks"):
        solve(problem, Refusing(InputError("only even blocks")), time_limit=10.0)
    with pytest.raises(SolverError, match="ValueError: too cold") as caught:
        solve(problem, Refusing(ValueError("too cold")), time_limit=10.0)
    assert "in solve" in caught.value.__cause__.__notes__[0]
    with pytest.raises(KeyboardInterrupt):
        solve(problem, Refusing(KeyboardInterrupt()), time_limit=10.0)


@dataclass(frozen=True)
class Sleeping(Solver):
    """Sleeps so many seconds, whatever its time limit, then tells that limit."""

    seconds: float

    def solve(self, request: SolveRequest, /) -> SolveResult:
        time.sleep(self.seconds)
        x = random_feasible(np.random.default_rng(0), request.problem)
        return single_answer(request.problem, x, Status.FEASIBLE, info={"limit": request.time_limit})


@dataclass(frozen=True)
class Dozing(Sleeping):
    """The same, and claims to watch the clock."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True)


@pytest.mark.slow
def test_one_that_watches_the_clock_gets_some_grace(rng):
    request = SolveRequest(random_problem(rng, 6, 3), time_limit=0.2)
    late = Workers(Dozing(0.6), 1).submit(request)
    assert late().info["limit"] == 0.2
    with pytest.raises(Overrun):
        Workers(Dozing(30.0), 1).submit(request)()
    with pytest.raises(Overrun):
        Workers(Sleeping(0.6), 1).submit(request)()


def test_the_clock_of_many_bounds_each_of_them(rng):
    request = SolveRequest(random_problem(rng, 6, 3), time_limit=100.0)
    solver = Workers(Sleeping(0.0), 1)
    assert solver.submit(request, Deadline(20.0))().info["limit"] < 20.0
    assert solver.submit(request, Deadline(None))().info["limit"] == 100.0
    with pytest.raises(NotBegun):
        solver.submit(request, Deadline(1e-9))()


def test_a_batch_ends_near_its_time_limit_whatever_the_solver_does(rng):
    problems = random_batch(rng, 6, 6, [3])
    request = BatchRequest(problems, random_starts(rng, problems), time_limit=1.0)
    began = time.perf_counter()
    answer = solve_batch(Sleeping(1000.0), request, Handling(workers=1))
    # a process that is ended takes its time to start again
    assert time.perf_counter() - began < 30
    statuses = [answer.failures[row][0] for row in range(6)]
    assert statuses == [Status.OVERRAN] + [Status.TIME_LIMIT] * 5
    counts = BlockCounts.of_batch(answer, 6)
    assert counts.cut == {ENDED: 1, LEFT_OUT: 5}
    assert counts.lost == {"gave no answer by the time limit and was ended": 1}
    assert torch.equal(answer.assignments, request.warm_start)


def test_an_interrupt_ends_what_was_begun(rng, monkeypatch):
    problems = random_batch(rng, 6, 6, [3])
    request = BatchRequest(problems, random_starts(rng, problems))
    begun: list[Any] = []
    begin = workers._begin

    def watched(*arguments: Any) -> Any:
        begun.append(begin(*arguments))
        return begun[-1]

    def interrupted(future: Any, most: float | None) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_begin", watched)
    monkeypatch.setattr(workers, "_watched", interrupted)
    with pytest.raises(KeyboardInterrupt):
        solve_batch(Sleeping(1000.0), request, Handling(workers=1))
    assert len(begun) == 2
    for future in begun:
        assert future.cancelled() or isinstance(future.exception(timeout=30), CancelledError)


@pytest.mark.slow
def test_crashes_without_a_limit_are_seen(rng):
    request = SolveRequest(
        random_problem(rng, 6, 3), random_feasible(rng, random_problem(rng, 6, 3)), derive_seed(0, 0)
    )
    with pytest.raises(Crash, match="exit code 7"):
        Workers(Troubled(("dies",)), 1).submit(request)()


@pytest.mark.slow
def test_a_slow_import_costs_no_block(rng, tmp_path: Path, monkeypatch):
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(1.5)\n")
    (tmp_path / "slow_solver.py").write_text(
        textwrap.dedent("""
        import dataclasses
        from qubo_prune import Capabilities, Solver, Status
        from qubo_prune.solver import single_answer
        @dataclasses.dataclass(frozen=True)
        class Slow(Solver):
            capabilities = Capabilities(requires=(("slow_to_import", "slow"), ("not_there_at_all", "absent")))
            def solve(self, request, /):
                import slow_to_import
                return single_answer(request.problem, request.warm_start, Status.FEASIBLE)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    problem = random_problem(rng, 6, 3)
    from slow_solver import Slow

    result = solve(problem, Slow(), time_limit=1.0, warm_start=random_feasible(rng, problem))
    assert result.status is Status.FEASIBLE


def edited(path: Path, number: int) -> None:
    """Write a solver that tells which edition of it solves; the system may not see that it changed within a tick."""
    path.write_text(
        textwrap.dedent(f"""
        import dataclasses
        from qubo_prune import Capabilities, Solver, Status
        from qubo_prune.solver import single_answer
        @dataclasses.dataclass(frozen=True)
        class Edited(Solver):
            capabilities = Capabilities()
            def solve(self, request, /):
                return single_answer(request.problem, request.warm_start, Status.FEASIBLE, info={{"edition": {number}}})
        """)
    )
    os.utime(path, ns=(number * 10**9, number * 10**9))


def test_a_solver_that_was_edited_is_not_run_in_its_old_form(rng, tmp_path, monkeypatch):
    problem = random_problem(rng, 6, 3)
    start = random_feasible(rng, problem)
    Workers(Sleeping(0.0), 1).submit(SolveRequest(problem))()  # processes that do not know the path are there
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    edited(tmp_path / "edited_solver.py", 1)
    import edited_solver

    for number in (1, 2):
        edited(tmp_path / "edited_solver.py", number)
        importlib.invalidate_caches()
        importlib.reload(edited_solver)
        result = solve(problem, edited_solver.Edited(), time_limit=5.0, warm_start=start)
        assert result.info["edition"] == number
    sys.modules.pop("edited_solver")


def test_processes_are_used_again_while_what_they_import_is_the_same(rng):
    request = SolveRequest(random_problem(rng, 6, 3))
    first, second = Workers(Sleeping(0.0), 1), Workers(Sleeping(0.0), 1)
    for runner in (first, second):
        runner.submit(request)()
    assert first._pool is second._pool


def test_a_pool_that_another_has_replaced_goes_on_for_its_user_and_ends_with_it(rng, tmp_path, monkeypatch):
    request = SolveRequest(random_problem(rng, 6, 3), seed=1)
    old = Workers(Sleeping(0.0), 1)
    before = old.submit(request)().assignment.tolist()
    monkeypatch.syspath_prepend(tmp_path)
    new = Workers(Sleeping(0.0), 1)
    assert new.submit(request)().assignment.tolist() == before
    assert old._pool is not new._pool
    assert old.submit(request)().assignment.tolist() == before
    processes = [pid for process in old._pool._all for pid in process._pool_manager.worker_manager.workers]
    assert processes
    del old
    gc.collect()
    until = time.monotonic() + 30
    while any(map(psutil.pid_exists, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(psutil.pid_exists, processes))


SCRIPT = """
from dataclasses import dataclass
import numpy as np
from qubo_prune import BlockQubo, Solver, SolveRequest, SolveResult, Status, solve
from qubo_prune.solver import single_answer

@dataclass(frozen=True)
class Mine(Solver):
    first: int = 0

    def solve(self, request: SolveRequest, /) -> SolveResult:
        x = np.zeros(request.problem.num_variables, dtype=bool)
        x[self.first] = True
        return single_answer(request.problem, x, Status.FEASIBLE)

print("begun")
result = solve(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1), Mine(first=1), time_limit=20.0, polish=False)
print(result.status.name, result.energy)
"""


@pytest.mark.slow
def test_processes_end_when_the_one_that_began_them_is_killed():
    script = """
        import os, time
        from qubo_prune.solver.workers import _process
        process = _process()
        print(process.schedule(os.getpid).result(), flush=True)
        time.sleep(600)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
    gone, _ = psutil.wait_procs([worker], timeout=60)
    assert gone == [worker]


@pytest.mark.slow
def test_a_script_needs_no_guard(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    # the worker does not run the script again
    assert done.stdout.split() == ["begun", "FEASIBLE", "3.0"]
    assert done.stderr == ""
