"""Bars in terminals and notebooks, and nothing where none was asked for."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from qubo_prune import progress
from qubo_prune.progress import Progress


def console(monkeypatch: pytest.MonkeyPatch, **kind: bool) -> io.StringIO:
    stream = io.StringIO()
    made = Console(file=stream, width=120, **{"force_terminal": False, "force_jupyter": False, **kind})
    monkeypatch.setattr(progress, "Console", lambda **_: made)
    return stream


def work(bar: Progress, total: float | None = 4, description: str = "[b]working[/b]") -> None:
    with bar.task(description, total) as advance:
        for step in range(4):
            advance(1, f"step [{step}]")


def test_nothing_is_shown_unless_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = console(monkeypatch, force_terminal=True)
    work(Progress())
    Progress().say("hello")
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_a_file_gets_no_bar_but_is_told_things(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = console(monkeypatch)
    work(Progress(True))
    Progress(True).say("[hello]")
    assert stream.getvalue() == "[hello]\n"


@pytest.mark.parametrize("total", [4, None])
def test_a_terminal_has_a_bar_that_is_gone_in_the_end(monkeypatch: pytest.MonkeyPatch, total: float | None) -> None:
    stream = console(monkeypatch, force_terminal=True)
    work(Progress(True), total)
    shown = stream.getvalue()
    assert "[b]working[/b]" in shown
    assert "step [3]" in shown
    assert shown.endswith("\x1b[2K")  # the line is empty again


class Handle:
    """What IPython gives for an output that may change."""

    def __init__(self, first: Any) -> None:
        self.shown = [first]

    def update(self, shown: Any, raw: bool = False) -> None:
        self.shown.append(shown)


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    """All outputs of a notebook's cell."""
    made: list[Handle] = []

    def display(shown: Any, raw: bool = False, display_id: bool = False) -> Handle:
        made.append(Handle(shown))
        return made[-1]

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    console(monkeypatch, force_jupyter=True)
    return made


def test_a_notebook_has_widgets_that_are_gone_in_the_end(outputs: list[Handle]) -> None:
    bar = Progress(True)
    with bar.task("<b>working</b>", 4) as advance:
        (output,) = outputs
        (label, line, told) = output.shown[0].children
        assert (type(label).__name__, label.value) == ("Label", "<b>working</b>")  # which is shown as text
        assert (line.value, line.max) == (0.0, 1.0)
        advance(1, "first")
        assert line.value == 0.25
        assert told.value.startswith(" 25% 0:00:0")
        assert told.value.endswith(" first")
        advance(9, "last")
        assert line.value == 1.0
        assert told.value.startswith("100%")
    assert output.shown[1:] == [{"text/plain": ""}]
    assert line.comm is None


def test_a_bar_without_an_end_moves_by_itself(outputs: list[Handle]) -> None:
    with Progress(True).task("loading", None) as advance:
        (_, line, told) = outputs[0].shown[0].children
        assert line.value == "<progress></progress>"
        advance(1, "more")
        assert "%" not in told.value
        assert told.value.endswith(" more")


def test_the_bar_goes_when_the_work_fails(outputs: list[Handle]) -> None:
    with pytest.raises(ZeroDivisionError), Progress(True).task("working", 4) as advance:
        advance(1 // 0, "")
    assert outputs[0].shown[-1] == {"text/plain": ""}


def test_without_widgets_there_is_a_bar_of_text(outputs: list[Handle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    work(Progress(True))
    first, *steps, last = [each["text/plain"] for each in outputs[0].shown]
    assert first.startswith("[b]working[/b] [" + " " * 30 + "]   0%")
    assert steps[1].count("#") == 15
    assert " 50% " in steps[1]
    assert steps[1].endswith("step [1]")
    assert "[" + "#" * 30 + "] 100%" in steps[3]
    assert last == ""
    work(Progress(True), None, "loading")
    assert outputs[1].shown[1]["text/plain"].startswith("loading 0:00:0")


def test_a_browser_is_not_flooded(outputs: list[Handle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY", 1000.0)
    with Progress(True).task("working", 100) as advance:
        line, seen = outputs[0].shown[0].children[1], []
        for _ in range(100):
            advance(1, "")
            seen.append(line.value)
    assert set(seen) <= {0.01, 1.0}
    assert seen[-1] == 1.0


CELLS = """
from torch import nn, randn
from qubo_prune import BlockQubo, describe_solvers, prune, solve
report = prune(nn.Linear(32, 8), [randn(32, 32)], 0.5, progress=True)
block = BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1)
display(report, block, solve(block), describe_solvers())
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own packages
def test_a_real_kernel_shows_bars_and_tables() -> None:
    import nbformat
    from nbclient import NotebookClient

    messages: list[dict[str, Any]] = []

    class Client(NotebookClient):  # type: ignore[misc]
        def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
            messages.append(msg)
            return super().process_message(msg, cell, cell_index)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELLS)])
    Client(notebook, timeout=300, kernel_name="python3").execute()
    kinds = [message["msg_type"] for message in messages]
    bar = next(m["content"]["data"] for m in messages if m["msg_type"] == "display_data")
    assert "application/vnd.jupyter.widget-view+json" in bar
    values = [m["content"]["data"].get("state", {}).get("value") for m in messages if m["msg_type"] == "comm_msg"]
    assert 1.0 in values
    assert kinds.count("comm_close") == kinds.count("comm_open") > 0
    outputs = notebook.cells[0].outputs
    assert outputs[0]["data"] == {"text/plain": ""}
    assert [bool(output["data"].get("text/html")) for output in outputs[1:]] == [True] * 4
    assert "model_id" not in json.dumps(outputs)
