"""Block QUBOs of real layers: what the benchmarks are run on.

A family is one layer and one block size: the same columns of several rows, so that all its problems
share one Gram block. A problem is the block alone, ``E(x) = 1/2 (w*x)' H (w*x)``: the mean squared
output error that pruning these weights of the row brings, half of them by default, Wanda's choice
as the warm start. Blocks as wide as the layer are whole rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from qubo_prune.data.text import check_length, token_windows
from qubo_prune.errors import InputError
from qubo_prune.files.atomic import written_whole
from qubo_prune.files.cache import user_cache
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.stream import Seconds, stream
from qubo_prune.masks.keep import Pattern, keep_highest
from qubo_prune.methods.scores import score
from qubo_prune.models.layers import Layer, find_layers
from qubo_prune.models.load import load_model
from qubo_prune.problem.qubo import BlockBatch, BlockQubo
from qubo_prune.progress import Progress
from qubo_prune.seeds import checked_seed
from qubo_prune.solver.interface import to_numpy_bool

#: Easy and hard layers of the 135 M language model, from its middle and near its end.
SMOLLM2_LAYERS = (
    "model.layers.14.self_attn.q_proj",
    "model.layers.14.self_attn.o_proj",
    "model.layers.14.mlp.gate_proj",
    "model.layers.14.mlp.down_proj",
    "model.layers.27.self_attn.o_proj",
)
#: What :func:`real_block` is taken from: the hardest rows among them.
BLOCK_LAYER = "model.layers.14.self_attn.o_proj"
#: Windows of text that it is taken over: enough for a Gram of full rank.
_FEW = 4
_FORMAT = 1


@dataclass(frozen=True)
class Source:
    """Where Grams and weights come from: a model and the text it reads."""

    model: str = "smollm2-135m"
    layers: tuple[str, ...] = SMOLLM2_LAYERS
    calibration: str = "pydoc"
    samples: int = 32
    sequence_length: int = 512


@dataclass(frozen=True, eq=False)
class Family:
    """Problems of one layer and size, one per row, with a warm start each."""

    layer: str
    batch: BlockBatch
    start: Tensor

    @property
    def num_variables(self) -> int:
        """n."""
        return self.batch.num_variables

    @property
    def name(self) -> str:
        """The layer's last names and n."""
        parts = self.layer.removeprefix("model.layers.").split(".")
        return f"{parts[0]}.{parts[-1]}/{self.num_variables}"

    def problems(self) -> Iterator[tuple[BlockQubo, np.ndarray]]:
        """Each problem with its warm start."""
        for row in range(self.batch.num_rows):
            yield self.batch.problem(row), to_numpy_bool(self.start[row])


@dataclass(frozen=True, eq=False)
class Captured:
    """A layer's weights and Gram."""

    name: str
    weight: Tensor
    gram: Gram

    def family(self, size: int, rows: int, seed: int = 0, density: float = 0.5) -> Family:
        """``rows`` random rows on ``size`` random columns, the same for the same seed; ``density`` of them kept."""
        d_out, d_in = self.weight.shape
        if size > d_in:
            raise InputError(f"A block of {size} does not fit into {self.name!r}, whose rows have {d_in} weights.")
        rng = np.random.default_rng([checked_seed(seed), size])
        columns = torch.tensor(np.sort(rng.permutation(d_in)[:size]))
        chosen = torch.tensor(np.sort(rng.permutation(d_out)[:rows]))
        hessian = self.gram.matrix[columns][:, columns].contiguous()
        weight = self.weight[chosen][:, columns].double().contiguous()
        wanda = score("wanda", weight, Gram(hessian, self.gram.tokens), seed)
        keep = keep_highest(wanda, Pattern.parse("row"), density)
        nothing = torch.zeros_like(weight)
        batch = BlockBatch(
            hessian, weight, nothing, nothing[:, 0], torch.zeros(size, dtype=torch.long), (~keep).sum(1, keepdim=True)
        )
        return Family(self.name, batch, ~keep)


