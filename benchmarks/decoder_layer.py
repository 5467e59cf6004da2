"""Seconds that methods take for the matrices of one decoder layer, as ratios to Wanda and to the calibration pass.

    python benchmarks/decoder_layer.py [--shape smollm2] [--methods wanda,admm] [--rows 0] [--device cpu] [--repeats 1]

Weights and inputs are random, the inputs correlated. The calibration pass is the seven products with the inputs and the
Grams of the four inputs, over ``--tokens`` tokens. Methods run in turns; the figure is the median over the repeats.
With ``--rows r``, methods that take every row for itself (marked *) get r and 2 r rows of each matrix, and the line
through the two says what all rows would take: for shapes where that would be hours.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from qubo_prune.hessian import Gram, GramAccumulator
from qubo_prune.masks import Pattern
from qubo_prune.methods.base import LayerTask
from qubo_prune.methods.chain import Entry, chain_of
from qubo_prune.report import machine
from qubo_prune.request import MethodSettings

#: Width, width of keys and values, width of the feed-forward part.
SHAPES = {"tiny": (32, 16, 48), "smollm2": (576, 192, 1536), "llama-2-7b": (4096, 4096, 11008)}
METHODS = "wanda,sparsegpt,admm,alps,gram,gram+refit,compensated"
#: Methods that take every row for itself.
BY_ROW = ("gram", "gram+refit", "compensated", "sparseswaps", "dsnot")


@dataclass(frozen=True)
class Matrix:
    """A weight, and the Gram of its inputs."""

    weight: Tensor
    gram: Gram


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    matrices, passes = calibrated(SHAPES[options.shape], options.tokens, device)
    methods = options.methods.split(",")
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(options.repeats):
        for name in methods:
            seconds[name].append(sum(timed(name, matrix, options.rows, device) for matrix in matrices))
    show(options, seconds, passes)


def show(options: argparse.Namespace, seconds: dict[str, list[float]], passes: float) -> None:
    """One line for each method."""
    table = Table(title=f"one decoder layer of {options.shape}, {options.device}")
    for heading in ("method", "seconds", "to Wanda", "to the calibration pass"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    first = median(seconds["wanda"]) if "wanda" in seconds else float("nan")
    table.add_row("(calibration pass)", f"{passes:.2f}", f"{passes / first:.2f}", "1.00")
    for name, values in seconds.items():
        own = median(values)
        mark = "*" if options.rows and name in BY_ROW else ""
        table.add_row(name + mark, f"{own:.2f}", f"{own / first:.2f}", f"{own / passes:.2f}")
    console = Console(soft_wrap=True)
    console.print(table)
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else machine()["processor"]
    console.print(f"{options.tokens} tokens, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}")


def calibrated(shape: tuple[int, int, int], tokens: int, device: torch.device) -> tuple[list[Matrix], float]:
    """The seven matrices of a decoder layer, and the seconds of the pass."""
    width, narrow, wide = shape
    parts = [((width, narrow, narrow), width), ((width,), width), ((wide, wide), width), ((width,), wide)]
    draw, matrices, seconds = torch.Generator().manual_seed(0), list[Matrix](), 0.0
    for outputs, d_in in parts:
        weights = [torch.randn(d_out, d_in, generator=draw).div_(d_in**0.5).to(device) for d_out in outputs]
        mixing = torch.randn(64, d_in, generator=draw)
        scale = torch.randn(d_in, generator=draw).exp()
        accumulator, left = GramAccumulator("layer"), tokens
        while left > 0:
            count = min(left, 2048)
            noise = torch.randn(count, d_in, generator=draw)
            inputs = (noise + noise.roll(1, 1) + torch.randn(count, 64, generator=draw) @ mixing / 8) * scale
            inputs = inputs.to(device)
            began = now(device)
            for weight in weights:
                inputs @ weight.T
            accumulator.add(inputs)
            seconds += now(device) - began
            left -= count
        gram = accumulator.finish(d_in)
        matrices += [Matrix(weight, gram) for weight in weights]
    return matrices, seconds


def timed(name: str, matrix: Matrix, rows: int, device: torch.device) -> float:
    """Seconds of a method on a whole matrix, extrapolated from some of its rows if that is asked for."""
    total, run = len(matrix.weight), method(name)

    def taken(count: int) -> float:
        began = now(device)
        run(matrix.weight[:count], matrix.gram)
        return now(device) - began

    if not rows or name not in BY_ROW or 2 * rows >= total:
        return taken(total)
    some, twice = taken(rows), taken(2 * rows)
    return some + (twice - some) * (total - rows) / rows


def method(name: str) -> Callable[[Tensor, Gram], object]:
    """Prunes half of every row by a method and its update."""
    chain = chain_of(MethodSettings(**Entry.parse(name).words()))

    def run(weight: Tensor, gram: Gram) -> None:
        task = LayerTask(weight, gram, Pattern("row"), 0.5)
        chain.decide(task, chain.start.decide(task), lambda: None)

    return run


def now(device: torch.device) -> float:
    """The clock, once all work that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
