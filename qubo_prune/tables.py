"""Tables as plain text and as HTML."""

from __future__ import annotations

import abc
import html
import io
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.errors import MarkupError
from rich.table import Column, Table
from rich.text import Text


def rendered(shown: RenderableType, width: int) -> str:
    """A table, or what else rich can show, as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width).print(shown)
    return stream.getvalue().rstrip()


def shown(value: float | None, places: int) -> str:
    """A number as a cell; a dash where none was measured.

    >>> shown(0.25, 3), shown(None, 3)
    ('0.250', '-')
    """
    return "-" if value is None else f"{value:.{places}f}"


class Shown(abc.ABC):
    """What shows itself: as a table in terminals, by rich, and the same table as HTML in notebooks."""

    @abc.abstractmethod
    def __rich__(self) -> Table | Text | Group:
        """For terminals."""

    def _repr_html_(self) -> str:
        return as_html(self.__rich__())


def as_html(shown: Table | Text | Group | str) -> str:
    """A table of rich, a text, or several of them, as HTML that every notebook theme can show.

    Titles, headings, sections, alignment and bold stay; all text is escaped, and nothing is loaded from anywhere.

    >>> table = Table("solver", title="who")
    >>> table.add_row("tabu")
    >>> as_html(table).count("<td")
    1
    """
    if isinstance(shown, Group):
        return "".join(as_html(part) for part in shown.renderables)  # type: ignore[arg-type]
    if isinstance(shown, Table):
        return f'<div class="qubo-prune">{_table(shown)}{_paragraph(shown.caption)}</div>'
    return _paragraph(shown)


def _paragraph(text: RenderableType | None) -> str:
    return f'<p style="max-width: 60em">{_cell(text)}</p>' if text else ""


def _table(table: Table) -> str:
    title = f'<caption style="{_LEFT}; caption-side: top; font-weight: bold">{_cell(table.title)}</caption>'
    heads = [_entry("th", column.header, column, ' scope="col"') for column in table.columns]
    head = f"<thead>{_row(heads)}</thead>" if table.show_header else ""
    return f"<table>{title if table.title else ''}{head}{_body(table)}</table>"


def _body(table: Table) -> str:
    """One ``tbody`` for each section."""
    lines = zip(*(list(column.cells) for column in table.columns), strict=True)
    sections, rows = "", ""
    for row, cells in zip(table.rows, lines, strict=True):
        rows += _row([_entry("td", cell, column) for cell, column in zip(cells, table.columns, strict=True)])
        if row.end_section:
            sections, rows = f"{sections}<tbody>{rows}</tbody>", ""
    return f"{sections}<tbody>{rows}</tbody>" if rows else sections


def _row(entries: Sequence[str]) -> str:
    return f"<tr>{''.join(entries)}</tr>"


_LEFT = "text-align: left"


def _entry(tag: str, content: RenderableType, column: Column, more: str = "") -> str:
    # notebooks align cells to the right unless told otherwise
    align = column.justify if column.justify in ("right", "center") else "left"
    return f'<{tag}{more} style="text-align: {align}; vertical-align: top">{_cell(content)}</{tag}>'


def _cell(content: RenderableType | None) -> str:
    """The text of a cell, escaped; what is bold stays so."""
    parts = []
    for piece in _text(content).render(_PLAIN):
        escaped = html.escape(piece.text)
        parts.append(f"<b>{escaped}</b>" if piece.style and piece.style.bold and escaped.strip() else escaped)
    # spaces at the beginning are an indent
    lines = "".join(parts).strip("\n").split("\n")
    return "<br>".join("&nbsp;" * (len(line) - len(line.lstrip(" "))) + line.lstrip(" ") for line in lines)


_PLAIN = Console(file=io.StringIO(), width=200)


def _text(content: RenderableType | None) -> Text:
    if isinstance(content, Text):
        return Text("").join([content])
    if not isinstance(content, str):
        return Text("" if content is None else str(content))
    try:
        return Text.from_markup(content, emoji=False)
    except MarkupError:  # what looks like markup, but is none
        return Text(content)
