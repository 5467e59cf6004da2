"""What a run is asked for, checked: its chain of methods, budgets, damping, correction and loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from qubo_prune.choices import BY_GRADIENTS, SEARCHED
from qubo_prune.data.calibration import Calibration, choose_loss
from qubo_prune.data.losses import Loss, make_loss
from qubo_prune.data.samples import Samples, TensorSamples, split
from qubo_prune.errors import InputError
from qubo_prune.files.digests import identity
from qubo_prune.hessian.compensated import DAMPING
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.allocation import check_allocation, check_protect
from qubo_prune.methods.base import Method, ModelMethod, SampledStart, Sampling
from qubo_prune.methods.budget_search import BudgetSearch
from qubo_prune.methods.chain import Chain, chain_of
from qubo_prune.methods.correction import CORRECTION_DAMPING
from qubo_prune.methods.given import GivenMasks
from qubo_prune.methods.verify import blamed
from qubo_prune.methods.wanda import Wanda
from qubo_prune.models.load import usable_device
from qubo_prune.problem.bounds import check_kind
from qubo_prune.request import PruneRequest
from qubo_prune.seeds import checked_seed
from qubo_prune.settings import checked_settings
from qubo_prune.solver.interface import Solver, derive_seed
from qubo_prune.solver.registry import make_solver

#: Tokens that gradients at the layers' outputs come from, at most.
_TOKENS = 16_384


@dataclass(frozen=True)
class Plan:
    """A run that can be done, as far as that is known without the model.

    Attributes:
        request: what was asked for.
        chain: the methods, one after another.
        pattern: where the budget is balanced.
        damping: share of a Gram's mean diagonal that is added to its diagonal.
        correction: how far layers make up for those pruned before.
        gram_devices: devices that multiply the layers' inputs.
        loss: that a method for the whole model lowers; ``None`` without one.
    """

    request: PruneRequest
    chain: Chain
    pattern: Pattern
    damping: float
    correction: float
    gram_devices: tuple[str, ...] = ()
    loss: Loss | None = None

    @classmethod
    def of(cls, request: PruneRequest) -> Plan:
        """The plan for a request; nothing is loaded.

        Raises:
            InputError: something cannot be done, or does not go with something else.
        """
        checked_seed(request.run.seed)
        pattern, density = Pattern.parse(request.budget.pattern), request.density
        pattern.check(density)
        chain = chain_of(request.how, request.run.workers)
        _check_budget(request, chain, pattern)
        _check_weighted(request, chain, pattern)
        correction = _correction(request, chain)
        damping = request.how.damping
        if damping is None:
            damping = CORRECTION_DAMPING if correction else DAMPING
        if not (math.isfinite(damping) and damping >= 0):
            raise InputError(f"damping is {damping}; a share of the Gram's mean diagonal, from 0 on, is needed.")
        loss = None
        if chain.whole is not None:
            loss = choose_loss(request.data.loss, request.calibration)
            chain = for_model(chain, loss, request.run.seed)
        chain.check(pattern, density)
        devices = tuple(str(usable_device(device)) for device in request.place.gram_devices)
        return cls(request, chain, pattern, damping, correction, devices, loss)

    @property
    def density(self) -> float:
        """The kept share of the whole."""
        return self.request.density

    @property
    def densities(self) -> Mapping[str, float]:
        """Kept shares by patterns of layer names."""
        return self.request.budget.densities or {}

    @property
    def allocation(self) -> str:
        """How layers get densities of their own."""
        return self.request.budget.allocation

    @property
    def certify(self) -> str | None:
        """The bound that is to be proven."""
        return self.request.budget.certify

    @property
    def max_time(self) -> float | None:
        """Seconds of the whole run."""
        limit = self.request.run.max_time
        return None if limit is None else float(limit)

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.request.run.seed

    @property
    def updates(self) -> bool:
        """True if kept weights change."""
        return self.chain.updates

    @property
    def weighs_outputs(self) -> bool:
        """True if the outputs of a layer count by what their errors cost the loss."""
        return self.request.how.hessian == "kron"

    @property
    def needs_gradients(self) -> bool:
        """True if gradients of a loss are taken before any layer is pruned, for budgets or for outputs."""
        return self.allocation in BY_GRADIENTS or self.weighs_outputs

    @property
    def needs_output_factors(self) -> bool:
        """True if masks or budgets go by what errors at the outputs cost the loss."""
        return self.weighs_outputs or self.allocation in ("kron", *SEARCHED)

    @property
    def budget_search(self) -> BudgetSearch:
        """How budgets are searched, if they are."""
        return _search_of(self.request.budget.allocation_settings)

    def samples_of(self, data: Calibration) -> Samples:
        """What the gradients at the outputs come from, evenly spread.

        Windows of a text up to 16,384 tokens, since a mean over these is known well and a backward pass is dear; or at
        most so many samples as Grams.
        """
        assert data.samples is not None
        if isinstance(self.request.calibration, str):
            windows = torch.cat(data.inputs).cpu()
            most = max(1, _TOKENS // windows.shape[1])
            return TensorSamples(windows[torch.linspace(0, len(windows) - 1, min(most, len(windows))).long()])
        most = min(len(data.samples), int(self.request.data.gram_samples))
        return split(data.samples, [most], derive_seed(0, len(data.samples)))[0]

    @property
    def needs_inputs(self) -> bool:
        """True unless the layers' inputs decide nothing."""
        return self.chain.needs_inputs

    @property
    def solver_name(self) -> str:
        """Of the solver that decides blocks of rows; empty if none does."""
        return "" if self.chain.blocks is None else self.chain.blocks.solver_name

    def reading(self) -> Loss | None:
        """What tells labels from inputs in a batch; ``None`` if batches are model inputs."""
        if self.loss is not None:
            return self.loss
        given = self.request.data.loss
        if self.needs_gradients:
            return choose_loss(given, self.request.calibration)
        return None if given is None else make_loss(given)

    def alone(self, density: float) -> Plan:
        """The plan for some rows of one layer, from a start that needs nothing but their Gram."""
        request = self.request.changed({"max_time": None, "densities": None, "allocation": "uniform"})
        chain = self.chain
        if isinstance(chain.start, (GivenMasks, SampledStart)):
            chain = chain.with_steps((Wanda(), *chain.steps[1:]))
        return replace(self, request=replace(request, density=density), chain=chain)

    def settings(self) -> dict[str, Any]:
        """What was asked for and what follows from it, for the report."""
        chain, blocks, budget = self.chain, self.chain.blocks, self.request.budget
        return {
            "density": self.density,
            "pattern": self.pattern.name,
            "method": chain.name,
            "steps": [str(step) for step in chain.steps],
            "update": chain.update_name,
            "damping": self.damping,
            "correction": self.correction,
            "allocation": self.allocation,
            "densities": dict(self.densities),
            "protect": budget.protect,
            "certify": self.certify,
            "loss": type(self.loss).__name__ if self.loss else None,
            "loss_settings": _plain(chain.whole.to_dict()) if chain.whole else None,
            "solver": self.solver_name,
            "warm_start": chain.warm_start,
            "block_size": blocks.size if blocks else None,
            "solver_settings": str(blocks.made) if blocks else None,
            "block_time": blocks.block_time if blocks else None,
            "polish": blocks.polish if blocks else None,
            "row_swaps": blocks.row_swaps if blocks else None,
            "max_sweeps": blocks.max_sweeps if blocks else None,
            "max_time": self.max_time,
            "seed": self.seed,
            "asked": {name: _plain(value) for name, value in self.request.compared().items()},
        }

    def compared(self) -> dict[str, Any]:
        """What a run that goes on must have been begun with."""
        start = self.request.how.warm_start
        given = None if start is None or isinstance(start, str) else start
        resolved = {name: value for name, value in self.settings().items() if name not in ("asked", "steps")}
        steps = [_compared_step(step) for step in self.chain.steps]
        loss = None if self.loss is None else identity(self.loss, (Solver,))
        own = {"given_masks": given, "hessian": "kron" if self.weighs_outputs else None, "steps": steps, "loss": loss}
        return self.request.compared() | resolved | own


