"""Densities of a run's layers, by what its plan goes by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qubo_prune.blocks.loss.descent import LossDescent
from qubo_prune.choices import SEARCHED
from qubo_prune.clock import Deadline
from qubo_prune.data.calibration import Calibration
from qubo_prune.data.losses import Loss, Objective
from qubo_prune.data.samples import Samples, TensorSamples
from qubo_prune.errors import InputError
from qubo_prune.hessian.gradients import moments
from qubo_prune.hessian.gram import Gram
from qubo_prune.hessian.output_factor import OutputFactor
from qubo_prune.hessian.reach import NO_GRADIENT, NO_INPUT, nothing_reached
from qubo_prune.hessian.stream import Seconds, stream
from qubo_prune.methods.allocation import by_loss_change, counts_of, outlier_share, owl, predicted_rise
from qubo_prune.methods.budget_search import BudgetTrace, progression, search_by_evolution, search_by_qubo
from qubo_prune.methods.part_levels import PartLevels, parts_of
from qubo_prune.models.layers import Layer
from qubo_prune.models.storage import WeightStorage
from qubo_prune.run.plan import Plan

#: Samples that the allocation by the loss takes its gradients from.
_FISHER_SAMPLES = 64


@dataclass(frozen=True)
class Allocated:
    """Densities of layers of which something is known, and what a search for them did."""

    densities: dict[str, float]
    trace: BudgetTrace | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return {"densities": self.densities, "trace": None if self.trace is None else self.trace.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Allocated:
        """What :meth:`to_dict` gave."""
        trace = data["trace"]
        return cls(dict(data["densities"]), None if trace is None else BudgetTrace.from_dict(trace))


@dataclass(frozen=True, eq=False)
class Allocator:
    """Gives the layers of a run densities of their own; the whole keeps the plan's.

    Attributes:
        plan: of the run.
        layers: all of it.
        factors: of those to which a gradient came back, if the plan needs them.
        shelf: where the weights are.
        seconds: times are added to its fields.
        order: all samples in a random order.
        seed: of random draws.
    """

    plan: Plan
    layers: Sequence[Layer]
    factors: Mapping[str, OutputFactor]
    shelf: WeightStorage
    seconds: Seconds
    order: Callable[[Samples], Tensor]
    seed: int

    def allocated(self, model: nn.Module, data: Calibration, loss: Loss | None, deadline: Deadline) -> Allocated:
        """Densities of the layers of which something is known; the others take no part in the budget."""
        plan, trace = self.plan, None
        if plan.allocation == "owl":
            shares = self._by_outliers(model, data)
        elif plan.allocation == "progression":
            blocks = {name: part.block for part in parts_of(model, self.layers) for name in part.layers}
            shares = progression(blocks, plan.density)
        elif plan.allocation == "fisher":
            shares = self._by_moments(model, data, loss)
        else:
            scores = self._scores()
            shares = by_loss_change(scores, plan.density)
            if plan.allocation in SEARCHED:
                shares, trace = self._searched(model, data, loss, scores, shares, deadline)
        shapes = {layer.name: layer.shape for layer in self.layers if layer.name in shares}
        kept = counts_of(shares, shapes, plan.density, plan.pattern)
        return Allocated({name: count / math.prod(shapes[name]) for name, count in kept.items()}, trace)

    def _scores(self) -> dict[str, Tensor]:
        """By how much the loss is taken to rise with each weight, from two factors a layer."""
        return {
            layer.name: self.factors[layer.name].rises(layer.matrix())
            for layer in self.layers
            if layer.name in self.factors
        }

    def _by_outliers(self, model: nn.Module, data: Calibration) -> dict[str, float]:
        outliers: dict[str, float] = {}

        def visit(layer: Layer, gram: Gram) -> None:
            if gram.tokens:
                outliers[layer.name] = outlier_share(layer.matrix().to(gram.matrix.device), gram)

        stream(
            model,
            self.layers,
            data.inputs,
            visit,
            self.seconds,
            shelf=self.shelf,
            gram_devices=self.plan.gram_devices,
        )
        if not outliers:
            raise nothing_reached(self.layers, NO_INPUT, "inputs that go through them")
        sizes = {layer.name: layer.parameter.numel() for layer in self.layers if layer.name in outliers}
        return owl(outliers, self.plan.density, sizes=sizes)

    def _by_moments(self, model: nn.Module, data: Calibration, loss: Loss | None) -> dict[str, float]:
        assert loss is not None
        assert data.samples is not None
        objective = Objective(model, loss, LossDescent.preset("language").micro_batch)
        found = moments(objective, data.samples, self.order(data.samples)[:_FISHER_SAMPLES], self.layers)
        rises = {
            layer.name: predicted_rise(layer.matrix(), found[layer.name].mean, found[layer.name].square)
            for layer in self.layers
            if found[layer.name].reached
        }
        if not rises:
            raise nothing_reached(self.layers, NO_GRADIENT, "the allocation 'owl' or 'uniform'")
        return by_loss_change(rises, self.plan.density)

    def _searched(
        self,
        model: nn.Module,
        data: Calibration,
        loss: Loss | None,
        scores: Mapping[str, Tensor],
        shares: Mapping[str, float],
        deadline: Deadline,
    ) -> tuple[dict[str, float], BudgetTrace]:
        """Densities that a search on the masked model finds from those."""
        assert loss is not None
        how = self.plan.budget_search
        known = [layer for layer in self.layers if layer.name in scores]
        parts = parts_of(model, known, singly=how.parts == "matrices")
        samples = self._short(data, how.length)
        if how.windows + how.judges > len(samples):
            raise InputError(
                f"The calibration gives {len(samples)} windows of at most {how.length} tokens, and the allocation "
                f"{self.plan.allocation!r} takes {how.windows} and {how.judges} more to judge by; give more samples, "
                "or fewer windows in allocation_settings."
            )
        order = self.order(samples).tolist()
        emitted, judges = order[: how.windows], order[how.windows : how.windows + how.judges]
        levels = PartLevels(Objective(model, loss), known, scores, parts, samples, emitted, judges)
        sizes = {layer.name: layer.parameter.numel() for layer in known}
        kept = [round(sum(shares[name] * sizes[name] for name in part.layers)) for part in parts]
        search = search_by_qubo if self.plan.allocation == "qubo" else search_by_evolution
        trace = search(levels, kept, self.plan.density, how, self.seed, deadline)
        counts = levels.layer_counts([trace.kept[part.name] for part in parts])
        return {name: count / sizes[name] for name, count in counts.items()}, trace

    def _short(self, data: Calibration, length: int) -> Samples:
        """The calibration's windows cut to that many tokens; samples of other data as they are."""
        samples = self.plan.samples_of(data)
        if not isinstance(self.plan.request.calibration, str):
            return samples
        tokens = torch.cat(data.inputs).cpu()
        pieces = [each for each in torch.split(tokens, length, 1) if each.shape[1] == length]
        return TensorSamples(torch.cat(pieces or [tokens]))
