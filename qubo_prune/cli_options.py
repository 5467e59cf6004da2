"""Options that several commands share, and how commands end."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
TERMINATED = 143


Method = Annotated[
    str,
    typer.Option(help="icbs (blocks), magnitude, wanda, ria, sparsegpt, admm, alps, dsnot, sparsefw or sparseswaps."),
]
Hessian = Annotated[
    str,
    typer.Option(
        help="Blocks from gram (layer inputs), compensated (the same, for weights that adapt) or fisher (the loss)."
    ),
]
Update = Annotated[
    str | None,
    typer.Option(
        help="Kept weights: none, refit, admm or sparsegpt; by default the method's own, refit with compensated.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Argument(help="A hub id, a local folder, a .gguf file, or smollm2-135m.")]
Density = Annotated[float, typer.Option(help="Kept share of each budget, above 0 and at most 1.")]
PatternOption = Annotated[str, typer.Option(help="Where the budget is balanced: row, layer, or n:m such as 2:4.")]
SolverOption = Annotated[
    str, typer.Option(help="Who decides: a name, package.module:Class, or adapter:package.module:Thing.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the solver, its value as JSON or as text."),
]
NoPolish = Annotated[bool, typer.Option("--no-polish", help="Leave out the swaps on the solver's answers.")]
Densities = Annotated[str, typer.Option(help="Comma-separated kept shares.")]
Calibration = Annotated[
    str, typer.Option(help="Calibration text: a file, a folder of .txt files, a data set id, or pydoc.")
]
Samples = Annotated[int, typer.Option(help="Calibration windows.")]
Text = Annotated[str, typer.Option(help="Held-out text: a file, a folder, a data set id, or pydoc.")]
EvalSamples = Annotated[int, typer.Option(help="Windows of held-out text.")]
Length = Annotated[int, typer.Option(help="Tokens per window.")]
Seed = Annotated[int, typer.Option(help="Every random choice follows from it.")]
MaxTime = Annotated[
    str | None,
    typer.Option(help="Wall-clock budget of the run such as 90s, 5m, 1h; the best masks so far count."),
]
Device = Annotated[str, typer.Option(help="Where the model lives: cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="Type of the loaded weights: auto, float32, bfloat16, float16.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run model code that comes with the checkpoint.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output folder that is not empty.")]
LogFile = Annotated[
    Path | None,
    typer.Option(help="Append what happens to this file, one JSON object a line.", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no table.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class Terminated(KeyboardInterrupt):
    """The system asked the process to end; all that is true of Ctrl-C is true of this."""


@contextmanager
def plain_errors(nothing_written: str, log_file: Path | None = None) -> Iterator[None]:
    """Bad input ends with one sentence and exit code 2, an interrupt with 130, SIGTERM with 143; no traceback.

    Args:
        nothing_written: what an interrupt leaves behind, to be said.
        log_file: where records are appended to meanwhile.
    """
    # read when tqdm is first imported (torch does it): our own bars show what takes long
    os.environ.setdefault("TQDM_DISABLE", "1")
    from qubo_prune.errors import QuboPruneError
    from qubo_prune.events import logged_to

    try:
        with _terminated_by_exception(), logged_to(log_file):
            yield
    except QuboPruneError as error:
        Console(stderr=True, soft_wrap=True).print(f"Error: {error}", markup=False, highlight=False)
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt as error:
        asked = isinstance(error, Terminated)
        said = f"{'Terminated' if asked else 'Interrupted'}; {nothing_written}"
        Console(stderr=True, soft_wrap=True).print(said, markup=False, highlight=False)
        raise typer.Exit(TERMINATED if asked else INTERRUPTED) from None


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does, so that nothing is left half done."""

    def end(number: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def hush_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def pairs(option: str, given: list[str] | None) -> dict[str, Any]:
    """Settings from ``name=value`` texts."""
    from qubo_prune.errors import InputError
    from qubo_prune.registry import setting_value

    settings: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"The setting {text!r} is not understood; give {option} name=value.")
        if name in settings:
            raise InputError(f"The setting {name!r} is given twice; give it once.")
        settings[name] = setting_value(value)
    return settings


def settings_of(solver: str, given: list[str] | None) -> dict[str, Any]:
    """Settings from ``name=value`` texts, checked against the solver they are for."""
    from qubo_prune.errors import InputError
    from qubo_prune.registry import make_solver

    settings = pairs("--set", given)
    try:
        make_solver(solver, **settings)
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # an unknown setting, or a value that the solver refuses
        raise InputError(str(error)) from None
    return settings


def show(result: Any, as_json: bool, quiet: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result.to_dict(), indent=1) + "\n")
    elif not quiet:
        Console().print(result)


def names(text: str) -> list[str]:
    """The words of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def counts(text: str | None) -> tuple[int, ...] | None:
    from qubo_prune.errors import InputError

    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise InputError(f"The numbers {text!r} are not understood; give whole ones from 0 on, such as 5 or 5,3.")
    return tuple(map(int, words))
