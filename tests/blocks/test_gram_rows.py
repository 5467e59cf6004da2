from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from qubo_prune_solvers.exact import Exact
from qubo_prune_solvers.greedy import Greedy
from reference import Layer, random_layer

from qubo_prune.blocks.gram_rows import LayerState, descend
from qubo_prune.blocks.rows import Descent, DescentResult
from qubo_prune.masks import Pattern
from qubo_prune.solver import BatchRequest, BatchResult, Capabilities, Solver, SolveRequest, SolveResult


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


# -- whole rows as blocks


@dataclass(frozen=True)
class Noting(Solver):
    """Greedy, which notes what it is given."""

    capabilities: ClassVar[Capabilities] = Capabilities(batched=True, stochastic=False)
    seen: list[BatchRequest] = field(default_factory=list)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise NotImplementedError

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        self.seen.append(request)
        return Greedy().solve_batch(request)


def whole_rows(layer: Layer, keep: torch.Tensor, pattern: str, solver: Solver, **changes: Any) -> DescentResult:
    settings = Descent(solver, **{"row_swaps": False, "whole_rows": True, **changes})
    return descend(layer.weight, layer.gram, keep, Pattern.parse(pattern), settings)


def masks(pattern: str, width: int, kept: int) -> Iterator[torch.Tensor]:
    """Every keep mask of a row that has its counts, one after another."""
    size = Pattern.parse(pattern).of or width
    for bits in itertools.product((False, True), repeat=width):
        row = torch.tensor(bits)
        if (row.reshape(-1, size).sum(1) == kept).all():
            yield row


@pytest.mark.parametrize(("pattern", "kept"), [("row", 3), ("row", 6), ("2:4", 2), ("layer", 4)])
@pytest.mark.parametrize("block_size", [2, 64])  # of no meaning with whole rows
def test_whole_rows_decided_exactly_are_the_best_of_all_masks(rng, pattern, kept, block_size):
    layer = random_layer(rng, 3, 8)
    keep = layer.random_keep(pattern, (kept * 2 if pattern == "2:4" else kept) / 8)
    if pattern == "layer":  # each row has the count that it begins with, until budget moves
        keep = layer.random_keep("row", kept / 8)
        keep[0, int((~keep[0]).nonzero()[0])], keep[1, int(keep[1].nonzero()[0])] = True, False
    found = whole_rows(layer, keep, "row" if pattern == "layer" else pattern, Exact(), block_size=block_size)
    for row in range(3):
        own = kept if pattern == "2:4" else int(keep[row].sum())
        best = min(
            float(layer.row_errors(layer.weight * other)[row])
            for other in masks("row" if pattern == "layer" else pattern, 8, own)
        )
        assert float(layer.row_errors(layer.weight * found.keep)[row]) == pytest.approx(best, rel=1e-9)
    assert found.trace[-1].energy == pytest.approx(layer.error(found.keep), rel=1e-9)
    assert found.solver_gain == pytest.approx(layer.error(keep) - layer.error(found.keep), rel=1e-9)


def test_budget_moves_between_whole_rows_without_swaps_that_nobody_asked_for(rng):
    weight = torch.linspace(0.2, 3.0, 10, dtype=torch.float64)[:, None]
    layer = random_layer(rng, 10, 12)
    layer = Layer(layer.weight * weight, layer.inputs, layer.gram)
    keep = layer.random_keep("row", 0.5)
    within = whole_rows(layer, keep, "row", Exact())
    across = whole_rows(layer, keep, "layer", Exact())
    swapped = whole_rows(layer, keep, "layer", Exact(), row_swaps=True)
    assert int(across.keep.sum()) == int(keep.sum())
    assert layer.error(swapped.keep) < layer.error(across.keep) < layer.error(within.keep)
    for result in (within, across, swapped):
        assert result.trace[-1].energy == pytest.approx(layer.error(result.keep), rel=1e-9)
    # a row that moved no budget is as the solver left it
    still = (across.keep.sum(1) == within.keep.sum(1)).nonzero()[:, 0]
    changed = (across.keep.sum(1) != within.keep.sum(1)).nonzero()[:, 0]
    assert len(changed)
    assert torch.equal(across.keep[still], within.keep[still])


@pytest.mark.parametrize("pattern", ["row", "layer", "2:4"])
def test_a_batch_of_whole_rows_shares_the_gram_and_has_the_energies_of_the_layer(rng, pattern):
    layer, solver = random_layer(rng, 40, 12, dead=(3, 4)), Noting()
    keep = layer.random_keep(pattern, 0.5)
    keep[0], keep[1] = (True, False) if pattern == "row" else (keep[0], keep[1])
    result = whole_rows(layer, keep, pattern, solver)
    (request,) = solver.seen
    problems = request.problems
    movable = 38 if pattern == "row" else 40
    assert (problems.shared, problems.num_rows, problems.num_variables) == (True, movable, 10)  # the alive ones
    assert problems.num_groups == (3 if pattern == "2:4" else 1)
    first = len(keep) - movable
    alive = [column for column in range(12) if column not in (3, 4)]
    for row in range(5):
        before = layer.row_errors(layer.weight * keep)[first + row]
        for seed in range(4):
            x = problems.problem(row).labels * 0
            x[torch.randperm(10, generator=torch.Generator().manual_seed(seed))[:4]] = 1
            other = keep.clone()
            other[first + row, alive] = torch.tensor(x == 0)
            after = layer.row_errors(layer.weight * other)[first + row]
            assert problems.problem(row).energy(x) == pytest.approx(float(after - before), abs=1e-10)
    assert torch.equal(result.keep[:, [3, 4]], keep[:, [3, 4]])
    torch.testing.assert_close(request.flip_costs, problems.flip_costs(request.warm_start))


def test_whole_rows_go_in_parts_of_bounded_memory(rng, monkeypatch):
    layer = random_layer(rng, 70, 8)
    monkeypatch.setattr("qubo_prune.blocks.gram_rows.in_parts", lambda rows, entries: torch.split(rows, 160 // entries))
    solver, keep = Noting(), layer.random_keep("row", 0.5)
    parts = whole_rows(layer, keep, "row", solver, block_time=3.0)
    assert [request.problems.num_rows for request in solver.seen] == [20, 20, 20, 10]
    assert len({request.seed for request in solver.seen}) == 4
    assert {request.row_time_limit for request in solver.seen} == {3.0}  # each row's
    monkeypatch.undo()
    assert torch.equal(parts.keep, whole_rows(layer, keep, "row", Greedy()).keep)


def test_a_row_that_gained_gets_its_row_again_and_the_others_rest(rng):
    layer, solver = random_layer(rng, 12, 10), Noting()
    keep = layer.random_keep("row", 0.5)
    whole_rows(layer, keep, "row", solver, max_sweeps=3)
    assert len(solver.seen) == 2  # a swap optimum is one the second time, too
    assert solver.seen[1].problems.num_rows <= solver.seen[0].problems.num_rows == 12