def _compared_step(step: Method) -> Any:
    """A step as a run that goes on is compared by it; processes do not count, and the caller's masks stand apart."""
    found: Any = identity(step, (Solver,))
    return {name: value for name, value in found.items() if name not in ("workers", "made", "handling")}


def _search_of(settings: Mapping[str, Any] | None) -> BudgetSearch:
    """The settings of a search for budgets, with a solver that there is."""
    found = BudgetSearch(**checked_settings("allocation", BudgetSearch, settings or {}))
    make_solver(found.solver)
    return found


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else str(value)


def for_model(chain: Chain, loss: Loss, seed: int, layers: Any = ()) -> Chain:
    """A chain whose last step knows the loss, the seed and the layers."""
    assert chain.whole is not None
    with blamed(chain.whole, "the whole model"):
        known = chain.whole.for_model(loss, seed, layers)
        if not isinstance(known, ModelMethod) or not isinstance(known.sampling, Sampling):
            raise InputError(
                f"The method {chain.whole.traits.label!r} made no method with a sampling for this model; take another "
                "one, and tell its author."
            )
    return chain.with_steps((*chain.steps[:-1], known))


def _check_budget(request: PruneRequest, chain: Chain, pattern: Pattern) -> None:
    """Raise :class:`InputError` if budgets do not go with one another, or with the methods."""
    budget = request.budget
    check_allocation(budget.allocation, pattern)
    if budget.densities and budget.allocation != "uniform":
        raise InputError(
            f"The allocation is {budget.allocation!r} and densities are given by layer; give one of the two."
        )
    if budget.allocation in SEARCHED:
        _search_of(budget.allocation_settings)
    elif budget.allocation_settings:
        raise InputError(
            f"allocation_settings are given and the allocation {budget.allocation!r} has none; give the allocation "
            "'qubo' or 'evolution', or leave them out."
        )
    if budget.reorder and not pattern.of:
        raise InputError(
            f"reorder is given and the pattern is {pattern.name}, to which the order of channels is all the same; give "
            "a pattern such as 2:4, or leave reorder out."
        )
    if budget.reorder and isinstance(chain.start, GivenMasks):
        raise InputError(
            "reorder is given and masks are too, which are of the order that the model has; leave one of the two out."
        )
    check_protect(float(budget.protect), request.density)
    if budget.protect and not chain.protects:
        raise InputError(
            f"protect is {float(budget.protect):g}, which the method {chain.name!r} does not know; use the method "
            "'compensated', a score alone, or leave protect out."
        )
    if budget.certify is not None:
        check_kind(budget.certify, each_row=pattern.name != "layer")
        if chain.updates or chain.whole is not None:
            raise InputError(
                f"certify is {budget.certify!r}, which bounds the errors of masks whose kept weights hold their "
                f"values; with the method {chain.name!r} and the update {chain.update_name!r} they do not, or masks "
                "change later; give the method 'gram' and the update 'none', or leave certify out."
            )


