"""Weight updates on a fixed support: the kept weights of a layer adapt to what was pruned.

A row with dense weights w becomes v, zero outside its support F, and its output error becomes
``1/2 (v - w)'H(v - w)``. ``H`` is damped everywhere here: ``H + damping * mean(diag H) * I``. The weights
of inputs that were always zero stay as they are where they are kept.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.choices import UPDATES
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.hessian.compensated import DAMPING
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.submatrices import padded_columns, padded_square, unit_diagonal
from qubo_prune.hessian.threads import in_threads
from qubo_prune.precision import pinned

#: What is said of a layer, or of a group of a convolution, without calibration data.
UNSEEN = "No calibration token reached these weights: the kept ones stay as they are."

#: What is said of rows whose updated weights the layer's dtype cannot hold.
OVERFLOWS = "The updated weights of a row overflow {}, so its kept weights stay as they are."

#: Columns after which SparseGPT's sweep carries its errors to the rest of the matrix.
SLAB = 128

#: Inputs up to which a row is refitted by a Cholesky factorisation, by conjugate gradients beyond.
CHOLESKY_LIMIT = 4096

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Updated:
    """Updated weights of a layer.

    Attributes:
        weight: ``(d_out, d_in)``, zero where pruned; dtype and device are those of the dense weights.
        damping: share of the mean diagonal that was added in the end; of several Grams the largest.
        notes: what did not go as asked, as sentences, each with the number of Grams or rows.
    """

    weight: Float[Tensor, "d_out d_in"]
    damping: float
    notes: dict[str, int]


@pinned()
def update(
    kind: str,
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    keep: Bool[Tensor, "d_out d_in"],
    damping: float = DAMPING,
) -> Updated:
    """The kept weights after one of :data:`UPDATES`.

    * ``none``: the dense weights, masked.
    * ``refit``: the least-squares optimum of every row, ``v_F = (H_FF)^-1 (H w)_F``.
    * ``admm``: 20 steps of :func:`admm` on the given mask (Boza, arXiv 2401.02938).
    * ``sparsegpt``: the column :func:`sweep` with the given mask (Frantar & Alistarh, arXiv 2301.00774).

    Where a matrix cannot be factored, the damping is raised tenfold step by step, at most up to 1, and a
    note says so.

    Args:
        kind: which update.
        weight: dense weights.
        gram: of the layer's inputs; a stack of them for a grouped convolution.
        keep: the mask.
        damping: share of the mean diagonal of the Gram that is added to its diagonal.

    Raises:
        InputError: there is no such update, shapes do not fit, or the Gram is not positive semidefinite.
    """
    if kind not in UPDATES:
        raise InputError(f"There is no update {kind!r}{did_you_mean(kind, UPDATES)}; use one of {', '.join(UPDATES)}.")
    check_layer(weight, gram, damping)
    if kind == "none":
        return Updated(weight.detach().masked_fill(~keep.to(weight.device), 0), damping, {})
    device, notes, largest, parts = gram.matrix.device, Counter[str](), damping, []
    masks = gram.split(keep.to(device))
    # detached: threads of this module would record gradients
    given = roomy(weight.detach().to(device), gram)
    for dense, part, mask in zip(gram.split(given), gram.parts(), masks, strict=True):
        if part.dead.all():
            parts.append(dense.masked_fill(~mask, 0).double())
            notes[UNSEEN] += 1
            continue
        result, used = with_damping(part, damping, _attempt(kind, dense, mask, notes), notes)
        parts.append(result.double().masked_fill(~mask, 0))
        largest = max(largest, used)
    return Updated(fitting(torch.cat(parts), weight.detach(), keep, notes), largest, dict(notes))


def _attempt(
    kind: str, weight: Float[Tensor, "r d"], keep: Bool[Tensor, "r d"], notes: Counter[str]
) -> Callable[[Tensor], Tensor]:
    """An update as a function of the damped Hessian."""
    if kind == "refit":
        return lambda hessian: refit(weight.double(), hessian, keep, notes)
    if kind == "admm":
        return lambda hessian: admm(weight, hessian, lambda step, values: keep)[0]
    return lambda hessian: sweep(
        weight.double(), inverse_factor(hessian), lambda first, values, own: keep[:, first : first + values.shape[1]]
    )[0]


def check_layer(weight: Tensor, gram: Gram, damping: float) -> None:
    """Raise :class:`InputError` if a weight does not fit its Gram, or for a damping out of range."""
    d_out, d_in = weight.shape
    if gram.matrix.shape[-1] != d_in or d_out % gram.groups:
        raise InputError(
            f"The weight has shape {tuple(weight.shape)}, its Gram {tuple(gram.matrix.shape)}; they must have "
            "the same d_in, and the groups must divide d_out."
        )
    if not 0 <= damping <= 1:
        raise InputError(f"The damping is {damping}; it is a share of the mean diagonal, from 0 to 1, such as 0.01.")


# damping


class NotPositiveDefinite(Exception):
    """A factorisation failed; :func:`with_damping` answers it with more damping."""


def with_damping(gram: Gram, damping: float, attempt: Callable[[Tensor], T], notes: Counter[str]) -> tuple[T, float]:
    """``attempt`` on a damped Hessian ``(d, d)``, with ten times the damping as long as it cannot factor it.

    Returns:
        what ``attempt`` returned, and the damping it took; if it was raised, a note says so.
    """
    asked, mean = damping, float(gram.diagonal.mean())
    while True:
        hessian = gram.matrix.clone()
        # nothing is known of inputs that were always zero: uncoupled, so that their weights stay as they are
        hessian.diagonal()[gram.dead] = mean
        hessian.diagonal().add_(damping * mean)
        try:
            result = attempt(hessian)
        except NotPositiveDefinite:
            if not damping < 1:
                break
            damping = min(1.0, max(10 * damping, 1e-8))
            continue
        if damping > asked:
            notes[f"A Gram could not be factored, so its damping was raised from {asked:g} to {damping:g}."] += 1
        return result, damping
    raise InputError(
        "The layer's Gram is not positive semidefinite: not even its whole mean diagonal as damping makes it so. "
        "It is no H = 2/N X X' in float64; collect it anew from finite inputs."
    )


def cholesky(matrix: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """The lower Cholesky factor.

    Raises:
        NotPositiveDefinite: it does not exist, or a pivot is nothing but rounding.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    rounding = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * matrix.diagonal(dim1=-2, dim2=-1)
    if failed.any() or not (pivots > rounding).all():
        raise NotPositiveDefinite
    return factor


