"""The semidefinite relaxation of a block QUBO with counts, and the convex problems that its multipliers prove.

With ``y = (1, x)`` and ``Y = yy'``, a block QUBO's energy is linear, ``<L, Y>``, and every feasible binary x has::

    Y >= 0 entry by entry and as a matrix,   Y_ii = Y_0i,   Y a_g = 0  with  a_g = (m_g, -1 on the group's members, 0),

the last since ``a_g'y = m_g - sum of x over the group = 0``. The minimum of ``<L, Y>`` over all such Y is the doubly
nonnegative relaxation. It is approached by the alternating direction method of multipliers on the split ``Y = R``,
where R takes the cone and the counts, one eigendecomposition of order n + 1 a step, and Y the entries (after D. E.
Oliveira, H. Wolkowicz, Y. Xu, ADMM for the SDP relaxation of the QAP, Math. Program. Comput. 10, 2018). All of it is
scaled by the sizes of the variables, ``diag(D) Y diag(D)``, with powers of two, which change no digit.

**What is proven** needs no convergence. For any symmetric Z, with V the projection that takes out all ``a_g`` and
``S = L + Z``, binary x that meet the counts have ``y = Vy`` and so::

    E(x) = <S, yy'> + y'(-VZV)y,     S_ij x_i x_j >= min(0, S_ij) (x_i + x_j) / 2.

The right sides together are a convex function of x wherever ``-VZV`` is positive semidefinite, which the method's Z
provides after every step; what rounding leaves of negative eigenvalues is shifted away. A certified minimum of that
function over the relaxed x bounds the energy.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qubo_prune.clock import Deadline
from qubo_prune.problem.qubo import BlockBatch

#: Size of the smallest variables, in units of their root mean square.
_SMALLEST = 0.1
#: Penalty of the split in the beginning, where L has the norm 1, and the factor by which it adapts.
_PENALTY, _ADAPT = 2e-3, 1.5
#: Steps between two adaptations.
_EVERY = 20
#: Length of the steps of the multiplier; up to 1.618 they converge.
_STRETCH = 1.6


class Lifted:
    """One problem's relaxation, as far as it is solved.

    Args:
        q: ``(n, n)`` Q, linear terms on its diagonal, float64.
        sizes: ``(n,)`` of the variables: square roots of their entries' sizes.
        labels: ``(n,)`` group of each variable.
        counts: ``(g,)`` of the groups.
        convex: ``(n, n)`` Q without some diagonal, positive semidefinite, which the multipliers begin with.
        point: ``(n,)`` x to begin with.
    """

    def __init__(
        self,
        q: Float[Tensor, "n n"],
        sizes: Float[Tensor, " n"],
        labels: Int[Tensor, " n"],
        counts: Int[Tensor, " g"],
        convex: Float[Tensor, "n n"],
        point: Float[Tensor, " n"],
    ) -> None:
        self._labels, self._counts = labels, counts
        self._sizes = _lifted_sizes(sizes)
        scales = self._sizes[:, None] * self._sizes[None, :]
        lifted = q.new_zeros(scales.shape)
        lifted[1:, 1:] = q
        cost = lifted / scales
        self._unit = float(_power_of_two(torch.linalg.matrix_norm(cost).clamp(min=1e-300)))
        self._cost = cost / self._unit
        self._face = self._count_vectors()
        whole = torch.cat([point.new_ones(1), point])
        self._y = scales * whole[:, None] * whole[None, :]
        self._tie(self._y)
        tilt = convex @ point
        lifted[0, 0], lifted[0, 1:], lifted[1:, 0], lifted[1:, 1:] = point @ tilt, -tilt, -tilt, convex
        self._z = -lifted / scales / self._unit
        self._proof = self._z
        self._penalty = _PENALTY

    @property
    def point(self) -> Float[Tensor, " n"]:
        """The relaxed x."""
        return self._y[0, 1:] / (self._sizes[0] * self._sizes[1:])

    def improve(self, steps: int, clock: Deadline) -> int:
        """So many steps, fewer where time is over; how many they were."""
        for step in range(steps):
            if clock.expired:
                return step
            self._step(adapt=step % _EVERY == _EVERY - 1)
        return steps

    def _step(self, adapt: bool) -> None:
        target = self._projected(self._y + self._z / self._penalty)
        values, vectors = torch.linalg.eigh(target)
        positive = values > 0
        if int(positive.sum()) * 2 <= len(values):
            part = vectors[:, positive] * values[positive].sqrt()
            r = part @ part.T
        else:
            part = vectors[:, ~positive] * (-values[~positive]).sqrt()
            r = target + part @ part.T
        # of this one the part within the face is negative semidefinite
        self._proof = self._z + self._penalty * (self._y - r)
        y = r - (self._cost + self._z) / self._penalty
        self._tie(y)
        apart, moved = torch.linalg.matrix_norm(y - r), torch.linalg.matrix_norm(y - self._y)
        self._z = self._z + _STRETCH * self._penalty * (y - r)
        self._z = (self._z + self._z.T) / 2
        self._y = y
        if adapt:
            primal = float(apart / torch.linalg.matrix_norm(y))
            dual = self._penalty * float(moved / torch.linalg.matrix_norm(self._z).clamp(min=1e-300))
            if primal > 3 * dual:
                self._penalty *= _ADAPT
            elif dual > 3 * primal:
                self._penalty /= _ADAPT

    def _count_vectors(self) -> Float[Tensor, "k g"]:
        """An orthonormal basis of the ``a_g`` of all groups that have members, scaled."""
        inside = torch.nn.functional.one_hot(self._labels, len(self._counts)).double()
        vectors = torch.cat([self._counts.double()[None], -inside])[:, inside.any(0)]
        basis: Tensor = torch.linalg.qr(vectors / self._sizes[:, None]).Q
        return basis

    def _projected(self, matrix: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
        """``VMV``, symmetric."""
        across = matrix @ self._face
        inner = self._face.T @ across
        mixed = (across - self._face @ (inner / 2)) @ self._face.T
        result = matrix - mixed - mixed.T
        return (result + result.T) / 2

    def _tie(self, y: Float[Tensor, "k k"]) -> None:
        """Make y the nearest one, in place, with entries of at least 0, ``Y_00 = 1`` and ``Y_ii = Y_0i`` up to 1."""
        first, own = self._sizes[0], self._sizes[1:]
        border, square = 2 * (first * own).square(), own.square().square()
        x = 2 * first * own * (y[0, 1:] + y[1:, 0]) / 2 + own.square() * y.diagonal()[1:]
        x = (x / (border + square)).clamp(0, 1)
        y.clamp_(min=0)
        y[0, 0] = first.square()
        y[0, 1:] = y[1:, 0] = first * own * x
        y.diagonal()[1:] = own.square() * x

    def convex_below(self) -> BlockBatch:
        """A problem of one row, with positive semidefinite couplings, that no energy of this one is below."""
        n, sizes, eps = len(self._sizes) - 1, self._sizes, torch.finfo(torch.float64).eps
        z = (self._proof + self._proof.T) / 2
        form = -self._projected(z)
        lowest = float(torch.linalg.eigvalsh(form)[0])
        norm = float(torch.linalg.matrix_norm(z))
        shift = max(0.0, -lowest) + 8 * n * eps * norm
        # which costs shift |Dy|^2, linear in binary x
        form.diagonal().add_(shift)
        s = self._cost + z
        scales = sizes[:, None] * sizes[None, :]
        lost = (s * scales)[1:, 1:].clamp(max=0).fill_diagonal_(0).sum(1)
        form = form * scales
        linear = lost + 2 * (s * scales)[0, 1:] + (s * scales).diagonal()[1:] - shift * sizes[1:].square()
        offset = s[0, 0] * sizes[0] ** 2 - shift * sizes[0] ** 2 + form[0, 0]
        rounding = 16 * n * eps * ((norm + 1) * sizes.square().sum() + (s * scales).abs().sum())
        hessian = form[1:, 1:] + form[1:, 1:].T
        unit = self._unit
        return BlockBatch(
            unit * hessian[None],
            torch.ones_like(linear)[None],
            unit * (linear + 2 * form[0, 1:])[None],
            unit * (offset - rounding)[None],
            self._labels,
            self._counts[None],
        )


def _lifted_sizes(sizes: Float[Tensor, " n"]) -> Float[Tensor, " k"]:
    """D: of the constant, then of the variables; powers of two."""
    mean = float(sizes.square().mean().sqrt())
    own = (sizes / mean).clamp(min=_SMALLEST) if mean > 0 else torch.ones_like(sizes)
    first = own.new_full((1,), max(1.0, len(sizes) ** 0.5 / 5))
    return _power_of_two(torch.cat([first, own]))


def _power_of_two(values: Tensor) -> Tensor:
    """The power of two nearest to each positive number, by its logarithm."""
    return torch.exp2(values.log2().round())
