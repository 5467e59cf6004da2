"""How many weights each layer keeps: desired densities by layer, and the exact counts that follow from them.

A way of allocating (:func:`owl`, :func:`by_loss_change`, :func:`densities_by_name`) says which density
it would give each layer; :func:`counts_of` scales those to the budget of the whole network. The density
``count / weights`` of a layer, handed to :class:`~qubo_prune.masks.keep.Pattern`, gives exactly its count back.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.choices import ALLOCATIONS
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.hessian.gram import Gram
from qubo_prune.masks.keep import Pattern, keep_highest, kth_lowest
from qubo_prune.methods.scores import score
from qubo_prune.models.names import no_match
from qubo_prune.precision import pinned

_WHOLE = Pattern("layer")


def check_allocation(allocation: str, pattern: Pattern) -> None:
    """Raise :class:`InputError` if there is no such allocation or the pattern leaves it no choice."""
    if allocation not in ALLOCATIONS:
        raise InputError(
            f"There is no allocation {allocation!r}{did_you_mean(allocation, ALLOCATIONS)}; use one of "
            f"{', '.join(ALLOCATIONS)}."
        )
    if pattern.of and allocation != "uniform":
        raise _only_uniform(pattern)


def _only_uniform(pattern: Pattern) -> InputError:
    return InputError(
        f"The pattern {pattern.name} keeps {pattern.keep} of every {pattern.of} weights, so that layers cannot differ "
        "in density; give the allocation 'uniform' and no densities by layer, or the pattern 'row' or 'layer'."
    )


# --- from desired densities to counts ---------------------------------------------------------------


def counts_of(
    shares: Mapping[str, float], shapes: Mapping[str, tuple[int, int]], density: float, pattern: Pattern
) -> dict[str, int]:
    """Kept weights of every layer, for a whole network of the given density.

    A layer of share ``s`` and W weights is to keep ``clip(c s W)``, between one weight (with ``row``, one
    in every row) and W, with the one ``c`` at which the layers together keep the total
    ``T = round(density * sum W)``. Whole numbers come from largest remainders: each layer gets the whole
    part, and what is left goes, one weight (with ``row``, one in every row) to a layer, to those with the
    largest fraction first, in rounds, passing over layers that are full or have more rows than are left.
    Of equal fractions the first layer's comes first.

    With ``layer`` the total is exactly T. With ``row`` it is T or less, and what is missing is less than
    the number of rows of any layer that is not full; what a layer of very many rows cannot take goes to
    the others, above their shares. Layers of one shape are ordered as their shares.

    Args:
        shares: desired densities, above 0; only their ratios count.
        shapes: ``(d_out, d_in)`` of the layers, by the same names.
        density: kept share of all weights together.
        pattern: ``n:m`` leaves nothing to choose; the shares must be equal then.

    Raises:
        InputError: names differ, a share is not above 0, the density gives less than one weight to each
            layer (or row), or the pattern is ``n:m`` and the shares are not equal.
    """
    pattern.check(density)
    _check_shares(shares, shapes)
    if pattern.of:
        if len(set(shares.values())) > 1:
            raise _only_uniform(pattern)
        for name, (_, d_in) in shapes.items():
            pattern.check(density, name, d_in)
        return {name: pattern.num_kept(shape, density) for name, shape in shapes.items()}
    by_row = pattern.name == "row"
    budgets = [
        _Budget(d_out, d_in, Fraction(shares[name])) if by_row else _Budget(1, d_out * d_in, Fraction(shares[name]))
        for name, (d_out, d_in) in shapes.items()
    ]
    weights = sum(budget.step * budget.most for budget in budgets)
    total, least = round(density * weights), sum(budget.step for budget in budgets)
    if total < least:
        raise InputError(
            f"The density {density:g} keeps {total} of {weights} weights, less than one in each of {least} "
            f"{'rows' if by_row else 'layers'}; give at least {math.ceil(1e6 * least / weights) / 1e6:g}, or exclude "
            f"layers{', or use the pattern layer' if by_row else ''}."
        )
    kept = _rounded(budgets, _scale(budgets, total), total)
    return {name: budget.step * units for name, budget, units in zip(shapes, budgets, kept, strict=True)}


def _check_shares(shares: Mapping[str, float], shapes: Mapping[str, tuple[int, int]]) -> None:
    apart = sorted(shares.keys() ^ shapes.keys())
    if apart or not shapes:
        odd = f", and {apart[0]!r} is in one list only" if apart else ""
        raise InputError(
            f"There are {len(shares)} shares for {len(shapes)} layers{odd}; give one share for every layer, and at "
            "least one layer."
        )
    for name, share in shares.items():
        if not 0 < share < math.inf:
            raise InputError(f"The share of layer {name!r} is {share}; it must be a finite number above 0.")


@dataclass(frozen=True)
class _Budget:
    """A layer that keeps ``step`` times 1 to ``most`` weights."""

    step: int
    most: int
    share: Fraction

    def at(self, scale: Fraction) -> Fraction:
        """How many steps it would keep."""
        return min(max(scale * self.share * self.most, Fraction(1)), Fraction(self.most))


def _scale(budgets: Sequence[_Budget], total: int) -> Fraction:
    """The c at which the layers keep the total, exactly: the sum grows with c, in straight pieces."""

    def kept(scale: Fraction) -> Fraction:
        return sum((budget.step * budget.at(scale) for budget in budgets), Fraction(0))

    # where a layer leaves its floor, and where it meets its ceiling
    bends = sorted({1 / (b.share * b.most) for b in budgets} | {1 / b.share for b in budgets})
    low, high = 0, len(bends)  # the last bend with no more than the total, by halving
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kept(bends[middle]) <= total else (low, middle)
    start = bends[low]
    moving = [b for b in budgets if 1 <= start * b.share * b.most < b.most]
    slope = sum((b.step * b.share * b.most for b in moving), Fraction(0))
    return start + (total - kept(start)) / slope if slope else start


def _rounded(budgets: Sequence[_Budget], scale: Fraction, total: int) -> list[int]:
    """Whole steps by largest remainders, as :func:`counts_of` says."""
    exact = [budget.at(scale) for budget in budgets]
    kept = [math.floor(steps) for steps in exact]
    left = total - sum(budget.step * steps for budget, steps in zip(budgets, kept, strict=True))
    order = sorted(range(len(budgets)), key=lambda i: kept[i] - exact[i])
    before = left + 1
    while left < before:
        before = left
        for i in order:
            if budgets[i].step <= left and kept[i] < budgets[i].most:
                kept[i] += 1
                left -= budgets[i].step
    return kept


# --- desired densities ------------------------------------------------------------------------------


@pinned()
def outlier_share(weight: Float[Tensor, "d_out d_in"], gram: Gram, multiple: float = 5.0) -> float:
    """``D``: the share of a layer's weights with ``|W_ij| ||X_j|| > M mean(|W| ||X||)``, M the multiple.

    Wanda's scores, from the Gram's diagonal; plain ``|W_ij|`` without calibration data. The share is
    between 0 and 1 (Yin et al., arXiv 2310.05175, section 3, give it in percent).
    """
    scores = score("wanda", weight, gram, 0).double().clamp(min=0)
    return float((scores > multiple * scores.mean()).double().mean())


def owl(
    outliers: Mapping[str, float], density: float, spread: float = 0.08, sizes: Mapping[str, int] | None = None
) -> dict[str, float]:
    """Desired densities by outliers: layers that hold more of them keep more (OWL, arXiv 2310.05175).

    ``density + f (D - mean D)`` with ``f = s / max |D - mean D|``, so that the layer farthest from the
    mean is ``s = min(spread, 1 - density)`` away; the density itself if no layer differs. The authors'
    code has ``f = 2 spread / (max D - min D)`` instead, by which one side may pass ``spread``, and one D
    for all layers of a decoder block: give those the same D for that.

    Args:
        outliers: D of each layer, see :func:`outlier_share`.
        density: mean of the result.
        spread: how far a layer may be from it, at least 0 and below the density.
        sizes: weights of each layer, for a mean over weights; :func:`counts_of` then has nothing to scale
            and the counts too stay within the spread. All layers count the same if not given.

    Raises:
        InputError: a number cannot be used.
    """
    _WHOLE.check(density)
    if not 0 <= spread < density:
        raise InputError(
            f"The spread is {spread} and the density {density:g}; give at least 0 and less than the density, so that "
            "every layer keeps something."
        )
    for name, found in outliers.items():
        if not math.isfinite(found):
            raise InputError(f"The outliers of layer {name!r} are {found}; a finite number is needed.")
    weights = {name: 1 if sizes is None else sizes[name] for name in outliers}
    mean = math.fsum(weights[name] * found for name, found in outliers.items()) / sum(weights.values())
    farthest = max(abs(found - mean) for found in outliers.values())
    # the mean of equal numbers may differ from them by rounding
    if farthest <= 1e-12 * abs(mean):
        return dict.fromkeys(outliers, density)
    reach = min(spread, 1 - density)
    return {name: density + reach * ((found - mean) / farthest) for name, found in outliers.items()}


@pinned()
def predicted_rise(
    weight: Float[Tensor, "d_out d_in"], mean: Float[Tensor, "d_out d_in"], square: Float[Tensor, "d_out d_in"]
) -> Float[Tensor, "d_out d_in"]:
    """``1/2 w^2 F_ii + |w g|``: by how much the loss is taken to rise when a weight is removed alone.

    ``F_ii`` is the mean square and ``g`` the mean of the per-sample gradients
    (:class:`~qubo_prune.hessian.gradients.Moments`). The slope counts by its size: its sign, over one batch, is
    mostly chance.
    """
    return weight**2 * square / 2 + (weight * mean).abs()


def by_loss_change(scores: Mapping[str, Tensor], density: float, spread: float = 0.2) -> dict[str, float]:
    """Desired densities by one threshold on the predicted rise of the loss, over all layers.

    The highest ``round(density * weights)`` of all scores stay, except that every layer keeps at least
    ``floor((density - spread) W)`` of its W weights (and at least one) and at most
    ``ceil((density + spread) W)``, its highest ones in either case. Layers share scores equal to the
    threshold in proportion to how many they hold. A density is the share that stays in a layer; they
    add up to the total, so :func:`counts_of` finds just these counts with the pattern ``layer``.

    Args:
        scores: rise of the loss by weight, any shape, such as :func:`predicted_rise`.
        density: kept share of all weights together.
        spread: how far a layer may be from it, at least 0.

    Raises:
        InputError: a score is not finite, or the total is less than the layers' floors.
    """
    _WHOLE.check(density)
    if not spread >= 0:
        raise InputError(f"The spread is {spread}; give how far a layer's density may be from the mean, from 0 on.")
    for name, values in scores.items():
        if not torch.isfinite(values).all():
            raise InputError(f"The scores of layer {name!r} hold NaN or infinite values; check its gradients.")
    sizes = {name: values.numel() for name, values in scores.items()}
    least = {name: max(1, math.floor((density - spread) * size)) for name, size in sizes.items()}
    most = {name: min(size, math.ceil((density + spread) * size)) for name, size in sizes.items()}
    total, floor = round(density * sum(sizes.values())), sum(least.values())
    if total < floor:
        raise InputError(
            f"The density {density:g} keeps {total} weights, and {floor} are the least that {len(sizes)} layers keep "
            f"with the spread {spread:g} and one weight in each; give a larger spread or density, or exclude layers."
        )
    between = {  # floor and ceiling, highest first
        name: values.flatten().sort(descending=True).values[least[name] : most[name]].clone()
        for name, values in scores.items()
    }
    above, equal = _threshold(between, total - floor)
    tied = sum(equal.values())
    part = (total - floor - sum(above.values())) / tied if tied else 0.0
    return {name: (least[name] + above[name] + part * equal[name]) / size for name, size in sizes.items()}


def _threshold(values: Mapping[str, Tensor], count: int) -> tuple[dict[str, int], dict[str, int]]:
    """How many values of each layer are above and how many equal to the highest of that count over all."""
    if count == 0:
        return dict.fromkeys(values, 0), dict.fromkeys(values, 0)
    device = next(iter(values.values())).device
    together = torch.cat([part.to(device) for part in values.values()])
    last = kth_lowest(together[None], len(together) - count + 1)[0, 0]
    above = {name: int((part > last.to(part.device)).sum()) for name, part in values.items()}
    return above, {name: int((part == last.to(part.device)).sum()) for name, part in values.items()}


def densities_by_name(patterns: Mapping[str, float], names: Sequence[str], default: float) -> dict[str, float]:
    """Densities from shell-style patterns of layer names; where several match, the last one counts.

    >>> densities_by_name({"*.mlp.*": 0.4, "*.down": 0.6}, ["0.attn.q", "0.mlp.up", "0.mlp.down"], default=0.5)
    {'0.attn.q': 0.5, '0.mlp.up': 0.4, '0.mlp.down': 0.6}

    Raises:
        InputError: a pattern matches no layer, or a density is not above 0 and at most 1.
    """
    _WHOLE.check(default)
    densities = dict.fromkeys(names, default)
    for pattern, density in patterns.items():
        if not 0 < density <= 1:
            raise InputError(
                f"The density of the layers {pattern!r} is {density}; it is the kept share and must be above "
                "0 and at most 1."
            )
        matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matched:
            raise no_match(pattern, names)
        densities.update(dict.fromkeys(matched, density))
    return densities


# --- weights that must stay -------------------------------------------------------------------------


def check_protect(share: float, density: float) -> None:
    """Raise :class:`InputError` if a layer of that density cannot protect that share of its weights."""
    if not 0 <= share < 1:
        raise InputError(
            f"The protected share is {share}; give at least 0 and less than 1, for example 0.1 for the tenth of a "
            "layer's weights with the highest Wanda scores."
        )
    if share > density:
        raise InputError(
            f"The protected share {share:g} is more than the density {density:g}, the share that stays; protect less, "
            "or give a higher density."
        )


def protected(
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    share: float,
    pattern: Pattern = _WHOLE,
    density: float = 1.0,
) -> Bool[Tensor, "d_out d_in"]:
    """The ``round(share * d_out * d_in)`` weights of a layer with the highest Wanda scores: those that must stay.

    With a pattern and the layer's density, only weights that Wanda keeps there are taken, so that no
    budget (a row, or m weights of ``n:m``) has more protected weights than it may keep; where they run
    out, which takes a share near the density, fewer are protected.
    """
    scores = score("wanda", weight, gram, 0)
    staying = keep_highest(scores, pattern, density)
    return staying & keep_highest(scores.masked_fill(~staying, -torch.inf), _WHOLE, share)
