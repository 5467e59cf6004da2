"""Outcomes of checks that a plug-in is held to."""

from __future__ import annotations

import time
import unittest
from collections.abc import Callable
from dataclasses import dataclass


class NotApplicable(unittest.SkipTest):
    """The check asks for what a plug-in does not declare; pytest counts it as skipped."""


@dataclass(frozen=True)
class CheckOutcome:
    """What one check found.

    Attributes:
        name: of the check.
        passed: ``None`` if it does not apply.
        message: what is wrong, or why it does not apply; empty if it passed.
        seconds: wall-clock time.
    """

    name: str
    passed: bool | None
    message: str
    seconds: float


def outcome_of(name: str, check: Callable[[], None]) -> CheckOutcome:
    """Run a check and tell what it found, whatever it raised."""
    began, passed, message = time.perf_counter(), True, ""
    try:
        check()
    except NotApplicable as reason:
        return CheckOutcome(name, None, str(reason), time.perf_counter() - began)
    except AssertionError as error:
        passed, message = False, str(error)
    except (Exception, SystemExit) as error:  # a plug-in may raise anything
        passed, message = False, f"it raised {type(error).__name__}: {error}"
    return CheckOutcome(name, passed, message, time.perf_counter() - began)


def require(condition: bool, message: str) -> None:
    """Raise ``AssertionError`` with a message that names what is wrong, also where assertions are switched off."""
    if not condition:
        raise AssertionError(message)
