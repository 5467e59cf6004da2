"""What can be pruned rightly, and what is said of the rest."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune

from qubo_prune.errors import InputError
from qubo_prune.models.layers import find_layers
from qubo_prune.models.prunable import is_prunable, looks_prunable, objection
from qubo_prune.run.prune import prune


class Codes(nn.Linear):
    """Weights as int8 codes beside a scale."""

    def __init__(self) -> None:
        super().__init__(12, 8)
        self.scale = self.weight.detach().abs().amax() / 127
        self.weight = nn.Parameter((self.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


class Scaled(nn.Linear):
    """A floating point weight that is not what its input is multiplied by."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.norm()


class Called(nn.Linear):
    """A call of its own around the forward pass."""

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x).relu()


class Named(nn.Linear):
    """The forward pass of nn.Linear."""

    def extra_repr(self) -> str:
        return "named"


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(12, 8)


def conv1d(kind: type[nn.Module] | None = None) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return (kind or Conv1D)(8, 12)


def own_conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    class Rounded(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.round())

    return conv1d(Rounded)


def strange_conv1d() -> nn.Module:
    return type("Conv1D", (nn.Module,), {"forward": lambda self, x: x @ self.weight.square()})()


def patched() -> nn.Module:
    module = linear()
    module.forward = lambda x: nn.functional.linear(x, module.weight.relu(), module.bias)
    return module


def deprecated(make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(linear())


def dynamic() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised: nn.Module = torch.ao.nn.quantized.dynamic.Linear.from_float(_with_config(linear()))
    return quantised


def _with_config(module: nn.Module) -> nn.Module:
    module.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return module


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(linear())


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = torch.jit.trace(nn.Sequential(linear()), torch.zeros(1, 12)).get_submodule("0")
    return made


def holding(change: Callable[[Tensor], Tensor]) -> nn.Module:
    module = linear()
    module._parameters["weight"] = nn.Parameter(change(module.weight.detach()), requires_grad=False)
    return module


def made_in_inference() -> nn.Module:
    with torch.inference_mode():
        return linear()


class Wrapping(Tensor):
    """A tensor of a class of its own, as quantisation packages have them."""


WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "codes": (Codes, "holds weights of type torch.int8, and float16, bfloat16, float32, float64 can be pruned"),
    "own forward": (
        lambda: Scaled(12, 8),
        "is a Scaled, which computes its output in a way of its own; replace it by a plain Linear",
    ),
    "own call": (lambda: Called(12, 8), "is a Called, which computes its output in a way of its own"),
    "patched": (patched, "is a Linear, which computes its output in a way of its own"),
    "own Conv1D": (own_conv1d, "is a Rounded, which .* replace it by a plain Conv1D,"),
    "mask": (
        lambda: torch_prune.l1_unstructured(linear(), "weight", 0.5),
        r"has its weight made anew in each pass by torch.nn.utils.prune; call torch.nn.utils.prune.remove\(layer, 'wei",
    ),
    "two masks": (
        lambda: torch_prune.random_unstructured(torch_prune.l1_unstructured(linear(), "weight", 0.5), "weight", 0.5),
        r"torch.nn.utils.prune.remove\(layer, 'weight'\)",
    ),
    "weight_norm": (lambda: parametrizations.weight_norm(linear()), "has a parametrized weight; call .*remove_para"),
    "old weight_norm": (lambda: deprecated(torch.nn.utils.weight_norm), "by weight_norm; call .*remove_weight_norm"),
    "spectral_norm": (lambda: parametrizations.spectral_norm(linear()), "has a parametrized weight"),
    "old spectral_norm": (lambda: deprecated(torch.nn.utils.spectral_norm), "call .*remove_spectral_norm"),
    "orthogonal": (lambda: parametrizations.orthogonal(linear()), "has a parametrized weight"),
    "lazy": (lambda: nn.LazyLinear(8), "is lazy and has no weights yet; run the model once"),
    "float8": (lambda: holding(lambda w: w.to(torch.float8_e4m3fn)), "type torch.float8_e4m3fn"),
    "sparse": (lambda: holding(Tensor.to_sparse), r"as torch.sparse_coo; replace them by weight.to_dense\(\)"),
    "complex": (lambda: holding(lambda w: w.to(torch.complex64)), "type torch.complex64"),
    "a class of its own": (lambda: holding(lambda w: w.as_subclass(Wrapping)), "holds its weights as a Wrapping"),
    "inference": (made_in_inference, "made under torch.inference_mode"),
    "dynamic": (dynamic, "is a quantised Linear; prune the floating point model"),
    "scripted": (scripted, "is compiled by torch.jit; prune the model before"),
    "traced": (traced, "is compiled by torch.jit; prune the model before"),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_pruned_rightly_is_named_with_the_way_out(kind: str) -> None:
    make, message = WRONG[kind]
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), make())
    before = model[0].weight.detach().clone()
    with pytest.raises(InputError, match=f"^The layer '2' .*{message}") as caught:
        prune(model, [torch.randn(4, 12)], 0.5)
    assert str(caught.value).endswith("or exclude that layer.")
    assert str(caught.value).count(". ") == 0  # one sentence
    assert torch.equal(model[0].weight, before)
    assert [layer.name for layer in find_layers(model, exclude=["2"])] == ["0"]


