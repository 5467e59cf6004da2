"""Solver calls in processes of their own, which are ended when they overrun their time.

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
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import cloudpickle
from loky.backend import get_context
from pebble import ProcessExpired, ProcessPool

from qubo_prune.solver import Deadline, Solver, SolveRequest, SolveResult, shortest

#: Seconds for what comes before the solving: reading the request, importing the solver's modules.
LOADING = 60.0


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
    """Runs one solver's calls, ``count`` at a time, in the shared pool of that many processes.

    Raises:
        TypeError: the solver cannot be sent to another process.
    """

    def __init__(self, solver: Solver, count: int) -> None:
        try:
            self._solver = cloudpickle.dumps(solver)
        except Exception as error:  # whatever an object says when it cannot be copied
            raise TypeError(f"it cannot be sent to another process: {type(error).__name__}: {error}") from error
        self._anytime, self.count = solver.capabilities.anytime, count
        self._begun: set[Future[bytes]] = set()

    def submit(self, request: SolveRequest, clock: Deadline | None = None) -> Callable[[], SolveResult]:
        """Start one solve; the returned function waits for its answer.

        The solver is ended at the request's time limit, or when the ``clock`` that it shares with
        others runs out; one that watches the clock itself gets half as much again and a second. If
        its process dies, it is begun once more, which the result's ``info["workers"]`` tells.

        That function raises what the solver raised, :class:`Overrun` if it was ended at its limit,
        :class:`NotBegun` if the clock ran out before its turn, or :class:`Crash` if its process died
        twice.
        """
        call = Call(self._solver, cloudpickle.dumps(request), self._anytime, request.time_limit)
        clock = clock or Deadline(None)
        return functools.partial(self._answer, call, clock, self._begin(call, clock))

    def cancel(self) -> None:
        """End every solve that is not done."""
        for future in list(self._begun):
            future.cancel()

    def _begin(self, call: Call, clock: Deadline) -> Callable[[], bytes]:
        call = dataclasses.replace(call, left=clock.remaining)
        future = _begin(call, self.count)
        self._begun.add(future)
        future.add_done_callback(self._begun.discard)
        return functools.partial(_outcome, call, future)

    def _answer(self, call: Call, clock: Deadline, wait: Callable[[], bytes]) -> SolveResult:
        """Wait for the answer, and begin again what was lost with its process."""
        died, deaths, breaks = "", 0, 0
        while True:
            try:
                return _with_note(_unpacked(wait()), died)
            except NotBegun:
                if died:
                    raise Crash(f"its {died}, and there was no time to begin again") from None
                raise
            except (Crash, PoolBroke) as error:
                deaths, breaks = deaths + isinstance(error, Crash), breaks + isinstance(error, PoolBroke)
                died = str(error)
                if deaths == DEATHS:
                    raise Crash(f"its {died} twice") from error
                if breaks == BREAKS:
                    raise Crash(f"its {died}, again and again") from error
            wait = self._begin(call, clock)


def _with_note(result: SolveResult, died: str) -> SolveResult:
    """The result, which tells that it took a second process."""
    if not died or not isinstance(result, SolveResult):
        return result
    return dataclasses.replace(
        result, info={**dict(result.info), "workers": f"The block was solved again: its {died}."}
    )


def _patience(limit: float, anytime: bool) -> float:
    """Seconds after which a solver is ended that was given ``limit`` seconds."""
    return 1.5 * limit + 1 if anytime else limit


def _begin(call: Call, count: int) -> Future[bytes]:
    """Begin it in the pool of so many processes of this machine."""
    # this clock does not jump, and all processes of a machine read the same
    end = None if call.left is None else time.monotonic() + call.left
    try:
        future: Future[bytes] = _pool(count).schedule(_solve, args=(call, end))
    except RuntimeError as error:  # the pool broke just now
        future = Future()
        future.set_exception(BrokenProcessPool(str(error)))
    return future


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
            result = loaded.solve(asked)
        packed: bytes = cloudpickle.dumps((True, result))
    except BaseException as error:  # a worker that dies costs seconds; the parent raises this again
        packed = _packed(error)
    return packed


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
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone: a killed one cannot stop its workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


_pools: dict[int, Any] = {}
_pools_change = threading.Lock()


def _pool(count: int) -> Any:
    """The pool of so many processes, started at the first use and stopped with the interpreter."""
    with _pools_change:
        if count in _pools and not _pools[count].active:
            _stop(count)
        if count not in _pools:
            _pools[count] = ProcessPool(
                max_workers=count, context=get_context("loky"), initializer=_warm_up, initargs=[os.getpid()]
            )
        return _pools[count]


@atexit.register
def _stop_all() -> None:
    for count in list(_pools):
        _stop(count)


def _stop(count: int) -> None:
    pool = _pools.pop(count)
    pool.stop()
    pool.join()
