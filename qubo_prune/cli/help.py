"""How the command line speaks: help with examples, groups of commands, errors as one sentence."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from qubo_prune.errors import did_you_mean
from qubo_prune.tables import replace_unprintable

F = TypeVar("F", bound=Callable[..., Any])

#: What a command line may be refused for, whether typer brings click or its own copy of it.
_REFUSALS: type[Exception] = typer.BadParameter.__mro__[2]
#: The exit code of a command whose output nobody reads, as of one that the signal for it ends.
UNREAD = 141
#: Begins the last part of a docstring; the lines below it are examples to copy.
_EXAMPLES = "Examples:"


def say(sentence: str) -> None:
    """Print to standard error, without markup and in one line however narrow the terminal."""
    Console(stderr=True, soft_wrap=True).print(sentence, markup=False, highlight=False)


def command(app: typer.Typer, name: str, panel: str | None = None) -> Callable[[F], F]:
    """Register a function as a command; its docstring is the help, its examples stand below the options.

    Args:
        app: the group that gets it.
        name: of the command.
        panel: of the group's help that lists it.
    """

    def register(function: F) -> F:
        text, _, below = inspect.cleandoc(function.__doc__ or "").partition(f"\n{_EXAMPLES}\n")
        lines = examples(*below.splitlines())
        app.command(name, cls=Command, help=unwrapped(text), epilog=lines, rich_help_panel=panel)(function)
        return function

    return register


def unwrapped(text: str) -> str:
    """Every paragraph as one line, which the terminal wraps, with nothing in it that is read as markup."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return _plain("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))


def examples(*lines: str) -> str:
    """Lines to copy, with a heading."""
    return heading("Examples", *(f"  {line.strip()}" for line in lines if line.strip()))


def heading(title: str, *lines: str) -> str:
    """Lines below a title, as they are."""
    return "\n".join([f"[bold]{title}[/]", *map(_plain, lines)])


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _without_type(params: list[Any]) -> list[Any]:
    """Options that take no value, shown without the type of one."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


class Command(TyperCommand):
    """A command whose ``--help`` stands with the options of its last panel."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options and arguments."""
        return _without_type(super().get_params(ctx))

    def get_help_option(self, ctx: Any) -> Any:
        """The option, with the panel of the last of the others."""
        option = super().get_help_option(ctx)
        panels = [getattr(param, "rich_help_panel", None) for param in self.params if param.param_type_name == "option"]
        if option is not None and panels:
            option.rich_help_panel = panels[-1]
        return option


class Group(TyperGroup):
    """A group of commands that says of a wrong call what was given, what is near and where to read on."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The options."""
        return _without_type(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command of that name; near ones are offered, those of groups within this one too."""
        if args[0] not in self.commands and not ctx.resilient_parsing and not args[0].startswith("-"):
            raise _refusal(
                f"There is no command {args[0]!r}{self._near(args[0])}; use one of {', '.join(self.commands)}.", ctx
            )
        return super().resolve_command(ctx, args)

    def _near(self, name: str) -> str:
        """Of the own commands, or the full path of one further below."""
        below = {
            inner: f"{group} {inner}"
            for group, found in self.commands.items()
            for inner in getattr(found, "commands", {})
            if inner not in self.commands
        }
        if name in below:
            return f" (did you mean {below[name]!r}?)"
        return did_you_mean(name, self.commands)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run; a wrong call ends with one sentence on standard error and the exit code 2."""
        replace_unprintable()
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
            if sys.stdout is not None:  # whoever began us has closed it
                sys.stdout.flush()
        except _REFUSALS as error:
            _end_refused(error)
        except BrokenPipeError:
            _end_unread()
        except SystemExit as error:  # what click makes of it
            if isinstance(error.__context__, BrokenPipeError):
                _end_unread()
            raise
        except OSError as error:
            _drop_output()
            say(f"Error: the output cannot be written ({error.strerror or error}); free some space or write elsewhere.")
            sys.exit(2)
        sys.exit(code if isinstance(code, int) else 0)


def _end_unread() -> NoReturn:
    _drop_output()
    sys.exit(UNREAD)


def _drop_output() -> None:
    """Let what is left to be printed go nowhere, or Python would fail on it once more at its end."""
    with suppress(OSError, ValueError):  # a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refusal(message: str, ctx: Any) -> Exception:
    error = typer.BadParameter.__mro__[1](message, ctx)  # UsageError
    assert isinstance(error, Exception)
    return error


def _end_refused(error: Any) -> NoReturn:
    if type(error).__name__ != "NoArgsIsHelpError":  # whose help was printed
        say(f"Error: {_sentence(error)}")
    sys.exit(error.exit_code)


def _sentence(error: Any) -> str:
    """What was given, what is near, and where to read on."""
    ctx: Any = getattr(error, "ctx", None)
    help_of = f"{ctx.command_path} --help" if ctx is not None else "qubo-prune --help"
    given = getattr(error, "option_name", None)
    if given is not None and getattr(error, "possibilities", None) is not None:
        known = [option for param in ctx.command.get_params(ctx) for option in (*param.opts, *param.secondary_opts)]
        return f"There is no option {given!r}{did_you_mean(given, known)}; {help_of} lists them."
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message}." if "; use one of " in message else f"{message}; {help_of} tells more."
