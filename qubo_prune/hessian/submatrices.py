"""Parts of one symmetric matrix for many rows at once: square parts, their padding, inverses and scaling."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