def _check_weighted(request: PruneRequest, chain: Chain, pattern: Pattern) -> None:
    """Raise :class:`InputError` if outputs are to count by the loss where that changes nothing or is not known."""
    if request.how.hessian != "kron":
        return
    if pattern.name != "layer":
        raise InputError(
            f"hessian is 'kron', which moves weights between the outputs of a layer, and the pattern {pattern.name} "
            "fixes how many each keeps; give the pattern 'layer', or leave hessian out."
        )
    if chain.whole is not None:
        raise InputError(
            f"hessian is 'kron' and the method {chain.name!r} goes by the gradients of single weights; give a method "
            "for layers, such as 'gram' or 'compensated', or leave hessian out."
        )
    if request.budget.certify is not None:
        raise InputError(
            "hessian is 'kron' and certify is given, which bounds errors whose outputs count alike; leave one of the "
            "two out."
        )


def _correction(request: PruneRequest, chain: Chain) -> float:
    """How far layers make up for those pruned before."""
    given = request.how.correction
    correction = chain.correction if given is None else given
    if not 0 <= correction <= 1:
        raise InputError(f"correction is {correction}; a share from 0 to 1 is needed, such as 0.5.")
    if correction and not chain.updates:
        raise InputError(
            f"correction is {correction:g}, which changes kept weights, and the method {chain.name!r} with the update "
            f"{chain.update_name!r} leaves them; give the update 'refit', or leave correction out."
        )
    return correction
