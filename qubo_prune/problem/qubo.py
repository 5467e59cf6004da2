"""The block QUBO: what a layer emits and what a solver decides.

``x_i = 1`` means *prune* weight i, everywhere.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.files.parsing import short
from qubo_prune.problem.budgets import check_reachable, checked_budgets, rounding_of
from qubo_prune.problem.named import (
    NamedQubo,
    Unsaid,
    checked_names,
    group_labels,
    of_bqm,
    of_dict,
    positions,
    told_count,
)
from qubo_prune.tables import Shown, Table, facts_table

if TYPE_CHECKING:
    import dimod


def _float64(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """Copy ``values`` to a read-only float64 array, refusing what is not finite."""
    array = np.array(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"{what} holds NaN or infinite values; only finite numbers are allowed.")
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class FactorForm:
    """``Q = diag(diagonal) + factor @ factor.T`` without the n x n matrix.

    ``diagonal`` has shape ``(n,)``, ``factor`` ``(n, rank)``; both are copied to float64.
    """

    diagonal: NDArray[np.float64]
    factor: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "diagonal", _float64(self.diagonal, "FactorForm.diagonal"))
        object.__setattr__(self, "factor", _float64(self.factor, "FactorForm.factor"))
        if self.diagonal.ndim != 1 or self.factor.ndim != 2 or len(self.factor) != len(self.diagonal):
            raise InputError(
                f"FactorForm got diagonal {self.diagonal.shape} and factor {self.factor.shape}; "
                "pass shapes (n,) and (n, rank)."
            )

    def apply(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """``Q v`` for one vector ``(n,)``."""
        return np.asarray(self.diagonal * vector + self.factor @ (self.factor.T @ vector))


def is_binary(values: NDArray[Any]) -> bool:
    """True if all are 0 or 1, of whatever type of numbers."""
    # most are bool already, and this is asked several times for each small block
    if values.dtype == np.bool_:
        return True
    return values.dtype.kind in "iufO" and bool(((values == 0) | (values == 1)).all())


def binary(values: ArrayLike, who: str) -> NDArray[np.bool_]:
    """Values 0 and 1, or bool, as bool.

    Args:
        values: of any shape; spins, fractions and NaN are rejected, since as bool they would all be 1.
        who: how the sentence of the error begins, such as ``"it answered with"``.

    Raises:
        ValueError: something else is among them.
    """
    array = np.asarray(values)
    if not is_binary(array):
        raise ValueError(f"{who} {_some(array)}; only 0 and 1 are allowed, 1 = prune")
    return array.astype(bool)


def _some(values: NDArray[Any]) -> str:
    """Some of the different values, or the type of what are no numbers."""
    if values.dtype.kind not in "iuf":
        return f"values of type {values.dtype}"
    return str(np.unique(values)[:5].tolist())


@dataclass(frozen=True, eq=False, init=False, repr=False)
class BlockQubo(Shown):
    """Minimise ``E(x) = offset + x' Q x`` over binary x, subject to exact counts, linear budgets, or both.

    ``sum(x[labels == g]) = num_pruned[g]`` for every group g; the groups are disjoint and cover
    the n variables. ``costs[r] @ x >= budget[r]`` for every budget r. Linear terms stand on the diagonal of Q.
    Energies are in the units of the local Hessian's loss.

    Args:
        q: ``(n, n)`` matrix or :class:`FactorForm`. An unsymmetric matrix is replaced by
            ``(Q + Q') / 2``, which has the same energies.
        num_pruned: how many variables are 1: one integer for a single group, or one per group;
            ``None`` for a problem without counts, in which every binary x that meets the budgets is allowed.
        offset: constant term of the energy.
        labels: ``(n,)`` group number of each variable, 0 to g-1; one group if left out (-1 for all
            variables of a problem without counts). Groups that prune 1 each are one choice out of several.
        costs: ``(n,)``, or ``(k, n)`` for several budgets: what pruning each variable brings, of any sign, such as
            parameters, bytes or milliseconds.
        budget: C, or one for each row of ``costs``: what has to be brought at least. "At most" is the negative of
            both. Whole numbers are compared exactly, other sums to a relative rounding of ``2^-40``.
        names: what the caller calls the variables, by position; 0 to n-1 if left out. Solvers never see them, files
            and derived problems do not keep them, and :func:`qubo_prune.solve` gives them to its result.

    Raises:
        InputError: shapes disagree, values are not finite, a name stands twice, or a count or a budget cannot be met.

    >>> problem = BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1)
    >>> problem.energy([1, 0]), problem.energy([0, 1])
    (1.0, 3.0)
    >>> cheap = BlockQubo([[1.0, 0.0], [0.0, 3.0]], None, costs=[10.0, 40.0], budget=30.0)
    >>> cheap.is_feasible([1, 0]), cheap.is_feasible([0, 1])
    (False, True)
    """

    q: NDArray[np.float64] | FactorForm
    num_pruned: tuple[int, ...]
    offset: float
    labels: NDArray[np.int64]
    costs: NDArray[np.float64]
    budget: NDArray[np.float64]
    names: Sequence[Hashable]

    def __init__(
        self,
        q: ArrayLike | FactorForm,
        num_pruned: int | Sequence[int] | None,
        offset: float = 0.0,
        labels: ArrayLike | None = None,
        names: Sequence[Hashable] | None = None,
        *,
        costs: ArrayLike | None = None,
        budget: ArrayLike | None = None,
    ) -> None:
        form = q if isinstance(q, FactorForm) else _symmetric(q)
        n = len(form.diagonal) if isinstance(form, FactorForm) else len(form)
        if num_pruned is None:
            if labels is not None:
                raise InputError("labels are given without num_pruned; pass a count for each group, or neither.")
            groups = np.full(n, -1, dtype=np.int64)
            counts: tuple[int, ...] = ()
        else:
            groups = np.zeros(n, dtype=np.int64) if labels is None else np.array(labels, dtype=np.int64)
            counts = _as_counts(num_pruned)
            _check_counts(n, groups, counts)
        groups.flags.writeable = False
        if not np.isfinite(offset):
            raise InputError(f"offset is {offset}; only a finite number is allowed.")
        _check_range(form, offset)
        rows, least = checked_budgets(n, costs, budget)
        if len(least):
            check_reachable(rows, least, groups, counts)
        object.__setattr__(self, "costs", rows)
        object.__setattr__(self, "budget", least)
        object.__setattr__(self, "q", form)
        object.__setattr__(self, "num_pruned", tuple(int(m) for m in counts))
        object.__setattr__(self, "offset", float(offset))
        object.__setattr__(self, "labels", groups)
        object.__setattr__(self, "names", checked_names(names, n))

    @classmethod
    def from_bqm(
        cls,
        bqm: dimod.BinaryQuadraticModel,
        num_pruned: int | Sequence[int] | Unsaid | None = Unsaid.COUNT,
        labels: ArrayLike | Mapping[Hashable, int] | None = None,
    ) -> BlockQubo:
        """The problem of a dimod model, binary or of spins (``x = (1 + s) / 2``, so spin +1 prunes).

        Its energy at x is the model's, offset included, for every x. The variables keep their names in :attr:`names`,
        in the model's order; numbers 0 to n-1 are positions. Penalties that the model may hold for counts stay in Q;
        on assignments that meet the counts they are 0.

        Args:
            bqm: the model.
            num_pruned: how many variables are 1, one number or one per group; ``None`` if any number may be. It has to
                be said, since a model cannot tell: its penalties are terms like any others.
            labels: group number of each variable, by position or as a dict from names.

        Raises:
            InputError: nothing is said of the counts, they cannot be met, or it is no such model.

        >>> import dimod
        >>> bqm = dimod.BinaryQuadraticModel({"a": 1.0, "b": 3.0}, {("a", "b"): -4.0}, 0.5, "BINARY")
        >>> problem = BlockQubo.from_bqm(bqm, num_pruned=1)
        >>> problem.names, problem.energy([1, 0])
        (('a', 'b'), 1.5)
        """
        return cls._named(of_bqm(bqm), num_pruned, labels, "A binary quadratic model")

    @classmethod
    def from_qubo(
        cls,
        qubo: Mapping[tuple[Hashable, Hashable], float],
        num_pruned: int | Sequence[int] | Unsaid | None = Unsaid.COUNT,
        labels: ArrayLike | Mapping[Hashable, int] | None = None,
        offset: float = 0.0,
    ) -> BlockQubo:
        """The problem of a dict ``{(i, j): value}``, whose energy is ``offset + sum value x_i x_j``.

        Args:
            qubo: coefficients by pairs of names, linear ones at ``(i, i)``; ``(i, j)`` and ``(j, i)`` are added. Names
                may be anything hashable. They stand in :attr:`names` in the order in which the dict first has them;
                numbers 0 to n-1 are positions. A variable that costs nothing has an entry 0.
            num_pruned: as in :meth:`from_bqm`.
            labels: likewise.
            offset: the constant.

        Raises:
            InputError: nothing is said of the counts, they cannot be met, a key is no pair, or a value no number.

        >>> problem = BlockQubo.from_qubo({("a", "a"): 1.0, ("a", "b"): -4.0, ("b", "b"): 3.0}, num_pruned=None)
        >>> problem.energy([1, 1]), problem.positions["b"]
        (0.0, 1)
        """
        return cls._named(of_dict(qubo, offset), num_pruned, labels, "A QUBO as a dict")

    @classmethod
    def _named(
        cls,
        parts: NamedQubo,
        num_pruned: int | Sequence[int] | Unsaid | None,
        labels: ArrayLike | Mapping[Hashable, int] | None,
        what: str,
    ) -> BlockQubo:
        counts = told_count(num_pruned, what)
        return cls(parts.q, counts, parts.offset, group_labels(labels, parts.names), parts.names)

    @cached_property
    def positions(self) -> Mapping[Hashable, int]:
        """From each variable's name to its position in x."""
        return positions(self.names)

    def without_names(self) -> BlockQubo:
        """The same problem over variables 0 to n-1, as solvers get it."""
        if isinstance(self.names, range):
            return self
        return self.replaced(self.q, self.offset)

    @property
    def num_variables(self) -> int:
        """n, the number of weights the block decides."""
        return len(self.labels)

    @property
    def num_groups(self) -> int:
        """How many counts the assignment must meet."""
        return len(self.num_pruned)

    @property
    def num_budgets(self) -> int:
        """How many linear budgets the assignment must meet."""
        return len(self.budget)

    @property
    def free(self) -> bool:
        """True if every binary x is allowed: neither counts nor budgets."""
        return not self.num_pruned and not self.num_budgets

    def replaced(self, q: ArrayLike | FactorForm, offset: float = 0.0) -> BlockQubo:
        """The problem of other energies under the same counts and budgets."""
        labels = self.labels if self.num_pruned else None
        return BlockQubo(q, self.num_pruned or None, offset, labels, costs=self.costs, budget=self.budget)

    def without_budgets(self, q: ArrayLike | FactorForm, offset: float = 0.0) -> BlockQubo:
        """The problem of other energies under the same counts alone."""
        return BlockQubo(q, self.num_pruned or None, offset, self.labels if self.num_pruned else None)

    @cached_property
    def diagonal(self) -> NDArray[np.float64]:
        """``Q_ii``, shape ``(n,)``."""
        if isinstance(self.q, FactorForm):
            return np.asarray(self.q.diagonal + (self.q.factor**2).sum(axis=1))
        return np.asarray(np.diagonal(self.q))

    def dense(self) -> NDArray[np.float64]:
        """Q as an ``(n, n)`` float64 matrix (built on each call for the factor form)."""
        if isinstance(self.q, FactorForm):
            matrix = np.asarray(self.q.factor @ self.q.factor.T)
            np.einsum("ii->i", matrix)[:] += self.q.diagonal
            return matrix
        return self.q

    def energy(self, x: ArrayLike) -> float | NDArray[np.float64]:
        """``offset + x'Qx`` in float64: a float for one ``(n,)`` x, an array for ``(k, n)``.

        Raises:
            InputError: x is not of that shape, or holds anything but 0 and 1.
        """
        points = self._checked(x, 1, 2).astype(np.float64)
        if isinstance(self.q, FactorForm):
            projected = points @ self.q.factor
            quadratic = (points * points) @ self.q.diagonal + (projected * projected).sum(axis=-1)
        else:
            quadratic = ((points @ self.q) * points).sum(axis=-1)
        energies = quadratic + self.offset
        return float(energies) if points.ndim == 1 else np.asarray(energies)

    def flip_costs(self, x: ArrayLike) -> NDArray[np.float64]:
        """``K_i = Q_ii + 2 sum_{j != i} Q_ij x_j`` at x ``(n,)``: what pruning i costs, kept or pruned as it is.

        Flipping a kept weight changes the energy by ``K_i``, flipping a pruned one by ``-K_i``.
        """
        point = self._checked(x, 1).astype(np.float64)
        pulled = self.q.apply(point) if isinstance(self.q, FactorForm) else self.q @ point
        return np.asarray(self.diagonal * (1 - 2 * point) + 2 * pulled)

    def couplings(self, i: int) -> NDArray[np.float64]:
        """``2 Q_ij`` for every j, 0 at i itself: by how much pruning i changes the other flip costs."""
        row = 2 * (self.q.factor @ self.q.factor[i] if isinstance(self.q, FactorForm) else self.q[i])
        row[i] = 0.0
        return np.asarray(row)

    def couplings_among(self, places: ArrayLike) -> NDArray[np.float64]:
        """``2 Q_ij`` for i, j of some variables ``(k,)`` as a ``(k, k)`` matrix, 0 on its diagonal; Q is not built."""
        at = np.asarray(places, dtype=np.int64)
        if isinstance(self.q, FactorForm):
            among = 2 * (self.q.factor[at] @ self.q.factor[at].T)
        else:
            among = 2 * self.q[np.ix_(at, at)]
        np.fill_diagonal(among, 0.0)
        return np.asarray(among)

    def counts(self, x: ArrayLike) -> NDArray[np.int64]:
        """How many variables of each group are 1 in x ``(n,)``."""
        chosen = self._checked(x, 1)
        if not self.num_pruned:
            return np.zeros(0, dtype=np.int64)
        return np.bincount(self.labels[chosen], minlength=self.num_groups)

    def amounts(self, x: ArrayLike) -> NDArray[np.float64]:
        """``costs @ x`` of one assignment ``(n,)``: what it brings for each budget, ``(k,)``."""
        return np.asarray(self.costs @ self._checked(x, 1).astype(np.float64))

    def is_feasible(self, x: ArrayLike) -> bool:
        """True if x is binary, has n entries and meets every count and every budget."""
        point = np.asarray(x)
        if point.shape != (self.num_variables,) or not is_binary(point):
            return False
        if not (self.counts(point) == self.num_pruned).all():
            return False
        return not self.num_budgets or bool((self.budget - self.amounts(point) <= rounding_of(self.costs)).all())

    def _checked(self, x: ArrayLike, *dimensions: int) -> NDArray[np.bool_]:
        """x as bool, if it is one assignment or, with two dimensions, several."""
        n, points = self.num_variables, np.asarray(x)
        if points.ndim not in dimensions or points.shape[-1] != n:
            allowed = f"({n},) or (k, {n})" if 2 in dimensions else f"({n},)"
            raise InputError(f"x has shape {points.shape}; pass {allowed}.")
        try:
            return binary(points, "x holds")
        except ValueError as error:
            raise InputError(f"{error}.") from None

    def __rich__(self) -> Table:
        return problem_table(self)

    def __repr__(self) -> str:
        form = "factor form" if isinstance(self.q, FactorForm) else "dense"
        count = {0: "any number", 1: f"{sum(self.num_pruned)}"}.get(self.num_groups, f"in {self.num_groups} groups")
        budgets = f", {self.num_budgets} budget{'s' * (self.num_budgets > 1)}" if self.num_budgets else ""
        return f"BlockQubo({self.num_variables} variables, prune {count}{budgets}, {form}, offset {self.offset:.6g})"


