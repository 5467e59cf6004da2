"""Tensors that say they are on an accelerator and compute on the CPU: mixed devices and waits, without an accelerator.

    with Labelled() as seen:
        x = seen.put(torch.randn(3))  # x.device == labelled:0
        run(x)
    seen.waits                        # what the host would have waited for, by operator

An operator that mixes a labelled tensor with a tensor of another device raises, as on CUDA; tensors without dimensions
and CPU indices may be mixed, as there. Values are real, so control flow that depends on them runs.

Entering it registers the device type for the whole process: PyTorch then takes an accelerator to be there. So use it in
a process of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

KIND = "labelled"
#: Operators whose operands may be on several devices.
_CROSSING = {"_to_copy", "copy_", "_copy_from"}
#: Operators that have the host wait for a value or a size.
_WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "is_nonzero",
    "bincount",
}
#: Operators that have no deterministic version on CUDA: ``torch.use_deterministic_algorithms(True)`` raises there.
_UNDETERMINED = {"kthvalue", "histc", "put_", "median"}


class LabelledTensor(Tensor):
    """A tensor on the CPU with the label of another device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> LabelledTensor:
        made: LabelledTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
            requires_grad=False,
        )  # type: ignore[attr-defined]
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _active[-1].run(func, args, dict(kwargs or {}))

    def tolist(self) -> Any:
        _active[-1].waits["tolist"] += 1
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, other: LabelledTensor) -> None:
        self.inner = other.inner

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"LabelledTensor({self.inner!r}, {self.device})"


class _Factories(TorchFunctionMode):
    """``torch.tensor`` copies below where operators are seen, so it is labelled afterwards."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        device = given.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == KIND:
            del given["device"]
            return func(*args, **given).to(device)
        return func(*args, **given)


_active: list[Labelled] = []


class Labelled(TorchDispatchMode):
    """Makes the device type usable and notes what is done on it.

    Attributes:
        waits: for what the host would have waited, by operator.
        operators: how many ran on a labelled device.
        undetermined: those of them that have no deterministic version on CUDA.
        synchronised: how often one was waited for on purpose.
    """

    def __init__(self) -> None:
        _register()
        super().__init__()
        self.waits, self.undetermined = Counter[str](), Counter[str]()
        self.operators = self.synchronised = 0
        self._entered = ExitStack()

    def __enter__(self) -> Labelled:
        _active.append(self)
        self._entered.enter_context(torch.autograd.set_multithreading_enabled(False))
        self._entered.enter_context(_Factories())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._entered.close()
        _active.pop()

    def put(self, tensor: Tensor, index: int = 0) -> Tensor:
        """A copy on the labelled device of that number."""
        tensor = tensor.detach()
        inner = tensor.inner if isinstance(tensor, LabelledTensor) else tensor
        return LabelledTensor(inner.clone(), torch.device(KIND, index))

    def move(self, module: nn.Module, index: int = 0) -> nn.Module:
        """A module's parameters and buffers there, in place."""
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    moved = self.put(parameter, index)
                    part._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self.put(buffer, index)
        return module

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.run(func, args, dict(kwargs or {}))

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An operator on the CPU, its result labelled."""
        flat, _ = tree_flatten((args, kwargs))
        labels = {operand.device for operand in flat if isinstance(operand, LabelledTensor)}
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if not labels and (asked is None or asked.type != KIND):
            return func(*args, **kwargs)
        name: str = func._schema.name.split("::")[1]
        self.operators += 1
        if name not in _CROSSING:
            self._check(func, name, args, kwargs, flat, labels)
        self._note(name, args, asked)
        where = asked or next(iter(labels))
        if name == "copy_":
            where = args[0].device
        if where.type == KIND and where.index is None:
            where = torch.device(KIND, 0)
        return _computed(func, args, kwargs, flat, where)

    def _note(self, name: str, args: Sequence[Any], asked: torch.device | None) -> None:
        """What is waited for, and what is not deterministic."""
        if name in _WAITING:
            self.waits[name] += 1
        if name in _UNDETERMINED or (name == "cumsum" and args[0].is_floating_point()):
            self.undetermined[name] += 1
        if name == "bincount" and len(args) > 1 and args[1] is not None:
            self.undetermined[name] += 1
        to_host = asked is not None and asked.type == "cpu" if name == "_to_copy" else name == "copy_"
        if to_host and (name == "_to_copy" or (args[0].device.type == "cpu" and isinstance(args[1], LabelledTensor))):
            self.waits[f"{name} to the CPU"] += 1

    def _check(
        self,
        func: Any,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        flat: Sequence[Any],
        labels: set[torch.device],
    ) -> None:
        """Raise as CUDA does if the operands are not on one device."""
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"Expected a {KIND!r} device type for generator but found 'cpu': {func}")
        indices: list[Tensor] = []
        if name.startswith("index") and len(args) > 1 and isinstance(args[1], (list, tuple)):
            indices = [index for index in args[1] if index is not None]
            self.waits["index on the CPU"] += any(index.device.type == "cpu" for index in indices)
            self.waits["index by a mask"] += any(index.dtype == torch.bool for index in indices)
        others = [
            operand
            for operand in flat
            if isinstance(operand, Tensor)
            and not isinstance(operand, LabelledTensor)
            and operand.dim() > 0
            and not any(operand is index for index in indices)
        ]
        if others or len(labels) > 1:
            found = [*map(str, labels), *(f"{other.device} {tuple(other.shape)}" for other in others)]
            raise RuntimeError(f"Expected all tensors to be on the same device: {func} of {', '.join(found)}")


def _computed(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], flat: Sequence[Any], where: torch.device
) -> Any:
    def plain(value: Any) -> Any:
        return value.inner if isinstance(value, LabelledTensor) else value

    given = tree_map(plain, dict(kwargs))
    if given.get("device") is not None and torch.device(given["device"]).type == KIND:
        given["device"] = "cpu"
    given.pop("pin_memory", None)
    found = func(*tree_map(plain, args), **given)
    known = {id(operand.inner): operand for operand in flat if isinstance(operand, LabelledTensor)}

    def labelled(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, LabelledTensor):
            return value
        if where.type != KIND:
            return value.clone() if id(value) in known else value
        same = known.get(id(value))
        return LabelledTensor(value, where) if same is None else same

    return tree_map(labelled, found)


def _register() -> None:
    """Make the device type known, with what PyTorch wants of one."""
    if hasattr(torch, KIND):
        return
    from torch.utils import backend_registration

    def synchronize(device: Any = None) -> None:
        if _active:
            _active[-1].synchronised += 1

    backend_registration._setup_privateuseone_for_python_backend(KIND)
    module = getattr(torch, KIND)
    module.synchronize, module.device_count = synchronize, lambda: 2
    module.mem_get_info = lambda device=None: (2**20, 2**30)
