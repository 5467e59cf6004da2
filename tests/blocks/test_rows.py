from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from qubo_prune_solvers.exact import Exact
from qubo_prune_solvers.greedy import Greedy
from reference import Layer, random_layer
from torch import Tensor

from qubo_prune.blocks.compensated_rows import CompensatedDescent, CompensatedRows
from qubo_prune.blocks.gram_rows import GramRows, descend
from qubo_prune.blocks.rows import (
    Descent,
    DescentResult,
    EmittedBlocks,
    Moved,
    RowDescent,
    RowState,
    descend_rows,
    in_parts,
)
from qubo_prune.blocks.selection import borderline_block
from qubo_prune.errors import InputError
from qubo_prune.hessian import Gram
from qubo_prune.masks import Pattern
from qubo_prune.methods.registry import choose
from qubo_prune.methods.scores import SCORES
from qubo_prune.problem import BlockBatch
from qubo_prune.problem.qubo import group_counts
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


# -- a third Hessian, of which the loop knows nothing


class DiagonalPlusLowRank(RowState):
    """Rows on ``diag(D) + L L'``, the Gram's three largest eigenvectors and what is left of its diagonal."""

    RANK = 3

    def __init__(
        self, weight: Tensor, gram: Gram, keep: Tensor, stays: Tensor | None, pattern: Pattern, settings: Descent
    ) -> None:
        values, vectors = torch.linalg.eigh(gram.matrix)
        self.factor = vectors[:, -self.RANK :] * values[-self.RANK :].sqrt()
        self.diagonal = gram.matrix.diagonal() - self.factor.square().sum(1)
        self.weight, self.x = weight.double(), (~keep).double()
        self.free = torch.ones_like(keep) if stays is None else ~stays
        m, columns = pattern.of, torch.arange(weight.shape[1])
        self.groups, self.size = columns.reshape(-1, m) if m else None, settings.block_size

    def field(self, rows: Tensor) -> Tensor:
        """``H (w*x)``, without H."""
        pruned = self.weight[rows] * self.x[rows]
        return pruned * self.diagonal + (pruned @ self.factor) @ self.factor.T

    def energy(self) -> float | None:
        return float((self.weight * self.x * self.field(torch.arange(len(self.x)))).sum()) / 2

    def keep_mask(self) -> Tensor:
        return self.x == 0

    def movable(self) -> Tensor:
        counts = self.x.sum(1)
        return ((counts > 0) & (counts < self.x.shape[1])).nonzero()[:, 0]

    def parts(self, rows: Tensor) -> Sequence[Tensor]:
        return in_parts(rows, 2**16)  # 16 rows at once

    def emit(self, rows: Tensor, misses: Tensor, seed: int) -> Sequence[EmittedBlocks]:
        weight, x, field = self.weight[rows], self.x[rows], self.field(rows)
        own = weight.square() * (self.diagonal + self.factor.square().sum(1)) / 2
        costs = own + weight * field - 2 * own * x
        draw = torch.Generator().manual_seed(seed)
        columns, labels = borderline_block(costs, x, self.groups, self.size, misses, draw)
        free = self.free[rows].gather(1, columns).all(1)
        rows, columns, weight, x, field = (part[free] for part in (rows, columns, weight, x, field))
        if not columns.numel():
            return []
        factor, diagonal = self.factor[columns], self.diagonal[columns]
        block = torch.bmm(factor, factor.mT) + torch.diag_embed(diagonal)
        u, now = weight.gather(1, columns), x.gather(1, columns)
        coupled = torch.bmm(block, (u * now)[:, :, None])[:, :, 0]
        linear = u * (field.gather(1, columns) - coupled)
        offset = -((u * now * coupled).sum(1) / 2 + (linear * now).sum(1))
        counts = group_counts(now, labels, int(labels.max()) + 1)
        return [EmittedBlocks(rows, BlockBatch(block, u, linear, offset, labels, counts), now > 0, ticket=columns)]

    def accept(self, rows: Tensor, answered: Sequence[tuple[EmittedBlocks, BatchResult]]) -> Moved:
        change, solver_gain, polish_gain = torch.zeros(len(rows), dtype=torch.float64), 0.0, 0.0
        for blocks, answer in answered:
            self.x[blocks.rows] = self.x[blocks.rows].scatter(1, blocks.ticket, answer.assignments.double())
            change[torch.searchsorted(rows, blocks.rows)] = answer.change
            solver_gain -= float(answer.solver_change.sum())
            polish_gain -= float((answer.change - answer.solver_change).sum())
        return Moved(rows, change, change < 0, solver_gain, polish_gain)

    def hessian(self) -> Tensor:
        return torch.diag(self.diagonal) + self.factor @ self.factor.T