def _symmetric(q: ArrayLike) -> NDArray[np.float64]:
    matrix = _float64(q, "Q")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"Q has shape {matrix.shape}; pass a square (n, n) matrix or a FactorForm.")
    if np.array_equal(matrix, matrix.T):
        return matrix
    # halves first: the sum of two numbers near the end of the range is beyond it
    symmetric = matrix / 2 + matrix.T / 2
    symmetric.flags.writeable = False
    return symmetric


#: What the sizes of all entries of Q and the offset may add up to: so far no energy and no penalty overflows.
LARGEST_SUM = 2.0**1020


def _check_range(form: NDArray[np.float64] | FactorForm, offset: float) -> None:
    if isinstance(form, FactorForm):
        # every |F_i . F_j| is at most the product of two lengths
        root = float(np.abs(form.factor).max(initial=0.0)) * max(1, form.factor.shape[1]) ** 0.5
        largest = np.inf if root > 2.0**511 else root * root + float(np.abs(form.diagonal).max(initial=0.0))
        n = len(form.diagonal)
    else:
        n = len(form)
        largest = max(float(form.max(initial=0.0)), -float(form.min(initial=0.0)))
    # below the range no sum is formed, for the sake of the many small problems of a run
    if largest > LARGEST_SUM / max(1, n) ** 2 or abs(offset) > LARGEST_SUM:
        raise InputError(
            f"Q holds entries up to {largest:.3g} and the offset is {offset:.3g}, so that energies can leave the range "
            "of float64; divide Q and the offset by a power of two, which changes no assignment."
        )


