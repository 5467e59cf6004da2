"""Tables as plain text."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table


def rendered(table: Table, width: int) -> str:
    """A table as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue().rstrip()
