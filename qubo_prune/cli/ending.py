"""How commands that measure end: what they save and print, and with which exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from qubo_prune.cli.options import Json, Quiet, show, tell_losses


@dataclass(frozen=True)
class Ending:
    """What a command prints.

    Attributes:
        quiet: neither progress bars nor a table.
        as_json: the result as JSON in place of both.
    """

    quiet: Quiet = False
    as_json: Json = False

    @property
    def for_people(self) -> bool:
        """True if progress bars and a table are wanted."""
        return not self.quiet and not self.as_json

    def print(self, result: Any, written: str = "") -> None:
        """Print a result, and for people what files were written."""
        show(result, self.as_json, self.quiet)
        if written and self.for_people:
            Console(soft_wrap=True).print(written)

    def end(self, result: Any, folder: Path | None = None, written: str = "") -> None:
        """Save a result if there is a folder for it, and print it; exit code 1 if a solver lost all of its blocks."""
        if folder is not None:
            result.save(folder)
        self.print(result, written)
        tell_losses(result.warnings(), result.all_lost, shown=self.for_people)


def checked(output: Path | None, overwrite: bool, needed: Mapping[str, str | Path | None]) -> Path | None:
    """A folder for a result, if one was given and may be written to; ``needed`` is what the command reads."""
    from qubo_prune.files.outputs import check_output

    return None if output is None else check_output(output, overwrite, needed)
