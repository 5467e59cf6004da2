"""``qubo-prune bench blocks``: what blocks cost and bring inside ``prune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from qubo_prune.cli import options
from qubo_prune.cli.aside import aside
from qubo_prune.cli.derive import with_options
from qubo_prune.cli.ending import Ending, checked
from qubo_prune.cli.options import in_blocks, in_data, in_output, in_run, in_what, names


@dataclass(frozen=True)
class StudyOptions:
    """Model and settings of a study, as a command line gives them."""

    model: options.ModelOption = "smollm2-135m"
    solvers: options.Solvers = "greedy,tabu,neal,qaoa(layers=1)"
    sizes: Annotated[
        str,
        in_blocks(help="Comma-separated block sizes, row for whole rows. A solver that does not take one is left out."),
    ] = "12,64,128"
    block_times: Annotated[str, in_blocks(help="Comma-separated limits of one block, such as 10ms, 0.5s or none.")] = (
        "1ms,10ms,100ms"
    )
    density: options.Density = 0.5
    sparsity: options.Sparsity = None
    pattern: options.PatternOption = "row"
    max_time: Annotated[str, in_run(help="Wall-clock budget of each pruning, such as 60s; none for no limit.")] = "60s"
    max_sweeps: Annotated[int, in_blocks(help="Most blocks per row.")] = 1
    polish: Annotated[
        bool, in_blocks(help="Swap within the blocks too; without, a block is as its solver left it.")
    ] = False
    row_swaps: Annotated[
        bool, in_blocks(help="Swap over whole rows after the blocks too; without, masks are as the solver left them.")
    ] = False
    include: Annotated[
        list[str] | None,
        in_what(
            help="Prune only layers like this, e.g. '*.layers.3.*'. By default those of the second decoder layer "
            "with no more outputs than inputs."
        ),
    ] = None
    exclude: options.Exclude = None
    workers: Annotated[
        int | None, in_run(help="Processes for solvers that take one block at a time; one per core.")
    ] = None
    calibration: options.Calibration = "pydoc"
    text: options.Text = "pydoc"
    samples: options.Samples = 32
    eval_samples: Annotated[int, in_data(help="Windows of held-out text.")] = 8
    sequence_length: options.Length = 512
    seed: options.Seed = 0
    seeds: Annotated[int, in_run(help="Prunings of each combination, whose deviation is told.")] = 1
    dtype: options.Dtype = "auto"
    device: options.Device = "cpu"

    def arguments(self, context: typer.Context) -> dict[str, Any]:
        """The same for :func:`qubo_prune.bench.block_study.study_blocks`."""
        given = vars(self) | {
            "sizes": options.block_sizes(self.sizes),
            "block_times": names(self.block_times),
            "density": options.kept_share(context, self.density, self.sparsity),
            "include": self.include or (),
            "exclude": self.exclude or (),
        }
        return {name: value for name, value in given.items() if name != "sparsity"}


@with_options
def blocks_command(
    context: typer.Context,
    *,
    asked: StudyOptions,
    output: Annotated[
        Path | None, in_output(help="Folder for results.json, points.csv, means.csv, table.txt and study.png.")
    ] = None,
    overwrite: options.Overwrite = False,
    ending: Ending,
) -> None:
    """What blocks cost and bring: solvers, block sizes and times per block inside prune, quality against time.

    Some layers of a language model are pruned by every combination, from Wanda's masks, and by two baselines: Wanda
    alone, and swaps over whole rows. The defaults take about 15 minutes on 2 cores; every further layer, size or
    limit adds to that.

    Examples:
    qubo-prune bench blocks --output study
    qubo-prune bench blocks --sizes 64,256,row --block-times none --seeds 3
    """
    with options.plain_errors("nothing was written."):
        from qubo_prune.bench.block_study import study_blocks

        options.hush_libraries()
        needed = {"model": asked.model, "calibration text": asked.calibration, "held-out text": asked.text}
        target = checked(output, overwrite, needed)
        with aside():
            study = study_blocks(**asked.arguments(context), progress=ending.for_people)
        ending.end(study, target)
