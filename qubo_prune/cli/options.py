"""Options that several commands share, and how commands end."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qubo_prune.choices import WholeRow
from qubo_prune.cli.complete import model_names, one_of, solver_names, some_of
from qubo_prune.cli.help import UNREAD, say
from qubo_prune.cli.run_options import field_of, flag_of, of_field
from qubo_prune.files.parsing import one_line, short
from qubo_prune.request import BLOCKS, BUDGETS, DATA, OUTPUT, RUN, WHAT

DONE, FAILED, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
#: What a command's exit code says.
EXIT_CODES = {
    DONE: "done",
    FAILED: "a check failed, a solver lost all of its blocks, or something unforeseen, with a traceback",
    BAD_INPUT: "bad input or an unknown option; the message says what to do",
    INTERRUPTED: "interrupted (Ctrl-C)",
    UNREAD: "what read the output went away, such as head",
    TERMINATED: "terminated (SIGTERM)",
}

#: Panels of options: the same for the same options of all commands.
in_what = partial(typer.Option, rich_help_panel=WHAT)
in_blocks = partial(typer.Option, rich_help_panel=BLOCKS)
in_budgets = partial(typer.Option, rich_help_panel=BUDGETS)
in_data = partial(typer.Option, rich_help_panel=DATA)
in_run = partial(typer.Option, rich_help_panel=RUN)
in_output = partial(typer.Option, rich_help_panel=OUTPUT)

_MODEL = "A hub id, a local folder, a .gguf file, or smollm2-135m."
Model = Annotated[str, typer.Argument(help=_MODEL, autocompletion=model_names)]
ModelOption = Annotated[str, in_what(help=_MODEL, autocompletion=model_names)]
Density = Annotated[float, in_budgets(help="Kept share of each budget, above 0 and at most 1.")]
Sparsity = Annotated[float | None, in_budgets(help="Pruned share, 1 - density, instead of that.", show_default=False)]
Densities = Annotated[str, in_budgets(help="Comma-separated kept shares.")]
PatternOption = Annotated[str, of_field("pattern")]
SolverOption = Annotated[str, of_field("solver")]
Solvers = Annotated[
    str,
    in_blocks(
        help="Comma-separated names, settings in brackets, such as 'tabu,neal(num_reads=5)'.",
        autocompletion=some_of(solver_names),
    ),
]
AllSolvers = Annotated[
    str,
    in_blocks(
        help="Comma-separated names, settings in brackets, such as 'tabu,neal(num_reads=5)'; by default all that come "
        "with the package.",
        show_default=False,
        autocompletion=some_of(solver_names),
    ),
]
Settings = Annotated[list[str] | None, of_field("solver_settings")]
Exclude = Annotated[list[str] | None, of_field("exclude")]
MethodSettings = Annotated[list[str] | None, of_field("method_settings")]
LossSet = Annotated[list[str] | None, of_field("loss_settings")]
NoPolish = Annotated[bool, of_field("polish")]
Calibration = Annotated[
    str,
    in_data(
        help="Calibration text: a file, a folder of .txt files, a data set id, or pydoc.",
        autocompletion=one_of(("pydoc",)),
    ),
]
Samples = Annotated[int, of_field("samples")]
Text = Annotated[str, in_data(help="Held-out text: a file, a folder, a data set id, or pydoc.")]
EvalSamples = Annotated[int, in_data(help="Windows of held-out text.")]
Length = Annotated[int, of_field("sequence_length")]
Seed = Annotated[int, of_field("seed")]
MaxTime = Annotated[str | None, of_field("max_time")]
Device = Annotated[str, of_field("device")]
Dtype = Annotated[str, of_field("dtype")]
Trust = Annotated[bool, of_field("trust_remote_code")]
Overwrite = Annotated[bool, of_field("overwrite")]
LogFile = Annotated[
    Path | None,
    in_output(help="Append what happens to this file, one JSON object a line.", show_default=False),
]
Quiet = Annotated[bool, in_output("--quiet", "-q", help="No progress bars and no table.")]
Json = Annotated[bool, in_output("--json", help="Print the result as JSON.")]


def settings_given(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run from the values of its options, as a command line gives them."""
    from qubo_prune.masks.keep import KeepMasks

    made = dict(given)
    for name, value in given.items():
        flag, kind = flag_of(name), field_of(name).default
        if isinstance(kind, bool):
            made[name] = value != kind  # a flag turns the default over
        elif name == "densities":
            made[name] = shares(flag, value)
        elif name == "solver_settings":
            made[name] = settings_of(given["solver"], value)
        elif name.endswith("_settings"):
            made[name] = pairs(flag, value) or None
        elif name == "warm_start" and value and value.endswith(".safetensors"):
            made[name] = KeepMasks.load(value)
        elif name == "block_time" and value == "none":
            made[name] = None
        elif kind == ():
            made[name] = tuple(names(value) if isinstance(value, str) else value or ())
    return made


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
        with _terminated_by_exception(), _never_ignored(), logged_to(log_file):
            yield
    except QuboPruneError as error:
        say(f"Error: {error}")
        raise typer.Exit(BAD_INPUT) from None
    except BrokenPipeError:  # whoever read our output went away
        raise
    except OSError as error:
        say(f"Error: {_trouble(error)}")
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt as error:
        asked = isinstance(error, Terminated)
        say(f"{'Terminated' if asked else 'Interrupted'}; {nothing_written}")
        raise typer.Exit(TERMINATED if asked else INTERRUPTED) from None


