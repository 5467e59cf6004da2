"""Commands that list solvers and methods, and check that they keep to their contracts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from qubo_prune.cli.aside import aside
from qubo_prune.cli.complete import method_names, one_of, solver_names
from qubo_prune.cli.options import (
    FAILED,
    Json,
    Quiet,
    Settings,
    hush_libraries,
    in_what,
    pairs,
    plain_errors,
    settings_of,
)

_PATH = "A name, package.module:Class"


def solvers_command(as_json: Json = False) -> None:
    """List the solvers, what they can do, and why one cannot be used here.

    Examples:
    qubo-prune solvers
    qubo-prune solvers --json
    """
    from qubo_prune.solver.registry import available_adapters, describe_solvers

    with aside():
        found = describe_solvers()
    _list(found, as_json)
    if not as_json:
        typer.echo(f"Adapters (NAME:package.module:Thing): {', '.join(available_adapters()) or 'none'}")


def methods_command(as_json: Json = False) -> None:
    """List the methods: scores, published methods, blocks and updates, what they read and change, and their settings.

    Examples:
    qubo-prune methods
    qubo-prune methods --json
    """
    hush_libraries()
    from qubo_prune.methods.registry import describe_methods

    with aside():
        found = describe_methods()
    _list(found, as_json)


def _list(infos: Any, as_json: bool) -> None:
    """Print what is registered, as a table or as data, and why something cannot be used."""
    if as_json:
        sys.stdout.write(json.dumps([asdict(info) for info in infos], indent=1) + "\n")
        return
    Console().print(infos.table())
    for line in infos.broken():
        Console(soft_wrap=True).print(line, markup=False, highlight=False)


def check_solver_command(
    solver: Annotated[
        str, typer.Argument(help=f"{_PATH}, or adapter:package.module:Thing.", autocompletion=one_of(solver_names))
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
        from qubo_prune.solver.registry import make_solver
        from qubo_prune.testing import check_names, run_check

        with aside():
            made = make_solver(solver, **settings_of(solver, set_))
        _check(solver, check_names(), lambda name: run_check(name, made), quiet, as_json)


def check_method_command(
    method: Annotated[str, typer.Argument(help=f"{_PATH}.", autocompletion=one_of(method_names))],
    set_: Annotated[
        list[str] | None,
        in_what("--method-set", metavar="NAME=VALUE", help="A setting of the method, a field of its class."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check that a method keeps to the contract; exit code 1 if it does not.

    Examples:
    qubo-prune check-method sparsefw --method-set alpha=0.5
    qubo-prune check-method my_package.my_module:MyMethod
    """
    with plain_errors("nothing was changed."):
        hush_libraries()
        from qubo_prune.methods.contract import method_check_names, run_method_check
        from qubo_prune.methods.registry import make_any

        with aside():
            made = make_any(method, **pairs("--method-set", set_))
        _check(method, method_check_names(), lambda name: run_method_check(name, made), quiet, as_json)


def _check(what: str, names: Sequence[str], run: Callable[[str], Any], quiet: bool, as_json: bool) -> None:
    """Run checks, print their outcomes, and end with exit code 1 if one failed."""
    from rich.text import Text

    from qubo_prune.progress import Progress
    from qubo_prune.tables import Table

    outcomes = []
    with aside(), Progress(not quiet and not as_json).task(f"checking {what}", len(names)) as advance:
        for name in names:
            outcomes.append(run(name))
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
        typer.echo(f"{what}: {failed} of {len(outcomes)} checks failed." if failed else f"{what}: passed.")
    if failed:
        raise typer.Exit(FAILED)
