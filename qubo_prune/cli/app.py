"""The command line. Every option mirrors an argument of the Python call of the same name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qubo_prune.choices import FORMATS
from qubo_prune.cli.aside import aside
from qubo_prune.cli.bench import bench
from qubo_prune.cli.complete import method_names, one_of, some_of
from qubo_prune.cli.help import Group, command, heading, say, unwrapped
from qubo_prune.cli.instances import instances
from qubo_prune.cli.options import (
    EXIT_CODES,
    Calibration,
    Density,
    Device,
    Dtype,
    EvalSamples,
    Json,
    Length,
    LogFile,
    Model,
    NoPolish,
    Quiet,
    Seed,
    Settings,
    SolverOption,
    Sparsity,
    Text,
    Trust,
    counts,
    hush_libraries,
    in_blocks,
    in_budgets,
    in_data,
    in_output,
    in_run,
    in_what,
    kept_share,
    kept_shares,
    names,
    plain_errors,
    settings_given,
    settings_of,
    show,
    tell_losses,
)
from qubo_prune.cli.plugins import check_method_command, check_solver_command, methods_command, solvers_command
from qubo_prune.cli.run_options import run_settings, with_settings

PRUNE, SOLVE, MEASURE = "Prune", "Solve", "Measure"

_BELOW = "\n\n".join(
    [
        heading(
            "First steps",
            "  qubo-prune prune smollm2-135m --dry-run",
            "  qubo-prune prune smollm2-135m --density 0.5 --output pruned",
            "  qubo-prune eval pruned",
        ),
        heading(
            "Documentation",
            "  qubo-prune COMMAND --help, and in the repository README.md and docs/:",
            "  command-line.md has every option, methods.md what the methods do.",
        ),
        heading("Exit codes", *(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())),
    ]
)

app = typer.Typer(
    cls=Group,
    help=unwrapped("Prune neural networks through block QUBOs: any solver decides, block coordinate descent merges."),
    epilog=_BELOW,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> bool:
    if asked:
        from qubo_prune import __version__

        typer.echo(f"qubo-prune {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _image_classifier(model: str, images: Path, device: str) -> tuple[Any, Any, Any]:
    """A classifier, what is saved with it, and its images with their labels."""
    from qubo_prune.data.images import ImageFolder
    from qubo_prune.errors import InputError
    from qubo_prune.models.classifiers import load_classifier

    loaded = load_classifier(model, device)
    if loaded.processor is None:
        raise InputError(
            f"{model!r} is a model of timm, which cannot be saved as a folder of transformers; prune it from Python."
        )
    return loaded.model, loaded.processor, ImageFolder(images, loaded.transform, loaded.label2id)


@command(app, "prune", PRUNE)
@with_settings(run_settings())
def prune_command(
    context: typer.Context,
    model: Model,
    density: Density = 0.5,
    sparsity: Sparsity = None,
    calibration: Calibration = "pydoc",
    images: Annotated[
        Path | None,
        in_data(help="The model is an image classifier; a folder with one folder of images for each class."),
    ] = None,
    dry_run: Annotated[
        bool,
        in_run("--dry-run", help="Check all of it, and tell layers, sizes, memory and time; prune and write nothing."),
    ] = False,
    log_file: LogFile = None,
    quiet: Quiet = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Prune a language model, or an image classifier, and save it as a folder that transformers loads.

    Ctrl-C ends a descent on the loss with the best masks so far; before that it leaves everything as it was. With
    --run-folder, what was decided stays there, whatever ends the process, and the same call with --resume goes on.

    Examples:
    qubo-prune prune smollm2-135m --density 0.5 --output pruned
    qubo-prune prune smollm2-135m --dry-run
    qubo-prune prune smollm2-135m --pattern 2:4 --max-time 10m --output pruned24
    qubo-prune prune my-model/ --output pruned --run-folder run --resume
    """
    with plain_errors(_what_is_left(settings["run_folder"]), None if dry_run else log_file):
        from qubo_prune.errors import InputError
        from qubo_prune.report.report import Report
        from qubo_prune.request import PruneRequest
        from qubo_prune.run.estimate import estimate_request
        from qubo_prune.run.prune import run_request

        hush_libraries()
        if settings["output"] is None and not dry_run:
            raise InputError("No folder is given for the pruned model; give --output, or --dry-run to see the plan.")
        with aside():
            given, named, source = settings_given(settings), model, calibration
            if images is not None:
                named, tokenizer, source = _image_classifier(model, images, settings["device"])
                given |= {"tokenizer": tokenizer, "loss": "classification"}
            request = PruneRequest.of(named, source, kept_share(context, density, sparsity), settings=given)
            report = (estimate_request if dry_run else run_request)(request, progress=not quiet)
        show(report, as_json, quiet)
        if isinstance(report, Report):
            tell_losses(report.warnings(), report.all_blocks_lost, shown=not (as_json or quiet))


