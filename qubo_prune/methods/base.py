"""What a method is given of a layer, what it gives back, and the parts that several share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.hessian.gram import Gram
from qubo_prune.masks.keep import Pattern, keep_highest
from qubo_prune.methods.scores import score


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


def by_group(method: Method) -> Method:
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


def mask_only(method: Method) -> Method:
    """The same without the weights."""
    return lambda task: (method(task)[0], None)


def share_of_budget(task: Task, share: float) -> tuple[Pattern, float]:
    """Pattern and density that keep a share of every budget, rounded down."""
    pattern, (d_out, d_in) = task.pattern, task.weight.shape
    if pattern.of:
        keep = int(share * pattern.keep)
        return Pattern(f"{keep}:{pattern.of}", keep, pattern.of), keep / pattern.of
    size = d_in if pattern.name == "row" else d_out * d_in
    return pattern, int(share * round(task.density * size)) / size
