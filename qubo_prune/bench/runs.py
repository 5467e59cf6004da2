"""Solvers on a suite: a table on disk with one row for each solver, instance, seed and time limit.

The table is only ever appended to, a row at a time and whole, so that a run which is killed goes on where it was:
what stands in the table is not solved again. Rows carry all that they mean (the problem's checksum, the solver's
settings, the machine), so tables of several runs and machines can be put together.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from qubo_prune.arguments import text_as_seconds
from qubo_prune.bench.solvers import Entrant
from qubo_prune.bench.suite import MANIFEST, Instance, Suite
from qubo_prune.errors import InputError, QuboPruneError, SolverError, near_entry
from qubo_prune.files.atomic import atomic_write
from qubo_prune.files.outputs import check_added, list_files
from qubo_prune.files.parsing import is_plain, limited_text, one_line, short, strict_json
from qubo_prune.precision import pinned
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.progress import Progress
from qubo_prune.ranks import check_alone
from qubo_prune.report.report import machine, versions
from qubo_prune.solver.clusters import joblib_backend
from qubo_prune.solver.dispatch import solve
from qubo_prune.solver.interface import Solver, SolveResult, Status, derive_seed

TABLE = "rows.csv"
INFO = "run.json"
#: What a run writes, and the file by whose format its folder is known.
FILES, SIGN = (TABLE, INFO, MANIFEST), (INFO, "qubo_prune.run")
#: joblib's back-ends of this machine.
LOCAL = ("loky", "threading", "sequential")
#: Larger files of these names are refused.
MAX_TABLE_BYTES, MAX_INFO_BYTES = 2**30, 2**26
#: Characters of a note, and of any text of a row.
MAX_NOTE, MAX_TEXT = 10_000, 100_000
_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)
#: Everywhere beside the solvers: a descent by single swaps from Wanda's choice, and from a random one.
BASELINES = ("wanda+swaps", "random+swaps")


def latest(limit: float) -> float:
    """Seconds up to which a solve counts as within its limit: a process or a step of a solver may take longer."""
    return 2 * limit + 0.1


#: What a result told of quantum hardware, in the note of its row.
_QPU_SECONDS = re.compile(r"(?:^|; )qpu_seconds: (\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?=;|$)")


@dataclass(frozen=True)
class Row:
    """One solve.

    Attributes:
        instance: name of the problem.
        sha256: of its file.
        solver: label, with the settings that were given.
        settings: all of the solver's, as JSON.
        seed: of the run; the solve's own follows from it and the instance.
        time_limit: wall-clock seconds that the solver was given.
        energy: verified, after repair and polish, and never above the start's.
        raw: best energy as the solver gave it; empty if no answer of its own met the count.
        repaired: best energy after repair.
        feasible: share of its answers that met the count as given.
        start: energy of the start.
        lower_bound: that the solver proved; empty if none.
        optimal: the solver proved its answer optimal.
        ended: it ended by itself, well before the limit: more time would change nothing.
        status: how it ended.
        seconds: wall-clock, the framework's checks included.
        cpu_seconds: of processors, the solver's own processes included.
        began: date and time, UTC.
        machine: processor, memory, system; with how many solves at once.
        version: of the framework.
        note: what went otherwise than asked.
        answer: the assignment of that energy, as :func:`digits_of` has it.
    """

    instance: str
    sha256: str
    solver: str
    settings: str
    seed: int
    time_limit: float
    energy: float
    raw: float | None
    repaired: float
    feasible: float
    start: float
    lower_bound: float | None
    optimal: bool
    ended: bool
    status: str
    seconds: float
    cpu_seconds: float
    began: str
    machine: str
    version: str
    note: str
    answer: str = ""

    @property
    def key(self) -> tuple[str, str, str, int, float]:
        """What no other row has: problem, solver with settings, seed and limit."""
        return (self.sha256, self.solver, self.settings, self.seed, self.time_limit)

    @property
    def qpu_seconds(self) -> float | None:
        """For how long quantum hardware was used, if the note tells; tables of before had no column for it."""
        found = _QPU_SECONDS.search(self.note)
        return None if found is None else float(found[1])


def digits_of(x: NDArray[np.bool_]) -> str:
    """An assignment as hexadecimal digits: eight variables to a byte, the first one its highest bit."""
    return np.packbits(x).tobytes().hex()


def assignment_of(digits: str, n: int) -> NDArray[np.bool_]:
    """The assignment ``(n,)`` that :func:`digits_of` made digits of.

    Raises:
        InputError: they are not those of n variables.
    """
    try:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8))
    except ValueError:
        bits = np.zeros(0, dtype=np.uint8)
    if len(bits) != -(-n // 8) * 8 or bits[n:].any():
        raise InputError(f"The answer {short(digits)} of a row is not one of {n} variables; run bench solvers again.")
    return bits[:n].astype(bool)


class RunTable:
    """The rows on disk.

    Args:
        folder: of the run; made if need be.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / TABLE

    def rows(self) -> list[Row]:
        """All complete ones; a line that a kill cut short is none.

        Raises:
            InputError: the file is no such table.
        """
        try:
            text = limited_text(self.path, MAX_TABLE_BYTES)
        except FileNotFoundError:
            text = ""
        except InputError as error:
            raise InputError(f"{self.path} is no table of a run: {error}") from None
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole), strict=True)
        names = [field.name for field in fields(Row)]
        try:
            # tables of before hold no answers, which stand last
            if whole and reader.fieldnames not in (names, names[:-1]):
                raise InputError(f"{self.path} is no table of a run: its first line does not name {', '.join(names)}.")
            blank = {} if reader.fieldnames == names else {names[-1]: ""}
            return [_row(line | blank) for line in reader]
        except InputError:
            raise
        except (TypeError, ValueError, csv.Error) as error:
            raise InputError(f"{self.path} is no table of a run: line {reader.line_num} is no row ({error}).") from None

    def open(self) -> None:
        """Make the folder and the header; cut off what a kill left of a line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_symlink():
            raise InputError(f"{self.path} is a link, and rows are written into the run's folder only; remove it.")
        header = ",".join(field.name for field in fields(Row))
        if not self.path.is_file() or not self.path.stat().st_size:
            self._write(f"{header}\n")
            return
        content = self.path.read_bytes()
        first, end, _ = content.partition(b"\n")
        if end and first != header.encode():
            raise InputError(f"{self.path} has other columns than rows have now; give the run a folder of its own.")
        if not content.endswith(b"\n"):
            with self.path.open("r+b") as stream:
                stream.truncate(content.rfind(b"\n") + 1)

    def append(self, row: Row) -> None:
        """One row, whole and on the disk before this returns."""
        # notes come from untrusted solvers; of several lines, a row that a kill cut short could look whole
        values = asdict(row) | {"note": one_line(row.note, MAX_NOTE)}
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([_text(value) for value in values.values()])
        self._write(line.getvalue())

    def _write(self, text: str) -> None:
        # one call, so that neither a kill nor another process can come between
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            content = text.encode(errors="backslashreplace")
            size = os.fstat(file).st_size
            if os.write(file, content) < len(content):  # as much as the disk had room for
                os.truncate(file, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(file)
        finally:
            os.close(file)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _row(line: Mapping[str, str]) -> Row:
    values: dict[str, Any] = dict(line)
    if None in values or None in values.values():
        raise ValueError("it has too few or too many cells")
    for field in fields(Row):
        text, kind = line[field.name], str(field.type)
        if kind == "bool":
            values[field.name] = {"True": True, "False": False}.get(text)
        elif kind == "int":
            values[field.name] = int(text) if _WHOLE.fullmatch(text) else None
        elif kind.startswith("float"):
            values[field.name] = float(text) if text or kind == "float" else None
        elif not is_plain(text, MAX_TEXT):
            raise ValueError(f"{field.name} is {short(text)}, which has control characters or is too long")
        if kind in ("bool", "int") and values[field.name] is None:
            raise ValueError(f"{field.name} is {short(text)}")
        if (kind == "float" and not math.isfinite(values[field.name])) or values[field.name] != values[field.name]:
            raise ValueError(f"{field.name} is {short(text)}, which is no finite number")
    return Row(**values)


def read_calls(folder: Path) -> list[dict[str, Any]]:
    """What was asked of the run in a folder, one entry for each call that added rows.

    Raises:
        InputError: there is no run, or what it says of itself cannot be understood.
    """
    file = folder / INFO
    try:
        data = strict_json(limited_text(file, MAX_INFO_BYTES))
        if not isinstance(data, dict) or not isinstance(data.get("calls"), list):
            raise InputError("an object with the list 'calls' is needed.")
        for call in data["calls"]:
            _check_call(call)
    except FileNotFoundError:
        raise InputError(
            f"There is no run in {folder}{near_entry(folder)}: {INFO} is missing; give the output of bench solvers."
        ) from None
    except InputError as error:
        raise InputError(f"{file} cannot be understood: {error} Run bench solvers into another folder.") from None
    calls: list[dict[str, Any]] = data["calls"]
    return calls


def _check_call(call: Any) -> None:
    """Raise :class:`InputError` if an entry of a run is not what :func:`run_suite` writes."""
    if not isinstance(call, dict):
        raise InputError(f"a call is {short(call)}; an object is needed.")
    for name, fits in _CALL.items():
        if name not in call or not fits(call[name]):
            raise InputError(f"{name!r} of a call is {short(call.get(name))}, which is not what a run writes.")


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_plain, value))


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 2**53


def _limits(value: Any) -> bool:
    return isinstance(value, list) and all(type(limit) in (int, float) and 0 < limit < 1e12 for limit in value)


#: The entries of a call, and what each may be.
_CALL: Mapping[str, Callable[[Any], bool]] = {
    "began": is_plain,
    "suite": is_plain,
    "digest": is_plain,
    "backend": is_plain,
    "suite_version": _whole,
    "seeds": _whole,
    "workers": _whole,
    "solvers": _texts,
    "instances": _texts,
    "time_limits": _limits,
    "max_variables": lambda value: isinstance(value, dict) and all(n is None or _whole(n) for n in value.values()),
    "stochastic": lambda value: isinstance(value, dict) and all(type(yes) is bool for yes in value.values()),
    "machine": lambda value: isinstance(value, dict),
    "versions": lambda value: isinstance(value, dict) and all(map(is_plain, value.values())),
}


@dataclass(frozen=True)
class Task:
    """One solve to be done: what goes to a worker; ``shortest`` is the run's shortest limit."""

    instance: Instance
    problem: BlockQubo
    entrant: Entrant
    seed: int
    time_limit: float
    shortest: float | None = None

    @property
    def warm_up(self) -> float:
        """Seconds that the entrant may warm up for: one that fills whatever time it is given does so here as well."""
        return self.time_limit if self.shortest is None else self.shortest


