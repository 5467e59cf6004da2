"""Option tables of the documentation, written from the commands and the fields of their settings.

    python docs/option_tables.py          write them into docs/command-line.md
    python docs/option_tables.py --check  exit code 1 if the page has another one

A table stands between ``<!-- options of COMMAND -->`` and ``<!-- end of options -->``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import typer

from qubo_prune.cli import app
from qubo_prune.cli.run_options import said_of

PAGE = Path(__file__).parent / "command-line.md"
_TABLE = re.compile(r"(<!-- options of ([\w ]+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def table_of(name: str) -> str:
    """The options of a command as a table in Markdown."""
    command: Any = typer.main.get_command(app)
    for part in name.split():
        command = command.commands[part]
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for param in command.params:
        if param.param_type_name == "option" and param.name != "help":
            options = ", ".join(f"`{option}`" for option in param.opts)
            lines.append(f"| {options} | {_default(param)} | {_cell(said_of(param.name, param.help))} |")
    return "\n".join(lines) + "\n"


def _default(param: Any) -> str:
    """As the help shows it."""
    if isinstance(param.show_default, str):
        return _cell(param.show_default)
    if param.is_flag:
        return "off"
    return "" if param.default in (None, (), []) else f"`{param.default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\\[", "[")


def written(page: str) -> str:
    """A page with its tables anew."""
    return _TABLE.sub(lambda found: f"{found[1]}{table_of(found[2])}{found[3]}", page)


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    after = written(before)
    if "--check" in sys.argv:
        sys.exit(0 if before == after else f"{PAGE.name} is out of date; run python docs/option_tables.py")
    PAGE.write_text(after, encoding="utf-8")
