"""Published pruning methods, for comparison: each chooses a mask, some update the kept weights as well.

Every method gets the same Gram and keeps exactly the counts of the pattern. Where a layer has several
Grams (a grouped convolution) and the pattern is ``layer``, each group of rows keeps as many weights as
Wanda gives it. Inputs that were always zero are pruned first. Magnitude and Wanda are in :mod:`scores`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.blocks.rows import Descent, descend
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.hessian.compensated import DAMPING
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.submatrices import unit_diagonal
from qubo_prune.masks.keep import Pattern, keep_highest
from qubo_prune.methods.scores import score
from qubo_prune.methods.update import (
    SLAB,
    UNSEEN,
    admm,
    check_layer,
    conjugate_gradients,
    fitting,
    inverse_factor,
    roomy,
    sweep,
    with_damping,
    work_dtype,
)
from qubo_prune.precision import pinned
from qubo_prune.solver.swaps.greedy import Greedy


@dataclass(frozen=True, eq=False)
class Choice:
    """What a method decided for one layer.

    Attributes:
        keep: the keep mask.
        weight: updated weights, zero where pruned; ``None`` if the method only chooses a mask.
        notes: what did not go as asked, as sentences, each with the number of Grams or rows.
    """

    keep: Bool[Tensor, "d_out d_in"]
    weight: Float[Tensor, "d_out d_in"] | None
    notes: dict[str, int]


@dataclass(frozen=True, eq=False)
class Task:
    """One layer, or one group of rows of it, and what is asked.

    Attributes:
        weight: dense weights, on the device of the Gram.
        gram: of their inputs.
        pattern: where counts must hold.
        density: kept share.
        damping: share of the Gram's mean diagonal that is added to its diagonal.
        notes: to be filled.
    """

    weight: Float[Tensor, "r d"]
    gram: Gram
    pattern: Pattern
    density: float
    damping: float
    notes: Counter[str]

    def highest(self, scores: Float[Tensor, "r d"]) -> Bool[Tensor, "r d"]:
        """The mask of the highest scores."""
        return keep_highest(scores, self.pattern, self.density)

    def wanda(self) -> Float[Tensor, "r d"]:
        """Wanda's scores."""
        return score("wanda", self.weight, self.gram, 0)

    def alive_weight(self) -> Float[Tensor, "r d"]:
        """The weights, zero where the input always is."""
        return self.weight.masked_fill(self.gram.dead, 0)

    def groups(self) -> list[Task]:
        """One task for each Gram; with the pattern ``layer`` each keeps the count that Wanda gives it."""
        weights, grams = self.gram.split(self.weight), self.gram.parts()
        densities = [self.density] * len(grams)
        if self.pattern.name == "layer" and len(grams) > 1:
            densities = [float(mask.sum()) / mask.numel() for mask in self.gram.split(self.highest(self.wanda()))]
        return [
            replace(self, weight=weight, gram=gram, density=density)
            for weight, gram, density in zip(weights, grams, densities, strict=True)
        ]


Masked = tuple[Tensor, Tensor | None]
Method = Callable[[Task], Masked]


@pinned()
def choose(
    name: str,
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    pattern: Pattern | str,
    density: float,
    seed: int = 0,
    damping: float = DAMPING,
) -> Choice:
    """Prune one layer by one of :data:`PEERS`.

    Args:
        name: of the method.
        weight: dense weights.
        gram: of the layer's inputs; a stack of them for a grouped convolution.
        pattern: where counts must hold.
        density: kept share.
        seed: for methods that draw at random; none of these does.
        damping: share of the Gram's mean diagonal that is added to its diagonal, where a method adds any.

    Raises:
        InputError: there is no such method, pattern and density contradict each other, shapes do not fit,
            or the Gram is not positive semidefinite.
    """
    if name not in PEERS:
        raise InputError(f"There is no method {name!r}{did_you_mean(name, PEERS)}; use one of {', '.join(PEERS)}.")
    pattern = Pattern.parse(pattern)
    pattern.check(density, name="weight", d_in=weight.shape[1])
    check_layer(weight, gram, damping)
    notes: Counter[str] = Counter()
    unseen = int(gram.dead.all(-1).sum())
    if unseen:
        notes[UNSEEN] = unseen
    given = roomy(weight.detach().to(gram.matrix.device), gram)
    keep, updated = PEERS[name].method(Task(given, gram, pattern, density, damping, notes))
    keep = keep.to(weight.device)
    if updated is not None:
        updated = fitting(updated, weight.detach(), keep, notes).masked_fill(~keep, 0)
    return Choice(keep, updated, dict(notes))


