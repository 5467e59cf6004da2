"""``qubo-prune bench solvers`` and ``bench report``: solvers on a suite, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from qubo_prune.cli import options
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
            help="standard or smoke, made at the first use, or the folder of a suite.",
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
        from qubo_prune.arguments import parse_seconds
        from qubo_prune.bench import run_report
        from qubo_prune.bench.runs import FILES, SIGN, checked_limits, run_suite
        from qubo_prune.bench.solvers import parse_entrants
        from qubo_prune.files.outputs import check_added

        entrants = parse_entrants(self.solvers)
        for entrant in entrants:
            entrant.make()
        limits = [parse_seconds(limit) or 0.0 for limit in names(self.time_limits)]
        limits = checked_limits(limits, self.seeds, self.workers)
        widths, families = options.counts(self.sizes), None if self.families is None else names(self.families)
        _check_families(self.suite, families or [])
        check_added(output, (*FILES, *run_report.FILES), SIGN)
        suite = _suite(self.suite, bars)
        run_suite(
            suite,
            entrants,
            output,
            instances=suite.select(families, widths),
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
        asked.run(output, Progress(ending.for_people))
        results = Results.read(output)
        write_report(results, output)
        ending.end(results, written=f"{output / 'report.html'}, report.md, report.png, rows.csv, qoblib.csv")


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


@with_options
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of bench solvers; several are taken together.")],
    output: Annotated[Path | None, in_output(help="Folder for the report; that of the only run by default.")] = None,
    *,
    ending: Ending,
) -> None:
    """Write the report of one or more runs: a page that needs nothing else, Markdown, QOBLIB's fields.

    Examples:
    qubo-prune bench report run
    qubo-prune bench report run-here run-there --output both
    """
    with options.plain_errors("nothing was written."):
        from qubo_prune.bench.metrics import Results
        from qubo_prune.bench.run_report import write_report
        from qubo_prune.errors import InputError

        if output is None and len(runs) > 1:
            raise InputError("Several runs are given and no folder for their report; name one with --output.")
        results = Results.read(*runs)
        written = write_report(results, output or runs[0])
        ending.print(results, ", ".join(map(str, written)))
