"""Solver calls in processes of their own, here or on a cluster, which are ended when they overrun their time.

The processes start from a clean interpreter and never run the caller's main module again, so that
scripts need no guard; what a notebook defines travels by value. The clock starts when the solver's
own modules are loaded, so that a slow import costs no block. A solve whose process dies is begun
once more, in another one: what was killed for reasons of its own must not change the result.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import importlib
import os
import pickle
import signal
import threading
import time
import traceback
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any

import cloudpickle
from loky.backend import get_context
from pebble import CONSTS, ProcessExpired, ProcessPool

from qubo_prune.clock import Deadline, shortest
from qubo_prune.solver.clusters import Cluster, ClusterLost, WorkerDied
from qubo_prune.solver.imports import Imports
from qubo_prune.solver.interface import Solver, SolveRequest, SolveResult, solved

#: Seconds for what comes before the solving: reading the request, importing the solver's modules.
LOADING = 60.0


#: From this priority on, what is left to do at the end of a process is done before it waits for its children.
_BEFORE_WAITING = 0

#: Deaths of its process after which a solve is given up, and of the whole pool around it.
DEATHS, BREAKS = 2, 3


class Overrun(Exception):
    """A solver did not stop at its time limit; its process was ended."""


class Crash(Exception):
    """A solver's process died under it."""


class PoolBroke(Exception):
    """The processes that were to run the solver are gone; whether it had begun is not known."""


class NotBegun(Exception):
    """The time was over before the solver's turn came."""


@dataclass(frozen=True)
class Call:
    """One solve as it travels to the process that does it.

    Attributes:
        solver: the solver, in bytes.
        request: the request, in bytes.
        anytime: the solver watches the clock itself.
        limit: seconds that the request gives it, or ``None``.
        left: seconds that were left of a budget which it shares with others, when it was made.
    """

    solver: bytes
    request: bytes
    anytime: bool
    limit: float | None = None
    left: float | None = None

    @property
    def most(self) -> float | None:
        """Seconds after which its process is surely ended, what comes before the solving included."""
        limit = shortest(self.limit, self.left)
        return None if limit is None else _patience(limit, self.anytime) + LOADING


