"""Tables as plain text and as HTML."""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console, Group
from rich.text import Text

import qubo_prune
from qubo_prune.models.names import DottedName
from qubo_prune.tables import Shown, Table, as_html, rendered, replace_unprintable


def table() -> Table:
    made = Table(title="Some numbers", title_justify="left")
    made.add_column("name")
    made.add_column("value", justify="right")
    made.add_row("first", "1")
    made.add_row("a name of many words that takes more than a line if the table is narrow", "22")
    return made


@pytest.mark.parametrize("width", [30, 60, 110])
def test_tables_stay_within_their_width_and_lose_no_word(width: int) -> None:
    text = rendered(table(), width)
    assert max(map(len, text.splitlines())) <= width
    assert text.startswith("Some numbers")
    for word in ["name", "value", "first", "many", "narrow", "22"]:
        assert word in text


def test_text_has_no_colours_and_no_blank_end() -> None:
    text = rendered(table(), 80)
    assert "\x1b" not in text
    assert text == text.rstrip()
    assert rendered(table(), 80) == text


def test_html_has_title_headings_sections_and_caption() -> None:
    made = table()
    made.caption = "seconds on one core"
    made.add_section()
    made.add_row("all", "[bold]23[/bold]")
    page = as_html(made)
    assert page.count("<tr>") == 4
    assert page.count("<tbody>") == 2
    assert "<caption" in page
    assert (
        page.index("Some numbers") < page.index("<thead>") < page.index("</table>") < page.index("seconds on one core")
    )
    assert "<b>23</b>" in page
    assert page.count("text-align: right") == 4
    ET.fromstring(page.replace("&nbsp;", " "))


def test_html_escapes_every_text() -> None:
    evil = "<script>alert('1 & 2')</script>"
    made = Table(title=Text(evil), caption=Text(evil))
    made.add_column(Text(evil))
    made.add_row(Text(evil))
    made.add_row(Text(f"{evil}[/bold]"))
    made.add_row("[/not markup] <i>")
    page = as_html(Group(made, Text(evil), evil))
    assert "<script" not in page
    assert "<i>" not in page
    assert page.count("&lt;script&gt;") == 7
    assert "[/not markup]" in page


def test_html_keeps_lines_and_indents_and_sets_no_colour() -> None:
    made = Table("\nsolver", "a\nb", title="[red]x[/red]", show_header=True)
    made.add_row("  tabu", "1")
    page = as_html(made)
    assert ">solver</th>" in page
    assert "a<br>b" in page
    assert "&nbsp;&nbsp;tabu" in page
    assert "color" not in page
    assert "background" not in page
    assert "http" not in page
    hidden = Table(show_header=False)
    hidden.add_column()
    hidden.add_row("1")
    assert "<th" not in as_html(hidden)
    assert as_html(Table()).count("<table>") == 1


def test_what_shows_itself_is_the_same_table_in_both_places() -> None:
    class Mine(Shown):
        def __rich__(self) -> Table:
            return table()

    assert Mine()._repr_html_() == as_html(table())
    assert rendered(Mine(), 80) == rendered(table(), 80)


def every_kind() -> list[type]:
    found, more = [], [Shown]
    for each in more:
        more += each.__subclasses__()
        found += [sub for sub in each.__subclasses__() if sub.__module__.startswith("qubo_prune")]
    return found


def test_all_that_has_a_table_shows_it_in_notebooks() -> None:
    for module in pkgutil.walk_packages(qubo_prune.__path__, "qubo_prune."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and value.__module__ == module.name and hasattr(value, "__rich__"):
                assert issubclass(value, Shown), value
    names = {each.__name__ for each in every_kind()}
    assert names >= {
        "Answer",
        "BlockQubo",
        "BlockStudy",
        "Comparison",
        "Experiment",
        "LossTrace",
        "Report",
        "Results",
        "RunState",
        "SolveResult",
        "SolverBenchmark",
        "SolverList",
    }


def wide(first: str = "a.layer.of.a.long.name") -> Table:
    made = Table(title="Title", caption="What the numbers are.", title_justify="left", caption_justify="left")
    made.add_column("layer", min_width=16)
    for column in ("kept", "before", "\nafter", "ratio", "blocks", "s"):
        made.add_column(column, justify="right", no_wrap=True)
    made.add_row(DottedName(first) if "." in first else first, *(f"{number}.12345" for number in range(6)))
    made.add_section()
    made.add_row("all", "9.99999", "", "1", "2", "3", "4")
    return made


@pytest.mark.parametrize("width", range(8, 121, 7))
def test_narrow_terminals_lose_no_name_and_no_number(width: int) -> None:
    text = rendered(wide(), width)
    assert max(map(len, text.splitlines())) <= max(width, len("  before: 1.12345"))
    joined = "".join(text.split())
    numbers = (f"{n}.12345" for n in range(6))
    for word in ("Title", "a.", "layer.", "long.", "name", "all", *numbers, "9.99999", "numbers"):
        assert word in joined
    for name in ("kept", "before", "after", "ratio", "blocks"):
        assert name in joined


def test_wide_terminals_show_one_line_for_each_row() -> None:
    (line,) = [line for line in rendered(wide(), 120).splitlines() if "a.layer.of.a.long.name" in line]
    assert all(f"{number}.12345" in line for number in range(6))
    assert "kept: " not in rendered(wide(), 120)
    assert "  kept: 0.12345" in rendered(wide(), 40).splitlines()


def test_a_long_name_is_broken_and_markup_in_it_is_none() -> None:
    text = rendered(wide("callable:package:" + "x" * 60 + "[red]"), 40)
    assert "x" * 60 in "".join(text.split())
    made = Table("solver", "values")
    made.add_row(Text("[bold]odd[/bold]"), Text("[red]1"))
    assert "[bold]odd[/bold]" in rendered(made, 12).replace("\n", "")
    assert "[red]1" in rendered(made, 12).replace("\n", "")


ODD = "\u00e4\u65e5\udcff"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_the_terminal_lacks_are_replaced(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of any name is told of, whatever the encoding of the terminal."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    made = wide(f"layers.{ODD}")
    text = rendered(made, 100)
    print(text)  # noqa: T201
    assert "0.12345" in text
    assert ("\u2500" in text) == (encoding == "utf-8")
    assert ("\u00e4" in text) == (encoding != "ascii")
    with pytest.raises(UnicodeEncodeError):
        print(ODD)  # noqa: T201
    replace_unprintable()
    Console().print(made)
    print(ODD)  # noqa: T201
    out.flush()


@pytest.mark.slow
def test_commands_print_names_that_the_terminal_lacks(tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"d\xc3\xa4\xff")
    name.mkdir()
    (name / "problem.coo").write_text("0 0 1\n0 1 -2\n1 1 3\n")
    for path, code in ((name / "problem.coo", 0), (name / "absent.coo", 2)):
        done = subprocess.run(
            [sys.executable, "-m", "qubo_prune.cli", "solve", str(path), "--num-pruned", "1"],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "COLUMNS": "40"},
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
