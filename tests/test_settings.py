"""Settings against the types and ranges that a class declares."""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from qubo_prune_solvers.tabu import Tabu

from qubo_prune import BlockQubo, prune, solve
from qubo_prune.bench.solvers import parse_entrants
from qubo_prune.errors import InputError
from qubo_prune.settings import Given, Kind, checked_settings, kinds_of, setting
from qubo_prune.solver import Solver, SolveRequest, SolveResult
from qubo_prune.solver.registry import available_solvers, make_solver, read_settings, solver_class

if TYPE_CHECKING:
    from nowhere import Unknown


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Stranger(Solver):
    """Fields of every type that a stranger may give them."""

    sweeps: int = field(default=10, metadata={"least": 1, "unit": "sweeps"})
    hot: float = setting(1.0, above=0)
    share: float = setting(0.5, least=0, most=1)
    forever: float = math.inf
    kind: Literal["a", "b", 3] = "a"
    flag: bool = False
    name: str = "x"
    either: int | str = 1
    pair: tuple[int, float] = (1, 2.0)
    many: Sequence[int] = setting((1,), least=0)
    colour: Colour = Colour.RED
    where: Path | None = None
    anything: Any = None
    table: Mapping[str, int] = field(default_factory=dict)
    unknown: Unknown | None = None
    late: int = field(default=3, init=False)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise NotImplementedError


READ = [
    ("sweeps", "20", 20),
    ("sweeps", "2e1", 20),
    ("hot", "3", 3),
    ("hot", "1e-3", 1e-3),
    ("share", "1", 1),
    ("forever", "Infinity", math.inf),
    ("kind", "b", "b"),
    ("kind", "3", 3),
    ("flag", "true", True),
    ("flag", "False", False),
    ("name", "5", "5"),
    ("name", '"5"', "5"),
    ("name", "none", "none"),
    ("either", "7", 7),
    ("either", "seven", "seven"),
    ("pair", "[2, 3.5]", (2, 3.5)),
    ("many", "[0, 4]", [0, 4]),
    ("colour", "BLUE", Colour.BLUE),
    ("colour", "blue", Colour.BLUE),
    ("where", "None", None),
    ("where", "a/b", Path("a/b")),
    ("anything", "[1]", [1]),
    ("anything", "text", "text"),
    ("table", '{"a": 1}', {"a": 1}),
]


@pytest.mark.parametrize(("name", "text", "value"), READ)
def test_texts_are_read_as_the_types_of_the_fields(name: str, text: str, value: Any) -> None:
    read = checked_settings("mine", Stranger, {name: Given(text)})[name]
    assert read == value
    assert type(read) is type(value) or isinstance(read, Path)


REFUSED = [
    ("sweeps", "abc", "'abc'; a whole number from 1 on is needed"),
    ("sweeps", "-1", "'-1'; a whole number from 1 on"),
    ("sweeps", "1.5", "a whole number from 1 on"),
    ("sweeps", "true", "a whole number from 1 on"),
    ("sweeps", "None", "a whole number from 1 on"),
    ("sweeps", "1" * 5000, "a whole number from 1 on"),
    ("hot", "0", "a number above 0 is needed"),
    ("hot", "NaN", "a number above 0"),
    ("hot", "Infinity", "a number above 0"),
    ("share", "1.1", "a number from 0 to 1"),
    ("kind", "c", "one of 'a', 'b', 3"),
    ("flag", "1", "true or false"),
    ("pair", "[1]", "a list of 2: a whole number, a number"),
    ("pair", "12", "a list of 2"),
    ("many", "[0, -1]", "each a whole number from 0 on"),
    ("colour", "green", "one of RED, BLUE"),
    ("table", "5", "a Mapping is needed"),
]


