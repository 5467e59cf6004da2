"""Tables as plain text and as HTML."""

from __future__ import annotations

import importlib
import pkgutil
import xml.etree.ElementTree as ET

import pytest
from rich.console import Group
from rich.table import Table
from rich.text import Text

import qubo_prune
from qubo_prune.tables import Shown, as_html, rendered


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
        "Answer", "BlockQubo", "BlockStudy", "Comparison", "Experiment", "LossTrace", "Report", "Results", "RunState",
        "SolveResult", "SolverBenchmark", "SolverList",
    }  # fmt: skip
