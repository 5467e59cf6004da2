"""Tables as plain text."""

from __future__ import annotations

import pytest
from rich.table import Table

from qubo_prune.tables import rendered


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