def _what_is_left(run_folder: Path | None) -> str:
    """What an interrupt of a run leaves behind."""
    if run_folder is None:
        return "nothing was written."
    return f"no model was written; what was decided is in {run_folder}, and the same command with --resume goes on."


@command(app, "watch", PRUNE)
def watch_command(
    run: Annotated[Path, typer.Argument(help="The folder given to prune as --run-folder.")],
    once: Annotated[bool, in_run("--once", help="Print where the run is now, and end.")] = False,
    interval: Annotated[float, in_run(min=0.1, help="Seconds from one look to the next.")] = 1.0,
    as_json: Json = False,
) -> None:
    """Show where a run is: its layers, their errors, the energy of the one at work, the time left.

    It ends when the run does; Ctrl-C ends it earlier and leaves the run alone.

    Examples:
    qubo-prune watch pruned-run
    qubo-prune watch pruned-run --once --json
    """
    with plain_errors("the run goes on."):
        import time
        from dataclasses import asdict

        from rich.live import Live

        from qubo_prune.run.watch import RunState

        state = RunState.read(run)
        if as_json:
            sys.stdout.write(json.dumps(asdict(state), indent=1) + "\n")
            return
        with Live(state, console=Console(), auto_refresh=False) as live:
            while not once and state.state == "running":
                time.sleep(interval)
                state = RunState.read(run)
                live.update(state, refresh=True)


