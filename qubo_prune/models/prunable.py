"""Which modules can be pruned rightly, and what has to be done about those that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

#: Types of weights that can be pruned.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Hooks that make a weight from other parameters, by the name of their class: who adds them, what takes them away.
_MAKERS = {
    "BasePruningMethod": ("torch.nn.utils.prune", "torch.nn.utils.prune.remove(layer, 'weight')"),
    "WeightNorm": ("weight_norm", "torch.nn.utils.remove_weight_norm(layer)"),
    "SpectralNorm": ("spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)"),
}
#: Modules of these packages hold codes in the place of weights.
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")

#: Forward passes of others that compute what ``nn.Linear`` does, in the order of other operations.
_LIKE_LINEAR = ("transformers.models.falcon.modeling_falcon.FalconLinear.forward",)


def is_prunable(module: nn.Module) -> bool:
    """True for ``nn.Linear``, ``nn.Conv2d``, the ``Conv1D`` of transformers, and what inherits from them."""
    return isinstance(module, (nn.Linear, nn.Conv2d)) or _is_conv1d(module)


def looks_prunable(module: nn.Module) -> bool:
    """True also for scripted and quantised forms of such modules."""
    scripted = isinstance(module, torch.jit.ScriptModule) and module.original_name in ("Linear", "Conv2d", "Conv1D")
    return is_prunable(module) or scripted or _is_quantised(module)


def _is_conv1d(module: nn.Module) -> bool:
    # by name, so that a plain PyTorch model does not import transformers
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__) and hasattr(module, "nf")


def _is_quantised(module: nn.Module) -> bool:
    there = type(module).__module__.startswith(_QUANTISED)
    return there and (hasattr(module, "in_features") or hasattr(module, "kernel_size"))


def own_weight(module: nn.Module) -> nn.Parameter | None:
    """The weight of a module if that is a parameter of its own."""
    parameters: dict[str, nn.Parameter | None] = dict(module._parameters.items())
    return parameters.get("weight")


def objection(name: str, module: nn.Module) -> str | None:
    """A sentence that says why a layer cannot be pruned rightly, and the way out; ``None`` if it can."""
    found = next((each for each in _objections(module)), None)
    if found is None:
        return None
    what, way_out = found
    return f"The layer {name!r} {what}; {way_out}, or exclude that layer."


def _objections(module: nn.Module) -> Iterator[tuple[str, str]]:
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        yield "is compiled by torch.jit", "prune the model before torch.jit.script or torch.jit.trace"
    elif _is_quantised(module):
        yield f"is a quantised {kind}", "prune the floating point model and quantise the result"
    elif (weight := own_weight(module)) is None:
        yield _of_no_parameter(module)
    else:
        yield from _of_weight(weight)
        yield from _of_forward(module)


def _of_no_parameter(module: nn.Module) -> tuple[str, str]:
    """Why the weight is no parameter."""
    if parametrize.is_parametrized(module, "weight"):
        way_out = "call torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') on it first"
        return "has a parametrized weight", way_out
    for hook in module._forward_pre_hooks.values():
        for kind in type(hook).__mro__:
            if kind.__name__ in _MAKERS and "weight" in (getattr(hook, "name", ""), getattr(hook, "_tensor_name", "")):
                maker, call = _MAKERS[kind.__name__]
                return f"has its weight made anew in each pass by {maker}", f"call {call} on it first"
    held = type(getattr(module, "weight", None)).__name__
    return f"has a {held} for its weight, which is no parameter", "give it an nn.Parameter"


def _of_weight(weight: nn.Parameter) -> Iterator[tuple[str, str]]:
    if isinstance(weight, nn.UninitializedParameter):
        yield "is lazy and has no weights yet", "run the model once on a batch before it is pruned"
    elif weight.layout != torch.strided:
        yield f"holds its weights as {weight.layout}", "replace them by weight.to_dense()"
    elif weight.is_quantized or weight.dtype not in DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        yield (
            f"holds weights of type {weight.dtype}, and {allowed} can be pruned",
            "load or convert the model in one of these (a quantised one dequantised)",
        )
    elif type(weight.data) is not Tensor and weight.device.type != torch._C._get_privateuse1_backend_name():
        # a device whose back-end is written in Python has a class of its own
        yield f"holds its weights as a {type(weight.data).__name__}", "give it plain floating point tensors"
    elif weight.is_inference():
        yield (
            "holds weights that were made under torch.inference_mode, which cannot be changed outside of it",
            "copy the model outside of it (copy.deepcopy)",
        )


def _of_forward(module: nn.Module) -> Iterator[tuple[str, str]]:
    base = _base(module)
    forward = _forward(module)
    known = forward is getattr(base, "forward", None) or (
        f"{forward.__module__}.{getattr(forward, '__qualname__', '')}" in _LIKE_LINEAR and base is nn.Linear
    )
    changed = not known or type(module).__call__ is not nn.Module.__call__
    if isinstance(module, nn.Conv2d):
        own = module.__dict__.get("_conv_forward", type(module)._conv_forward)
        changed = changed or getattr(own, "__func__", own) is not nn.Conv2d._conv_forward
    if changed:
        plain = "Conv1D of transformers" if base is None else base.__name__
        yield (
            f"is a {type(module).__name__}, which computes its output in a way of its own",
            f"replace it by a plain {plain}, with what comes before or behind in a module of its own",
        )


def _base(module: nn.Module) -> Any:
    """The class whose forward pass a layer must have."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    return next((kind for kind in type(module).__mro__ if kind.__module__ == "transformers.pytorch_utils"), None)


def _forward(module: nn.Module) -> Any:
    """The function that a module's forward pass comes to, behind the hooks of accelerate and compilation."""
    own: Any = module.__dict__.get("forward")
    if own is not None and "_hf_hook" in module.__dict__:
        own = module.__dict__.get("_old_forward")
    while hasattr(own, "__wrapped__") and _is_of_compiler(own):
        own = own.__wrapped__
    return type(module).forward if own is None else getattr(own, "__func__", own)


def _is_of_compiler(function: Any) -> bool:
    module: str = getattr(function, "__globals__", {}).get("__name__", "")
    return module.startswith("torch._dynamo")
