"""What a report says was measured: for every family of a zoo the errors are those of the pruned model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import zoo
from measured import measured, prunable, weights
from torch import nn

from qubo_prune import InputError, prune
from qubo_prune.masks import Pattern
from qubo_prune.models.layers import Layer
from qubo_prune.report import Report

#: How far a reported relative error may be from the measured one.
NEAR = 1e-6

#: Families that run in every test run; the others are heavy.
SMALL = {"llama", "gpt2", "gemma3_text", "bert", "vit", "bart", "albert", "resnet"}

#: Families that are not yet right, and what they wait for.
WAITING: dict[str, str] = {}


#: Families of which all variants are tried; the others are tried plainly.
CORE = SMALL | {
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "phi3",
    "gpt_neox",
    "gptj",
    "gpt_neo",
    "opt",
    "bloom",
    "falcon",
    "mpt",
    "stablelm",
    "olmo2",
    "cohere",
    "starcoder2",
    "granite",
    "smollm3",
    "mixtral",
    "qwen2_moe",
    "deepseek_v3",
    "gpt_oss",
    "mamba",
    "jamba",
    "zamba2",
    "bamba",
    "glm",
    "xglm",
    "codegen",
    "roberta",
    "distilbert",
    "electra",
    "deberta-v2",
    "mpnet",
    "modernbert",
    "deit",
    "swin",
    "dinov2",
    "beit",
    "convnext",
    "segformer",
    "clip",
    "siglip",
    "whisper",
    "wav2vec2",
    "t5",
}


@dataclass(frozen=True)
class Case:
    """A model to prune, its calibration, and what its layers' inputs are then measured on.

    Attributes:
        model: to prune.
        batches: its calibration.
        twin: the same as a plain model, for the pruned weights.
        plain: the calibration as plain inputs of the twin.
        prefix: what stands before the names of the twin's modules in the model.
    """

    model: nn.Module
    batches: list[Any]
    twin: nn.Module
    plain: list[Any]
    prefix: str = ""


class Wrapped(nn.Module):
    """A language model behind a plain module."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, **inputs: Any) -> Any:
        return self.lm(**inputs)


def switched(model: nn.Module, cache: bool) -> nn.Module:
    """The model with its configurations asking for a cache or for none."""
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = cache
    return model


def plain(family: zoo.Family) -> Case:
    return Case(family.make(), family.inputs(), switched(family.make(), False), family.inputs())


def wrapped(family: zoo.Family) -> Case:
    return replace(plain(family), model=Wrapped(family.make()), prefix="lm.")


def cached(family: zoo.Family) -> Case:
    case = plain(family)
    switched(case.model, True)
    if "use_cache" not in inspect.signature(case.model.forward).parameters:
        return case
    return replace(case, batches=[{**batch, "use_cache": True} for batch in case.batches])


def padded(family: zoo.Family, left: bool) -> Case:
    """Two texts of two lengths in a batch, and one by one."""
    if not family.padded:
        pytest.skip("The family takes no texts, or no mask of them.")
    case, batches, single = plain(family), [], []
    for number, batch in enumerate(case.batches):
        ids = batch["input_ids"].clone()
        short, mask = zoo.LENGTH - 2 - number, torch.ones_like(ids)
        single += [{"input_ids": ids[:1, :short].clone()}, {"input_ids": ids[1:].clone()}]
        padding = slice(None, zoo.LENGTH - short) if left else slice(short, None)
        ids[0] = torch.cat([ids[0, short:], ids[0, :short]]) if left else ids[0]
        ids[0, padding], mask[0, padding] = 0, 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return replace(case, batches=batches, plain=single)


def checkpointed(family: zoo.Family, reentrant: bool) -> Case:
    case = plain(family)
    if not getattr(case.model, "supports_gradient_checkpointing", False):
        pytest.skip("The family has no gradient checkpointing.")
    case.model.activation_checkpointing_enable({"use_reentrant": reentrant})
    case.model.train()
    return case


def compiled(family: zoo.Family) -> Case:
    case = plain(family)
    for blocks in case.model.modules():
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            block.compile(backend="eager")
    return case


def in_bfloat16(family: zoo.Family) -> Case:
    """The inputs that layers get are rounded, and so measured; products with them are not."""
    case = plain(family)
    batches = [
        {name: value.bfloat16() if value.is_floating_point() else value for name, value in batch.items()}
        for batch in case.plain
    ]
    return Case(case.model.bfloat16(), batches, case.twin.bfloat16(), batches)