@command(app, "eval", PRUNE)
def eval_command(
    model: Model,
    text: Text = "pydoc",
    samples: Annotated[int, in_data(help="Windows of text.")] = 24,
    sequence_length: Length = 512,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    trust_remote_code: Trust = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Print a model's perplexity on a text.

    Examples:
    qubo-prune eval pruned --text my-texts/
    qubo-prune eval smollm2-135m --samples 8 --json
    """
    with plain_errors("nothing was changed."):
        from qubo_prune.data.evaluation import evaluate
        from qubo_prune.data.text import check_source, check_windows
        from qubo_prune.models.load import load_model
        from qubo_prune.progress import Progress
        from qubo_prune.report.report import told_of

        hush_libraries()
        check_source(text)
        check_windows(samples, sequence_length)
        bars = Progress(not quiet)
        with aside():
            with bars.task(f"loading {model}", None):
                loaded = load_model(model, dtype, device, trust_remote_code)
            result = evaluate(loaded.model, loaded.tokenizer, text, samples, sequence_length, bars)
        warnings = told_of(model)
        if as_json:
            sys.stdout.write(json.dumps(result.to_dict() | {"warnings": warnings}, indent=1) + "\n")
            return
        typer.echo(f"perplexity {result.perplexity:.3f} on {result.tokens} tokens in {result.seconds:.1f} s")
        for sentence in warnings:
            say(f"When this model was pruned: {sentence}")


#: The settings of a run that all methods of a comparison may share.
_SHARED = (
    "include",
    "exclude",
    "solver",
    "solver_settings",
    "pattern",
    "samples",
    "sequence_length",
    "draw",
    "max_time",
    "seed",
    "workers",
    "device",
    "dtype",
    "trust_remote_code",
    "output",
    "overwrite",
)


@command(app, "compare", PRUNE)
@with_settings(_SHARED)
def compare_command(
    context: typer.Context,
    model: Model,
    methods: Annotated[
        str,
        in_what(
            help="Comma-separated METHOD\\[+UPDATE]\\[@NAME=VALUE]: wanda, admm+refit, compensated@allocation=fisher; "
            "by default magnitude, wanda, sparsegpt, admm, gram, compensated.",
            show_default=False,
            autocompletion=some_of(method_names),
        ),
    ] = "magnitude,wanda,sparsegpt,admm,gram,compensated",
    density: Annotated[str, in_budgets(help="Kept share, or several: 0.5,0.4,2:4.")] = "0.5",
    sparsity: Annotated[
        str | None, in_budgets(help="Pruned share, or several, instead of densities.", show_default=False)
    ] = None,
    calibration: Calibration = "pydoc",
    text: Annotated[
        str, in_data(help="Held-out text, or several with commas: files, folders, data set ids, pydoc.")
    ] = "pydoc",
    eval_samples: EvalSamples = 24,
    seeds: Annotated[
        int,
        in_run(help="How often each method runs, with a seed and calibration windows of its own; means, deviations."),
    ] = 1,
    quiet: Quiet = False,
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Prune a model by several methods and print one table; --output is for the model of the last method.

    Examples:
    qubo-prune compare smollm2-135m --methods wanda,gram --density 0.5
    qubo-prune compare smollm2-135m --methods admm+refit,compensated
    qubo-prune compare my-model/ --density 0.5,0.4,2:4 --text novel.txt,news.txt
    """
    with plain_errors("nothing was written."):
        from qubo_prune.run.compare import compare

        hush_libraries()
        with aside():
            result = compare(
                model,
                names(methods),
                calibration=calibration,
                text=names(text),
                density=names(kept_shares(context, density, sparsity)),
                eval_samples=eval_samples,
                seeds=seeds,
                progress=not quiet,
                **settings_given(settings),
            )
        show(result, as_json, quiet)
        if settings["output"] is not None and not quiet and not as_json:
            typer.echo(f"The model of the last method is in {settings['output']}.")
        tell_losses(result.warnings(), result.all_lost, shown=not (as_json or quiet))


@command(app, "solve", SOLVE)
def solve_command(
    problem: Annotated[Path, typer.Argument(help="A problem file: .json, .coo, .qubo, .lp or .ising; or - (stdin).")],
    solver: SolverOption = "greedy",
    set_: Settings = None,
    num_pruned: Annotated[
        str | None, in_budgets(help="Exact counts in place of the file's: 5, or 5,3 for two groups.")
    ] = None,
    format: Annotated[
        str | None,
        in_data(help="Format of the file, if its suffix does not say it.", autocompletion=one_of(FORMATS)),
    ] = None,
    seed: Seed = 0,
    time_limit: Annotated[str | None, in_run(help="Wall-clock limit such as 500ms, 10s, 5m.")] = None,
    answers: Annotated[int, in_blocks(help="How many answers are wanted at most.")] = 1,
    no_polish: NoPolish = False,
    output: Annotated[Path | None, in_output(help="File for the result as JSON.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Solve one block QUBO from a file.

    Examples:
    qubo-prune solve problem.json --solver tabu --time-limit 5s
    qubo-prune solve problem.qubo --num-pruned 32 --solver neal --set num_reads=20
    qubo-prune solve problem.lp --solver exact --output answer.json
    """
    with plain_errors("nothing was written."):
        from qubo_prune.arguments import parse_seconds
        from qubo_prune.files.outputs import check_file
        from qubo_prune.formats.text import read_problem
        from qubo_prune.progress import Progress
        from qubo_prune.report.solve import Answer
        from qubo_prune.solver.dispatch import solve

        with aside():
            settings, limit = settings_of(solver, set_), parse_seconds(time_limit)
        if output is not None:
            output = check_file(output, Answer.is_saved, {"problem": problem})
        read = read_problem(problem, counts(num_pruned), format)
        with aside(), Progress(not quiet).task(f"solving {problem.name} by {solver}", None):
            result = solve(read, solver, seed, limit, num_answers=answers, polish=not no_polish, **settings)
        asked = {"settings": settings, "seed": seed, "time_limit": limit, "polish": not no_polish}
        answer = Answer(read, result, str(problem), asked)
        if output is not None:
            answer.save(output)
        show(answer, as_json, quiet)


command(app, "solvers", SOLVE)(solvers_command)
command(app, "check-solver", SOLVE)(check_solver_command)
command(app, "methods", PRUNE)(methods_command)
command(app, "check-method", PRUNE)(check_method_command)
app.add_typer(bench, name="bench", rich_help_panel=MEASURE)
app.add_typer(instances, name="instances", rich_help_panel=MEASURE)


def main() -> None:
    """Entry point of the ``qubo-prune`` command."""
    app()


if __name__ == "__main__":
    main()
