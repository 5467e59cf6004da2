"""Finds solvers by name: every one, the built-in ones too, enters through an entry point.

A name is that of an entry point in the group ``qubo_prune.solvers``; ``package.module:Class``; or
``adapter:package.module:Thing``, where the adapter is an entry point in ``qubo_prune.adapters`` that
makes a solver of another library's object, such as ``dimod:dwave.samplers:TabuSampler``. Nothing is
imported until it is asked for, and a plug-in that fails to import breaks no other.
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from rich.console import Group
from rich.text import Text

from qubo_prune.errors import InputError, SettingError, SolverError, did_you_mean
from qubo_prune.plugins import ADAPTERS, SOLVERS, by_name, check_requirements, import_object, only, origin
from qubo_prune.settings import Given, check_instance, checked_settings, checked_values
from qubo_prune.solver.interface import Capabilities, Solver
from qubo_prune.tables import Shown, Table


class Adapter(Solver):
    """A solver that wraps a thing of another library, named by its import path."""

    @classmethod
    @abc.abstractmethod
    def from_path(cls, path: str, **settings: Any) -> Solver:
        """The solver around ``package.module:Thing``; ``TypeError`` for settings it does not have."""


@dataclasses.dataclass(frozen=True)
class SolverInfo:
    """One entry of the registry: ``error`` says why a solver cannot be used here."""

    name: str
    target: str
    distribution: str
    capabilities: Capabilities | None = None
    error: str | None = None


def solver_class(name: str) -> type[Solver]:
    """The solver class of that name.

    Raises:
        InputError: no such name (the message gives near ones).
        SolverError: two plug-ins share the name, or the plug-in cannot be imported.
    """
    entries = by_name(SOLVERS)
    if ":" in name:
        target = name
    elif name not in entries:
        raise InputError(
            f"There is no solver {name!r}{did_you_mean(name, entries)}; installed are "
            f"{', '.join(entries) or 'none'}, and 'package.module:Class' names any other."
        )
    else:
        target = only(name, entries[name]).value
    return _load(name, target)


def _load(name: str, target: str) -> type[Solver]:
    loaded = import_object("solver", name, target)
    if not (isinstance(loaded, type) and issubclass(loaded, Solver)):
        raise SolverError(f"The solver {name!r} ({target}) is not a subclass of qubo_prune.Solver.")
    check_requirements(name, loaded.capabilities.requires)
    return loaded


def make_solver(solver: str | Solver, **settings: Any) -> Solver:
    """A solver instance from a name (see above) and its settings; an instance is checked and passed through.

    Raises:
        SettingError: the solver has no such setting (the message gives near ones), or its value does not fit.
        InputError: no such name, or the solver cannot be made.
    """
    if isinstance(solver, Solver):
        if settings:
            raise SettingError(f"{solver!r} is already made; pass settings {sorted(settings)} to its class.")
        check_instance(type(solver).__name__, solver)
        return solver
    if not isinstance(solver, str):
        raise _no_solver(solver)
    prefix, _, path = solver.partition(":")
    if ":" in path:
        made = _adapter(prefix).from_path(path, **checked_values(solver, {}, settings))
        check_instance(solver, made)
        return made
    cls = solver_class(solver)
    return _made(solver, cls, checked_settings(solver, cls, settings))


def _no_solver(given: object) -> InputError:
    """Says of something that is neither a name nor a solver what to give instead."""
    if isinstance(given, type):
        made = f", such as {given.__name__}()" if issubclass(given, Solver) else ""
        return InputError(f"The solver is the class {given.__name__}; give its name, or an instance of it{made}.")
    if inspect.isroutine(given):
        return InputError("The solver is a function; give it by name, as callable:module:function.")
    samples = callable(getattr(given, "sample", None))
    return InputError(
        f"The solver is of type {type(given).__name__}, which is no Solver; give a name such as 'greedy'"
        f"{', of a dimod sampler dimod:package.module:Sampler' if samples else ''}, or an instance of "
        "qubo_prune.Solver."
    )


def _made(name: str, cls: type[Solver], settings: Mapping[str, Any]) -> Solver:
    try:
        return cls(**settings)
    except InputError:
        raise
    except Exception as error:  # a stranger's constructor may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "no settings"
        raise SettingError(
            f"The solver {name!r} cannot be made with {given} ({type(error).__name__}: {error}); check its settings."
        ) from error


def read_settings(solver: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Settings from texts of a command line, in the types of the solver's fields.

    Raises:
        InputError: there is no such solver or setting, or a value does not fit.
    """
    given = {name: Given(text) for name, text in texts.items()}
    if solver.count(":") > 1:
        settings = checked_values(solver, {}, given)
    else:
        settings = checked_settings(solver, solver_class(solver), given)
    make_solver(solver, **settings)
    return settings