def inverse_factor(hessian: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The upper U with ``U'U = H^-1``.

    With J the reversal of the order, ``JHJ = LL'`` and ``R = JLJ``, it is ``R^-1``: no inverse is formed.
    """
    upper = cholesky(hessian.flip(0, 1)).flip(0, 1)
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    inverse: Tensor = torch.linalg.solve_triangular(upper, identity, upper=True)
    return inverse


# least squares


def refit(
    weight: Float[Tensor, "r d"], hessian: Float[Tensor, "d d"], keep: Bool[Tensor, "r d"], notes: Counter[str]
) -> Float[Tensor, "r d"]:
    """``v_F = w_F + (H_FF)^-1 (H (w - w_F))_F``, which is ``(H_FF)^-1 (H w)_F``, of every row.

    By Cholesky factorisations, of as many rows at once as suits the memory, or by conjugate gradients if
    ``d`` is above :data:`CHOLESKY_LIMIT`. The factors are of single precision and the residuals of float64,
    which refine the solution to that; rows where they do not fall are factored in float64.

    Raises:
        NotPositiveDefinite: an ``H_FF`` is singular.
    """
    masked = weight.masked_fill(~keep, 0)
    if weight.shape[1] > CHOLESKY_LIMIT:
        values, open_rows = conjugate_gradients(weight, hessian, keep, masked, 2000, 1e-9)
        if open_rows:
            notes["The conjugate gradients of a row stopped before they converged."] += open_rows
        return values
    pull = (weight - masked) @ hessian
    counts = keep.sum(1)

    single = hessian.float()

    def solve(rows: Tensor) -> None:
        columns, valid = padded_columns(keep[rows])

        def whole(step: Tensor) -> Tensor:
            return torch.zeros_like(masked[rows]).scatter_(1, columns, step * valid)

        wanted = pull[rows].gather(1, columns) * valid
        step = _refined(
            padded_square(single, columns, valid), wanted,
            lambda step: (whole(step) @ hessian).gather(1, columns) * valid,
        )  # fmt: skip
        if step is None:
            step = torch.cholesky_solve(wanted[:, :, None], cholesky(padded_square(hessian, columns, valid)))[:, :, 0]
        masked[rows] += whole(step)

    in_threads(solve, list(_chunks(counts)), weight.device)
    return masked


def _refined(
    single: Float[Tensor, "r n n"], wanted: Float[Tensor, "r n"], times: Callable[[Tensor], Tensor],
    most: int = 6, accuracy: float = 1e-10,
) -> Float[Tensor, "r n"] | None:  # fmt: skip
    """``matrix^-1 wanted`` by refinement on factors of single precision; ``None`` if it does not converge.

    ``times`` is the product with the matrices in float64, ``single`` those in float32.
    """
    factor, failed = torch.linalg.cholesky_ex(single)
    if failed.any():
        return None
    step, limit = torch.zeros_like(wanted), accuracy * wanted.abs().amax(1)
    for _ in range(most):
        residual = wanted - times(step)
        size = residual.abs().amax(1)
        if bool((size <= limit).all()):
            return step
        scale = size[:, None].clamp(min=1e-300)
        step = step + scale * torch.cholesky_solve((residual / scale).float()[:, :, None], factor)[:, :, 0]
    return None


def _chunks(counts: Int[Tensor, " r"]) -> Iterator[Int[Tensor, " _"]]:
    """Rows of nearly equal counts, ascending, whose matrices ``(count, count)`` fit the memory together."""
    on_cpu = counts.device.type == "cpu"
    budget = 2**23 if on_cpu else 2**27  # float64 entries
    most_rows = max(1, math.ceil(len(counts) / (torch.get_num_threads() if on_cpu else 1)))
    order = counts.argsort(stable=True)
    sizes = counts[order].tolist()
    start = 0
    for stop in range(1, len(sizes) + 1):
        last = stop == len(sizes)
        if last or (
            stop - start == most_rows
            or (stop + 1 - start) * sizes[stop] ** 2 > budget
            or sizes[stop] > 1.1 * sizes[start] + 8
        ):
            if sizes[stop - 1]:
                yield order[start:stop]
            start = stop


def conjugate_gradients(
    weight: Float[Tensor, "r d"],
    hessian: Float[Tensor, "d d"],
    keep: Bool[Tensor, "r d"],
    start: Float[Tensor, "r d"],
    iterations: int,
    tolerance: float,
) -> tuple[Float[Tensor, "r d"], int]:
    """Minimise ``1/2 (v - w)'H(v - w)`` over v on the support of every row, from ``start``, zero outside.

    Preconditioned by the diagonal; a row stops once its residual has fallen to ``tolerance`` times that of
    the masked dense weights.

    Returns:
        the weights, and how many rows did not get there.
    """
    diagonal = hessian.diagonal()

    def residual(values: Tensor) -> Tensor:
        return (((weight - values) @ hessian) / diagonal.sqrt()).masked_fill(~keep, 0)

    # in the variables v * sqrt(diag H), in which the preconditioner is the identity
    limit = tolerance * residual(weight * keep).norm(dim=1)
    values, left = start.clone(), residual(start)
    direction, square_left = left.clone(), left.square().sum(1)
    for _ in range(iterations):
        active = square_left.sqrt() > limit
        if not active.any():
            break
        move = direction / diagonal.sqrt()
        pushed = ((move @ hessian) / diagonal.sqrt()).masked_fill(~keep, 0)
        curvature = (direction * pushed).sum(1)
        length = torch.where(active & (curvature > 0), square_left / curvature, 0)
        values += length[:, None] * move
        left -= length[:, None] * pushed
        before, square_left = square_left, left.square().sum(1)
        direction = left + torch.where(before > 0, square_left / before, 0)[:, None] * direction
    return values, int((square_left.sqrt() > limit).sum())


# published updates


#: Sizes of weights, and of their inputs, from and up to which single precision holds products of both, squared.
_SINGLE = (1e-6, 1e6)


def roomy(weight: Float[Tensor, "r d"], gram: Gram) -> Float[Tensor, "r d"]:
    """The weights, as float64 where squares of weights and inputs may leave the range of float32.

    Methods iterate in :func:`work_dtype`, and bfloat16 holds numbers whose squares float32 does not.
    """
    sizes = [float(weight.abs().amax()) if weight.numel() else 0.0, float(gram.diagonal.amax().sqrt())]
    return weight if all(size == 0 or _SINGLE[0] < size < _SINGLE[1] for size in sizes) else weight.double()


def fitting(
    updated: Float[Tensor, "r d"], dense: Float[Tensor, "r d"], keep: Bool[Tensor, "r d"], notes: Counter[str]
) -> Float[Tensor, "r d"]:
    """Updated weights in the dtype of the dense ones; a row that overflows it keeps its masked dense weights.

    A note says so, with the number of rows.
    """
    found = updated.to(dense.device, dense.dtype)
    lost = ~torch.isfinite(found).all(1)
    if not lost.any():
        return found
    notes[OVERFLOWS.format(str(dense.dtype).removeprefix("torch."))] += int(lost.sum())
    return torch.where(lost[:, None], dense.masked_fill(~keep.to(dense.device), 0), found)


def work_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of iterations that tolerate rounding: that of the weights, at least float32."""
    return torch.promote_types(weight.dtype, torch.float32)


def admm(
    weight: Float[Tensor, "r d"],
    hessian: Float[Tensor, "d d"],
    choose: Callable[[int, Tensor], Tensor],
    iterations: int = 20,
) -> tuple[Float[Tensor, "r d"], Bool[Tensor, "r d"]]:
    """Boza, "Fast and effective weight update for pruned large language models" (arXiv 2401.02938).

    With H scaled to a unit diagonal, W0 the dense weights in that scale, ``W = W0``, ``U = 0``, ``rho = 1``::

        Z = mask * (W + U),    U = U + W - Z,    W = (W0 H + rho (Z - U)) (H + rho I)^-1

    Args:
        weight: dense weights.
        hessian: damped.
        choose: from the number of the iteration, from 1, and ``W + U`` to the keep mask.
        iterations: so many, with one inverse for all.

    Returns:
        the last ``mask * (W + U)`` in the scale of the weights, and the mask.
    """
    unit, scale = unit_diagonal(hessian)
    dtype = work_dtype(weight)
    damped = unit.clone()
    damped.diagonal().add_(1)
    inverse = torch.cholesky_inverse(cholesky(damped)).to(dtype)
    dense = weight.double() * scale
    target, moving = (dense @ unit).to(dtype), dense.to(dtype)
    dual = torch.zeros_like(moving)
    for step in range(1, iterations + 1):
        total = moving + dual
        keep = choose(step, total)
        sparse = total * keep
        dual = total - sparse
        moving = (target + sparse - dual) @ inverse
    return ((moving + dual) * keep) / scale.to(dtype), keep


def sweep(
    weight: Float[Tensor, "r d"],
    upper: Float[Tensor, "d d"],
    choose: Callable[[int, Tensor, Tensor], Tensor],
    slab: int = SLAB,
    step: int = SLAB,
) -> tuple[Float[Tensor, "r d"], Bool[Tensor, "r d"]]:
    """SparseGPT's pass over the columns (Frantar & Alistarh, arXiv 2301.00774, algorithm 1).

    A pruned weight of column j moves the later ones of its row by ``-(w_j / U_jj) U_j,:``, which is the
    best that they can do alone (optimal brain surgeon with the columns before j frozen).

    Args:
        weight: dense weights.
        upper: ``U'U = H^-1``.
        choose: from the first of ``step`` columns, their weights as they are then and their ``U_jj`` to
            their keep mask.
        slab: columns after which the rest of the matrix is brought up to date, a multiple of ``step``.
        step: columns whose mask is chosen at once.

    Returns:
        the updated weights, zero where pruned, and the keep mask.
    """
    weight, keep = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
    for start in range(0, weight.shape[1], slab):
        block, mask = weight[:, start : start + slab], keep[:, start : start + slab]
        factor = upper[start : start + slab, start : start + slab]
        errors = torch.zeros_like(block)
        for column in range(block.shape[1]):
            if column % step == 0:
                ahead = slice(column, column + step)
                mask[:, ahead] = choose(start + column, block[:, ahead], factor.diagonal()[ahead])
            errors[:, column] = (block[:, column] / factor[column, column]).masked_fill(mask[:, column], 0)
            block[:, column:] -= errors[:, column, None] * factor[column, column:]
        weight[:, start + slab :] -= errors @ upper[start : start + slab, start + slab :]
    return weight.masked_fill(~keep, 0), keep
