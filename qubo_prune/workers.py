"""Solver calls in processes of their own, which are ended when they overrun their time.

The processes start from a clean interpreter and never run the caller's main module again, so that
scripts need no guard; what a notebook defines travels by value. The clock starts when the solver's
own modules are loaded, so that a slow import costs no block.
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
from contextlib import contextmanager, suppress
from typing import Any

import cloudpickle
from loky.backend import get_context
from pebble import ProcessExpired, ProcessPool

from qubo_prune.solver import Deadline, Solver, SolveRequest, SolveResult, shortest

#: Seconds for what comes before the solving: reading the request, importing the solver's modules.
LOADING = 60.0


class Overrun(Exception):
    """A solver did not stop at its time limit; its process was ended."""


class Crash(Exception):
    """A solver's process died under it."""


class NotBegun(Exception):
    """The time was over before the solver's turn came."""


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
        others runs out; one that watches the clock itself gets half as much again and a second.

        That function raises what the solver raised, :class:`Overrun` if it was ended at its limit,
        :class:`NotBegun` if the clock ran out before its turn, or :class:`Crash` if its process died.
        """
        left = None if clock is None else clock.remaining
        end = None if left is None else time.time() + left
        limit = shortest(request.time_limit, left)
        most = None if limit is None else _patience(limit, self._anytime) + LOADING
        arguments = (self._solver, cloudpickle.dumps(request), self._anytime, end)
        future = _pool(self.count).schedule(_solve, args=arguments, timeout=most)
        self._begun.add(future)
        future.add_done_callback(self._begun.discard)
        return functools.partial(_wait, future, limit is not None)

    def cancel(self) -> None:
        """End every solve that is not done."""
        for future in list(self._begun):
            future.cancel()


def _patience(limit: float, anytime: bool) -> float:
    """Seconds after which a solver is ended that was given ``limit`` seconds."""
    return 1.5 * limit + 1 if anytime else limit


def _wait(future: Future[bytes], limited: bool) -> SolveResult:
    try:
        outcome = future.result()
    except ProcessExpired as error:
        if limited and error.exitcode == -signal.SIGALRM:
            raise Overrun("no answer at its time limit") from error
        raise Crash(f"its process died ({error}, exit code {error.exitcode})") from error
    except TimeoutError as error:
        raise Overrun("no answer long after its time limit") from error
    except BaseException:
        future.cancel()
        raise
    answered, content = pickle.loads(outcome)
    if not answered:
        raise content
    result: SolveResult = content
    return result


def _solve(solver: bytes, request: bytes, anytime: bool, end: float | None) -> bytes:
    """In the worker: both were made by this process's parent a moment ago.

    The outcome travels as bytes of our own making: the pool cannot bear errors that do not unpickle.
    """
    try:
        loaded, asked = _load(solver), pickle.loads(request)
        limit = shortest(asked.time_limit, None if end is None else end - time.time())
        if limit is not None and limit <= 0:
            raise NotBegun
        asked = dataclasses.replace(asked, time_limit=limit)
        with _ended_after(None if limit is None else _patience(limit, anytime)):
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


def _pool(count: int) -> Any:
    """The pool of so many processes, started at the first use and stopped with the interpreter."""
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