def entrants_with_baselines(entrants: Sequence[Entrant]) -> list[Entrant]:
    """The baselines first; entrants of their labels are theirs."""
    base = [Entrant(label, "greedy", {}) for label in BASELINES]
    return base + [entrant for entrant in entrants if entrant.label not in BASELINES]


@pinned()
def run_suite(
    suite: Suite,
    entrants: Sequence[Entrant],
    output: str | Path,
    *,
    instances: Sequence[Instance] | None = None,
    time_limits: Sequence[float | str] = (0.03, 0.1, 0.3, 1.0),
    seeds: int = 3,
    workers: int | None = None,
    backend: str = "loky",
    progress: Progress | None = None,
) -> RunTable:
    """Every entrant on every instance, from short limits to long ones; goes on where an earlier call was stopped.

    Entrants take turns on an instance before the next one comes. A solver that ended by itself within a limit is not
    asked again with a longer one, nor one that with a shorter limit took longer than that. One that needs no seed is
    asked once.

    Args:
        suite: the problems.
        entrants: solvers with settings; the baselines are added.
        output: folder of the run.
        instances: which of the suite; all if left out.
        time_limits: of a solve, in wall-clock seconds or as ``"100ms"``, each a column of the anytime curves.
        seeds: how many.
        workers: solves at a time; one per core if left out.
        backend: of joblib: ``loky``, ``threading``, ``dask``, ``dask:ADDRESS``, ``ray`` or ``ray:ADDRESS``.
        progress: where to report to.

    Raises:
        InputError: bad arguments, an unknown solver or setting, or a folder that holds something else.
    """
    check_alone("run the same suite")
    limits = checked_limits(time_limits, seeds, workers)
    everyone, chosen = entrants_with_baselines(entrants), instances or suite.instances
    solvers = {entrant.label: entrant.make() for entrant in everyone}
    count = workers or os.cpu_count() or 1
    table = RunTable(check_added(output, FILES, SIGN))
    rows = {row.key: row for row in table.rows()}
    known = _with_earlier(table.folder, suite)
    total = len(limits) * sum(len(_seeds(solvers[e.label], e.label, seeds)) for e in everyone) * len(chosen)
    with (
        _deaths_told(solvers),
        joblib_backend(backend, count, LOCAL),
        (progress or Progress()).task("solving", total) as advance,
    ):
        table.folder.mkdir(parents=True, exist_ok=True)
        list_files(table.folder, FILES)
        table.open()
        _describe(table.folder, suite, known, solvers, chosen, limits, seeds, count, backend)
        for limit in limits:
            tasks = _Tasks(suite, chosen, everyone, solvers, seeds, limit, limits[0], rows)
            for row in _done(tasks, count):
                if row.key not in rows:
                    table.append(row)
                    rows[row.key] = row
                advance(1, f"{row.instance} {row.solver}")
            advance(tasks.skipped, "")
    return table


