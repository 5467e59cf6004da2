from __future__ import annotations

import doctest
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_layer

from qubo_prune.errors import InputError
from qubo_prune.hessian import Gram
from qubo_prune.masks import Pattern, keep_highest
from qubo_prune.methods import allocation
from qubo_prune.methods.allocation import (
    ALLOCATIONS,
    by_loss_change,
    check_allocation,
    check_protect,
    counts_of,
    densities_by_name,
    outlier_share,
    owl,
    predicted_rise,
    protected,
)

LAYER, ROW = Pattern("layer"), Pattern("row")


@st.composite
def networks(draw):
    """Shares and shapes of a few layers, and a density that gives each row of each layer a weight."""
    count = draw(st.integers(1, 6))
    shapes = {f"l{i}": (draw(st.integers(1, 30)), draw(st.integers(1, 40))) for i in range(count)}
    shares = {name: draw(st.floats(0.01, 1.0)) for name in shapes}
    weights, rows = sum(a * b for a, b in shapes.values()), sum(a for a, _ in shapes.values())
    density = draw(st.floats(rows / weights, 1.0))
    return shares, shapes, density


def sizes_of(shapes) -> dict[str, int]:
    return {name: d_out * d_in for name, (d_out, d_in) in shapes.items()}


def total_of(shapes, density) -> int:
    return round(density * sum(sizes_of(shapes).values()))


# --- counts -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(networks())
def test_with_layer_the_total_is_exact_and_counts_are_scaled_shares(case):
    shares, shapes, density = case
    sizes, wanted = sizes_of(shapes), total_of(shapes, density)
    counts = counts_of(shares, shapes, density, LAYER)
    assert list(counts) == list(shapes)
    assert sum(counts.values()) == wanted
    assert all(1 <= counts[name] <= sizes[name] for name in shapes)
    # the scale, by halving
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        kept = sum(min(max(middle * shares[name] * sizes[name], 1), sizes[name]) for name in shapes)
        low, high = (middle, high) if kept < wanted else (low, middle)
    for name, count in counts.items():
        assert abs(count - min(max(high * shares[name] * sizes[name], 1), sizes[name])) < 1 + 1e-6


@settings(deadline=None, max_examples=200)
@given(networks())
def test_with_row_layers_keep_whole_numbers_per_row_and_no_layer_with_room_fits_the_rest(case):
    shares, shapes, density = case
    counts = counts_of(shares, shapes, density, ROW)
    rest = total_of(shapes, density) - sum(counts.values())
    assert rest >= 0
    for name, (d_out, d_in) in shapes.items():
        assert counts[name] % d_out == 0
        assert 1 <= counts[name] // d_out <= d_in
        assert counts[name] // d_out == d_in or rest < d_out


@settings(deadline=None, max_examples=100)
@given(networks(), st.sampled_from([LAYER, ROW]))
def test_a_pattern_gets_the_count_back_from_the_density(case, pattern):
    shares, shapes, density = case
    for name, count in counts_of(shares, shapes, density, pattern).items():
        assert pattern.num_kept(shapes[name], count / sizes_of(shapes)[name]) == count


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.floats(0.2, 1.0), st.sampled_from([LAYER, ROW]))
def test_layers_of_one_shape_are_ordered_as_their_shares(shares, density, pattern):
    named = {f"l{i}": share for i, share in enumerate(shares)}
    counts = counts_of(named, dict.fromkeys(named, (4, 9)), density, pattern)
    for a, b in product(named, named):
        assert named[a] <= named[b] or counts[a] >= counts[b]


def test_clipped_layers_hand_on_what_they_cannot_hold():
    shapes = {"full": (2, 5), "a": (2, 20), "b": (2, 20)}
    assert counts_of({"full": 1.0, "a": 0.2, "b": 0.2}, shapes, 0.5, LAYER) == {"full": 10, "a": 18, "b": 17}
    assert counts_of({"full": 1e9, "a": 1.0, "b": 1.0}, shapes, 0.5, ROW) == {"full": 10, "a": 18, "b": 16}
    # far below one weight: one stays, in every row
    assert counts_of({"full": 1e-9, "a": 1.0, "b": 1.0}, shapes, 0.5, LAYER) == {"full": 1, "a": 22, "b": 22}
    assert counts_of({"full": 1e-9, "a": 1.0, "b": 1.0}, shapes, 0.5, ROW) == {"full": 2, "a": 22, "b": 20}


