"""Finds methods by name: every one, the built-in ones too, enters through an entry point.

A name is that of an entry point in the group ``qubo_prune.methods``, or ``package.module:Class``. Updates are in the
same group with ``update.`` before their names. Nothing is imported until it is asked for.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from rich.text import Text
from torch import Tensor

from qubo_prune.errors import InputError, QuboPruneError, SettingError, SolverError, did_you_mean
from qubo_prune.files.parsing import short
from qubo_prune.hessian.compensated import DAMPING
from qubo_prune.hessian.gram import Gram
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.base import Decision, LayerMethod, LayerTask, Method, Traits, Update
from qubo_prune.plugins import METHODS, UPDATE, by_name, import_object, method_names, only, origin, update_names
from qubo_prune.precision import pinned
from qubo_prune.request import HOME
from qubo_prune.settings import Kind, checked, kinds_of
from qubo_prune.tables import Shown, Table


def start_names() -> list[str]:
    """Names of the methods that make a mask, sorted; one that cannot be imported is not among them."""
    return [info.name for info in describe_methods() if info.traits is not None and info.traits.starts]


def method_class(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        InputError: no such name (the message gives near ones).
        SolverError: two distributions share the name, or what it names cannot be imported or is no method.
    """
    return _class_of(name, "", method_names(), "method")


def update_class(name: str) -> type[Update]:
    """The update of that name; raises as :func:`method_class` does."""
    found = _class_of(name, UPDATE, update_names(), "update")
    if not issubclass(found, Update):
        raise SolverError(f"The update {name!r} is {found.__name__}, which is no subclass of Update.")
    return found


def _class_of(name: str, prefix: str, known: Sequence[str], kind: str) -> type[Method]:
    target = name
    if ":" not in name:
        entries = by_name(METHODS)
        if f"{prefix}{name}" not in entries:
            raise InputError(
                f"There is no {kind} {name!r}{did_you_mean(name, known)}; use one of {', '.join(known)}, or "
                "'package.module:Class'."
            )
        target = only(name, entries[f"{prefix}{name}"]).value
    found = import_object(kind, name, target)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise SolverError(f"The {kind} {name!r} ({target}) is not a subclass of qubo_prune.methods.Method.")
    if inspect.isabstract(found) or not isinstance(getattr(found, "traits", None), Traits):
        lacks = sorted(getattr(found, "__abstractmethods__", ()))
        lacks += [] if isinstance(getattr(found, "traits", None), Traits) else ["traits"]
        raise SolverError(f"The {kind} {name!r} ({target}) is not complete: it lacks {', '.join(lacks)}.")
    return found


def make_method(name: str, **settings: Any) -> Method:
    """A method of that name with these settings, the fields of its class.

    Raises:
        SettingError: the method has no such setting (the message gives near ones), or its value does not fit.
        InputError: no such name.
    """
    return _made(name, method_class(name), settings, "method")


def make_any(name: str, **settings: Any) -> Method:
    """A method or, as ``update.NAME``, an update of that name."""
    if name.startswith(UPDATE):
        short_name = name.removeprefix(UPDATE)
        return _made(short_name, update_class(short_name), settings, "update")
    return make_method(name, **settings)


def make_update(name: str) -> Update:
    """The update of that name."""
    made = _made(name, update_class(name), {}, "update")
    assert isinstance(made, Update)
    return made


def check_made(method: Method) -> None:
    """Raise :class:`InputError` if a method that was made in Python has no traits, or a field that does not fit."""
    cls: Any = type(method)
    if not isinstance(getattr(method, "traits", None), Traits):
        raise InputError(f"The method {cls.__name__} has no traits; declare them as a Traits in its class.")
    if dataclasses.is_dataclass(cls):
        for key, kind in kinds_of(cls).items():
            checked(f"The setting {key} of the method {method.traits.label!r}", getattr(method, key, None), kind)


def _made(name: str, cls: type[Method], settings: Mapping[str, Any], kind: str) -> Method:
    kinds: dict[str, Kind] = kinds_of(cls) if dataclasses.is_dataclass(cls) else {}
    for key in settings:
        if key not in kinds:
            raise SettingError(
                f"The {kind} {name!r} has no setting {key!r}{did_you_mean(key, kinds)}; it has "
                f"{', '.join(kinds) or 'none'}."
            )
    read = {
        key: checked(f"The setting {key} of the {kind} {name!r}", value, kinds[key]) for key, value in settings.items()
    }
    try:
        return cls(**read)
    except QuboPruneError:
        raise
    except Exception as error:  # a constructor of another distribution may raise anything
        given = ", ".join(f"{key}={short(value, 40)}" for key, value in read.items()) or "no settings"
        raise SettingError(
            f"The {kind} {name!r} cannot be made with {given} ({type(error).__name__}: {error}); check its settings."
        ) from error


