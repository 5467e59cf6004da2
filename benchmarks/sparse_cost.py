"""What zeros save: file sizes of pruned layers, and the speed of sparse matrix products on this CPU.

    python benchmarks/sparse_cost.py [--shapes 4096x4096,576x1536] [--columns 1,64] [--repeats 7]

Layers are random normal, pruned by magnitude; gzip is Python's at level 6. Seconds are the median
of three, with gzip those of one; writing packed files includes hashes and the flush to the disk.
Products are W (d_out x d_in) times X (d_in x columns) in float32, in turns within one run: the
figure is the median of dense seconds / CSR seconds, so above 1 the sparse product is the faster one.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from qubo_prune.masks import Pattern, keep_highest
from qubo_prune.masks.packed import load_sparse, save_sparse
from qubo_prune.report import machine

DENSITIES = (0.5, 0.25, 0.1, 0.05)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="4096x4096,576x1536")
    parser.add_argument("--columns", default="1,64", help="positions that pass through the layer at a time")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    shapes = [(int(rows), int(columns)) for rows, columns in (text.split("x") for text in options.shapes.split(","))]
    console = Console(soft_wrap=True)
    console.print(files(shapes))
    console.print(products(shapes, [int(columns) for columns in options.columns.split(",")], options.repeats))
    console.print(f"{machine()['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}")


def layer(shape: tuple[int, int], pattern: str, density: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A pruned weight and its keep mask."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    keep = keep_highest(weight.abs(), Pattern.parse(pattern), density)
    return weight * keep, keep


def files(shapes: list[tuple[int, int]]) -> Table:
    """Sizes, and seconds to write and to read."""
    table = Table(title="one layer in a file")
    for heading in ("layer", "type", "pattern", "file", "MB", "of dense", "write s", "read s"):
        table.add_column(heading, justify="left" if heading in ("layer", "type", "pattern", "file") else "right")
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            for pattern in ("row", "2:4"):
                weight, keep = layer(shape, pattern, 0.5)
                weight = weight.to(dtype).masked_fill(~keep, 0)
                shown = f"{shape[0]} x {shape[1]}", str(dtype).removeprefix("torch."), f"{pattern}, 0.5"
                for kind, cells in formats(weight, keep).items():
                    table.add_row(*shown, kind, *cells)
                table.add_section()
    return table


def formats(weight: torch.Tensor, keep: torch.Tensor) -> dict[str, tuple[str, ...]]:
    """For every format its size in MB (10^6 bytes), the ratio to dense, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        dense, zipped, packed = (Path(folder, name) for name in ("dense", "zipped", "packed"))
        save_file({"weight": weight}, dense)
        plain = dense.read_bytes()
        ways: dict[str, tuple[Path, Callable[[], Any], Callable[[], Any]]] = {
            "dense": (dense, lambda: save_file({"weight": weight}, dense), lambda: load_file(dense)["weight"].clone()),
            "gzip": (
                zipped,
                lambda: zipped.write_bytes(gzip.compress(plain, 6)),
                lambda: gzip.decompress(zipped.read_bytes()),
            ),
            "packed": (
                packed,
                lambda: save_sparse({"weight": weight}, packed, {"weight": keep}),
                lambda: load_sparse(packed),
            ),
        }
        ways["packed, gzip"] = (
            zipped,
            lambda: (ways["packed"][1](), zipped.write_bytes(gzip.compress(packed.read_bytes(), 6))),
            lambda: (packed.write_bytes(gzip.decompress(zipped.read_bytes())), ways["packed"][2]()),
        )
        rows = {}
        for kind, (path, write, read) in ways.items():
            seconds = [median(clock(act) for _ in range(1 if "gzip" in kind else 3)) for act in (write, read)]
            size = path.stat().st_size
            rows[kind] = (f"{size / 1e6:.2f}", f"{size / len(plain):.3f}", *(f"{time:.3f}" for time in seconds))
    return rows


def products(shapes: list[tuple[int, int]], columns: list[int], repeats: int) -> Table:
    """Dense against CSR seconds for one product."""
    table = Table(title="dense seconds / CSR seconds, float32")
    for heading in ("layer", "columns", "dense ms", *(f"density {density:g}" for density in DENSITIES)):
        table.add_column(heading, justify="right")
    for shape in shapes:
        weight, _ = layer(shape, "layer", 1.0)
        sparse = [csr(layer(shape, "layer", density)[0]) for density in DENSITIES]
        for width in columns:
            inputs = torch.randn(shape[1], width, generator=torch.Generator().manual_seed(1))
            seconds, ratios = race(weight, sparse, inputs, repeats)
            table.add_row(f"{shape[0]} x {shape[1]}", str(width), f"{1e3 * seconds:.2f}", *(f"{r:.2f}" for r in ratios))
    return table


def race(
    weight: torch.Tensor, sparse: list[torch.Tensor], inputs: torch.Tensor, repeats: int
) -> tuple[float, list[float]]:
    """Median seconds of the dense product, and of dense / sparse by turns; a first turn warms up."""
    turns = [[clock(lambda m=m: m @ inputs) for m in (weight, *sparse)] for _ in range(repeats + 1)][1:]
    ratios = [median(turn[0] / turn[at] for turn in turns) for at in range(1, 1 + len(sparse))]
    return median(turn[0] for turn in turns), ratios


def csr(weight: torch.Tensor) -> torch.Tensor:
    """The matrix in torch's compressed sparse rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return weight.to_sparse_csr()


def clock(act: Callable[[], Any]) -> float:
    """Wall-clock seconds of a call."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
