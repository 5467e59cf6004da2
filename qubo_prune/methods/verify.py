"""What a method decided, verified before it is put into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qubo_prune.blocks.rows import DescentResult
from qubo_prune.errors import InputError, MethodError, QuboPruneError
from qubo_prune.methods.base import Decision, LayerMethod, LayerTask, Method, ModelDecision, ModelMethod, ModelTask

_WAY_OUT = "take another method, and tell its author (qubo-prune check-method finds such faults)."


def decided_by(step: LayerMethod, task: LayerTask, so_far: Decision | None = None) -> Decision:
    """What a method decides of a layer, with its shapes, types, counts, zeros and declarations verified.

    Args:
        step: who decides.
        task: the layer, and what is asked.
        so_far: what was decided before; ``None`` for a start.

    Raises:
        InputError: the decision is wrong, or the method wrote to what it was given.
        MethodError: a method of another distribution raised something.
    """
    given = _tensors(task, so_far)
    versions = [_version(tensor) for _, tensor in given]
    counts = None if so_far is None else task.pattern.counts(so_far.keep)
    with blamed(step, _where(task)):
        found = step.decide(task, so_far)
    for (name, tensor), version in zip(given, versions, strict=True):
        if _version(tensor) != version:
            raise _wrong(step, task, f"{name} of its task changed")
    return _verified(step, found, task, so_far, counts)


@contextmanager
def blamed(method: Method, where: str) -> Iterator[None]:
    """Turn what a method of another distribution raises into one sentence that names it; ours shows where it failed."""
    try:
        yield
    except QuboPruneError:
        raise
    except Exception as error:
        if type(method).__module__.partition(".")[0] == "qubo_prune" or isinstance(error, MemoryError):
            raise
        raise MethodError(
            f"The method {method.traits.label!r} failed at {where} ({type(error).__name__}: {error}); {_WAY_OUT}"
        ) from error


def _tensors(task: LayerTask, so_far: Decision | None) -> list[tuple[str, Tensor]]:
    held_out = task.gram.held_out
    every = {
        "the weights": task.weight,
        "the Gram": task.gram.matrix,
        "the held-out Gram": None if held_out is None else held_out.matrix,
        "the protected weights": task.stays,
        "the mask so far": None if so_far is None else so_far.keep,
        "the weights so far": None if so_far is None else so_far.weight,
    }
    return [(name, tensor) for name, tensor in every.items() if tensor is not None]


def _version(tensor: Tensor) -> int:
    """Counts in-place changes; a tensor made in inference mode does not count them."""
    return -1 if tensor.is_inference() else tensor._version


def _where(task: LayerTask) -> str:
    return f"layer {task.name!r}" if task.name else "the layer"


def _wrong(step: LayerMethod, task: LayerTask, what: str) -> InputError:
    return InputError(f"The method {step.traits.label!r} left {_where(task)} with {what}; {_WAY_OUT}")


def _verified(
    step: LayerMethod, found: Any, task: LayerTask, so_far: Decision | None, counts: Tensor | None
) -> Decision:
    if not isinstance(found, Decision) or not isinstance(found.keep, Tensor):
        what = type(found.keep if isinstance(found, Decision) else found).__name__
        raise _wrong(step, task, f"a {what}, which is no Decision with a mask in a tensor")
    device, weight = task.weight.device, found.weight
    if not (weight is None or isinstance(weight, Tensor)):
        raise _wrong(step, task, f"weights of type {type(weight).__name__}")
    if not (found.search is None or isinstance(found.search, DescentResult)):
        raise _wrong(step, task, f"a search of type {type(found.search).__name__}")
    if not isinstance(found.notes, Mapping) or not all(
        isinstance(said, str) and type(number) is int for said, number in found.notes.items()
    ):
        raise _wrong(step, task, "notes that are no sentences, each with a number")
    if weight is not None and not step.traits.updates:
        raise _wrong(step, task, "weights, and its traits say that it updates none")
    made = replace(
        found,
        keep=found.keep.detach().to(device),
        weight=None if weight is None else weight.detach().to(device),
    )
    shape, wrong = task.weight.shape, None
    if made.keep.shape != shape or made.keep.dtype != torch.bool:
        wrong = f"a mask of shape {tuple(made.keep.shape)} and type {made.keep.dtype}"
    elif weight is not None and (weight.shape != shape or weight.dtype != task.weight.dtype):
        wrong = f"weights of shape {tuple(weight.shape)} and type {weight.dtype}"
    else:
        wrong = next((fault for fault, there in _faults(step, made, task, so_far, counts) if there), None)
    if wrong:
        raise _wrong(step, task, wrong)
    return made


def _faults(
    step: LayerMethod, found: Decision, task: LayerTask, so_far: Decision | None, counts: Tensor | None
) -> list[tuple[str, bool]]:
    """What may be wrong with a decision of the right shapes, and whether it is; the device is waited for once."""
    pattern, keep, weight = task.pattern, found.keep, found.weight
    checks: list[tuple[str, Tensor]] = []
    if counts is not None:
        moved = pattern.counts(keep) != counts.to(keep.device)
        checks.append(("a mask with other counts than it was given", moved.any()))
    elif step.exact:
        broken = pattern.broken(keep, task.density)
        checks.append((f"a mask that breaks the pattern {pattern.name} at density {task.density:g}", broken.any()))
    if so_far is not None and not step.moves_masks:
        checks.append(("another mask, and it says that it moves none", (keep != so_far.keep).any()))
    if so_far is not None and task.stays is not None and step.traits.protects and step.moves_masks:
        checks.append(("protected weights pruned", (task.stays & ~keep).any()))
    if weight is not None:
        checks.append(("weights that are not finite", ~weight.isfinite().all()))
        checks.append(("pruned weights that are not zero", ((weight != 0) & ~keep).any()))
    if not checks:
        return []
    flags = torch.stack([flag.to(checks[0][1].device) for _, flag in checks]).tolist()
    return [(fault, flag) for (fault, _), flag in zip(checks, flags, strict=True)]


def all_decided_by(method: ModelMethod, task: ModelTask, so_far: Mapping[str, Decision]) -> ModelDecision:
    """What a method decides of a whole model, verified against what it left in the model.

    Args:
        method: who decides.
        task: the model, and what is asked; its dense weights are given as copies.
        so_far: what was decided layer by layer.

    Raises:
        InputError: a layer has no mask of its counts, or other weights than the decision and the traits say; or
            something else of the model changed.
        MethodError: a method of another distribution raised something.
    """
    label, model = method.traits.label, task.objective.model
    decided = {id(layer.parameter) for layer in task.layers}
    others = {name: p for name, p in (*model.named_parameters(), *model.named_buffers()) if id(p) not in decided}
    before = {name: tensor.detach().clone() for name, tensor in others.items()}
    own = replace(task, dense={name: dense.clone() for name, dense in task.dense.items()})
    try:
        with blamed(method, "the whole model"):
            found = method.decide_all(own, dict(so_far))
    finally:
        changed = [name for name, tensor in others.items() if not _same(tensor, before[name])]
        for name in changed:
            others[name].detach().copy_(before[name])
    if changed:
        raise InputError(f"The method {label!r} changed {changed[0]!r}, which is in no layer of its task; {_WAY_OUT}")
    if not isinstance(found, ModelDecision) or not isinstance(found.decisions, Mapping):
        raise InputError(f"The method {label!r} answered a {type(found).__name__}, no ModelDecision; {_WAY_OUT}")
    for layer in task.layers:
        wrong = _wrong_in(method, task, found.decisions.get(layer.name), so_far[layer.name], layer)
        if wrong:
            raise InputError(f"The method {label!r} left layer {layer.name!r} {wrong}; {_WAY_OUT}")
    extra = [name for name in found.decisions if name not in so_far]
    kept = [sum(int(d.keep.sum()) for d in decisions.values()) for decisions in (found.decisions, so_far)]
    if extra or kept[0] != kept[1]:
        what = f"decided {extra[0]!r}, which is no layer of its task" if extra else "kept another number of weights"
        raise InputError(f"The method {label!r} {what}; {_WAY_OUT}")
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.detach(), other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _wrong_in(method: ModelMethod, task: ModelTask, found: Any, before: Decision, layer: Any) -> str | None:
    """What is wrong with the decision of one layer, and with what the model holds of it."""
    left, dense = layer.matrix(), task.dense[layer.name].to(layer.parameter.device)
    if not isinstance(found, Decision) or not isinstance(found.keep, Tensor):
        return "without a mask of its counts"
    keep = found.keep.to(left.device)
    if keep.shape != left.shape or keep.dtype != torch.bool:
        return "without a mask of its counts"
    if found.weight is not None and not torch.equal(found.weight.to(left), left):
        return "with other weights than it answered"
    if not method.moves_between_layers and not task.pattern.same_counts(keep, before.keep.to(left.device)):
        return "without a mask of its counts"
    checks: list[tuple[str, Callable[[], Tensor]]] = [
        ("with weights that are not finite", lambda: ~left.isfinite().all()),
        ("with pruned weights that are not zero", lambda: ((left != 0) & ~keep).any()),
    ]
    if not method.traits.updates:
        other = "with other kept weights, and its traits say that it updates none"
        checks.append((other, lambda: ((left != dense) & keep).any()))
    return next((said for said, there in checks if bool(there())), None)