@pytest.mark.parametrize(("name", "text", "message"), REFUSED)
def test_what_does_not_fit_is_one_sentence(name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"The setting {name} of the solver 'mine' is .*") as refused:
        checked_settings("mine", Stranger, {name: Given(text)})
    assert message in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    ("name", "value"),
    [("sweeps", 0), ("sweeps", "3"), ("sweeps", 2.5), ("name", 5), ("flag", 1), ("hot", "1"), ("pair", "12")],
)
def test_values_of_python_are_checked_too(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        checked_settings("mine", Stranger, {name: value})
    with pytest.raises(InputError, match=name):
        make_solver(dataclasses.replace(Stranger(), **{name: value}))


def test_numbers_of_numpy_are_numbers() -> None:
    given = {"sweeps": np.int64(3), "hot": np.float32(0.5), "flag": np.bool_(True), "pair": np.array([1, 2])}
    assert checked_settings("mine", Stranger, given) == {"sweeps": 3, "hot": 0.5, "flag": True, "pair": (1, 2)}


def test_unknown_names_give_near_ones_and_what_cannot_be_set_is_none() -> None:
    with pytest.raises(InputError, match=r"no setting 'sweps' \(did you mean 'sweeps'\?\)"):
        checked_settings("mine", Stranger, {"sweps": 3})
    with pytest.raises(InputError, match="no setting 'late'"):
        checked_settings("mine", Stranger, {"late": 3})


def test_an_annotation_that_means_nothing_here_takes_anything() -> None:
    assert checked_settings("mine", Stranger, {"unknown": 3.5}) == {"unknown": 3.5}


@pytest.mark.parametrize("solver", available_solvers())
def test_solvers_are_made_of_their_own_defaults_and_refuse_other_types(solver: str) -> None:
    for name, kind in kinds_of(solver_class(solver)).items():
        default = getattr(make_solver(solver), name)
        assert getattr(make_solver(solver, **{name: default}), name) == default
        if kind.type is not Any:
            with pytest.raises(InputError, match=f"setting {name} of"):
                make_solver(solver, **{name: object()})
        if kind.type in (int, float):
            with pytest.raises(InputError, match=f"setting {name} of"):
                make_solver(solver, **{name: -1})


BAD = [("tabu", {"steps": "abc"}), ("tabu", {"steps": -1}), ("tabu", {"steps": 1.5}), ("tabu", {"tenure": (8, 3)})]


@pytest.mark.parametrize(("solver", "settings"), BAD)
def test_every_way_to_a_solver_checks_its_settings(solver: str, settings: dict[str, Any]) -> None:
    (name,) = settings
    problem, model = BlockQubo(np.eye(3), 1), torch.nn.Linear(8, 8)
    labelled = [(torch.randn(4, 8), torch.arange(4))]
    for call in (
        lambda: make_solver(solver, **settings),
        lambda: make_solver(Tabu(**settings)),
        lambda: solve(problem, solver, **settings),
        lambda: prune(model, [torch.randn(4, 8)], solver=solver, solver_settings=settings),
        lambda: prune(model, [torch.randn(4, 8)], solver=Tabu(**settings)),
        lambda: prune(model, labelled, method="loss", solver=solver, solver_settings=settings),
        lambda: prune(model, labelled, method="loss", loss_settings={"solver": solver, "solver_settings": settings}),
    ):
        with pytest.raises(InputError, match=f"{name} "):
            call()
    assert bool(model.weight.all())


def test_settings_in_brackets_and_on_the_command_line_are_checked() -> None:
    assert read_settings("tabu", {"steps": "7", "threads": "none"}) == {"steps": 7, "threads": None}
    with pytest.raises(InputError, match="steps of the solver 'tabu' is 'abc'"):
        read_settings("tabu", {"steps": "abc"})
    assert parse_entrants("tabu(threads=None)")[0].solver() == Tabu(threads=None)
    with pytest.raises(InputError, match="steps of the solver 'tabu' is 'abc'"):
        parse_entrants("tabu(steps=abc)")[0].make()


def test_a_constructor_that_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Fussy(Stranger):
        def __post_init__(self) -> None:
            raise ZeroDivisionError("no licence")

    module = types.ModuleType("fussy")
    module.Fussy = Fussy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fussy", module)
    with pytest.raises(InputError, match=r"'fussy:Fussy' cannot be made with sweeps=3 \(ZeroDivisionError: no licence"):
        make_solver("fussy:Fussy", sweeps=3)


def test_arguments_of_a_function_are_checked_against_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    def anneal(q: Any, num_pruned: int, sweeps: int = 3) -> Any:
        raise NotImplementedError

    module = types.ModuleType("annealing")
    module.anneal = anneal  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "annealing", module)
    assert make_solver("callable:annealing:anneal", sweeps=4).settings == {"sweeps": 4}  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="sweeps of the solver 'callable:anneal' is 'abc'; a whole number is needed"):
        read_settings("callable:annealing:anneal", {"sweeps": "abc"})
    with pytest.raises(InputError, match="counts of the solver 'callable:anneal' is 'maybe'; true or false"):
        read_settings("callable:annealing:anneal", {"counts": "maybe"})


def test_kinds_say_what_they_are() -> None:
    assert str(Kind(int | None, {"least": 1})) == "a whole number from 1 on or none"
    assert str(Kind(list)) == "a list"
    assert str(Kind(float, {"above": 0, "below": 1})) == "a number above 0 and below 1"
