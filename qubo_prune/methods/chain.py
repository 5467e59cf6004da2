"""Text forms of methods with their Hessian, update and settings: ``METHOD[:HESSIAN][+UPDATE][@NAME=VALUE ...]``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from qubo_prune.choices import METHODS
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.methods.registry import PEERS

_LABELS = {"magnitude": "magnitude", "wanda": "Wanda", "icbs": "iCBS"} | {name: p.label for name, p in PEERS.items()}


_BLOCKS = {"gram": " blocks", "compensated": " compensated", "fisher": " of the loss"}


#: Arguments of :func:`qubo_prune.prune` that an entry may have of its own.
ENTRY_SETTINGS = (
    "allocation", "block_size", "correction", "damping", "guard", "max_sweeps", "polish", "protect", "solver",
    "warm_start",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A method of a comparison: ``METHOD[:HESSIAN][+UPDATE][@NAME=VALUE ...]``.

    Such as ``admm+refit``, ``icbs:compensated`` or ``icbs:compensated@allocation=fisher@max_sweeps=1``; the names are
    those of :data:`ENTRY_SETTINGS`.
    """

    method: str
    hessian: str = "gram"
    update: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read the text of an entry, with its values as texts; a run reads those and says whether it can be done."""
        text, *given = text.split("@")
        settings = [setting.partition("=") for setting in given]
        for name, equals, _ in settings:
            if name not in ENTRY_SETTINGS or not equals:
                raise InputError(
                    f"The setting {name!r} of {text!r} is not known{did_you_mean(name, ENTRY_SETTINGS)}; give "
                    f"NAME=VALUE with one of {', '.join(ENTRY_SETTINGS)}."
                )
        name, _, update = text.partition("+")
        method, _, hessian = name.partition(":")
        if method not in METHODS:
            raise InputError(f"There is no method {method!r}{did_you_mean(method, METHODS)}; use {', '.join(METHODS)}.")
        return cls(method, hessian or "gram", update or None, tuple((name, value) for name, _, value in settings))

    def __str__(self) -> str:
        hessian = f":{self.hessian}" if self.hessian != "gram" else ""
        settings = "".join(
            f"@{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in self.settings
        )
        return f"{self.method}{hessian}{f'+{self.update}' if self.update else ''}{settings}"

    @property
    def label(self) -> str:
        """For tables."""
        blocks = _BLOCKS.get(self.hessian, f" {self.hessian}") if self.method == "icbs" else ""
        return f"{_LABELS[self.method]}{blocks}{f' + {self.update}' if self.update else ''}" + "".join(
            f", {name} {_as_text(value)}" for name, value in self.settings
        )


def _as_text(value: Any) -> str:
    """What :func:`~qubo_prune.settings.setting_value` reads as the value."""
    return value if isinstance(value, str) else json.dumps(value)
