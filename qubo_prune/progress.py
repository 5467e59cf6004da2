"""Progress bars with a time estimate: in terminals by rich, in notebooks as live widgets; silent unless asked."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Advance = Callable[[float, str], None]
#: Seconds between two pictures of a bar in a notebook, each of which is a message to the browser.
_EVERY = 0.1
#: Characters of a bar of text, and of a note beside a widget.
_WIDE, _NOTE = 30, 60


class Progress:
    """Where long steps report to.

    Args:
        enabled: show bars, in a notebook or on standard error if that is a terminal, and say things there.
    """

    def __init__(self, enabled: bool = False) -> None:
        self._enabled = enabled

    def say(self, sentence: str) -> None:
        """A line on standard error, to a terminal or not."""
        if self._enabled:
            Console(stderr=True, soft_wrap=True).print(sentence, markup=False, highlight=False)

    @contextmanager
    def task(self, description: str, total: float | None) -> Iterator[Advance]:
        """A bar that is gone at the end; call what it gives with the amount done since and a note on what comes next.

        ``total=None`` is for work whose end cannot be told: the bar only shows that it goes on.
        """
        console = Console(stderr=True)
        if not self._enabled or not (console.is_terminal or console.is_jupyter):
            yield lambda done, note: None
        elif console.is_jupyter:
            with _in_notebook(description, total) as advance:
                yield advance
        else:
            with _in_terminal(console, description, total) as advance:
                yield advance


@contextmanager
def _in_terminal(console: Console, description: str, total: float | None) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with RichProgress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(description, total=total, note="")
        yield lambda done, note: bar.update(task, advance=done, note=note)


@contextmanager
def _in_notebook(description: str, total: float | None) -> Iterator[Advance]:
    from IPython.display import display

    steps = _Steps(total)
    view = _Widgets(description, total) if importlib.util.find_spec("ipywidgets") else _Words(description)
    view.show(steps, "")
    handle: Any = display(view.shown, raw=isinstance(view, _Words), display_id=True)
    shown = 0.0

    def advance(done: float, note: str) -> None:
        nonlocal shown
        steps.done += done
        if time.perf_counter() - shown >= _EVERY or steps.finished:
            shown = time.perf_counter()
            view.show(steps, note)
            view.send(handle)

    try:
        yield advance
    finally:
        # nothing is left of it, in the saved notebook neither
        handle.update({"text/plain": ""}, raw=True)
        view.close()


class _Steps:
    """How much is done, and how long it took."""

    def __init__(self, total: float | None) -> None:
        self.total, self.done, self._began = total, 0.0, time.perf_counter()

    @property
    def share(self) -> float | None:
        """Of all that is to be done, if that is known."""
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def finished(self) -> bool:
        return self.share == 1.0

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._began
        if self.share is None:
            return _clock(seconds)
        left = _clock(seconds * (1 - self.share) / self.share) if self.share else "-:--:--"
        return f"{100 * self.share:3.0f}% {_clock(seconds)} left {left}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class _Widgets:
    """A description, a bar and its numbers beside one another; the browser moves a bar that knows no end."""

    def __init__(self, description: str, total: float | None) -> None:
        from ipywidgets import HTML, FloatProgress, HBox, Label

        self._bar = HTML("<progress></progress>") if total is None else FloatProgress(0.0, min=0.0, max=1.0)
        self._told, self._known = Label(), total is not None
        self.shown = HBox([Label(description), self._bar, self._told])

    def show(self, steps: _Steps, note: str) -> None:
        if self._known:
            self._bar.value = 1.0 if steps.share is None else steps.share
        self._told.value = f"{steps} {note[:_NOTE]}"

    def send(self, handle: Any) -> None:
        """Widgets send themselves."""

    def close(self) -> None:
        for widget in (*self.shown.children, self.shown):
            for part in (widget.layout, getattr(widget, "style", None), widget):
                if part is not None:
                    part.close()


class _Words:
    """A bar of text, where there are no widgets."""

    def __init__(self, description: str) -> None:
        self._description = description
        self.shown: dict[str, str] = {}

    def show(self, steps: _Steps, note: str) -> None:
        share = steps.share
        bar = "" if share is None else f"[{'#' * round(_WIDE * share):<{_WIDE}}] "
        self.shown = {"text/plain": f"{self._description} {bar}{steps} {note[:_NOTE]}".rstrip()}

    def send(self, handle: Any) -> None:
        handle.update(self.shown, raw=True)

    def close(self) -> None:
        pass
