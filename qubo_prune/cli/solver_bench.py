"""``qubo-prune bench solvers`` and ``bench report``: solvers on a suite, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from qubo_prune.cli import options
from qubo_prune.cli.aside import aside
from qubo_prune.cli.complete import families as families_of
from qubo_prune.cli.complete import one_of, suite_names
from qubo_prune.cli.derive import with_options
from qubo_prune.cli.ending import Ending
from qubo_prune.cli.options import in_blocks, in_data, in_output, in_run, names


@dataclass(frozen=True)
class RunOptions:
    """Which solvers are run on what, as a command line gives it."""

    solvers: options.AllSolvers = "greedy,local,tabu,tempering,anneal,exact,cpsat,neal,dwave-tabu,steepest,qaoa"
    suite: Annotated[
        str,
        in_data(
            help="standard or smoke, of which what is asked for is made at the first use, or the folder of a suite.",
            autocompletion=one_of(suite_names),
        ),
    ] = "standard"
    families: Annotated[
        str | None,
        in_data(help="Comma-separated families or instances of the suite; all by default.", autocompletion=families_of),
    ] = None
    sizes: Annotated[str | None, in_blocks(help="Comma-separated block sizes; all by default.")] = None
    time_limits: Annotated[
        str, in_run(help="Comma-separated wall-clock limits of a solve, a point of the curves each.")
    ] = "30ms,100ms,300ms,1s"
    seeds: Annotated[int, in_run(help="Solves of each problem by solvers that use a seed.")] = 3
    workers: Annotated[int | None, in_run(help="Solves at a time, one thread each; one per core by default.")] = None
    backend: Annotated[
        str,
        in_run(
            help="Of joblib: loky, threading, sequential, dask, dask:ADDRESS, ray or ray:ADDRESS.",
            autocompletion=one_of(("loky", "threading", "sequential", "dask", "ray")),
        ),
    ] = "loky"

    def run(self, output: Path, bars: Any) -> None:
        """Fill the table of the run in a folder; all that may be wrong is found out before a suite is made.

        Args:
            output: the folder.
            bars: a :class:`~qubo_prune.progress.Progress`.
        """
        from qubo_prune.bench import run_report
        from qubo_prune.bench.making import load_suite
        from qubo_prune.bench.runs import FILES, SIGN, checked_limits, run_suite
        from qubo_prune.bench.solvers import parse_entrants
        from qubo_prune.files.outputs import check_added

        entrants = parse_entrants(self.solvers)
        for entrant in entrants:
            entrant.make()
        limits = checked_limits(names(self.time_limits), self.seeds, self.workers)
        widths, families = options.counts(self.sizes), None if self.families is None else names(self.families)
        check_added(output, (*FILES, *run_report.FILES), SIGN)
        suite = load_suite(self.suite, families=families, sizes=widths, progress=bars)
        run_suite(
            suite,
            entrants,
            output,
            time_limits=limits,
            seeds=self.seeds,
            workers=self.workers,
            backend=self.backend,
            progress=bars,
        )


@with_options
def solvers_command(
    *,
    asked: RunOptions,
    output: Annotated[
        Path, in_output(help="Folder of the run; one that is there goes on where it was stopped.")
    ] = Path("solvers-run"),
    ending: Ending,
) -> None:
    """Compare solvers on block QUBOs of real layers, within the same time limits.

    Two baselines stand beside them everywhere: single swaps from Wanda's choice, and from a random one.

    Examples:
    qubo-prune bench solvers --solvers tabu,neal --sizes 64,128 --output run
    qubo-prune bench solvers --suite smoke --time-limits 30ms,100ms --output run
    """
    with options.plain_errors(f"what was solved is in {output}; the same command goes on."):
        from qubo_prune.bench.metrics import Results
        from qubo_prune.bench.run_report import write_report
        from qubo_prune.progress import Progress

        options.hush_libraries()
        with aside():
            asked.run(output, Progress(ending.for_people))
        results = Results.read(output)
        write_report(results, output)
        ending.end(results, written=f"{output / 'report.html'}, report.md, report.png, rows.csv, qoblib.csv")


@with_options
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of bench solvers; several are taken together.")],
    output: Annotated[Path | None, in_output(help="Folder for the report; that of the only run by default.")] = None,
    qoblib: Annotated[
        Path | None, in_output(help="Folder for submissions to QOBLIB, one of each solver; none by default.")
    ] = None,
    *,
    ending: Ending,
) -> None:
    """Write the report of one or more runs: a page that needs nothing else, Markdown, QOBLIB's fields.

    Examples:
    qubo-prune bench report run
    qubo-prune bench report run-here run-there --output both
    qubo-prune bench report run --qoblib submissions
    """
    with options.plain_errors("nothing was written."):
        from qubo_prune.bench.metrics import Results
        from qubo_prune.bench.qoblib import write_submissions
        from qubo_prune.bench.run_report import write_report
        from qubo_prune.errors import InputError

        if output is None and len(runs) > 1:
            raise InputError("Several runs are given and no folder for their report; name one with --output.")
        results = Results.read(*runs)
        written = write_report(results, output or runs[0])
        if qoblib is not None:
            written += write_submissions(results, qoblib)
        ending.print(results, ", ".join(map(str, written)))
