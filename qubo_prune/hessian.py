"""Local Hessians: the curvature that a block sees. Here the ``gram`` of a layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from qubo_prune.errors import InputError


@dataclass(frozen=True, eq=False)
class Drift:
    """How far a layer's inputs have moved from those ``Z`` that the dense model gives it: ``Z - X``, token by token.

    Attributes:
        cross: ``K = (2/N) (Z - X) X'``, shape ``(d_in, d_in)`` or ``(groups, d_in, d_in)``, float64.
        own: ``(2/N) (Z - X)(Z - X)'``, or ``None`` where it was not asked for.
    """

    cross: Float[Tensor, "*groups d_in d_in"]
    own: Float[Tensor, "*groups d_in d_in"] | None = None


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
        drift: of the inputs from those of the dense model, if that was asked for and there is any.
    """

    matrix: Float[Tensor, "*groups d_in d_in"]
    tokens: int
    held_out: Gram | None = None
    drift: Drift | None = None

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
        return self._products(change, self.matrix, change) / 2

    def dense_output_error(
        self, dense: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"]
    ) -> Float[Tensor, " d_out"]:
        """Half the mean square of ``V X - W Z`` by rows, for dense weights W, their inputs Z in the dense model, and V.

        With ``D = V - W`` and the drift it is ``1/2 D H D' - D K' W' + 1/2 W (2/N)(Z - X)(Z - X)' W'``; the last
        term, the same for all V, is left out if the drift has no ``own``. Without a drift it is the output error.
        """
        change = weight - dense
        error = self.output_error(change)
        if self.drift is not None:
            error = error - self._products(dense, self.drift.cross, change)
            if self.drift.own is not None:
                error = error + self._products(dense, self.drift.own, dense) / 2
        return error

    def _products(self, left: Tensor, matrix: Tensor, right: Tensor) -> Float[Tensor, " d_out"]:
        """``l_r M r_r'`` for the rows of two matrices ``(d_out, d_in)`` and the M of their group."""
        stack = matrix.reshape(-1, *matrix.shape[-2:])
        left, right = (rows.to(matrix.dtype).reshape(len(stack), -1, rows.shape[1]) for rows in (left, right))
        return ((left @ stack) * right).sum(2).reshape(-1)


@dataclass
class GramAccumulator:
    """Adds up ``X X'`` over batches of layer inputs.

    Each batch is multiplied in its own precision (float32 for half precision inputs) and added
    up in float64, so that the sum over many batches loses nothing.

    Args:
        name: of the layer, for error messages.
        groups: of the layer.
        own_drift: take the drift's ``own`` too.
    """

    name: str
    groups: int = 1
    own_drift: bool = False
    tokens: int = 0
    _sums: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def add(self, inputs: Tensor, dense: Tensor | None = None) -> None:
        """Add rows ``(..., d_in)``, or ``(..., groups, d_in)`` if there are several groups.

        Args:
            inputs: the rows.
            dense: those of the dense model at the same tokens.

        Raises:
            InputError: they are not finite.
        """
        rows = self._rows(inputs)
        product = self._add("gram", rows, rows)
        # a NaN or infinity anywhere in a column makes its diagonal entry NaN or infinite
        finite = torch.isfinite(product.diagonal(dim1=1, dim2=2))
        if not finite.all():
            group, feature = (~finite).nonzero()[0].tolist()
            raise InputError(
                f"The inputs of layer {self.name!r} hold NaN or infinite values (first in feature "
                f"{group * inputs.shape[-1] + feature}); check the model in a wider dtype such as float32 and the "
                "calibration data."
            )
        self.tokens += rows.shape[1]
        if dense is not None:
            moved = self._rows(dense) - rows
            self._add("cross", moved, rows)
            if self.own_drift:
                self._add("own", moved, moved)

    def _rows(self, inputs: Tensor) -> Float[Tensor, "groups n d_in"]:
        rows = inputs.detach().reshape(-1, self.groups, inputs.shape[-1]).transpose(0, 1)
        return rows if rows.dtype == torch.float64 else rows.float()

    def _add(self, name: str, left: Tensor, right: Tensor) -> Float[Tensor, "groups d_in d_in"]:
        """Add ``left' right`` to a sum, and return it."""
        product = (left.mT @ right).to(_hessian_device(left.device), torch.float64)
        self._sums[name] = self._sums[name] + product if name in self._sums else product
        return product

    def finish(self, d_in: int, device: torch.device | None = None) -> Gram:
        """The Gram of everything added; all zeros if nothing was."""
        sums, self._sums = self._sums, {}
        if self.tokens == 0:
            where = _hessian_device(device or torch.device("cpu"))
            return Gram(self._shaped(torch.zeros(self.groups, d_in, d_in, dtype=torch.float64, device=where)), 0)
        # X'X is symmetric up to the rounding of the product
        total = sums["gram"]
        total = (total + total.mT).div_(self.tokens)
        drift = None
        if "cross" in sums:
            own = self._shaped(sums["own"].mul_(2 / self.tokens)) if self.own_drift else None
            drift = Drift(self._shaped(sums["cross"].mul_(2 / self.tokens)), own)
        return Gram(self._shaped(total), self.tokens, drift=drift)

    def _shaped(self, stack: Tensor) -> Tensor:
        return stack if self.groups > 1 else stack[0]


def _hessian_device(device: torch.device) -> torch.device:
    """Where float64 exists: Apple's GPU has none, so its Hessians live on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device
