"""How a swap kernel reads Q: rows of couplings on demand, for many problems at once.

A kernel works on the *flip cost* ``K_i = Q_ii + 2 sum_{j != i} Q_ij x_j``, what pruning i adds to
the energy given all the others; restoring a pruned i changes it by ``-K_i``. Exchanging kept u
with pruned p changes the energy by ``K_u - K_p - 2 Q_up``, and pruning or restoring any i moves
the other costs by ``+- 2 Q_ij``.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.problem.qubo import BlockBatch


class Couplings(abc.ABC):
    """Read access to ``2 Q`` of r problems with n variables each."""

    @abc.abstractmethod
    def rows(self, chosen: Int[Tensor, " r"], out: Float[Tensor, "r n"]) -> Float[Tensor, "r n"]:
        """``2 Q[i, :]`` for one variable i per problem, written to ``out``; entry i is undefined."""

    @abc.abstractmethod
    def pairs(self, first: Int[Tensor, "r a"], second: Int[Tensor, "r b"]) -> Float[Tensor, "r a b"]:
        """``2 Q_ij`` for lists of variables per problem."""

    @abc.abstractmethod
    def listed(self, first: Int[Tensor, " p"], second: Int[Tensor, " p"]) -> Float[Tensor, "r p"]:
        """``2 Q_ij`` along one list of pairs ``(i, j)``, the same for all problems."""

    @abc.abstractmethod
    def columns(self, chosen: Int[Tensor, " c"]) -> Float[Tensor, "r c n"]:
        """``2 Q[i, :]`` for the same variables i of all problems, a new tensor; entries ``(i, i)`` are undefined."""

    @abc.abstractmethod
    def take(self, rows: Int[Tensor, " k"]) -> Couplings:
        """The same for some of the problems."""

    @abc.abstractmethod
    def joined(self, parts: list[Any]) -> Couplings:
        """The same for several takes of one batch, one after another."""


class SharedCouplings(Couplings):
    """``2 Q_ij = u_i H_ij u_j`` with one H for all rows: nothing of size n x n per row."""

    def __init__(self, hessian: Tensor, values: Tensor) -> None:
        self._hessian, self._values = hessian, values

    def rows(self, chosen: Tensor, out: Tensor) -> Tensor:
        torch.index_select(self._hessian, 0, chosen, out=out)
        return out.mul_(self._values).mul_(self._values.gather(1, chosen[:, None]))

    def pairs(self, first: Tensor, second: Tensor) -> Tensor:
        u, v = self._values.gather(1, first), self._values.gather(1, second)
        return self._hessian[first[:, :, None], second[:, None, :]].mul_(u[:, :, None]).mul_(v[:, None, :])

    def listed(self, first: Tensor, second: Tensor) -> Tensor:
        return self._values[:, first].mul_(self._values[:, second]).mul_(self._hessian[first, second])

    def columns(self, chosen: Tensor) -> Tensor:
        return self._hessian[chosen][None] * self._values[:, chosen, None] * self._values[:, None, :]

    def take(self, rows: Tensor) -> SharedCouplings:
        return SharedCouplings(self._hessian, self._values.index_select(0, rows))

    def joined(self, parts: list[SharedCouplings]) -> SharedCouplings:
        return SharedCouplings(self._hessian, torch.cat([part._values for part in parts]))


class DenseCouplings(Couplings):
    """``2 Q_ij = u_i H_ij u_j`` with a Hessian per problem, read where needed and never rescaled."""

    def __init__(self, hessian: Tensor, values: Tensor, index: Tensor | None = None) -> None:
        self._hessian, self._values = hessian, values
        self._index = torch.arange(len(values), device=values.device) if index is None else index

    def rows(self, chosen: Tensor, out: Tensor) -> Tensor:
        out.copy_(self._hessian[self._index, chosen])
        return out.mul_(self._values).mul_(self._values.gather(1, chosen[:, None]))

    def pairs(self, first: Tensor, second: Tensor) -> Tensor:
        block = self._hessian[self._index[:, None, None], first[:, :, None], second[:, None, :]]
        u, v = self._values.gather(1, first), self._values.gather(1, second)
        return block.to(u.dtype).mul_(u[:, :, None]).mul_(v[:, None, :])

    def listed(self, first: Tensor, second: Tensor) -> Tensor:
        along = self._hessian[self._index[:, None], first[None, :], second[None, :]]
        return along.to(self._values.dtype).mul_(self._values[:, first]).mul_(self._values[:, second])

    def columns(self, chosen: Tensor) -> Tensor:
        along = self._hessian[self._index[:, None], chosen[None, :]].to(self._values.dtype)
        return along * self._values[:, chosen, None] * self._values[:, None, :]

    def take(self, rows: Tensor) -> DenseCouplings:
        return DenseCouplings(self._hessian, self._values.index_select(0, rows), self._index[rows])

    def joined(self, parts: list[DenseCouplings]) -> DenseCouplings:
        values, index = (
            torch.cat([part._values for part in parts]),
            torch.cat([part._index for part in parts]),
        )
        return DenseCouplings(self._hessian, values, index)


def of_batch(
    batch: BlockBatch, x: Bool[Tensor, "r n"], dtype: torch.dtype, costs: Float[Tensor, "r n"] | None = None
) -> tuple[Couplings, Float[Tensor, "r n"], Float[Tensor, " r"]]:
    """Couplings, flip costs ``K`` at x, and each row's mean ``|1/2 u_i^2 H_ii|``, all in ``dtype``.

    ``costs`` are the flip costs, if the caller has them.

    Everything is divided by one common scale, so that very large or small Hessians neither
    overflow nor vanish in single precision; the argmin of a swap is unchanged.
    """
    u, own = batch.values, batch.own
    if costs is None:
        costs = batch.flip_costs(x)
    scale = _common_scale(costs)
    couplings: Couplings
    if batch.shared:
        couplings = SharedCouplings((batch.hessian / scale).to(dtype), u.to(dtype))
    else:
        couplings = DenseCouplings(batch.hessian, (u / scale**0.5).to(dtype))
    return couplings, (costs / scale).to(dtype), (own.abs().mean(1) / scale).to(dtype)


def _common_scale(costs: Tensor) -> float:
    """The largest cost, which the others are measured in."""
    largest = float(costs.abs().max()) if costs.numel() else 0.0
    return largest if largest > 0 else 1.0
