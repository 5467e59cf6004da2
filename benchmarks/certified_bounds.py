"""How tight the certified bounds of real blocks, rows and layers are, and what they cost.

    python benchmarks/certified_bounds.py [--rows 576] [--skip-rows] [--kinds trace,row]

For every disjoint block of 64 columns of a layer and every row: the gap ``(E - L) / E`` between the energy E of a
tabu search and the bound L, in percent; then for whole rows. One calibration of SmolLM2-135M, half of each block
pruned; two threads at most, as many as cores.
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

from qubo_prune.bench.instances import Captured, Source, capture
from qubo_prune.problem import BlockBatch
from qubo_prune.problem.bounds import lower_bounds
from qubo_prune.progress import Progress
from qubo_prune.solver import BatchRequest
from qubo_prune.solver.registry import make_solver

BLOCK = 64


def main() -> None:
    """Print one line for each layer, size and bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=576, help="rows of each layer, at most")
    parser.add_argument("--skip-rows", action="store_true", help="blocks only")
    parser.add_argument("--kinds", default="plain,eigenvalue,trace", help="bounds of blocks, comma-separated")
    parser.add_argument("--row-kinds", default="eigenvalue,trace", help="bounds of whole rows, comma-separated")
    asked = parser.parse_args()
    captured = {layer.name.split(".")[-1]: layer for layer in capture(Source(), Progress(True))[:4]}
    table = Table(box=None, title="certified bounds, layer 14", title_justify="left")
    for name in ("layer", "n", "bound", "gap %", "worst %", "ms a row", "s in all"):
        table.add_column(name, justify="right" if name not in ("layer", "bound") else "left")
    for name in ("q_proj", "down_proj", "o_proj"):
        for kind in asked.kinds.split(","):
            table.add_row(name, str(BLOCK), kind, *_blocks(captured[name], asked.rows, kind))
    for name in () if asked.skip_rows else ("q_proj", "o_proj"):
        for kind in asked.row_kinds.split(","):
            weight = captured[name].weight
            whole = _problems(captured[name], torch.arange(weight.shape[1]), asked.rows)
            table.add_row(name, str(weight.shape[1]), kind, *_measured([whole], kind))
    Console().print(table)


def _blocks(layer: Captured, rows: int, kind: str) -> tuple[str, ...]:
    columns = torch.split(torch.arange(layer.weight.shape[1]), BLOCK)
    # a d of its own for each row is costly; a tenth of the rows tells its gap
    most = max(1, rows // 10) if kind == "row" else rows
    return _measured([_problems(layer, part, most) for part in columns if len(part) == BLOCK], kind)


def _problems(layer: Captured, columns: torch.Tensor, rows: int) -> tuple[BlockBatch, torch.Tensor]:
    """Blocks of these columns of the first rows, half of each to be pruned, with Wanda's choice."""
    weight = layer.weight[:rows][:, columns].double()
    hessian = layer.gram.matrix[columns][:, columns].contiguous()
    n = len(columns)
    worth = weight.abs() * hessian.diagonal().sqrt()
    x = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, worth.argsort(1)[:, : n // 2], True)
    nothing = torch.zeros_like(weight)
    labels = torch.zeros(n, dtype=torch.long)
    return BlockBatch(hessian, weight, nothing, nothing[:, 0], labels, x.sum(1, keepdim=True)), x


def _measured(problems: list[tuple[BlockBatch, torch.Tensor]], kind: str) -> tuple[str, ...]:
    tabu = make_solver("tabu", starts=1, steps=8)
    gaps, seconds = [], 0.0
    for batch, start in problems:
        found = batch.energy(tabu.solve_batch(BatchRequest(batch, start)).assignments)
        began = time.perf_counter()
        bounds = lower_bounds(batch, kind)
        seconds += time.perf_counter() - began
        gaps.append((found - bounds.lower) / found)
    gap = torch.cat(gaps)
    each = f"{1e3 * seconds / len(gap):.2f}"
    return f"{100 * gap.mean():.1f}", f"{100 * gap.max():.1f}", each, f"{seconds:.1f}"


if __name__ == "__main__":
    main()
