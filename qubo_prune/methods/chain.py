"""Chains of methods: what a run does to a layer, step by step, and their text forms.

A chain is a start, which makes a mask, then blocks that improve it and an update that fits the kept weights, each a
:class:`~qubo_prune.methods.base.LayerMethod`; last may come one :class:`~qubo_prune.methods.base.ModelMethod`. Its text
form is ``METHOD[+UPDATE][@NAME=VALUE ...]``.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError, QuboPruneError, did_you_mean
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.base import Decision, LayerMethod, LayerTask, Method, ModelMethod, SampledStart, Traits
from qubo_prune.methods.given import GivenMasks
from qubo_prune.methods.registry import make_method, make_update, method_class, method_names, start_names, update_names
from qubo_prune.methods.row_blocks import RowBlocks
from qubo_prune.request import GROUPS, HOME, MethodSettings, all_fields, plain
from qubo_prune.settings import Given, Kind, checked, kinds_of

_log = logging.getLogger(__name__)

#: What the words of ``hessian`` are called now.
_OLD_HESSIANS = {"gram": "gram", "compensated": "compensated", "fisher": "loss"}
_TIME_OVER = "The time was over, so the layer has the weights of its warm start."


@dataclass(frozen=True)
class DenseWeights(LayerMethod):
    """The update ``none``: kept weights are the dense ones, whatever a step before made of them."""

    traits = Traits("none", reads="weights", starts=False)
    moves_masks = False

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        """The mask so far, without weights."""
        assert so_far is not None
        return replace(so_far, weight=None, notes={})


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps that follow one another.

    Attributes:
        steps: a start, blocks, updates; last a method for the whole model, if there is one.
        name: of the method that it is called by.
        update: the name of its update, if it was named or follows from the method.
        warm_start: the name of what it begins with.

    Raises:
        InputError: the steps are in no order that can be done.
    """

    steps: Sequence[Method]
    name: str = ""
    update: str | None = None
    warm_start: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        labels = [step.traits.label for step in self.steps]
        wrong = None
        if not self.steps or not self.steps[0].traits.starts or not isinstance(self.steps[0], LayerMethod):
            wrong = "the first step makes no mask; begin with a score or a published method"
        elif any(step.traits.starts for step in self.steps[1:]):
            wrong = "a step behind the first makes a mask of its own; leave one of the two out"
        elif any(isinstance(step, ModelMethod) for step in self.steps[:-1]):
            wrong = "a method for the whole model has to be the last step"
        elif sum(isinstance(step, RowBlocks) for step in self.steps) > 1:
            wrong = "blocks of rows stand in it twice; take one of them"
        elif self.start.traits.reads == "samples" and self.whole is None:
            wrong = f"{labels[0]} needs samples of a loss; blocks of the loss have to follow"
        elif self.start.traits.reads == "samples" and not isinstance(self.start, SampledStart):
            wrong = f"{labels[0]} reads samples and is no SampledStart, which is given them"
        if wrong:
            raise InputError(f"The chain {' > '.join(labels) or 'of no steps'} cannot be run: {wrong}.")
        if not self.name:
            object.__setattr__(self, "name", " > ".join(labels))
        if not self.warm_start:
            object.__setattr__(self, "warm_start", labels[0])

    @property
    def start(self) -> LayerMethod:
        """What makes the first mask."""
        first = self.steps[0]
        assert isinstance(first, LayerMethod)
        return first

    @property
    def layer_steps(self) -> list[LayerMethod]:
        """Those that decide one layer at a time, the start among them."""
        return [step for step in self.steps if isinstance(step, LayerMethod)]

    @property
    def whole(self) -> ModelMethod | None:
        """The method for the whole model, if there is one."""
        return next((step for step in self.steps if isinstance(step, ModelMethod)), None)

    @property
    def blocks(self) -> RowBlocks | None:
        """The step of blocks of rows, if there is one."""
        return next((step for step in self.steps if isinstance(step, RowBlocks)), None)

    @property
    def updates(self) -> bool:
        """True if kept weights change."""
        return self.whole is None and self.steps[-1].traits.updates

    @property
    def protects(self) -> bool:
        """True if the mask in the end holds protected weights."""
        last = [step for step in self.layer_steps if step.moves_masks][-1]
        return self.whole is None and last.traits.protects

    @property
    def needs_inputs(self) -> bool:
        """True unless the layers' inputs decide nothing, since the loss comes after a start without them."""
        return self.whole is None or any(step.traits.reads == "inputs" for step in self.layer_steps)

    @property
    def correction(self) -> float:
        """How far layers make up for those pruned before, if that is not said."""
        return max(step.traits.correction for step in self.steps) if self.updates else 0.0

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """The caller's masks by parameter name."""
        return self.start.masks if isinstance(self.start, GivenMasks) else {}

    @property
    def update_name(self) -> str:
        """What becomes of kept weights, as a word."""
        return self.update or ("own" if self.updates else "none")

    def check(self, pattern: Pattern, density: float) -> None:
        """Raise :class:`InputError` if a step does not take the pattern and the density."""
        for step in self.steps:
            step.check(pattern, density)

    def decide(self, task: LayerTask, start: Decision, left: Callable[[], float | None]) -> Decision:
        """What the steps behind the start make of it for one layer.

        Args:
            task: the layer, and what is asked.
            start: the decision of the first step.
            left: seconds that a step has, asked when it begins.
        """
        so_far, notes = start, Counter[str]()
        for step in self.layer_steps[1:]:
            if step.traits.updates and _nothing_done(so_far, start):
                notes[_TIME_OVER] += 1
                so_far = replace(so_far, weight=start.weight)
                break
            so_far = verified(step, step.decide(replace(task, deadline=Deadline(left())), so_far), task, so_far)
            notes += Counter(so_far.notes)
        return replace(so_far, notes=dict(notes), weight=so_far.weight if self.updates else None)