class Workers:
    """Runs one solver's calls, ``count`` at a time.

    Args:
        solver: the solver.
        count: processes of this machine; each number of them is one pool, which all share as long as its processes
            would import what this one does.
        cluster: where to run them instead, as many at a time as its workers have threads. If it is lost, those
            that it has not answered run on this machine, and so does all that comes after.

    Raises:
        TypeError: the solver cannot be sent to another process.
    """

    def __init__(self, solver: Solver, count: int, cluster: Cluster | None = None) -> None:
        try:
            self._solver = cloudpickle.dumps(solver)
        except Exception as error:  # whatever an object says when it cannot be copied
            raise TypeError(f"it cannot be sent to another process: {type(error).__name__}: {error}") from error
        self._anytime, self._cluster = solver.capabilities.anytime, cluster
        away = cluster is not None and cluster.lost is None
        self._own = (os.cpu_count() or 1) if cluster is not None else count
        self.count = cluster.count if cluster is not None and away else self._own
        self._here: set[Future[bytes]] = set()
        self._there: dict[int, Any] = {}
        self._run = uuid.uuid4().hex
        self._pool: Pool | None = None

    def submit(self, request: SolveRequest, clock: Deadline | None = None) -> Callable[[], SolveResult]:
        """Start one solve; the returned function waits for its answer.

        The solver is ended at the request's time limit, or when the ``clock`` that it shares with
        others runs out; one that watches the clock itself gets half as much again and a second. If
        its process dies, it is begun once more, and if the cluster is lost, on this machine; the
        result's ``info["workers"]`` tells.

        That function raises what the solver raised, :class:`Overrun` if it was ended at its limit,
        :class:`NotBegun` if the clock ran out before its turn, or :class:`Crash` if its process died
        twice.
        """
        call = Call(self._solver, cloudpickle.dumps(request), self._anytime, request.time_limit)
        clock = clock or Deadline(None)
        return functools.partial(self._answer, call, clock, self._begin(call, clock))

    def cancel(self) -> None:
        """End every solve that is not done."""
        for future in list(self._here):
            future.cancel()
        if self._there and self._cluster is not None and self._cluster.lost is None:
            self._cluster.cancel(list(self._there.values()), end_solves, self._run)
        self._there.clear()

    def _begin(self, call: Call, clock: Deadline) -> Callable[[], bytes]:
        call = dataclasses.replace(call, left=clock.remaining)
        if self._cluster is not None and self._cluster.lost is None:
            with suppress(ClusterLost):
                ticket = self._cluster.submit(solve_there, call, self._run)
                self._there[id(ticket)] = ticket
                return functools.partial(self._outcome_there, self._cluster, ticket)
        if self._pool is None:
            self._pool = _pool(self._own, self)
        future = _begin(call, self._pool)
        self._here.add(future)
        future.add_done_callback(self._here.discard)
        return functools.partial(_outcome, call, future)

    def _outcome_there(self, cluster: Cluster, ticket: Any) -> bytes:
        try:
            outcome: bytes = cluster.result(ticket)
        except Exception as error:  # not an interrupt: then it goes on until it is cancelled
            self._there.pop(id(ticket), None)
            if isinstance(error, WorkerDied):
                raise Crash(f"process died ({error})") from error
            raise
        self._there.pop(id(ticket), None)
        return outcome

    def _answer(self, call: Call, clock: Deadline, wait: Callable[[], bytes]) -> SolveResult:
        """Wait for the answer, and begin again what was lost with its process or its cluster."""
        died, deaths, breaks = "", 0, 0
        while True:
            try:
                return self._with_note(_unpacked(wait()), died)
            except NotBegun:
                if died:
                    raise Crash(f"its {died}, and there was no time to begin again") from None
                raise
            except ClusterLost:
                pass  # the note tells
            except (Crash, PoolBroke) as error:
                deaths, breaks = deaths + isinstance(error, Crash), breaks + isinstance(error, PoolBroke)
                died = str(error)
                if deaths == DEATHS:
                    raise Crash(f"its {died} twice") from error
                if breaks == BREAKS:
                    raise Crash(f"its {died}, again and again") from error
            wait = self._begin(call, clock)

    def _with_note(self, result: SolveResult, died: str) -> SolveResult:
        """The result, which tells what happened to the processes, if anything did."""
        told = [f"The block was solved again: its {died}."] if died else []
        if self._cluster is not None and self._cluster.lost is not None:
            told.append(f"{self._cluster.name} was lost ({self._cluster.lost}); the rest was solved on this machine.")
        if not told or not isinstance(result, SolveResult):
            return result
        return dataclasses.replace(result, info={**dict(result.info), "workers": " ".join(told)})


def _patience(limit: float, anytime: bool) -> float:
    """Seconds after which a solver is ended that was given ``limit`` seconds."""
    return 1.5 * limit + 1 if anytime else limit


def _begin(call: Call, pool: Pool) -> Solve:
    """Begin it in a process of this machine."""
    # this clock does not jump, and all processes of a machine read the same
    end = None if call.left is None else time.monotonic() + call.left
    return pool.submit(call, end)


def _outcome(call: Call, future: Future[bytes]) -> bytes:
    """Wait for a solve of this machine.

    Raises:
        Overrun: it was ended at its limit.
        Crash: its process died.
        PoolBroke: all processes are gone.
    """
    try:
        return _watched(future, call.most)
    except ProcessExpired as error:
        if call.most is not None and error.exitcode == -signal.SIGALRM:
            raise Overrun("no answer at its time limit") from error
        raise Crash(f"process died ({error}, exit code {error.exitcode})") from error
    except BrokenProcessPool as error:
        raise PoolBroke(f"processes were lost ({error})") from error
    except TimeoutError as error:
        raise Overrun("no answer long after its time limit") from error
    finally:
        future.cancel()


def _watched(future: Future[bytes], most: float | None) -> bytes:
    """What a future gives; ``TimeoutError`` if it has been seen to run for longer than ``most`` seconds.

    The pool can do so itself, but by a clock that may be set while it runs.
    """
    if most is None:
        return future.result()
    clock: Deadline | None = None
    while True:
        try:
            return future.result(1.0 if clock is None else min(1.0, clock.remaining or 0.0))
        except TimeoutError:
            if future.done() or (clock is not None and clock.expired):
                raise
        if clock is None and future.running():
            clock = Deadline(most)