def _by_group(method: Method) -> Method:
    """A method for one Gram as one for several. Rows without calibration data keep their largest weights.

    Where inputs were always zero, kept weights stay as they are.
    """

    def over_groups(task: Task) -> Masked:
        masks, weights = [], []
        for part in task.groups():
            if part.gram.dead.all():
                keep, updated = part.highest(part.weight.abs()), part.weight
            else:
                keep, own = method(part)
                updated = part.weight if own is None else own.double().where(~part.gram.dead, part.weight.double())
            masks.append(keep)
            weights.append(updated.double().masked_fill(~keep, 0))
        return torch.cat(masks), torch.cat(weights)

    return over_groups


def _mask_only(method: Method) -> Method:
    """The same without the weights."""
    return lambda task: (method(task)[0], None)


def ria(task: Task) -> Masked:
    """Zhang et al., "Plug-and-play: an efficient post-training pruning method for LLMs" (ICLR 2024).

    Scores ``(|w_ij| / sum_j |w_ij| + |w_ij| / sum_i |w_ij|) * ||x_j||^(1/2)``, the norm over tokens; each
    group of a grouped convolution is a matrix of its own.
    """
    own = task.weight.abs().double().reshape(task.gram.groups, -1, task.weight.shape[1])
    # a row or column of zeros scores zero
    tiny = torch.finfo(own.dtype).tiny
    in_row, in_column = (own / own.sum(axis, keepdim=True).clamp(min=tiny) for axis in (2, 1))
    scores = (in_row + in_column).reshape(task.weight.shape)
    if not task.gram.dead.all():
        # H_jj = 2/N ||x_j||^2
        scores = scores * task.gram.for_rows(task.gram.diagonal.pow(0.25), len(scores))
        scores = scores.masked_fill(task.gram.for_rows(task.gram.dead, len(scores)), -1)
    return task.highest(scores), None