def verified(step: LayerMethod, found: Decision, task: LayerTask, so_far: Decision | None = None) -> Decision:
    """A decision that can be put into a model as it is: whose counts, shapes, types and zeros are right.

    Args:
        step: who decided.
        found: what.
        task: of what layer.
        so_far: what was decided before; the counts of its groups stay.

    Raises:
        InputError: the decision is wrong.
    """
    shape, weight, wrong = task.weight.shape, found.weight, None
    if found.keep.shape != shape or found.keep.dtype != torch.bool:
        wrong = f"a mask of shape {tuple(found.keep.shape)} and type {found.keep.dtype}"
    elif weight is not None and (weight.shape != shape or weight.dtype != task.weight.dtype):
        wrong = f"weights of shape {tuple(weight.shape)} and type {weight.dtype}"
    else:
        wrong = next((fault for fault, is_there in _faults(step, found, task, so_far) if is_there), None)
    if wrong:
        where = "the layer" if task.layer is None else f"layer {task.layer.name!r}"
        raise InputError(
            f"The method {step.traits.label!r} left {where} with {wrong}; take another method, and tell its author "
            "(qubo-prune check-method finds such faults)."
        )
    return found


def _faults(step: LayerMethod, found: Decision, task: LayerTask, so_far: Decision | None) -> list[tuple[str, bool]]:
    """What may be wrong with a decision of the right shapes, and whether it is; the device is waited for once."""
    pattern, keep, weight = task.pattern, found.keep, found.weight
    checks: list[tuple[str, Tensor]] = []
    if so_far is not None and keep is not so_far.keep:
        counts = pattern.groups(keep).sum(1) != pattern.groups(so_far.keep.to(keep.device)).sum(1)
        checks.append(("a mask with other counts than it was given", counts.any()))
    elif so_far is None and step.exact:
        wrong = pattern.broken(keep, task.density)
        checks.append((f"a mask that breaks the pattern {pattern.name} at density {task.density:g}", wrong.any()))
    if weight is not None:
        checks.append(("weights that are not finite", ~weight.isfinite().all()))
        left = (weight != 0) & ~keep.to(weight.device)
        checks.append(("pruned weights that are not zero", left.any()))
    if not checks:
        return []
    flags = torch.stack([flag.to(checks[0][1].device) for _, flag in checks]).tolist()
    return [(fault, flag) for (fault, _), flag in zip(checks, flags, strict=True)]


def _nothing_done(so_far: Decision, start: Decision) -> bool:
    """True if the time ended the search before it changed a mask that has weights of its own."""
    stopped = so_far.search is not None and so_far.search.stopped_early
    return stopped and start.weight is not None and torch.equal(so_far.keep, start.keep)


