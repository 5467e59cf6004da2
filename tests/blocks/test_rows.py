from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from qubo_prune_solvers.exact import Exact
from qubo_prune_solvers.greedy import Greedy
from reference import Layer, random_layer

from qubo_prune.blocks.rows import Descent, DescentResult, descend
from qubo_prune.errors import InputError
from qubo_prune.masks import Pattern
from qubo_prune.methods.registry import choose
from qubo_prune.methods.scores import SCORES
from qubo_prune.solver import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Deadline,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
)
from qubo_prune.solver.block_counts import BlockCounts
from qubo_prune.solver.dispatch import Handling

PATTERNS = ["row", "layer", "2:4"]
AS_IT_IS = Handling(polish=False)


@pytest.fixture
def layer(rng) -> Layer:
    return random_layer(rng, 12, 40)


def start_of(layer: Layer, pattern: str, density: float = 0.5) -> torch.Tensor:
    return choose("wanda", layer.weight, layer.gram, Pattern.parse(pattern), density, 0).keep


def run(layer: Layer, keep: torch.Tensor, pattern: str, deadline: Deadline | None = None, **settings) -> DescentResult:
    chosen = Descent(**({"solver": Greedy(), "block_size": 12, "max_sweeps": 4} | settings))
    return descend(layer.weight, layer.gram, keep, Pattern.parse(pattern), chosen, deadline)