def test_the_rest_that_no_layer_takes_is_less_than_its_rows():
    shapes = {"a": (7, 4), "b": (5, 4)}
    # 24 of 48 would be two in each row; 27 is three more, which neither 7 nor 5 rows can share
    assert counts_of({"a": 0.5, "b": 0.5}, shapes, 27 / 48, ROW) == {"a": 14, "b": 10}
    assert counts_of({"a": 0.5, "b": 0.5}, shapes, 29 / 48, ROW) == {"a": 14, "b": 15}


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("pattern", [LAYER, ROW])
def test_equal_shares_are_the_uniform_density(density, pattern):
    shapes = {"a": (3, 10), "b": (8, 20), "c": (1, 30)}
    counts = counts_of(dict.fromkeys(shapes, density), shapes, density, pattern)
    assert counts == {name: pattern.num_kept(shape, density) for name, shape in shapes.items()}


def test_all_but_the_scale_of_the_shares_counts():
    shapes = {"a": (3, 10), "b": (8, 20), "c": (1, 30)}
    one, other = ({"a": 0.25 * f, "b": 0.5 * f, "c": 0.125 * f} for f in (1, 64))
    assert counts_of(one, shapes, 0.4, LAYER) == counts_of(other, shapes, 0.4, LAYER)


def test_n_of_m_allows_the_uniform_density_only():
    pattern, shapes = Pattern.parse("2:4"), {"a": (3, 8), "b": (2, 4)}
    assert counts_of({"a": 0.5, "b": 0.5}, shapes, 0.5, pattern) == {"a": 12, "b": 4}
    with pytest.raises(InputError, match=r"2:4 keeps 2 of every 4 .* 'uniform'"):
        counts_of({"a": 0.5, "b": 0.6}, shapes, 0.5, pattern)
    with pytest.raises(InputError, match=r"2:4 keeps 0.5 of the weights but the density is 0.6"):
        counts_of({"a": 0.6, "b": 0.6}, shapes, 0.6, pattern)
    with pytest.raises(InputError, match="'b' has 6 inputs"):
        counts_of({"a": 0.5, "b": 0.5}, {"a": (3, 8), "b": (2, 6)}, 0.5, pattern)


def test_shares_that_cannot_be_used_are_named():
    shapes = {"a": (4, 10), "b": (4, 10)}
    with pytest.raises(InputError, match="1 shares for 2 layers, and 'b' is in one list only"):
        counts_of({"a": 0.5}, shapes, 0.5, LAYER)
    with pytest.raises(InputError, match="at least one layer"):
        counts_of({}, {}, 0.5, LAYER)
    for share in (0.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="share of layer 'b'"):
            counts_of({"a": 0.5, "b": share}, shapes, 0.5, LAYER)
    with pytest.raises(InputError, match=r"keeps 4 of 80 weights, less than one in each of 8 rows; give at least 0.1"):
        counts_of({"a": 0.5, "b": 0.5}, shapes, 0.05, ROW)
    with pytest.raises(InputError, match=r"each of 2 layers; give at least 0.025"):
        counts_of({"a": 0.5, "b": 0.5}, shapes, 0.01, LAYER)
    with pytest.raises(InputError, match=r"density is 1.5"):
        counts_of({"a": 0.5, "b": 0.5}, shapes, 1.5, LAYER)


# --- OWL --------------------------------------------------------------------------------------------


def test_outliers_are_counted_as_in_the_paper(rng):
    layer = random_layer(rng, 5, 8, dead=(3,))
    weight = layer.weight**3  # heavy tails
    norms = layer.inputs.norm(dim=0)
    products = [[abs(float(weight[i, j])) * float(norms[j]) for j in range(8)] for i in range(5)]
    mean = sum(map(sum, products)) / 40
    for multiple in (1.0, 3.0, 5.0):
        count = sum(value > multiple * mean for row in products for value in row)
        assert outlier_share(weight, layer.gram, multiple) == pytest.approx(count / 40)
    assert outlier_share(weight, layer.gram, 1.0) > outlier_share(weight, layer.gram, 3.0) > 0


def test_without_data_or_weights_there_are_outliers_in_the_weights_or_none(rng):
    weight = torch.ones(2, 20, dtype=torch.bfloat16)
    weight[0, 3] = 100
    empty = Gram(torch.zeros(20, 20, dtype=torch.float64), 0)
    assert outlier_share(weight, empty) == 1 / 40
    assert outlier_share(0 * weight, empty) == 0


def owl_by_loop(outliers, density, spread, sizes):
    mean = sum(outliers[name] * sizes[name] for name in outliers) / sum(sizes.values())
    farthest = 0.0
    for found in outliers.values():
        farthest = max(farthest, abs(found - mean))
    densities = {}
    for name, found in outliers.items():
        densities[name] = density + spread * (found - mean) / farthest
    return densities


def test_owl_follows_its_formula(rng):
    outliers = {f"l{i}": float(value) for i, value in enumerate(rng.uniform(0, 0.1, 7))}
    ones = dict.fromkeys(outliers, 1)
    sizes = {name: int(rng.integers(1, 100)) for name in outliers}
    assert owl(outliers, 0.5) == pytest.approx(owl_by_loop(outliers, 0.5, 0.08, ones))
    assert owl(outliers, 0.3, 0.2, sizes) == pytest.approx(owl_by_loop(outliers, 0.3, 0.2, sizes))
    assert owl(outliers, 0.95, 0.2) == pytest.approx(owl_by_loop(outliers, 0.95, 0.05, ones))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.1, 1.0), st.floats(0, 0.09))