def sparsegpt(task: Task) -> Masked:
    """Frantar & Alistarh, "SparseGPT" (arXiv 2301.00774): masks chosen while the columns are swept.

    In each slab of 128 columns, just before they are swept, the weights with the highest
    ``w_ij^2 / U_jj^2`` stay, ``U'U = H^-1``; with ``n:m`` in each group of m columns. A slab of the
    pattern ``layer`` has one threshold; here the slabs' counts add up to the pattern's exactly, and with
    the pattern ``row`` so do those of every row.
    """
    pattern, (d_out, d_in) = task.pattern, task.weight.shape
    step = pattern.of or SLAB
    slab = max(1, SLAB // step) * step
    total = pattern.num_kept((d_out, d_in), task.density)
    total = total // max(1, d_out) if pattern.name == "row" else total

    def select(first: int, weight: Tensor, own: Tensor) -> Tensor:
        saliency = (weight / own).square()
        if pattern.of:
            return keep_highest(saliency, pattern, task.density)
        count = _up_to(total, first + weight.shape[1], d_in) - _up_to(total, first, d_in)
        size = weight.shape[1] if pattern.name == "row" else weight.numel()
        return keep_highest(saliency, pattern, count / size)

    dense = task.alive_weight().double()
    (updated, keep), _ = with_damping(
        task.gram, task.damping, lambda hessian: sweep(dense, inverse_factor(hessian), select, slab, step), task.notes
    )
    return keep, updated


def _up_to(total: int, column: int, d_in: int) -> int:
    """The part of a count that falls on the columns before one, rounded."""
    return (2 * total * column + d_in) // (2 * d_in)


def admm_masks(task: Task) -> Masked:
    """Boza (arXiv 2401.02938): :func:`update.admm` with the mask chosen while iterating.

    In the first 15 of 20 iterations t the mask holds the largest ``|W + U|``, in the scale of a unit
    diagonal, at the sparsity ``s (1 - (1 - t/15)^3)``; after them it stays. ``n:m`` is final from the start.
    """
    keep = torch.ones_like(task.weight, dtype=torch.bool)

    def select(step: int, values: Tensor) -> Tensor:
        nonlocal keep
        if step < 15 and not task.pattern.of:
            sparsity = (1 - task.density) * (1 - (1 - step / 15) ** 3)
            keep = keep_highest(values.abs(), task.pattern, 1 - sparsity)
        elif step <= 15:
            keep = task.highest(values.abs())
        return keep

    (updated, _), _ = with_damping(
        task.gram, task.damping, lambda hessian: admm(task.alive_weight(), hessian, select), task.notes
    )
    return keep, updated


def alps(task: Task) -> Masked:
    """Meng et al., "ALPS" (arXiv 2406.07831): ADMM with a growing penalty, then conjugate gradients.

    With H scaled to a unit diagonal, W0 the dense weights in that scale, ``D`` the projection of W0,
    ``V = 0`` and ``rho = 0.1``, at most 300 times::

        B = (W0 H - V + rho D) (H + rho I)^-1,    D = projection of (B + V/rho),    V = V + rho (B - D)

    Every third iteration rho grows by the change of the support: times 1.3 if at least 0.1 k weights of
    the k kept ones entered or left, 1.2 if 0.005 k, 1.1 if any; it ends when none did. Ten conjugate
    gradient steps on the support follow. (The authors' code moreover lowers the first rho if it changes
    hardly anything; the paper and this do not.) One eigendecomposition of H serves all rho.
    """

    def attempt(hessian: Tensor) -> Masked:
        unit, scale = unit_diagonal(hessian)
        dtype = work_dtype(task.weight)
        dense = task.alive_weight().double() * scale
        keep, updated = _alps(dense, unit, dtype, task.highest)
        return keep, updated.double() / scale

    return with_damping(task.gram, task.damping, attempt, task.notes)[0]


def _alps(
    dense: Float[Tensor, "r d"],
    unit: Float[Tensor, "d d"],
    dtype: torch.dtype,
    highest: Callable[[Tensor], Tensor],
) -> tuple[Bool[Tensor, "r d"], Float[Tensor, "r d"]]:
    """:func:`alps` in the scale of a unit diagonal."""
    eigenvalues, vectors = torch.linalg.eigh(unit)
    target, dense = (dense @ unit).to(dtype), dense.to(dtype)
    keep = highest(dense.abs())
    sparse, dual, rho = dense * keep, torch.zeros_like(dense), 0.1
    for _ in range(100):
        before, inverse = keep, ((vectors / (eigenvalues + rho)) @ vectors.T).to(dtype)
        for _ in range(3):
            moving = (target - dual + rho * sparse) @ inverse
            total = moving + dual / rho
            keep = highest(total.abs())
            sparse = total * keep
            dual = dual + rho * (moving - sparse)
        changed, kept = int((keep != before).sum()), int(keep.sum())
        if not changed:
            break
        rho *= 1.3 if changed >= 0.1 * kept else 1.2 if changed >= 0.005 * kept else 1.1
    return keep, conjugate_gradients(dense, unit.to(dtype), keep, sparse, 10, 0.0)[0]


def dsnot(task: Task) -> Masked:
    """Grow and prune from Wanda's mask, the nearest rule to DSnoT that a Gram allows.

    DSnoT (Zhang et al., arXiv 2310.08915) follows the mean of a row's output error over tokens, from the
    means and variances of the inputs. A Gram has no means. Here the output error itself,
    ``E = 1/2 (w*x)'H(w*x)`` with x = 1 where pruned and ``f = H (w*x)``, takes its place:

    * restored is the pruned p that lowers E most, by ``w_p f_p - 1/2 w_p^2 H_pp``;
    * pruned is the kept k with the lowest Wanda score of those with the right sign, ``w_k f_k < 0``: what it
      adds to the output opposes the error;
    * a row stops when that would not lower E, when no kept weight has the right sign, or after 50 cycles.

    With ``n:m`` both are of one group; with ``layer`` every row keeps Wanda's count.
    """
    weight, hessian = task.weight.double(), task.gram.matrix
    start, scores = task.highest(task.wanda()), task.wanda()
    keep = start.clone()
    labels = task.pattern.labels(weight.shape[1]).to(weight.device)
    own = weight.square() * hessian.diagonal() / 2
    field = weight.masked_fill(keep, 0) @ hessian
    rows = torch.arange(len(weight), device=weight.device)
    for _ in range(50):
        some, w, f, kept = scores[rows], weight[rows], field[rows], keep[rows]
        right = kept & (w * f < 0)
        groups = torch.zeros(len(rows), int(labels[-1]) + 1, dtype=torch.bool, device=weight.device)
        groups = groups.index_add(1, labels, right)
        gain, p = (w * f - own[rows]).masked_fill(kept | ~groups[:, labels], -torch.inf).max(1)
        cheapest, k = some.masked_fill(~(right & (labels == labels[p, None])), torch.inf).min(1)
        at = torch.arange(len(rows), device=weight.device)
        change = own[rows, k] + w[at, k] * (f[at, k] - hessian[k, p] * w[at, p]) - gain
        better = (change < 0) & torch.isfinite(cheapest)
        rows, p, k = rows[better], p[better], k[better]
        if not len(rows):
            break
        keep[rows, p], keep[rows, k] = True, False
        field[rows] += weight[rows, k, None] * hessian[k] - weight[rows, p, None] * hessian[p]
    return keep, None


def sparsefw(task: Task, alpha: float = 0.9, iterations: int = 200) -> Masked:
    """Roux et al., "Don't be greedy, just relax! Pruning LLMs via Frank-Wolfe" (arXiv 2510.13713).

    Minimises ``1/2 ((1-m)*w)'H((1-m)*w)`` over keep masks m relaxed to [0, 1] with the pattern's sums, from
    Wanda's mask: ``m = m + 2/(t+2) (v - m)``, t = 0, 1, ..., where v is the mask of the highest negative
    gradients ``w * (H ((1-m)*w))``. The ``alpha`` share of each budget with the highest Wanda scores stays
    kept throughout. In the end the highest m stay.
    """
    scores = task.wanda()
    dtype = work_dtype(task.weight)
    weight, hessian = task.weight.to(dtype), task.gram.matrix.to(dtype)
    fixed = keep_highest(scores, *_share_of_budget(task, alpha))

    def highest(values: Tensor) -> Tensor:
        return task.highest(values.masked_fill(task.gram.dead, -torch.inf).masked_fill(fixed, torch.inf))

    relaxed = task.highest(scores).to(dtype)
    for t in range(iterations):
        downhill = weight * (((1 - relaxed) * weight) @ hessian)
        relaxed = relaxed.lerp(highest(downhill).to(dtype), 2 / (t + 2))
    return highest(relaxed), None


def _share_of_budget(task: Task, share: float) -> tuple[Pattern, float]:
    """Pattern and density that keep a share of every budget, rounded down."""
    pattern, (d_out, d_in) = task.pattern, task.weight.shape
    if pattern.of:
        keep = int(share * pattern.keep)
        return Pattern(f"{keep}:{pattern.of}", keep, pattern.of), keep / pattern.of
    size = d_in if pattern.name == "row" else d_out * d_in
    return pattern, int(share * round(task.density * size)) / size


def sparseswaps(task: Task) -> Masked:
    """Zimmer et al., "SparseSwaps: tractable LLM pruning mask refinement at scale" (2025).

    From Wanda's mask, each row exchanges the kept and the pruned weight that lower its output error
    ``1/2 (w*x)'H(w*x)`` most, until none do; with ``layer`` every row keeps Wanda's count.
    """
    keep = task.highest(task.wanda())
    within = Pattern("row") if task.pattern.name == "layer" else task.pattern
    result = descend(task.weight, task.gram, keep, within, Descent(Greedy(), max_sweeps=0))
    task.notes.update(result.kept_start)
    return result.keep, None


class Peer(NamedTuple):
    """A published method: its name in tables, what runs it, and whether it updates weights."""

    label: str
    method: Method
    updates: bool


#: Published methods by their names.
PEERS: Mapping[str, Peer] = MappingProxyType(
    {
        "ria": Peer("RIA", ria, False),
        "sparsegpt": Peer("SparseGPT", _by_group(sparsegpt), True),
        "admm": Peer("ADMM", _by_group(admm_masks), True),
        "alps": Peer("ALPS", _by_group(alps), True),
        "dsnot": Peer("DSnoT, from the Gram", _mask_only(_by_group(dsnot)), False),
        "sparsefw": Peer("SparseFW", _mask_only(_by_group(sparsefw)), False),
        "sparseswaps": Peer("SparseSwaps", _mask_only(_by_group(sparseswaps)), False),
    }
)
