"""``qubo-prune instances``: suites of block QUBOs of real layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qubo_prune.choices import BOUNDS, FORMATS
from qubo_prune.cli.complete import families as families_of
from qubo_prune.cli.complete import one_of, some_of, suite_names
from qubo_prune.cli.help import Group, command, examples, unwrapped
from qubo_prune.cli.options import (
    FAILED,
    Quiet,
    counts,
    hush_libraries,
    in_blocks,
    in_data,
    in_output,
    in_run,
    names,
    plain_errors,
)

instances = typer.Typer(
    cls=Group,
    help=unwrapped("Make, check and list suites of block QUBOs of real layers."),
    epilog=examples(
        "qubo-prune instances make trial --suite smoke",
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
        in_data(help="Which suite: standard, or smoke, which takes a minute.", autocompletion=one_of(suite_names)),
    ] = "standard",
    families: Annotated[
        str | None,
        in_data(help="Comma-separated families or instances of the suite; all by default.", autocompletion=families_of),
    ] = None,
    sizes: Annotated[str | None, in_blocks(help="Comma-separated block sizes; all by default.")] = None,
    formats: Annotated[
        str,
        in_output(help="Comma-separated: json, and beside it coo, qubo, lp, ising.", autocompletion=some_of(FORMATS)),
    ] = "json",
    proof_time: Annotated[
        str | None,
        in_run(help="For the branch and bound of each instance, such as 10s; the suite's own by default."),
    ] = None,
    bounds: Annotated[
        str | None,
        in_run(
            help="Comma-separated kinds of certified bounds, of which the best counts; by default all that the size "
            "allows.",
            autocompletion=some_of(BOUNDS),
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Emit the block QUBOs of a suite from the real models, search them, and prove what can be proven.

    Examples:
    qubo-prune instances make standard-1 --formats json,lp
    qubo-prune instances make trial --suite smoke
    qubo-prune instances make rows --families smollm2-down14-gram --sizes 1536 --bounds trace
    """
    with plain_errors("the folder has no manifest, so it is no suite yet."):
        from qubo_prune.bench.making import make_suite
        from qubo_prune.progress import Progress

        hush_libraries()
        made = make_suite(
            output,
            suite,
            families=None if families is None else names(families),
            sizes=counts(sizes),
            proof_time=proof_time,
            bounds=None if bounds is None else names(bounds),
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
