"""What a run is asked for: one field for each setting, in every form that people give."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
import tiny
import torch

from qubo_prune import estimate_run, prune
from qubo_prune.errors import InputError
from qubo_prune.request import (
    EFFORTS,
    GROUPS,
    HOME,
    Budget,
    DataSettings,
    MethodSettings,
    Placement,
    PruneRequest,
    PruneSettings,
    RunSettings,
    all_fields,
    first_sentence,
    sentences_of,
)
from qubo_prune.run.compare import compare


def test_the_keywords_for_type_checkers_are_the_fields() -> None:
    fields = {each.name: each.type for each in all_fields() if each.name != "method"}
    keys = {name: kind.__forward_arg__ for name, kind in PruneSettings.__annotations__.items()}
    assert keys == fields
    assert len(fields) == sum(len(dataclasses.fields(owner)) for owner in GROUPS.values()) - 1  # no name twice


@pytest.mark.parametrize("owner", GROUPS.values())
def test_every_field_says_what_it_is(owner: type[Any]) -> None:
    said = sentences_of(owner)
    assert list(said) == [each.name for each in dataclasses.fields(owner)]
    for name, text in said.items():
        assert first_sentence(text).endswith("."), name
        assert len(first_sentence(text)) <= 180, name


def test_signatures_have_every_setting() -> None:
    taken = inspect.signature(prune).parameters
    assert set(HOME) < set(taken)
    assert taken["seed"].default == 0
    assert taken["block_time"].default == "60s"
    assert set(HOME) - {"method"} < set(inspect.signature(compare).parameters)


def test_prune_itself_has_twelve_parameters_at_most() -> None:
    code = inspect.unwrap(prune).__code__
    assert code.co_argcount + code.co_kwonlyargcount + 1 <= 12  # with **settings


def test_keywords_and_groups_ask_for_the_same() -> None:
    one = PruneRequest.of("m", settings={"pattern": "2:4", "seed": 3, "samples": "16", "weights": "disk"})
    two = PruneRequest.of(
        "m",
        groups={
            "budget": Budget(pattern="2:4"),
            "run": RunSettings(seed=3),
            "data": DataSettings(samples=16),
            "place": Placement(weights="disk"),
        },
    )
    for name in HOME:
        assert one[name] == two[name], name


def test_a_keyword_comes_before_the_group() -> None:
    request = PruneRequest.of("m", groups={"budget": Budget("layer", protect=0.1)}, settings={"pattern": "row"})
    assert (request.budget.pattern, request.budget.protect) == ("row", 0.1)


def test_plain_forms_are_read() -> None:
    given = {
        "protect": "1/8",
        "samples": "12",
        "include": "*.mlp.*",
        "gram_devices": ["cpu"],
        "densities": {"a": "0.25"},
        "max_time": "2m",
        "block_time": None,
        "guard": 2.0,
    }
    request = PruneRequest.of("m", density="1/2", settings=given)
    found = {name: request[name] for name in given}
    assert request.density == 0.5
    assert found == {
        "protect": 0.125,
        "samples": 12,
        "include": ("*.mlp.*",),
        "gram_devices": ("cpu",),
        "densities": {"a": 0.25},
        "max_time": 120.0,
        "block_time": None,
        "guard": 2,
    }
    assert request.changed({"seed": 1}).changed({}).budget == request.budget


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": None}, "samples is None of type NoneType; give a whole number"),
        ({"protect": "a lot"}, "protect is 'a lot' of type str; give one number"),
        ({"include": [3]}, r"include is \[3\] of type list; give one text, or a list of them"),
        ({"densities": [0.5]}, "densities is of type list; give a dict of pattern and kept share"),
        ({"max_time": "soon"}, "The time 'soon' is not understood"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        PruneRequest.of("m", settings=settings)
    with pytest.raises(InputError, match=said):
        prune("no-such-model", **settings)


@pytest.mark.parametrize("call", [prune, estimate_run, compare])
def test_a_misspelt_setting_is_told_with_near_ones(call: Any) -> None:
    with pytest.raises(TypeError, match=rf"{call.__name__}\(\) has no argument 'patern' \(did you mean 'pattern'"):
        call("no-such-model", patern="row")


def test_a_group_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="budget is of type dict; give a Budget"):
        PruneRequest.of("no-such-model", groups={"budget": {"pattern": "row"}})


def test_a_method_may_come_as_its_settings() -> None:
    given = MethodSettings(method="wanda", update="refit")
    report = prune(tiny.mlp(), torch.randn(8, 12), method=given)
    assert (report.settings["method"], report.settings["update"]) == ("wanda", "refit")
    assert estimate_run(tiny.mlp(), torch.randn(8, 12), method=given).settings == report.settings
    with pytest.raises(InputError, match="did you mean 'wanda'"):
        prune("no-such/model", method=MethodSettings(method="wandda"))


def test_what_a_resumed_run_is_compared_by() -> None:
    compared = PruneRequest.of("m").compared()
    assert {"seed", "pattern", "samples", "dtype", "max_time", "method"} <= compared.keys()
    assert not {"output", "workers", "run_folder", "resume", "weights", "gram_devices", "loss"} & compared.keys()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prune_head": "no"}, "prune_head is 'no'; true or false is needed"),
        ({"overwrite": "no"}, "overwrite is 'no'; true or false is needed"),
        ({"polish": 3}, "polish is 3; true or false is needed"),
        ({"pattern": 3}, "pattern is 3; a text is needed"),
        ({"allocation": 3}, "allocation is 3; one of 'uniform'"),
        ({"solver_settings": [1]}, r"solver_settings is \[1\]"),
        ({"method_settings": "alpha=1"}, "method_settings is 'alpha=1'"),
        ({"output": 3}, "output is 3"),
        ({"update": 3}, "update is 3"),
        ({"loss_length": 0}, "loss_length is 0; it must be at least 1"),
        ({"on_step": 3}, "on_step is of type int"),
        ({"method": "wanda", "warm_start": "admm"}, "warm_start is given and the method 'wanda' makes a mask"),
        ({"method": "wanda", "solver": "nonsense"}, "no solver 'nonsense'"),
        ({"method": "wanda", "block_size": 1}, "block_size is 1; at least 2"),
        ({"method": "wanda", "workers": "zzz"}, "workers is 'zzz'"),
        ({"warm_start": {"0.weight": 3}}, "The mask '0.weight' is of type int"),
    ],
)
def test_values_of_a_wrong_type_are_one_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        prune(tiny.mlp(), torch.randn(8, 12), **settings)


def test_a_group_of_a_subclass_is_a_group() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(Budget):
        more: int = 3

    assert PruneRequest.of("m", groups={"budget": Mine(pattern="layer")}).budget.pattern == "layer"


@pytest.mark.parametrize("effort", EFFORTS)
def test_an_effort_stands_for_settings_and_gives_way_to_what_is_said(effort: Any) -> None:
    found = PruneRequest.of("m", settings={"effort": effort}).with_effort()
    assert {name: found[name] for name in EFFORTS[effort]} == EFFORTS[effort]
    own = PruneRequest.of(
        "m", settings={"effort": effort, "method": "wanda", "damping": 0.1, "samples": 8}
    ).with_effort()
    assert (own["method"], own["damping"], own["samples"]) == ("wanda", 0.1, 8)
    assert own["correction"] == 0.5
    grouped = PruneRequest.of("m", settings={"effort": effort, "pattern": "2:4"}).with_effort()
    assert (grouped["pattern"], grouped["hessian"], grouped["allocation"]) == ("2:4", None, "uniform")
    assert grouped["method"] == "admm"


def test_an_effort_that_there_is_not_is_rejected() -> None:
    with pytest.raises(InputError, match="did you mean 'best'"):
        prune(tiny.llama(), tiny.tokens(), effort="bst")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names its methods and their settings"):
        compare("smollm2-135m", ["wanda"], effort="best")


@pytest.mark.parametrize("effort", ["fast", "best"])
def test_runs_of_an_effort(effort: Any) -> None:
    model = tiny.llama()
    report = prune(model, list(torch.split(tiny.tokens(8, 16), 1)), effort=effort, loss="next-token", guard=2)
    assert report.settings["method"] == "admm"
    assert report.settings["allocation"] == "kron"
    assert report.settings["update"] == EFFORTS[effort]["update"]
    assert report.totals()["kept"] == report.totals()["weights"] // 2
