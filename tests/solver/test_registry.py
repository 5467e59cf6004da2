from __future__ import annotations

import pkgutil
import sys
import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
import qubo_prune_solvers
from qubo_prune_solvers.greedy import Greedy

from qubo_prune import plugins
from qubo_prune.errors import InputError, SolverError
from qubo_prune.settings import check_settings
from qubo_prune.solver import Capabilities, Solver
from qubo_prune.solver.registry import (
    Adapter,
    available_solvers,
    describe_solvers,
    make_solver,
    solver_class,
)

GREEDY = EntryPoint("greedy", "qubo_prune_solvers.greedy:Greedy", plugins.SOLVERS)


@pytest.fixture
def plug_ins(monkeypatch):
    """Replaces the installed entry points by those given, next to ``greedy``."""

    def install(adapters: dict[str, str] | None = None, **targets: str) -> None:
        given = [EntryPoint(name.rstrip("_"), target, plugins.SOLVERS) for name, target in targets.items()]
        known = {
            plugins.SOLVERS: [GREEDY, *given],
            plugins.ADAPTERS: [EntryPoint(name, to, plugins.ADAPTERS) for name, to in (adapters or {}).items()],
        }
        monkeypatch.setattr(plugins, "_entry_points", lambda group=plugins.SOLVERS: known[group])

    return install


@pytest.fixture
def plug_in_module(monkeypatch):
    """A module of a stranger's, importable as ``stranger``."""
    module = types.ModuleType("stranger")
    monkeypatch.setitem(sys.modules, "stranger", module)
    return module


def test_every_module_of_the_solver_package_has_its_entry_point():
    modules = {
        f"qubo_prune_solvers.{module.name}"
        for module in pkgutil.iter_modules(qubo_prune_solvers.__path__)
        if not module.name.startswith("_")
    }
    groups = (plugins.SOLVERS, plugins.ADAPTERS)
    entries = {entry.value.partition(":")[0] for group in groups for entry in plugins._entry_points(group)}
    assert modules
    assert modules <= entries, "list it in pyproject.toml, then install the package again"


def test_every_registered_solver_of_this_package_loads():
    for info in describe_solvers():
        if info.target.startswith("qubo_prune_solvers."):
            assert info.error is None
            assert info.capabilities == solver_class(info.name).capabilities
            assert info.distribution == "qubo-prune"
            assert info.name in available_solvers()


def test_a_solver_is_made_from_a_name_and_its_settings():
    assert make_solver("greedy") == Greedy()
    assert make_solver("greedy", candidates=3) == Greedy(candidates=3)
    assert make_solver("qubo_prune_solvers.greedy:Greedy", precision="double") == Greedy(precision="double")


def test_an_instance_is_passed_through_without_settings():
    solver = Greedy(candidates=2)
    assert make_solver(solver) is solver
    with pytest.raises(TypeError, match="already made"):
        make_solver(solver, candidates=3)


def test_unknown_names_give_near_ones():
    with pytest.raises(InputError, match=r"no solver 'gredy' \(did you mean 'greedy'\?\); installed are.*exact"):
        solver_class("gredy")


def test_unknown_settings_give_near_ones():
    with pytest.raises(TypeError, match=r"no setting 'candidate' \(did you mean 'candidates'\?\); it has"):
        make_solver("greedy", candidate=3)
    with pytest.raises(TypeError, match=r"'greedy' has no setting 'seed'; it has candidates, .*precision"):
        make_solver("greedy", seed=3)


def test_a_solver_that_is_no_dataclass_has_no_settings(plug_ins, plug_in_module):
    class Plain(Solver):
        def solve(self, request, /):
            raise NotImplementedError

    plug_in_module.Plain = Plain
    plug_ins(plain="stranger:Plain")
    assert isinstance(make_solver("plain"), Plain)
    with pytest.raises(TypeError, match="it has none"):
        make_solver("plain", beta=1)


def test_a_broken_plug_in_is_listed_with_its_reason_and_breaks_no_other(plug_ins, plug_in_module):
    plug_in_module.Thing = int
    plug_ins(
        absent="no_such_package.module:Solver",
        attribute="stranger:NoSuchClass",
        foreign="stranger:Thing",
        headless="stranger",
    )
    infos = {info.name: info for info in describe_solvers()}
    assert available_solvers() == ["greedy"]
    assert infos["greedy"].error is None
    assert "No module named 'no_such_package'" in infos["absent"].error
    assert "NoSuchClass" in infos["attribute"].error
    assert "not a subclass" in infos["foreign"].error
    assert "'headless' (stranger)" in infos["headless"].error
    assert all(infos[name].capabilities is None for name in infos if name != "greedy")
    assert infos["absent"].distribution == "an unknown distribution"
    assert make_solver("greedy") == Greedy()
    with pytest.raises(SolverError, match="cannot be loaded: ModuleNotFoundError"):
        make_solver("absent")