def accelerated() -> nn.Module:
    from accelerate.hooks import ModelHook, add_hook_to_module

    return add_hook_to_module(add_hook_to_module(linear(), ModelHook()), ModelHook(), append=True)


def compiled_forward() -> nn.Module:
    module = linear()
    module.forward = torch.compile(module.forward, backend="eager")
    return module


def falcon() -> nn.Module:
    from transformers.models.falcon.modeling_falcon import FalconLinear

    return FalconLinear(12, 8)


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "like a linear one": falcon,
    "plain": linear,
    "a name of its own": lambda: Named(12, 8),
    "of attention": lambda: nn.MultiheadAttention(12, 2).out_proj,
    "Conv1D": conv1d,
    "a name of its own for Conv1D": lambda: conv1d(type("Renamed", (type(conv1d()),), {})),
    "hooks of accelerate": accelerated,
    "a compiled forward pass": compiled_forward,
    "a mask on the bias": lambda: torch_prune.random_unstructured(linear(), "bias", 0.5),
    "a parametrized bias": lambda: parametrizations.weight_norm(linear(), "bias"),
    "removed mask": lambda: torch_prune.remove(torch_prune.l1_unstructured(linear(), "weight", 0.5), "weight"),
    "removed norm": lambda: parametrize.remove_parametrizations(parametrizations.weight_norm(linear()), "weight"),
    "copied out of inference": lambda: copy.deepcopy(made_in_inference()),
    "dense again": lambda: holding(lambda w: w.to_sparse().to_dense()),
    "no longer lazy": lambda: _run_once(nn.LazyLinear(8)),
    **{
        str(dtype): functools.partial(lambda dtype: linear().to(dtype), dtype)
        for dtype in (torch.float16, torch.bfloat16, torch.float64)
    },
}


def _run_once(module: nn.Module) -> nn.Module:
    module(torch.zeros(1, 12))
    return module


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:Lazy modules")
@pytest.mark.parametrize("kind", RIGHT)
def test_what_the_ways_out_lead_to_is_taken(kind: str) -> None:
    module = RIGHT[kind]()
    assert objection("0", module) is None
    assert [layer.name for layer in find_layers(nn.Sequential(module))] == ["0"]


def test_a_class_called_conv1d_with_another_forward_pass_is_refused() -> None:
    module = strange_conv1d()
    module.nf, module.weight = 8, nn.Parameter(torch.randn(12, 8))
    assert is_prunable(module)
    with pytest.raises(InputError, match="replace it by a plain Conv1D of transformers"):
        find_layers(nn.Sequential(module))


def test_what_only_looks_like_a_layer() -> None:
    assert not any(map(looks_prunable, (nn.ReLU(), nn.Embedding(3, 4), nn.Conv1d(3, 4, 1), nn.LayerNorm(3))))
    assert looks_prunable(scripted())
    assert not is_prunable(scripted())


def test_weights_that_are_elsewhere_are_refused_before_anything_is_changed() -> None:
    model = tiny.mlp()
    model[2].to("meta")
    before = model[0].weight.detach().clone()
    for tried in (model, copy.deepcopy(model).to("meta")):
        with pytest.raises(InputError, match=r"layer '[02]' are not in memory \(device meta: offloaded, or never"):
            prune(tried, [torch.randn(4, 12)], 0.5)
    assert torch.equal(model[0].weight, before)


def test_offloaded_weights_are_refused(tmp_path: Any) -> None:
    from accelerate import cpu_offload, disk_offload

    for offload in (lambda model: cpu_offload(model), lambda model: disk_offload(model, str(tmp_path))):
        model = tiny.mlp()
        offload(model)
        with pytest.raises(InputError, match="layer '0' are not in memory"):
            prune(model, [torch.randn(4, 12)], 0.5, run_folder=None)
        assert model(torch.randn(2, 12)).shape == (2, 4)


def test_runs_within_inference_mode_are_like_others() -> None:
    def run(data: Tensor, **settings: Any) -> Any:
        with torch.inference_mode(False):
            model = tiny.mlp()
        report = prune(model, [(data, torch.arange(40) % 4)], 0.5, **settings)
        assert not any(weight.is_inference() for weight in model.parameters())
        return report

    data = torch.randn(40, 12, generator=torch.Generator().manual_seed(1))
    loss: dict[str, Any] = {"method": "loss", "loss_settings": {"max_blocks": 1, "block_size": 8}}
    for settings in ({"loss": "classification", "method": "compensated"}, loss):
        expected = run(data, **settings)
        with torch.inference_mode():
            made = data.clone()
            within = run(made, **settings)
        outside = run(made, **settings)
        for found in (within, outside):
            assert [layer.error_after for layer in found.layers] == [layer.error_after for layer in expected.layers]
            assert all(torch.equal(found.masks[name], expected.masks[name]) for name in expected.masks)
