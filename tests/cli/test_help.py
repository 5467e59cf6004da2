"""The help of every command, its errors, and what reaches a terminal or a pipe."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import qubo_prune
from qubo_prune.cli import app
from qubo_prune.cli.help import examples, unwrapped
from qubo_prune.cli.options import EXIT_CODES

ESCAPE = "\x1b"
#: What a person may have set, and what would change how things look.
_LOOKS = ("FORCE_COLOR", "NO_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "COLUMNS", "TERM", "TTY_COMPATIBLE")


def paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and every group."""
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from paths(inner, (*path, name))


ALL = list(paths(typer.main.get_command(app)))


def call(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments), prog_name="qubo-prune")
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_the_help_has_examples_to_copy_and_fits_80_columns(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call(*path, "--help")
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    lines = [line.strip() for line in printed.splitlines() if line.strip().startswith("qubo-prune ")]
    assert lines, "no example"
    for line in lines:
        if "COMMAND" not in line:
            assert_parses(line)
    if path:
        assert any(line.startswith(" ".join(("qubo-prune", *path))) for line in lines)


def assert_parses(line: str) -> None:
    """The example names a command and options that there are."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), line
    command.make_context("x", words)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_sentences_of_the_help_are_not_broken_but_by_the_terminal(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    command: Any = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    printed = " ".join(call(*path, "--help")[1].splitlines())
    for paragraph in command.help.split("\n\n"):
        assert "\n" not in paragraph
        assert paragraph.replace("\\[", "[") in re.sub(" +", " ", printed)


def test_options_stand_in_panels() -> None:
    _, printed, _ = call("prune", "--help")
    panels = re.findall(r"─ ([A-Z][a-z ]+) ─", printed)
    assert panels == ["Arguments", "What to prune", "Blocks and solver", "Budgets", "Data", "Run", "Output"]
    _, printed, _ = call("--help")
    assert re.findall(r"─ ([A-Z][a-z ]+) ─", printed) == ["Options", "Prune", "Solve", "Measure"]


def test_one_option_stands_in_one_panel_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for path in ALL:
        command: Any = typer.main.get_command(app)
        for name in path:
            command = command.commands[name]
        for param in command.params:
            if param.param_type_name == "option" and getattr(command, "commands", None) is None:
                found.setdefault(param.opts[0], set()).add(param.rich_help_panel)
    assert {option: panels for option, panels in found.items() if len(panels) > 1} == {}


def test_the_version_and_the_exit_codes() -> None:
    assert call("--version") == (0, f"qubo-prune {qubo_prune.__version__}\n", "")
    _, printed, _ = call("--help")
    plain = " ".join(printed.replace("│", " ").split())
    for code, meaning in EXIT_CODES.items():
        assert f" {code} {meaning}" in plain
    assert call()[0] == 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prun", "There is no command 'prun' (did you mean 'prune'?); use one of prune, watch"),
        ("tones", "There is no command 'tones' (did you mean 'bench tones'?)"),
        ("bench tnes", "There is no command 'tnes' (did you mean 'tones'?)"),
        ("prune m --densty 1", "There is no option '--densty' (did you mean '--density'"),
        ("prune m --zzzzz", "There is no option '--zzzzz'; qubo-prune prune --help lists them."),
        ("prune", "Missing argument 'model'; qubo-prune prune --help tells more."),
        ("prune m --density half", "Invalid value for '--density'"),
        ("watch run --interval 0", "Invalid value for '--interval'"),
        ("eval m more", "unexpected extra argument"),
        ("prune m --output", "requires an argument"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_code_2(line: str, said: str) -> None:
    code, printed, errors = call(*line.split())
    assert (code, printed) == (2, "")
    assert errors.startswith("Error: ")
    assert said in errors
    assert len(errors.strip().splitlines()) == 1


def test_text_of_docstrings_is_no_markup() -> None:
    assert unwrapped("One\n    two [red].\n\n    Three\n    four.") == "One two \\[red].\n\nThree four."
    assert examples("a [b]", "", " c") == "[bold]Examples[/]\n  a \\[b]\n  c"


# --- what reaches a pipe, and a terminal ---------------------------------------------------------------


def environment(**given: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _LOOKS} | given


def piped(*arguments: str, **given: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qubo_prune.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(**given))


@pytest.mark.gate(4)
@pytest.mark.parametrize("given", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
@pytest.mark.parametrize("line", ["--help", "prune --help", "prune m --densty 1", "nosuch", "solvers", "watch nowhere"])
def test_nothing_is_coloured_in_a_pipe(line: str, given: dict[str, str]) -> None:
    found = piped(*line.split(), **given)
    assert ESCAPE not in found.stdout + found.stderr
    assert max(map(len, found.stdout.splitlines()), default=0) <= 80
    assert found.returncode == (0 if line.endswith("--help") or line == "solvers" else 2)


def test_colours_can_be_forced() -> None:
    found = piped("--help", FORCE_COLOR="1", TERM="xterm-256color")
    assert ESCAPE in found.stdout
    assert "╭" in found.stdout


def on_a_terminal(*arguments: str, **given: str) -> str:
    """What a command prints to a terminal."""
    main, end = pty.openpty()
    command = [sys.executable, "-m", "qubo_prune.cli", *arguments]
    process = subprocess.Popen(command, stdout=end, stderr=end, stdin=end, env=environment(**given))
    os.close(end)
    printed = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        printed += part
    process.wait()
    os.close(main)
    return printed.decode()


def test_a_terminal_gets_colours_unless_they_are_not_wanted() -> None:
    shown = on_a_terminal("--help", TERM="xterm-256color", COLUMNS="80")
    assert f"{ESCAPE}[" in shown
    assert "╭" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", on_a_terminal("--help", TERM="xterm-256color", NO_COLOR="1"))
    assert ESCAPE not in on_a_terminal("--help", TERM="dumb")


def test_the_page_has_the_exit_codes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \|", page.split("## Exit codes")[1].split("\n## ")[0], flags=re.M)
    assert [int(code) for code in listed] == list(EXIT_CODES)
