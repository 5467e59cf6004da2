"""The command line. Every option mirrors an argument of the Python call of the same name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qubo_prune.choices import ALLOCATIONS, BOUNDS, FORMATS, LOSS_WARM_STARTS, METHODS, WARM_STARTS, WEIGHTS
from qubo_prune.cli.bench import bench
from qubo_prune.cli.complete import one_of, solver_names, some_of
from qubo_prune.cli.help import Group, command, heading, say, unwrapped
from qubo_prune.cli.instances import instances
from qubo_prune.cli.options import (
    EXIT_CODES,
    FAILED,
    Calibration,
    Density,
    Device,
    Dtype,
    EvalSamples,
    Exclude,
    Hessian,
    Include,
    Json,
    Length,
    LogFile,
    LossSet,
    MaxTime,
    Method,
    Model,
    NoPolish,
    Overwrite,
    PatternOption,
    Quiet,
    Samples,
    Seed,
    Settings,
    SolverOption,
    Sparsity,
    Text,
    Trust,
    Update,
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
    pairs,
    plain_errors,
    settings_of,
    shares,
    show,
    tell_losses,
)  # fmt: skip

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
def prune_command(
    context: typer.Context,
    model: Model,
    method: Method = "icbs",
    update: Update = None,
    include: Include = None,
    exclude: Exclude = None,
    prune_head: Annotated[bool, in_what("--prune-head", help="Prune the output head too.")] = False,
    hessian: Hessian = "gram",
    solver: SolverOption = "greedy",
    set_: Settings = None,
    warm_start: Annotated[
        str | None,
        in_blocks(
            help="magnitude, wanda (the default), greedy, random, a method such as admm (the default of compensated), "
            "or a masks.safetensors; with fisher also gradient, or gram.",
            show_default=False,
            autocompletion=one_of((*WARM_STARTS, *LOSS_WARM_STARTS)),
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        in_blocks(help="Weights per block; 64 (compensated: 128, fisher: 1024), or less if the solver takes less."),
    ] = None,
    block_time: Annotated[
        str, in_blocks(help="Most time for one block such as 500ms or 10s; none for no limit.")
    ] = "60s",
    max_sweeps: Annotated[
        int | None,
        in_blocks(help="Most blocks per row, 1; without compensated, swaps over the whole row follow."),
    ] = None,
    no_polish: NoPolish = False,
    damping: Annotated[
        float | None,
        in_blocks(
            help="Share of a Gram's mean diagonal added to its diagonal; 0.01, with a correction 0.3.",
            show_default=False,
        ),
    ] = None,
    correction: Annotated[
        float | None,
        in_blocks(
            help="How far layers make up for those pruned before, 0 to 1; 0, with compensated 0.5.", show_default=False
        ),
    ] = None,
    certify: Annotated[
        str | None,
        in_blocks(
            help="Prove how much better masks could be, and in how many of some blocks they are optimal: plain, "
            "eigenvalue, trace or row, the tighter the slower.",
            show_default=False,
            autocompletion=one_of(BOUNDS),
        ),
    ] = None,
    loss_set: LossSet = None,
    density: Density = 0.5,
    sparsity: Sparsity = None,
    pattern: PatternOption = "row",
    allocation: Annotated[
        str,
        in_budgets(
            help="Densities of the layers: uniform, owl (by outliers), fisher (by predicted loss change).",
            autocompletion=one_of(ALLOCATIONS),
        ),
    ] = "uniform",
    layer_density: Annotated[
        list[str] | None,
        in_budgets("--layer-density", metavar="PATTERN=SHARE", help="Kept share of layers like this, '*.mlp.*=0.4'."),
    ] = None,
    protect: Annotated[
        float,
        in_budgets(help="Share of a layer, the highest by Wanda, that nothing may prune (compensated, scores)."),
    ] = 0.0,
    calibration: Calibration = "pydoc",
    samples: Samples = 32,
    sequence_length: Length = 512,
    guard: Annotated[
        int | None,
        in_data(help="Held-out windows on which layers are checked; 4 if kept weights change, 0 for none."),
    ] = None,
    loss_length: Annotated[int, in_data(help="Tokens per window that the loss is taken over (fisher).")] = 128,
    images: Annotated[
        Path | None,
        in_data(help="The model is an image classifier; a folder with one folder of images for each class."),
    ] = None,
    dry_run: Annotated[
        bool,
        in_run("--dry-run", help="Check all of it, and tell layers, sizes, memory and time; prune and write nothing."),
    ] = False,
    max_time: MaxTime = None,
    seed: Seed = 0,
    workers: Annotated[
        str | None,
        in_run(
            help="Processes for solvers that take one block at a time; one per core. Or a cluster for them: "
            "dask:ADDRESS or ray:ADDRESS."
        ),
    ] = None,
    device: Device = "cpu",
    gram_devices: Annotated[
        str | None,
        in_run(help="Comma-separated devices that multiply the layers' inputs in turn.", show_default=False),
    ] = None,
    dtype: Dtype = "auto",
    weights: Annotated[
        str,
        in_run(
            help="Where weights are: memory, or disk for a model larger than it (a local folder).",
            autocompletion=one_of(WEIGHTS),
        ),
    ] = "memory",
    trust_remote_code: Trust = False,
    run_folder: Annotated[
        Path | None,
        in_run(help="Folder that keeps what is decided, so that a later call can go on.", show_default=False),
    ] = None,
    resume: Annotated[bool, in_run("--resume", help="Go on with the run in --run-folder, if it holds one.")] = False,
    output: Annotated[
        Path | None,
        in_output(
            help="Folder for the pruned model, report.json and masks.safetensors; required but for --dry-run.",
            show_default=False,
        ),
    ] = None,
    overwrite: Overwrite = False,
    log_file: LogFile = None,
    quiet: Quiet = False,
    as_json: Json = False,
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
    if run_folder is None:
        left = "nothing was written."
    else:
        left = f"no model was written; what was decided is in {run_folder}, and the same command with --resume goes on."
    with plain_errors(left, None if dry_run else log_file):
        from qubo_prune.errors import InputError
        from qubo_prune.masks.keep import KeepMasks
        from qubo_prune.report.report import Report
        from qubo_prune.run.estimate import estimate_run
        from qubo_prune.run.prune import prune

        hush_libraries()
        if output is None and not dry_run:
            raise InputError("No folder is given for the pruned model; give --output, or --dry-run to see the plan.")
        given = KeepMasks.load(warm_start) if warm_start and warm_start.endswith(".safetensors") else warm_start
        tokenizer, source, named = None, calibration, model
        if images is not None:
            named, tokenizer, source = _image_classifier(model, images, device)
        report = (estimate_run if dry_run else prune)(
            named, source, kept_share(context, density, sparsity), pattern=pattern, method=method, hessian=hessian,
            solver=solver, update=update, damping=damping, correction=correction, guard=guard, allocation=allocation,
            densities=shares("--layer-density", layer_density), protect=protect, certify=certify,
            loss=None if images is None else "classification", loss_length=loss_length,
            loss_settings=pairs("--loss-set", loss_set), tokenizer=tokenizer,
            solver_settings=settings_of(solver, set_), warm_start=given, block_size=block_size,
            block_time=None if block_time == "none" else block_time, workers=workers, polish=not no_polish,
            max_sweeps=max_sweeps, max_time=max_time, seed=seed, samples=samples,
            sequence_length=sequence_length, include=include or (), exclude=exclude or (), prune_head=prune_head,
            dtype=dtype, device=device, gram_devices=tuple(names(gram_devices or "")),
            trust_remote_code=trust_remote_code, output=output, overwrite=overwrite,
            run_folder=run_folder, resume=resume, weights=weights, progress=not quiet,
        )  # fmt: skip
        show(report, as_json, quiet)
        if isinstance(report, Report):
            tell_losses(report.warnings(), report.all_blocks_lost, shown=not (as_json or quiet))


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


@command(app, "compare", PRUNE)
def compare_command(
    context: typer.Context,
    model: Model,
    methods: Annotated[
        str,
        in_what(
            help="Comma-separated METHOD\\[:HESSIAN]\\[+UPDATE]\\[@NAME=VALUE], as of prune: wanda, admm+refit, "
            "icbs:compensated@allocation=fisher; by default magnitude, wanda, sparsegpt, admm, icbs, icbs:compensated.",
            show_default=False,
            autocompletion=some_of((*METHODS, "icbs:compensated", "icbs:fisher")),
        ),
    ] = "magnitude,wanda,sparsegpt,admm,icbs,icbs:compensated",
    density: Annotated[str, in_budgets(help="Kept share, or several: 0.5,0.4,2:4.")] = "0.5",
    sparsity: Annotated[
        str | None, in_budgets(help="Pruned share, or several, instead of densities.", show_default=False)
    ] = None,
    pattern: PatternOption = "row",
    solver: SolverOption = "greedy",
    max_time: MaxTime = None,
    calibration: Calibration = "pydoc",
    text: Annotated[
        str, in_data(help="Held-out text, or several with commas: files, folders, data set ids, pydoc.")
    ] = "pydoc",
    samples: Samples = 32,
    eval_samples: EvalSamples = 24,
    sequence_length: Length = 512,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    output: Annotated[Path | None, in_output(help="Folder for the model of the last method.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Prune a model by several methods and print one table.

    Examples:
    qubo-prune compare smollm2-135m --methods wanda,icbs --density 0.5
    qubo-prune compare smollm2-135m --methods admm+refit,icbs:compensated
    qubo-prune compare my-model/ --density 0.5,0.4,2:4 --text novel.txt,news.txt
    """
    with plain_errors("nothing was written."):
        from qubo_prune.run.compare import compare

        hush_libraries()
        result = compare(
            model, names(methods), calibration=calibration, text=names(text),
            density=names(kept_shares(context, density, sparsity)),
            pattern=pattern, solver=solver, max_time=max_time, seed=seed, samples=samples, eval_samples=eval_samples,
            sequence_length=sequence_length, device=device, dtype=dtype, output=output, overwrite=overwrite,
            progress=not quiet,
        )  # fmt: skip
        show(result, as_json, quiet)
        if output is not None and not quiet and not as_json:
            typer.echo(f"The model of the last method is in {output}.")
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

        settings, limit = settings_of(solver, set_), parse_seconds(time_limit)
        if output is not None:
            output = check_file(output, Answer.is_saved, {"problem": problem})
        read = read_problem(problem, counts(num_pruned), format)
        with Progress(not quiet).task(f"solving {problem.name} by {solver}", None):
            result = solve(read, solver, seed, limit, num_answers=answers, polish=not no_polish, **settings)
        asked = {"settings": settings, "seed": seed, "time_limit": limit, "polish": not no_polish}
        answer = Answer(read, result, str(problem), asked)
        if output is not None:
            answer.save(output)
        show(answer, as_json, quiet)


