"""Local Hessians: the curvature that a block sees. Here the ``gram`` of a layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from qubo_prune.errors import InputError


@dataclass(frozen=True, eq=False)
class Gram:
    """``H = (2/N) X X'`` over N calibration tokens, shape ``(d_in, d_in)``, float64.

    With it ``1/2 tr(D H D')`` is the mean squared output error of a weight that moved by ``D``
    ``(d_out, d_in)``, summed over outputs and averaged over tokens. Rows are uncoupled. Layers
    that read the same input share one Gram.

    A token of a convolution is one position of its output. A grouped convolution has a Gram for
    each group, shape ``(groups, d_in, d_in)``; rows ``k * d_out / groups`` onwards of its weight
    belong to group k.

    Attributes:
        matrix: ``H``.
        tokens: N.
        held_out: the same over tokens that are not among them, if there were any.
    """

    matrix: Float[Tensor, "*groups d_in d_in"]
    tokens: int
    held_out: Gram | None = None

    @property
    def groups(self) -> int:
        """Number of Grams."""
        return len(self._stack)

    @property
    def _stack(self) -> Float[Tensor, "groups d_in d_in"]:
        return self.matrix.reshape(-1, *self.matrix.shape[-2:])

    def parts(self) -> list[Gram]:
        """One Gram ``(d_in, d_in)`` for each group."""
        return [Gram(matrix, self.tokens) for matrix in self._stack]

    def split(self, rows: Shaped[Tensor, "d_out d_in"]) -> tuple[Shaped[Tensor, "_ d_in"], ...]:
        """The rows of a matrix ``(d_out, d_in)``, such as a weight or a mask, by groups."""
        return torch.tensor_split(rows, self.groups)

    @property
    def diagonal(self) -> Float[Tensor, "*groups d_in"]:
        """``H_jj``, twice the mean square of every input feature."""
        return self.matrix.diagonal(dim1=-2, dim2=-1)

    @property
    def dead(self) -> Bool[Tensor, "*groups d_in"]:
        """Input features that were zero in every calibration token."""
        return self.diagonal == 0

    def for_rows(self, features: Shaped[Tensor, "*groups d_in"], d_out: int) -> Shaped[Tensor, "_ d_in"]:
        """A property of the input features so that it broadcasts with a matrix ``(d_out, d_in)``."""
        features = features.reshape(-1, features.shape[-1])
        return features.repeat_interleave(d_out // len(features), 0) if len(features) > 1 else features

    def output_error(self, change: Float[Tensor, "d_out d_in"]) -> Float[Tensor, " d_out"]:
        """``1/2 D_r H D_r'`` for every row of a weight change ``D``, in float64."""
        by_group = change.to(self.matrix.dtype).reshape(self.groups, -1, change.shape[1])
        return ((by_group @ self._stack) * by_group).sum(2).reshape(-1) / 2


@dataclass
class GramAccumulator:
    """Adds up ``X X'`` over batches of layer inputs.

    Each batch is multiplied in its own precision (float32 for half precision inputs) and added
    up in float64, so that the sum over many batches loses nothing.

    Args:
        name: of the layer, for error messages.
        groups: of the layer.
    """

    name: str
    groups: int = 1
    tokens: int = 0
    _sum: Tensor | None = field(default=None, repr=False)

    def add(self, inputs: Tensor) -> None:
        """Add rows ``(..., d_in)``, or ``(..., groups, d_in)`` if there are several groups.

        Raises:
            InputError: they are not finite.
        """
        d_in = inputs.shape[-1]
        rows = inputs.detach().reshape(-1, self.groups, d_in).transpose(0, 1)
        rows = rows if rows.dtype == torch.float64 else rows.float()
        product = (rows.mT @ rows).to(_hessian_device(rows.device), torch.float64)
        # a NaN or infinity anywhere in a column makes its diagonal entry NaN or infinite
        finite = torch.isfinite(product.diagonal(dim1=1, dim2=2))
        if not finite.all():
            group, feature = (~finite).nonzero()[0].tolist()
            raise InputError(
                f"The inputs of layer {self.name!r} hold NaN or infinite values (first in feature "
                f"{group * d_in + feature}); check the model in a wider dtype such as float32 and the calibration data."
            )
        self._sum = product if self._sum is None else self._sum.add_(product)
        self.tokens += rows.shape[1]

    def finish(self, d_in: int, device: torch.device | None = None) -> Gram:
        """The Gram of everything added; all zeros if nothing was."""
        if self._sum is None or self.tokens == 0:
            where = _hessian_device(device or torch.device("cpu"))
            total = torch.zeros(self.groups, d_in, d_in, dtype=torch.float64, device=where)
            return Gram(self._shaped(total), 0)
        # X'X is symmetric up to the rounding of the product
        total = (self._sum + self._sum.mT).div_(self.tokens)
        self._sum = None
        return Gram(self._shaped(total), self.tokens)

    def _shaped(self, stack: Tensor) -> Tensor:
        return stack if self.groups > 1 else stack[0]


def _hessian_device(device: torch.device) -> torch.device:
    """Where float64 exists: Apple's GPU has none, so its Hessians live on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device
