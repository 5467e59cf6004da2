"""Tables as plain text and as HTML."""

from __future__ import annotations

import abc
import html
import io
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.errors import MarkupError
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style, StyleType
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text, TextType

#: Characters of a word that may be broken within it which a column has to hold.
_FOLDED = 12


class Table(RichTable):
    """A table that loses nothing in narrow terminals: rows become lists there, a line for each cell.

    >>> table = Table("layer", "weights", "error before", "error after")
    >>> table.add_row("up", "100", "0.5", "0.25")
    >>> print(rendered(table, 20))
    up
      weights: 100
      error before: 0.5
      error after: 0.25
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType | Segment]:
        if self.columns and not self._fits(console, options):
            yield from self._as_lists(console, options)
        else:
            yield from super().__rich_console__(console, options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        if self.columns and not self._fits(console, options):
            return Measurement(1, options.max_width)
        return super().__rich_measure__(console, options)

    def _fits(self, console: Console, options: ConsoleOptions) -> bool:
        """True if every column gets the characters that its cells need."""
        inner = options.update_width(max(1, options.max_width - self._extra_width))
        given = self._calculate_column_widths(console, inner)
        wide = options.update_width(10**4)
        needed = [self._needed(column, self._measure_column(console, wide, column)) for column in self.columns]
        enough = all(width >= least for width, least in zip(given, needed, strict=True))
        return enough and sum(given) + self._extra_width <= options.max_width

    @staticmethod
    def _needed(column: Column, measured: Measurement) -> int:
        if column.no_wrap:
            return measured.maximum
        folds = column.overflow == "fold" or column.justify == "left"
        return min(measured.minimum, _FOLDED) if folds else measured.minimum

    def _as_lists(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType | Segment]:
        if self.title:
            yield _annotation(self.title, Style.pick_first(self.title_style, "table.title"))
        names = [" ".join(_text(column.header).plain.split()) for column in self.columns[1:]]
        lines = zip(*(list(column.cells) for column in self.columns), strict=True)
        for heading, *cells in lines:
            yield _broken(heading, console, options)
            for name, cell in zip(names, cells, strict=True):
                told = _text(cell)
                if told.plain.strip():
                    yield Text("  ").append(f"{name}: " if name else "").append_text(told)
        if self.caption:
            yield _annotation(self.caption, Style.pick_first(self.caption_style, "table.caption"))


def _annotation(text: TextType, style: StyleType) -> Text:
    told = _text(text)
    told.stylize_before(style)
    return told


def _broken(content: RenderableType, console: Console, options: ConsoleOptions) -> RenderableType:
    """A cell as the heading of its row's list, of which no character is lost."""
    if not isinstance(content, (str, Text)):
        return content
    told = _text(content)
    told.overflow = "fold"
    return told


class _PlainText(io.StringIO):
    """Takes text for a terminal that may lack characters: lines of tables are then drawn with those that it has."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of standard output."""
        return getattr(sys.stdout, "encoding", None) or "utf-8"


def rendered(shown: RenderableType, width: int) -> str:
    """A table, or what else rich can show, as plain text that can be printed: characters that cannot are replaced."""
    stream = _PlainText()
    Console(file=stream, width=width).print(shown)
    return stream.getvalue().rstrip().encode(stream.encoding, "replace").decode(stream.encoding)


def replace_unprintable() -> None:
    """Let standard output replace characters that its encoding lacks, in names of files say, instead of raising.

    Standard error does so by itself.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def shown(value: float | None, places: int) -> str:
    """A number as a cell; a dash where none was measured.

    >>> shown(0.25, 3), shown(None, 3)
    ('0.250', '-')
    """
    return "-" if value is None else f"{value:.{places}f}"


class Shown(abc.ABC):
    """What shows itself: as a table in terminals, by rich, and the same table as HTML in notebooks."""

    @abc.abstractmethod
    def __rich__(self) -> RichTable | Text | Group:
        """For terminals."""

    def _repr_html_(self) -> str:
        return as_html(self.__rich__())


def as_html(shown: RichTable | Text | Group | str) -> str:
    """A table of rich, a text, or several of them, as HTML that every notebook theme can show.

    Titles, headings, sections, alignment and bold stay; all text is escaped, and nothing is loaded from anywhere.

    >>> table = Table("solver", title="who")
    >>> table.add_row("tabu")
    >>> as_html(table).count("<td")
    1
    """
    if isinstance(shown, Group):
        return "".join(as_html(part) for part in shown.renderables)  # type: ignore[arg-type]
    if isinstance(shown, RichTable):
        return f'<div class="qubo-prune">{_table(shown)}{_paragraph(shown.caption)}</div>'
    return _paragraph(shown)


def _paragraph(text: RenderableType | None) -> str:
    return f'<p style="max-width: 60em">{_cell(text)}</p>' if text else ""


def _table(table: RichTable) -> str:
    title = f'<caption style="{_LEFT}; caption-side: top; font-weight: bold">{_cell(table.title)}</caption>'
    heads = [_entry("th", column.header, column, ' scope="col"') for column in table.columns]
    head = f"<thead>{_row(heads)}</thead>" if table.show_header else ""
    return f"<table>{title if table.title else ''}{head}{_body(table)}</table>"


def _body(table: RichTable) -> str:
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


def facts_table(facts: dict[str, str], title: str = "", caption: str = "") -> Table:
    """Names and what is known, one line each; no text of it is markup."""
    table = Table(
        box=None,
        show_header=False,
        pad_edge=False,
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        caption=Text(caption) if caption else None,
        caption_justify="left",
    )
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(Text(name), Text(fact))
    return table