@contextmanager
def _deaths_told(solvers: Mapping[str, Solver]) -> Iterator[None]:
    """One sentence where a process that solves dies: by a solver that runs within it, or for want of memory."""
    try:
        yield
    except BrokenProcessPool as error:
        within = ", ".join(label for label, solver in solvers.items() if solver.capabilities.anytime)
        raise SolverError(
            f"A process that solves died. Solvers that watch the clock themselves run within it, here {within}: leave "
            "out those that crash, or do not declare them 'anytime' (a function: do not name time_limit), so that they "
            "get processes of their own; if memory ran out, give fewer workers. The same command goes on with the rest."
        ) from error


def checked_limits(time_limits: Sequence[float | str], seeds: int, workers: int | None) -> list[float]:
    """The limits in seconds, ascending, each once; :class:`InputError` if one of the arguments cannot be."""
    if isinstance(time_limits, str):
        raise InputError(f"The time limits are {time_limits!r}; give a list, such as ['100ms', '1s'] or [0.1, 1.0].")
    seconds = {float(text_as_seconds(limit) or 0.0) for limit in time_limits}
    limits = sorted(seconds)
    if not limits or not all(0 < limit < np.inf for limit in limits):
        raise InputError(f"The time limits are {list(time_limits)}; give positive numbers of seconds.")
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; give a whole number from 1 on.")
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; give a whole number from 1 on.")
    return limits