def chain_of(how: MethodSettings, workers: int | str | None = None) -> Chain:
    """The chain that words, or an object, mean.

    Args:
        how: the words.
        workers: processes, or a cluster, for solvers that take one block at a time.

    Raises:
        InputError: there is no such method, or the words do not go together.
    """
    how = plain(how)
    if isinstance(how.method, (Chain, Method)):
        _check_made(how)
    if isinstance(how.method, Chain):
        return how.method
    words = {
        "solver": how.solver,
        "solver_settings": how.solver_settings or {},
        "block_size": how.block_size,
        "block_time": how.block_time,
        "polish": how.polish,
        "workers": workers,
        "loss_settings": how.loss_settings or {},
    } | ({} if how.max_sweeps is None else {"max_sweeps": how.max_sweeps})
    if isinstance(how.method, Method):
        name, main = type(how.method).__name__, how.method
    else:
        name = _method_name(how)
        main = make_method(name, **{**method_class(name).settings_of_words(words), **(how.method_settings or {})})
    whole = main if isinstance(main, ModelMethod) else None
    if how.loss_settings and whole is None:
        raise InputError(
            f"loss_settings are given and the method {name!r} takes no loss; give method='loss', or leave them out."
        )
    update = how.update if how.update is not None else main.traits.update
    _check_update(update, whole)
    steps: list[Method] = []
    if not main.traits.starts:
        steps += _starts(how, main, words)
    steps.append(main)
    if whole is None and update is not None:
        steps.append(DenseWeights() if update == "none" else make_update(update))
    begins = how.warm_start if isinstance(how.warm_start, str) else None
    if main.traits.starts:
        begins = name
    elif begins is None:
        begins = main.traits.start if how.warm_start is None else "given masks"
    return Chain(steps, name, update if whole is None else None, begins)


def _check_made(how: MethodSettings) -> None:
    """Raise :class:`InputError` if words are given that an object of a method does not go by."""
    usual, chain = plain(MethodSettings()), isinstance(how.method, Chain)
    taken = () if chain else ("update", "warm_start")
    shared = ("method", "damping", "correction", *taken)
    for each in fields(how):
        value = getattr(how, each.name)
        if each.name not in shared and value != getattr(usual, each.name):
            what = "chain" if chain else "method"
            raise InputError(
                f"{each.name} is given, and the {what} {how.method!r} is made already; give it to its class instead."
            )


def _method_name(how: MethodSettings) -> str:
    """The name of the method, what the old words mean included."""
    name = how.method
    if not isinstance(name, str):
        what = f"the class {name.__name__}" if isinstance(name, type) else f"of type {type(name).__name__}"
        raise InputError(f"The method is {what}; give a name such as 'gram', or an object of qubo_prune.methods.")
    if how.hessian is None:
        return name
    known = (*_OLD_HESSIANS, *(each for each in method_names() if each not in _OLD_HESSIANS.values()))
    if how.hessian not in known:
        raise InputError(
            f"There is no Hessian {how.hessian!r}{did_you_mean(how.hessian, known)}; give a method: gram, compensated "
            "or loss."
        )
    meant = _OLD_HESSIANS.get(how.hessian, how.hessian)
    if name not in ("gram", "icbs", meant):
        method_class(name)  # a name that is unknown is the nearer reason
        raise InputError(f"The method {name!r} takes no Hessian; leave hessian out, or give method {meant!r}.")
    _note_old_word(f"hessian={how.hessian!r}", meant)
    return meant


@cache
def _note_old_word(old: str, now: str) -> None:
    """Say once in a process what an old word is called now."""
    _log.warning("%s is an old word; it means method=%r.", old, now)


def _check_update(update: str | None, whole: ModelMethod | None) -> None:
    if update is None:
        return
    known = update_names()
    if update not in known and ":" not in update:
        raise InputError(f"There is no update {update!r}{did_you_mean(update, known)}; use one of {', '.join(known)}.")
    if whole is not None and update != "none":
        raise InputError(
            f"The update {update!r} needs the Grams of the layers' inputs, and blocks of the loss come after them; "
            "leave update out, or give the method 'gram' or 'compensated'."
        )


