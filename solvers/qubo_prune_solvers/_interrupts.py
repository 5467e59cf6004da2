"""Calls into other libraries that Ctrl-C ends, although they return to Python only when they are done."""

from __future__ import annotations

import atexit
import contextvars
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
#: What a process ends with that Ctrl-C ended.
_INTERRUPTED = 130
# seconds between two looks of the waiting thread, and for which it waits for a call that it has asked to end
_LOOK, _PATIENCE = 0.05, 0.5


def interruptible(call: Callable[[], T], stop: Callable[[], Any]) -> T:
    """What ``call`` gives. Python acts on Ctrl-C in the main thread only, so there the call runs in another one.

    Args:
        call: blocks, and may not look at signals.
        stop: asks it to end, which it does soon or not at all.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    outcome: list[tuple[bool, Any]] = []
    # not Thread.join(): of Python 3.11, one that Ctrl-C interrupts takes the thread for ended
    done = threading.Event()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.append((True, context.run(call)))
        except BaseException as error:  # raised again below, in the thread that waits
            outcome.append((False, error))
        finally:
            done.set()

    try:
        # a daemon: one that cannot be ended must not keep the process
        threading.Thread(target=run, daemon=True).start()  # an interrupt may come as soon as it runs
        while not done.wait(_LOOK):
            pass
    except BaseException:
        stop()
        done.wait(_PATIENCE)
        atexit.register(_leave, done)
        raise
    answered, content = outcome[0]
    if not answered:
        raise content
    result: T = content
    return result


def _leave(done: threading.Event) -> None:
    """End the process if an interrupted call still runs: the interpreter would wait for it on its way out."""
    if not done.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_INTERRUPTED)
