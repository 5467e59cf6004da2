"""Options of commands from the fields of dataclasses."""

from __future__ import annotations

import doctest
import inspect
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from typer.testing import CliRunner

from qubo_prune.cli import derive
from qubo_prune.cli.derive import options_of, with_options
from qubo_prune.cli.options import in_run


@dataclass(frozen=True)
class Reading:
    """Options in the fields' metadata, and one in a type."""

    page_size: int = field(default=3, metadata={"help": "Lines.", "panel": "Pages", "choices": ("30", "60")})
    seed: Annotated[int, in_run(help="Every choice.")] = 7
    names: list[str] = field(default_factory=lambda: ["a"])
    hidden: int = field(default=0, init=False)


@dataclass(frozen=True)
class Needed:
    """A field without a default."""

    folder: str


def parameters(function: Any) -> dict[str, Any]:
    app = typer.Typer()
    app.command()(function)
    return {param.opts[0]: param for param in typer.main.get_command(app).params}


def test_each_field_is_an_option() -> None:
    @with_options
    def command(*, reading: Reading) -> None:
        """Reads."""

    found = parameters(command)
    assert list(found)[:3] == ["--page-size", "--seed", "--names"]
    assert [found[name].default for name in list(found)[:3]] == [3, 7, ["a"]]
    assert (found["--page-size"].help, found["--page-size"].rich_help_panel) == ("Lines.", "Pages")
    assert (found["--seed"].help, found["--seed"].rich_help_panel) == ("Every choice.", "Run")
    page, *_ = options_of(Reading)
    assert page.annotation.__metadata__[0].autocompletion("3") == ["30"]


def test_the_command_gets_the_dataclass() -> None:
    @with_options
    def command(context: typer.Context, *, first: str = "x", reading: Reading, needed: Needed) -> None:
        """Reads."""
        source: Any = context.get_parameter_source("page_size")
        typer.echo(f"{first} {reading.page_size} {reading.names} {needed.folder} {source.name}")

    app = typer.Typer()
    app.command()(command)
    assert list(inspect.signature(command).parameters) == ["context", "first", "page_size", "seed", "names", "folder"]
    result = CliRunner().invoke(app, ["--page-size", "9", "--names", "b", "--names", "c", "--folder", "here"])
    assert result.stdout == "x 9 ['b', 'c'] here COMMANDLINE\n", result.stderr
    assert CliRunner().invoke(app, []).exit_code == 2  # the folder is needed


def test_the_examples_run() -> None:
    assert doctest.testmod(derive).failed == 0
