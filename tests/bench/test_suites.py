"""The named suites: what they promise without a model."""

from __future__ import annotations

from itertools import chain

import pytest

from qubo_prune.bench.origins import ORIGINS
from qubo_prune.bench.suites import HESSIANS, SUITES, Family, suite_families
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
    d_out, d_in = SHAPES[family.origin, family.short]
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


def test_smoke_is_small_and_standard_has_every_hessian_and_origin() -> None:
    smoke = suite_families("smoke")
    assert {family.origin for family in smoke} == {"crepe"}
    assert max(n for family in smoke for sizes in family.sizes.values() for n in sizes) <= 256
    for suite in SUITES:
        assert {family.hessian for family in suite_families(suite)} == set(HESSIANS)
    assert {family.origin for family in suite_families("standard")} == set(ORIGINS)


def test_an_unknown_suite_is_refused_with_a_near_name() -> None:
    with pytest.raises(
        InputError, match=r"no suite 'standart' \(did you mean 'standard'\?\); use one of standard, smo"
    ):
        suite_families("standart")
