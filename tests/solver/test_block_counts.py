"""Blocks that a solver lost, and those that the clock cut."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from qubo_prune_solvers.greedy import Greedy
from qubo_prune_solvers.tabu import Tabu
from reference import random_batch, random_starts

from qubo_prune.solver import (
    BatchRequest,
    BatchResult,
    Capabilities,
    Deadline,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    single_answer,
)
from qubo_prune.solver.block_counts import ENDED, LEFT_OUT, NONE, STOPPED, BlockCounts, total
from qubo_prune.solver.dispatch import Handling, solve_batch


def test_counts_add_up_and_come_back_from_json() -> None:
    one = BlockCounts.of_status(Status.FAILED, "TypeError: no floats")
    cut, ended = BlockCounts.of_status(Status.TIME_LIMIT), BlockCounts.of_status(Status.OVERRAN, "late")
    fine = BlockCounts.of_status(Status.NOT_IMPROVED, "answer had energy 3")
    everything = total([one, one, cut, ended, fine])
    assert (everything.asked, everything.num_lost, everything.num_cut) == (5, 3, 2)
    assert everything.cut == {STOPPED: 1, ENDED: 1}
    assert BlockCounts.from_dict(everything.to_dict()) == everything
    assert not everything.all_lost
    assert total([one, one]).all_lost
    assert not NONE.all_lost


def test_sentences_give_the_most_frequent_reasons() -> None:
    reasons = [f"ValueError: {'x' * 500}", "KeyError: a", "KeyError: b", "KeyError: c", "KeyError: d"]
    counts = total(
        BlockCounts.of_status(Status.FAILED, reason)
        for repeat, reason in zip((9, 3, 2, 1, 1), reasons, strict=True)
        for _ in range(repeat)
    )
    (said,) = counts.sentences("mine")
    assert said.startswith("mine lost 16 of 16 blocks: 9 x raised ValueError: xxx")
    assert said.endswith("..., 3 x raised KeyError: a, 2 x raised KeyError: b, 2 for other reasons.")
    assert len(said) < 400
    assert NONE.sentences("mine") == BlockCounts(7).sentences("mine") == []


def test_reasons_that_differ_in_numbers_only_are_one() -> None:
    answers = ("[1.5, -2, 3e-05]", "[1, 2]", "7")
    counts = total(BlockCounts.of_status(Status.FAILED, f"ValueError: it gave {answer}; no") for answer in answers)
    assert counts == BlockCounts(
        3, {"raised ValueError: it gave [1.5, -2, 3e-05]; no": 2, "raised ValueError: it gave 7; no": 1}
    )


def test_errors_that_all_read_differently_do_not_fill_the_memory() -> None:
    words = ("".join(chr(97 + int(digit)) for digit in str(number)) for number in range(500))
    counts = total(BlockCounts.of_status(Status.FAILED, f"KeyError: {word}") for word in words)
    assert counts.num_lost == 500
    assert len(counts.lost) <= 51


@dataclass(frozen=True)
class Trusted(Solver):
    """Uses all of its time, or half of it, and says no more than that its answer is feasible."""

    share: float = 1.0
    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        clock = Deadline(None if request.time_limit is None else self.share * request.time_limit)
        while request.time_limit is not None and not clock.expired:
            time.sleep(1e-3)
        return single_answer(request.problem, np.asarray(request.warm_start), Status.FEASIBLE)


@dataclass(frozen=True)
class Halting(Solver):
    """Says of the first row that the clock ended its search, and of row 5, which does not exist."""

    rows: frozenset[int] = frozenset({0})
    capabilities: ClassVar[Capabilities] = Capabilities(batched=True, anytime=True)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise NotImplementedError

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        return BatchResult(request.warm_start, cut=self.rows)


def batch(rng: np.random.Generator, **limits: float) -> BatchRequest:
    problems = random_batch(rng, 3, 12, [5])
    return BatchRequest(problems, random_starts(rng, problems), **limits)


def counts(solver: Solver, request: BatchRequest, workers: int = 0) -> BlockCounts:
    return BlockCounts.of_batch(solve_batch(solver, request, Handling(polish=False, workers=workers)), 3)


def test_a_solver_that_uses_up_its_time_was_cut(rng: np.random.Generator) -> None:
    assert counts(Trusted(), batch(rng, row_time_limit=0.01)).cut == {STOPPED: 3}
    assert counts(Trusted(0.0), batch(rng, row_time_limit=30.0)) == BlockCounts(3)
    assert counts(Trusted(), batch(rng)) == BlockCounts(3)


def test_blocks_that_the_budget_leaves_out_were_cut(rng: np.random.Generator) -> None:
    assert counts(Trusted(), batch(rng, time_limit=1e-9)).cut == {LEFT_OUT: 3}
    assert counts(Greedy(), batch(rng, time_limit=1e-9)).cut == {LEFT_OUT: 3}


@pytest.mark.parametrize("solver", [Tabu(steps=10**6, starts=1), Tabu(steps=10**6, threads=1)])
def test_searches_of_many_rows_say_which_were_cut(solver: Solver, rng: np.random.Generator) -> None:
    assert counts(solver, batch(rng, row_time_limit=0.02)) == BlockCounts(3, {}, {STOPPED: 3})
    assert counts(Tabu(steps=1), batch(rng, row_time_limit=60.0)) == BlockCounts(3)


def test_a_batch_tells_its_rows_and_no_others(rng: np.random.Generator) -> None:
    assert counts(Halting(), batch(rng)).cut == {STOPPED: 1}
    lost = counts(Halting(frozenset({5})), batch(rng))
    assert lost.all_lost
    assert "rows [5] of 3" in " ".join(lost.lost)


def test_the_torch_kernel_says_when_the_clock_cut_it(rng: np.random.Generator) -> None:
    request = batch(rng, time_limit=1e-9)
    answer = Greedy(kernel="torch").solve_batch(request)
    assert answer.cut == {0, 1, 2}
    assert torch.equal(answer.assignments, request.warm_start)