def _as_counts(num_pruned: Any) -> tuple[int, ...]:
    """Counts, one for each group; how many there may be of each is checked apart."""
    try:
        given = [num_pruned] if np.ndim(num_pruned) == 0 else list(num_pruned)
        counts = [int(count) for count in given]
        if counts == given:
            return tuple(counts)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"num_pruned is {short(num_pruned)}; pass a whole number, one for each group, or None.")


def _check_counts(n: int, labels: NDArray[np.int64], counts: Sequence[int]) -> None:
    if labels.shape != (n,):
        raise InputError(f"labels has shape {labels.shape}; pass one group number for each of {n} variables.")
    if n and (labels.min() < 0 or labels.max() >= len(counts)):
        raise InputError(f"labels go from {labels.min()} to {labels.max()}, but {len(counts)} counts are given.")
    sizes = np.bincount(labels, minlength=len(counts))
    for group, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        if not 0 <= count <= size:
            raise InputError(
                f"num_pruned is {count} in group {group}, which has {size} variables; "
                f"pass a whole number from 0 to {size}."
            )


def _as_numbers(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Assignments of a batch as 0.0 and 1.0."""
    if x.dtype != torch.bool:
        raise InputError(f"x has the type {x.dtype}; pass torch.bool, True = prune.")
    return x.to(dtype)


@dataclass(frozen=True, eq=False)
class BlockBatch:
    """Many block QUBOs of one layer, one per weight row, sharing one Gram block or not.

    Row r minimises ``E_r(x) = 1/2 (u*x)' H (u*x) + l'x + offset`` with ``u = values[r]``,
    ``l = linear[r]``; that is ``Q_ij = 1/2 u_i H_ij u_j`` and ``Q_ii = 1/2 u_i^2 H_ii + l_i``.
    Q itself is formed on demand by :meth:`problem`, so a thousand whole rows of 1024 weights take
    8 MB where their matrices would take 8 GB.

    Args:
        hessian: ``(n, n)``, one block of the local Hessian shared by all rows, or ``(r, n, n)``.
        values: ``(r, n)``, the value ``u`` that each weight takes if it is kept.
        linear: ``(r, n)``.
        offset: ``(r,)``.
        labels: ``(n,)`` group number of each variable, 0 to g-1, the same in all rows.
        num_pruned: ``(r, g)`` exact counts.
    """

    hessian: Float[Tensor, "n n"] | Float[Tensor, "r n n"]
    values: Float[Tensor, "r n"]
    linear: Float[Tensor, "r n"]
    offset: Float[Tensor, " r"]
    labels: Int[Tensor, " n"]
    num_pruned: Int[Tensor, "r g"]

    @property
    def num_rows(self) -> int:
        """r, the number of problems."""
        return self.values.shape[0]

    @property
    def num_variables(self) -> int:
        """n, the number of weights each problem decides."""
        return self.values.shape[1]

    @property
    def num_groups(self) -> int:
        """g, the number of counts each assignment must meet."""
        return self.num_pruned.shape[1]

    @property
    def shared(self) -> bool:
        """True if one ``(n, n)`` Hessian block serves all rows."""
        return self.hessian.ndim == 2

    def times_hessian(self, vectors: Float[Tensor, "r n"]) -> Float[Tensor, "r n"]:
        """``H v`` for every row, in the dtype of the Hessian."""
        vectors = vectors.to(self.hessian.dtype)
        if self.shared:
            return vectors @ self.hessian
        return torch.bmm(self.hessian, vectors.unsqueeze(2)).squeeze(2)

    @property
    def own(self) -> Float[Tensor, "r n"]:
        """``1/2 u_i^2 H_ii``, the diagonal of Q without the linear terms."""
        return self.values * self.values * self.hessian.diagonal(dim1=-2, dim2=-1) / 2

    def flip_costs(self, x: Bool[Tensor, "r n"]) -> Float[Tensor, "r n"]:
        """``K_i = Q_ii + 2 sum_{j != i} Q_ij x_j`` of every row at its x, as :meth:`BlockQubo.flip_costs`."""
        now, own = _as_numbers(x, self.values.dtype), self.own
        costs = torch.addcmul(self.linear, self.values, self.times_hessian(self.values * now)).add_(own)
        return costs.addcmul_(own, now, value=-2)

    def energy(self, x: Bool[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """``E_r(x_r)`` of every row."""
        x = _as_numbers(x, self.values.dtype)
        masked = self.values * x
        quadratic = (masked * self.times_hessian(masked)).sum(1) / 2
        return quadratic + (self.linear * x).sum(1) + self.offset

    def energy_change(self, old: Bool[Tensor, "r n"], new: Bool[Tensor, "r n"]) -> Float[Tensor, " r"]:
        """``E_r(new) - E_r(old)``, without the cancellation of two large energies.

        Uses ``y'Hy - z'Hz = (y - z)'H(y + z)`` with ``y = u*new`` and ``z = u*old``.
        """
        before, after = (_as_numbers(x, self.values.dtype) for x in (old, new))
        sign = after - before
        step, total = self.values * sign, self.values * after.add_(before)
        return (total * self.times_hessian(step)).sum(1) / 2 + (self.linear * sign).sum(1)

    def counts(self, x: Bool[Tensor, "r n"]) -> Int[Tensor, "r g"]:
        """How many variables of each group are 1, row by row."""
        if self.num_groups == 1:
            return x.sum(1, keepdim=True)
        result = torch.zeros(x.shape[0], self.num_groups, device=x.device)
        return result.index_add_(1, self.labels, x.float()).long()

    @classmethod
    def of(cls, problem: BlockQubo) -> BlockBatch:
        """A batch of one row that has the energies of a dense problem (``u = 1``, ``H = 2 Q``).

        Raises:
            InputError: the problem has budgets, which a batch cannot hold.
        """
        if problem.num_budgets:
            raise InputError("The problem has budgets, which no batch of rows can hold; solve it by itself.")
        return cls(
            hessian=torch.tensor(2 * problem.dense()),
            values=torch.ones(1, problem.num_variables, dtype=torch.float64),
            linear=torch.zeros(1, problem.num_variables, dtype=torch.float64),
            offset=torch.tensor([problem.offset], dtype=torch.float64),
            labels=torch.tensor(problem.labels),
            num_pruned=torch.tensor([problem.num_pruned]),
        )

    def rows(self, selected: slice) -> BlockBatch:
        """The problems of a slice of rows, as views."""
        return dataclasses.replace(
            self,
            hessian=self.hessian if self.shared else self.hessian[selected],
            values=self.values[selected],
            linear=self.linear[selected],
            offset=self.offset[selected],
            num_pruned=self.num_pruned[selected],
        )

    def problem(self, row: int) -> BlockQubo:
        """The dense :class:`BlockQubo` of one row."""
        hessian = self.hessian if self.shared else self.hessian[row]
        u = self.values[row]
        q = (u[:, None] * hessian * u[None, :] / 2).double()
        q.diagonal().add_(self.linear[row])
        return BlockQubo(
            q.cpu().numpy(), self.num_pruned[row].tolist(), float(self.offset[row]), self.labels.cpu().numpy()
        )


def group_counts(x: Float[Tensor, "r n"], labels: Int[Tensor, " n"], num_groups: int) -> Int[Tensor, "r g"]:
    """How many of every group are pruned."""
    if num_groups == 1:
        return x.sum(1, keepdim=True).long()
    counts = torch.zeros(len(x), num_groups, dtype=x.dtype, device=x.device)
    return counts.index_add_(1, labels, x).long()


#: Kinds of groups that are listed.
_KINDS = 4


#: Variables whose couplings are looked at; of more, evenly spread ones.
_LOOKED_AT = 2048


def problem_table(problem: BlockQubo) -> Table:
    """Variables, counts, form, offset, sizes of the diagonal and of the couplings."""
    n = problem.num_variables
    places = evenly_spread(n, _LOOKED_AT)
    among = problem.couplings_among(places)
    couplings = among[~np.eye(len(places), dtype=bool)]
    sampled = f" (of {len(places)} evenly spread variables)" if len(places) < n else ""
    some = couplings[couplings != 0]
    share = f", {100 * len(some) / len(couplings):.3g} % are not 0{sampled}" if len(couplings) else ""
    facts = {
        "variables": f"{n:,}",
        "groups": _groups(problem),
        **_budgets(problem),
        "form": _form(problem),
        "offset": f"{problem.offset:.6g}",
        "diagonal Q_ii": _range(problem.diagonal),
        "couplings 2 Q_ij": _range(some) + share,
    }
    return facts_table(facts, "block QUBO", "x = 1 prunes; numbers are energies, in units of the layer's loss")


def evenly_spread(n: int, most: int) -> NDArray[np.int64]:
    """All numbers below n, or so many of them at equal distances."""
    return np.unique(np.linspace(0, max(0, n - 1), min(n, most)).round().astype(np.int64))


def counts_told(problem: BlockQubo) -> str:
    """How many are to be pruned, as a sentence's end."""
    if not problem.num_pruned:
        return "prune any number" if problem.free else f"meet {_budgets_told(problem)}"
    budgets = f" and meet {_budgets_told(problem)}" if problem.num_budgets else ""
    groups = "" if problem.num_groups == 1 else f" in {problem.num_groups} groups"
    return f"prune {sum(problem.num_pruned)}{groups}{budgets}"


def _budgets_told(problem: BlockQubo) -> str:
    return "a budget" if problem.num_budgets == 1 else f"{problem.num_budgets} budgets"


def _budgets(problem: BlockQubo) -> dict[str, str]:
    """A row for every budget, as far as they are few."""
    told = {}
    for row, (costs, least) in enumerate(zip(problem.costs[:_KINDS], problem.budget, strict=False)):
        name = "budget" if problem.num_budgets == 1 else f"budget {row}"
        told[name] = f"at least {least:.6g}, costs {_range(costs)}"
    if problem.num_budgets > _KINDS:
        told["more budgets"] = f"{problem.num_budgets - _KINDS}"
    return told


def _groups(problem: BlockQubo) -> str:
    if not problem.num_pruned:
        return "none: prune any number"
    sizes = np.bincount(problem.labels, minlength=problem.num_groups)
    kinds = Counter(zip(problem.num_pruned, sizes.tolist(), strict=True))
    told = [
        f"prune {count} of {size}" + (f" in each of {number}" if number > 1 else "")
        for (count, size), number in kinds.most_common(_KINDS)
    ]
    more = f" and {len(kinds) - _KINDS} other kinds" if len(kinds) > _KINDS else ""
    return f"{problem.num_groups}: {', '.join(told)}{more}"


def _form(problem: BlockQubo) -> str:
    n = problem.num_variables
    if isinstance(problem.q, FactorForm):
        return f"factors: diagonal and {n:,} x {problem.q.factor.shape[1]}"
    return f"dense, {n:,} x {n:,}"


def _range(values: NDArray[np.float64]) -> str:
    if not len(values):
        return "none"
    return f"{values.min():.4g} to {values.max():.4g}, median size {np.median(np.abs(values)):.3g}"
