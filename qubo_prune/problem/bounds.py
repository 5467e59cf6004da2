"""Certified lower bounds of block QUBOs: no mask of the asked counts can have a lower energy.

With a diagonal d for which ``H - diag(d)`` is positive semidefinite, every binary x has::

    E(x) = 1/2 (u*x)' (H - diag(d)) (u*x) + (1/2 u*u*d + l)' x + offset,

whose right side f is convex and is minimised over the polytope ``0 <= y <= 1`` with the counts. At any y,
optimal or not, its tangent is below it, so with the gradient g::

    E(x) >= f(y) - g'y + min { g'x : x in the polytope },

and the last minimum is exact: the lowest g of each group. So a bound holds whatever the optimiser reached; it
is computed in float64 and lowered by what rounding may have added.

The choice of d is what the bounds differ in (:data:`~qubo_prune.choices.BOUNDS`). One d per Gram block serves all rows
that share it, or two, the second weighted by what the first has left to gain. The largest one, in the sense of a
weighted trace, is a minimum-trace factor analysis, solved here by Newton steps on::

    sum_i w_i d_i + mu log det(H - diag(d)),

which is self-concordant, so that damped steps ``1 / (1 + decrement)`` never leave the cone. For a row of its own,
the best d maximises the bound itself, which is concave in d with the slopes ``1/2 u_i^2 y_i (1 - y_i)`` (quadratic
convex reformulation: A. Billionnet, S. Elloumi, M.-C. Plateau, Discrete Applied Mathematics 157, 2009).

The kind ``semidefinite`` takes from H more than a diagonal: what products of variables with one another and with the
counts allow (:mod:`qubo_prune.problem.semidefinite`), from the shared d on, row by row. Its convex functions are
bounded by their tangents like the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qubo_prune.choices import BOUNDS as KINDS
from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.precision import pinned
from qubo_prune.problem.qubo import BlockBatch
from qubo_prune.problem.semidefinite import Lifted

#: Of the trace that a d may lack at the end of its Newton steps.
_SLACK = 1e-3
#: A shift is not used in a row where its negative part is larger than its positive one, by this factor.
_HARM = 1.0
#: Below minus this, an eigenvalue of a matrix with a unit diagonal is no rounding.
_INDEFINITE = 1e-6
#: Relative rounding of one sum.
_ROUNDED = 2.0**-52
#: Steps of the semidefinite relaxation between two bounds.
_LOOK = 50
#: Entries of matrices that are held at once.
_ENTRIES = 2**22


@dataclass(frozen=True, eq=False)
class Bounds:
    """What was proven.

    Attributes:
        kind: which of :data:`~qubo_prune.choices.BOUNDS`.
        lower: ``(r,)`` no energy of a row is lower; with one count for all rows, their sum is what is proven.
        point: ``(r, n)`` y, where the tangents touch.
        steps: of the optimiser.
        stopped_early: the time was over before it had converged; the bounds hold all the same.
    """

    kind: str
    lower: Float[Tensor, " r"]
    point: Float[Tensor, "r n"]
    steps: int
    stopped_early: bool = False


@pinned()
def lower_bounds(
    problems: BlockBatch,
    kind: str = "trace",
    *,
    total: int | None = None,
    tolerance: float = 1e-3,
    most: int = 2000,
    rounds: int = 4,
    deadline: Deadline | None = None,
) -> Bounds:
    """Certified bounds of every problem of a batch.

    Args:
        problems: their Hessian must be positive semidefinite.
        kind: which of :data:`~qubo_prune.choices.BOUNDS`.
        total: one count for all rows together in the place of the problems' own, as the pattern ``layer`` has it.
        tolerance: share of the relaxation's value that the optimiser may leave to gain; with ``semidefinite``, what
            fifty of its steps may gain less of before it stops.
        most: its steps at most, for each d, or for each row of ``semidefinite``.
        rounds: of the search for a d of each row.
        deadline: after which the bounds proven by then are the answer.

    Raises:
        InputError: there is no such kind, a Hessian is not positive semidefinite, or ``semidefinite`` is asked for
            with a total.
    """
    check_kind(kind, each_row=total is None)
    clock = deadline or Deadline(None)
    relaxed = _Relaxation.of(problems, kind, total)
    found = relaxed.minimise(tolerance, most, clock)
    if kind not in ("plain", "eigenvalue") and relaxed.unit.ndim == 2:
        found = _reweighted(relaxed, found, tolerance, most, clock)
    if kind == "row":
        found = _of_each_row(relaxed, found, tolerance, most, rounds, clock)
    if kind == "semidefinite":
        found = _semidefinite(problems, relaxed, found, tolerance, most, clock)
    return replace(found, kind=kind)


def check_kind(kind: str, each_row: bool = True) -> None:
    """Raise :class:`InputError` if there is no such bound, or if it needs the counts of each row and there are none."""
    if kind not in KINDS:
        raise InputError(f"There is no bound {kind!r}{did_you_mean(kind, KINDS)}; use one of {', '.join(KINDS)}.")
    if kind == "semidefinite" and not each_row:
        raise InputError(
            "The bound 'semidefinite' needs the counts of each row, and there is one for all rows together, as with "
            "the pattern 'layer'; use the bound 'row', or another pattern."
        )


def _shared_shift(unit: Float[Tensor, "*r n n"], lowest: Float[Tensor, "*r 1"], kind: str) -> Float[Tensor, "*r n"]:
    """d in the scale of a unit diagonal, for all rows that share a matrix of that lowest eigenvalue."""
    if kind in ("plain", "eigenvalue"):
        if bool((lowest < -_INDEFINITE).any()):
            raise _indefinite()
        lowest = (lowest.clamp(max=0) if kind == "plain" else lowest) - _margin(unit)
        return lowest.repeat_interleave(unit.shape[-1], -1)
    return trace_shift(unit, torch.ones_like(unit[..., 0]))


def _harmless(
    shift: Float[Tensor, "*k n"], lowest: Float[Tensor, "*k 1"], values: Float[Tensor, "r n"]
) -> Float[Tensor, "*m n"]:
    """The shift, but that of the smallest eigenvalue in rows where its negative entries may cost more than they bring.

    They are few and small; but a weight that is a thousand times as dear as the others, as those behind massive
    activations are, is offered a reward for being pruned by a little.
    """
    parts = values.square() * shift
    harmed = -parts.clamp(max=0).sum(1) > _HARM * parts.clamp(min=0).sum(1)
    if not bool(harmed.any()):
        return shift
    return torch.where(harmed[:, None], lowest.expand(len(values), 1), shift)


def _indefinite() -> InputError:
    return InputError(
        "A Hessian is not positive semidefinite, so its relaxation is not convex; bounds need one such as a Gram's."
    )


def _margin(unit: Tensor) -> float:
    """What rounding may hide of an eigenvalue of a matrix with a unit diagonal."""
    return 4 * unit.shape[-1] ** 2 * torch.finfo(unit.dtype).eps


def trace_shift(matrix: Float[Tensor, "*b n n"], weights: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """A d with nearly the largest ``sum_i w_i d_i`` for which ``matrix - diag(d)`` is positive semidefinite.

    Args:
        matrix: positive semidefinite, float64, with a unit diagonal.
        weights: positive.

    Returns:
        d, at most ``1e-3 sum w`` from the largest, and certified: the factorisation of ``matrix - diag(d)`` exists.

    Raises:
        InputError: the matrix is not positive semidefinite.
    """
    n = matrix.shape[-1]
    weights = weights / weights.sum(-1, keepdim=True)
    shift = torch.full_like(weights, -0.1)  # strictly inside
    barrier, final = torch.full_like(weights[..., :1], 1.0 / n), _SLACK / n
    safe = shift
    for _ in range(100):
        factor, failed = torch.linalg.cholesky_ex(matrix - torch.diag_embed(shift))
        if failed.any():
            if safe is shift:
                raise _indefinite()
            break  # rounding at the rim of the cone
        safe = shift
        inverse = torch.cholesky_inverse(factor)
        slope = weights / barrier - inverse.diagonal(dim1=-2, dim2=-1)
        step = torch.cholesky_solve(slope[..., None], torch.linalg.cholesky(inverse * inverse))[..., 0]
        decrement = (slope * step).sum(-1, keepdim=True).clamp(min=0).sqrt()
        done = (decrement < 0.5) & (barrier <= final)
        if bool(done.all()):
            break
        shift = shift + torch.where(done, 0.0, step / (1 + decrement))
        barrier = torch.where(decrement < 0.5, (barrier * 0.2).clamp(min=final), barrier)
    certified: Tensor = safe - _margin(matrix)
    return certified


@dataclass(frozen=True, eq=False)
class _Relaxation:
    """The convex problems of a batch, in the scale of a unit diagonal of the Hessian.

    Attributes:
        unit: ``(n, n)`` or ``(r, n, n)`` the Hessian so scaled.
        values: ``(r, n)`` ``u * sqrt(H_ii)``.
        linear: ``(r, n)``.
        offset: ``(r,)``.
        counts: of the groups.
        lowest: ``(1,)`` or ``(r, 1)`` what its smallest eigenvalue is at least, rounding allowed for.
        top: ``(1,)`` or ``(r, 1)`` its largest eigenvalue.
        shift: ``(n,)`` or ``(r, n)`` d, in that scale.
    """

    unit: Float[Tensor, "*b n n"]
    values: Float[Tensor, "r n"]
    linear: Float[Tensor, "r n"]
    offset: Float[Tensor, " r"]
    counts: _Counts
    lowest: Float[Tensor, "*b 1"]
    top: Float[Tensor, "*b 1"]
    shift: Float[Tensor, "*k n"]

    @classmethod
    def of(cls, problems: BlockBatch, kind: str, total: int | None) -> _Relaxation:
        """With the d of a kind that all rows of a matrix share."""
        hessian = problems.hessian.double()
        scale = hessian.diagonal(dim1=-2, dim2=-1).sqrt()
        if not torch.isfinite(scale).all():
            raise _indefinite()
        # a weight without curvature of its own has no coupling either, or the matrix is not semidefinite
        if bool(((scale == 0)[..., :, None] & (hessian != 0)).any()):
            raise _indefinite()
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        unit = hessian * inverse[..., :, None] * inverse[..., None, :]
        unit.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        spectrum = torch.linalg.eigvalsh(unit)
        values, lowest = problems.values.double() * scale, spectrum[..., :1]
        shift = _shared_shift(unit, lowest, kind)
        if kind not in ("plain", "eigenvalue"):
            shift = _harmless(shift, lowest - _margin(unit), values)
        return cls(
            unit,
            values,
            problems.linear.double(),
            problems.offset.double(),
            _Counts.of(problems, total),
            lowest - _margin(unit),
            spectrum[..., -1:],
            shift,
        )

    def lifted(self, problems: BlockBatch, row: int, point: Float[Tensor, " n"]) -> Lifted:
        """The semidefinite relaxation of one row, with the multipliers of this one at a point."""
        unit, shift = (part if part.ndim == least else part[row] for part, least in ((self.unit, 2), (self.shift, 1)))
        values = self.values[row]
        convex = values[:, None] * (unit - shift.diag()) * values[None, :] / 2
        q = values[:, None] * unit * values[None, :] / 2 + self.linear[row].diag()
        return Lifted(q, values.abs(), problems.labels, problems.num_pruned[row], convex, point)

    def _times(self, vectors: Tensor) -> Tensor:
        if self.unit.ndim == 2:
            return vectors @ self.unit
        return torch.bmm(self.unit, vectors[:, :, None])[:, :, 0]

    def value_and_gradient(self, y: Float[Tensor, "r n"]) -> tuple[Float[Tensor, " r"], Float[Tensor, "r n"]]:
        """f(y) without the offset, and its gradient."""
        z = self.values * y
        curved = self._times(z) - self.shift * z
        tilt = self.values.square() * self.shift / 2 + self.linear
        return (z * curved).sum(1) / 2 + (tilt * y).sum(1), self.values * curved + tilt

    def minimise(
        self, tolerance: float, most: int, clock: Deadline, start: Float[Tensor, "r n"] | None = None
    ) -> Bounds:
        """Accelerated projected gradients, restarted where they turn, in the metric of the diagonal."""
        top = self.top - self.shift.amin(-1, keepdim=True).clamp(max=0)
        own = self.values.square()
        metric = (top * own).clamp(min=1e-9 * float(own.max()) if own.numel() else 0.0).clamp(min=1e-300)
        y = self.counts.even() if start is None else start
        lower, best, before, pace, taken = torch.full_like(self.offset, -torch.inf), y, y, 1.0, 0
        multiplier: Tensor | None = None
        for step in range(most):
            faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
            ahead = y + (pace - 1) / faster * (y - before)
            value, gradient = self.value_and_gradient(ahead)
            new, multiplier = self.counts.nearest(ahead - gradient / metric, metric, multiplier)
            turned = float(((ahead - new) * metric * (new - y)).sum()) > 0
            before, y, pace, taken = y, new, 1.0 if turned else faster, step + 1
            if step % 10 == 9 or step == most - 1 or clock.expired:
                value, gradient = self.value_and_gradient(y)
                proven = self._tangent(y, value, gradient)
                better = self.counts.higher(proven, lower)
                lower, best = torch.where(better, proven, lower), torch.where(better[:, None], y, best)
                left = value + self.offset - lower
                goal = tolerance * value.abs()
                met = bool((left.sum() <= goal.sum()) if self.counts.joint else (left <= goal).all())
                if met or clock.expired:
                    break
        return Bounds("", lower, best, taken, clock.expired and not met)

    def _tangent(
        self, y: Float[Tensor, "r n"], value: Float[Tensor, " r"], gradient: Float[Tensor, "r n"]
    ) -> Float[Tensor, " r"]:
        least = self.counts.least(gradient)
        terms = value.abs() + (gradient.abs() * (y.abs() + 1)).sum(1) + self.offset.abs()
        rounding = 4 * y.shape[1] * torch.finfo(y.dtype).eps * terms
        return value - (gradient * y).sum(1) + (gradient * least).sum(1) + self.offset - rounding


def _reweighted(relaxed: _Relaxation, found: Bounds, tolerance: float, most: int, clock: Deadline) -> Bounds:
    """A second shared d, from the factor analysis weighted by the rows' mean slopes at y; the better bound of a row."""
    if clock.expired:
        return found
    slopes = relaxed.values.square() * found.point * (1 - found.point)
    weights = (slopes / slopes.sum(1, keepdim=True).clamp(min=1e-300)).mean(0)
    if not bool(weights.any()):  # y has decided every weight: there is no gap left
        return found
    shift = trace_shift(relaxed.unit, weights + 0.1 * weights.mean())
    second = replace(relaxed, shift=_harmless(shift, relaxed.lowest, relaxed.values))
    new = second.minimise(tolerance, most, clock, found.point)
    better = relaxed.counts.higher(new.lower, found.lower)
    return replace(
        found,
        lower=torch.where(better, new.lower, found.lower),
        steps=found.steps + new.steps,
        point=torch.where(better[:, None], new.point, found.point),
        stopped_early=new.stopped_early,
    )


