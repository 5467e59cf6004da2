"""Local Hessians: the curvature that a block sees. Here the ``gram`` of a layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from qubo_prune.errors import InputError


@dataclass(frozen=True, eq=False)
class Gram:
    """``H = (2/N) X X'`` over N calibration tokens, shape ``(d_in, d_in)``, float64.

    With it ``1/2 tr(D H D')`` is the mean squared output error of a weight that moved by ``D``
    ``(d_out, d_in)``, summed over outputs and averaged over tokens. Rows are uncoupled. Layers
    that read the same input share one Gram.
    """

    matrix: Float[Tensor, "d_in d_in"]
    tokens: int

    @property
    def dead(self) -> Bool[Tensor, " d_in"]:
        """Input features that were zero in every calibration token."""
        return self.matrix.diagonal() == 0

    def output_error(self, change: Float[Tensor, "d_out d_in"]) -> Float[Tensor, " d_out"]:
        """``1/2 D_r H D_r'`` for every row of a weight change ``D``, in float64."""
        change = change.to(self.matrix.dtype)
        return ((change @ self.matrix) * change).sum(1) / 2


@dataclass
class GramAccumulator:
    """Adds up ``X X'`` over batches of layer inputs.

    Each batch is multiplied in its own precision (float32 for half precision inputs) and added
    up in float64, so that the sum over many batches loses nothing.

    Args:
        name: of the layer, for error messages.
    """

    name: str
    tokens: int = 0
    _sum: Tensor | None = field(default=None, repr=False)

    def add(self, inputs: Tensor) -> None:
        """Add inputs of shape ``(..., d_in)``; raises :class:`InputError` if they are not finite."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1])
        flat = flat if flat.dtype == torch.float64 else flat.float()
        product = (flat.T @ flat).to(_hessian_device(flat.device), torch.float64)
        # a NaN or infinity anywhere in a column makes its diagonal entry NaN or infinite
        if not torch.isfinite(product.diagonal()).all():
            feature = int((~torch.isfinite(product.diagonal())).nonzero()[0, 0])
            raise InputError(
                f"The inputs of layer {self.name!r} hold NaN or infinite values (first in feature "
                f"{feature}); check the model in a wider dtype such as float32 and the calibration data."
            )
        self._sum = product if self._sum is None else self._sum.add_(product)
        self.tokens += len(flat)

    def finish(self, d_in: int, device: torch.device | None = None) -> Gram:
        """The Gram of everything added; all zeros if nothing was."""
        if self._sum is None or self.tokens == 0:
            where = _hessian_device(device or torch.device("cpu"))
            return Gram(torch.zeros(d_in, d_in, dtype=torch.float64, device=where), 0)
        # X'X is symmetric up to the rounding of the product
        total = (self._sum + self._sum.T) / self.tokens
        self._sum = None
        return Gram(total, self.tokens)


def _hessian_device(device: torch.device) -> torch.device:
    """Where float64 exists: Apple's GPU has none, so its Hessians live on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device
