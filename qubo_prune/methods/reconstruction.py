"""Kept weights fitted together: those of a decoder layer to the dense model's states, all to its predictions.

Updates of single layers fit each matrix to its own outputs. What leaves a decoder layer also depends on how the errors
of its matrices meet behind attention and activation. So the kept weights of all its pruned layers are fitted once more,
by gradients, to what the dense model's decoder layer gives, as is done for quantisation (M. Nagel et al., arXiv
2004.10568; Y. Li et al., BRECQ, arXiv 2102.05426) and for pruning (S. Guo et al., EBFT, arXiv 2402.12419).
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

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
class Fitting(JointMethod):
    """Fits kept weights together to what the dense model gives, by Adam; pruned ones stay zero.

    Subclasses say by :meth:`distance` what is lowered. After each epoch the same is measured on held-out inputs; the
    weights that are best there are the result, which may be those it began with. Without held-out inputs the
    calibration's own error decides. A step whose gradient is not finite is left out.

    Attributes:
        learning_rate: of Adam; it falls to zero linearly.
        epochs: passes over the calibration inputs.
        batch: inputs (windows of a text) of a step.
    """

    #: Whether all targets are kept meanwhile, or each is computed when it is needed.
    keeps_targets: ClassVar[bool] = True

    learning_rate: float = setting(2e-4, above=0)
    epochs: int = setting(4, least=0)
    batch: int = setting(1, least=1)

    @abc.abstractmethod
    def distance(self, output: Tensor, target: Tensor, task: JointTask) -> Float[Tensor, "*tokens"]:
        """How far what is given now is from what the dense model gives, at each token."""

    @pinned()
    def fit(self, task: JointTask) -> Joined:
        """See the class."""
        search = _Search(task, self)
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


@dataclass(frozen=True)
class Reconstruction(Fitting):
    """Fits the kept weights of a decoder layer to the dense model's states; see :class:`Fitting`.

    With the states ``y_t`` that the decoder layer gives at token t for the inputs that it has in the pruned model, and
    ``z_t`` that it gives in the dense model, it lowers ``1/N sum_t ||y_t - z_t||^2 / ||z_t||^2``: relative to each
    token's power, since a few massive activations would rule a plain mean of squares. The targets that are kept
    meanwhile are as large as the calibration's hidden states.
    """

    traits = Traits("reconstruction", starts=False, updates=True, correction=0.5)

    def distance(self, output: Tensor, target: Tensor, task: JointTask) -> Float[Tensor, "*tokens"]:
        """Squared error relative to the token's power."""
        return _relative(output, target)


@dataclass(frozen=True)
class Distillation(Fitting):
    """Fits all kept weights of the model to the dense model's predictions, once every layer is pruned.

    Where the model gives logits, with the distributions ``p_t`` of the dense model and ``q_t`` of the pruned one at
    token t it lowers their mean divergence ``1/N sum_t sum_k p_tk log(p_tk / q_tk)``, in nats (G. Hinton et al., arXiv
    1503.02531, at temperature 1); else the relative squared error of :class:`Reconstruction`. Each step runs the dense
    model as well; weights, gradients and Adam's two moments of all pruned layers take 16 bytes a weight.
    """

    traits = Traits("distillation", starts=False, updates=True, correction=0.5)
    whole_model = True
    keeps_targets = False

    learning_rate: float = setting(2e-5, above=0)
    epochs: int = setting(2, least=0)
    batch: int = setting(1, least=1)

    def distance(self, output: Tensor, target: Tensor, task: JointTask) -> Float[Tensor, "*tokens"]:
        """The divergence of the predictions."""
        if not task.gives_logits:
            return _relative(output, target)
        wide = torch.promote_types(output.dtype, torch.float32)
        now, dense = (torch.log_softmax(logits.to(wide), -1) for logits in (output, target))
        return (dense.exp() * (dense - now)).sum(-1)


class _Search:
    """The weights of a decoder layer, or of a model, while they are fitted."""

    def __init__(self, task: JointTask, method: Fitting) -> None:
        self._task, self._method = task, method
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
        self._targets = [task.target(at) for at in range(task.total)] if method.keeps_targets else None

    def _distance(self, at: int) -> Tensor:
        """The mean over the tokens of an input."""
        target = self._task.target(at) if self._targets is None else self._targets[at]
        return self._method.distance(self._task.output(at), target, self._task).mean()

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
            found = [float(self._distance(at)) for at in self._judges]
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
                parameters = [layer.parameter for layer in self._layers]
                found = torch.autograd.grad(self._distance(at), parameters, allow_unused=True)
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
