from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qubo_prune_solvers.greedy import Greedy
from reference import (
    batch_energy,
    minimum,
    random_batch,
    random_feasible,
    random_problem,
    random_starts,
    swaps,
)

from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import BatchRequest, SolveRequest, Status
from qubo_prune.solver.dispatch import solve, solve_batch

both_kernels = pytest.mark.parametrize("kernel", ["compiled", "torch"])


def assert_swap_optimal(problem: BlockQubo, x: np.ndarray) -> None:
    assert problem.is_feasible(x)
    scale = float(np.abs(problem.dense()).sum())
    best = min((problem.energy(other) for other in swaps(problem, x)), default=np.inf)
    assert best >= problem.energy(x) - 1e-10 * scale


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 2**31), st.booleans(), st.data())
def test_no_swap_improves_the_answer_and_it_is_no_worse_than_the_start(n, groups, seed, warm, data):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, groups, size=n)
    sizes = np.bincount(labels, minlength=groups)
    counts = tuple(data.draw(st.integers(0, int(size))) for size in sizes)
    problem = random_problem(rng, n, counts, labels)
    start = random_feasible(rng, problem)
    result = Greedy().solve(SolveRequest(problem, start if warm else None))
    assert result.status is Status.LOCAL_OPTIMUM
    assert_swap_optimal(problem, result.assignment)
    if warm:
        assert result.energy <= problem.energy(start) + 1e-12