def _of_each_row(
    relaxed: _Relaxation, found: Bounds, tolerance: float, most: int, rounds: int, clock: Deadline
) -> Bounds:
    """Frank-Wolfe on d, for every row, from the shared one: towards the best d for the slopes at y."""
    n, steps = relaxed.values.shape[1], found.steps
    shifts = relaxed.shift.expand_as(relaxed.values).clone()
    lower, points = found.lower.clone(), found.point.clone()
    for number in range(rounds):
        if clock.expired:
            break
        parts = torch.split(torch.arange(len(lower), device=lower.device), max(1, _ENTRIES // n**2))
        aims = []
        for part in parts:
            slopes = relaxed.values[part].square() * points[part] * (1 - points[part])
            # weights that y decides have no slope, and without any the largest d would be minus infinity there
            slopes = slopes + (1.0 if number < 2 else 0.3) * slopes.mean(1, keepdim=True) + 1e-300
            unit = relaxed.unit.expand(len(part), n, n) if relaxed.unit.ndim == 2 else relaxed.unit[part]
            aims.append(trace_shift(unit, slopes))
        aim, improved = torch.cat(aims), False
        for way in (1.0, 0.5, 0.25):
            tried = replace(relaxed, shift=shifts + way * (aim - shifts))
            new = tried.minimise(tolerance, most, clock, points)
            steps += new.steps
            better = relaxed.counts.higher(new.lower, lower)
            if bool(better.any()):
                improved = True
                shifts = torch.where(better[:, None], tried.shift, shifts)
                lower, points = torch.where(better, new.lower, lower), torch.where(better[:, None], new.point, points)
        if not improved:
            break
    return Bounds("row", lower, points, steps, clock.expired)


def _semidefinite(
    problems: BlockBatch, relaxed: _Relaxation, found: Bounds, tolerance: float, most: int, clock: Deadline
) -> Bounds:
    """The semidefinite relaxation of every row, from the shared d on; the better of the two bounds."""
    lower, points, steps, cut = found.lower.clone(), found.point.clone(), found.steps, found.stopped_early
    for row in range(len(lower) if relaxed.values.shape[1] > 1 else 0):
        left = clock.remaining
        own = Deadline(None if left is None else left / (len(lower) - row), clock)
        lifted = relaxed.lifted(problems, row, points[row])
        best, before = float(lower[row]), -torch.inf
        for _ in range(0, most, _LOOK):
            steps += lifted.improve(_LOOK, own)
            convex = _Relaxation.of(lifted.convex_below(), "plain", None)
            new = convex.minimise(tolerance / 4, 2000, own, lifted.point[None])
            proven = float(new.lower[0] + relaxed.offset[row])
            proven -= _ROUNDED * (abs(proven) + abs(float(relaxed.offset[row])))
            if proven > best:
                best, lower[row], points[row] = proven, proven, new.point[0]
            if own.expired or abs(proven - before) <= tolerance * abs(proven):
                break
            before = proven
        cut |= own.expired
    return Bounds("semidefinite", lower, points, steps, cut)


@dataclass(frozen=True, eq=False)
class _Counts:
    """``0 <= y <= 1`` with the sums of groups: those of each row, or one over all rows.

    Attributes:
        labels: ``(n,)`` group of each variable in its row.
        counts: ``(r, g)``, or ``(1, 1)`` for one sum over all rows.
        shape: ``(r, n)``.
    """

    labels: Int[Tensor, " n"]
    counts: Float[Tensor, "k g"]
    shape: tuple[int, int]

    @classmethod
    def of(cls, problems: BlockBatch, total: int | None) -> _Counts:
        shape = (problems.num_rows, problems.num_variables)
        if total is None:
            return cls(problems.labels, problems.num_pruned.double(), shape)
        if not 0 <= total <= shape[0] * shape[1]:
            raise InputError(f"total is {total} for {shape[0]} rows of {shape[1]} weights; it cannot be met.")
        together = torch.tensor([[float(total)]], dtype=torch.float64, device=problems.labels.device)
        return cls(torch.zeros_like(problems.labels), together, shape)

    @property
    def joint(self) -> bool:
        """True if one sum goes over several rows."""
        return len(self.counts) != self.shape[0]

    def higher(self, new: Float[Tensor, " r"], old: Float[Tensor, " r"]) -> Bool[Tensor, " r"]:
        """Rows whose new bounds are the better ones; with one sum they hold only together."""
        return (new.sum() > old.sum()).expand_as(old) if self.joint else new > old

    def sums(self, values: Float[Tensor, "r n"]) -> Float[Tensor, "k g"]:
        """Of every group."""
        if self.joint:
            return values.sum().reshape(1, 1)
        if self.counts.shape[1] == 1:
            return values.sum(1, keepdim=True)
        return values.new_zeros(self.counts.shape).index_add_(1, self.labels, values)

    def spread(self, of_groups: Float[Tensor, "k g"]) -> Float[Tensor, "r n"]:
        """A number of every group to its variables."""
        return of_groups[:, self.labels].expand(self.shape)

    def even(self) -> Float[Tensor, "r n"]:
        """The same y within every group."""
        sizes = self.sums(torch.ones(self.shape, dtype=torch.float64, device=self.counts.device))
        return self.spread(self.counts / sizes.clamp(min=1)).clone()

    def nearest(
        self, target: Float[Tensor, "r n"], metric: Float[Tensor, "r n"], start: Float[Tensor, "k g"] | None = None
    ) -> tuple[Float[Tensor, "r n"], Float[Tensor, "k g"]]:
        """``argmin sum metric (y - target)^2``, which is ``clamp(target - tau / metric)`` with one tau per group.

        By bracketed Newton steps from ``start``. Sums are met to 1e-7 n or so; bounds hold wherever y is.

        Returns:
            y and tau.
        """
        low, high = self._extremes((target - 1) * metric, target * metric)
        tau = (low + high) / 2 if start is None else start.clamp(low, high)
        for _ in range(60):
            y = (target - self.spread(tau) / metric).clamp_(0, 1)
            over = self.sums(y) - self.counts
            if float(over.abs().max()) < 1e-7 * self.shape[1]:
                break
            low, high = torch.where(over > 0, tau, low), torch.where(over > 0, high, tau)
            slope = self.sums(((y > 0) & (y < 1)) / metric)
            newton = tau + over / slope.clamp(min=1e-300)
            tau = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        return y, tau

    def _extremes(self, lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
        """Brackets of tau: all of a group at 1, all at 0."""
        if self.joint:
            return lowest.min().reshape(1, 1), highest.max().reshape(1, 1)
        into = self.labels.expand(self.shape)
        empty = lowest.new_zeros(self.counts.shape)
        return (
            empty.scatter_reduce(1, into, lowest, "amin", include_self=False),
            empty.scatter_reduce(1, into, highest, "amax", include_self=False),
        )

    def least(self, cost: Float[Tensor, "r n"]) -> Float[Tensor, "r n"]:
        """The x of the polytope with the least ``cost'x``: those of the lowest cost in every group."""
        flat = cost.reshape(1, -1) if self.joint else cost
        labels = torch.zeros_like(flat, dtype=torch.long) if self.joint else self.labels.expand_as(flat)
        order = flat.argsort(1)
        order = order.gather(1, labels.gather(1, order).argsort(dim=1, stable=True))
        sorted_labels = labels.gather(1, order)
        sizes = torch.bincount(labels[0], minlength=self.counts.shape[1])
        first = (sizes.cumsum(0) - sizes)[sorted_labels]
        rank = torch.arange(flat.shape[1], device=flat.device) - first
        chosen = rank < self.counts.gather(1, sorted_labels)
        return torch.zeros_like(flat).scatter_(1, order, chosen.to(flat.dtype)).reshape(cost.shape)
