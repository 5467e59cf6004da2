"""How much faster blocks are decided by two workers than by one.

    python benchmarks/worker_scaling.py [--solvers SOLVERS] [--layer LAYER] [--size 64] [--rows 200] [--repeats 5]

The blocks are those of rows of a real layer of SmolLM2-135M (``--layer random``: of random weights and inputs), half
pruned, from Wanda's choice. Each solver does a fixed amount of work on one core, without a time limit, one block at a
time in each worker, those too that can take many at once. One and two workers take turns within one run; the figure
is the median of the ratios of wall-clock seconds, the framework's checks included, which has to reach 1.6 where two
cores are free. ``--cluster dask:ADDRESS`` takes a cluster with two threads in the place of the two workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from qubo_prune.bench.instances import Captured, Family, Source, capture
from qubo_prune.bench.solvers import parse_entrants
from qubo_prune.hessian import GramAccumulator
from qubo_prune.progress import Progress
from qubo_prune.report import machine
from qubo_prune.solver import BatchRequest, BatchResult, Solver
from qubo_prune.solver.clusters import connect
from qubo_prune.solver.dispatch import Handling, solve_batch

#: Seconds with one worker / seconds with two.
TARGET = 1.6


def main() -> None:
    """Print one line for each solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", default="neal,tabu(starts=4, steps=50),anneal(sweeps=500)")
    parser.add_argument("--layer", default="model.layers.14.self_attn.o_proj")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rows", type=int, default=200, help="blocks, one of each row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cluster", help="such as dask:tcp://127.0.0.1:8786")
    options = parser.parse_args()
    family = layer(options.layer).family(options.size, options.rows)
    cluster = None if options.cluster is None else connect(options.cluster)
    two = Handling(polish=False, workers=2, cluster=cluster)
    table = Table(title=f"{options.rows} blocks of {options.size}, {family.layer}")
    for heading in ("solver", "ms a block", "one, s", "two, s", "one / two", "from", "to", ""):
        table.add_column(heading, justify="left" if heading in ("solver", "") else "right")
    for entrant in parse_entrants(options.solvers):
        one, other = race(one_by_one(entrant.make()), family, two, options.repeats)
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        reached = "reached" if median(ratios) >= TARGET else f"below {TARGET}"
        shown = [1e3 * median(one) / options.rows, median(one), median(other), median(ratios), min(ratios), max(ratios)]
        table.add_row(entrant.label, *(f"{value:.2f}" for value in shown), reached)
    console = Console(width=120)
    console.print(table)
    console.print(f"{machine()['processor']}, medians of {options.repeats} turns")


def layer(name: str) -> Captured:
    """A layer's weights and Gram."""
    if name != "random":
        usual = Source()  # its layers may have been captured before
        source = usual if name in usual.layers else Source(layers=(name,))
        return next(found for found in capture(source, Progress(True)) if found.name == name)
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(2048, 64, generator=draw) @ torch.randn(64, 128, generator=draw)
    gram = GramAccumulator(name)
    gram.add(inputs + torch.randn(2048, 128, generator=draw))
    return Captured(name, torch.randn(256, 128, generator=draw), gram.finish(128))


def one_by_one(solver: Solver) -> Solver:
    """The same solver, which says that it takes single problems only."""
    single = dataclasses.replace(solver.capabilities, batched=False)
    kind = type(type(solver).__name__, (type(solver),), {"capabilities": single})
    return kind(**{field.name: getattr(solver, field.name) for field in dataclasses.fields(solver) if field.init})


def race(solver: Solver, family: Family, two: Handling, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds with one worker and with two, by turns; a first turn starts the processes."""
    request = BatchRequest(family.batch, family.start, seed=1)
    seconds: tuple[list[float], list[float]] = ([], [])
    answers: list[BatchResult] = []
    for turn in range(repeats + 1):
        # who is first takes turns too
        for which in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter()
            answers.append(solve_batch(solver, request, two if which else Handling(polish=False, workers=1)))
            if turn:
                seconds[which].append(time.perf_counter() - began)
    if not all(torch.equal(answer.assignments, answers[0].assignments) for answer in answers):
        raise RuntimeError("the answers depend on the number of workers")
    return seconds


if __name__ == "__main__":
    main()
