"""``qubo-prune bench blocks``: what blocks cost and bring inside ``prune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qubo_prune.cli.options import (
    Calibration,
    Density,
    Device,
    Dtype,
    Exclude,
    Json,
    Length,
    ModelOption,
    Overwrite,
    PatternOption,
    Quiet,
    Samples,
    Seed,
    Solvers,
    Sparsity,
    Text,
    counts,
    hush_libraries,
    in_blocks,
    in_data,
    in_output,
    in_run,
    in_what,
    kept_share,
    names,
    plain_errors,
    show,
    tell_losses,
)


def blocks_command(
    context: typer.Context,
    model: ModelOption = "smollm2-135m",
    solvers: Solvers = "greedy,tabu,neal,qaoa(layers=1)",
    sizes: Annotated[
        str, in_blocks(help="Comma-separated block sizes. A solver that does not take one is left out there.")
    ] = "12,64,128",
    block_times: Annotated[
        str, in_blocks(help="Comma-separated limits of one block, such as 10ms, 0.5s or none.")
    ] = "1ms,10ms,100ms",
    density: Density = 0.5,
    sparsity: Sparsity = None,
    pattern: PatternOption = "row",
    max_time: Annotated[str, in_run(help="Wall-clock budget of each pruning, such as 60s; none for no limit.")] = "60s",
    max_sweeps: Annotated[int, in_blocks(help="Most blocks per row.")] = 1,
    polish: Annotated[
        bool,
        in_blocks(help="Swap within the blocks too; without, a block is as its solver left it."),
    ] = False,
    include: Annotated[
        list[str] | None,
        in_what(
            help="Prune only layers like this, e.g. '*.layers.3.*'. By default those of the second decoder layer "
            "with no more outputs than inputs."
        ),
    ] = None,
    exclude: Exclude = None,
    workers: Annotated[
        int | None, in_run(help="Processes for solvers that take one block at a time; one per core.")
    ] = None,
    calibration: Calibration = "pydoc",
    text: Text = "pydoc",
    samples: Samples = 32,
    eval_samples: Annotated[int, in_data(help="Windows of held-out text.")] = 8,
    sequence_length: Length = 512,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    output: Annotated[
        Path | None, in_output(help="Folder for results.json, points.csv, table.txt and study.png.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What blocks cost and bring: solvers, block sizes and times per block inside prune, quality against time.

    Some layers of a language model are pruned by every combination, from Wanda's masks, and by two baselines: Wanda
    alone, and swaps over whole rows. The defaults take about 15 minutes on 2 cores; every further layer, size or
    limit adds to that.

    Examples:
    qubo-prune bench blocks --output study
    qubo-prune bench blocks --solvers tabu,neal --sizes 64 --block-times 10ms
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.block_study import study_blocks
        from qubo_prune.files.outputs import check_output

        hush_libraries()
        needed = {"model": model, "calibration text": calibration, "held-out text": text}
        target = None if output is None else check_output(output, overwrite, needed)
        study = study_blocks(
            model,
            solvers,
            counts(sizes) or (),
            names(block_times),
            density=kept_share(context, density, sparsity),
            pattern=pattern,
            max_time=max_time,
            max_sweeps=max_sweeps,
            polish=polish,
            workers=workers,
            include=include or (),
            exclude=exclude or (),
            calibration=calibration,
            text=text,
            samples=samples,
            eval_samples=eval_samples,
            sequence_length=sequence_length,
            seed=seed,
            dtype=dtype,
            device=device,
            progress=not quiet and not as_json,
        )
        if target is not None:
            study.save(target)
        show(study, as_json, quiet)
        tell_losses(study.warnings(), study.all_lost, shown=not (as_json or quiet))
