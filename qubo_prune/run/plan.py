"""What a run is asked for, checked: method, Hessian, blocks, budgets, updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from qubo_prune.arguments import parse_seconds
from qubo_prune.blocks.compensated_rows import CompensatedDescent
from qubo_prune.blocks.loss.descent import LossDescent
from qubo_prune.blocks.rows import Descent
from qubo_prune.choices import HESSIANS, LOSS_WARM_STARTS, METHODS, SCORES, UPDATES, WARM_STARTS
from qubo_prune.data.calibration import Source, choose_loss
from qubo_prune.data.losses import Loss, LossFunction, NextToken, make_loss
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.hessian.compensated import DAMPING
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.allocation import check_allocation, check_protect
from qubo_prune.methods.correction import CORRECTION_DAMPING, SHARE
from qubo_prune.methods.registry import PEERS
from qubo_prune.models.layers import Layer
from qubo_prune.models.load import usable_device
from qubo_prune.problem.bounds import check_kind
from qubo_prune.seeds import checked_seed
from qubo_prune.solver.dispatch import check_size, handling_of, parse_workers
from qubo_prune.solver.interface import Solver
from qubo_prune.solver.registry import make_solver

#: Weights from which on the descent on the loss takes the settings for large networks.
LARGE = 2_000_000


@dataclass(frozen=True)
class Blocks:
    """What the caller says of blocks and who decides them."""

    solver: str | Solver = "greedy"
    solver_settings: Mapping[str, Any] = field(default_factory=dict)
    size: int | None = None
    block_time: float | None = None
    polish: bool = True


_USUAL = Blocks()


@dataclass(frozen=True)
class Task:
    """What a run with the Fisher matrix descends, and how."""

    loss: Loss
    settings: LossDescent

    def with_settings(self, given: Mapping[str, Any], blocks: Blocks, seed: int, layers: Sequence[Layer] = ()) -> Task:
        """The settings of a run: those of a preset for the kind of model, changed by what was given."""
        large = sum(layer.parameter.numel() for layer in layers) > LARGE
        kind = "language" if isinstance(self.loss, NextToken) else "large" if large else "classifier"
        changes: dict[str, Any] = {"block_time": blocks.block_time, "polish": blocks.polish, "seed": seed}
        if blocks.solver != "greedy" or blocks.solver_settings:
            changes |= {"solver": blocks.solver, "solver_settings": blocks.solver_settings}
        if blocks.size is not None:
            changes["block_size"] = blocks.size
        settings = LossDescent.preset(kind, **{**changes, **given})
        made = make_solver(settings.solver, **settings.solver_settings)
        most = made.capabilities.max_variables
        if most is not None and most < settings.block_size and "block_size" not in {**changes, **given}:
            settings = replace(settings, block_size=most)
        name = settings.solver if isinstance(settings.solver, str) else type(made).__name__
        check_size(made, name, settings.block_size)
        return replace(self, settings=settings)

    def check(self, pattern: Pattern) -> None:
        """Raise :class:`InputError` if the solver takes one count and the blocks will hold several groups."""
        made = make_solver(self.settings.solver, **self.settings.solver_settings)
        if made.capabilities.cardinality and not made.capabilities.groups and pattern.name != "layer":
            raise InputError(
                f"The solver {type(made).__name__!r} takes one count, and blocks of the loss hold several groups with "
                f"the pattern {pattern.name}; use the pattern 'layer', or another solver such as 'greedy'."
            )


def task_of(hessian: str, loss: str | Loss | LossFunction | None, calibration: Source) -> Task | None:
    """What the loss is, if the Hessian asks for one."""
    if hessian != "fisher":
        return None
    return Task(choose_loss(loss, calibration), LossDescent())


def reading_of(task: Task | None, given: str | Loss | LossFunction | None) -> Loss | None:
    """What tells labels from inputs in a batch; ``None`` if batches are model inputs."""
    return task.loss if task is not None else None if given is None else make_loss(given)


@dataclass(frozen=True)
class Plan:
    """The checked arguments of a run."""

    density: float
    pattern: Pattern
    method: str
    warm_start: str | Mapping[str, Tensor]
    descent: Descent | CompensatedDescent | None
    solver_name: str
    max_time: float | None
    seed: int
    hessian: str
    update: str | None
    damping: float
    correction: float
    allocation: str
    densities: Mapping[str, float]
    protect: float
    certify: str | None = None
    task: Task | None = None
    gram_devices: tuple[str, ...] = ()

    @classmethod
    def checked(
        cls, *, density: float, pattern: str, method: str, warm_start: str | Mapping[str, Tensor] | None = None,
        blocks: Blocks = _USUAL, workers: int | str | None = None, max_sweeps: int | None = None,
        max_time: float | str | None = None, seed: int = 0, task: Task | None = None, hessian: str = "gram",
        update: str | None = None, damping: float | None = None, correction: float | None = None,
        allocation: str = "uniform", densities: Mapping[str, float] | None = None, protect: float = 0.0,
        certify: str | None = None, gram_devices: Sequence[str] = (),
    ) -> Plan:  # fmt: skip
        seed = checked_seed(seed)
        chosen = Pattern.parse(pattern)
        chosen.check(density)
        check_allocation(allocation, chosen)
        if densities and allocation != "uniform":
            raise InputError(f"The allocation is {allocation!r} and densities are given by layer; give one of the two.")
        check_protect(protect, density)
        if protect and not (hessian == "compensated" or method in SCORES):
            raise InputError(
                f"protect is {protect:g}, which the method {method!r} with the Hessian {hessian!r} does not know; use "
                "the Hessian 'compensated', a score alone, or leave protect out."
            )
        compensated = hessian == "compensated"
        if certify is not None:
            check_kind(certify)
            if compensated or task is not None or _updates(method, update):
                raise InputError(
                    f"certify is {certify!r}, which bounds the errors of masks whose kept weights hold their values; "
                    f"with method {method!r}, Hessian {hessian!r} and update {update or 'own'!r} they do not, or masks "
                    "change later; give the Hessian 'gram' and the update 'none', or leave certify out."
                )
        adapts = (compensated and update is None) or _updates(method, update)
        if correction is None:
            correction = SHARE if compensated and adapts else 0.0
        if not 0 <= correction <= 1:
            raise InputError(f"correction is {correction}; a share from 0 to 1 is needed, such as 0.5.")
        if correction and (not adapts or task is not None):
            raise InputError(
                f"correction is {correction:g}, which changes kept weights, and the method {method!r} with the Hessian "
                f"{hessian!r} and the update {update or 'none'!r} leaves them; give the update 'refit', or leave "
                "correction out."
            )
        if damping is None:
            damping = CORRECTION_DAMPING if correction else DAMPING
        if not (math.isfinite(damping) and damping >= 0):
            raise InputError(f"damping is {damping}; a share of the Gram's mean diagonal, from 0 on, is needed.")
        if task is not None:
            task.check(chosen)
        if warm_start is None:
            warm_start = "admm" if compensated else "wanda"
        starts = WARM_STARTS if task is None else (*WARM_STARTS, *LOSS_WARM_STARTS)
        if isinstance(warm_start, str) and warm_start not in starts:
            raise InputError(
                f"There is no warm start {warm_start!r}{did_you_mean(warm_start, starts)} for this Hessian; use one of "
                f"{', '.join(starts)}, or keep masks by parameter name."
            )
        made = make_solver(blocks.solver, **blocks.solver_settings)
        name = blocks.solver if isinstance(blocks.solver, str) else type(made).__name__
        usual = 128 if compensated else 64
        block_size = min(usual, made.capabilities.max_variables or usual) if blocks.size is None else blocks.size
        if max_sweeps is None:
            max_sweeps = 1
        if block_size < 2 or max_sweeps < 0:
            raise InputError(f"block_size is {block_size} and max_sweeps {max_sweeps}; at least 2 and 0 are needed.")
        if chosen.of and block_size < chosen.of:
            raise InputError(
                f"block_size is {block_size}, which holds no group of {chosen.name}; give {chosen.of} or more."
            )
        check_size(made, name, block_size)
        if task is not None and isinstance(parse_workers(workers), str):
            raise InputError(
                f"workers is {workers!r}, and blocks of the loss are decided one after another in this process; leave "
                "workers out."
            )
        handling = handling_of(made, name, workers, blocks.polish)
        descent: Descent | CompensatedDescent | None = None
        if compensated:
            descent = CompensatedDescent(
                made, block_size, max_sweeps, damping, blocks.polish, seed, blocks.block_time, handling
            )
            update = update or "refit"
        elif method == "icbs" and (task is None or warm_start == "gram"):
            descent = Descent(made, block_size, max_sweeps, seed=seed, block_time=blocks.block_time, handling=handling)
        start = warm_start if method == "icbs" else method
        return cls(
            density, chosen, method, start, descent, name if descent else "", parse_seconds(max_time), seed, hessian,
            update, damping, correction, allocation, dict(densities or {}), protect, certify, task,
            tuple(str(usable_device(device)) for device in gram_devices),
        )  # fmt: skip

    @property
    def needs_inputs(self) -> bool:
        """True unless the layers' inputs decide nothing, since the loss comes after a start without them."""
        return self.task is None or self.warm_start in ("wanda", "greedy", "gram", *PEERS)

    @property
    def updates(self) -> bool:
        """True if kept weights change."""
        return _updates(self.method, self.update)

    def settings(self) -> dict[str, Any]:
        """The arguments for the report."""
        return {
            "density": self.density,
            "pattern": self.pattern.name,
            "method": self.method,
            "hessian": self.hessian,
            "update": self.update or ("own" if self.updates else "none"),
            "damping": self.damping,
            "correction": self.correction,
            "allocation": self.allocation,
            "densities": dict(self.densities),
            "protect": self.protect,
            "certify": self.certify,
            "loss": type(self.task.loss).__name__ if self.task else None,
            "loss_settings": self.task.settings.to_dict() if self.task else None,
            "solver": self.solver_name,
            "warm_start": self.warm_start if isinstance(self.warm_start, str) else "given masks",
            "block_size": self.descent.block_size if self.descent else None,
            "solver_settings": str(self.descent.solver) if self.descent else None,
            "block_time": self.descent.block_time if self.descent else None,
            "polish": self.descent.handling.polish if self.descent else None,
            "max_sweeps": self.descent.max_sweeps if self.descent else None,
            "max_time": self.max_time,
            "seed": self.seed,
        }