@pinned()
def choose(
    method: str | LayerMethod,
    weight: Float[Tensor, "d_out d_in"],
    gram: Gram,
    pattern: Pattern | str,
    density: float,
    seed: int = 0,
    damping: float = DAMPING,
) -> Decision:
    """Prune one layer by a method that starts, outside of a run.

    Args:
        method: a name, or the method itself.
        weight: dense weights.
        gram: of the layer's inputs; a stack of them for a grouped convolution.
        pattern: where counts must hold.
        density: kept share.
        seed: for methods that draw at random.
        damping: share of the Gram's mean diagonal that is added to its diagonal, where a method adds any.

    Raises:
        InputError: there is no such method, it makes no mask, pattern and density contradict each other, shapes do not
            fit, or the Gram is not positive semidefinite.
    """
    made = make_method(method) if isinstance(method, str) else method
    if not isinstance(made, LayerMethod) or not made.traits.starts:
        raise InputError(
            f"The method {made.traits.label!r} improves a mask and makes none; use one of {', '.join(start_names())}."
        )
    pattern = Pattern.parse(pattern)
    pattern.check(density, name="weight", d_in=weight.shape[1])
    return made.decide(LayerTask(weight, gram, pattern, density, damping, seed=seed, run_seed=seed))


@dataclass(frozen=True)
class MethodInfo:
    """One entry of the registry: ``error`` says why a method cannot be used here."""

    name: str
    target: str
    distribution: str
    role: str
    traits: Traits | None = None
    settings: tuple[str, ...] = ()
    error: str | None = None


class MethodList(Sequence[MethodInfo], Shown):
    """Methods with what they declare, as a sequence of :class:`MethodInfo` and as a table."""

    def __init__(self, infos: Iterable[MethodInfo]) -> None:
        self._infos = tuple(infos)

    def __getitem__(self, at: Any) -> Any:
        return MethodList(self._infos[at]) if isinstance(at, slice) else self._infos[at]

    def __len__(self) -> int:
        return len(self._infos)

    def __repr__(self) -> str:
        return f"MethodList({', '.join(info.name for info in self)})"

    def __rich__(self) -> Table:
        return self.table()

    def table(self) -> Table:
        """What each method declares."""
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for column in ("method", "role", "reads", "weights", "settings", "package", "source"):
            narrow = column in ("role", "reads", "weights")
            table.add_column(column, no_wrap=narrow, overflow="fold", min_width=len(column))
        for info in self:
            traits = info.traits
            if traits is None:
                table.add_row(info.name, info.role, "?", "?", "", Text(info.distribution), Text("not usable"))
                continue
            table.add_row(
                Text(info.name),
                info.role,
                traits.reads,
                "updated" if traits.updates else "kept",
                Text(", ".join(info.settings)),
                Text(info.distribution),
                Text(traits.source),
            )
        return table

    def broken(self) -> list[str]:
        """Why some cannot be used here, a line for each."""
        return [f"{info.name}: {info.error}" for info in self if info.error]


def describe_methods() -> MethodList:
    """Every registered method with its traits, or the reason why it cannot be used.

    >>> "wanda" in [info.name for info in describe_methods()]
    True
    """
    infos = []
    for name, entries in by_name(METHODS).items():
        updates, short_name = name.startswith(UPDATE), name.removeprefix(UPDATE)
        info = MethodInfo(short_name, entries[0].value, origin(entries[0]), "update" if updates else "method")
        try:
            found = update_class(short_name) if updates else method_class(short_name)
        except QuboPruneError as error:
            infos.append(dataclasses.replace(info, error=str(error)))
            continue
        role = info.role if updates else "start" if found.traits.starts else "blocks"
        settings = _own_settings(found)
        infos.append(dataclasses.replace(info, role=role, traits=found.traits, settings=settings))
    return MethodList(infos)


def _own_settings(cls: Any) -> tuple[str, ...]:
    """The fields of a method that are its own, apart from those that every run has."""
    if not dataclasses.is_dataclass(cls):
        return ()
    return tuple(each.name for each in dataclasses.fields(cls) if each.repr and each.name not in HOME)