def own_error(state: DiagonalPlusLowRank, weight: Tensor, keep: Tensor) -> float:
    """``1/2 sum (w*x) H (w*x)'`` with the dense Hessian."""
    pruned = weight.double() * ~keep
    return float((pruned @ state.hessian() * pruned).sum()) / 2


@pytest.mark.parametrize(("pattern", "density"), [("row", 0.5), ("layer", 0.3), ("2:4", 0.5), ("1:4", 0.25)])
@pytest.mark.parametrize("handling", [Handling(), AS_IT_IS])
def test_a_hessian_of_ones_own_goes_through_the_loop(rng, pattern, density, handling):
    layer, made = random_layer(rng, 50, 40), []

    def make(*given: Any) -> RowState:
        made.append(DiagonalPlusLowRank(*given))
        return made[-1]

    keep, kind = start_of(layer, pattern, density), Pattern.parse(pattern)
    settings = Descent(Greedy(), block_size=12, max_sweeps=6, patience=2, handling=handling)
    result = descend_rows(make, layer.weight, layer.gram, keep, kind, settings)
    (state,) = made
    assert isinstance(state, RowState)
    assert torch.equal(result.keep.sum(1), keep.sum(1))
    assert kind.violations(result.keep, density) == 0
    energies = [point.energy for point in result.trace]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(energies))
    before, after = (own_error(state, layer.weight, mask) for mask in (keep, result.keep))
    assert energies[0] == pytest.approx(before, rel=1e-9)
    assert energies[-1] == pytest.approx(after, rel=1e-9)
    assert after < 0.99 * before
    assert result.solver_gain + result.polish_gain == pytest.approx(before - after, rel=1e-9)
    assert 0 < result.accepted <= result.steps == result.blocks.asked
    again = descend_rows(make, layer.weight, layer.gram, keep, kind, settings)
    assert torch.equal(again.keep, result.keep)


def test_groups_of_rows_have_a_state_each_and_the_weights_that_stay_reach_it(rng):
    layer = random_layer(rng, 12, 16)
    gram = Gram(torch.stack([layer.gram.matrix, 3 * layer.gram.matrix]), layer.gram.tokens)
    keep = start_of(layer, "row")
    stays = torch.zeros_like(keep)
    stays[[2, 8]] = keep[[2, 8]]
    seeds = []

    def make(weight: Tensor, part: Gram, mask: Tensor, frozen: Tensor | None, kind: Pattern, own: Descent) -> RowState:
        seeds.append(own.seed)
        assert len(weight) == len(mask) == 6
        return DiagonalPlusLowRank(weight, part, mask, frozen, kind, own)

    settings = Descent(Greedy(), block_size=8, max_sweeps=4)
    result = descend_rows(make, layer.weight, gram, keep, Pattern.parse("row"), settings, None, stays)
    assert torch.equal(result.keep[[2, 8]], keep[[2, 8]])
    assert not torch.equal(result.keep, keep)
    assert len(set(seeds)) == 2


