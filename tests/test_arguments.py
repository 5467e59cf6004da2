"""Arguments in the forms that people give them in: they mean what they say, or one sentence says what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import dimod
import numpy as np
import pytest
import tiny
import torch
from qubo_prune_solvers.exact import Exact
from unchecked import without_type_checks

from qubo_prune import BlockQubo, estimate_run, prune, solve
from qubo_prune.arguments import as_count, as_limit, as_names, as_number, parse_seconds
from qubo_prune.errors import InputError
from qubo_prune.models.layers import find_layers
from qubo_prune.solver import Solver
from qubo_prune.solver.registry import make_solver


@pytest.fixture(autouse=True)
def _as_users_call() -> Iterator[None]:
    with without_type_checks():
        yield


@pytest.mark.parametrize(
    "value",
    ["0.5", " 1/2 ", "5e-1", 0.5, Fraction(1, 2), np.float32(0.5), np.array(0.5), np.array([0.5]), torch.tensor(0.5)],
)
def test_numbers_of_every_type(value: Any) -> None:
    assert as_number("density", value) == 0.5


@pytest.mark.parametrize("value", [32, "32", 32.0, np.int64(32), np.array(32), torch.tensor(32)])
def test_counts_of_every_type(value: Any) -> None:
    found = as_count("samples", value)
    assert (found, type(found)) == (32, int)


@pytest.mark.parametrize("value", ["half", [0.5], [0.5, 0.6], None, True, object(), "1/0", torch.rand(2), {}])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(InputError, match=r"^density is .* of type \w+; give one number, such as 0\.5 \(for layers of"):
        as_number("density", value)


@pytest.mark.parametrize("value", ["many", 1.5, float("nan"), [3], True])
def test_what_is_no_count(value: Any) -> None:
    with pytest.raises(InputError, match=r"^samples is .*; give a whole number, such as 32"):
        as_count("samples", value)


def test_names_alone_or_in_any_collection() -> None:
    assert as_names("include", "*mlp*") == ("*mlp*",)
    for given in (["a", "b"], ("a", "b"), iter(["a", "b"]), {"a": 1, "b": 2}):
        assert as_names("include", given) == ("a", "b")
    for wrong in (5, [5], None):
        with pytest.raises(InputError, match=r"^include is .*; give one text, or a list of them"):
            as_names("include", wrong)


def test_times_are_numbers_or_text() -> None:
    assert [parse_seconds(text) for text in ("90", "500ms", "5m", 2, None)] == [90, 0.5, 300, 2, None]
    assert [as_limit("time_limit", each) for each in ("5s", 5, np.float64(5), None)] == [5, 5, 5, None]
    for wrong in ("soon", "0s", "-5s"):
        with pytest.raises(InputError, match="is not understood; give a positive number"):
            as_limit("time_limit", wrong)
    for number in (0, -1.0, float("nan")):
        with pytest.raises(InputError, match="pass a positive number of seconds or None"):
            as_limit("time_limit", number)
    with pytest.raises(InputError, match=r"time_limit is .* of type list; give one number"):
        as_limit("time_limit", [5])


def test_a_run_takes_them_all() -> None:
    usual = prune(tiny.llama(), tiny.tokens(), 0.5, include=["*mlp*"], block_size=16, max_sweeps=1)
    for density in ("0.5", Fraction(1, 2), np.float32(0.5)):
        found = prune(
            tiny.llama(),
            tiny.tokens(),
            density,
            include="*mlp*",
            block_size="16",
            max_sweeps=np.int64(1),
            max_time="9m",
        )  # type: ignore[arg-type]
        assert [layer.name for layer in found.layers] == [layer.name for layer in usual.layers]
        assert all(torch.equal(found.masks[name], usual.masks[name]) for name in usual.masks)
        assert found.settings["density"] == 0.5
    assert len(find_layers(tiny.llama(), include="*mlp*", exclude="*down*")) == 4
    found = prune(tiny.mlp(), torch.rand(4, 12), 0.5, densities={"4": "0.75"})  # type: ignore[dict-item]
    assert found.layers[-1].density == 0.75
    told = estimate_run(tiny.mlp(), list(torch.rand(4, 2, 12)), "0.5", exclude="4", guard="1")  # type: ignore[arg-type]
    assert told.layers == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"density": [0.5, 0.6]}, r"density is \[0.5, 0.6\] of type list; give one number"),
        ({"density": None}, "density is None of type NoneType; give one number"),
        ({"density": "half"}, "density is 'half' of type str"),
        ({"samples": "all"}, "samples is 'all' of type str; give a whole number"),
        ({"include": 3}, "include is 3 of type int"),
        ({"densities": [0.5]}, "densities is of type list; give a dict"),
        ({"max_time": [5]}, r"The time \[5\] is not understood"),
    ],
)
def test_a_run_says_what_it_cannot_read(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        prune(tiny.mlp(), torch.rand(4, 12), **arguments)


class NoSolver:
    """Has a method of that name and nothing else."""

    def solve(self, request: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        (object(), "The solver is of type object, which is no Solver; give a name"),
        (NoSolver(), "The solver is of type NoSolver, which is no Solver"),
        (None, "The solver is of type NoneType"),
        (lambda problem: problem, "The solver is a function; give it by name, as callable:module:function"),
        (Solver, "The solver is the class Solver; give its name, or an instance"),
        (int, "The solver is the class int; give"),
        (Exact, r"The solver is the class Exact; give its name, or an instance of it, such as Exact\(\)\.$"),
        (dimod.ExactSolver(), "of type ExactSolver, which is no Solver; .* of a dimod sampler dimod:package"),
    ],
)
def test_what_is_no_solver(solver: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_solver(solver)
    with pytest.raises(InputError, match=said):
        solve(BlockQubo(np.eye(3), 1), solver)
    with pytest.raises(InputError, match=said):
        prune(tiny.mlp(), torch.rand(4, 12), 0.5, solver=solver)


def test_a_model_is_saved_without_a_tokenizer_where_ids_are_given(tmp_path: Path) -> None:
    model = tiny.llama()
    report = prune(model, tiny.tokens(), 0.5, method="magnitude", output=tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert report.masks.verify(loaded) == {}
    assert not list((tmp_path / "out").glob("tokenizer*"))
    with pytest.raises(InputError, match="output is given, which takes a transformers model"):
        prune(tiny.mlp(), torch.rand(4, 12), 0.5, output=tmp_path / "other")


def test_a_time_limit_of_a_solve_may_be_text() -> None:
    problem = BlockQubo(np.eye(3), 1)
    assert solve(problem, "exact", time_limit="5s").energy == solve(problem, "exact").energy
    with pytest.raises(InputError, match="The time 'soon' is not understood"):
        solve(problem, "exact", time_limit="soon")
