"""Values that a shell completes, without importing what is behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import typer

from qubo_prune.choices import PACKAGED
from qubo_prune.plugins import method_names as method_names
from qubo_prune.plugins import solver_names as solver_names
from qubo_prune.plugins import update_names as update_names

Completer = Callable[[str], list[str]]
Words = Iterable[str] | Callable[[], Iterable[str]]


def one_of(words: Words) -> Completer:
    """Completes one word of some."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in _made(words) if word.startswith(incomplete)]

    return complete


def some_of(words: Words) -> Completer:
    """Completes the last of comma-separated words, each of which may be given once."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [f"{before}{comma}{word}" for word in _made(words) if word.startswith(last) and word not in given]

    return complete


def _made(words: Words) -> Iterable[str]:
    return words() if callable(words) else words


def model_names(incomplete: str) -> list[str]:
    """Models that come in packages, once something is typed: without it the shell is to offer folders."""
    return [name for name in PACKAGED if incomplete and name.startswith(incomplete)]


def suite_names() -> list[str]:
    """Suites that can be made."""
    from qubo_prune.bench.suites import SUITES

    return list(SUITES)


def families(ctx: typer.Context, incomplete: str) -> list[str]:
    """Families of the suite that is asked for, and its instances once a family is complete."""
    from qubo_prune.bench.suites import SUITES

    asked: Any = ctx.params.get("suite")
    found = SUITES.get(asked or "standard", ())
    last = incomplete.rpartition(",")[2]
    within = [name for family in found if last.startswith(family.name) for name in family.instances]
    return some_of([*(family.name for family in found), *within])(incomplete)