def _unpacked(outcome: bytes) -> SolveResult:
    """The result that a process of ours packed, or what it raised."""
    answered, content = pickle.loads(outcome)
    if not answered:
        raise content
    result: SolveResult = content
    return result


def _solve(call: Call, end: float | None) -> bytes:
    """In the worker: the bytes were made by the process that this one works for, a moment ago.

    The outcome travels as bytes of our own making: the pool cannot bear errors that do not unpickle.
    """
    try:
        loaded, asked = _load(call.solver), pickle.loads(call.request)
        limit = shortest(call.limit, None if end is None else end - time.monotonic())
        if limit is not None and limit <= 0:
            raise NotBegun
        asked = dataclasses.replace(asked, time_limit=limit)
        with _ended_after(None if limit is None else _patience(limit, call.anytime)):
            result = solved(loaded, asked)
        packed: bytes = cloudpickle.dumps((True, result))
    except BaseException as error:  # a worker that dies costs seconds; the parent raises this again
        packed = _packed(error)
    return packed


#: In a worker of a cluster: the solves of each run that it has begun, and the runs that are over.
_solves: dict[str, set[Future[bytes]]] = {}
_over: set[str] = set()


def solve_there(call: Call, run: str, slots: int) -> bytes:
    """In a worker of a cluster: the same as here, in processes of its own.

    Args:
        call: what to solve.
        run: whose solve it is, for :func:`end_solves`.
        slots: solves that this worker is given at a time, at most.

    Raises:
        Overrun, Crash, PoolBroke: as they are raised here.
    """
    future = _begin(call, _pool(slots, call))
    begun = _solves.setdefault(run, set())
    begun.add(future)
    if run in _over:
        future.cancel()
    try:
        return _outcome(call, future)
    finally:
        begun.discard(future)
        if not begun:
            _solves.pop(run, None)


def end_solves(run: str) -> None:
    """In a worker of a cluster: end what a run has begun there, or is about to."""
    _over.add(run)
    for future in list(_solves.get(run, ())):
        future.cancel()