VARIANTS = {
    "plain": plain,
    "wrapped": wrapped,
    "cached": cached,
    "padded left": functools.partial(padded, left=True),
    "padded right": functools.partial(padded, left=False),
    "checkpointed": functools.partial(checkpointed, reentrant=False),
    "reentrant": functools.partial(checkpointed, reentrant=True),
    "compiled": compiled,
    "bfloat16": in_bfloat16,
}


def cases() -> Iterator[Any]:
    """Families with their variants."""
    for family in zoo.FAMILIES:
        for variant in VARIANTS if family.name in CORE else ["plain"]:
            marks = [] if family.name in SMALL else [pytest.mark.slow]
            reason = WAITING.get(family.name) or WAITING.get(f"{family.name}-{variant}")
            if reason:
                marks.append(pytest.mark.xfail(strict=True, reason=reason))
            yield pytest.param(family, variant, marks=marks, id=f"{family.name}-{variant.replace(' ', '-')}")


def heads(model: nn.Module) -> set[int]:
    """Weights of output heads, which stay dense."""
    found = [module.get_output_embeddings() for module in model.modules() if hasattr(module, "get_output_embeddings")]
    return {id(head.weight) for head in found if head is not None and hasattr(head, "weight")}


def state_of(model: nn.Module) -> Any:
    """What a run must leave as it was, besides weights."""
    modes = {name: module.training for name, module in model.named_modules()}
    own = {name: ("forward" in module.__dict__, module._compiled_call_impl) for name, module in model.named_modules()}
    hooks = {
        name: [len(getattr(module, kind)) for kind in module.__dict__ if kind.endswith("_hooks")]
        for name, module in model.named_modules()
    }
    configs = {name: module.config.to_dict() for name, module in model.named_modules() if hasattr(module, "config")}
    return modes, own, hooks, configs


def check(case: Case, **settings: Any) -> Report:
    """Prune the model and hold the report against what hooks measure on a twin with the pruned weights."""
    model, dense, before = case.model, weights(case.model), state_of(case.model)
    report = prune(model, case.batches, 0.5, **settings)
    assert state_of(model) == before
    case.twin.load_state_dict({name.removeprefix(case.prefix): value for name, value in model.state_dict().items()})
    own = {name.removeprefix(case.prefix): weight for name, weight in dense.items()}
    found = {case.prefix + name: error for name, error in measured(case.twin, own, case.plain).items()}
    modules, told = prunable(model), {layer.name: layer for layer in report.layers}
    left = {layer.name for layer in report.left_dense}
    assert {name for name in found if id(modules[name].weight) not in heads(model)} <= set(told) | left
    assert all(torch.equal(modules[name].weight.detach(), dense[name]) for name in dense if name not in told)
    for name, layer in told.items():
        seen, keep = Layer(name, modules[name]), report.masks[f"{name}.weight"]
        assert torch.equal(modules[name].weight.detach(), dense[name] * keep)
        assert name in found
        assert layer.relative_after == pytest.approx(found[name], abs=NEAR, rel=0), name
        assert Pattern.parse("row").violations(seen.as_matrix(keep), 0.5) == 0
    return report


@pytest.mark.gate(36)
@pytest.mark.parametrize(("family", "variant"), list(cases()))
def test_reported_errors_are_those_of_the_pruned_model(family: zoo.Family, variant: str) -> None:
    check(VARIANTS[variant](family), method="wanda")


@pytest.mark.parametrize(
    "family", [family for family in zoo.FAMILIES if family.name in {"llama", "albert"}], ids=lambda family: family.name
)
def test_so_are_those_of_blocks(family: zoo.Family) -> None:
    report = check(plain(family), method="gram")
    assert any(layer.accepted for layer in report.layers)


@pytest.mark.parametrize("family", zoo.OF_CHANCE, ids=lambda family: family.name)
def test_a_family_that_draws_random_numbers_is_refused(family: zoo.Family) -> None:
    with pytest.raises(InputError, match=r"The layer '\S*layers?\.0\.\S*q\S*' has other inputs each time"):
        prune(family.make(), family.inputs(), 0.5, method="wanda")


def test_the_zoo_is_large() -> None:
    names = [family.name for family in zoo.FAMILIES]
    assert len(set(names)) == len(names) >= 40
    assert len(CORE) >= 40
    assert set(names) >= CORE | set(WAITING)
