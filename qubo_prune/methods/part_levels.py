"""A model whose parts are masked at any level, and how far its predictions then are from the dense ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from qubo_prune.data.losses import Classification, Loss, NextToken, Objective
from qubo_prune.data.samples import Samples
from qubo_prune.errors import InputError
from qubo_prune.masks.keep import kth_lowest
from qubo_prune.methods.allocation import by_loss_change
from qubo_prune.methods.budget_search import Moves, Option, Part
from qubo_prune.models.branches import Branches
from qubo_prune.models.layers import Layer, within
from qubo_prune.models.load import evaluating
from qubo_prune.models.replay import alike
from qubo_prune.models.stack import find_stack
from qubo_prune.precision import pinned

#: Of a position's predictions, the most likely ones that the moves of the logits are compared on.
_LIKELY = 256


def parts_of(model: nn.Module, layers: Sequence[Layer], singly: bool = False) -> list[Part]:
    """Layers by the module that holds them: attention and MLP of each block, or each layer by itself."""
    stack = find_stack(model, layers) or []
    home = {layer.name: number for number, block in enumerate(stack) for layer in within(layers, block)}
    held: dict[str, list[Layer]] = {}
    for layer in layers:
        held.setdefault(layer.name if singly else layer.name.rpartition(".")[0], []).append(layer)
    return [
        Part(
            name or "the model",
            tuple(layer.name for layer in own),
            sum(layer.parameter.numel() for layer in own),
            min(home.get(layer.name, 0) for layer in own),
        )
        for name, own in held.items()
    ]


class PartLevels:
    """The landscape of :mod:`qubo_prune.methods.budget_search` on a model, masks by given scores.

    The weights that a part keeps are divided among its matrices by one threshold on the scores, each within 0.2 of the
    part's density (:func:`~qubo_prune.methods.allocation.by_loss_change`), and each matrix keeps its highest ones; kept
    weights hold their dense values. Blocks before the first one that an option changes are not run again.

    Args:
        objective: the model, and what tells its predictions; a loss whose predictions are logits of classes.
        layers: all that are masked.
        scores: by layer name, comparable within a part.
        parts: of those layers.
        emitted: samples that :meth:`moves` takes, and
        judges: others.
        samples: where both are from, by number.

    Raises:
        InputError: the loss tells no distribution over classes.
    """

    def __init__(
        self,
        objective: Objective,
        layers: Sequence[Layer],
        scores: Mapping[str, Tensor],
        parts: Sequence[Part],
        samples: Samples,
        emitted: Sequence[int],
        judges: Sequence[int],
    ) -> None:
        check_predicts(objective.loss)
        self._objective, self._samples, self._scores = objective, samples, scores
        self._layers = {layer.name: layer for layer in layers}
        self._dense = {layer.name: layer.parameter.data for layer in layers}
        self._parts, self._emitted, self._judges = list(parts), list(emitted), list(judges)
        self._passes, self._divided = 0.0, dict[tuple[str, int], dict[str, int]]()
        self._reference = [self._log_chances(at) for at in (*self._emitted, *self._judges)]
        self._stack = find_stack(objective.model, layers) or []

    @property
    def parts(self) -> Sequence[Part]:
        """The parts, in the order of the layers."""
        return self._parts

    @property
    def passes(self) -> float:
        """Passes over the samples that problems are emitted from; those that judge count by how many they are."""
        return self._passes

    @pinned()
    def divergence(self, kept: Sequence[int], judge: bool, share: float = 1.0) -> float:
        """``mean_t KL(p_t || q_t)`` of the dense model's predictions p from the masked model's q, in nats."""
        first = len(self._emitted) if judge else 0
        chosen = self._judges if judge else self._emitted[: max(1, round(share * len(self._emitted)))]
        self._passes += len(chosen) / len(self._emitted)
        with self._masked(kept):
            found = [
                _divergence(self._reference[first + place], self._log_chances(at)) for place, at in enumerate(chosen)
            ]
        return sum(found) / len(found)

    @pinned()
    def moves(self, kept: Sequence[int], options: Sequence[Option]) -> Moves:
        """What options do to the model with those masks, each alone."""
        with self._masked(kept):
            branches = Branches(self._stack)
            now = []
            for place, at in enumerate(self._emitted):
                with branches.kept(place):
                    now.append(self._log_chances(at))
            replayed = bool(self._stack) and self._replays(branches, now[0])
            base = [_divergence(p, q) for p, q in zip(self._reference, now, strict=False)]
            likely = [q.topk(min(_LIKELY, q.shape[-1]), dim=-1).indices for q in now]
            changes, features = [], []
            for number, count in options:
                part = self._parts[number]
                with self._level(part, count):
                    change, row = 0.0, []
                    for place, at in enumerate(self._emitted):
                        with branches.after(place, part.block) if replayed else nullcontext():
                            moved = self._log_chances(at)
                        change += (_divergence(self._reference[place], moved) - base[place]) / len(self._emitted)
                        row.append(_feature(moved, now[place], likely[place]))
                changes.append(change)
                features.append(torch.cat(row).cpu())
        self._passes += 1 + len(options)
        positions = sum(q.shape[:-1].numel() for q in now)
        table = torch.stack(features) if features else torch.zeros(0, 0)
        return Moves(np.array(changes), (table / positions**0.5).numpy())

    def layer_counts(self, kept: Sequence[int]) -> dict[str, int]:
        """How many weights each layer keeps if its part keeps so many."""
        counts: dict[str, int] = {}
        for part, count in zip(self._parts, kept, strict=True):
            counts |= self._counts(part, count)
        return counts

    def _counts(self, part: Part, count: int) -> dict[str, int]:
        """How many weights each layer of a part keeps if that keeps so many."""
        if (part.name, count) not in self._divided:
            shares = by_loss_change({name: self._scores[name] for name in part.layers}, count / part.size)
            found = {name: max(1, round(share * self._scores[name].numel())) for name, share in shares.items()}
            self._divided[part.name, count] = found
        return self._divided[part.name, count]

    def _replays(self, branches: Branches, expected: Tensor) -> bool:
        """Whether the model gives the same if all blocks but the last are not run."""
        try:
            with branches.after(0, len(self._stack) - 1):
                return alike(self._log_chances(self._emitted[0]), expected)
        except Exception:  # whatever a foreign model raises whose blocks hand on more than they return
            return False

    def _log_chances(self, at: int) -> Float[Tensor, "positions classes"]:
        """Logarithms of the predictions for a sample."""
        with torch.no_grad(), evaluating(self._objective.model):
            found = [
                self._objective.predicted(part.batch, len(part.rows))
                for part in self._objective.parts(self._samples, torch.tensor([at]))
            ]
        logits = torch.cat([each.flatten(0, -2) for each in found])
        return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)

    @contextmanager
    def _masked(self, kept: Sequence[int]) -> Iterator[None]:
        """The masks of all parts while it lasts."""
        try:
            for part, count in zip(self._parts, kept, strict=True):
                self._mask(part, count)
            yield
        finally:
            for name, dense in self._dense.items():
                self._layers[name].parameter.data = dense

    @contextmanager
    def _level(self, part: Part, count: int) -> Iterator[None]:
        """Another level of one part while it lasts."""
        before = {name: self._layers[name].parameter.data for name in part.layers}
        try:
            self._mask(part, count)
            yield
        finally:
            for name, data in before.items():
                self._layers[name].parameter.data = data

    def _mask(self, part: Part, count: int) -> None:
        for name, own in self._counts(part, count).items():
            layer, scores, dense = self._layers[name], self._scores[name], self._dense[name]
            below = scores < kth_lowest(scores.flatten()[None], scores.numel() - own + 1)[0, 0]
            layer.parameter.data = dense.masked_fill(layer.stored(below).to(dense.device), 0)


def check_predicts(loss: Loss) -> None:
    """Raise :class:`InputError` if a loss's predictions are no logits of classes."""
    if not isinstance(loss, NextToken | Classification):
        raise InputError(
            f"The allocation goes by the model's predictions over classes, and the loss is {type(loss).__name__}; give "
            "loss='next-token' or 'classification', or the allocation 'kron' or 'fisher'."
        )


def _divergence(reference: Tensor, found: Tensor) -> float:
    """Mean of ``KL(p || q)`` over the positions, from logarithms."""
    ratio = reference - found
    # the chances of both add up to 1, so this is the same sum, of terms that are not negative and do not cancel
    return float((reference.exp() * (ratio + torch.expm1(-ratio))).sum(-1).double().mean())


def _feature(moved: Tensor, now: Tensor, likely: Tensor) -> Tensor:
    """``(v - <q, v>) sqrt(q)`` at the most likely predictions of each position, as one row."""
    change = (moved - now).gather(-1, likely)
    chances = now.gather(-1, likely).exp()
    centred = change - (chances * change).sum(-1, keepdim=True)
    return (centred * chances.sqrt()).flatten()
