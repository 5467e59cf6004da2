"""The descent by compensated blocks: counts, exact energies, budgets between rows, limits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from least_squares import gram, refitted
from torch import Tensor

from qubo_prune.blocks.compensated_rows import CompensatedDescent, descend_compensated
from qubo_prune.blocks.rows import UNFED, DescentResult
from qubo_prune.hessian import Gram
from qubo_prune.hessian.compensated import Curvature
from qubo_prune.masks import Pattern, keep_highest
from qubo_prune.solver import BatchRequest, BatchResult, Deadline, Solver, SolveRequest, SolveResult
from qubo_prune.solver.registry import make_solver

SHAPES = [("row", 0.5), ("row", 0.25), ("layer", 0.5), ("layer", 0.1), ("2:4", 0.5), ("1:4", 0.25)]


def settings(**changes: Any) -> CompensatedDescent:
    return CompensatedDescent(**{"solver": make_solver("greedy"), "block_size": 8, "dtype": torch.float64, **changes})


def start(d_out: int = 6, d_in: int = 16, pattern: str = "row", density: float = 0.5) -> tuple[Tensor, Gram, Tensor]:
    given = gram(1, d_in)
    weight = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(2))
    keep = keep_highest(weight.abs() * given.diagonal.sqrt().float(), Pattern.parse(pattern), density)
    return weight, given, keep


def error(weight: Tensor, given: Gram, keep: Tensor) -> float:
    """The damped error of a refit, by dense least squares."""
    curvature = Curvature.of(given, 0.01, torch.float64)
    scaled = weight.double() * curvature.scale
    return sum(refitted(row, curvature.hessian, ~mask)[1] for row, mask in zip(scaled, keep, strict=True))


def descend(pattern: str = "row", density: float = 0.5, d_out: int = 6, **changes: Any) -> tuple[DescentResult, Any]:
    case = start(d_out, pattern=pattern, density=density)
    return descend_compensated(*case, Pattern.parse(pattern), settings(**changes)), case


@pytest.mark.parametrize(("pattern", "density"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_stay_and_energies_are_those_of_the_refit(pattern: str, density: float, dtype: torch.dtype) -> None:
    result, (weight, given, keep) = descend(pattern, density, dtype=dtype)
    assert Pattern.parse(pattern).violations(result.keep, density) == 0
    before, after = error(weight, given, keep), error(weight, given, result.keep)
    assert after < before
    close = 1e-9 if dtype == torch.float64 else 1e-3
    assert result.trace[0].energy == pytest.approx(before, rel=close)
    assert result.trace[-1].energy == pytest.approx(after, rel=close)
    energies = [point.energy for point in result.trace]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(energies))
    if pattern != "layer":  # there, the exchange between rows gains as well
        gained = result.solver_gain + result.polish_gain
        assert gained == pytest.approx(before - after, rel=10 * close)


def test_small_rows_come_close_to_the_optimum_of_all_masks() -> None:
    weight, given, keep = start(4, 10)
    result = descend_compensated(weight, given, keep, Pattern.parse("row"), settings(block_size=10, max_sweeps=5))
    masks = torch.tensor([[bool(number >> bit & 1) for bit in range(10)] for number in range(1024)])
    masks = masks[masks.sum(1) == 5]
    curvature = Curvature.of(given, 0.01, torch.float64)
    for row, mask in zip(weight, result.keep, strict=True):
        scaled = row.double() * curvature.scale
        best = min(refitted(scaled, curvature.hessian, ~kept)[1] for kept in masks)
        assert refitted(scaled, curvature.hessian, ~mask)[1] <= 1.15 * best


def test_budget_moves_between_rows_only_with_the_pattern_layer() -> None:
    weight, given, keep = start(8, pattern="row")
    weight = weight * torch.linspace(0.2, 3, 8)[:, None]  # rows that matter little and much
    by_row = descend_compensated(weight, given, keep, Pattern.parse("row"), settings(max_sweeps=4))
    by_layer = descend_compensated(weight, given, keep, Pattern.parse("layer"), settings(max_sweeps=4))
    assert (by_row.keep.sum(1) == 8).all()
    counts = by_layer.keep.sum(1)
    assert int(counts.sum()) == 64
    assert counts[:3].float().mean() < counts[-3:].float().mean()
    assert by_layer.trace[-1].energy < by_row.trace[-1].energy


def test_without_the_polish_the_solver_alone_gains() -> None:
    result, _ = descend(polish=False)
    assert result.polish_gain == 0
    assert result.solver_gain > 0


def test_the_same_seed_gives_the_same_masks_on_any_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            found.append(descend("layer", 0.5, 40, solver=make_solver("anneal"), seed=4)[0].keep)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_an_expired_deadline_leaves_the_warm_start() -> None:
    weight, given, keep = start()
    result = descend_compensated(weight, given, keep, Pattern.parse("row"), settings(), Deadline(1e-9))
    assert torch.equal(result.keep, keep)
    assert result.stopped_early
    assert result.trace == ()


def test_rows_that_are_dense_or_empty_take_no_part() -> None:
    weight, given, keep = start(4, pattern="layer")
    keep[0], keep[1] = True, False
    result = descend_compensated(weight, given, keep, Pattern.parse("row"), settings())
    assert result.keep[0].all()
    assert not result.keep[1].any()
    assert result.trace[-1].energy == pytest.approx(error(weight, given, result.keep), rel=1e-9)


def test_a_layer_that_no_token_reached_keeps_its_warm_start() -> None:
    weight, _, keep = start()
    unseen = Gram(torch.zeros(16, 16, dtype=torch.float64), 0)
    result = descend_compensated(weight, unseen, keep, Pattern.parse("row"), settings())
    assert torch.equal(result.keep, keep)
    assert UNFED in result.kept_start


def test_a_singular_gram_is_damped_more_and_says_so() -> None:
    weight, _, keep = start()
    line = torch.ones(16, 1, dtype=torch.float64)
    result = descend_compensated(weight, Gram(line @ line.T, 3), keep, Pattern.parse("row"), settings(damping=0.0))
    assert any("Damping was raised" in note for note in result.kept_start)


def test_groups_of_rows_have_their_own_gram() -> None:
    weight, _, keep = start()
    parts = [gram(seed, 16) for seed in (5, 6)]
    stacked = Gram(torch.stack([part.matrix for part in parts]), parts[0].tokens)
    both = descend_compensated(weight, stacked, keep, Pattern.parse("row"), settings())
    for number, part in enumerate(parts):
        rows = slice(3 * number, 3 * number + 3)
        alone = descend_compensated(weight[rows], part, keep[rows], Pattern.parse("row"), settings())
        assert torch.equal(both.keep[rows], alone.keep)


def test_a_solver_that_fails_costs_its_blocks_and_not_the_swaps() -> None:
    class Broken(Solver):
        capabilities = make_solver("greedy").capabilities

        def solve_batch(self, request: BatchRequest, /) -> BatchResult:
            raise RuntimeError("no")

        def solve(self, request: SolveRequest, /) -> SolveResult:
            raise RuntimeError("no")

    failing = settings(solver=Broken())
    weight, given, keep = start()
    result = descend_compensated(weight, given, keep, Pattern.parse("row"), failing)
    assert result.solver_gain == 0
    assert result.polish_gain > 0
    assert any("no" in note for note in result.kept_start)
