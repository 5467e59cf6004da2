"""Local Hessians: the curvature that a block sees. Here the ``gram`` of a layer's inputs."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from qubo_prune.errors import InputError
from qubo_prune.precision import pinned


@dataclass(frozen=True, eq=False)
class Drift:
    """How far a layer's inputs X, and what its outputs are added to, have moved from those of the dense model.

    With the dense model's inputs Z, and R and R' what its outputs are added to here and there, token by token, it is
    about ``D = Z - X`` or, where the outputs are known to be added to something, ``D = [Z - X; R' - R]``. Dense
    weights W would have to make up for ``[W I] D``.

    Attributes:
        cross: ``K = (2/N) D X'``, float64, shape ``(d_in, d_in)`` or ``(d_in + d_out, d_in)``; with groups
            ``(groups, d_in, d_in)``.
        own: ``(2/N) D D'``, or ``None`` where it was not asked for.
    """

    cross: Float[Tensor, "*groups d d_in"]
    own: Float[Tensor, "*groups d d"] | None = None

    def wanted(self, dense: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        """``[W I] K``: the change of outputs that is wanted, times the inputs, in the mean."""
        return _by_group(_all_of(dense, self.cross), self.cross)

    def power(self, dense: Float[Tensor, "d_out d_in"]) -> Float[Tensor, " d_out"]:
        """The mean square of ``[W I] D`` by rows; zero where ``own`` was not asked for."""
        if self.own is None:
            return torch.zeros(len(dense), dtype=self.cross.dtype, device=self.cross.device)
        rows = _all_of(dense, self.own)
        return (_by_group(rows, self.own) * rows).sum(1) / 2


def _all_of(dense: Tensor, matrix: Tensor) -> Tensor:
    """``[W I]`` if a matrix has rows for both, else W."""
    dense = dense.to(matrix.dtype)
    if matrix.shape[-2] == dense.shape[1]:
        return dense
    return torch.cat([dense, torch.eye(len(dense), dtype=dense.dtype, device=dense.device)], 1)


def _by_group(rows: Shaped[Tensor, "d_out d"], matrix: Float[Tensor, "*groups d k"]) -> Float[Tensor, "d_out k"]:
    """Rows times the matrix of their group."""
    stack = matrix.reshape(-1, *matrix.shape[-2:])
    by_group = rows.to(matrix.dtype).reshape(len(stack), -1, rows.shape[1])
    return (by_group @ stack).flatten(0, 1)


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
        unpaired: that was asked for, and cannot be told, since the dense model has other tokens there.
    """

    matrix: Float[Tensor, "*groups d_in d_in"]
    tokens: int
    held_out: Gram | None = None
    drift: Drift | None = None
    unpaired: bool = False

    @classmethod
    def of_nothing(cls, d_in: int, device: torch.device) -> Gram:
        """One of no tokens, which takes no memory."""
        return cls(torch.zeros(1, dtype=torch.float64, device=_hessian_device(device)).expand(d_in, d_in), 0)

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
        return (_by_group(change, self.matrix) * change.to(self.matrix.dtype)).sum(1) / 2

    def dense_output_error(
        self, dense: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"]
    ) -> Float[Tensor, " d_out"]:
        """The mean square of ``V X - W X - [W I] D`` by rows, for dense weights W, and V.

        That is how far the layer is from giving the dense model's outputs, and from making up for what they are
        added to: ``1/2 C H C' - C K' [W I]' + 1/2 [W I] (2/N) D D' [W I]'`` with ``C = V - W``; the last term, the same
        for all V, is left out if the drift has no ``own``. Without a drift it is the output error.
        """
        change = weight - dense
        error = self.output_error(change)
        if self.drift is None:
            return error
        return error - (self.drift.wanted(dense) * change).sum(1) + self.drift.power(dense)


@dataclass
class GramAccumulator:
    """Adds up ``X X'`` over batches of layer inputs.

    Each batch is multiplied in its own precision (float32 for half precision inputs, float64 for a
    batch whose squares leave that range) and added up in float64, so that the sum over many batches
    loses nothing.

    Batches can be multiplied on several devices in turn, each busy with one while the next is read. Products are
    added up in the order of their batches, so that the sum is the same for any number of devices of one kind.

    Args:
        name: of the layer, for error messages.
        groups: of the layer.
        own_drift: take the drift's ``own`` too.
        devices: where batches are multiplied; where they are, if empty.
    """

    name: str
    groups: int = 1
    own_drift: bool = False
    devices: tuple[str, ...] = ()
    tokens: int = 0
    _batches: int = 0
    _sums: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _under_way: deque[dict[str, Tensor]] = field(default_factory=deque, repr=False)
    _home: torch.device = field(default=torch.device("cpu"), repr=False)

    @pinned()
    def add(self, inputs: Tensor, dense: Tensor | None = None, behind: Tensor | None = None) -> None:
        """Add rows ``(..., d_in)``, or ``(..., groups, d_in)`` if there are several groups.

        Args:
            inputs: the rows.
            dense: those of the dense model at the same tokens.
            behind: rows ``(..., d_out)`` by which what the outputs are added to lags behind the dense model's.

        Raises:
            InputError: they are not finite, or earlier ones were not, whose products were still under way.
        """
        self._home = _hessian_device(inputs.device)
        rows = self._rows(inputs)
        products = {"gram": _product(rows, rows)}
        if dense is not None:
            moved = self._rows(dense) - rows
            if behind is not None:
                behind = behind.detach().reshape(1, -1, behind.shape[-1])
                moved = torch.cat([moved, behind.to(moved.device, moved.dtype)], 2)
            products["cross"] = _product(moved, rows)
            if self.own_drift:
                products["own"] = _product(moved, moved)
        self.tokens += rows.shape[1]
        self._batches += 1
        self._under_way.append(products)
        while len(self._under_way) >= max(1, len(self.devices)):
            self._add_up(self._under_way.popleft())

    def _rows(self, inputs: Tensor) -> Float[Tensor, "groups n d_in"]:
        rows = inputs.detach().reshape(-1, self.groups, inputs.shape[-1]).transpose(0, 1)
        if self.devices:
            rows = rows.to(self.devices[self._batches % len(self.devices)])
        return rows if rows.dtype == torch.float64 else rows.float()

    def _add_up(self, products: dict[str, Tensor]) -> None:
        """Add the products of one batch to the sums; here a device is waited for."""
        for name, product in products.items():
            product = product.to(self._home, torch.float64)
            if name == "gram":
                self._check(product)
            if name in self._sums:
                self._sums[name].add_(product)
            else:
                self._sums[name] = product

    def _check(self, product: Float[Tensor, "groups d_in d_in"]) -> None:
        # a NaN or infinity anywhere in a column makes its diagonal entry NaN or infinite
        finite = torch.isfinite(product.diagonal(dim1=1, dim2=2))
        if not finite.all():
            group, feature = (~finite).nonzero()[0].tolist()
            raise InputError(
                f"The inputs of layer {self.name!r} hold NaN or infinite values, or some whose squares are beyond "
                f"1.8e308 (first in feature {group * product.shape[-1] + feature}); check the model in a wider dtype "
                "such as float32 and the calibration data."
            )

    @pinned()
    def finish(self, d_in: int, device: torch.device | None = None) -> Gram:
        """The Gram of everything added; all zeros if nothing was.

        Raises:
            InputError: some of it was not finite.
        """
        while self._under_way:
            self._add_up(self._under_way.popleft())
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


#: Sizes from which, and up to which, float32 holds the squares of inputs and their sums with room to spare.
_SINGLE = (1e-15, 1e15)


def _product(left: Float[Tensor, "groups n k"], right: Float[Tensor, "groups n d"]) -> Float[Tensor, "groups k d"]:
    """``left' right`` in their own precision, or in float64 where the squares of one leave that."""
    if _leaves_single(left) or (right is not left and _leaves_single(right)):
        where = _hessian_device(left.device)
        return left.to(where, torch.float64).mT @ right.to(where, torch.float64)
    return left.mT @ right


def _leaves_single(rows: Float[Tensor, "groups n k"]) -> bool:
    """Whether squares of float32 rows overflow, or those of a whole feature vanish though it is not zero."""
    if rows.dtype == torch.float64 or not rows.numel():
        return False
    low, high = rows.aminmax(dim=1)
    largest = torch.maximum(-low, high)
    return bool(((largest > _SINGLE[1]) | ((largest > 0) & (largest < _SINGLE[0]))).any())


def _hessian_device(device: torch.device) -> torch.device:
    """Where float64 exists: Apple's GPU has none, so its Hessians live on the CPU."""
    return torch.device("cpu") if device.type == "mps" else device
