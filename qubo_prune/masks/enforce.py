"""Pruned weights that stay zero while a model is trained further, and low-rank updates merged into sparse weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.models.names import plain_name
from qubo_prune.precision import pinned


def enforce(model: nn.Module, masks: Mapping[str, Tensor]) -> Enforced:
    """Set the pruned weights to zero now, and keep them there in all training until the handle is removed.

    Three hooks see to it, none of which changes the names in the state dict:

    * the gradient of a pruned weight is zero, even where it would be NaN;
    * after the step of any ``torch.optim.Optimizer``, momentum and weight decay included, the
      parameter holds exact zeros again;
    * so it does whenever a module that owns it is called, for updates of other origin, such as a
      loaded checkpoint or an optimizer that is no ``torch.optim.Optimizer``.

    A weight that modules share needs one of its names in the masks. The parameters must be whole
    tensors: those that FSDP or DeepSpeed ZeRO-3 cut into parts are not supported. Each mask takes
    one byte a weight on the parameter's device, and each call of a module one pass over its mask.
    The copy of a model keeps its zeros when it is called; to train it, enforce the masks there too.

    Args:
        model: any module; the masked weights may have any shape and may be frozen.
        masks: keep masks (``True`` = keep) by parameter name, bool, in the parameter's shape:
            :class:`qubo_prune.masks.keep.KeepMasks` or a plain mapping.

    Raises:
        InputError: a mask has no parameter or another shape or type, there is none, or two masks of
            one shared weight differ.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> with enforce(model, {"weight": torch.tensor([[True, False]])}):
        ...     optimizer = torch.optim.AdamW(model.parameters())
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        >>> model.weight[0, 1].item()
        0.0
    """
    zeros = _checked(model, masks)
    owners: WeakKeyDictionary[nn.Module, list[_BeforeCall]] = WeakKeyDictionary()
    handles = []
    for module in model.modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter in zeros:
                hook = _BeforeCall(leaf, zeros[parameter])
                handles.append(module.register_forward_pre_hook(hook))
                owners.setdefault(module, []).append(hook)
    handles += [_hook_gradient(parameter, zero) for parameter, zero in zeros.items()]
    return Enforced(owners, handles)


class Enforced:
    """Masks in force on a model; :meth:`remove` or the end of a ``with`` block lifts them."""

    def __init__(self, owners: WeakKeyDictionary[nn.Module, list[_BeforeCall]], handles: list[RemovableHandle]) -> None:
        # modules are held weakly: the hook on all optimizers must not keep a forgotten model alive
        self._owners = owners
        self._handles = [*handles, register_optimizer_step_post_hook(lambda *_: self.zero())]
        self.zero()

    def zero(self) -> None:
        """Set the pruned weights to zero now; only needed before reading weights that no optimizer of torch changed."""
        for module, hooks in self._owners.items():
            for hook in hooks:
                hook(module)

    def remove(self) -> None:
        """Lift the masks, with all pruned weights at zero; again does nothing."""
        if self._handles:
            self.zero()
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> Enforced:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


@dataclass(eq=False)
class _Zeros:
    """Where one parameter is pruned."""

    pruned: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        if self.pruned.device != tensor.device:  # the model has moved
            self.pruned = self.pruned.to(tensor.device)
        return self.pruned

    def in_gradient(self, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self.of(gradient), 0)


@dataclass(eq=False)
class _BeforeCall:
    """Forward pre-hook of a module; an object and no closure, so that models can be copied and pickled."""

    leaf: str
    zeros: _Zeros

    def __call__(self, module: nn.Module, inputs: Any = ()) -> None:
        weight = getattr(module, self.leaf)
        if isinstance(weight, nn.Parameter):  # not what torch.func puts in its place
            # .data: a graph that saved the weight saved these zeros, so it stays valid
            weight.data.masked_fill_(self.zeros.of(weight), 0)


def _hook_gradient(parameter: nn.Parameter, zeros: _Zeros) -> RemovableHandle:
    frozen = not parameter.requires_grad
    parameter.requires_grad_(True)  # a hook cannot be registered without, but outlasts freezing
    handle: RemovableHandle = parameter.register_hook(zeros.in_gradient)  # type: ignore[no-untyped-call]
    parameter.requires_grad_(not frozen)
    return handle


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[nn.Parameter, _Zeros]:
    """The pruned entries of each masked parameter."""
    parameters = {plain_name(name): weight for name, weight in model.named_parameters(remove_duplicate=False)}
    if not masks:
        raise InputError("There are no masks to enforce; pass those of the report, or KeepMasks.load(path).")
    zeros: dict[nn.Parameter, _Zeros] = {}
    for name, keep in masks.items():
        if name not in parameters:
            raise InputError(
                f"The mask {name!r} has no parameter in the model{did_you_mean(name, parameters)}; pass the model "
                "that the masks were made for, or rename the mask."
            )
        parameter = parameters[name]
        _check_mask(keep, parameter, f"The mask {name!r}")
        pruned = ~keep.to(parameter.device)
        if parameter in zeros and not torch.equal(zeros[parameter].pruned, pruned):
            raise InputError(f"The mask {name!r} differs from that of a weight it is tied to; pass one of the two.")
        zeros[parameter] = _Zeros(pruned)
    return zeros


def _check_mask(keep: Tensor, weight: Tensor, what: str) -> None:
    if keep.dtype != torch.bool or keep.shape != weight.shape:
        raise InputError(
            f"{what} is {keep.dtype} of shape {tuple(keep.shape)}, its weight has the shape {tuple(weight.shape)}; "
            "masks are bool (True = keep) and have the shape of the stored weight."
        )
    if not weight.is_floating_point():
        raise InputError(f"{what} belongs to a weight of {weight.dtype}; only floating-point weights can be masked.")


@pinned()
def merge_low_rank(weight: Tensor, a: Tensor, b: Tensor, scale: float, keep: Tensor) -> tuple[Tensor, float]:
    """Merge a low-rank update such as LoRA's into a sparse weight: ``keep * (W + scale * B A)``.

    The sum is formed in float32, or float64 if the weight is, and rounded once. A weight that is
    stored transposed (the ``Conv1D`` of transformers) is passed as ``weight.T`` with ``keep.T``.

    Args:
        weight: ``(d_out, ...)``, a matrix or a kernel; it is not changed.
        a: ``(r, ...)``, whose rows are as long as the weight's, flattened.
        b: ``(d_out, r)``.
        scale: factor of the update; LoRA's is alpha / r.
        keep: keep mask (``True`` = keep), bool, in the weight's shape.

    Returns:
        The merged weight, in the weight's type, its pruned entries zero; and the share of the
        update's Frobenius norm that fell on them and is lost, 0 to 1 (the square root of its share
        of the sum of squares).

    Raises:
        InputError: shapes do not fit.

    Example:
        >>> merge_low_rank(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.ones(1, 1), 1.0,
        ...                torch.tensor([[True, False]]))
        (tensor([[3., 0.]]), 0.8)
    """
    _check_mask(keep, weight, "The keep mask")
    rows = weight.shape[0] if weight.ndim else 0
    fits = weight.ndim >= 2 and a.ndim >= 2 and b.ndim >= 2 and (len(b), b[0:1].numel()) == (rows, len(a))
    if not fits or a.flatten(1).shape[1] != weight.flatten(1).shape[1]:
        raise InputError(
            f"A has the shape {tuple(a.shape)} and B {tuple(b.shape)}, the weight {tuple(weight.shape)}; for a weight "
            "(d_out, d_in) pass A as (r, d_in) and B as (d_out, r), transposed if yours are."
        )
    exact = torch.promote_types(weight.dtype, torch.float32)
    pruned = ~keep.to(weight.device)
    with torch.no_grad():
        low, high = a.flatten(1).to(weight.device, exact), b.flatten(1).to(weight.device, exact)
        update = (scale * (high @ low)).reshape(weight.shape)
        merged = (weight.to(exact) + update).to(weight.dtype).masked_fill(pruned, 0)
        whole, lost = (float(part.double().norm()) for part in (update, update[pruned]))
    return merged, lost / whole if whole else 0.0