@contextmanager
def _ended_after(seconds: float | None) -> Iterator[None]:
    """Let the system end this process after so many seconds, whatever it is doing then."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds or 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _packed(error: BaseException) -> bytes:
    """An error with its traceback as a note; one of the same name and text if it cannot be copied."""
    error.add_note("In the solver's process:\n" + "".join(traceback.format_exception(error)))
    try:
        packed: bytes = cloudpickle.dumps((False, error))
        pickle.loads(packed)
    except Exception:  # many classes of errors do not survive a copy
        stand_in = type(type(error).__name__, (RuntimeError,), {})(str(error))
        packed = cloudpickle.dumps((False, stand_in))
    return packed


@functools.lru_cache(maxsize=4)
def _load(solver: bytes) -> Solver:
    """The solver, and the modules it says that it imports."""
    loaded: Solver = pickle.loads(solver)
    for module, _ in loaded.capabilities.requires:
        with suppress(ImportError):  # the solver says so better
            importlib.import_module(module)
    return loaded


def _warm_up(parent: int) -> None:
    """What a worker does before its first call."""
    import torch

    torch.set_num_threads(1)
    # whoever may hold the locks of its pipes for longer was killed with them in its hands
    CONSTS.channel_lock_timeout = 2
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone: a killed one cannot stop its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class Solve(Future[bytes]):
    """One call in a pool; cancelling it ends its process if it has begun."""

    def __init__(self, call: Call, end: float | None, change: threading.RLock) -> None:
        super().__init__()
        self.call, self.end, self._change = call, end, change
        self.inner: Future[bytes] | None = None

    def running(self) -> bool:
        """True while a process is at it."""
        return not self.done() and self.inner is not None and self.inner.running()

    def cancel(self) -> bool:
        """End it; true unless it was done."""
        with self._change:
            if self.done():
                return False
            return super().cancel() if self.inner is None else self.inner.cancel()

    def settle(self, inner: Future[bytes]) -> None:
        """Take over what became of it."""
        if inner.cancelled():
            self.set_exception(CancelledError())
        elif inner.exception() is not None:
            self.set_exception(inner.exception())
        else:
            self.set_result(inner.result())


class Pool:
    """So many processes of this machine, one call at a time each.

    Each has pipes and locks of its own, so that one which is killed while it holds them takes nothing with it that the
    others need.
    """

    def __init__(self, count: int) -> None:
        self._change = threading.RLock()
        self._idle = [_process() for _ in range(count)]
        self._all = list(self._idle)
        self._waiting: deque[Solve] = deque()
        self._users, self._replaced_by_another = 0, False

    def hold(self, user: object) -> None:
        """Go on for as long as there is this object, although another pool may take this one's place."""
        self._users += 1
        weakref.finalize(user, self._let_go).atexit = False

    def _let_go(self) -> None:
        self._users -= 1
        self._stop_unused()

    def retire(self) -> None:
        """Stop when the last user is gone."""
        self._replaced_by_another = True
        self._stop_unused()

    def _stop_unused(self) -> None:
        if self._replaced_by_another and not self._users:
            _running.discard(self)
            _stop_apart(self._all)

    def submit(self, call: Call, end: float | None) -> Solve:
        """Begin a call, or have it wait for its turn."""
        solve = Solve(call, end, self._change)
        self._waiting.append(solve)
        self._go_on()
        return solve

    def _go_on(self) -> None:
        """Give calls to processes as long as there are some of both."""
        with self._change:
            while self._idle and self._waiting:
                solve = self._waiting.popleft()
                if solve.set_running_or_notify_cancel():
                    self._start(self._idle.pop(), solve)

    def _start(self, process: ProcessPool, solve: Solve) -> None:
        if not process.active:  # it was killed while it had nothing to do
            process = self._replaced(process)
        inner: Future[bytes]
        try:
            inner = process.schedule(_solve, args=(solve.call, solve.end))
        except RuntimeError as error:  # it was killed just now
            inner = Future()
            inner.set_exception(BrokenProcessPool(str(error)))
        solve.inner = inner
        inner.add_done_callback(functools.partial(self._ended, process, solve))

    def _ended(self, process: ProcessPool, solve: Solve, inner: Future[bytes]) -> None:
        with self._change:
            self._idle.append(process)
        solve.settle(inner)
        self._go_on()

    def _replaced(self, process: ProcessPool) -> ProcessPool:
        new = _process()
        self._all[self._all.index(process)] = new
        # apart, since this may be called from a thread of the process's own, which is waited for
        _stop_apart([process])
        return new

    def stop(self) -> None:
        """End all processes."""
        with self._change:
            self._idle.clear()
        for process in self._all:
            _stop(process)


def _process() -> ProcessPool:
    return ProcessPool(max_workers=1, context=get_context("loky"), initializer=_warm_up, initargs=[os.getpid()])


def _stop(process: ProcessPool) -> None:
    process.stop()  # type: ignore[no-untyped-call]
    process.join()


def _stop_apart(processes: list[ProcessPool]) -> None:
    """End processes while others go on."""
    for process in processes:
        threading.Thread(target=_stop, args=(process,), daemon=True).start()


#: The pool of so many processes that is used now, and what they import.
_pools: dict[int, tuple[Imports, Pool]] = {}
#: Pools that are still running, those included that only a solver of before uses.
_running: weakref.WeakSet[Pool] = weakref.WeakSet()
_pools_change = threading.Lock()


def _pool(count: int, user: object) -> Pool:
    """A pool of so many processes for a user, started if there is none that imports what this process does."""
    imports = Imports()
    with _pools_change:
        same, pool = _pools.get(count, (None, None))
        if pool is not None and same == imports:
            pool.hold(user)
            return pool
        if pool is not None:
            pool.retire()
        pool = Pool(count)
        pool.hold(user)
        _pools[count] = (imports, pool)
        _running.add(pool)
        # a process that is itself a worker (of joblib, say) runs no functions of atexit when it ends, and would
        # wait for its own processes, which wait for calls
        Finalize(None, _stop_all, exitpriority=_BEFORE_WAITING)
        return pool


@atexit.register
def _stop_all() -> None:
    _pools.clear()
    for pool in list(_running):
        _running.discard(pool)
        pool.stop()
