"""Solver calls in processes of their own, which are ended when they overrun their time.

The processes start from a clean interpreter and never run the caller's main module again, so that
scripts need no guard; what a notebook defines travels by value.
"""

from __future__ import annotations

import atexit
import functools
import pickle
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import cloudpickle
from loky.backend import get_context
from pebble import ProcessPool

from qubo_prune.solver import Solver, SolveRequest, SolveResult


class Overrun(Exception):
    """A solver did not stop at its time limit; its process was ended."""


class Crash(Exception):
    """A solver's process died under it."""


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
        self._pool = _pool(count)

    def submit(self, request: SolveRequest, limit: float | None) -> Callable[[], SolveResult]:
        """Start one solve; the returned function waits for its answer.

        That function raises what the solver raised, :class:`Overrun` if it was ended after ``limit``
        seconds, or :class:`Crash` if its process died.
        """
        future = self._pool.schedule(_solve, args=(self._solver, cloudpickle.dumps(request)), timeout=limit)
        return functools.partial(_wait, future, limit)


def _wait(future: Future[SolveResult], limit: float | None) -> SolveResult:
    from pebble import ProcessExpired

    try:
        return future.result()
    except ProcessExpired as error:
        raise Crash(f"its process died ({error})") from error
    except TimeoutError as error:
        # pebble's own timeout has no cause; one that the solver raised in its process has
        if error.__cause__ is not None or limit is None:
            raise
        raise Overrun(f"no answer after {limit:.3g} s") from error
    except BaseException:
        future.cancel()
        raise


def _solve(solver: bytes, request: bytes) -> SolveResult:
    """In the worker: both were made by this process's parent a moment ago."""
    return _load(solver).solve(pickle.loads(request))


@functools.lru_cache(maxsize=4)
def _load(solver: bytes) -> Solver:
    loaded: Solver = pickle.loads(solver)
    return loaded


def _warm_up() -> None:
    """What a worker does before its first call: imports that must not count as solving time."""
    import torch

    torch.set_num_threads(1)


_pools: dict[int, Any] = {}


def _pool(count: int) -> Any:
    """The pool of so many processes, started at the first use and stopped with the interpreter."""
    if count not in _pools:
        _pools[count] = ProcessPool(max_workers=count, context=get_context("loky"), initializer=_warm_up)
        atexit.register(_stop, count)
    return _pools[count]


def _stop(count: int) -> None:
    pool = _pools.pop(count)
    pool.stop()
    pool.join()