@command(app, "solvers", SOLVE)
def solvers_command(as_json: Json = False) -> None:
    """List the solvers, what they can do, and why one cannot be used here.

    Examples:
    qubo-prune solvers
    qubo-prune solvers --json
    """
    from dataclasses import asdict

    from qubo_prune.solver.registry import available_adapters, describe_solvers

    infos = describe_solvers()
    if as_json:
        sys.stdout.write(json.dumps([asdict(info) for info in infos], indent=1) + "\n")
        return
    Console().print(infos.table())
    for line in infos.broken():
        Console(soft_wrap=True).print(line, markup=False, highlight=False)
    typer.echo(f"Adapters (NAME:package.module:Thing): {', '.join(available_adapters()) or 'none'}")


@command(app, "check-solver", SOLVE)
def check_solver_command(
    solver: Annotated[
        str,
        typer.Argument(
            help="A name, package.module:Class, or adapter:package.module:Thing.", autocompletion=one_of(solver_names)
        ),
    ],
    set_: Settings = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check that a solver keeps to the contract; exit code 1 if it does not.

    Examples:
    qubo-prune check-solver tabu --set steps=5
    qubo-prune check-solver my_package.my_module:MySolver
    """
    with plain_errors("nothing was changed."):
        from dataclasses import asdict

        from rich.text import Text

        from qubo_prune.progress import Progress
        from qubo_prune.solver.registry import make_solver
        from qubo_prune.tables import Table
        from qubo_prune.testing import check_names, run_check

        made, outcomes = make_solver(solver, **settings_of(solver, set_)), []
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
                number = column in ("result", "seconds")
                table.add_column(
                    column, justify="right" if column == "seconds" else "left", no_wrap=number, overflow="fold"
                )
            for outcome in outcomes:
                state = {True: "passed", False: "FAILED", None: "n/a"}[outcome.passed]
                table.add_row(outcome.name.replace("_", " "), state, f"{outcome.seconds:.2f}", Text(outcome.message))
            Console().print(table)
            typer.echo(f"{solver}: {failed} of {len(outcomes)} checks failed." if failed else f"{solver}: passed.")
        if failed:
            raise typer.Exit(FAILED)


app.add_typer(bench, name="bench", rich_help_panel=MEASURE)
app.add_typer(instances, name="instances", rich_help_panel=MEASURE)


def main() -> None:
    """Entry point of the ``qubo-prune`` command."""
    app()


if __name__ == "__main__":
    main()