def _with_earlier(folder: Path, suite: Suite) -> Suite:
    """The suite with the other parts of it that a run is of already.

    Raises:
        InputError: the run is of another suite: rows name instances, so a folder holds those of one only.
    """
    return suite.joined(Suite.read(folder)) if (folder / MANIFEST).is_file() else suite


def _seeds(solver: Solver, label: str, seeds: int) -> range:
    """One for solvers that use none; a random start is random whatever the solver."""
    return range(seeds if solver.capabilities.stochastic or label == "random+swaps" else 1)


class _Tasks:
    """The solves of one limit that are still to be done."""

    def __init__(
        self,
        suite: Suite,
        instances: Sequence[Instance],
        entrants: Sequence[Entrant],
        solvers: Mapping[str, Solver],
        seeds: int,
        limit: float,
        shortest: float,
        rows: Mapping[Any, Row],
    ) -> None:
        self._suite, self._limit, self._shortest, self.skipped = suite, limit, shortest, 0
        self._done: dict[Any, list[Row]] = {}
        for row in rows.values():
            self._done.setdefault(row.key[:-1], []).append(row)
        self._open: dict[str, list[tuple[Instance, Entrant, int]]] = {}
        settings = {label: _settings(solver) for label, solver in solvers.items()}
        for instance in instances:
            for seed in range(seeds):
                for entrant in entrants:
                    solver = solvers[entrant.label]
                    if seed not in _seeds(solver, entrant.label, seeds):
                        continue
                    most = solver.capabilities.max_variables
                    too_large = most is not None and instance.num_variables > most
                    key = (instance.sha256, entrant.label, settings[entrant.label], seed)
                    if too_large or self._known(key):
                        self.skipped += 1
                    else:
                        self._open.setdefault(instance.name, []).append((instance, entrant, seed))

    def _known(self, key: tuple[str, str, str, int]) -> bool:
        """The row stands in the table, or one with a shorter limit that needed no more, or far too much."""
        return any(
            row.time_limit == self._limit
            or (row.time_limit < self._limit and (row.ended or row.seconds > latest(self._limit)))
            for row in self._done.get(key, ())
        )

    def __iter__(self) -> Iterator[Task]:
        for tasks in self._open.values():
            problem = self._suite.problem(tasks[0][0])
            for instance, entrant, seed in tasks:
                yield Task(instance, problem, entrant, seed, self._limit, self._shortest)


