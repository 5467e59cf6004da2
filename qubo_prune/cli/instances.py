"""``qubo-prune instances``: suites of block QUBOs of real layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qubo_prune.choices import FORMATS
from qubo_prune.cli.complete import one_of, some_of, suite_names
from qubo_prune.cli.help import Group, command, examples, unwrapped
from qubo_prune.cli.options import FAILED, Quiet, hush_libraries, in_data, in_output, in_run, names, plain_errors

instances = typer.Typer(
    cls=Group,
    help=unwrapped("Make, check and list suites of block QUBOs of real layers."),
    epilog=examples(
        "qubo-prune instances make trial --suite smoke --proof-time 1s",
        "qubo-prune instances check trial",
        "qubo-prune instances list trial",
    ),
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(help="Folder of a suite.")]


@command(instances, "make")
def make_command(
    output: Annotated[Path, typer.Argument(help="Folder for the problem files, the manifest and a page.")],
    suite: Annotated[
        str,
        in_data(help="Which suite: standard, or smoke, which takes seconds.", autocompletion=one_of(suite_names)),
    ] = "standard",
    formats: Annotated[
        str,
        in_output(help="Comma-separated: json, and beside it coo, qubo, lp, ising.", autocompletion=some_of(FORMATS)),
    ] = "json",
    proof_time: Annotated[str, in_run(help="For the branch and bound of each instance, such as 10s.")] = "10s",
    quiet: Quiet = False,
) -> None:
    """Emit the block QUBOs of a suite from the real models, search them, and prove what can be proven.

    Examples:
    qubo-prune instances make standard-1 --formats json,lp
    qubo-prune instances make trial --suite smoke --proof-time 1s
    """
    with plain_errors("the folder has no manifest, so it is no suite yet."):
        from qubo_prune.arguments import parse_seconds
        from qubo_prune.bench.making import make_suite
        from qubo_prune.progress import Progress

        hush_libraries()
        made = make_suite(
            output,
            suite,
            proof_time=parse_seconds(proof_time) or 0.0,
            formats=names(formats),
            progress=Progress(not quiet),
        )
        if not quiet:
            proven = sum(instance.optimal for instance in made.instances)
            Console(soft_wrap=True).print(
                f"{len(made.instances)} instances in {output}, {proven} with a proven optimum; digest {made.digest}"
            )


@command(instances, "check")
def check_command(folder: Folder, quiet: Quiet = False) -> None:
    """Check every file's checksum, counts, energies and bound against the manifest; exit code 1 if one is wrong.

    Examples:
    qubo-prune instances check standard-1
    """
    with plain_errors("nothing was changed."):
        from qubo_prune.bench.suite import Suite, faults

        suite = Suite.read(folder)
        console, wrong = Console(soft_wrap=True), 0
        for instance in suite.instances:
            for fault in faults(suite, instance):
                console.print(f"{instance.name}: {fault}", markup=False, highlight=False)
                wrong += 1
        if wrong:
            raise typer.Exit(FAILED)
        if not quiet:
            console.print(f"{len(suite.instances)} instances are as the manifest says; digest {suite.digest}")


@command(instances, "list")
def list_command(folder: Folder) -> None:
    """The instances of a suite with what is known of each.

    Examples:
    qubo-prune instances list standard-1
    """
    with plain_errors("nothing was changed."):
        from qubo_prune.bench.suite import Suite

        Console().print(Suite.read(folder).table())