def _starts(how: MethodSettings, main: Method, words: Mapping[str, Any]) -> list[Method]:
    """What comes before a method that makes no mask."""
    given = main.traits.start if how.warm_start is None else how.warm_start
    if isinstance(given, LayerMethod):
        return [given]
    if not isinstance(given, str):
        loose = isinstance(main, ModelMethod) and main.moves_between_layers
        return [GivenMasks(given, exact_counts=not loose)]
    loss = isinstance(main, ModelMethod)
    names = [name for name in start_names() if loss or method_class(name).traits.reads != "samples"]
    names += ["gram", "compensated"] if loss else []
    if given not in names and ":" not in given:
        raise InputError(
            f"There is no warm start {given!r}{did_you_mean(given, names)} for the method {main.traits.label!r}; use "
            f"one of {', '.join(names)}, or keep masks by parameter name."
        )
    found = method_class(given)
    if found.traits.starts or not loss:
        return [make_method(given)]
    # what was said of blocks and their solver is of those of the loss
    own = {name: words[name] for name in ("block_time", "max_sweeps", "workers") if name in words}
    return [make_method(found.traits.start), make_method(given, **found.settings_of_words(own))]


#: Settings that an entry may have of its own.
ENTRY_SETTINGS = tuple(sorted(each.name for each in all_fields() if each.metadata["entry"]))


@dataclass(frozen=True)
class Entry:
    """A method of a comparison: ``METHOD[+UPDATE][@NAME=VALUE ...]``.

    Such as ``admm+refit``, ``compensated`` or ``compensated@allocation=fisher@max_sweeps=1``; the names are those of
    :data:`ENTRY_SETTINGS`, and fields of the method. ``icbs:gram`` and the like are old words for ``gram``.
    """

    method: str
    update: str | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Read the text of an entry, its values in the types of their settings."""
        name, *given = text.split("@")
        name, _, update = name.partition("+")
        method, _, hessian = name.partition(":")
        if hessian in _OLD_HESSIANS:
            if method != "icbs":
                raise InputError(f"The method {method!r} takes no Hessian; give {_OLD_HESSIANS[hessian]!r} by itself.")
            method = _OLD_HESSIANS[hessian]
        elif hessian:
            method = name
        if method not in method_names() and ":" not in method:
            raise InputError(
                f"There is no method {method!r}{did_you_mean(method, method_names())}; use {', '.join(method_names())}."
            )
        return cls(method, update or None, tuple(_read(text, method, setting) for setting in given))

    def __str__(self) -> str:
        return f"{self.method}{f'+{self.update}' if self.update else ''}" + "".join(
            f"@{name}={_as_text(value)}" for name, value in self.settings
        )

    @property
    def label(self) -> str:
        """For tables."""
        try:
            label = method_class(self.method).traits.label
        except QuboPruneError:  # of a comparison made where another distribution was installed
            label = self.method
        return f"{label}{f' + {self.update}' if self.update else ''}" + "".join(
            f", {name} {_as_text(value)}" for name, value in self.settings
        )

    def words(self) -> dict[str, Any]:
        """The settings of a run that it means."""
        own = {name: value for name, value in self.settings if name not in HOME}
        shared = {name: value for name, value in self.settings if name in HOME}
        return {"method": self.method, "update": self.update, "method_settings": own or None, **shared}


def _read(text: str, method: str, given: str) -> tuple[str, Any]:
    """A setting of an entry, ``NAME=VALUE``, with the value in its type."""
    name, equals, value = given.partition("=")
    cls = method_class(method)
    own: dict[str, Kind] = kinds_of(cls) if dataclasses.is_dataclass(cls) else {}
    own = {key: kind for key, kind in own.items() if key not in HOME}
    known = (*ENTRY_SETTINGS, *own)
    if name not in known or not equals:
        raise InputError(
            f"The setting {name!r} of {text!r} is not known{did_you_mean(name, known)}; give NAME=VALUE with one of "
            f"{', '.join(known)}."
        )
    kind = own[name] if name in own else kinds_of(GROUPS[HOME[name]])[name]
    return name, checked(f"The setting {name} of {text!r}", Given(value), kind)


def _as_text(value: Any) -> str:
    """What :func:`~qubo_prune.settings.setting_value` reads as the value."""
    return value if isinstance(value, str) else json.dumps(value)
