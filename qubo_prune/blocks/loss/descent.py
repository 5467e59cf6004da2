"""Block coordinate descent on the loss itself: iCBS, with what it takes to trust its steps.

A step draws three things that share no sample. A *scoring* batch says which weights look worth a swap. A
*model* batch gives their gradient g and their Fisher matrix ``H = 1/B G'G`` at the current masked point,
so each block is a QUBO (see :mod:`qubo_prune.blocks.emission`) that a solver decides. *Held-out* samples then
measure what the move did: it is accepted, halved or rolled back. The blocks of one step are decided
one after another on one model: with ``r = sum G delta`` over the blocks decided so far, the next one's
gradient is ``g + 1/B G'r``, so they know of one another across layers.

After iCBS (Rosenberg, Brubaker et al., arXiv 2411.17796), whose own settings are the preset ``paper``.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.arguments import text_as_seconds
from qubo_prune.blocks.emission import emit_factor
from qubo_prune.blocks.loss.selection import Block, Pairs, Pool, Tabu, best_pairs, flip_costs, salience_costs
from qubo_prune.blocks.loss.trace import LossStep, LossTrace
from qubo_prune.clock import Deadline, Stopwatch, shortest
from qubo_prune.data.losses import Objective
from qubo_prune.data.samples import Fresh, Samples
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.events import event
from qubo_prune.files.checksummed import Sealed
from qubo_prune.hessian.gradients import BlockGradients, Moments, block_gradients, moments, separable
from qubo_prune.masks.keep import Pattern, packed_bits, unpacked_bits
from qubo_prune.models.layers import Layer
from qubo_prune.precision import caller_defaults, pinned
from qubo_prune.progress import Progress
from qubo_prune.settings import checked, kinds_of, setting
from qubo_prune.solver.block_counts import BlockCounts, by_kind
from qubo_prune.solver.dispatch import solve
from qubo_prune.solver.interface import Solver, derive_seed
from qubo_prune.solver.registry import make_solver

_log = logging.getLogger(__name__)
_MOST_CAUTION = 8.0


@dataclass(frozen=True)
class LossDescent:
    """Settings of the descent on the loss.

    Attributes:
        solver: decides the blocks: a name or a ``Solver``.
        block_size: n, weights per block, half of them kept and half pruned ones.
        blocks_per_step: blocks decided on the gradients of one pass; 0 for one per layer.
        samples: B, samples of the model batch of a step.
        scoring_samples: samples of the scoring batch; 0 takes the model batch for both.
        scoring_group: samples whose gradients are added up before the scoring squares them, in layers with
            several positions (tokens, patches); faster, and less precise.
        held_out: samples that are held out of the data where none are given, a fifth of them at most.
        max_samples: B doubles up to this when predictions fail or no swap is worth its uncertainty.
        curvature: labels of the Fisher matrix: ``sampled`` from the model's own distribution, ``empirical``
            the given ones, or ``auto`` (sampled where the loss is a likelihood).
        selection: ``gain``, predicted gain of a swap; ``salience``, the paper's ``|u g|``.
        layer_order: ``gain``, expected held-out gain; ``log-size``, each layer in proportion to the
            logarithm of its size, shuffled, as in the paper.
        accept: ``held-out``, only what lowers the held-out loss; ``always``.
        radius: swaps of a step at most, the best of those that the solver found; 0 for no limit. Halves
            when a move fails or does less than a quarter of what was predicted, doubles while moves do more
            than 0.6 of it.
        halvings: how often a move that fails is halved before it is rolled back.
        caution: price of a changed weight, in standard errors of its predicted gain; adapts.
        gradient_scale: ``c_g``, factor of the gradient.
        ridge: ``lam``, weight of ``||delta||^2``.
        damping: weight of the factored curvature (see :class:`~qubo_prune.hessian.gradients.Moments`) that is added to
            the Fisher matrix' diagonal.
        tabu_share: share of the free weights of a pool that rest after their block was solved; never so
            many that no block is left.
        frozen_pruned: share of a layer's pruned weights, those of the lowest ``|u| ||X_j||``, that stay pruned.
        frozen_kept: share of its kept weights, those of the highest, that stay kept.
        budget: ``layer``, or ``global``: weights may move between layers (pattern ``layer`` only).
        max_blocks: blocks at most; 0 keeps the warm start.
        patience: steps in a row without progress, at ``max_samples``, after which the descent ends.
        batch_check: samples of the model batch on which the move is measured too.
        micro_batch: samples that go through the model at once; the memory of a pass is that of their
            activations.
        block_time: wall-clock limit of one block, in seconds, also as text such as ``"500ms"``.
        polish: swap within blocks after a solver that leaves that to do.
        solver_settings: fields of a named solver.
        seed: every random choice follows from it.
    """

    solver: str | Solver = "greedy"
    block_size: int = setting(1024, least=2)
    blocks_per_step: int = setting(3, least=0)
    samples: int = setting(1000, least=1)
    scoring_samples: int = setting(1000, least=0)
    scoring_group: int = setting(8, least=1)
    held_out: int = setting(5000, least=1)
    max_samples: int = setting(8000, least=1)
    curvature: Literal["auto", "sampled", "empirical"] = "auto"
    selection: Literal["gain", "salience"] = "gain"
    layer_order: Literal["gain", "log-size"] = "gain"
    accept: Literal["held-out", "always"] = "held-out"
    radius: int = setting(0, least=0)
    halvings: int = setting(2, least=0)
    caution: float = setting(1.0, least=0)
    gradient_scale: float = 1.0
    ridge: float = setting(0.0, least=0)
    damping: float = setting(2.0, least=0)
    tabu_share: float = setting(0.0, least=0, below=1)
    frozen_pruned: float = setting(0.0, least=0, below=1)
    frozen_kept: float = setting(0.0, least=0, below=1)
    budget: Literal["layer", "global"] = "layer"
    max_blocks: int = setting(3000, least=0)
    patience: int = setting(5, least=1)
    batch_check: int = setting(1000, least=1)
    micro_batch: int = setting(250, least=1)
    block_time: float | str | None = 60.0
    polish: bool = True
    solver_settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def limit(self) -> float | None:
        """Seconds for a block."""
        return text_as_seconds(self.block_time)

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_time", self.limit)
        for entry in dataclasses.fields(self):
            object.__setattr__(self, entry.name, checked(entry.name, getattr(self, entry.name), _KINDS[entry.name]))

    @classmethod
    def preset(cls, kind: str, preset: str = "measured", **changes: Any) -> LossDescent:
        """Settings for a kind of model.

        Args:
            kind: ``classifier``, a small network; ``large``, one of more than two million weights, such as a
                vision transformer; ``language``, where a sample is a window of tokens.
            preset: ``measured``, this project's; ``paper``, those of the paper's own code, which trusts
                every answer of its solver.
            **changes: fields that differ.

        Raises:
            InputError: there is no such preset or field, or a value cannot be used.
        """
        if preset not in _PRESETS:
            raise InputError(
                f"There is no preset {preset!r}{did_you_mean(preset, _PRESETS)}; use {' or '.join(_PRESETS)}."
            )
        if kind not in _PRESETS[preset]:
            raise InputError(f"There is no kind of model {kind!r}; use one of {', '.join(_PRESETS[preset])}.")
        known = [entry.name for entry in dataclasses.fields(cls)]
        for name in changes:
            if name not in known:
                raise InputError(
                    f"There is no setting {name!r} of the descent on the loss{did_you_mean(name, known)}; there are "
                    f"{', '.join(known)}, and preset."
                )
        return cls(**{**_PRESETS[preset][kind], **changes})

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        plain = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return plain | {"solver": str(self.solver), "solver_settings": dict(self.solver_settings)}


_PAPER: dict[str, Any] = {
    "solver": "anneal",
    "solver_settings": {"starts": 10},
    "blocks_per_step": 1,
    "samples": 200,
    "scoring_samples": 0,
    "max_samples": 200,
    "curvature": "empirical",
    "selection": "salience",
    "layer_order": "log-size",
    "accept": "always",
    "caution": 0.0,
    "gradient_scale": 0.75,
    "ridge": 0.001,
    "damping": 0.0,
    "tabu_share": 0.4,
    "frozen_pruned": 0.42,
    "frozen_kept": 0.35,
    "batch_check": 200,
}
_LANGUAGE: dict[str, Any] = {
    "block_size": 256,
    "blocks_per_step": 0,
    "samples": 48,
    "scoring_samples": 24,
    "scoring_group": 4,
    "held_out": 48,
    "max_samples": 96,
    "batch_check": 12,
    "micro_batch": 4,
    "max_blocks": 10**6,
    "curvature": "empirical",
    "caution": 3.0,
    "damping": 4.0,
    "radius": 1000,
    "halvings": 1,
    "frozen_kept": 0.5,
    "frozen_pruned": 0.42,
}
_LARGE: dict[str, Any] = {
    "block_size": 256,
    "blocks_per_step": 0,
    "samples": 256,
    "scoring_samples": 256,
    "held_out": 1000,
    "max_samples": 1024,
    "batch_check": 256,
    "micro_batch": 32,
    "max_blocks": 10**6,
    "caution": 3.0,
    "damping": 4.0,
    "radius": 500,
    "halvings": 1,
}
_PRESETS: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "measured": {"classifier": {}, "large": _LARGE, "language": _LANGUAGE},
    "paper": {
        "classifier": _PAPER | {"block_size": 1024},
        "large": _PAPER | {"block_size": 1024, "micro_batch": 32},
        "language": _PAPER
        | {"block_size": 4096, "samples": 64, "max_samples": 64, "batch_check": 16, "micro_batch": 4},
    },
}


_KINDS = kinds_of(LossDescent)


OnStep = Callable[[LossStep], None]


@pinned()
@runtime_checkable
class Keeper(Protocol):
    """Keeps the state of a descent that may be interrupted.

    Attributes:
        past: what was kept by a descent that this one goes on with.
    """

    past: Sealed | None

    def put_if_due(self, content: Callable[[], Sealed], /) -> None:
        """Keep what ``content`` gives, if it is time to."""

    def put(self, content: Sealed, /) -> None:
        """Keep this."""


def descend_loss(
    objective: Objective,
    layers: Sequence[Layer],
    keep: Mapping[str, Bool[Tensor, "d_out d_in"]],
    train: Samples,
    held_out: Samples,
    settings: LossDescent,
    pattern: Pattern,
    *,
    values: Mapping[str, Float[Tensor, "d_out d_in"]] | None = None,
    deadline: Deadline | None = None,
    progress: Progress | None = None,
    on_step: OnStep | None = None,
    keeper: Keeper | None = None,
) -> LossTrace:
    """Improve keep masks by blocks that are emitted from the gradients of the loss.

    The layers' weights are changed in place to the best masks seen, by held-out loss; every budget group
    keeps its count. An interrupt (Ctrl-C) ends the descent as a time limit does.

    Args:
        objective: model and loss.
        layers: the layers to decide.
        keep: warm start by layer name, as matrices ``(d_out, d_in)``.
        train: samples that scoring and model batches are drawn from.
        held_out: samples by which moves are judged; none of them in ``train``.
        settings: see :class:`LossDescent`.
        pattern: the groups whose counts stay.
        values: ``u``, what each weight is if kept, by layer name; by default what the layers hold now, so
            call this before the masks are applied, or pass the dense weights.
        deadline: when to stop.
        progress: where bars are shown.
        on_step: called after each step with its record, the model being as the step left it; its time
            does not count.
        keeper: keeps the state after steps; one that has a state goes on from there.

    Raises:
        InputError: a loss is not finite, the gradient is zero everywhere, a setting does not fit.
    """
    run = _Descent(objective, layers, keep, train, held_out, settings, pattern, values, deadline or Deadline(None))
    if keeper is not None and keeper.past is not None:
        run.recover(keeper.past)
    with (progress or Progress()).task("descending the loss", settings.max_blocks) as advance:
        advance(run.blocks, "")
        try:
            for step in run.steps():
                advance(step.blocks, f"held-out loss {step.held_out_loss:.4f}")
                _tell(step)
                if keeper is not None:
                    keeper.put_if_due(run.state)
                if on_step is not None:
                    with run.paused(), caller_defaults():
                        on_step(step)
        except KeyboardInterrupt:
            run.stopped = "It was interrupted; the best masks by then count."
        finally:
            run.finish()
    return run.trace()


def check_devices(layers: Sequence[Layer], settings: LossDescent) -> None:
    """Raise :class:`InputError` if blocks would hold weights of several devices."""
    first = layers[0]
    other = next((layer for layer in layers if layer.parameter.device != first.parameter.device), None)
    if settings.budget == "global" and other is not None:
        raise InputError(
            f"The budget is global, so blocks hold weights of all layers, and layer {first.name!r} is on "
            f"{first.parameter.device} while {other.name!r} is on {other.parameter.device}; give budget 'layer', or "
            "put the model on one device."
        )


@dataclass(eq=False)
class _Weights:
    """Masked weights of one layer."""

    layer: Layer
    value: Tensor
    keep: Tensor
    frozen: Tensor | None = None

    def put(self, keep: Tensor) -> None:
        """Set the mask and write the weights."""
        self.keep = keep
        self.layer.assign(self.value.masked_fill(~keep, 0))


@dataclass(frozen=True, eq=False)
class _Move:
    """A block's new assignment with its model: ``g'delta + 1/2 sum s_i delta_i^2 + 1/2B ||G delta||^2``."""

    block: Block
    x: Tensor
    value: Tensor
    gradient: Tensor
    factor: Tensor
    stiffness: Tensor

    @property
    def swaps(self) -> int:
        """Weights pruned by it, as many as it restores."""
        return int((self.x & ~self.block.x).sum())

    @cached_property
    def delta(self) -> Float[Tensor, " n"]:
        """Change of the weights, float64."""
        return self.value * (self.block.x.double() - self.x.double())

    @cached_property
    def response(self) -> Float[Tensor, " B"]:
        """``G delta``, per sample."""
        return self.factor @ self.delta

    @property
    def own_energy(self) -> float:
        """``g'delta + 1/2 sum s_i delta_i^2``: its energy but for what the samples' curvature adds."""
        return float(self.gradient @ self.delta + (self.stiffness * self.delta**2).sum() / 2)

    def pairs(self, response: Float[Tensor, " B"]) -> Pairs:
        """Its swaps, each with its part in the energy of a step that does ``response``; places in the block."""
        pull = self.factor.T @ response.to(self.factor.device) / (2 * len(response))
        slope = self.gradient + self.stiffness * self.delta / 2 + pull
        cost, labels, changed = self.delta * slope, self.block.labels, self.x != self.block.x

        def ordered(side: Tensor) -> Tensor:
            places = side.nonzero()[:, 0]
            places = places[cost[places].argsort()]
            return places[labels[places].argsort(stable=True)]

        # a group prunes as many as it restores, so by group and cost the k-th of either side belong together
        kept, pruned = ordered(changed & ~self.block.x), ordered(changed & self.block.x)
        return Pairs(kept, pruned, labels[kept], cost[kept], cost[pruned])

    def only(self, pairs: Pairs) -> _Move:
        """The move with these of its swaps."""
        x = self.block.x.clone()
        x[pairs.kept], x[pairs.pruned] = True, False
        return dataclasses.replace(self, x=x)


def _best_swaps(moves: Sequence[_Move], most: int) -> list[_Move]:
    """The moves with the ``most`` swaps among all of theirs that do most for the energy."""
    if sum(move.swaps for move in moves) <= most:
        return list(moves)
    _, response = _energy(moves)
    pairs = [move.pairs(response) for move in moves]
    last = torch.cat([part.cost.to(response.device) for part in pairs]).argsort()[most:]
    dropped = torch.zeros(sum(map(len, pairs)), dtype=torch.bool, device=last.device)
    dropped[last] = True
    parts = zip(moves, pairs, torch.split(dropped, [len(part) for part in pairs]), strict=True)
    return [move.only(part.take(~without.to(part.cost.device))) for move, part, without in parts]


class _Descent:
    """State of one run."""

    def __init__(
        self,
        objective: Objective,
        layers: Sequence[Layer],
        keep: Mapping[str, Tensor],
        train: Samples,
        held_out: Samples,
        settings: LossDescent,
        pattern: Pattern,
        values: Mapping[str, Tensor] | None,
        deadline: Deadline,
    ) -> None:
        if settings.budget == "global" and pattern.name != "layer":
            raise InputError(
                f"The budget is global and the pattern {pattern.name}; weights can only move between layers with the "
                "pattern 'layer'."
            )
        check_devices(layers, settings)
        self._objective, self._train, self._held_out = objective, train, held_out
        self._settings, self._pattern, self._deadline = settings, pattern, deadline
        self._solver = make_solver(settings.solver, **settings.solver_settings)
        self._clock, self._notes, self._counts = Stopwatch(), Counter[str](), BlockCounts()
        self._fresh = Fresh(train, derive_seed(settings.seed, 1))
        self._labels = torch.Generator().manual_seed(derive_seed(settings.seed, 2))
        self._random = np.random.default_rng(derive_seed(settings.seed, 3))
        self._weights = {
            layer.name: _starting(layer, keep[layer.name], (values or {}).get(layer.name)) for layer in layers
        }
        pools = [Pool(tuple(layers))] if settings.budget == "global" else [Pool((layer,)) for layer in layers]
        self._pools = {pool.name: pool for pool in pools}
        self._tabu = {name: Tabu(self._resting_limit(pool)) for name, pool in self._pools.items()}
        self._trust = dict.fromkeys(self._pools, 1.0)
        self._queue: list[str] = []
        self._caution, self._idle = settings.caution, 0
        self._radius = settings.radius or sum(layer.parameter.numel() for layer in layers)
        self._samples, self._scoring = self._batch_sizes(settings.samples, settings.scoring_samples)
        self._steps: list[LossStep] = []
        self.stopped = ""
        self._losses = self._first_losses()
        if objective.micro_batch > 1 and not separable(objective, train, layers, derive_seed(settings.seed, 5)):
            self._objective = dataclasses.replace(objective, micro_batch=1)
            self._notes["Samples cannot be told apart in a batch, so they go through the model one by one."] = 1
        self._start_loss = self._best_loss = float(self._losses.mean())
        self._best = {name: weights.keep for name, weights in self._weights.items()}

    def _first_losses(self) -> Tensor:
        """Held-out losses of the warm start, which is put in place; dense weights again if that fails."""
        try:
            for weights in self._weights.values():
                weights.put(weights.keep)
            return self._objective.measure(self._held_out)
        except BaseException:
            for weights in self._weights.values():
                weights.layer.assign(weights.value)
            raise

    def _batch_sizes(self, samples: int, scoring: int) -> tuple[int, int]:
        """Sizes of two batches without a common sample, as far as there are enough for them."""
        there = len(self._train)
        if samples + scoring <= there:
            return samples, scoring
        self._notes[f"Steps asked for {samples} + {scoring} samples; the {there} that there are were shared out."] += 1
        fewer = max(1, there * scoring // (samples + scoring)) if scoring and there > 1 else 0
        return there - fewer, fewer

    def _resting_limit(self, pool: Pool) -> int:
        settings, free = self._settings, 0
        for layer in pool.layers:
            keep = self._weights[layer.name].keep
            kept = int(keep.sum())
            free += (
                keep.numel() - int(settings.frozen_kept * kept) - int(settings.frozen_pruned * (keep.numel() - kept))
            )
        return int(settings.tabu_share * free)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        left = self._deadline.remaining
        with self._clock.stopped():
            yield
        self._deadline = Deadline(left)

    @property
    def blocks(self) -> int:
        """Blocks solved so far."""
        return sum(step.blocks for step in self._steps)

    def steps(self) -> Iterator[LossStep]:
        """Steps until time, blocks or hope are over."""
        settings = self._settings
        while self.blocks < settings.max_blocks:
            if self._deadline.expired:
                self.stopped = "The time was over."
                return
            if self._idle >= settings.patience and settings.accept == "held-out":
                self.stopped = f"The last {self._idle} steps brought nothing, on the largest batches."
                return
            step = self._step(self.blocks)
            self._steps.append(step)
            yield step
        self.stopped = "All blocks were solved."

    # -- what goes on after an interruption

    def state(self) -> Sealed:
        """All that the next step depends on, and what the trace tells."""
        tensors = {"losses": self._losses, "labels": self._labels.get_state()}
        tensors |= {f"fresh.{name}": tensor for name, tensor in self._fresh.state().items()}
        for number, (name, weights) in enumerate(self._weights.items()):
            tensors[f"keep.{number}"] = packed_bits(weights.keep)
            tensors[f"best.{number}"] = packed_bits(self._best[name])
            if weights.frozen is not None:
                tensors[f"frozen.{number}"] = packed_bits(weights.frozen)
        for number, tabu in enumerate(self._tabu.values()):
            tensors |= {f"tabu.{number}.{place}": block for place, block in enumerate(tabu.blocks)}
        info = {
            "random": self._random.bit_generator.state,
            "trust": self._trust,
            "queue": self._queue,
            "caution": self._caution,
            "idle": self._idle,
            "radius": self._radius,
            "samples": self._samples,
            "best_loss": self._best_loss,
            "notes": self._notes,
            "seconds": self._clock.wall,
            "counts": self._counts.to_dict(),
            "resting": [len(tabu.blocks) for tabu in self._tabu.values()],
            "steps": [dataclasses.asdict(step) for step in self._steps],
        }
        return Sealed(tensors, info)

    def recover(self, state: Sealed) -> None:
        """Go on from where another one was."""
        tensors, info = state.tensors, state.info
        self._losses = tensors["losses"].to(self._losses.device)
        self._labels.set_state(tensors["labels"])
        self._fresh.recover({name: tensors[f"fresh.{name}"] for name in ("left", "generator")})
        for number, (name, weights) in enumerate(self._weights.items()):
            shape, device = tuple(weights.keep.shape), weights.keep.device
            bits = {
                kind: unpacked_bits(tensors[f"{kind}.{number}"], shape).to(device)
                for kind in ("keep", "best", "frozen")
                if f"{kind}.{number}" in tensors
            }
            weights.put(bits["keep"])
            weights.frozen, self._best[name] = bits.get("frozen"), bits["best"]
        for number, (tabu, resting) in enumerate(zip(self._tabu.values(), info["resting"], strict=True)):
            tabu.blocks.extend(tensors[f"tabu.{number}.{place}"] for place in range(resting))
        self._random.bit_generator.state = info["random"]
        self._trust, self._queue = dict(info["trust"]), list(info["queue"])
        self._caution, self._idle, self._radius = info["caution"], info["idle"], info["radius"]
        self._samples, self._best_loss = info["samples"], info["best_loss"]
        self._notes, self._counts = Counter(info["notes"]), BlockCounts.from_dict(info["counts"])
        self._clock.add(info["seconds"] - self._clock.wall)
        self._steps = [LossStep(**{**step, "pools": tuple(step["pools"])}) for step in info["steps"]]

    def finish(self) -> None:
        """Put the best masks seen in place."""
        for name, weights in self._weights.items():
            weights.put(self._best[name])

    def trace(self) -> LossTrace:
        """What happened."""
        return LossTrace(
            {name: keep.clone() for name, keep in self._best.items()},
            tuple(self._steps),
            self._start_loss,
            self._best_loss,
            self.stopped,
            dict(self._notes),
            self._clock.wall,
            self._counts,
        )

    def _step(self, done: int) -> LossStep:
        settings, allowed = self._settings, self._settings.max_blocks - done
        drawn = self._fresh.indices(self._samples + self._scoring)
        batch, scoring = drawn[: self._samples], drawn[self._samples :]
        blocks, found = self._choose(scoring if self._scoring else batch, allowed)
        before = {name: weights.keep for name, weights in self._weights.items()}
        gradients = block_gradients(
            self._objective,
            self._train,
            batch,
            [block.parts for block in blocks],
            self._labels if self._draws_labels() else None,
        )
        moves, solved = self._decide(blocks, gradients, found, done)
        moves, predicted, change, outcome = self._apply(moves, before)
        check = batch[: settings.batch_check]
        measured = float((self._objective.measure(self._train, check) - gradients.losses[: len(check)]).mean())
        if outcome == "rolled back":
            self._restore(before)
        return self._record(moves, blocks, predicted, measured, change, outcome, solved)

    def _draws_labels(self) -> bool:
        kind, can = self._settings.curvature, self._objective.loss.likelihood
        if kind == "sampled" and not can:
            raise InputError(
                "curvature is 'sampled' but labels cannot be drawn from this loss function; use 'empirical' or 'auto'."
            )
        return kind != "empirical" and can

    # -- selection

    def _choose(self, scoring: Tensor, allowed: int) -> tuple[list[Block], dict[str, Moments]]:
        """The blocks of a step, and what the scoring batch said of their layers."""
        wanted = min(allowed, self._settings.blocks_per_step or len(self._pools))
        names = list(self._pools) if self._settings.layer_order == "gain" else self._next_in_queue(wanted)
        options, found = self._options(scoring, names, wanted)
        if not options and len(set(names)) < len(self._pools):  # those drawn are all kept, or all pruned
            options, found = self._options(scoring, list(self._pools), wanted)
        if not options:
            raise InputError("No layer holds both a kept and a pruned weight that is free; give a density below 1.")
        return options[:wanted], found

    def _options(self, scoring: Tensor, names: Sequence[str], wanted: int) -> tuple[list[Block], dict[str, Moments]]:
        """Blocks of these pools, the most promising first unless the order of the pools was drawn."""
        settings, by_gain = self._settings, self._settings.layer_order == "gain"
        layers = [layer for name in dict.fromkeys(names) for layer in self._pools[name].layers]
        found = moments(self._objective, self._train, scoring, layers, settings.scoring_group)
        if len(layers) == len(self._weights) and not any(bool(part.mean.any()) for part in found.values()):
            raise InputError(
                "The gradient of the loss is zero in every layer, so there is nothing to descend; check that the loss "
                "depends on the model's output and that the layers to prune are reached."
            )
        per_pool = dict.fromkeys(names, wanted) if by_gain else Counter(names)
        options = [block for name, count in per_pool.items() for block in self._blocks(self._pools[name], found, count)]
        if by_gain:
            options.sort(key=lambda block: -block.expected * self._trust[block.pool.name])
        return options, found

    def _next_in_queue(self, count: int) -> list[str]:
        """Pools in the order of an epoch in which each comes in proportion to the logarithm of its size."""
        while len(self._queue) < count:
            sizes = {name: math.log10(max(10, pool.starts[-1])) for name, pool in self._pools.items()}
            smallest = min(sizes.values())
            epoch = [name for name, size in sizes.items() for _ in range(max(1, round(2 * size / smallest)))]
            self._queue.extend(self._random.permutation(epoch).tolist())
        drawn, self._queue = self._queue[:count], self._queue[count:]
        return drawn

    def _blocks(self, pool: Pool, found: Mapping[str, Moments], count: int) -> list[Block]:
        """The ``count`` best disjoint blocks of a pool."""
        size = self._settings.block_size // 2
        pairs = self._pairs(pool, found, count * size)
        while len(pairs) < size and self._tabu[pool.name].release():
            pairs = self._pairs(pool, found, count * size)
        if 0 < len(pairs) < size:
            self._notes[f"Blocks of {pool.name} hold all its {2 * len(pairs)} free weights, fewer than asked."] = 1
        return [
            Block.of(pool, pairs.take(slice(at, at + size)))
            for at in range(0, len(pairs), size)
            # a last block of a few weights is left for the next step
            if at == 0 or len(pairs) - at >= size
        ]

    def _pairs(self, pool: Pool, found: Mapping[str, Moments], most: int) -> Pairs:
        costs, keep, eligible = [], [], []
        for layer in pool.layers:
            weights, moment = self._weights[layer.name], found[layer.name]
            if weights.frozen is None:  # inputs are known from the first pass on
                weights.frozen = _frozen(weights, moment, self._settings)
            costs.append(self._costs(moment, weights))
            keep.append(weights.keep)
            eligible.append(~weights.frozen & (weights.keep | (weights.value != 0)))
        if len(pool.layers) > 1:  # one budget: the best kept weights of all layers with the best pruned ones
            costs, keep, eligible = ([torch.cat([m.flatten() for m in part])[None]] for part in (costs, keep, eligible))
        free = eligible[0] & ~self._tabu[pool.name].resting(keep[0].numel(), keep[0].device).reshape(keep[0].shape)
        return best_pairs(costs[0], keep[0], free, self._pattern, most)

    def _costs(self, moment: Moments, weights: _Weights) -> Tensor:
        if self._settings.selection == "salience":
            return salience_costs(moment, weights.value.float(), weights.keep)
        settings = self._settings
        return flip_costs(
            moment, weights.value.float(), weights.keep, self._caution, settings.gradient_scale, settings.damping
        )

    # -- decision

    def _decide(
        self, blocks: Sequence[Block], gradients: BlockGradients, found: Mapping[str, Moments], done: int
    ) -> tuple[list[_Move], float]:
        """Solve the blocks in turn on one model; the moves, and the seconds that the solver took."""
        settings, moves, spent = self._settings, [], 0.0
        response = torch.zeros(len(gradients.losses), dtype=torch.float64, device=gradients.given[0].device)
        for number, block in enumerate(blocks):
            given, factor = gradients.given[number].double(), gradients.curvature[number].double()
            gradient = given.mean(0)
            value = torch.cat([part.of(self._weights[part.layer.name].value) for part in block.parts]).double()
            stiffness = self._stiffness(block, found)
            uncertainty = (given.var(0, unbiased=False) / len(given)).sqrt()
            model = settings.gradient_scale * gradient + factor.T @ response.to(factor.device) / len(response)
            problem = emit_factor(
                factor,
                model,
                value * ~block.x,
                value,
                _counts(block),
                block.labels.cpu().numpy(),
                settings.ridge + stiffness / 2,
                self._caution * uncertainty * value.abs(),
            )
            began = time.perf_counter()
            result = solve(
                problem,
                self._solver,
                derive_seed(settings.seed, 4, done + number),
                self._block_time(),
                block.x.cpu().numpy(),
                polish=settings.polish,
            )
            spent += time.perf_counter() - began
            self._counts += BlockCounts.of_result(result)
            if result.status.kept_warm_start:
                note = result.status.told(str(result.info.get("detail", "")))
                self._notes = Counter(by_kind(self._notes, {note: 1}))
            x = torch.as_tensor(result.assignment).to(block.x.device)
            move = _Move(block, x, value, gradient, factor, stiffness)
            response += move.response.to(response.device)  # layers may be on several devices
            moves.append(move)
            self._tabu[block.pool.name].add(block.places)
        return moves, spent

    def _stiffness(self, block: Block, found: Mapping[str, Moments]) -> Tensor:
        """What damping adds to the curvature of each weight of a block, float64."""
        if not self._settings.damping:
            return torch.zeros(len(block), dtype=torch.float64, device=block.x.device)
        parts = [part.of(found[part.layer.name].factored) for part in block.parts]
        return self._settings.damping * torch.cat(parts).double()

    def _block_time(self) -> float | None:
        """Seconds for one block; a step that was begun is finished, if only from its warm starts."""
        left = self._deadline.remaining
        return shortest(self._settings.limit, None if left is None else max(left, 1e-3))

    # -- acceptance

    def _apply(self, moves: list[_Move], before: Mapping[str, Tensor]) -> tuple[list[_Move], float, Tensor, str]:
        """Measure a move on held-out samples; halve it while it fails. Leaves the last one tried in place."""
        if not any(move.swaps for move in moves):
            return moves, 0.0, torch.zeros_like(self._losses), "idle"
        moves = _best_swaps(moves, self._radius)
        for halving in range(self._settings.halvings + 1):
            predicted, _ = _energy(moves)
            self._put(moves, before)
            change = self._objective.measure(self._held_out) - self._losses
            if float(change.mean()) < 0:
                return moves, predicted, change, "halved" if halving else "accepted"
            if self._settings.accept == "always":
                return moves, predicted, change, "accepted"
            half = sum(move.swaps for move in moves) // 2
            if halving == self._settings.halvings or not half:
                break
            moves = _best_swaps(moves, half)
        return moves, predicted, change, "rolled back"

    def _put(self, moves: Sequence[_Move], before: Mapping[str, Tensor]) -> None:
        keep: dict[str, Tensor] = {}
        for move in moves:
            at = 0
            for part in move.block.parts:
                name = part.layer.name
                mask = keep.setdefault(name, before[name].clone())
                mask[part.rows, part.columns] = ~move.x[at : at + len(part)]
                at += len(part)
        for name, mask in keep.items():
            self._weights[name].put(mask)

    def _restore(self, before: Mapping[str, Tensor]) -> None:
        for name, weights in self._weights.items():
            if weights.keep is not before[name]:
                weights.put(before[name])

    def _record(
        self,
        moves: Sequence[_Move],
        blocks: Sequence[Block],
        predicted: float,
        measured: float,
        change: Tensor,
        outcome: str,
        solved: float,
    ) -> LossStep:
        mean = float(change.mean())
        if outcome in ("accepted", "halved"):
            self._losses = self._losses + change
        loss = float(self._losses.mean())
        if loss < self._best_loss:
            self._best_loss = loss
            self._best = {name: weights.keep for name, weights in self._weights.items()}
        step = LossStep(
            len(self._steps),
            len(blocks),
            tuple(block.pool.name for block in blocks),
            sum(len(b) for b in blocks),
            sum(move.swaps for move in moves),
            predicted,
            measured,
            mean,
            float(change.std() / math.sqrt(len(change))) if len(change) > 1 else 0.0,
            loss,
            outcome,
            self._caution,
            self._samples,
            solved,
            self._clock.wall,
        )
        self._adapt(step)
        return step

    def _adapt(self, step: LossStep) -> None:
        """More caution and more samples where predictions fail, less caution where they hold."""
        limit = max(self._samples, min(self._settings.max_samples, len(self._train) - self._scoring))
        progressed = step.outcome in ("accepted", "halved") and step.held_out_change < 0
        at_limit = self._samples >= limit
        self._idle = 0 if progressed else self._idle + at_limit
        ratio = step.ratio
        for name in set(step.pools):
            self._trust[name] = 0.5 * self._trust[name] + 0.5 * min(1.0, max(0.05, ratio or 0.05))
        if self._settings.accept == "always":
            return
        if step.outcome in ("halved", "rolled back"):
            self._radius = max(1, step.swaps if step.outcome == "halved" else step.swaps // 2)
        elif ratio > 0.6 and step.swaps >= self._radius:
            self._radius *= 2
        elif ratio < 0.25 and step.swaps:
            self._radius = max(1, step.swaps // 2)
        if step.outcome == "idle":
            self._caution /= 1.5
        elif ratio < 0.25:
            self._caution = min(_MOST_CAUTION, 1.5 * self._caution)
        elif ratio > 0.75:
            self._caution = max(self._settings.caution, self._caution / 1.25)
        if step.outcome == "idle" or ratio < 0.25:
            self._samples = min(2 * self._samples, limit)


def _tell(step: LossStep) -> None:
    told = {name: getattr(step, name) for name in ("number", "blocks", "swaps", "held_out_loss", "outcome", "seconds")}
    event(_log, "step", f"Step {step.number}: held-out loss {step.held_out_loss:.5f}, {step.outcome}.", **told)


def _starting(layer: Layer, keep: Tensor, value: Tensor | None) -> _Weights:
    dense = (layer.matrix() if value is None else value).detach().clone()
    return _Weights(layer, dense, keep.to(dense.device))


def _frozen(weights: _Weights, moment: Moments, settings: LossDescent) -> Tensor:
    """Weights that stay as the warm start has them, by Wanda's score."""
    keep, score = weights.keep, weights.value.abs() * moment.input_power.sqrt()
    frozen = torch.zeros(keep.shape, dtype=torch.bool, device=keep.device)
    for side, share, largest in ((~keep, settings.frozen_pruned, False), (keep, settings.frozen_kept, True)):
        worst = -math.inf if largest else math.inf
        chosen = score.masked_fill(~side, worst).flatten().topk(int(share * int(side.sum())), largest=largest).indices
        frozen.view(-1)[chosen] = True
    return frozen


def _counts(block: Block) -> list[int]:
    found = np.bincount(block.labels.cpu().numpy(), weights=block.x.cpu().numpy())
    return [int(count) for count in found]


def _energy(moves: Sequence[_Move]) -> tuple[float, Tensor]:
    """Energy of all moves together, with ``1/2B ||sum G delta||^2``; and ``sum G delta``."""
    device = moves[0].response.device
    response = torch.stack([move.response.to(device) for move in moves]).sum(0)
    return sum(move.own_energy for move in moves) + float(response @ response) / (2 * len(response)), response
