"""Plug-ins by name: every solver, adapter and method, the built-in ones too, enters through an entry point.

Nothing is imported until it is asked for, and a plug-in that fails to import breaks no other.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from qubo_prune.errors import SolverError

EntryPoint = importlib.metadata.EntryPoint

#: Groups of entry points: solvers, adapters that make solvers of other libraries' objects, and methods.
SOLVERS, ADAPTERS, METHODS = "qubo_prune.solvers", "qubo_prune.adapters", "qubo_prune.methods"
#: What stands before the name of an update in the group of methods.
UPDATE = "update."
#: What one of a group is called in messages.
_KINDS = {SOLVERS: "solver", ADAPTERS: "adapter", METHODS: "method"}


def _entry_points(group: str) -> Iterable[EntryPoint]:
    return _known(group, tuple((path, _changed(path)) for path in sys.path))


@lru_cache(maxsize=16)
def _known(group: str, places: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """The entry points of a group, until something is installed: reading them takes as long as a small solve."""
    return tuple(importlib.metadata.entry_points(group=group))


def _changed(path: str) -> int:
    """When something was put into a folder, or taken from it."""
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return 0


def by_name(group: str) -> dict[str, list[EntryPoint]]:
    """Entry points grouped by name, sorted; two with one target (an install seen twice) count once."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for entry in _entry_points(group):
        found.setdefault(entry.name, {}).setdefault(entry.value, entry)
    return {name: list(entries.values()) for name, entries in sorted(found.items())}


def solver_names() -> list[str]:
    """Names of the solvers that are installed, sorted; nothing of theirs is imported."""
    return list(by_name(SOLVERS))


def method_names() -> list[str]:
    """Names of the methods that are installed, sorted; nothing of theirs is imported."""
    return [name for name in by_name(METHODS) if not name.startswith(UPDATE)]


def update_names() -> list[str]:
    """Names of the updates that are installed, sorted; ``none`` keeps the weights as they are."""
    return ["none", *(name.removeprefix(UPDATE) for name in by_name(METHODS) if name.startswith(UPDATE))]


def origin(entry: EntryPoint) -> str:
    """The distribution that an entry point comes from."""
    return entry.dist.name if entry.dist is not None else "an unknown distribution"


def only(name: str, entries: Sequence[EntryPoint]) -> EntryPoint:
    """The one entry point of a name; raises :class:`SolverError` if several distributions claim it."""
    if len(entries) > 1:
        given = " and ".join(f"{entry.value} (from {origin(entry)})" for entry in entries)
        kind = _KINDS.get(entries[0].group, "plug-in")
        raise SolverError(f"The {kind} name {name!r} is claimed by {given}; uninstall one of them.")
    return entries[0]


def import_object(kind: str, name: str, target: str) -> Any:
    """What ``package.module:Thing`` names.

    Args:
        kind: ``solver``, ``adapter`` or ``method``, for messages.
        name: that was asked for.
        target: where it is.

    Raises:
        SolverError: it cannot be imported, whatever the reason.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever a plug-in does at import is its own failure
        raise SolverError(
            f"The {kind} {name!r} ({target}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def check_requirements(name: str, requires: Iterable[tuple[str, str]], kind: str = "solver") -> None:
    """Raise :class:`SolverError`, with the command to run, if a module that a solver needs is missing."""
    packages = [package for module, package in requires if not _importable(module)]
    if packages:
        raise SolverError(f"The {kind} {name!r} needs a package that is missing: pip install {' '.join(packages)}")


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # a parent package is missing, or broken
        return False