def check_method(method: str, hessian: str = "gram", update: str | None = None) -> None:
    """Raise :class:`InputError` if there is no such method, Hessian or update, or they do not go together."""
    if method not in METHODS:
        raise InputError(
            f"There is no method {method!r}{did_you_mean(method, METHODS)}; use one of {', '.join(METHODS)}."
        )
    if hessian not in HESSIANS:
        raise InputError(
            f"There is no Hessian {hessian!r}{did_you_mean(hessian, HESSIANS)}; use one of {', '.join(HESSIANS)}."
        )
    if hessian != "gram" and method != "icbs":
        raise InputError(f"The method {method!r} takes no Hessian; leave hessian out, or give method 'icbs'.")
    if update is not None and update not in UPDATES:
        raise InputError(
            f"There is no update {update!r}{did_you_mean(update, UPDATES)}; use one of {', '.join(UPDATES)}."
        )
    if hessian == "fisher" and update not in (None, "none"):
        raise InputError(
            f"The update {update!r} needs the Grams of the layers' inputs, and hessian is 'fisher', whose blocks come "
            "after them; leave update out, or give hessian 'gram' or 'compensated'."
        )


def _updates(method: str, update: str | None) -> bool:
    """True if kept weights change by an update, or by the method itself where none is given."""
    if update is None:
        return method in PEERS and PEERS[method].updates
    return update != "none"