class Logged(DiagonalPlusLowRank):
    """Tells which of its methods were called, learns its energy late, and has a round of its own in the end."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.calls: list[str] = []

    def energy(self) -> float | None:
        return super().energy() if "emit" in self.calls else None

    def start_energy(self) -> float | None:
        return 1e9

    def begin(self, descent: RowDescent) -> None:
        self.calls.append("begin")

    def emit(self, rows: Tensor, misses: Tensor, seed: int) -> Sequence[EmittedBlocks]:
        self.calls.append("emit")
        return super().emit(rows, misses, seed)

    def accept(self, rows: Tensor, answered: Sequence[tuple[EmittedBlocks, BatchResult]]) -> Moved:
        self.calls.append("accept")
        return super().accept(rows, answered)

    def between_sweeps(self, descent: RowDescent, moves: Sequence[Moved]) -> Tensor:
        self.calls.append("between")
        assert sum(len(move.rows) for move in moves) == 12
        return torch.arange(12)

    def finish(self, descent: RowDescent) -> None:
        self.calls.append("finish")
        rows = self.movable()
        nothing = torch.zeros(len(rows), dtype=torch.long)
        emit, accept = super().emit, super().accept
        moves = descent.round([rows], lambda part, seed: emit(part, nothing, seed), accept, Greedy())
        assert len(moves) == 1
        descent.book(5, 3)
        descent.mark()


def test_the_loop_calls_the_hooks_in_their_order(layer):
    made = []

    def make(*given: Any) -> RowState:
        made.append(Logged(*given))
        return made[-1]

    settings = Descent(Raising(), block_size=8, max_sweeps=2, handling=AS_IT_IS)
    keep = start_of(layer, "row")
    result = descend_rows(make, layer.weight, layer.gram, keep, Pattern.parse("row"), settings)
    assert made[0].calls == ["begin", *["emit", "accept", "between"] * 2, "finish"]
    # the solver that fails has lost its blocks, and no credit for the other's
    assert result.blocks == BlockCounts(24, {"raised OSError: no connection": 24})
    assert result.steps == 3 * 12 + 5
    assert 3 < result.accepted <= 15
    assert [point.steps for point in result.trace] == [0, 12, 24, 41]
    assert result.trace[0].energy == 1e9


class Failing(DiagonalPlusLowRank):
    """Cannot factor anything until the attempts that it is told."""

    left = 0

    def begin(self, descent: RowDescent) -> None:
        if self.left:
            raise torch.linalg.LinAlgError("not positive definite")


@pytest.mark.parametrize("attempts", [0, 1, 2])
def test_a_state_may_ask_for_another_attempt_from_the_warm_start(layer, attempts):
    made = []

    class Patient(Failing):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.given, self.left = given, attempts - len(made)
            made.append(self)

        def again(self) -> RowState | None:
            return Patient(*self.given)

    keep = start_of(layer, "row")
    given = (layer.weight, layer.gram, keep, Pattern.parse("row"), Descent(Greedy(), block_size=8))
    result = descend_rows(Patient, *given)
    assert len(made) == attempts + 1
    assert torch.equal(result.keep, descend_rows(DiagonalPlusLowRank, *given).keep)


def test_a_factorisation_that_fails_is_the_callers_if_there_is_nothing_to_try(layer):
    class Stuck(Failing):
        left = 1

    with pytest.raises(torch.linalg.LinAlgError, match="not positive definite"):
        descend_rows(Stuck, layer.weight, layer.gram, start_of(layer, "row"), Pattern.parse("row"), Descent(Greedy()))


def test_an_energy_that_never_came_to_be_known_leaves_no_trace(layer):
    class Unknown(DiagonalPlusLowRank):
        def energy(self) -> float | None:
            return None

    keep = start_of(layer, "row")
    settings = Descent(Greedy(), max_sweeps=3)
    result = descend_rows(Unknown, layer.weight, layer.gram, keep, Pattern.parse("row"), settings)
    assert result.trace == ()


def test_the_states_of_the_package_are_row_states(layer):
    given = (layer.weight, layer.gram, start_of(layer, "row"), None, Pattern.parse("row"))
    states = [
        GramRows(*given, Descent(Greedy())),
        CompensatedDescent(Greedy()).hessian(*given, CompensatedDescent(Greedy()).descent),
    ]
    assert all(isinstance(state, RowState) for state in states)
    assert isinstance(states[1], CompensatedRows)
    assert not isinstance(object(), RowState)


def test_the_plain_gram_refuses_to_hold_weights(layer):
    keep = start_of(layer, "row")
    with pytest.raises(InputError, match="compensated"):
        descend_rows(GramRows, layer.weight, layer.gram, keep, Pattern.parse("row"), Descent(Greedy()), stays=keep)
