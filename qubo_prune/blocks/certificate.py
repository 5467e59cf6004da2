"""How far a layer's mask may be from the best one: a proven bound of its output error, proven optima of blocks.

The bound holds for every mask of the counts, but is loose. The optima are exact, but each is that of one block, the
rest of its row held.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.blocks.emission import emit_whole_rows
from qubo_prune.blocks.gram_rows import LayerState
from qubo_prune.blocks.selection import borderline_block
from qubo_prune.hessian.gram import Gram
from qubo_prune.masks.keep import Pattern
from qubo_prune.precision import pinned
from qubo_prune.problem.bounds import lower_bounds
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.seeds import checked_seed
from qubo_prune.solver.dispatch import solve
from qubo_prune.solver.interface import Solver, derive_seed, to_numpy_bool
from qubo_prune.solver.registry import make_solver

#: Rows of a layer that a block is drawn from.
SAMPLED_ROWS = 4
#: Weights of such a block; with n:m groups that are larger, one group.
SAMPLED_WEIGHTS = 48
#: Wall-clock seconds for the proof of one block.
PROOF_SECONDS = 1.0
#: Of a row's error and a block's energies; what an optimum may be below by rounding, or by the solver's tolerance.
_ROUNDING = 1e-8


@pinned()
def least_error(
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    keep: Bool[Tensor, "d_out d_in"],
    pattern: Pattern,
    kind: str = "trace",
) -> float:
    """No mask with the counts of this one has a lower output error ``1/2 (w*x)' H (w*x)``, summed over rows.

    The counts are those of the pattern's groups: with ``layer`` rows may exchange budget, though the groups of a
    grouped convolution, which have Grams of their own, may not.

    Args:
        weight: dense weights; kept ones hold their values.
        gram: of the layer's inputs.
        keep: a mask with the pattern's counts.
        pattern: where counts must hold.
        kind: of the bound, see :data:`qubo_prune.choices.BOUNDS`.
    """
    labels = pattern.labels(weight.shape[1]).to(gram.matrix.device)
    total = 0.0
    for rows, part, mask in zip(gram.split(weight), gram.parts(), gram.split(keep), strict=True):
        x = (~mask).to(labels.device, torch.float64)
        values = rows.to(labels.device, torch.float64)
        # without a field energies are those of the masks themselves, not from this mask on
        batch = emit_whole_rows(values, x, part.matrix, torch.zeros_like(x), labels, int(labels.max()) + 1)
        together = int(x.sum()) if pattern.name == "layer" else None
        total += float(lower_bounds(batch, kind, total=together).lower.sum())
    return max(0.0, total)


@dataclass(frozen=True)
class BlockOptima:
    """What is known of sampled blocks of a mask, one in each of some rows; those of several layers add up.

    Attributes:
        blocks: that were solved.
        skipped: rows without a block, such as those that keep all their weights.
        proven: blocks whose optimum was proven in time, of which the following tell.
        optimal: where the mask has the optimum already.
        gain: ``sum max(0, E(mask) - min E)``, by how much the optima lower the output error, in its units.
        row_error: ``sum 1/2 (w*x)' H (w*x)`` over their rows, with the mask as it is.
    """

    blocks: int = 0
    skipped: int = 0
    proven: int = 0
    optimal: int = 0
    gain: float = 0.0
    row_error: float = 0.0

    @property
    def gain_share(self) -> float | None:
        """``gain / row_error``; ``None`` if no optimum was proven."""
        if not self.proven:
            return None
        return self.gain / self.row_error if self.row_error else 0.0

    def __add__(self, other: BlockOptima) -> BlockOptima:
        return BlockOptima(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """All fields and the share as plain data."""
        return asdict(self) | {"gain_share": self.gain_share}


@pinned()
def block_optima(
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    keep: Bool[Tensor, "d_out d_in"],
    pattern: Pattern,
    seed: int = 0,
    *,
    rows: int = SAMPLED_ROWS,
    size: int = SAMPLED_WEIGHTS,
    seconds: float | None = PROOF_SECONDS,
    prover: str = "exact",
) -> BlockOptima:
    """Solve a block in each of some random rows to a proven optimum, and compare the mask with it.

    A block holds the borderline weights of its row, those that the descent would choose next: the kept ones that
    cost least to prune and the pruned ones that gain most if restored, or the n:m groups with the most promising
    exchange. It sees the rest of the row, which is held, and every group keeps its count; with the pattern ``layer``
    so does the row.

    Args:
        weight: dense weights; kept ones hold their values.
        gram: of the layer's inputs.
        keep: a mask with the pattern's counts.
        pattern: where counts must hold.
        seed: of the draw of rows, and of the solver.
        rows: to draw; all of a layer that has fewer.
        size: most weights of a block.
        seconds: wall-clock limit for the proof of one block; ``None`` for none.
        prover: name of the solver.
    """
    seed = checked_seed(seed)
    drawn = torch.zeros(len(weight), 1, dtype=torch.bool)
    drawn[torch.randperm(len(weight), generator=torch.Generator().manual_seed(seed))[:rows]] = True
    parts = zip(gram.split(weight), gram.parts(), gram.split(keep), gram.split(drawn), strict=True)
    found = BlockOptima()
    for number, (values, part, mask, chosen) in enumerate(parts):
        some = chosen[:, 0].nonzero()[:, 0].to(values.device)
        if not len(some):
            continue
        # rows are not coupled, so the others need no state
        state = LayerState(values[some], part, mask[some], pattern)
        for row in range(len(some)):
            found += _block_optimum(state, row, max(size, pattern.of), derive_seed(seed, number, row), seconds, prover)
    return found


def _block_optimum(
    state: LayerState, row: int, size: int, seed: int, seconds: float | None, prover: str
) -> BlockOptima:
    """What is known of one block of one row."""
    rows = torch.tensor([row], device=state.x.device)
    x, solver = state.masks(rows), _prover(prover)
    size = min(size, solver.capabilities.max_variables or size)
    columns, labels = borderline_block(state.flip_costs(rows), x, state.groups, size)
    start = to_numpy_bool(x.gather(1, columns)[0])
    if start.all() or not start.any():
        return BlockOptima(skipped=1)
    problem = state.emit(rows, columns, labels).problem(0)
    answer = solve(problem, solver, seed, seconds, start)
    row_error = float((state.weight[row] * state.x[row] * state.field[row]).sum() / 2)
    rounding = _ROUNDING * (row_error + abs(problem.offset))
    # not the status: a tie with the mask that rounding puts above it counts as no improvement there
    if answer.lower_bound is None or answer.lower_bound < answer.energy - rounding:
        return BlockOptima(blocks=1)
    gain = float(problem.energy(start)) - answer.energy
    if gain <= rounding:
        return BlockOptima(blocks=1, proven=1, optimal=1, row_error=row_error)
    return BlockOptima(blocks=1, proven=1, gain=gain, row_error=row_error)


@functools.cache
def _prover(name: str) -> Solver:
    """The solver of blocks, once it has solved one: its first call compiles, which no block's limit should pay for."""
    solver = make_solver(name)
    solve(BlockQubo(np.eye(2), num_pruned=1), solver)
    return solver
