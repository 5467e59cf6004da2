"""One block QUBO of a real layer, as each local Hessian emits it.

=============  ==========================================================================================
gram           ``1/2 (w*x)' H (w*x)``: the layer's output error if these weights of a row are pruned and no others;
               random columns of a random row
compensated    ``1/2 (u*x)' S (u*x)``: the same once all kept weights outside have adapted; the weights of a row
               nearest to the border between kept and pruned
fisher         ``g'delta + 1/2 delta'H delta + lam |delta|^2`` with ``H = 1/B G'G``: the loss from the current mask
               on; the weights of the layer nearest to the border, whatever their row
=============  ==========================================================================================

The first two are errors, at least zero; the third is a change, zero at the current mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from qubo_prune.bench.instances import Captured
from qubo_prune.bench.origins import Origin
from qubo_prune.blocks.emission import emit_factor
from qubo_prune.errors import InputError
from qubo_prune.hessian.compensated import Blocks, Curvature, Support
from qubo_prune.hessian.gradients import Entries
from qubo_prune.hessian.gram import Gram
from qubo_prune.masks.keep import Pattern, keep_highest
from qubo_prune.methods.scores import score
from qubo_prune.problem.qubo import BlockBatch, BlockQubo
from qubo_prune.solver.interface import to_numpy_bool

#: ``lam`` of the fisher problems, as iCBS has it.
RIDGE = 1e-3
#: Share of the mean diagonal that is added before a Gram is inverted, for the compensated ones.
DAMPING = 0.01


@dataclass(frozen=True, eq=False)
class Emitted:
    """A problem with what its file does not tell.

    Attributes:
        problem: the block QUBO.
        start: ``(n,)`` the warm start: Wanda's choice, True = prune.
        convex: the same problem with its convex part told from its linear one, as bounds need it; one row.
        facts: of the weights and samples it is made of, plain data.
    """

    problem: BlockQubo
    start: NDArray[np.bool_]
    convex: BlockBatch
    facts: dict[str, Any] = field(default_factory=dict)


def count_of(n: int, density: float) -> int:
    """How many of n weights are pruned."""
    return n - Pattern.parse("row").num_kept((1, n), density)


def gram_block(layer: Captured, n: int, density: float, seed: int) -> Emitted:
    """n random columns of a random row; the whole row if n is the layer's width."""
    family = layer.family(n, 1, seed, density)
    ((problem, start),) = family.problems()
    return Emitted(problem, start, family.batch)


def compensated_block(layer: Captured, n: int, density: float, seed: int) -> Emitted:
    """The n weights of a random row at the border of Wanda's mask, for weights that adapt."""
    weight = _random_row(layer, seed).double()
    d = weight.shape[1]
    pruned = count_of(n, density)
    if pruned > count_of(d, density) or n - pruned > d - count_of(d, density):
        raise InputError(f"A block of {n} at density {density} does not fit into a row of {layer.name!r} with {d}.")
    curvature = Curvature.of(layer.gram, DAMPING, torch.float64)
    keep = keep_highest(score("wanda", weight, layer.gram, seed), Pattern.parse("row"), density)
    support = Support.of(weight * curvature.scale, curvature, ~keep)
    kept = support.prune_costs.topk(n - pruned, dim=1, largest=False).indices
    places = support.restore_gains.topk(pruned, dim=1).indices
    blocks = Blocks.of(support, kept, places, torch.zeros(n, dtype=torch.long))
    # from all of the block kept on, so that the energy is an error and never negative
    batch = blocks.batch()
    batch = BlockBatch(
        (batch.hessian + batch.hessian.mT) / 2,
        batch.values,
        batch.linear,
        torch.zeros_like(batch.offset),
        batch.labels,
        batch.num_pruned,
    )
    return Emitted(
        batch.problem(0), to_numpy_bool(blocks.x[0]), batch, {"damping": curvature.damping, "row_weights": d}
    )


def _random_row(layer: Captured, seed: int) -> Float[Tensor, "1 d_in"]:
    chosen = int(np.random.default_rng([seed, 1]).integers(len(layer.weight)))
    return layer.weight[chosen : chosen + 1]


def fisher_blocks(origin: Origin, name: str, gram: Gram, sizes: Sequence[int], density: float) -> list[Emitted]:
    """One problem of each size, all from one pass of gradients at Wanda's mask of the layer."""
    layer = origin.layer(name)
    weight = layer.matrix().detach()
    wanda = score("wanda", weight, gram, 0)
    keep = keep_highest(wanda, Pattern.parse("layer"), density)
    blocks = [_border(wanda, keep, n, count_of(n, density)) for n in sizes]
    entries = [Entries(layer, places // weight.shape[1], places % weight.shape[1]) for places in blocks]
    gradients = origin.gradients(entries, weight * keep)
    return [_fisher(found, weight, keep, block) for found, block in zip(gradients, entries, strict=True)]


def _border(scores: Float[Tensor, "d_out d_in"], keep: Tensor, n: int, pruned: int) -> Int[Tensor, " n"]:
    """The kept weights of the lowest scores and the pruned ones of the highest, as places in the flat layer."""
    flat, kept = scores.flatten().double(), keep.flatten()
    if n - pruned > int(kept.sum()) or pruned > int((~kept).sum()):
        raise InputError(f"A block of {n} does not fit into a layer of {len(flat)} weights.")
    low = flat.masked_fill(~kept, torch.inf).topk(n - pruned, largest=False).indices
    high = flat.masked_fill(kept, -torch.inf).topk(pruned).indices
    return torch.cat([low, high]).sort().values


def _fisher(gradients: Float[Tensor, "B n"], weight: Tensor, keep: Tensor, block: Entries) -> Emitted:
    factor, value = gradients.double(), block.of(weight).double()
    now = block.of(weight * keep).double()
    start = ~block.of(keep)
    problem = emit_factor(factor, factor.mean(0), now, value, [int(start.sum())], ridge=RIDGE)
    hessian = factor.T @ factor / len(factor)
    own = value.square() * hessian.diagonal() / 2
    convex = BlockBatch(
        hessian,
        value[None],
        (torch.tensor(problem.diagonal) - own)[None],
        torch.tensor([problem.offset], dtype=torch.float64),  # a bound in single precision would be none
        torch.zeros(len(block), dtype=torch.long),
        start.sum().reshape(1, 1),
    )
    return Emitted(problem, to_numpy_bool(start), convex, {"samples": len(factor), "ridge": RIDGE})
