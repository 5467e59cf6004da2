"""The command line. Every option mirrors an argument of the Python call of the same name."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    help="Prune neural networks through block QUBOs: any solver decides, block coordinate descent merges.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

bench = typer.Typer(help="Measure solvers.", no_args_is_help=True)
app.add_typer(bench, name="bench")

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


class Method(StrEnum):
    """How masks are chosen."""

    icbs = "icbs"
    magnitude = "magnitude"
    wanda = "wanda"


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
Calibration = Annotated[
    str, typer.Option(help="Calibration text: a file, a folder of .txt files, a data set id, or pydoc.")
]
Samples = Annotated[int, typer.Option(help="Calibration windows.")]
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
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no table.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def _plain_errors(nothing_written: str) -> Iterator[None]:
    """Bad input ends with one sentence and exit code 2, an interrupt with 130; no traceback."""
    # read when tqdm is first imported (torch does it): our own bars show what takes long
    os.environ.setdefault("TQDM_DISABLE", "1")
    from qubo_prune.errors import QuboPruneError

    try:
        yield
    except QuboPruneError as error:
        Console(stderr=True, soft_wrap=True).print(f"Error: {error}", markup=False, highlight=False)
        raise typer.Exit(BAD_INPUT) from None
    except KeyboardInterrupt:
        Console(stderr=True, soft_wrap=True).print(f"Interrupted; {nothing_written}", markup=False)
        raise typer.Exit(INTERRUPTED) from None


def _hush_libraries() -> None:
    """Leave the terminal to our own progress bars."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _settings(solver: str, given: list[str] | None) -> dict[str, Any]:
    """Settings from ``name=value`` texts, checked against the solver they are for."""
    from qubo_prune.errors import InputError
    from qubo_prune.registry import make_solver, setting_value

    settings: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"The setting {text!r} is not understood; give --set name=value.")
        if name in settings:
            raise InputError(f"The setting {name!r} is given twice; give it once.")
        settings[name] = setting_value(value)
    try:
        make_solver(solver, **settings)
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # an unknown setting, or a value that the solver refuses
        raise InputError(str(error)) from None
    return settings


def _show(result: Any, as_json: bool, quiet: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result.to_dict(), indent=1) + "\n")
    elif not quiet:
        Console().print(result)