def _trouble(error: OSError) -> str:
    """What the system refused, as one sentence."""
    from qubo_prune.files.atomic import disk_full

    where = short(os.fspath(error.filename)) if isinstance(error.filename, str | bytes) else "A file or the terminal"
    reason = error.strerror or one_line(str(error), 200) or type(error).__name__
    todo = "free some space, or give a place on another disk" if disk_full(error) else "check its name and permissions"
    return f"{where} cannot be read or written ({reason}); {todo}."


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


@contextmanager
def _never_ignored() -> Iterator[None]:
    """An interrupt that falls into a finaliser, where Python ignores exceptions, comes once more behind it."""
    before = sys.unraisablehook

    def again(raised: sys.UnraisableHookArgs) -> None:
        if isinstance(raised.exc_value, KeyboardInterrupt):
            sent = signal.SIGTERM if isinstance(raised.exc_value, Terminated) else signal.SIGINT
            # a moment later, since one that comes now would fall into this function, and be ignored again
            later = threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, sent))
            later.daemon = True
            later.start()
        else:
            before(raised)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def hush_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def texts(option: str, given: list[str] | None) -> dict[str, str]:
    """Names and values from ``name=value`` texts."""
    from qubo_prune.errors import InputError

    settings: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"The setting {text!r} is not understood; give {option} name=value.")
        if name in settings:
            raise InputError(f"The setting {name!r} is given twice; give it once.")
        settings[name] = value
    return settings


def pairs(option: str, given: list[str] | None) -> dict[str, Any]:
    """Settings from ``name=value`` texts, their values as JSON or as text."""
    from qubo_prune.settings import setting_value

    return {name: setting_value(value) for name, value in texts(option, given).items()}


def shares(option: str, given: list[str] | None) -> dict[str, float]:
    """Numbers from ``pattern=share`` texts."""
    from qubo_prune.errors import InputError

    found = pairs(option, given)
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"{option} {name} gives {value!r}; give a number above 0 and at most 1, such as 0.4.")
    return {name: float(value) for name, value in found.items()}


def settings_of(solver: str, given: list[str] | None) -> dict[str, Any]:
    """Settings from ``name=value`` texts, read as the solver's fields and checked against them."""
    from qubo_prune.solver.registry import read_settings

    return read_settings(solver, texts("--set", given))


def show(result: Any, as_json: bool, quiet: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result.to_dict(), indent=1) + "\n")
    elif not quiet:
        Console().print(result)


def tell_losses(warnings: Sequence[str], all_lost: bool, shown: bool) -> None:
    """End with exit code 1 if a solver lost all of its blocks; say what was lost where no table has shown it."""
    for sentence in () if shown else warnings:
        say(sentence)
    if all_lost:
        say("Error: a solver lost all of its blocks; what was written is what the rest of the run made.")
        raise typer.Exit(FAILED)


def kept_shares(context: Any, density: str, sparsity: str | None) -> str:
    """Densities, separated by commas, from what was given of ``--density`` and ``--sparsity``; n:m says both.

    Args:
        context: of the command, which knows what was given.
        density: with its default.
        sparsity: the pruned shares, or ``None``.

    Raises:
        InputError: both were given, or a pruned share is no number from 0 to below 1.
    """
    from qubo_prune.errors import InputError

    if sparsity is None:
        return density
    source = context.get_parameter_source("density")
    if source is not None and source.name != "DEFAULT":
        raise InputError(f"Both --density {density} and --sparsity {sparsity} are given; give one of the two.")
    return ",".join(text if ":" in text else _kept(text) for text in names(sparsity))


def _kept(text: str) -> str:
    """What a pruned share leaves, in decimals, so that 0.9 leaves 0.1 and not 0.09999999999999998."""
    from qubo_prune.errors import InputError

    try:
        share = Decimal(text)
    except InvalidOperation:
        share = Decimal("nan")
    if not (share.is_finite() and 0 <= share < 1):
        raise InputError(f"--sparsity {text!r} is not understood; give a pruned share from 0 to below 1, such as 0.5.")
    return str(1 - share)


def kept_share(context: Any, density: float, sparsity: float | None) -> float:
    """A density from what was given of ``--density`` and ``--sparsity``, as :func:`kept_shares` has it."""
    return density if sparsity is None else float(kept_shares(context, str(density), str(sparsity)))


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


def block_sizes(text: str) -> tuple[int | WholeRow, ...]:
    """Block sizes from text such as ``64,256,row``."""
    from qubo_prune.arguments import as_block_size
    from qubo_prune.errors import InputError

    try:
        return tuple(as_block_size("", word) for word in text.split(","))
    except InputError:
        raise InputError(
            f"The block sizes {text!r} are not understood; give whole numbers from 2 on, or row for whole rows, such "
            "as 64,256,row."
        ) from None
