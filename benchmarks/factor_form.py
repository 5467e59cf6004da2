"""How much longer the swap searches take on factor form as it is than on its matrix.

    python benchmarks/factor_form.py [--problems 1024x128,1024x16,4096x16] [--repeats 3]

Each problem ``Q = D + F F'`` is random, half pruned, and solved from one random start by one search on one thread, in
turns within one run: with the matrix built first, as it is done up to ``MATRIX_UP_TO`` variables, and read from the
factor. The figures are medians of seconds, the building of the matrix included.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np
from qubo_prune_solvers import _search
from rich.console import Console
from rich.table import Table

from qubo_prune import BlockQubo, FactorForm, solve
from qubo_prune.report import machine

_SEARCHES = ("tabu", "local", "anneal")


def main() -> None:
    """Print one line for each problem and solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="1024x128,1024x16,4096x16", help="variables x rank")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    table = Table(title=str(machine()))
    for heading in ("variables", "rank", "solver", "factor, s", "matrix, s", "ratio"):
        table.add_column(heading, justify="left" if heading == "solver" else "right")
    for text in options.problems.split(","):
        n, rank = map(int, text.split("x"))
        for name in _SEARCHES:
            factor, matrix = _medians(n, rank, name, options.repeats)
            ratio = f"{factor / matrix:.1f}"
            table.add_row(str(n), str(rank), name, f"{factor:.2f}", f"{matrix:.2f}", ratio)
    Console().print(table)


def _medians(n: int, rank: int, name: str, repeats: int) -> tuple[float, float]:
    """Seconds on the factor and on the matrix."""
    built = _search.MATRIX_UP_TO
    problem, start = _problem(n, rank)
    seconds: dict[int, list[float]] = {0: [], built: []}
    try:
        for _ in range(repeats):
            for most, taken in seconds.items():
                _search.MATRIX_UP_TO = most
                # what is compiled at the first call is compiled before the clock starts
                _solve(*_problem(40, 2), name)
                began = time.perf_counter()
                _solve(problem, start, name)
                taken.append(time.perf_counter() - began)
    finally:
        _search.MATRIX_UP_TO = built
    return median(seconds[0]), median(seconds[built])


def _solve(problem: BlockQubo, start: np.ndarray, name: str) -> None:
    solve(problem, name, warm_start=start, starts=1, threads=1)


def _problem(n: int, rank: int) -> tuple[BlockQubo, np.ndarray]:
    rng = np.random.default_rng(0)
    factor = FactorForm(rng.normal(size=n), rng.normal(size=(n, rank)) / rank**0.5)
    start = np.zeros(n, dtype=bool)
    start[rng.permutation(n)[: n // 2]] = True
    return BlockQubo(factor, n // 2), start


if __name__ == "__main__":
    main()
