"""The main job against its targets, as ratios within one run.

    python benchmarks/main_job.py [--calibration SOURCE] [--text SOURCE] [--density 0.5]

Wanda and Gram blocks on SmolLM2-135M, same calibration and held-out text. Prints the ratio of the
summed layer errors, of the rises of log-perplexity over the dense model, and of the search to the
calibration's forward passes; on a shared machine only ratios mean something.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from qubo_prune.run.compare import compare


def main() -> None:
    """Run the benchmark and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", default="pydoc")
    parser.add_argument("--text", default="pydoc")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--pattern", default="row")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--eval-samples", type=int, default=24)
    options = vars(parser.parse_args())
    result = compare("smollm2-135m", ["wanda", "gram"], progress=True, **options)
    wanda, blocks = result.row("wanda"), result.row("gram")
    console = Console()
    console.print(result)
    console.print(f"layer error, blocks / Wanda:                {blocks.layer_error / wanda.layer_error:.3f}")
    console.print(f"rise of log-perplexity, blocks / Wanda:     {result.rise('gram') / result.rise('wanda'):.3f}")
    console.print(f"search / forward passes of the calibration: {blocks.search_seconds / blocks.forward_seconds:.3f}")


if __name__ == "__main__":
    main()
