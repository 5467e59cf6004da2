"""The named suites: what they promise without a model."""

from __future__ import annotations

from itertools import chain

import pytest

from qubo_prune.bench import suites
from qubo_prune.bench.origins import ORIGINS
from qubo_prune.bench.suites import HESSIANS, SUITES, Effort, Family, definition, part_of, suite_effort, suite_families
from qubo_prune.choices import BOUNDS
from qubo_prune.errors import InputError

EVERYTHING = [pytest.param(family, id=f"{suite}-{family.name}") for suite in SUITES for family in SUITES[suite]]
#: ``(d_out, d_in)`` of the layers, from the architectures' own configurations.
SHAPES = {
    ("smollm2", "q14"): (576, 576),
    ("smollm2", "o14"): (576, 576),
    ("smollm2", "down14"): (576, 1536),
    ("dinov2", "out6"): (384, 384),
    ("dinov2", "fc6"): (384, 1536),
    ("crepe", "conv3"): (16, 1024),
}


@pytest.mark.parametrize("name", SUITES)
def test_instances_have_names_and_seeds_of_their_own(name: str) -> None:
    families = suite_families(name)
    names = list(chain.from_iterable(family.instances for family in families))
    assert len(set(names)) == len(names) > 0
    assert len({family.name for family in families}) == len(families)
    seeds = [f.seed(n, density) for f in families for density, sizes in f.sizes.items() for n in sizes]
    assert len(set(seeds)) == len(names)


@pytest.mark.parametrize("family", EVERYTHING)
def test_blocks_fit_into_their_layers(family: Family) -> None:
    d_out, d_in = SHAPES[family.origin.removesuffix("-short"), family.short]
    assert family.origin in ORIGINS
    assert family.hessian in HESSIANS
    assert family.about
    largest = d_out * d_in // 2 if family.hessian == "fisher" else d_in
    for density, sizes in family.sizes.items():
        assert 0 < density < 1
        assert len(set(sizes)) == len(sizes)
        for n in sizes:
            assert 2 <= n <= largest
            pruned = round(n * (1 - density))
            assert 0 < pruned < n
            if family.hessian == "compensated":  # both kinds are taken from Wanda's mask of the row
                assert pruned <= d_in * (1 - density) + 1
                assert n - pruned <= d_in * density + 1


def test_a_name_tells_layer_hessian_size_and_density() -> None:
    family = Family("model", "some.layer", "layer", "gram", {0.3: (8, 100), 0.5: (4096,)}, "")
    assert family.instances == [
        "model-layer-gram-n0008-d30",
        "model-layer-gram-n0100-d30",
        "model-layer-gram-n4096-d50",
    ]
    again = Family("model", "another.layer", "layer", "gram", {0.5: (8,)}, "other words")
    assert again.seed(8, 0.3) == family.seed(8, 0.3) != family.seed(8, 0.5)


def test_smoke_has_a_whole_row_and_a_hard_block_and_standard_everything() -> None:
    smoke = suite_families("smoke")
    hard = next(family for family in smoke if family.short == "o14" and family.hessian == "gram")
    assert {256, 576} <= set(hard.sizes[0.5])
    assert sum(len(family.instances) for family in smoke) <= 8
    for suite in SUITES:
        assert {family.hessian for family in suite_families(suite)} == set(HESSIANS)
    assert {family.origin for family in suite_families("standard")} == set(ORIGINS) - {"smollm2-short"}
    rows = [n for family in suite_families("standard") for n in family.sizes.get(0.3, ()) if family.short == "down14"]
    assert 1536 in rows


@pytest.mark.parametrize("name", SUITES)
def test_bounds_of_a_suite_are_kinds_that_there_are(name: str) -> None:
    effort = suite_effort(name)
    assert effort.proof_time > 0
    assert set(effort.bounds) <= set(BOUNDS)


SOME = (
    Family("model", "one", "one", "gram", {0.3: (8,), 0.5: (8, 16)}, ""),
    Family("model", "two", "two", "gram", {0.5: (16, 32)}, ""),
)


@pytest.mark.parametrize(
    ("names", "sizes", "left"),
    [
        (None, None, ["one-n0008-d30", "one-n0008-d50", "one-n0016-d50", "two-n0016-d50", "two-n0032-d50"]),
        (None, [8], ["one-n0008-d30", "one-n0008-d50"]),
        (None, [16, 999], ["one-n0016-d50", "two-n0016-d50"]),
        (["model-two-gram"], None, ["two-n0016-d50", "two-n0032-d50"]),
        (["model-one-gram-n0008-d50", "model-two-gram"], [8, 32], ["one-n0008-d50", "two-n0032-d50"]),
    ],
)
def test_a_part_has_what_is_asked_for_alone(names: list[str] | None, sizes: list[int] | None, left: list[str]) -> None:
    parts = part_of("some", SOME, names, sizes)
    found = [entry.removeprefix("model-").replace("-gram-", "-") for family in parts for entry in family.instances]
    assert found == left
    assert all(family.sizes and all(family.sizes.values()) for family in parts)


@pytest.mark.parametrize(
    ("names", "sizes"), [(None, [9]), ([], None), (["model-tow-gram"], None), (["model-one-gram", "x"], None)]
)
def test_a_part_of_nothing_is_refused(names: list[str] | None, sizes: list[int] | None) -> None:
    with pytest.raises(
        InputError, match=r"'some' has no such instances.* its families are .*-two-gram, its sizes 8, 16"
    ):
        part_of("some", SOME, names, sizes)


def test_a_new_kind_of_bound_is_a_new_definition_where_all_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    before = definition(SOME, Effort()), definition(SOME, Effort(bounds=("plain",)))
    monkeypatch.setattr(suites, "BOUNDS", (*BOUNDS, "newest"))
    assert definition(SOME, Effort()) != before[0]
    assert definition(SOME, Effort(bounds=("plain",))) == before[1]


def test_the_definition_is_that_of_the_problems_and_of_what_is_spent_on_them() -> None:
    told = definition(SOME, Effort())
    assert told == definition(
        [SOME[0], Family("model", "two", "two", "gram", {0.5: (16, 32)}, "other words")], Effort()
    )
    others = [
        definition(SOME[:1], Effort()),
        definition(SOME, Effort(proof_time=1.0)),
        definition(SOME, Effort(bounds=("plain",))),
        definition([SOME[0].part(None, [8]), SOME[1]], Effort()),
    ]
    assert len({told, *others}) == 5


def test_an_unknown_suite_is_refused_with_a_near_name() -> None:
    with pytest.raises(
        InputError, match=r"no suite 'standart' \(did you mean 'standard'\?\); use one of standard, smo"
    ):
        suite_families("standart")