def capture(source: Source, progress: Progress | None = None, cache: Path | None = None) -> list[Captured]:
    """Weights and Grams of the source's layers in the dense model, kept on disk for the next time.

    Args:
        source: the model, its layers, and the text.
        progress: shows the pass over the text.
        cache: folder for the captured tensors (safetensors); :func:`~qubo_prune.files.cache.user_cache` by default.
    """
    bars = progress or Progress()
    file = (cache or user_cache()) / f"{_key(source)}.safetensors"
    tensors = _read(file)
    if tensors is None:
        tensors = _captured(source, bars)
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as aside:
            save_file(tensors, aside)
    tokens = int(tensors["tokens"])
    return [Captured(name, tensors[f"{name}.weight"], Gram(tensors[f"{name}.gram"], tokens)) for name in source.layers]


def real_block(
    n: int, seed: int = 0, layer: str = BLOCK_LAYER, density: float = 0.5, progress: Progress | None = None
) -> BlockQubo:
    """One block QUBO of a layer of SmolLM2-135M: ``E(x) = 1/2 (w*x)' H (w*x)`` on n random columns of a random row.

    H is the Gram ``2/T X'X`` of the layer's inputs over T = 2048 tokens of the standard library's documentation, as in
    the suite ``smoke``. The first call of a layer loads the model and reads that text, in less than a minute; what it
    read stays in :func:`~qubo_prune.files.cache.user_cache`.

    Args:
        n: variables, at least 2; the row is whole if n is the layer's width (576, or 1536 of ``down_proj``).
        seed: which row and columns.
        layer: full name of a linear layer.
        density: share that is kept.
        progress: where to report to while the model reads; by default to a terminal or a notebook.

    Raises:
        InputError: the block does not fit, there is no such layer, or the package of the weights is not installed.
    """
    if not (type(n) is int and n >= 2 and 0 < density < 1):
        raise InputError(
            f"n is {n!r} and density {density!r}; give a whole number of variables from 2 on, and a share between 0 "
            "and 1 of them to keep."
        )
    (captured,) = capture(Source(layers=(layer,), samples=_FEW), progress or Progress(True))
    return captured.family(n, 1, seed, density).batch.problem(0)


def _key(source: Source) -> str:
    described = json.dumps([_FORMAT, vars(source)], sort_keys=True, default=list)
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _read(file: Path) -> dict[str, Tensor] | None:
    """What was captured before; ``None`` if nothing was or the file is broken."""
    try:
        # copies: the tensors would otherwise live in the file, which somebody may overwrite
        return {name: tensor.clone() for name, tensor in load_file(file).items()} if file.is_file() else None
    except SafetensorError:
        return None


def _captured(source: Source, bars: Progress) -> dict[str, Tensor]:
    with bars.task(f"loading {source.model}", None):
        loaded = load_model(source.model)
    layers = find_layers(loaded.model, source.layers)
    missing = set(source.layers) - {layer.name for layer in layers}
    if missing:
        raise InputError(f"{source.model!r} has no layer {sorted(missing)[0]!r}; give the full names of linear layers.")
    check_length(loaded.model, source.sequence_length)
    windows = token_windows(loaded.tokenizer, source.calibration, "calibration", source.samples, source.sequence_length)
    tensors = {"tokens": torch.tensor(windows.tokens.numel())}

    def visit(layer: Layer, gram: Gram) -> None:
        tensors[f"{layer.name}.weight"] = layer.matrix().detach().clone().contiguous()
        tensors[f"{layer.name}.gram"] = gram.matrix.clone()
        advance(1, layer.name)

    with bars.task("reading the text", len(layers)) as advance:
        stream(loaded.model, layers, list(torch.split(windows.tokens, 1)), visit, Seconds())
    return tensors


def families(captured: Sequence[Captured], sizes: Sequence[int], rows: int, seed: int = 0) -> list[Family]:
    """One family per layer and size that fits into it; whole rows where a size is 0."""
    result = []
    for size in sizes:
        for layer in captured:
            width = layer.weight.shape[1]
            if size <= width:
                result.append(layer.family(size or width, rows, seed))
    if not result:
        raise InputError(
            f"None of the sizes {list(sizes)} fits into the layers; give smaller ones, or 0 for whole rows."
        )
    return result