def _done(tasks: Iterable[Task], workers: int) -> Iterator[Row]:
    """The rows of the tasks, as they come."""
    # joblib ends a process that has grown, as large problems make it, and begins another one: nothing is lost
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
    parallel = joblib.Parallel(n_jobs=workers, batch_size=1, max_nbytes=None, return_as="list")
    if parallel._backend.supports_return_generator:
        parallel = joblib.Parallel(n_jobs=workers, batch_size=1, max_nbytes=None, return_as="generator_unordered")
        yield from parallel(joblib.delayed(solve_task)(task) for task in tasks)
        return
    # such back-ends give answers only when all are there: so a few at a time
    waiting: list[Task] = []
    for task in tasks:
        waiting.append(task)
        if len(waiting) == 8 * workers:
            yield from parallel(joblib.delayed(solve_task)(task) for task in waiting)
            waiting = []
    yield from parallel(joblib.delayed(solve_task)(task) for task in waiting)


def _settings(solver: Solver) -> str:
    """All of them, defaults included, as JSON."""
    values = asdict(solver) if is_dataclass(solver) else vars(solver)
    return json.dumps(values, sort_keys=True, default=str)


#: Solvers that have solved a small problem in this process, so that they are imported and compiled.
_ready: set[str] = set()


#: Seconds that a solver which watches no clock may warm up for at least: a process that is ended in the midst of its
#: imports would begin with them again at every solve.
_FIRST = 5.0


def _made_ready(entrant: Entrant, limit: float) -> Solver:
    solver = entrant.make()
    if entrant.label not in _ready:
        most = limit if solver.capabilities.anytime else max(limit, _FIRST)
        with suppress(QuboPruneError):  # a solver that refuses everything says so of each instance
            solve(BlockQubo(np.eye(4) + 0.1, 2), solver, time_limit=most, warm_start=[1, 1, 0, 0])
        _ready.add(entrant.label)
    return solver


