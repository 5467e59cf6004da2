"""Solves on a Dask cluster of separate processes on loopback: prints what came out as JSON.

    python on_dask.py FOLDER

A script of its own, since distributed changes how entry points are read in its process.
"""

from __future__ import annotations

import _thread
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tiny
import torch
from reference import random_batch, random_feasible, random_starts

from qubo_prune.cli import main as command
from qubo_prune.errors import InputError
from qubo_prune.run.prune import prune
from qubo_prune.solver import BatchRequest, Solver, SolveRequest, SolveResult, Status, clusters, single_answer
from qubo_prune.solver.dispatch import Handling, solve_batch


@dataclass(frozen=True)
class Drawing(Solver):
    """Draws by the seed, after a moment; writes down the worker that its process belongs to."""

    folder: Path
    seconds: float = 0.1
    end: str = ""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        (self.folder / f"{os.getppid()}-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.seconds)
        if self.end:
            os.kill(os.getpid(), 9)
        rng = np.random.default_rng(request.seed)
        drawn = [random_feasible(rng, request.problem) for _ in range(5)]
        return single_answer(request.problem, min(drawn, key=request.problem.energy), Status.FEASIBLE)


class Dask:
    """A scheduler and workers of one thread each."""

    def __init__(self, folder: Path, workers: int) -> None:
        file = folder / "scheduler.json"
        where = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)]
        # what the solvers are made of lies beside this file
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
        self._log = (folder / "dask.log").open("w")
        self.scheduler = self._start("scheduler", "--port", "0", *where)
        while not file.is_file():
            time.sleep(0.1)
        self.workers = [self._start("worker", "--nthreads", "1", *where) for _ in range(workers)]
        self.name = "dask:" + json.loads(file.read_text())["address"]
        cluster = clusters.connect(self.name)
        while cluster.count < workers:
            time.sleep(0.1)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments], env=self._environment, stdout=self._log, stderr=self._log
        )

    def kill_a_worker(self) -> None:
        """The process that its nanny watches over, which starts another."""
        for process in psutil.Process(self.workers[0].pid).children():
            if any("spawn_main" in word for word in process.cmdline()):
                process.kill()

    def end(self) -> None:
        """All of it."""
        started = [self.scheduler, *self.workers]
        below = [child for p in self.workers if p.poll() is None for child in psutil.Process(p.pid).children(True)]
        for process in [*started, *below]:
            with suppress(psutil.Error):
                process.kill()
        for process in started:
            process.wait()


def pruned(solver: Drawing, workers: int | str) -> tuple[dict[str, torch.Tensor], Counter[str]]:
    """Masks and notes."""
    inputs = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    report = prune(tiny.mlp(), inputs, solver=solver, block_size=8, workers=workers, polish=False)
    notes = Counter[str]()
    for layer in report.layers:
        notes.update(layer.notes)
    return dict(report.masks), notes


class Trial:
    """Runs of one solver, next to the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self.first: dict[str, torch.Tensor] | None = None

    def solver(self, **settings: Any) -> Drawing:
        """One with a folder of its own."""
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        return Drawing(folder, **settings)

    def run(self, workers: int | str, meanwhile: Callable[[], None] | None = None) -> dict[str, Any]:
        """Prune; ``meanwhile`` is called once some blocks have been begun."""
        solver, before = self.solver(), 0

        def disturb() -> None:
            nonlocal before
            while len(list(solver.folder.iterdir())) < 8:
                time.sleep(0.01)
            before = len(list(solver.folder.iterdir()))
            assert meanwhile is not None
            meanwhile()

        other = threading.Thread(target=disturb) if meanwhile else None
        if other:
            other.start()
        masks, notes = pruned(solver, workers)
        if other:
            other.join()
        self.first = self.first or masks
        names = [file.name.split("-") for file in solver.folder.iterdir()]
        return {
            "same": all(torch.equal(self.first[name], masks[name]) for name in self.first),
            "notes": dict(notes),
            "solves": len(names),
            "before": before,
            "solvers": len({name[0] for name in names}),
        }


def failures(solver: Solver, name: str, request: BatchRequest) -> dict[str, Any]:
    """What became of a batch of a solver that goes wrong."""
    answer = solve_batch(solver, request, Handling(False, workers=2, cluster=clusters.connect(name)))
    found = answer.failures.values()
    return {
        "statuses": sorted({status.name for status, _ in found}),
        "count": len(found),
        "details": sorted({detail for _, detail in found}),
    }


def interrupted(solver: Drawing, name: str, request: BatchRequest) -> dict[str, int]:
    """How many solves an interrupt finds, and how many of their processes are left soon after."""

    def interrupt() -> None:
        until = time.monotonic() + 60
        while len(list(solver.folder.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    with suppress(KeyboardInterrupt):
        solve_batch(solver, request, Handling(False, workers=2, cluster=clusters.connect(name)))
    begun = {int(file.name.split("-")[1]) for file in solver.folder.iterdir()}
    _, left = psutil.wait_procs([psutil.Process(pid) for pid in begun if psutil.pid_exists(pid)], timeout=20)
    return {"begun": len(begun), "left": len(left)}


def unreachable(name: str) -> dict[str, Any]:
    """What a run says of a cluster that is not there."""
    began, message, code = time.monotonic(), "", None
    try:
        prune(tiny.mlp(), torch.zeros(4, 12), solver="neal", workers=name)
    except InputError as error:
        message = str(error)
    seconds = time.monotonic() - began
    sys.argv = ["qubo-prune", "prune", "nowhere", "--output", "never", "--solver", "neal", "--workers", name]
    try:
        command()
    except SystemExit as left:
        code = left.code
    return {"message": message, "seconds": seconds, "exit code": code}


def main() -> None:
    """All trials."""
    folder = Path(sys.argv[1])
    rng = np.random.default_rng(0)
    problems = random_batch(rng, 4, 12, [6])
    rows = BatchRequest(problems, random_starts(rng, problems), seed=3)
    clusters.REACHING = 5.0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    # what hangs says where
    faulthandler.dump_traceback_later(300, exit=True)
    trial, dask, found = Trial(folder), Dask(folder, 2), {}
    try:
        found["local"] = trial.run(2)
        found["cluster"] = trial.run(dask.name)
        found["within"] = trial.run("dask")
        found["killed"] = trial.run(dask.name, dask.kill_a_worker)
        limited = replace(rows, row_time_limit=0.5)
        found["hangs"] = failures(trial.solver(seconds=1000.0), dask.name, limited)
        found["dies"] = failures(trial.solver(end="dies"), dask.name, rows)
        found["interrupted"] = interrupted(trial.solver(seconds=1000.0), dask.name, rows)
        found["lost"] = trial.run(dask.name, dask.end)
        found["unreachable"] = unreachable(dask.name)
    finally:
        dask.end()
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
