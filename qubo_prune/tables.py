"""Tables as plain text."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def rendered(shown: RenderableType, width: int) -> str:
    """A table, or what else rich can show, as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width).print(shown)
    return stream.getvalue().rstrip()
