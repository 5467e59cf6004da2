"""The least-squares weights of a fixed mask."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.hessian.linalg import (
    cholesky,
    in_threads,
    padded_columns,
    padded_square,
    unit_diagonal,
)
from qubo_prune.methods.base import Traits, Update

#: Inputs up to which rows that descend too slowly are refitted by a Cholesky factorisation each.
CHOLESKY_LIMIT = 4096
#: Share of its first residual to which a row's residual has to fall.
_ACCURACY = 1e-10


def refit(
    weight: Float[Tensor, "r d"], hessian: Float[Tensor, "d d"], keep: Bool[Tensor, "r d"], notes: Counter[str]
) -> Float[Tensor, "r d"]:
    """``v_F = w_F + (H_FF)^-1 (H (w - w_F))_F``, which is ``(H_FF)^-1 (H w)_F``, of every row.

    By :func:`descend`, all rows at once. Rows that do not get there are solved by a Cholesky factorisation each, or by
    conjugate gradients of float64 if ``d`` is above :data:`CHOLESKY_LIMIT`.

    Raises:
        NotPositiveDefinite: an ``H_FF`` is singular.
    """
    values, left = weight.masked_fill(~keep, 0), keep.any(1)
    unit, scale = unit_diagonal(hessian)
    factor, failed = torch.linalg.cholesky_ex(unit)
    if not failed:
        found, left = descend(weight * scale, unit, keep, torch.cholesky_inverse(factor).float())
        values = torch.where(left[:, None], values, found / scale)
    rows = left.nonzero()[:, 0]
    if len(rows) and weight.shape[1] > CHOLESKY_LIMIT:
        solved, open_rows = conjugate_gradients(weight[rows], hessian, keep[rows], values[rows], 2000, 1e-9)
        if open_rows:
            notes["The conjugate gradients of a row stopped before they converged."] += open_rows
        values[rows] = solved
    elif len(rows):
        values[rows] = _by_factors(weight[rows], hessian, keep[rows])
    return values


def descend(
    weight: Float[Tensor, "r d"],
    hessian: Float[Tensor, "d d"],
    keep: Bool[Tensor, "r d"],
    inverse: Float[Tensor, "d d"],
    restarts: int = 6,
    steps: int = 40,
) -> tuple[Float[Tensor, "r d"], Bool[Tensor, " r"]]:
    """Minimise ``1/2 (v - w)'H(v - w)`` over v on the support F of every row, by one set of products for all rows.

    Conjugate gradients, preconditioned by ``(H^-1)_FF``, which is the inverse of what H leaves of F once the pruned
    inputs are eliminated. They run in single precision, on residuals that are taken anew in float64 with each restart,
    and go on with the rows that need it.

    Args:
        weight: dense, in the scale of a unit diagonal.
        hessian: with a unit diagonal.
        keep: supports.
        inverse: of the Hessian, single precision.
        restarts: most of them.
        steps: most between two of them.

    Returns:
        the weights, and the rows whose residuals did not fall to 1e-10 of those of the masked dense weights.
    """
    values, single = weight.masked_fill(~keep, 0), hessian.float()
    rows = torch.arange(len(weight), device=weight.device)
    left = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    wanted = last = torch.full((len(weight),), torch.inf, dtype=weight.dtype, device=weight.device)
    for number in range(restarts + 1):
        residual = ((weight[rows] - values[rows]) @ hessian).masked_fill_(~keep[rows], 0)
        size = residual.abs().amax(1)
        wanted = _ACCURACY * size if number == 0 else wanted
        going = size > wanted
        # where single precision does not lead on, and in the end, a row is left
        left[rows] = going & (size > 0.5 * last) if number < restarts else going
        chosen = (going & ~left[rows]).nonzero()[:, 0]  # the one wait for the device of a restart
        if not len(chosen):
            break
        rows, residual, wanted, last = (each.index_select(0, chosen) for each in (rows, residual, wanted, size))
        step = _steps((residual / last[:, None]).float(), single, keep[rows], inverse, steps)
        values[rows] += last[:, None] * step
    return values, left


def _steps(
    residual: Float[Tensor, "r d"],
    hessian: Float[Tensor, "d d"],
    keep: Bool[Tensor, "r d"],
    inverse: Float[Tensor, "d d"],
    most: int,
    fall: float = 1e-5,
) -> Float[Tensor, "r d"]:
    """Steps of preconditioned conjugate gradients from zero, until the largest residual of a row has fallen."""
    result = torch.zeros_like(residual)
    rows = torch.arange(len(residual), device=residual.device)
    step, support = torch.zeros_like(residual), keep.to(residual.dtype)
    ahead = (residual @ inverse) * support
    direction, slope = ahead, (residual * ahead).sum(1)
    for number in range(1, most + 1):
        pushed = (direction @ hessian) * support
        curvature = (direction * pushed).sum(1)
        length = torch.where(curvature > 0, slope / curvature, 0)[:, None]
        step += length * direction
        residual = residual - length * pushed
        if number % 4 == 0 or number == most:
            result[rows] = step
            going = ((residual.abs().amax(1) > fall) & (curvature > 0)).nonzero()[:, 0]
            if not len(going):
                break
            if len(going) < 0.8 * len(rows):  # what is copied costs less than steps that are not needed
                rows, step, residual, support, direction, slope = (
                    each.index_select(0, going) for each in (rows, step, residual, support, direction, slope)
                )
        ahead = (residual @ inverse) * support
        before, slope = slope, (residual * ahead).sum(1)
        direction = ahead + torch.where(before > 0, slope / before, 0)[:, None] * direction
    return result


def _by_factors(
    weight: Float[Tensor, "r d"], hessian: Float[Tensor, "d d"], keep: Bool[Tensor, "r d"]
) -> Float[Tensor, "r d"]:
    """The same by Cholesky factorisations, of as many rows at once as suits the memory.

    The factors are of single precision and the residuals of float64, which refine the solution to that; rows where
    they do not fall are factored in float64.

    Raises:
        NotPositiveDefinite: an ``H_FF`` is singular.
    """
    masked = weight.masked_fill(~keep, 0)
    pull = (weight - masked) @ hessian
    single = hessian.float()

    def solve(rows: Tensor) -> None:
        columns, valid = padded_columns(keep[rows])

        def whole(step: Tensor) -> Tensor:
            return torch.zeros_like(masked[rows]).scatter_(1, columns, step * valid)

        wanted = pull[rows].gather(1, columns) * valid
        step = _refined(
            padded_square(single, columns, valid),
            wanted,
            lambda step: (whole(step) @ hessian).gather(1, columns) * valid,
        )
        if step is None:
            step = torch.cholesky_solve(wanted[:, :, None], cholesky(padded_square(hessian, columns, valid)))[:, :, 0]
        masked[rows] += whole(step)

    in_threads(solve, list(_chunks(keep.sum(1))), weight.device)
    return masked


def _refined(
    single: Float[Tensor, "r n n"],
    wanted: Float[Tensor, "r n"],
    times: Callable[[Tensor], Tensor],
    most: int = 6,
    accuracy: float = _ACCURACY,
) -> Float[Tensor, "r n"] | None:
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


@dataclass(frozen=True)
class Refit(Update):
    """The least-squares optimum of every row on its mask, ``v_F = (H_FF)^-1 (H w)_F``; see :func:`refit`."""

    traits = Traits("refit", starts=False, updates=True)

    def fitted(
        self,
        weight: Float[Tensor, "r d"],
        hessian: Float[Tensor, "d d"],
        keep: Bool[Tensor, "r d"],
        notes: Counter[str],
    ) -> Float[Tensor, "r d"]:
        """The optimum, to float64's accuracy."""
        return refit(weight.double(), hessian, keep, notes)
