"""What a run does now, read from its folder by another process."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.text import Text

from qubo_prune.files.parsing import expanded
from qubo_prune.models.names import DottedName
from qubo_prune.run.folder import EVENTS, is_running, read_manifest
from qubo_prune.tables import Shown, Table, shown

#: Characters of a line of events that are read at most; longer ones are not of a run.
_MOST = 2**20
#: Layers that are shown.
_SHOWN = 12


@dataclass(frozen=True)
class RunState(Shown):
    """Where a run is.

    Attributes:
        model: its name.
        state: ``running``, ``done``, ``failed`` or ``interrupted``.
        layers: those that are done, as their events tell, the last one of each name.
        total: how many there are; 0 while that is not known.
        left_dense: how many of them were left as they were.
        current: the layer that is being pruned, or empty.
        progress: fields of the last event within it, or of the last step of a descent on the loss.
        elapsed: seconds that the run has taken, without interruptions.
        left: seconds that it may still take, by the weights that are left; ``None`` while nothing is known.
        error: why it failed.
    """

    model: str
    state: str
    layers: tuple[Mapping[str, Any], ...]
    total: int
    current: str
    progress: Mapping[str, Any]
    elapsed: float
    left: float | None
    error: str
    left_dense: int = 0

    @classmethod
    def read(cls, path: str | Path) -> RunState:
        """The state of the run in a folder.

        Raises:
            InputError: there is no run in it.
        """
        folder = expanded(path)
        configuration = read_manifest(folder).get("configuration", {})
        layers: dict[str, Mapping[str, Any]] = {}
        left_dense: dict[str, Mapping[str, Any]] = {}
        progress: Mapping[str, Any] = {}
        current, error, ended = "", "", ""
        last: Mapping[str, Any] = {}
        for line in _events(folder / EVENTS):
            kind = line["kind"]
            if kind == "began":
                current, progress, error, ended = "", {}, "", ""
            elif kind == "layer-began":
                current, progress = str(line.get("layer", "")), {}
            elif kind == "layer":
                layers[str(line.get("layer", ""))] = last = line
                current, progress = "", {}
            elif kind == "left-dense":
                left_dense[str(line.get("layer", ""))] = last = line
            elif kind in ("sweep", "blocks", "step"):
                progress = line
            elif kind in ("ended", "failed"):
                ended, error = kind, str(line.get("error", ""))
        state = "running" if is_running(folder) else {"ended": "done", "failed": "failed"}.get(ended, "interrupted")
        done = list(layers.values())
        gone = [*done, *left_dense.values()]
        total = _number(last.get("layers"))
        elapsed, left = _number(last.get("elapsed")), None
        weights_left = _number(last.get("weights_left"))
        weights = sum(_number(layer.get("weights")) for layer in gone)
        if state == "running" and weights and elapsed:
            left = elapsed * weights_left / weights
        return cls(
            str(configuration.get("model", "")),
            state,
            tuple(done),
            int(total),
            current,
            progress,
            elapsed,
            left,
            error,
            len(left_dense),
        )

    def __rich__(self) -> Group:
        return Group(Text(self._title()), self._table(), *(Text(said, style="bold") for said in self.warnings()))

    def warnings(self) -> list[str]:
        """How many blocks the solver has lost so far, and how many the clock has cut; nothing if all is well."""
        asked, lost, cut = (
            int(sum(_number(layer.get(name)) for layer in self.layers)) for name in ("blocks", "lost", "cut")
        )
        said = [f"The solver lost {lost} of {asked} blocks so far."] if lost else []
        return [*said, f"The clock cut {cut} of {asked} blocks so far."] if cut else said

    def _title(self) -> str:
        title = f"{self.model}: {self.state}"
        if self.total:
            title += f", {len(self.layers)} of {self.total} layers"
        if self.left_dense:
            title += f", {self.left_dense} left dense"
        if self.elapsed:
            title += f", {_duration(self.elapsed)} so far"
        if self.left:
            title += f", about {_duration(self.left)} left"
        if self.error and self.state == "failed":
            title += f" ({self.error})"
        if self.current and self.state == "running":
            title += f"\nnow {self.current}{_told(self.progress)}"
        elif self.progress.get("kind") == "step" and self.state == "running":
            title += f"\ndescent on the loss{_told(self.progress)}"
        return title

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column("layer")
        for column in ("error before", "after", "search s"):
            table.add_column(column, justify="right", no_wrap=True)
        for layer in self.layers[-_SHOWN:]:
            errors = [_error(layer.get(name)) for name in ("relative_before", "relative_after")]
            seconds = _number(layer.get("seconds"))
            table.add_row(DottedName(str(layer.get("layer", ""))), *errors, f"{seconds:.1f}")
        return table


def _told(progress: Mapping[str, Any]) -> str:
    """The numbers that an event within a layer has."""
    names = {
        "energy": "energy",
        "accepted": "accepted blocks",
        "solved": "blocks solved",
        "of": "of",
        "number": "step",
        "held_out_loss": "held-out loss",
    }
    found = [f"{words} {_number(progress[name]):.6g}" for name, words in names.items() if name in progress]
    return f": {', '.join(found)}" if found else ""


def _events(file: Path) -> Iterator[Mapping[str, Any]]:
    """The events that can be read; a line that is being written is none yet."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        while line := lines.readline(_MOST):
            try:
                found = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict) and isinstance(found.get("kind"), str):
                yield found


def _error(value: Any) -> str:
    """A relative error as a cell; it is ``None`` where it was not measured."""
    return shown(None if value is None else _number(value), 5)


def _number(value: Any) -> float:
    """A number of an event; 0 for what is none, or has no end: a damaged line may say anything."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return 0.0
    try:
        found = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return 0.0
    return found if math.isfinite(found) else 0.0


def _duration(seconds: float) -> str:
    # whatever a damaged line says
    return str(timedelta(seconds=round(seconds))) if 0 <= seconds < 1e9 else "?"
