"""Kept weights of a decoder layer fitted together, to the hidden states of the dense model.

Updates of single layers fit each matrix to its own outputs. What leaves a decoder layer also depends on how the errors
of its matrices meet behind attention and activation. So the kept weights of all its pruned layers are fitted once more,
by gradients, to what the dense model's decoder layer gives, as is done for quantisation (M. Nagel et al., arXiv
2004.10568; Y. Li et al., BRECQ, arXiv 2102.05426) and for pruning (S. Guo et al., EBFT, arXiv 2402.12419).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from qubo_prune.hessian.linalg import work_dtype
from qubo_prune.methods.base import Joined, JointMethod, JointTask, Traits
from qubo_prune.precision import pinned
from qubo_prune.settings import setting

# a state of this share of the mean power counts as much as one of none
_LEAST = 1e-6


@dataclass(frozen=True)
class Reconstruction(JointMethod):
    """Fits the kept weights of a decoder layer to the dense model's states, by Adam; pruned ones stay zero.

    With the states ``y_t`` that the decoder layer gives at token t for the inputs that it has in the pruned model, and
    ``z_t`` that it gives in the dense model, it lowers ``1/N sum_t ||y_t - z_t||^2 / ||z_t||^2``: relative to each
    token's power, since a few massive activations would rule a plain mean of squares. After each epoch the same is
    measured on held-out inputs; the weights that are best there are the result, which may be those it began with.
    Without held-out inputs the calibration's own error decides. All targets are kept meanwhile, as large as the
    calibration's hidden states.

    Attributes:
        learning_rate: of Adam; it falls to zero linearly.
        epochs: passes over the calibration inputs.
        batch: inputs (windows of a text) of a step.
    """

    traits = Traits("reconstruction", starts=False, updates=True, correction=0.5)

    learning_rate: float = setting(2e-4, above=0)
    epochs: int = setting(4, least=0)
    batch: int = setting(1, least=1)

    @pinned()
    def fit(self, task: JointTask) -> Joined:
        """See :class:`Reconstruction`."""
        search = _Search(task)
        before = best = search.error()
        weights = search.weights()
        steps = self.epochs * -(-task.counted // self.batch)
        optimiser = torch.optim.Adam(search.masters, lr=self.learning_rate)
        order, done = torch.Generator().manual_seed(task.seed), 0
        with search.trained():
            for _ in range(self.epochs):
                for part in torch.split(torch.randperm(task.counted, generator=order), self.batch):
                    if task.deadline.expired:
                        break
                    for group in optimiser.param_groups:
                        group["lr"] = self.learning_rate * (1 - done / steps)
                    search.step(optimiser, part.tolist())
                    done += 1
                error = search.error()
                if error < best:
                    best, weights = error, search.weights()
                if task.deadline.expired:
                    break
        return Joined(weights, before, best)


class _Search:
    """The weights of a decoder layer while they are fitted."""

    def __init__(self, task: JointTask) -> None:
        self._task = task
        self._layers = list(task.keep)
        keep = [layer.stored(task.keep[layer]).to(layer.parameter.device) for layer in self._layers]
        self._pruned = [~mask for mask in keep]
        # Adam's steps are lost in the rounding of half precision
        self.masters = [
            layer.parameter.detach().to(work_dtype(layer.parameter)).clone().masked_fill_(pruned, 0)
            for layer, pruned in zip(self._layers, self._pruned, strict=True)
        ]
        judges = range(task.counted, task.total)
        self._judges = judges if len(judges) else range(task.total)
        self._targets = [task.target(at) for at in range(task.total)]

    def weights(self) -> dict[str, Tensor]:
        """The matrices as they are now, in their own dtype."""
        return {
            layer.name: layer.as_matrix(master.to(layer.parameter.dtype)).clone(memory_format=torch.contiguous_format)
            for layer, master in zip(self._layers, self.masters, strict=True)
        }

    def _put(self) -> None:
        for layer, master in zip(self._layers, self.masters, strict=True):
            layer.parameter.detach().copy_(master)

    def error(self) -> float:
        """On held-out inputs, or on all where there are none; NaN counts as infinite."""
        self._put()
        with torch.no_grad():
            found = [float(_relative(self._task.output(at), self._targets[at]).double().mean()) for at in self._judges]
        mean = sum(found) / len(found)
        return mean if mean < float("inf") else float("inf")

    @contextmanager
    def trained(self) -> Iterator[None]:
        """Gradients go to the layers' weights and to nothing else while it lasts."""
        parameters = list(self._task.module.parameters())
        before = [parameter.requires_grad for parameter in parameters]
        own = {id(layer.parameter) for layer in self._layers}
        try:
            for parameter in parameters:
                parameter.requires_grad_(id(parameter) in own)
            yield
        finally:
            for parameter, needed in zip(parameters, before, strict=True):
                parameter.requires_grad_(needed)
                parameter.grad = None
            self._put()

    def step(self, optimiser: torch.optim.Optimizer, inputs: Sequence[int]) -> None:
        """One step on some inputs."""
        self._put()
        sums = [torch.zeros_like(master) for master in self.masters]
        for at in inputs:
            with torch.enable_grad():
                loss = _relative(self._task.output(at), self._targets[at]).mean()
                parameters = [layer.parameter for layer in self._layers]
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
            for total, grad in zip(sums, found, strict=True):
                if grad is not None:
                    total += grad.to(total.dtype) / len(inputs)
        for master, total, pruned in zip(self.masters, sums, self._pruned, strict=True):
            # without a gradient Adam leaves a weight that never had one where it is: at zero
            master.grad = total.masked_fill_(pruned, 0)
        if all(bool(torch.isfinite(master.grad).all()) for master in self.masters if master.grad is not None):
            optimiser.step()


def _relative(output: Tensor, target: Tensor) -> Float[Tensor, "*tokens"]:
    """Squared error of each token relative to its power; a token is a position with all its features."""
    features = 1 if output.ndim == 4 else -1
    wide = torch.promote_types(output.dtype, torch.float32)
    output, target = output.to(wide), target.to(wide)
    power = target.square().sum(features)
    return (output - target).square().sum(features) / (power + _LEAST * power.mean().clamp(min=1e-30))