@app.command("prune")
def prune_command(
    model: Model,
    output: Annotated[Path, typer.Option(help="Folder for the pruned model, report.json and masks.safetensors.")],
    density: Density = 0.5,
    pattern: PatternOption = "row",
    method: Annotated[Method, typer.Option(help="Blocks, or a score alone.")] = Method.icbs,
    solver: SolverOption = "greedy",
    warm_start: Annotated[
        str, typer.Option(help="magnitude, wanda, greedy, random, or a masks.safetensors.")
    ] = "wanda",
    set_: Settings = None,
    block_size: Annotated[
        int | None, typer.Option(help="Weights per block; 64, or less if the solver takes less.")
    ] = None,
    block_time: Annotated[
        str, typer.Option(help="Most time for one block such as 500ms or 10s; none for no limit.")
    ] = "60s",
    workers: Annotated[
        int | None, typer.Option(help="Processes for solvers that take one block at a time; one per core.")
    ] = None,
    no_polish: NoPolish = False,
    max_sweeps: Annotated[int, typer.Option(help="Most blocks per row before the whole-row swaps.")] = 1,
    max_time: MaxTime = None,
    calibration: Calibration = "pydoc",
    samples: Samples = 32,
    sequence_length: Length = 512,
    include: Annotated[list[str] | None, typer.Option(help="Prune only layers like this, e.g. '*.mlp.*'.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Leave layers like this dense.")] = None,
    prune_head: Annotated[bool, typer.Option("--prune-head", help="Prune the output head too.")] = False,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prune a language model and save it as a folder that transformers loads.

    Example: qubo-prune prune smollm2-135m --density 0.5 --output pruned
    """
    with _plain_errors("nothing was written."):
        from qubo_prune.masks import KeepMasks
        from qubo_prune.pruning import prune

        _hush_libraries()
        given = KeepMasks.load(warm_start) if warm_start.endswith(".safetensors") else warm_start
        report = prune(
            model, calibration, density, pattern=pattern, method=method.value, solver=solver,
            solver_settings=_settings(solver, set_), warm_start=given, block_size=block_size,
            block_time=None if block_time == "none" else block_time, workers=workers, polish=not no_polish,
            max_sweeps=max_sweeps, max_time=max_time, seed=seed, samples=samples,
            sequence_length=sequence_length, include=include or (), exclude=exclude or (), prune_head=prune_head,
            dtype=dtype, device=device, trust_remote_code=trust_remote_code, output=output, overwrite=overwrite,
            progress=not quiet,
        )  # fmt: skip
        _show(report, as_json, quiet)


@app.command("eval")
def eval_command(
    model: Model,
    text: Annotated[str, typer.Option(help="Held-out text: a file, a folder, a data set id, or pydoc.")] = "pydoc",
    samples: Annotated[int, typer.Option(help="Windows of text.")] = 24,
    sequence_length: Length = 512,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Print a model's perplexity on a text.

    Example: qubo-prune eval pruned --text my-texts/
    """
    with _plain_errors("nothing was changed."):
        from qubo_prune.evaluation import evaluate
        from qubo_prune.models import load_model
        from qubo_prune.progress import Progress

        _hush_libraries()
        bars = Progress(not quiet)
        with bars.task(f"loading {model}", None):
            loaded = load_model(model, dtype, device, trust_remote_code)
        result = evaluate(loaded.model, loaded.tokenizer, text, samples, sequence_length, bars)
        if as_json:
            _show(result, True, quiet)
        else:
            typer.echo(f"perplexity {result.perplexity:.3f} on {result.tokens} tokens in {result.seconds:.1f} s")


@app.command("compare")
def compare_command(
    model: Model,
    methods: Annotated[str, typer.Option(help="Comma-separated: magnitude, wanda, icbs.")] = "magnitude,wanda,icbs",
    density: Density = 0.5,
    pattern: PatternOption = "row",
    solver: SolverOption = "greedy",
    max_time: MaxTime = None,
    calibration: Calibration = "pydoc",
    text: Annotated[str, typer.Option(help="Held-out text.")] = "pydoc",
    samples: Samples = 32,
    eval_samples: Annotated[int, typer.Option(help="Windows of held-out text.")] = 24,
    sequence_length: Length = 512,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder for the model of the last method.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prune a model by several methods and print one table.

    Example: qubo-prune compare smollm2-135m --methods wanda,icbs --density 0.5
    """
    with _plain_errors("nothing was written."):
        from qubo_prune.comparison import compare

        _hush_libraries()
        result = compare(
            model, [name.strip() for name in methods.split(",") if name.strip()], calibration=calibration, text=text,
            density=density, pattern=pattern, solver=solver, max_time=max_time, seed=seed, samples=samples,
            eval_samples=eval_samples, sequence_length=sequence_length, device=device, dtype=dtype, output=output,
            overwrite=overwrite, progress=not quiet,
        )  # fmt: skip
        _show(result, as_json, quiet)
        if output is not None and not quiet and not as_json:
            typer.echo(f"The model of the last method is in {output}.")


@app.command("solve")
def solve_command(
    problem: Annotated[Path, typer.Argument(help="A problem file: .json, .coo, .qubo, .lp or .ising.")],
    solver: SolverOption = "greedy",
    set_: Settings = None,
    num_pruned: Annotated[
        str | None, typer.Option(help="Exact counts in place of the file's: 5, or 5,3 for two groups.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="Format of the file, if its suffix does not say it.")] = None,
    seed: Seed = 0,
    time_limit: Annotated[str | None, typer.Option(help="Wall-clock limit such as 500ms, 10s, 5m.")] = None,
    answers: Annotated[int, typer.Option(help="How many answers are wanted at most.")] = 1,
    no_polish: NoPolish = False,
    output: Annotated[Path | None, typer.Option(help="File for the result as JSON.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Solve one block QUBO from a file.

    Example: qubo-prune solve problem.json --solver tabu --time-limit 5s
    """
    with _plain_errors("nothing was written."):
        from qubo_prune.answer import Answer
        from qubo_prune.dispatch import solve
        from qubo_prune.errors import InputError
        from qubo_prune.files import read_problem
        from qubo_prune.progress import Progress
        from qubo_prune.pruning import parse_seconds

        settings, limit = _settings(solver, set_), parse_seconds(time_limit)
        if output is not None and (output.is_dir() or not output.parent.is_dir()):
            raise InputError(f"{output} cannot be written: give a file in a folder that is there.")
        read = read_problem(problem, _counts(num_pruned), format)
        with Progress(not quiet).task(f"solving {problem.name} by {solver}", None):
            result = solve(read, solver, seed, limit, num_answers=answers, polish=not no_polish, **settings)
        asked = {"settings": settings, "seed": seed, "time_limit": limit, "polish": not no_polish}
        answer = Answer(read, result, str(problem), asked)
        if output is not None:
            answer.save(output)
        _show(answer, as_json, quiet)


def _counts(text: str | None) -> tuple[int, ...] | None:
    from qubo_prune.errors import InputError

    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise InputError(f"The numbers {text!r} are not understood; give whole ones from 0 on, such as 5 or 5,3.")
    return tuple(map(int, words))


@app.command("solvers")
def solvers_command(as_json: Json = False) -> None:
    """List the solvers, what they can do, and why one cannot be used here."""
    from dataclasses import asdict

    from rich.table import Table

    from qubo_prune.registry import available_adapters, describe_solvers

    infos = describe_solvers()
    if as_json:
        sys.stdout.write(json.dumps([asdict(info) for info in infos], indent=1) + "\n")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("solver", "exact", "counts", "groups", "batch", "factor", "random", "size", "package", "state"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for info in infos:
        can = info.capabilities
        if can is None:
            table.add_row(info.name, *["?"] * 7, info.distribution, "not usable")
            continue
        groups = can.cardinality and can.groups
        flags = (can.exact, can.cardinality, groups, can.batched, can.factor_form, can.stochastic)
        size = "any" if can.max_variables is None else str(can.max_variables)
        table.add_row(info.name, *("yes" if flag else "-" for flag in flags), size, info.distribution, "ready")
    Console().print(table)
    for info in infos:
        if info.error:
            Console(soft_wrap=True).print(f"{info.name}: {info.error}", markup=False, highlight=False)
    typer.echo(f"Adapters (NAME:package.module:Thing): {', '.join(available_adapters()) or 'none'}")


@app.command("check-solver")
def check_solver_command(
    solver: Annotated[str, typer.Argument(help="A name, package.module:Class, or adapter:package.module:Thing.")],
    set_: Settings = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check that a solver keeps to the contract; exit code 1 if it does not.

    Example: qubo-prune check-solver my_package.my_module:MySolver
    """
    with _plain_errors("nothing was changed."):
        from dataclasses import asdict

        from rich.table import Table
        from rich.text import Text

        from qubo_prune.progress import Progress
        from qubo_prune.registry import make_solver
        from qubo_prune.testing import check_names, run_check

        made, outcomes = make_solver(solver, **_settings(solver, set_)), []
        with Progress(not quiet and not as_json).task(f"checking {solver}", len(check_names())) as advance:
            for name in check_names():
                outcomes.append(run_check(name, made))
                advance(1, name)
        failed = sum(outcome.passed is False for outcome in outcomes)
        if as_json:
            sys.stdout.write(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
        elif not quiet:
            table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
            for column in ("check", "result", "seconds", ""):
                table.add_column(column, justify="right" if column == "seconds" else "left", overflow="fold")
            for outcome in outcomes:
                state = {True: "passed", False: "FAILED", None: "n/a"}[outcome.passed]
                table.add_row(outcome.name.replace("_", " "), state, f"{outcome.seconds:.2f}", Text(outcome.message))
            Console().print(table)
            typer.echo(f"{solver}: {failed} of {len(outcomes)} checks failed." if failed else f"{solver}: passed.")
        if failed:
            raise typer.Exit(FAILED)


@bench.command("solvers")
def bench_solvers_command(
    solvers: Annotated[
        str, typer.Option(help="Comma-separated names, settings in brackets, such as 'tabu,neal(num_reads=5)'.")
    ] = "greedy,local,tabu,anneal,exact,cpsat,neal,dwave-tabu,steepest,qaoa",
    sizes: Annotated[str, typer.Option(help="Comma-separated block sizes; 0 for whole rows.")] = "12,64,256",
    problems: Annotated[int, typer.Option(help="Blocks per layer and size.")] = 3,
    model: Annotated[
        str, typer.Option(help="Whose layers: a hub id, a local folder, or smollm2-135m.")
    ] = "smollm2-135m",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Full name of a linear layer; give it once for each. Needed for other models."),
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option(help="Wall-clock limit of each solve, such as 500ms or 10s.")
    ] = "10s",
    calibration: Calibration = "pydoc",
    samples: Samples = 32,
    sequence_length: Length = 512,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option(help="File for one line per solve, as CSV.")] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="One part of the table for each layer.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare solvers on block QUBOs of real layers: one core, one run, taking turns.

    The columns raw, repaired and final are energies in percent above the best that any solver found:
    as the solver gave them, with counts mended, and after swaps.

    Example: qubo-prune bench solvers --solvers tabu,neal --sizes 64,1024
    """
    with _plain_errors("nothing was written."):
        from qubo_prune.bench.instances import SMOLLM2_LAYERS, Source, capture, families
        from qubo_prune.bench.solvers import compare_solvers, parse_entrants
        from qubo_prune.errors import InputError
        from qubo_prune.progress import Progress
        from qubo_prune.pruning import parse_seconds

        _hush_libraries()
        entrants, limit = parse_entrants(solvers), parse_seconds(time_limit)
        if model != "smollm2-135m" and not layer:
            raise InputError(f"The layers of {model!r} to take blocks from are not given; name some with --layer.")
        if problems < 1:
            raise InputError(f"problems is {problems}; give a whole number from 1 on.")
        widths = _counts(sizes)
        for entrant in entrants:  # before the long pass over the text
            entrant.make()
        bars = Progress(not quiet and not as_json)
        source = Source(model, tuple(layer or SMOLLM2_LAYERS), calibration, samples, sequence_length)
        chosen = families(capture(source, bars), widths or (), problems, seed)
        result = compare_solvers(chosen, entrants, seed, limit, bars)
        if output is not None:
            result.save_csv(output)
        _show(result if as_json or not per_layer else result.table(full=True), as_json, quiet)


def main() -> None:
    """Entry point of the ``qubo-prune`` command."""
    app()


if __name__ == "__main__":
    main()
