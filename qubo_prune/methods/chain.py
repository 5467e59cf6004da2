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
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError, QuboPruneError, did_you_mean
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.base import (
    Decision,
    JointMethod,
    LayerMethod,
    LayerTask,
    Method,
    ModelMethod,
    SampledStart,
    Traits,
)
from qubo_prune.methods.given import GivenMasks
from qubo_prune.methods.reconstruction import Distillation, Reconstruction
from qubo_prune.methods.registry import (
    check_made,
    make_method,
    make_update,
    method_class,
    start_names,
)
from qubo_prune.methods.row_blocks import RowBlocks
from qubo_prune.methods.verify import decided_by
from qubo_prune.plugins import method_names, update_names
from qubo_prune.request import GROUPS, HOME, MethodSettings, all_fields, plain
from qubo_prune.settings import Given, Kind, checked, kinds_of
from qubo_prune.solver.dispatch import parse_workers
from qubo_prune.solver.registry import make_solver

_log = logging.getLogger(__name__)

#: What the words of ``hessian`` are called now.
_OLD_HESSIANS = {"gram": "gram", "compensated": "compensated", "fisher": "loss"}
#: Updates that fit layers together, behind a refit.
JOINT_UPDATES: dict[str, tuple[type[JointMethod], ...]] = {
    "block": (Reconstruction,),
    "distill": (Distillation,),
    "block+distill": (Reconstruction, Distillation),
}
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
    name: str = field(default="", init=False)
    update: str | None = field(default=None, init=False)
    warm_start: str = field(default="", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", _as_steps(self.steps))
        labels = [step.traits.label for step in self.steps]
        wrong = None
        if not self.steps or not self.steps[0].traits.starts or not isinstance(self.steps[0], LayerMethod):
            wrong = "the first step makes no mask; begin with a score or a published method"
        elif any(step.traits.starts for step in self.steps[1:]):
            wrong = "a step behind the first makes a mask of its own; leave one of the two out"
        elif any(isinstance(step, ModelMethod) for step in self.steps[:-1]):
            wrong = "a method for the whole model has to be the last step"
        elif [_reach_of(step) for step in self.steps] != sorted(map(_reach_of, self.steps)):
            wrong = "what fits decoder layers comes behind the steps of single layers, and before what fits all of them"
        elif len(self.joints) != len({step.whole_model for step in self.joints}):
            wrong = "two steps fit the same layers together; leave one of them out"
        elif sum(isinstance(step, RowBlocks) for step in self.steps) > 1:
            wrong = "blocks of rows stand in it twice; take one of them"
        elif any(step.traits.updates for step in self.layer_steps[1:-1]):
            wrong = "a step behind an update would undo it; let the update be the last"
        elif self.start.traits.reads == "samples" and self.whole is None:
            wrong = f"{labels[0]} needs samples of a loss; blocks of the loss have to follow"
        elif self.start.traits.reads == "samples" and not isinstance(self.start, SampledStart):
            wrong = f"{labels[0]} reads samples and is no SampledStart, which is given them"
        if wrong:
            raise InputError(f"The chain {' > '.join(labels) or 'of no steps'} cannot be run: {wrong}.")
        object.__setattr__(self, "name", " > ".join(labels))
        object.__setattr__(self, "warm_start", labels[0])

    def with_steps(self, steps: Sequence[Method]) -> Chain:
        """Other steps under the same names."""
        return _named(Chain(steps), self.name, self.update, self.warm_start)

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
    def joints(self) -> list[JointMethod]:
        """The methods that fit layers together in the end: one for decoder layers, one for the whole, or none."""
        return [step for step in self.steps if isinstance(step, JointMethod)]

    def joint(self, whole_model: bool) -> JointMethod | None:
        """The method that fits each decoder layer, or the whole model, in the end, if there is one."""
        return next((step for step in self.joints if step.whole_model == whole_model), None)

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
            so_far = decided_by(step, replace(task, deadline=Deadline(left())), so_far)
            notes += Counter(so_far.notes)
        return replace(so_far, notes=dict(notes), weight=so_far.weight if self.updates else None)


def _reach_of(step: Method) -> int:
    """Over what a step decides at once: 0 a layer, 1 a decoder layer, 2 the whole model."""
    if isinstance(step, ModelMethod):
        return 2
    return 1 + step.whole_model if isinstance(step, JointMethod) else 0


def _as_steps(given: Any) -> tuple[Method, ...]:
    """The steps of a chain; raises :class:`InputError` for what is none."""
    if isinstance(given, Chain):
        return tuple(given.steps)
    if not isinstance(given, list | tuple):
        raise InputError(f"The steps of a chain are {_kind(given)}; give a list of objects of qubo_prune.methods.")
    for step in given:
        if not isinstance(step, Method):
            raise InputError(
                f"A step of the chain is {_kind(step)}; give objects of qubo_prune.methods, such as Wanda()."
            )
        check_made(step)
    return tuple(given)


def _kind(given: Any) -> str:
    return f"the class {given.__name__}" if isinstance(given, type) else f"of type {type(given).__name__}"


def _named(chain: Chain, name: str, update: str | None, warm_start: str) -> Chain:
    for attribute, value in (("name", name), ("update", update), ("warm_start", warm_start)):
        object.__setattr__(chain, attribute, value)
    return chain


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
    parse_workers(workers)
    if isinstance(how.method, (Chain, Method)):
        _check_made(how)
    if isinstance(how.method, Chain):
        return how.method.with_steps([_with_workers(step, workers) for step in how.method.steps])
    words = _words(how, workers)
    if isinstance(how.method, Method):
        name, main = type(how.method).__name__, _with_workers(how.method, workers)
        check_made(main)
    else:
        name = _method_name(how)
        main = make_method(name, **{**method_class(name).settings_of_words(words), **(how.method_settings or {})})
    whole = main if isinstance(main, ModelMethod) else None
    if how.loss_settings and whole is None:
        raise InputError(
            f"loss_settings are given and the method {name!r} takes no loss; give method='loss', or leave them out."
        )
    if main.traits.starts and how.warm_start is not None:
        raise InputError(
            f"warm_start is given and the method {name!r} makes a mask of its own; leave it out, or give a method that "
            "improves one, such as 'gram'."
        )
    if not isinstance(main, RowBlocks) and whole is None:
        _check_unused(words)
    update = how.update if how.update is not None else main.traits.update
    _check_update(update, whole)
    steps: list[Method] = [] if main.traits.starts else _starts(how, main, words)
    begins = name if main.traits.starts else _start_name(how, main)
    steps.append(main)
    if whole is None and update in JOINT_UPDATES:
        steps += [make_update("refit"), *(fit() for fit in JOINT_UPDATES[update])]
    elif whole is None and update is not None:
        steps.append(DenseWeights() if update == "none" else make_update(update))
    return _named(Chain(steps), name, update if whole is None else None, begins)


def _words(how: MethodSettings, workers: int | str | None) -> dict[str, Any]:
    """The words of a run that were given, those that are the default left out: a method has defaults of its own."""
    usual = plain(MethodSettings())
    blocks = ("solver", "solver_settings", "block_size", "block_time", "polish", "row_swaps", "max_sweeps")
    names = (*blocks, "loss_settings")
    given = {name: getattr(how, name) for name in names if getattr(how, name) != getattr(usual, name)}
    return given | ({} if workers is None else {"workers": workers})


def _check_unused(words: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` if what was said of blocks cannot be used, also where the method has none."""
    make_solver(words.get("solver", "greedy"), **(words.get("solver_settings") or {}))
    size = words.get("block_size")
    if size is not None and size != "row" and size < 2:
        raise InputError(f"block_size is {size}; at least 2 is needed.")


def _start_name(how: MethodSettings, main: Method) -> str:
    """Of what a method that makes no mask begins with."""
    given = main.traits.start if how.warm_start is None else how.warm_start
    if isinstance(given, str):
        return given
    return given.traits.label if isinstance(given, Method) else "given masks"


def _with_workers(step: Method, workers: int | str | None) -> Method:
    """A step with the run's processes, if it takes some and names none itself."""
    made: Any = step
    takes = isinstance(step, RowBlocks) and step.workers is None and workers is not None
    return replace(made, workers=workers) if takes else made  # type: ignore[no-any-return]


def _check_made(how: MethodSettings) -> None:
    """Raise :class:`InputError` if words are given that an object of a method does not go by."""
    usual, chain = plain(MethodSettings()), isinstance(how.method, Chain)
    taken = () if chain else ("update", "warm_start")
    shared = ("method", "damping", "correction", *taken)
    for each in fields(how):
        value = getattr(how, each.name)
        if each.name not in shared and value is not None and value != {} and value != getattr(usual, each.name):
            what = "chain" if chain else "method"
            raise InputError(
                f"{each.name} is given, and the {what} {how.method!r} is made already; give it to its class instead."
            )


def _method_name(how: MethodSettings) -> str:
    """The name of the method, what the old words mean included."""
    name = how.method
    if not isinstance(name, str):
        raise InputError(
            f"The method is {_kind(name)}; give a name such as 'gram', or an object of qubo_prune.methods."
        )
    if how.hessian in (None, "kron"):
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
    known = (*update_names(), *JOINT_UPDATES)
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
    if isinstance(given, Mapping):
        loose = isinstance(main, ModelMethod) and main.moves_between_layers
        return [GivenMasks(given, exact_counts=not loose)]
    if not isinstance(given, str):
        raise InputError(f"The warm start is {_kind(given)}; give a name, a method, or keep masks by parameter name.")
    known, loss = given in method_names() or ":" in given, isinstance(main, ModelMethod)
    found = method_class(given) if known else None
    if found is None or not (loss or (found.traits.starts and found.traits.reads != "samples")):
        names = [name for name in start_names() if loss or method_class(name).traits.reads != "samples"]
        names += ["gram", "compensated"] if loss else []
        raise InputError(
            f"There is no warm start {given!r}{did_you_mean(given, names)} for the method {main.traits.label!r}; use "
            f"one of {', '.join(names)}, or keep masks by parameter name."
        )
    if found.traits.starts:
        return [make_method(given)]
    # what was said of blocks and their solver is of those of the loss
    own = {name: words[name] for name in ("block_time", "row_swaps", "max_sweeps", "workers") if name in words}
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
        settings = tuple(_read(text, method, setting) for setting in given)
        twice = [name for name, count in Counter(name for name, _ in settings).items() if count > 1]
        if twice:
            raise InputError(f"The setting {twice[0]!r} of {text!r} is given twice; give it once.")
        return cls(method, update or None, settings)

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
        update = {} if self.update is None else {"update": self.update}
        return {"method": self.method, **update, **({"method_settings": own} if own else {}), **shared}


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
