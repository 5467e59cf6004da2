"""Write what the documentation shows of a run of ``bench solvers``: its report, its rows, QOBLIB's fields, the picture.

    qubo-prune bench solvers --output run
    python benchmarks/solver_report.py run [--docs docs]
    python benchmarks/solver_report.py            # the same again from the rows that are committed

``benchmark/`` of the documentation then holds ``report.md``, ``qoblib.csv.gz`` and the run itself (``rows.csv.gz``,
``manifest.json.gz``, ``run.json``), and ``figures/solvers.png`` is drawn from it.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from pathlib import Path

from qubo_prune.bench.metrics import Results
from qubo_prune.bench.run_report import write_report
from qubo_prune.bench.runs import INFO, TABLE
from qubo_prune.bench.suite import MANIFEST

#: Of a run, the files that are compressed and the one that is not.
PACKED, PLAIN = (TABLE, MANIFEST), (INFO,)


def write(run: Path, docs: Path) -> None:
    """All of it, from a run's folder."""
    benchmark, figures = docs / "benchmark", docs / "figures"
    for folder in (benchmark, figures):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        results = Results.read(run)
        write_report(results, made)
        (figures / "solvers.png").write_bytes(Path(made, "report.png").read_bytes())
        (benchmark / "report.md").write_bytes(Path(made, "report.md").read_bytes())
        pack(Path(made, "qoblib.csv"), benchmark)
    for name in PACKED:
        pack(run / name, benchmark)
    for name in PLAIN:
        (benchmark / name).write_bytes((run / name).read_bytes())


def pack(file: Path, folder: Path) -> None:
    """The file compressed, the same bytes for the same content."""
    (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))


def unpack(benchmark: Path, run: Path) -> None:
    """The run that :func:`write` kept."""
    for name in PACKED:
        (run / name).write_bytes(gzip.decompress((benchmark / f"{name}.gz").read_bytes()))
    for name in PLAIN:
        (run / name).write_bytes((benchmark / name).read_bytes())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder of bench solvers; that of the documentation if left out"
    )
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs", help="the documentation")
    asked = parser.parse_args()
    if asked.run is not None:
        write(asked.run, asked.docs)
        return
    with tempfile.TemporaryDirectory() as run:
        unpack(asked.docs / "benchmark", Path(run))
        write(Path(run), asked.docs)


if __name__ == "__main__":
    main()
