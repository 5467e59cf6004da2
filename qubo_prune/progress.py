"""Progress bars with a time estimate, in terminals and notebooks; silent unless asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Advance = Callable[[float, str], None]


class Progress:
    """Where long steps report to.

    Args:
        enabled: show bars on standard error, if that is a terminal or a notebook, and say things there.
    """

    def __init__(self, enabled: bool = False) -> None:
        self._enabled = enabled

    def say(self, sentence: str) -> None:
        """A line on standard error, to a terminal or not."""
        if self._enabled:
            Console(stderr=True, soft_wrap=True).print(sentence, markup=False, highlight=False)

    @contextmanager
    def task(self, description: str, total: float | None) -> Iterator[Advance]:
        """A bar; call what it gives with the amount done since and a note on what comes next.

        ``total=None`` is for work whose end cannot be told: the bar only shows that it goes on.
        """
        console = Console(stderr=True)
        if not self._enabled or not (console.is_terminal or console.is_jupyter):
            yield lambda done, note: None
            return
        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with RichProgress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(description, total=total, note="")
            yield lambda done, note: bar.update(task, advance=done, note=note)