def test_more_outliers_keep_more_within_the_spread_around_the_mean(found, density, spread):
    outliers = {f"l{i}": value for i, value in enumerate(found)}
    densities = owl(outliers, density, spread)
    assert all(abs(value - density) <= spread + 1e-12 for value in densities.values())
    assert all(0 < value <= 1 for value in densities.values())
    assert sum(densities.values()) / len(found) == pytest.approx(density)
    counts = counts_of(densities, dict.fromkeys(outliers, (5, 20)), density, LAYER)
    for a, b in product(outliers, outliers):
        assert outliers[a] <= outliers[b] or densities[a] >= densities[b]
        assert densities[a] <= densities[b] or counts[a] >= counts[b]


def test_with_sizes_the_counts_too_stay_within_the_spread():
    shapes = {"a": (10, 100), "b": (40, 100), "c": (5, 40)}
    densities = owl({"a": 0.05, "b": 0.01, "c": 0.02}, 0.5, 0.1, sizes_of(shapes))
    for name, count in counts_of(densities, shapes, 0.5, LAYER).items():
        assert abs(count - densities[name] * sizes_of(shapes)[name]) < 1
        assert 0.4 - 1e-3 <= count / sizes_of(shapes)[name] <= 0.6 + 1e-3


def test_without_a_difference_every_layer_has_the_density():
    assert owl({"a": 0.3, "b": 0.3, "c": 0.3}, 0.6) == {"a": 0.6, "b": 0.6, "c": 0.6}
    assert owl({"a": 0.3}, 0.6) == {"a": 0.6}


def test_numbers_that_owl_cannot_use():
    with pytest.raises(InputError, match=r"spread is 0.6 and the density 0.5"):
        owl({"a": 0.1}, 0.5, 0.6)
    with pytest.raises(InputError, match="spread is -1"):
        owl({"a": 0.1}, 0.5, -1.0)
    with pytest.raises(InputError, match="outliers of layer 'a' are nan"):
        owl({"a": float("nan")}, 0.5)
    with pytest.raises(InputError, match="density is 0"):
        owl({"a": 0.1}, 0.0)


# --- one threshold on the predicted rise ------------------------------------------------------------


def counts_by_ranking(scores, density, spread):
    """Floors first, then the highest of all that is below its layer's ceiling, one by one."""
    flat = {name: sorted(values.flatten().tolist(), reverse=True) for name, values in scores.items()}
    kept, ceiling = {}, {}
    for name, values in flat.items():
        kept[name] = max(1, int((density - spread) * len(values) // 1))
        ceiling[name] = min(len(values), int(-(-(density + spread) * len(values) // 1)))
    wanted = round(density * sum(map(len, flat.values())))
    while sum(kept.values()) < wanted:
        open_ = [name for name in flat if kept[name] < ceiling[name]]
        best = max(open_, key=lambda name: flat[name][kept[name]])
        kept[best] += 1
    return kept


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**6), st.floats(0.1, 1.0), st.floats(0, 0.5))
def test_one_threshold_agrees_with_ranking_one_by_one(seed, density, spread):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 6), "b": (3, 10), "c": (5, 3)}
    scores = {
        name: torch.rand(shape, generator=draw, dtype=torch.float64) * 4**i
        for i, (name, shape) in enumerate(shapes.items())
    }
    densities = by_loss_change(scores, density, spread)
    wanted = counts_by_ranking(scores, density, spread)
    assert densities == pytest.approx({name: wanted[name] / scores[name].numel() for name in scores})
    assert counts_of(densities, shapes, density, LAYER) == wanted


def test_higher_scores_keep_more_up_to_the_ceiling():
    base = torch.linspace(0.1, 1, 100)
    assert by_loss_change({"a": base, "b": base * 1.5}, 0.5)["b"] > 0.5
    far = by_loss_change({"a": base, "b": base * 100}, 0.5)
    assert far == pytest.approx({"a": 0.3, "b": 0.7})
    assert by_loss_change({"a": base, "b": base * 100}, 0.5, spread=1.0) == pytest.approx({"a": 0.01, "b": 0.99})


def test_equal_scores_are_shared_in_proportion():
    scores = {"a": torch.zeros(3, 10), "b": torch.zeros(2, 35), "c": torch.zeros(5)}
    assert by_loss_change(scores, 0.5) == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.5}, abs=0.1)
    assert sum(share * scores[name].numel() for name, share in by_loss_change(scores, 0.5).items()) == pytest.approx(52)


