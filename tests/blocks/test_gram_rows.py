from __future__ import annotations

import pytest
import torch
from reference import Layer, random_layer

from qubo_prune.blocks.gram_rows import LayerState
from qubo_prune.masks import Pattern


def state_of(layer: Layer, keep: torch.Tensor, pattern: str = "row") -> LayerState:
    return LayerState(layer.weight, layer.gram, keep, Pattern.parse(pattern))


def test_energy_is_the_measured_output_error(rng):
    layer = random_layer(rng, 4, 10, dead=(3,))
    keep = layer.random_keep("row", 0.5)
    assert state_of(layer, keep).energy() == pytest.approx(layer.error(keep), rel=1e-10)
    assert state_of(layer, torch.ones_like(keep)).energy() == 0


def test_flip_costs_are_finite_differences_of_the_measured_error(rng):
    layer = random_layer(rng, 3, 8)
    keep = layer.random_keep("layer", 0.5)
    costs = state_of(layer, keep).flip_costs(torch.arange(3))
    for row in range(3):
        for column in range(8):
            with_it, without = keep.clone(), keep.clone()
            with_it[row, column], without[row, column] = True, False
            difference = layer.error(without) - layer.error(with_it)
            assert abs(float(costs[row, column]) - difference) < 1e-10 * layer.error(keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_any_precision_are_held_in_float64(rng, dtype):
    layer = random_layer(rng, 3, 8)
    narrow = Layer(layer.weight.to(dtype), layer.inputs, layer.gram)
    keep = layer.random_keep("row", 0.5)
    state = state_of(narrow, keep)
    assert state.weight.dtype == state.field.dtype == torch.float64
    assert state.energy() == pytest.approx(Layer(narrow.weight.double(), layer.inputs, layer.gram).error(keep))


def test_moves_keep_field_and_costs_true(rng):
    layer = random_layer(rng, 5, 9)
    state = state_of(layer, layer.random_keep("row", 0.5))
    for seed in range(1, 6):
        other = layer.random_keep("row", 0.5, seed)
        rows = torch.tensor([4, 0, 2])
        state.move(rows, (~other[rows]).double())
        assert torch.equal(state.keep_mask()[rows], other[rows])
        fresh = state_of(layer, state.keep_mask())
        torch.testing.assert_close(state.field, fresh.field)
        everything = torch.arange(5)
        torch.testing.assert_close(state.flip_costs(everything), fresh.flip_costs(everything))
        assert state.energy() == pytest.approx(layer.error(state.keep_mask()), rel=1e-9)


def test_refresh_makes_up_for_a_move_that_left_the_field(rng):
    layer = random_layer(rng, 3, 6)
    state = state_of(layer, layer.random_keep("row", 0.5))
    other = layer.random_keep("row", 0.5, seed=9)
    state.move(torch.arange(3), (~other).double(), update_field=False)
    state.refresh()
    assert state.energy() == pytest.approx(layer.error(other), rel=1e-10)


@pytest.mark.parametrize("pattern", ["row", "2:4", "layer"])
def test_emitted_problems_measure_the_change_from_now_on(rng, pattern):
    layer = random_layer(rng, 4, 8)
    keep = layer.random_keep(pattern, 0.5)
    state = state_of(layer, keep, pattern)
    error = layer.error(keep)
    rows, columns = torch.tensor([3, 1]), torch.tensor([[0, 2, 4, 5], [7, 1, 2, 3]])
    x = ~keep[rows].gather(1, columns)
    blocks = state.emit(rows, columns, torch.zeros(4, dtype=torch.long))
    whole = state.emit_whole(rows)
    assert (blocks.energy(x).abs() < 1e-12 * error).all()
    assert (whole.energy(~keep[rows]).abs() < 1e-12 * error).all()
    for place, row in enumerate(rows.tolist()):
        moved = keep.clone()
        moved[row, columns[place]] = x[place].flip(0).logical_not()
        change = layer.error(moved) - error
        assert abs(float(blocks.energy(x.flip(1))[place]) - change) < 1e-9 * error
        assert abs(float(whole.energy(~moved[rows])[place]) - change) < 1e-9 * error
    assert whole.num_groups == (2 if pattern == "2:4" else 1)


def test_dead_inputs_take_no_part_and_stay_as_they_were(rng):
    layer = random_layer(rng, 3, 8, dead=(1, 6))
    keep = layer.random_keep("row", 0.5)
    state = state_of(layer, keep)
    assert state.weight.shape == (3, 6)
    assert torch.equal(state.keep_mask(), keep)
    state.move(torch.arange(3), 1 - state.x)
    expected = ~keep
    expected[:, [1, 6]] = keep[:, [1, 6]]
    assert torch.equal(state.keep_mask(), expected)


def test_groups_with_a_dead_input_are_left_out(rng):
    layer = random_layer(rng, 2, 12, dead=(5,))
    state = state_of(layer, layer.random_keep("2:4", 0.5), "2:4")
    # without column 5 the last group starts at column 7
    assert state.groups.tolist() == [[0, 1, 2, 3], [7, 8, 9, 10]]
    assert state.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 4
    assert state.num_groups == 3
    assert state_of(layer, layer.random_keep("row", 0.5)).groups is None


def test_a_layer_whose_inputs_are_all_dead_has_nothing_to_search(rng):
    layer = random_layer(rng, 2, 4, dead=(0, 1, 2, 3))
    keep = layer.random_keep("row", 0.5)
    state = state_of(layer, keep)
    assert state.energy() == 0
    assert torch.equal(state.keep_mask(), keep)


def test_the_state_writes_neither_to_weights_nor_to_the_mask(rng):
    layer = random_layer(rng, 3, 6)
    keep = layer.random_keep("row", 0.5)
    before = layer.weight.clone(), keep.clone(), layer.gram.matrix.clone()
    state = state_of(layer, keep)
    state.move(torch.arange(3), 1 - state.x)
    assert torch.equal(layer.weight, before[0])
    assert torch.equal(keep, before[1])
    assert torch.equal(layer.gram.matrix, before[2])
