"""iCBS: blocks of the loss by block coordinate descent over the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qubo_prune.blocks.loss.descent import LossDescent, check_devices, descend_loss
from qubo_prune.data.losses import Loss, NextToken
from qubo_prune.errors import InputError
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.base import Decision, ModelDecision, ModelMethod, ModelTask, Sampling, Traits
from qubo_prune.models.layers import Layer
from qubo_prune.solver.dispatch import check_size, parse_workers
from qubo_prune.solver.registry import make_solver

#: Weights from which on the descent on the loss takes the settings for large networks.
LARGE = 2_000_000


@dataclass(frozen=True)
class LossBlocks(ModelMethod):
    """iCBS (Rosenberg, Brubaker et al., arXiv 2411.17796), with what it takes to trust its steps.

    Attributes:
        settings: fields of :class:`~qubo_prune.blocks.loss.descent.LossDescent`, where they differ from those of a
            preset for the kind of model; ``preset`` chooses it: ``measured`` or ``paper``.
        descent: all of them, once the kind of model is known; see :meth:`for_model`.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    descent: LossDescent = field(default_factory=LossDescent, repr=False)

    traits = Traits("iCBS", reads="samples", starts=False, source="Rosenberg et al., arXiv 2411.17796")

    @classmethod
    def settings_of_words(cls, words: Mapping[str, Any]) -> dict[str, Any]:
        """The words as fields of the descent on the loss, where they were given."""
        if isinstance(parse_workers(words.get("workers")), str):
            raise InputError(
                f"workers is {words['workers']!r}, and blocks of the loss are decided one after another in this "
                "process; leave workers out."
            )
        if words.get("block_size") == "row":
            raise InputError(
                "block_size is 'row', and blocks of the loss hold weights of many rows; give a number, such as 1024, "
                "or the method 'gram'."
            )
        names = ("solver", "solver_settings", "block_size", "block_time", "polish")
        changes = {name: words[name] for name in names if name in words}
        if "solver" in changes:  # a preset's settings are for its own solver
            changes.setdefault("solver_settings", {})
        own = dict(words.get("loss_settings") or {})
        return {"settings": changes | own}

    @property
    def moves_between_layers(self) -> bool:
        """With the budget ``global``."""
        return bool(self.settings.get("budget", self.descent.budget) == "global")

    def for_model(self, loss: Loss, seed: int, layers: Sequence[Layer] = ()) -> LossBlocks:
        """With the settings for a loss and the number of weights, changed by what was given."""
        large = sum(layer.parameter.numel() for layer in layers) > LARGE
        kind = "language" if isinstance(loss, NextToken) else "large" if large else "classifier"
        descent = LossDescent.preset(kind, **{"seed": seed, **self.settings})
        made = make_solver(descent.solver, **descent.solver_settings)
        most = made.capabilities.max_variables
        if most is not None and most < descent.block_size and "block_size" not in self.settings:
            descent = replace(descent, block_size=most)
        name = descent.solver if isinstance(descent.solver, str) else type(made).__name__
        check_size(made, name, descent.block_size)
        return replace(self, descent=descent)

    def check(self, pattern: Pattern, density: float) -> None:
        """Raise :class:`InputError` if the solver takes one count and the blocks will hold several groups."""
        made = make_solver(self.descent.solver, **self.descent.solver_settings)
        if made.capabilities.cardinality and not made.capabilities.groups and pattern.name != "layer":
            raise InputError(
                f"The solver {type(made).__name__!r} takes one count, and blocks of the loss hold several groups with "
                f"the pattern {pattern.name}; use the pattern 'layer', or another solver such as 'greedy'."
            )

    @property
    def sampling(self) -> Sampling:
        """What a step draws."""
        return Sampling(self.descent.samples, self.descent.held_out, self.descent.micro_batch)

    def check_layers(self, layers: Sequence[Layer]) -> None:
        """Raise :class:`InputError` if blocks would hold weights of several devices."""
        check_devices(layers, self.descent)

    def decide_all(self, task: ModelTask, so_far: Mapping[str, Decision]) -> ModelDecision:
        """See :func:`qubo_prune.blocks.loss.descent.descend_loss`."""
        trace = descend_loss(
            task.objective,
            task.layers,
            {name: decision.keep for name, decision in so_far.items()},
            task.train,
            task.held_out,
            self.descent,
            task.pattern,
            values=task.dense,
            deadline=task.deadline,
            progress=task.progress,
            on_step=task.on_step,
            keeper=task.keeper,
        )
        return ModelDecision({name: Decision(keep=keep) for name, keep in trace.keep.items()}, trace)

    def foreseen(self, limit: str) -> str:
        """Blocks at most, and their size."""
        most = f"{self.descent.max_blocks} of them" + (f" or {limit} of the run" if limit else "")
        return f"Blocks of the loss, {self.descent.block_size} weights each, come after that, {most} at most"

    def to_dict(self) -> dict[str, Any]:
        """All settings of the descent."""
        return self.descent.to_dict()
