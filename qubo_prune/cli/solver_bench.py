"""``qubo-prune bench solvers`` and ``bench report``: solvers on a suite, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qubo_prune.cli.complete import families as families_of
from qubo_prune.cli.complete import one_of, suite_names
from qubo_prune.cli.options import (
    AllSolvers,
    Json,
    Quiet,
    counts,
    hush_libraries,
    in_blocks,
    in_data,
    in_output,
    in_run,
    names,
    plain_errors,
    show,
    tell_losses,
)


def solvers_command(
    solvers: AllSolvers = "greedy,local,tabu,anneal,exact,cpsat,neal,dwave-tabu,steepest,qaoa",
    suite: Annotated[
        str,
        in_data(
            help="standard or smoke, made at the first use, or the folder of a suite.",
            autocompletion=one_of(suite_names),
        ),
    ] = "standard",
    families: Annotated[
        str | None,
        in_data(help="Comma-separated families or instances of the suite; all by default.", autocompletion=families_of),
    ] = None,
    sizes: Annotated[str | None, in_blocks(help="Comma-separated block sizes; all by default.")] = None,
    time_limits: Annotated[
        str, in_run(help="Comma-separated wall-clock limits of a solve, a point of the curves each.")
    ] = "30ms,100ms,300ms,1s",
    seeds: Annotated[int, in_run(help="Solves of each problem by solvers that use a seed.")] = 3,
    workers: Annotated[int | None, in_run(help="Solves at a time, one thread each; one per core by default.")] = None,
    backend: Annotated[
        str,
        in_run(
            help="Of joblib: loky, threading, sequential, dask, dask:ADDRESS, ray or ray:ADDRESS.",
            autocompletion=one_of(("loky", "threading", "sequential", "dask", "ray")),
        ),
    ] = "loky",
    output: Annotated[
        Path, in_output(help="Folder of the run; one that is there goes on where it was stopped.")
    ] = Path("solvers-run"),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare solvers on block QUBOs of real layers, within the same time limits.

    Two baselines stand beside them everywhere: single swaps from Wanda's choice, and from a random one.

    Examples:
    qubo-prune bench solvers --solvers tabu,neal --sizes 64,128 --output run
    qubo-prune bench solvers --suite smoke --time-limits 30ms,100ms --output run
    """
    with plain_errors(f"what was solved is in {output}; the same command goes on."):
        from qubo_prune.arguments import parse_seconds
        from qubo_prune.bench import run_report
        from qubo_prune.bench.metrics import Results
        from qubo_prune.bench.runs import FILES, SIGN, checked_limits, run_suite
        from qubo_prune.bench.solvers import parse_entrants
        from qubo_prune.files.outputs import check_added
        from qubo_prune.progress import Progress

        hush_libraries()
        entrants = parse_entrants(solvers)
        # all of it before a suite is made, which takes minutes
        for entrant in entrants:
            entrant.make()
        limits = checked_limits([parse_seconds(limit) or 0.0 for limit in names(time_limits)], seeds, workers)
        widths = counts(sizes)
        _check_families(suite, names(families or ""))
        check_added(output, (*FILES, *run_report.FILES), SIGN)
        bars = Progress(not quiet and not as_json)
        chosen = _suite(suite, bars)
        instances = chosen.select(names(families) if families is not None else None, widths)
        run_suite(
            chosen,
            entrants,
            output,
            instances=instances,
            time_limits=limits,
            seeds=seeds,
            workers=workers,
            backend=backend,
            progress=bars,
        )
        results = Results.read(output)
        run_report.write_report(results, output)
        show(results, as_json, quiet)
        if not quiet and not as_json:
            Console(soft_wrap=True).print(f"{output / 'report.html'}, report.md, report.png, rows.csv, qoblib.csv")
        tell_losses(results.failures(), results.all_lost, shown=not (as_json or quiet))


def _check_families(suite: str, wanted: list[str]) -> None:
    """Raise :class:`InputError` if a suite that would have to be made first has none of the families."""
    from qubo_prune.bench.suites import SUITES
    from qubo_prune.errors import InputError, did_you_mean

    known = [name for family in SUITES.get(suite, ()) for name in (family.name, *family.instances)]
    for name in wanted:
        if known and name not in known:
            families = ", ".join(family.name for family in SUITES[suite])
            raise InputError(
                f"The suite {suite!r} has no family {name!r}{did_you_mean(name, known)}; its families are {families}."
            )


def _suite(text: str, bars: Any) -> Any:
    """A suite by name, made if it is not yet in the cache, or by folder."""
    from qubo_prune.bench import CACHE
    from qubo_prune.bench.making import make_suite
    from qubo_prune.bench.suite import MANIFEST, Suite
    from qubo_prune.bench.suites import SUITES, VERSION, suite_families

    if text not in SUITES:
        if not (Path(text) / MANIFEST).is_file():
            suite_families(text)  # says that there is none
        return Suite.read(text)
    folder = CACHE / "instances" / f"{text}-{VERSION}"
    if (folder / MANIFEST).is_file():
        return Suite.read(folder)
    return make_suite(folder, text, progress=bars)


def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of bench solvers; several are taken together.")],
    output: Annotated[Path | None, in_output(help="Folder for the report; that of the only run by default.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the report of one or more runs: a page that needs nothing else, Markdown, QOBLIB's fields.

    Examples:
    qubo-prune bench report run
    qubo-prune bench report run-here run-there --output both
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.metrics import Results
        from qubo_prune.bench.run_report import write_report
        from qubo_prune.errors import InputError

        if output is None and len(runs) > 1:
            raise InputError("Several runs are given and no folder for their report; name one with --output.")
        results = Results.read(*runs)
        written = write_report(results, output or runs[0])
        show(results, as_json, quiet)
        if not quiet and not as_json:
            Console(soft_wrap=True).print(", ".join(map(str, written)))