def test_a_plug_in_that_raises_at_import_breaks_no_other(plug_ins, tmp_path, monkeypatch):
    (tmp_path / "raising_plug_in.py").write_text("raise RuntimeError('no licence file')")
    monkeypatch.syspath_prepend(tmp_path)
    plug_ins(raising="raising_plug_in:Annealer")
    assert available_solvers() == ["greedy"]
    with pytest.raises(SolverError, match="RuntimeError: no licence file"):
        solver_class("raising")


def test_two_plug_ins_of_one_name_are_an_error_that_names_both(plug_ins):
    plug_ins(twin="one.module:A", twin_="other.module:B")
    with pytest.raises(SolverError, match=r"'twin' is claimed by one\.module:A .* and other\.module:B"):
        solver_class("twin")
    error = next(info.error for info in describe_solvers() if info.name == "twin")
    assert "uninstall one of them" in error
    assert available_solvers() == ["greedy"]


def test_one_plug_in_seen_twice_counts_once(plug_ins):
    plug_ins(greedy_=GREEDY.value)
    assert solver_class("greedy") is Greedy
    assert available_solvers() == ["greedy"]


def test_any_class_is_reached_by_its_module(plug_in_module):
    @dataclass(frozen=True)
    class Mine(Greedy):
        pass

    plug_in_module.Mine = Mine
    assert solver_class("stranger:Mine") is Mine
    with pytest.raises(SolverError, match="'stranger:Other'"):
        solver_class("stranger:Other")
    with pytest.raises(SolverError, match="ModuleNotFoundError"):
        solver_class("no_such_package:Solver")


def test_a_solver_whose_package_is_missing_says_what_to_install(plug_ins, plug_in_module):
    class Cold(Greedy):
        capabilities = Capabilities(
            requires=(("numpy", "numpy"), ("cryostat.core", "cryostat-sdk"), ("helium3", "helium"))
        )

    plug_in_module.Cold = Cold
    plug_ins(cold="stranger:Cold")
    with pytest.raises(SolverError, match=r"'cold' needs a package that is missing: pip install cryostat-sdk helium$"):
        make_solver("cold")
    info = next(info for info in describe_solvers() if info.name == "cold")
    assert "pip install cryostat-sdk helium" in info.error
    assert available_solvers() == ["greedy"]


@dataclass(frozen=True)
class Wrapped(Adapter):
    """A solver around anything."""

    path: str
    settings: tuple[tuple[str, object], ...]

    @classmethod
    def from_path(cls, path, **settings):
        check_settings(path, settings, ["reads"])
        return cls(path, tuple(settings.items()))

    def solve(self, request, /):
        raise NotImplementedError


def test_an_adapter_makes_a_solver_of_what_a_path_names(plug_ins, plug_in_module):
    plug_in_module.Wrapped = Wrapped
    plug_ins(adapters={"wrap": "stranger:Wrapped"})
    made = make_solver("wrap:dwave.samplers:TabuSampler", reads=3)
    assert made == Wrapped("dwave.samplers:TabuSampler", (("reads", 3),))
    with pytest.raises(TypeError, match="did you mean 'reads'"):
        make_solver("wrap:dwave.samplers:TabuSampler", read=3)


def test_adapters_that_cannot_be_used_say_why(plug_ins, plug_in_module):
    plug_in_module.Greedy = Greedy
    plug_ins(adapters={"wrap": "stranger:Missing", "plain": "stranger:Greedy"})
    with pytest.raises(InputError, match=r"no adapter 'warp' \(did you mean 'wrap'\?\); installed are plain, wrap"):
        make_solver("warp:package.module:Thing")
    with pytest.raises(SolverError, match=r"'wrap' .* cannot be loaded"):
        make_solver("wrap:package.module:Thing")
    with pytest.raises(SolverError, match=r"'plain' .* not a subclass of qubo_prune\.solver\.registry\.Adapter"):
        make_solver("plain:package.module:Thing")