@pytest.mark.parametrize("warm", [True, False])
def test_gram_problems_end_in_a_swap_optimum(rng, warm):
    for n in (20, 60):
        batch = random_batch(rng, 3, n, [n // 2])
        for row in range(3):
            problem = batch.problem(row)
            start = random_feasible(rng, problem) if warm else None
            assert_swap_optimal(problem, solve(problem, "greedy", warm_start=start).assignment)


@both_kernels
@pytest.mark.parametrize("n", [255, 256, 288])
def test_wide_rows_end_in_a_swap_optimum(rng, n, kernel):
    batch = random_batch(rng, 3, n, [n // 2])
    starts = random_starts(rng, batch)
    answer = solve_batch(Greedy(kernel=kernel, candidates=n, precision="double"), BatchRequest(batch, starts))
    assert answer.failures == {}
    assert (answer.change < 0).all()
    for row in range(3):
        problem, x = batch.problem(row), answer.assignments[row].numpy()
        single = solve(problem, "greedy", warm_start=starts[row].numpy()).assignment
        for point in (x, single):
            q = problem.dense()
            costs = problem.diagonal + 2 * (q @ point - problem.diagonal * point)
            change = costs[~point, None] - costs[None, point] - 2 * q[np.ix_(~point, point)]
            assert change.min() >= -1e-10 * np.abs(costs).mean()


@pytest.mark.parametrize(("n", "count"), [(0, 0), (1, 0), (1, 1), (2, 0), (2, 2), (5, 0), (5, 5)])
@pytest.mark.parametrize("warm", [True, False])
def test_problems_without_a_choice(rng, n, count, warm):
    problem = random_problem(rng, n, count)
    start = random_feasible(rng, problem) if warm else None
    result = solve(problem, "greedy", warm_start=start)
    assert result.assignment.tolist() == [count == n] * n


def test_factor_form_gives_what_its_dense_matrix_gives(rng):
    for counts, labels in ((6, None), ((3, 2), [0, 1] * 7)):
        form = FactorForm(rng.normal(size=14), rng.normal(size=(14, 3)))
        sparse = BlockQubo(form, counts, 1.0, labels)
        dense = BlockQubo(sparse.dense(), counts, 1.0, labels)
        for start in (None, random_feasible(rng, sparse)):
            found = solve(sparse, "greedy", warm_start=start)
            assert_swap_optimal(dense, found.assignment)
            assert found.energy == pytest.approx(solve(dense, "greedy", warm_start=start).energy, rel=1e-9)


def test_it_is_near_the_optimum_of_small_gram_problems(rng):
    found = best = 0.0
    for _ in range(10):
        problem = random_batch(rng, 1, 10, [5]).problem(0)
        found += solve(problem, "greedy").energy - problem.offset
        best += minimum(problem) - problem.offset
    assert best <= found <= best + 0.2 * abs(best)


@both_kernels
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_energies_are_solved_alike(rng, scale, kernel):
    q = rng.normal(size=(20, 20))
    start = random_feasible(rng, BlockQubo(q, 10))
    plain = solve(BlockQubo(q, 10), "greedy", warm_start=start)
    scaled = solve(BlockQubo(scale * q, 10), "greedy", warm_start=start)
    assert np.array_equal(plain.assignment, scaled.assignment)
    batch = random_batch(rng, 4, 16, [8])
    starts = random_starts(rng, batch)
    large = dataclasses.replace(batch, hessian=batch.hessian * scale, linear=batch.linear * scale)
    answers = [Greedy(kernel=kernel).solve_batch(BatchRequest(b, starts)).assignments for b in (batch, large)]
    energies = [batch.energy(x) for x in answers]
    torch.testing.assert_close(energies[0], energies[1], rtol=1e-4, atol=1e-4)


@both_kernels
def test_a_problem_of_zeros_keeps_its_start(rng, kernel):
    problem = BlockQubo(np.zeros((6, 6)), 3)
    start = random_feasible(rng, problem)
    assert solve(problem, "greedy", warm_start=start).assignment.tolist() == start.tolist()
    assert problem.is_feasible(solve(problem, "greedy").assignment)
    batch = random_batch(rng, 2, 6, [3])
    zeros = dataclasses.replace(batch, hessian=batch.hessian * 0, linear=batch.linear * 0)
    starts = random_starts(rng, zeros)
    assert torch.equal(Greedy(kernel=kernel).solve_batch(BatchRequest(zeros, starts)).assignments, starts)


GROUPS = [([8], None), ([2, 4], [0, 1] * 8), ([1] * 8, [i // 2 for i in range(16)])]


@both_kernels
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize(("counts", "labels"), GROUPS)
def test_a_batch_is_as_good_as_single_solves(rng, shared, precision, counts, labels, kernel):
    batch = random_batch(rng, 20, 16, counts, labels, shared)
    starts = random_starts(rng, batch)
    before = starts.clone()
    # with enough candidates the batch, too, tries every pair
    answer = solve_batch(Greedy(kernel=kernel, candidates=16, precision=precision), BatchRequest(batch, starts))
    assert answer.failures == {}
    assert torch.equal(starts, before)
    assert torch.equal(batch.counts(answer.assignments), batch.num_pruned)
    for row in range(20):
        problem, x = batch.problem(row), answer.assignments[row].numpy()
        limit = 1e-10 if precision == "double" else 1e-4
        here = batch_energy(batch, row, x)
        scale = float(np.abs(problem.dense()).sum())
        assert min(problem.energy(other) for other in swaps(problem, x)) >= here - limit * scale
        assert here <= problem.energy(starts[row].numpy()) + 1e-12 * scale
        change = here - problem.energy(starts[row].numpy())
        assert float(answer.change[row]) == pytest.approx(change, rel=1e-6, abs=1e-9)
    if kernel == "compiled":  # single problems are always solved by this one
        single = [solve(batch.problem(r), "greedy", warm_start=starts[r].numpy()).energy for r in range(20)]
        assert batch.energy(answer.assignments).numpy() == pytest.approx(single, rel=1e-9, abs=1e-9)


@both_kernels
def test_rows_of_a_batch_may_have_nothing_to_choose(rng, kernel):
    batch = random_batch(rng, 4, 6, [0])
    batch.num_pruned[:, 0] = torch.tensor([0, 3, 6, 2])
    starts = random_starts(rng, batch)
    x = Greedy(kernel=kernel).solve_batch(BatchRequest(batch, starts)).assignments
    assert x.sum(1).tolist() == [0, 3, 6, 2]
    assert (batch.energy_change(starts, x) <= 1e-12).all()


@both_kernels
@pytest.mark.parametrize(("counts", "labels"), GROUPS)
def test_a_batch_without_rows_gives_none(rng, counts, labels, kernel):
    batch = random_batch(rng, 2, 16, counts, labels).rows(slice(0, 0))
    empty = torch.zeros(0, 16, dtype=torch.bool)
    assert solve_batch(Greedy(kernel=kernel), BatchRequest(batch, empty)).assignments.shape == (0, 16)


@both_kernels
def test_many_rows_are_solved_in_chunks_as_they_are_alone(rng, kernel):
    few = random_batch(rng, 40, 64, [32])
    batch = dataclasses.replace(
        few,
        values=few.values.repeat(120, 1),
        linear=few.linear.repeat(120, 1),
        offset=few.offset.repeat(120),
        num_pruned=few.num_pruned.repeat(120, 1),
    )
    starts = torch.zeros(4800, 64, dtype=torch.bool)
    starts[:, :32] = True
    x = Greedy(kernel=kernel, precision="double").solve_batch(BatchRequest(batch, starts)).assignments
    assert torch.equal(x[:40], x[4760:])


@both_kernels
@pytest.mark.parametrize("candidates", [1, 4, 100])
def test_any_number_of_candidates_gives_feasible_improvements(rng, candidates, kernel):
    batch = random_batch(rng, 10, 12, [6], shared=False)
    starts = random_starts(rng, batch)
    x = Greedy(kernel=kernel, candidates=candidates).solve_batch(BatchRequest(batch, starts)).assignments
    assert torch.equal(batch.counts(x), batch.num_pruned)
    assert (batch.energy_change(starts, x) < 0).all()


@pytest.mark.parametrize("candidates", [1, 40])
def test_no_swap_is_missed_with_any_number_of_candidates(rng, candidates):
    batch = random_batch(rng, 10, 40, [20], shared=False)
    greedy = Greedy(candidates=candidates, kernel="torch", precision="double")
    answers = greedy.solve_batch(BatchRequest(batch, random_starts(rng, batch))).assignments
    for row, x in enumerate(answers):
        assert_swap_optimal(batch.problem(row), x.numpy())


@both_kernels
def test_when_time_is_over_the_start_comes_back(rng, kernel):
    problem = random_problem(rng, 40, 20)
    start = random_feasible(rng, problem)
    result = solve(problem, "greedy", time_limit=1e-9, warm_start=start)
    assert result.status is Status.TIME_LIMIT
    assert result.assignment.tolist() == start.tolist()
    batch = random_batch(rng, 5, 16, [8])
    starts = random_starts(rng, batch)
    assert torch.equal(
        Greedy(kernel=kernel).solve_batch(BatchRequest(batch, starts, time_limit=1e-9)).assignments, starts
    )


def test_answers_do_not_depend_on_the_seed(rng):
    problem = random_problem(rng, 20, 10)
    assert np.array_equal(solve(problem, "greedy", seed=1).assignment, solve(problem, "greedy", seed=2).assignment)
    assert not Greedy.capabilities.stochastic


@pytest.mark.gate(4)
@both_kernels
@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize(("shared", "groups"), [(True, 1), (False, 1), (True, 2)])
def test_batches_end_where_no_swap_gains_from_wherever_they_begin(rng, kernel, precision, shared, groups):
    n = 48
    batch = random_batch(rng, 16, n, [n // 2 // groups] * groups, np.arange(n) % groups, shared)
    request = BatchRequest(batch, random_starts(rng, batch))
    solver = Greedy(kernel=kernel, precision=precision, candidates=2)
    # as the solver answers, since it declares that nobody need polish that
    assert solver.capabilities.swap_optimal
    answer = solver.solve_batch(request).assignments
    for row in range(16):
        assert_swap_optimal(batch.problem(row), answer[row].numpy())


def test_the_last_look_takes_some_columns_at_a_time(rng, monkeypatch):
    batch = random_batch(rng, 4, 30, [15])
    request = BatchRequest(batch, random_starts(rng, batch))
    solver = Greedy(kernel="torch", candidates=1)
    whole = solver.solve_batch(request).assignments
    monkeypatch.setattr("qubo_prune.solver.swaps.greedy._ENTRIES", 300)
    assert torch.equal(solver.solve_batch(request).assignments, whole)