@pinned()
def solve_task(task: Task) -> Row:
    """Solve it on one thread, here, and say what came out."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        solver = _made_ready(task.entrant, task.warm_up)
        seed = derive_seed(task.seed, *task.instance.name.encode())
        start = _start(task, seed)
        asked, below = _asked(task, solver), _seconds_below()
        processor, clock = time.process_time(), time.perf_counter()
        try:
            result = solve(task.problem, solver, seed, task.time_limit, start)
        except QuboPruneError as error:
            return _failed(asked, task, start, time.perf_counter() - clock, str(error))
        seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - processor
        cpu_seconds += max(0.0, _seconds_below() - below)
        ledger = result.ledger
        stopped = result.status in (Status.TIME_LIMIT, Status.OVERRAN)
        return Row(
            **asked,
            energy=result.energy,
            raw=None if ledger is None else ledger.raw,
            repaired=result.energy if ledger is None else ledger.repaired,
            feasible=0.0 if ledger is None else ledger.feasible,
            start=_energy(task.problem, start),
            lower_bound=result.lower_bound,
            optimal=result.status is Status.OPTIMAL,
            ended=not stopped and seconds < task.time_limit / 2,
            status=result.status.name,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            note=_note(result),
            answer=digits_of(result.assignment),
        )


def _note(result: SolveResult) -> str:
    """What the solver told; hardware first, since notes are cut."""
    first = {} if result.qpu_seconds is None else {"qpu_seconds": result.qpu_seconds}
    return "; ".join(f"{name}: {value}" for name, value in (first | dict(result.info)).items())


def _failed(asked: dict[str, Any], task: Task, start: NDArray[np.bool_], seconds: float, note: str) -> Row:
    energy = _energy(task.problem, start)
    return Row(
        **asked,
        energy=energy,
        raw=None,
        repaired=energy,
        feasible=0.0,
        start=energy,
        lower_bound=None,
        optimal=False,
        ended=True,
        status="FAILED",
        seconds=seconds,
        cpu_seconds=0.0,
        note=note,
        answer=digits_of(start),
    )


def _energy(problem: BlockQubo, x: NDArray[np.bool_]) -> float:
    return float(np.float64(problem.energy(x)))


def _asked(task: Task, solver: Solver) -> dict[str, Any]:
    """What a row says of its solve before it begins, which is now."""
    return {
        "instance": task.instance.name,
        "sha256": task.instance.sha256,
        "solver": task.entrant.label,
        "settings": _settings(solver),
        "seed": task.seed,
        "time_limit": task.time_limit,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "version": versions()["qubo-prune"],
    }


@lru_cache(maxsize=1)
def _machine() -> str:
    known = machine()
    memory = psutil.virtual_memory().total / 2**30
    return f"{known.get('processor', '')}, {os.cpu_count()} cores, {memory:.0f} GiB, {known.get('system', '')}"


def _start(task: Task, seed: int) -> NDArray[np.bool_]:
    """Wanda's choice, or a random one."""
    if task.entrant.label != "random+swaps":
        return task.instance.assignment(task.instance.start)
    n = task.instance.num_variables
    chosen = np.random.default_rng(seed).permutation(n)[: task.instance.num_pruned]
    return task.instance.assignment(chosen.tolist())


def _seconds_below() -> float:
    """Of processors, to a hundredth of a second: those of all processes that live below this one."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:  # it ended in between
            continue
        total += times.user + times.system
    return total


def _describe(
    folder: Path,
    suite: Suite,
    known: Suite,
    solvers: Mapping[str, Solver],
    instances: Sequence[Instance],
    limits: Sequence[float],
    seeds: int,
    workers: int,
    backend: str,
) -> None:
    """What the report needs beside the rows: the instances that are known, and every call that added rows."""
    file = folder / INFO
    calls = read_calls(folder) if file.exists() else []
    calls.append(
        {
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "suite": suite.name,
            "suite_version": suite.version,
            "digest": suite.digest,
            "solvers": list(solvers),
            "max_variables": {label: solver.capabilities.max_variables for label, solver in solvers.items()},
            "stochastic": {label: solver.capabilities.stochastic for label, solver in solvers.items()},
            "instances": [i.name for i in instances],
            "time_limits": list(limits),
            "seeds": seeds,
            "workers": workers,
            "backend": backend,
            "machine": machine(),
            "versions": versions(),
        }
    )
    atomic_write(file, json.dumps({"format": "qubo_prune.run", "calls": calls}, indent=1) + "\n")
    # the manifest as it was, so that the run can be read without the suite
    atomic_write(folder / MANIFEST, known.manifest())
