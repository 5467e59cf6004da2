"""Whether processes that were started earlier would import the same code as this one does now."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass, field

#: Where modules of the interpreter and installed packages live, which do not change while a process runs.
_INSTALLED = tuple({os.path.realpath(prefix) + os.sep for prefix in (sys.prefix, sys.base_prefix)})


@functools.cache
def _installed(file: str) -> bool:
    return os.path.realpath(file).startswith(_INSTALLED)


def _modules() -> dict[str, int]:
    """The files of imported modules that no installation put there, with the nanosecond of their last change."""
    changed: dict[str, int] = {}
    for module in list(sys.modules.values()):
        # not getattr(), which would have a lazy module import what it holds
        file = getattr(module, "__dict__", {}).get("__file__")
        if isinstance(file, str) and not _installed(file):
            try:
                changed[file] = os.stat(file).st_mtime_ns
            except OSError:  # it is gone, or lies in an archive
                changed[file] = 0
    return changed


@dataclass(frozen=True, eq=False)
class Imports:
    """Where this process looks for modules, and the state of those of the user that it has imported.

    Two are equal if a process that was started with one of them would do for the other: the path is the same, and
    no module that both know has changed. A solver that was edited and loaded again is thus never run in its old form.
    """

    path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))
    modules: dict[str, int] = field(default_factory=_modules)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Imports):
            return NotImplemented
        known = self.modules.keys() & other.modules.keys()
        return self.path == other.path and all(self.modules[file] == other.modules[file] for file in known)

    __hash__ = None  # type: ignore[assignment]

    def apply(self) -> None:
        """Look for modules where the process that made this one does."""
        sys.path[:] = self.path