def _adapter(name: str) -> type[Adapter]:
    entries = by_name(ADAPTERS)
    if name not in entries:
        raise InputError(
            f"There is no adapter {name!r}{did_you_mean(name, entries)}; installed are {', '.join(entries) or 'none'}."
        )
    target = only(name, entries[name]).value
    adapter = import_object("solver", name, target)
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise SolverError(f"The adapter {name!r} ({target}) is not a subclass of qubo_prune.solver.registry.Adapter.")
    return adapter


class SolverList(Sequence[SolverInfo], Shown):
    """Solvers with what they can do, as a sequence of :class:`SolverInfo` and as a table."""

    def __init__(self, infos: Iterable[SolverInfo]) -> None:
        self._infos = tuple(infos)

    @overload
    def __getitem__(self, at: int) -> SolverInfo: ...
    @overload
    def __getitem__(self, at: slice) -> SolverList: ...
    def __getitem__(self, at: int | slice) -> SolverInfo | SolverList:
        return SolverList(self._infos[at]) if isinstance(at, slice) else self._infos[at]

    def __len__(self) -> int:
        return len(self._infos)

    def __repr__(self) -> str:
        return f"SolverList({', '.join(info.name for info in self)})"

    def __rich__(self) -> Group:
        return Group(self.table(), *(Text(line) for line in self.broken()))

    def table(self) -> Table:
        """What each solver declares, and the most variables that it takes."""
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for column in ("solver", "exact", "counts", "groups", "batch", "factor", "random", "size", "package", "state"):
            # where names are long, they are broken and the headings are not
            table.add_column(
                column,
                justify="right" if column == "size" else "left",
                no_wrap=column not in ("solver", "package"),
                overflow="fold",
                min_width=len(column),
            )
        for info in self:
            table.add_row(Text(info.name), *_declared(info.capabilities), Text(info.distribution), _state(info))
        return table

    def broken(self) -> list[str]:
        """Why some cannot be used here, a line for each."""
        return [f"{info.name}: {info.error}" for info in self if info.error]


def _declared(can: Capabilities | None) -> Sequence[str]:
    if can is None:
        return ["?"] * 7
    flags = (can.exact, can.cardinality, can.cardinality and can.groups, can.batched, can.factor_form, can.stochastic)
    return [*("yes" if flag else "-" for flag in flags), str(can.max_variables or "any")]


def _state(info: SolverInfo) -> str:
    return "not usable" if info.capabilities is None else "ready"


def describe_solvers() -> SolverList:
    """Every registered solver with its capabilities, or the reason why it cannot be used.

    >>> from qubo_prune import describe_solvers
    >>> "greedy" in [info.name for info in describe_solvers()]
    True
    """
    infos = []
    for name, entries in by_name(SOLVERS).items():
        entry = entries[0]
        info = SolverInfo(name, entry.value, origin(entry))
        try:
            infos.append(dataclasses.replace(info, capabilities=solver_class(name).capabilities))
        except SolverError as error:
            infos.append(dataclasses.replace(info, error=str(error)))
    return SolverList(infos)


def available_adapters() -> list[str]:
    """Names of the registered adapters, sorted."""
    return list(by_name(ADAPTERS))


def available_solvers() -> list[str]:
    """Names of the solvers that can be used here, sorted."""
    return [info.name for info in describe_solvers() if info.error is None]
