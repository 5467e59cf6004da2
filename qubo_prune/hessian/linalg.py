"""Linear algebra on many rows: parts of one matrix, factorisations with damping, several at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.hessian.gram import Gram


def square(
    matrix: Float[Tensor, "d d"], rows: Int[Tensor, "r a"], columns: Int[Tensor, "r b"]
) -> Float[Tensor, "r a b"]:
    """``matrix[rows_i, columns_i]`` for each i."""
    # half as wide an index takes half the time, as long as the last place of the matrix fits
    if matrix.numel() < 2**31:
        rows, columns = rows.int(), columns.int()
    flat = (rows * matrix.shape[1])[:, :, None] + columns[:, None, :]
    return matrix.reshape(-1).index_select(0, flat.reshape(-1)).reshape(flat.shape)


def padded_columns(chosen: Bool[Tensor, "r d"]) -> tuple[Int[Tensor, "r m"], Bool[Tensor, "r m"]]:
    """The chosen columns of every row, ascending, and which places are valid where a row has fewer than m."""
    counts = chosen.sum(1)
    most = int(counts.max())
    columns = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return columns, torch.arange(most, device=chosen.device) < counts[:, None]


def padded_square(
    matrix: Float[Tensor, "d d"], columns: Int[Tensor, "r m"], valid: Bool[Tensor, "r m"]
) -> Float[Tensor, "r m m"]:
    """``matrix[columns_i, columns_i]`` for each i, the identity at padded places."""
    found = square(matrix, columns, columns)
    if not valid.all():
        found *= valid[:, :, None] & valid[:, None, :]
        found.diagonal(dim1=1, dim2=2).add_((~valid).to(found.dtype))
    return found


def inverse_of(matrix: Float[Tensor, "r n n"]) -> Float[Tensor, "r n n"]:
    """Of symmetric positive definite matrices. (MKL's batched LU, behind ``linalg.inv``, fails in threads.)"""
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def unit_diagonal(hessian: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
    """``H_ij / (s_i s_j)`` and ``s_j = sqrt(H_jj)``; a weight w of H stands as ``w * s``."""
    scale = hessian.diagonal().sqrt()
    return hessian / (scale * scale[:, None]), scale


Part = TypeVar("Part")


Result = TypeVar("Result")


def in_threads(work: Callable[[Part], Result], parts: Iterable[Part], device: torch.device) -> list[Result]:
    """``work`` of every part, in their order; on the CPU one part per core at a time.

    A batch of small matrices is factored one by one, where torch's own threads, which share the work on
    each, cost more than they bring (measured: tenfold and more when another process wants a core).
    """
    count = torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(count)  # a worker's number is taken over by every thread that starts later


#: What is said of a layer, or of a group of a convolution, without calibration data.
UNSEEN = "No calibration token reached these weights: the kept ones stay as they are."


#: What is said of rows whose updated weights the layer's dtype cannot hold.
OVERFLOWS = "The updated weights of a row overflow {}, so its kept weights stay as they are."


T = TypeVar("T")


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


#: Sizes of weights, and of their inputs, from and up to which single precision holds products of both, squared.
_SINGLE = (1e-6, 1e6)


def promote_range(weight: Float[Tensor, "r d"], gram: Gram) -> Float[Tensor, "r d"]:
    """The weights, as float64 where squares of weights and inputs may leave the range of float32.

    Methods iterate in :func:`work_dtype`, and bfloat16 holds numbers whose squares float32 does not.
    """
    sizes = [float(weight.abs().amax()) if weight.numel() else 0.0, float(gram.diagonal.amax().sqrt())]
    return weight if all(size == 0 or _SINGLE[0] < size < _SINGLE[1] for size in sizes) else weight.double()


def cast_back(
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