def test_a_dense_network_and_layers_of_one_weight():
    scores = {"a": torch.rand(1), "b": torch.rand(4, 5)}
    assert by_loss_change(scores, 1.0) == {"a": 1.0, "b": 1.0}
    assert by_loss_change(scores, 0.5, 0.05) == pytest.approx({"a": 1.0, "b": 9 / 20})
    with pytest.raises(InputError, match="keeps 10 weights, and 11 are the least"):
        by_loss_change(scores, 0.5, 0.0)


def test_the_predicted_rise_is_that_of_the_quadratic_model(rng):
    weight, mean, square = (torch.tensor(rng.normal(size=(3, 4))) for _ in range(3))
    rise = predicted_rise(weight, mean, square.abs())
    for i, j in product(range(3), range(4)):
        w, g, f = float(weight[i, j]), float(mean[i, j]), abs(float(square[i, j]))
        # the rise of g d + 1/2 f d^2 at d = -w, whichever sign g has
        assert float(rise[i, j]) == pytest.approx(max(-g * w + f * w * w / 2, g * w + f * w * w / 2))


def test_scores_that_cannot_be_used():
    with pytest.raises(InputError, match="scores of layer 'b' hold NaN"):
        by_loss_change({"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")])}, 0.5)
    with pytest.raises(InputError, match=r"spread is -0.1"):
        by_loss_change({"a": torch.ones(3)}, 0.5, -0.1)
    with pytest.raises(InputError, match="keeps 2 weights, and 3 are the least"):
        by_loss_change({name: torch.ones(5) for name in "abc"}, 0.1)


# --- protected weights and densities by name --------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.33])
def test_the_highest_wanda_scores_are_protected(rng, share):
    layer = random_layer(rng, 6, 8)
    mask = protected(layer.weight, layer.gram, share)
    scores = layer.weight.abs() * layer.inputs.norm(dim=0)
    assert int(mask.sum()) == round(share * 48)
    assert share == 0 or scores[mask].min() >= scores[~mask].max()


@pytest.mark.parametrize(("pattern", "density"), [("row", 0.5), ("2:4", 0.5), ("row", 0.25)])
def test_no_budget_has_more_protected_weights_than_it_keeps(rng, pattern, density):
    layer, budget = random_layer(rng, 6, 8), Pattern.parse(pattern)
    weight = layer.weight.clone()
    weight[0] *= 100  # all that is high stands in one row
    mask = protected(weight, layer.gram, 0.2, budget, density)
    assert int(mask.sum()) == round(0.2 * 48)
    wanda = keep_highest(weight.abs() * layer.inputs.norm(dim=0), budget, density)
    assert not (mask & ~wanda).any()
    # near the density some may run out; what must stay still fits
    assert not (protected(weight, layer.gram, density + 0.2, budget, density) & ~wanda).any()


def test_a_share_to_protect_is_checked():
    check_protect(0.0, 0.1)
    check_protect(0.5, 0.5)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match="at least 0 and less than 1"):
            check_protect(share, 1.0)
    with pytest.raises(InputError, match=r"share 0.6 is more than the density 0.5"):
        check_protect(0.6, 0.5)


def test_later_patterns_of_names_win():
    names = ["0.attn.q", "0.mlp.up", "0.mlp.down", "1.mlp.down"]
    found = densities_by_name({"*.mlp.*": 0.4, "1.*": 0.7, "*.q": 1.0}, names, 0.5)
    assert found == {"0.attn.q": 1.0, "0.mlp.up": 0.4, "0.mlp.down": 0.4, "1.mlp.down": 0.7}
    assert densities_by_name({}, names, 0.5) == dict.fromkeys(names, 0.5)


def test_patterns_of_names_that_cannot_be_used_are_named():
    names = ["0.attn.q", "0.mlp.up"]
    with pytest.raises(InputError, match=r"'0.mlp.upp' matches none of the 2 prunable layers \(did you mean '0.mlp.up"):
        densities_by_name({"0.mlp.upp": 0.4}, names, 0.5)
    for density in (0.0, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"density of the layers '\*.up'"):
            densities_by_name({"*.up": density}, names, 0.5)
    with pytest.raises(InputError, match="density is 2"):
        densities_by_name({}, names, 2.0)


def test_allocations_are_checked_by_name_and_pattern():
    for name in ALLOCATIONS:
        check_allocation(name, ROW)
    check_allocation("uniform", Pattern.parse("2:4"))
    with pytest.raises(InputError, match=r"'owls' \(did you mean 'owl'"):
        check_allocation("owls", ROW)
    with pytest.raises(InputError, match="pattern 2:4 keeps 2 of every 4"):
        check_allocation("owl", Pattern.parse("2:4"))


def test_the_example_of_the_docstring_runs():
    assert doctest.testmod(allocation).failed == 0
