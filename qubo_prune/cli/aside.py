"""Standard output for results only: what solvers and libraries print meanwhile goes to standard error."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

#: The descriptors of the two streams, which C libraries and other processes write to.
_OUTPUT, _ERRORS = 1, 2


@contextmanager
def aside() -> Iterator[None]:
    """Send all that is printed to standard error, so that the result printed afterwards stands alone.

    That holds for ``print``, for C libraries, and for processes that are begun meanwhile; of this process, for all of
    its threads. What is to be a command's output is printed outside.
    """
    before = sys.stdout
    if before is not None:  # whoever began us may have closed it
        before.flush()
    kept = _moved()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        # what others hold back in buffers belongs to standard error, too
        if before is not None:
            with suppress(OSError, ValueError):
                before.flush()
        if kept is not None:
            _flush_c()
            os.dup2(kept, _OUTPUT)
            os.close(kept)


def _moved() -> int | None:
    """Have the descriptor of standard output lead to standard error; a copy of what it led to, ``None`` if closed."""
    try:
        kept = os.dup(_OUTPUT)
    except OSError:  # there is no standard output
        return None
    try:
        _flush_c()
        os.dup2(_ERRORS, _OUTPUT)
    except OSError:  # there is no standard error
        os.close(kept)
        return None
    return kept


def _flush_c() -> None:
    """Write what C libraries hold back, which they do where standard output is no terminal."""
    with suppress(OSError, AttributeError, TypeError):  # not on every system
        ctypes.CDLL(None).fflush(None)