@pytest.mark.parametrize("row_swaps", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_energy_falls_along_the_trace_and_ends_at_the_measured_error(layer, pattern, row_swaps):
    keep = start_of(layer, pattern)
    result = run(layer, keep, pattern, row_swaps=row_swaps)
    energies = [point.energy for point in result.trace]
    assert energies[0] == pytest.approx(layer.error(keep), rel=1e-9)
    # the measured end comes from the inputs alone: bookkeeping may not drift from it
    assert energies[-1] == pytest.approx(layer.error(result.keep), rel=1e-9)
    assert (np.diff(energies) <= 1e-12 * energies[0]).all()
    assert layer.error(result.keep) < 0.99 * layer.error(keep)
    assert (np.diff([point.accepted for point in result.trace]) >= 0).all()
    assert (np.diff([point.seconds for point in result.trace]) >= 0).all()
    assert 0 < result.accepted <= result.steps
    assert result.trace[-1].accepted == result.accepted
    assert result.kept_start == {}
    assert not result.stopped_early


@pytest.mark.parametrize("density", [0.1, 0.33, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("pattern", ["row", "layer"])
def test_counts_stay_exact_at_any_density(layer, pattern, density):
    keep = start_of(layer, pattern, density)
    result = run(layer, keep, pattern)
    assert Pattern.parse(pattern).violations(result.keep, density) == 0
    assert layer.error(result.keep) <= layer.error(keep)


@pytest.mark.parametrize(("pattern", "density"), [("2:4", 0.5), ("1:4", 0.25), ("3:5", 0.6), ("8:8", 1.0)])
def test_counts_stay_exact_in_every_group(layer, pattern, density):
    keep = start_of(layer, pattern, density)
    result = run(layer, keep, pattern)
    assert Pattern.parse(pattern).violations(result.keep, density) == 0
    assert layer.error(result.keep) <= layer.error(keep)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("block_size", [2, 5, 1000])
def test_any_block_size_gives_exact_counts(layer, pattern, block_size):
    keep = start_of(layer, pattern)
    result = run(layer, keep, pattern, block_size=block_size)
    assert Pattern.parse(pattern).violations(result.keep, 0.5) == 0
    assert layer.error(result.keep) < layer.error(keep)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dead", [(0, 7, 13), tuple(range(25)), tuple(range(40))])
def test_dead_inputs_stay_pruned(rng, pattern, dead):
    layer = random_layer(rng, 6, 40, dead=dead)
    keep = start_of(layer, pattern)
    result = run(layer, keep, pattern)
    columns = list(dead)
    assert torch.equal(result.keep[:, columns], keep[:, columns])
    if pattern == "row" and len(dead) <= 20:
        assert not result.keep[:, columns].any()
    assert Pattern.parse(pattern).violations(result.keep, 0.5) == 0
    assert layer.error(result.keep) <= layer.error(keep)


def test_rows_that_hold_everything_or_nothing_are_left_alone(layer):
    keep = start_of(layer, "row")
    keep[0], keep[1], keep[2], keep[2, 0] = True, False, False, True
    result = run(layer, keep, "row")
    assert torch.equal(result.keep.sum(1), keep.sum(1))
    assert torch.equal(result.keep[:2], keep[:2])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_seed_gives_one_mask(layer, pattern):
    keep = start_of(layer, pattern)
    first, again = (run(layer, keep, pattern, seed=3, patience=3) for _ in range(2))
    assert torch.equal(first.keep, again.keep)
    assert [p.energy for p in first.trace] == [p.energy for p in again.trace]
    assert (first.steps, first.accepted) == (again.steps, again.accepted)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_deadline_that_has_passed_returns_the_start(layer, pattern):
    keep = start_of(layer, pattern)
    result = run(layer, keep, pattern, Deadline(0.0))
    assert torch.equal(result.keep, keep)
    assert result.stopped_early
    assert (result.steps, result.accepted) == (0, 0)


@pytest.mark.parametrize("seconds", [0.002, 0.01, 0.03])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_deadline_on_the_way_returns_the_best_so_far(layer, pattern, seconds):
    keep = start_of(layer, pattern)
    result = run(layer, keep, pattern, Deadline(seconds), max_sweeps=1000, patience=1000)
    assert result.stopped_early
    assert layer.error(result.keep) <= layer.error(keep) * (1 + 1e-12)
    assert result.trace[-1].energy == pytest.approx(layer.error(result.keep), rel=1e-9)
    assert Pattern.parse(pattern).violations(result.keep, 0.5) == 0


def test_exact_blocks_are_at_least_as_good_as_greedy_ones(layer):
    keep = start_of(layer, "row")
    found = {}
    for solver in (Greedy(), Exact()):
        result = run(layer, keep, "row", solver=solver, block_size=14, max_sweeps=1, row_swaps=False)
        found[type(solver)] = layer.row_errors(layer.weight * result.keep)
    assert (found[Exact] <= found[Greedy] * (1 + 1e-9)).all()
    assert found[Exact].sum() < layer.error(keep)


def test_a_block_of_a_whole_row_with_an_exact_solver_is_the_optimum(rng):
    layer = random_layer(rng, 3, 10)
    keep = start_of(layer, "row")
    result = run(layer, keep, "row", solver=Exact(), block_size=10, max_sweeps=1, row_swaps=False)
    for row in range(3):
        best = min(
            float(layer.row_errors(layer.weight * other)[row])
            for other in (layer.weight.new_tensor(bits) for bits in _choices(10, 5))
        )
        assert float(layer.row_errors(layer.weight * result.keep)[row]) == pytest.approx(best, rel=1e-9)


def _choices(n: int, kept: int) -> list[list[int]]:
    return [bits for v in range(2**n) if sum(bits := [v >> i & 1 for i in range(n)]) == kept]


@dataclass(frozen=True)
class Raising(Solver):
    """Fails at every single problem."""

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise OSError("no connection")


@dataclass(frozen=True)
class Broken(Solver):
    """Fails in one of the ways a solver of batches can fail."""

    capabilities: ClassVar[Capabilities] = Capabilities(batched=True)

    how: str

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise NotImplementedError

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        if self.how == "the batch raises":
            raise OSError("no connection")
        if self.how == "breaks counts":
            return BatchResult(torch.ones_like(request.warm_start))
        # the worst it can do within the counts: climb
        problems = request.problems
        turned = dataclasses.replace(problems, hessian=-problems.hessian, linear=-problems.linear)
        return Greedy().solve_batch(dataclasses.replace(request, problems=turned))


def broken(how: str) -> Solver:
    return Raising() if how == "every row raises" else Broken(how)


FAILURES = {
    "every row raises": "The solver raised an error; the warm start was kept (OSError: no connection).",
    "the batch raises": "The solver raised an error; the warm start was kept (OSError: no connection).",
    "breaks counts": "The solver's answer was not a feasible assignment; the warm start was kept (counts are not met).",
    "answers worse": Status.NOT_IMPROVED.value,
}


LOST = {
    "every row raises": {"raised OSError: no connection": 12},
    "the batch raises": {"raised OSError: no connection": 12},
    "breaks counts": {"gave no feasible answer (counts are not met)": 12},
    "answers worse": {},
}


@pytest.mark.parametrize("how", FAILURES)
def test_a_failing_solver_costs_its_blocks_and_says_so(layer, how):
    keep = start_of(layer, "row")
    result = run(layer, keep, "row", solver=broken(how), max_sweeps=1, row_swaps=False, handling=AS_IT_IS)
    assert torch.equal(result.keep, keep)
    assert result.kept_start == {FAILURES[how]: 12}
    assert (result.steps, result.accepted) == (12, 0)
    assert result.blocks == BlockCounts(12, LOST[how])


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_failing_solver_does_not_cost_the_run(layer, pattern, how):
    keep = start_of(layer, pattern)
    result = run(layer, keep, pattern, solver=broken(how), handling=AS_IT_IS)
    assert layer.error(result.keep) < layer.error(keep)
    assert Pattern.parse(pattern).violations(result.keep, 0.5) == 0
    assert sum(result.kept_start.values()) >= 12


def test_a_layer_pattern_moves_budget_between_rows(rng):
    layer = random_layer(rng, 10, 20)
    weight = layer.weight * torch.linspace(0.2, 3.0, 10, dtype=torch.float64)[:, None]
    layer = Layer(weight, layer.inputs, layer.gram)
    keep = start_of(layer, "row")
    within = run(layer, keep, "row")
    across = run(layer, keep, "layer")
    assert int(across.keep.sum()) == int(keep.sum())
    assert torch.equal(within.keep.sum(1), keep.sum(1))
    assert layer.error(across.keep) < 0.9 * layer.error(within.keep)
    # no exchange of two weights of different rows improves any more
    kept, error = across.keep, layer.error(across.keep)
    for i in range(10):
        for j in range(10):
            if i != j:
                out = min(_with(layer, kept, i, c, False) for c in range(20) if kept[i, c])
                back = min(_with(layer, kept, j, c, True) for c in range(20) if not kept[j, c])
                assert out + back >= -1e-9 * error


def _with(layer: Layer, keep: torch.Tensor, row: int, column: int, kept: bool) -> float:
    """Change of the row's error if one weight is pruned or restored."""
    moved = keep.clone()
    moved[row, column] = kept
    return float((layer.row_errors(layer.weight * moved) - layer.row_errors(layer.weight * keep))[row])


def test_patience_tries_more_blocks_and_loses_nothing(layer):
    keep = start_of(layer, "row")
    settings = {"max_sweeps": 12, "row_swaps": False, "block_size": 6}
    short, long = (run(layer, keep, "row", patience=p, **settings) for p in (1, 4))
    assert long.steps > short.steps
    assert layer.error(long.keep) < layer.error(short.keep)


def test_sweeps_end_when_no_row_improves(layer):
    result = run(layer, start_of(layer, "row"), "row", max_sweeps=10_000, row_swaps=False)
    assert result.steps < 12 * 100
    again = run(layer, result.keep, "row", max_sweeps=10_000, row_swaps=False)
    assert torch.equal(again.keep, result.keep)
    assert again.steps == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_half_precision_descend_too(layer, dtype):
    narrow = layer.weight.to(dtype)
    double = Layer(narrow.double(), layer.inputs, layer.gram)
    keep = choose("wanda", narrow, layer.gram, Pattern.parse("row"), 0.5, 0).keep
    settings = Descent(Greedy(), block_size=12)
    result = descend(narrow, layer.gram, keep, Pattern.parse("row"), settings)
    assert double.error(result.keep) < double.error(keep)
    assert result.trace[-1].energy == pytest.approx(double.error(result.keep), rel=1e-9)


@pytest.mark.parametrize("kind", [*SCORES, "greedy"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_warm_starts_have_exact_counts(rng, kind, pattern):
    layer = random_layer(rng, 5, 16, dead=(3, 4))
    keep = choose(kind, layer.weight, layer.gram, Pattern.parse(pattern), 0.5, 1).keep
    assert keep.dtype == torch.bool
    assert Pattern.parse(pattern).violations(keep, 0.5) == 0
    if pattern != "2:4":
        assert not keep[:, [3, 4]].any()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_greedy_warm_start_beats_wanda(layer, pattern):
    greedy = choose("greedy", layer.weight, layer.gram, Pattern.parse(pattern), 0.5, 0).keep
    assert layer.error(greedy) < layer.error(start_of(layer, pattern))


def test_an_unknown_warm_start_is_refused(layer):
    with pytest.raises(InputError, match="wand"):
        choose("wand", layer.weight, layer.gram, Pattern.parse("row"), 0.5, 0)


def test_descent_writes_neither_to_weights_nor_to_the_start(layer):
    keep = start_of(layer, "row")
    before = layer.weight.clone(), keep.clone(), layer.gram.matrix.clone()
    run(layer, keep, "row")
    assert torch.equal(layer.weight, before[0])
    assert torch.equal(keep, before[1])
    assert torch.equal(layer.gram.matrix, before[2])


def test_a_solver_that_cannot_be_guarded_is_noted(layer):
    lock = threading.Lock()  # nothing that holds one travels to another process

    @dataclass(frozen=True)
    class Held(Solver):
        held: Any = lock

        def solve(self, request: SolveRequest, /) -> SolveResult:
            return Greedy().solve(request)

    result = run(layer, start_of(layer, "row"), "row", solver=Held(), block_time=30.0)
    (note,) = [note for note in result.kept_start if "cannot be sent" in note]
    assert "without a limit" in note
    assert result.kept_start[note] >= 12
