"""Compensated blocks: masks chosen for kept weights that adapt to what is pruned.

A row with dense weights w loses ``1/2 (v - w)'H(v - w)`` when it becomes v. With ``A = H^-1`` and the
weights P pruned, the best v and its loss are::

    lam = (A_PP)^-1 w_P,    v = w - A_:P lam,    E(P) = 1/2 w_P' lam

One A serves all rows. Around a support (the current P) the terms of a single change are exact as well:
restoring p lowers the loss by ``lam_p^2 / 2 M_pp`` with ``M = (A_PP)^-1``, pruning i raises it by
``v_i^2 / 2 K_ii`` with ``K = A_ii - A_iP M A_Pi`` (optimal brain surgeon).

A block B is a set of kept and pruned weights of one row; R are the pruned ones outside. With all of B
kept, the optimum is u and ``S = ([(H_FF)^-1]_BB)^-1`` the curvature that remains after every kept weight
has adapted. The block QUBO is ``1/2 (u x)'S(u x)``, an upper bound: it lets the kept weights outside
of B adapt and those inside not. What the block really costs follows from the same numbers:
``1/2 u_P'(T_PP)^-1 u_P`` with ``T = S^-1``, and by that a block is accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.linalg import inverse_of, padded_columns, padded_square, square, unit_diagonal
from qubo_prune.problem.qubo import BlockBatch, group_counts

#: Share of the mean diagonal that is added to the diagonal of a Gram before it is inverted.
DAMPING = 0.01

#: Of ``A_jj``, where ``1 - 1/A_jj`` is what the other inputs tell of input j: parts of A are inverted and subtracted
#: again and again, for which single precision has too few digits beyond the first, and double beyond the second.
_DEPENDENT, _SINGULAR = 1e4, 1e8
#: Sizes of scaled weights, from and up to which single precision holds their squares with room to spare.
_SINGLE = (1e-12, 1e12)


@dataclass(frozen=True, eq=False)
class Curvature:
    """A damped local Hessian, scaled to a unit diagonal, with its inverse; a weight w stands for ``w * scale``.

    Attributes:
        hessian: ``(d, d)`` ``H / (scale scale')``, float64.
        inverse: ``(d, d)`` ``A``, in the dtype of the search.
        scale: ``(d,)`` ``sqrt(H_jj)``, float64.
        damping: share of the mean diagonal that was added, as it came out.
        raised: how often it had to be raised, tenfold each time, until the matrix could be factored and its inverse
            relied on.
    """

    hessian: Float[Tensor, "d d"]
    inverse: Float[Tensor, "d d"]
    scale: Float[Tensor, " d"]
    damping: float
    raised: int

    @classmethod
    def of(cls, gram: Gram, damping: float = DAMPING, dtype: torch.dtype = torch.float32) -> Curvature:
        """The curvature of one Gram ``(d, d)``.

        Raises:
            InputError: the Gram is zero, or not even a damping of its whole mean diagonal makes it positive definite.
        """
        mean = float(gram.diagonal.mean())
        if not mean > 0:
            raise InputError("The layer's Gram is zero: no calibration token reached it, so its weights cannot adapt.")
        for raised in range(12):
            damped = gram.matrix.clone()
            damped.diagonal().add_(damping * mean)
            unit, scale = unit_diagonal(damped)
            factor, failed = torch.linalg.cholesky_ex(unit)
            if not failed:
                inverse = torch.cholesky_inverse(factor)
                # NaN and infinity are not below it either
                if (inverse.diagonal() < _SINGULAR).all():
                    return cls(unit, inverse.to(dtype), scale, damping, raised)
            damping = max(10 * damping, 1e-8)
            if damping > 1:
                break
        raise InputError(f"The layer's Gram is not positive definite, even with {damping / 10:g} of its mean diagonal.")


def sufficient(curvature: Curvature, weight: Float[Tensor, "r d"]) -> torch.dtype:
    """The least dtype that a search with these scaled weights can rely on: float32, or float64."""
    size = float(weight.abs().amax()) if weight.numel() else 0.0
    ordinary = size == 0 or _SINGLE[0] < size < _SINGLE[1]
    return torch.float32 if ordinary and float(curvature.inverse.diagonal().amax()) < _DEPENDENT else torch.float64


@dataclass(frozen=True, eq=False)
class Support:
    """Rows of a layer at the optimum of their kept weights. Padded places of ``pruned`` are not ``valid``.

    Attributes:
        weight: ``(r, d)`` dense weights, scaled.
        curvature: of their inputs.
        pruned: ``(r, m)`` columns that are pruned.
        valid: ``(r, m)`` False where a row has fewer than m.
        inverse: ``(r, m, m)`` ``M = (A_PP)^-1``; the identity at padded places.
        pull: ``(r, m)`` ``lam``.
        values: ``(r, d)`` ``v``, zero where pruned up to rounding.
    """

    weight: Float[Tensor, "r d"]
    curvature: Curvature
    pruned: Int[Tensor, "r m"]
    valid: Bool[Tensor, "r m"]
    inverse: Float[Tensor, "r m m"]
    pull: Float[Tensor, "r m"]
    values: Float[Tensor, "r d"]

    @classmethod
    def of(cls, weight: Float[Tensor, "r d"], curvature: Curvature, x: Bool[Tensor, "r d"]) -> Support:
        """The optimum for masks ``x`` (True = pruned)."""
        pruned, valid = padded_columns(x)
        inverse = inverse_of(padded_square(curvature.inverse, pruned, valid))
        own = weight.gather(1, pruned) * valid
        pull = torch.bmm(inverse, own[:, :, None])[:, :, 0]
        values = weight - torch.zeros_like(weight).scatter_(1, pruned, pull) @ curvature.inverse
        return cls(weight, curvature, pruned, valid, inverse, pull, values)

    @property
    def energy(self) -> Float[Tensor, " r"]:
        """``E(P)`` of each row."""
        return (self.weight.gather(1, self.pruned) * self.pull * self.valid).double().sum(1) / 2

    @property
    def x(self) -> Bool[Tensor, "r d"]:
        """The mask, True = pruned."""
        return torch.zeros_like(self.weight, dtype=torch.bool).scatter_(1, self.pruned, self.valid)

    @property
    def restore_gains(self) -> Float[Tensor, "r m"]:
        """``lam_p^2 / 2 M_pp``: what restoring each pruned weight gains; -inf at padded places."""
        gains = self.pull.square() / (2 * self.inverse.diagonal(dim1=1, dim2=2))
        return gains.masked_fill(~self.valid, -torch.inf)

    @property
    def prune_costs(self) -> Float[Tensor, "r d"]:
        """``v_i^2 / 2 A_ii``, at most what pruning each kept weight costs (``K_ii <= A_ii``); inf where pruned.

        The order is nearly that of the exact costs, which would take a solve for every kept weight.
        """
        return (self.values.square() / (2 * self.curvature.inverse.diagonal())).masked_fill(self.x, torch.inf)


@dataclass(frozen=True, eq=False)
class Blocks:
    """One compensated block per row, of kept and pruned weights.

    Attributes:
        columns: ``(r, n)``: the kept weights first.
        x: ``(r, n)`` True = pruned, as the support has it.
        curvature: ``(r, n, n)`` ``S``.
        values: ``(r, n)`` ``u``.
        labels: ``(n,)`` budget group of each weight, the same in all rows.
    """

    columns: Int[Tensor, "r n"]
    x: Bool[Tensor, "r n"]
    curvature: Float[Tensor, "r n n"]
    values: Float[Tensor, "r n"]
    labels: Int[Tensor, " n"]

    @classmethod
    def of(
        cls, support: Support, kept: Int[Tensor, "r a"], places: Int[Tensor, "r b"], labels: Int[Tensor, " n"]
    ) -> Blocks:
        """The blocks of some kept columns and some places of ``support.pruned``.

        With ``M = (A_PP)^-1``, ``N = M A_{P,kept}`` and ``K = A_{kept,kept} - A_{kept,P} N`` the inverse of A over
        P and the kept ones, of which S is a block, is::

            [[K^-1, -K^-1 N'], [-N K^-1, M + N K^-1 N']]
        """
        a, b, m = kept.shape[1], places.shape[1], support.pruned.shape[1]
        everything = support.curvature.inverse
        across = square(everything, support.pruned, kept) * support.valid[:, :, None]
        solved = torch.bmm(support.inverse, across)
        inner = inverse_of(square(everything, kept, kept) - torch.bmm(across.mT, solved))
        lines = support.inverse.gather(1, places[:, :, None].expand(-1, -1, m))
        own = lines.gather(2, places[:, None, :].expand(-1, b, -1))
        n = solved.gather(1, places[:, :, None].expand(-1, -1, a))
        cross = torch.bmm(n, inner)
        s = torch.cat([torch.cat([inner, -cross.mT], 2), torch.cat([-cross, own + torch.bmm(cross, n.mT)], 2)], 1)
        # values with the block's pruned weights restored
        restored = torch.cholesky_solve(support.pull.gather(1, places)[:, :, None], torch.linalg.cholesky(own))
        values = torch.cat([support.values.gather(1, kept)[:, :, None] + torch.bmm(n.mT, restored), restored], 1)
        columns = torch.cat([kept, support.pruned.gather(1, places)], 1)
        x = (torch.arange(a + b, device=kept.device) >= a).expand_as(columns)
        return cls(columns, x, s, values[:, :, 0], labels)

    def energy(self, x: Bool[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """What pruning x costs once all kept weights have adapted: ``1/2 u_P'(T_PP)^-1 u_P``, float64."""
        return Swaps.of(self, x).energy(self.values)

    def batch(self) -> BlockBatch:
        """The block QUBOs, with the energy of the current mask as zero."""
        now = self.values * self.x
        offset = -(torch.bmm(self.curvature, now[:, :, None])[:, :, 0] * now).sum(1).double() / 2
        counts = group_counts(self.x.float(), self.labels, int(self.labels.max()) + 1)
        return BlockBatch(
            self.curvature.double(),
            self.values.double(),
            torch.zeros_like(now, dtype=torch.float64),
            offset,
            self.labels,
            counts,
        )


@dataclass(eq=False)
class Swaps:
    """Exact swaps within blocks: kept weights in slots F, pruned ones in slots P.

    With ``T = S^-1``: ``V = (T_PP)^-1``, ``N = V T_PF``, ``K = T_FF - T_FP N``, ``lam = V u_P`` and
    ``v = u_F - N'u_P``. Swapping i and p changes the energy by::

        (v_i + N_pi lam_p/V_pp)^2 / 2 (K_ii + N_pi^2/V_pp)  -  lam_p^2 / 2 V_pp

    Attributes:
        k, v, n: ``(r, a, a)``, ``(r, b, b)``, ``(r, b, a)``.
        kept: ``(r, a)`` ``v``.
        pull: ``(r, b)`` ``lam``.
        columns: ``(r, a + b)`` which variable of the block is in each slot, F first.
        same: ``(b, a)`` True where two slots belong to one budget group.
    """

    k: Float[Tensor, "r a a"]
    v: Float[Tensor, "r b b"]
    n: Float[Tensor, "r b a"]
    kept: Float[Tensor, "r a"]
    pull: Float[Tensor, "r b"]
    columns: Int[Tensor, "r n"]
    same: Bool[Tensor, "b a"]

    @classmethod
    def of(cls, blocks: Blocks, x: Bool[Tensor, "r n"]) -> Swaps:
        """The slots for masks x, which all have the counts of ``blocks.x``."""
        # by group within either side, so that slot s has the same group in every row
        groups = int(blocks.labels.max()) + 1
        order = (x * groups + blocks.labels).argsort(dim=1, stable=True)
        a = int((~x[0]).sum())
        s = blocks.curvature.gather(1, order[:, :, None].expand(-1, -1, order.shape[1]))
        s = s.gather(2, order[:, None, :].expand(-1, order.shape[1], -1))
        u = blocks.values.gather(1, order)[:, :, None]
        k = inverse_of(s[:, :a, :a])
        n = -torch.bmm(s[:, a:, :a], k)
        v = s[:, a:, a:] + torch.bmm(n, s[:, :a, a:])
        labels = blocks.labels[order[0]]
        return cls(
            k,
            v,
            n,
            (u[:, :a] - torch.bmm(n.mT, u[:, a:]))[:, :, 0],
            torch.bmm(v, u[:, a:])[:, :, 0],
            order,
            labels[a:, None] == labels[None, :a],
        )

    @property
    def prune_costs(self) -> Float[Tensor, "r a"]:
        """``v_i^2 / 2 K_ii``, of each kept weight alone."""
        return self.kept.square() / (2 * self.k.diagonal(dim1=1, dim2=2))

    @property
    def restore_gains(self) -> Float[Tensor, "r b"]:
        """``lam_p^2 / 2 V_pp``, of each pruned weight alone."""
        return self.pull.square() / (2 * self.v.diagonal(dim1=1, dim2=2))

    def energy(self, values: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """``1/2 u_P'lam`` for the block's ``values`` u, float64."""
        own = values.gather(1, self.columns[:, self.kept.shape[1] :])
        return (self.pull * own).double().sum(1) / 2

    def changes(self) -> Float[Tensor, "r b a"]:
        """The energy change of every swap, infinite between groups."""
        own = self.v.diagonal(dim1=1, dim2=2)
        step = self.pull / own
        moved = torch.addcmul(self.kept[:, None, :], self.n, step[:, :, None])
        stiff = torch.addcmul(self.k.diagonal(dim1=1, dim2=2)[:, None, :], self.n, self.n / own[:, :, None])
        changes = moved.square_().div_(stiff.mul_(2)).sub_((self.pull * step / 2)[:, :, None])
        return changes if self.same.all() else changes.masked_fill_(~self.same, torch.inf)

    def swap(self, p: Int[Tensor, " r"], i: Int[Tensor, " r"]) -> None:
        """Restore slot p of P and prune slot i of F in every block; the two change places."""
        at = torch.arange(len(p), device=p.device)
        # restore p, which for now stands beside F
        d = self.v[at, p, p][:, None]
        column, line, step = self.v[at, p], self.n[at, p], self.pull[at, p][:, None] / d
        self.v -= column[:, :, None] * (column / d)[:, None, :]
        self.n -= column[:, :, None] * (line / d)[:, None, :]
        self.k += line[:, :, None] * (line / d)[:, None, :]
        self.kept += line * step
        self.pull -= column * step
        p_n, p_k, p_own, p_kept = -column / d, line / d, 1 / d, step
        # prune i
        d = self.k[at, i, i][:, None]
        column, line, pulled = self.k[at, i], self.n[at, :, i], self.kept[at, i][:, None] / d
        both = p_k[at, i][:, None]  # K_ip
        self.v += line[:, :, None] * (line / d)[:, None, :]
        self.n -= line[:, :, None] * (column / d)[:, None, :]
        self.k -= column[:, :, None] * (column / d)[:, None, :]
        self.kept -= column * pulled
        self.pull -= line * pulled
        p_n, p_k, p_own, p_kept = (
            p_n - line * both / d,
            p_k - column * both / d,
            p_own - both**2 / d,
            p_kept - both * pulled,
        )
        # i takes slot p of P, p takes slot i of F
        self.v[at, p] = self.v[at, :, p] = -line / d
        self.v[at, p, p] = 1 / d[:, 0]
        self.n[at, p], self.n[at, :, i] = column / d, p_n
        self.n[at, p, i] = (both / d)[:, 0]
        self.k[at, i] = self.k[at, :, i] = p_k
        self.k[at, i, i] = p_own[:, 0]
        self.kept[at, i], self.pull[at, p] = p_kept[:, 0], pulled[:, 0]
        a = self.kept.shape[1]
        self.columns[at, i], self.columns[at, a + p] = self.columns[at, a + p], self.columns[at, i]

    def take(self, rows: Tensor) -> Swaps:
        """Some of the blocks."""
        return Swaps(
            self.k[rows], self.v[rows], self.n[rows], self.kept[rows], self.pull[rows], self.columns[rows], self.same
        )

    def put(self, rows: Tensor, others: Swaps) -> None:
        """Write some of the blocks back."""
        for name in ("k", "v", "n", "kept", "pull", "columns"):
            getattr(self, name)[rows] = getattr(others, name)

    @property
    def x(self) -> Bool[Tensor, "r n"]:
        """The mask of the block's variables in their own order, True = pruned."""
        pruned = torch.arange(self.columns.shape[1], device=self.columns.device) >= self.kept.shape[1]
        return torch.zeros_like(self.columns, dtype=torch.bool).scatter_(
            1, self.columns, pruned.expand_as(self.columns)
        )

    def descend(self, most: int, tolerance: float = 1e-5) -> int:
        """The best swap of each block again and again, until none gains; the number of swaps done.

        Args:
            most: swaps per block at most.
            tolerance: a gain counts from this share of the block's mean ``lam_p^2 / 2 V_pp`` on, far above the
                rounding of single precision.
        """
        floor, width = -tolerance * self.restore_gains.mean(1), self.kept.shape[1]
        rows = torch.arange(len(floor), device=floor.device)
        active, done = self, 0
        for _ in range(most):
            change, at = active.changes().flatten(1).min(1)
            better = change < floor[rows]
            if not better.all():
                if active is not self:
                    self.put(rows[~better], active.take(~better))
                if not better.any():
                    return done
                rows, at, active = rows[better], at[better], active.take(better)
            active.swap(at // width, at % width)
            done += len(rows)
        if active is not self:
            self.put(rows, active)
        return done
