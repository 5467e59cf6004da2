"""Problems whose entries no floating point sum bears, against energies in whole numbers of any length."""

from __future__ import annotations

import warnings
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_batch, random_feasible, random_problem, random_starts

from qubo_prune.errors import InputError
from qubo_prune.problem import BlockBatch, BlockQubo, FactorForm
from qubo_prune.problem.reduction import USUAL, careful_swaps, decided, reduced, wide
from qubo_prune.solver import BatchRequest, Solver, SolveRequest, SolveResult, Status, dispatch, single_answer
from qubo_prune.solver.dispatch import PROVEN_SHARE, Handling

QUICK = ("greedy", "tabu", "local", "anneal", "exact", "cpsat", "neal", "steepest", "dwave-tabu")
SLOW = ("qaoa",)


class Exactly:
    """Energies of all assignments of a small problem, exact."""

    def __init__(self, problem: BlockQubo) -> None:
        self.problem, self.q = problem, [[Fraction(float(e)) for e in row] for row in problem.dense()]
        points = product((False, True), repeat=problem.num_variables)
        self.points = [x for x in points if problem.is_feasible(np.array(x, dtype=bool))]
        self.lowest = min(map(self.energy, self.points))

    def energy(self, x: object) -> Fraction:
        ones = [i for i, value in enumerate(x) if value]
        return Fraction(self.problem.offset) + sum((self.q[i][j] for i in ones for j in ones), Fraction(0))

    def terms(self, x: object) -> Fraction:
        ones = [i for i, value in enumerate(x) if value]
        return abs(Fraction(self.problem.offset)) + sum((abs(self.q[i][j]) for i in ones for j in ones), Fraction(0))

    def best_swap(self, x: np.ndarray) -> Fraction:
        """The energy of the best exchange of a kept with a pruned variable of one group."""
        found = [self.energy(x)]
        for u, p in product(np.flatnonzero(~x), np.flatnonzero(x)):
            if self.problem.labels[u] == self.problem.labels[p]:
                other = x.copy()
                other[u], other[p] = True, False
                found.append(self.energy(other))
        return min(found)


def hostile(kind: str, n: int, seed: int, grouped: bool) -> BlockQubo:
    """A problem of ordinary entries with something in it that drowns them, or all out of scale."""
    rng = np.random.default_rng([seed, n])
    q = rng.normal(size=(n, n))
    q = q + q.T
    i, j = rng.choice(n, 2, replace=False)
    offset = float(rng.normal())
    if kind == "one huge":
        q[i, i] = 1e13
    elif kind == "one hugely negative":
        q[i, i] = -1e13
    elif kind == "two huge":
        q[i, i] = q[j, j] = 1e13
    elif kind == "huge of both signs":
        q[i, i], q[j, j] = 1e15, -1e15
    elif kind == "most are huge":
        many = rng.permutation(n)[: n // 2]
        q[many, many] = 1e13
    elif kind == "a huge coupling":
        q[i, j] = q[j, i] = 1e13
    elif kind == "a hugely negative coupling":
        q[i, j] = q[j, i] = -1e13
    elif kind == "a ladder":
        q *= 10.0 ** rng.integers(-12, 13, size=n)[:, None]
        q = q + q.T
    elif kind == "a huge offset":
        offset = 1e12
    else:
        q, offset = q * float(kind), offset * float(kind)
    if kind == "1e300":
        q[i, i] = 1e-300
    labels = np.arange(n) % 2 if grouped else None
    counts = [int(c) // 2 for c in np.bincount(labels)] if grouped else n // 2
    return BlockQubo(q, counts, offset, labels)


KINDS = (
    "one huge",
    "one hugely negative",
    "two huge",
    "huge of both signs",
    "most are huge",
    "a huge coupling",
    "a hugely negative coupling",
    "a ladder",
    "a huge offset",
    "1e300",
    "1e-300",
    "5e-322",
    "1e150",
    "1e-150",
)


def assert_right(problem: BlockQubo, result: SolveResult) -> None:
    exact = Exactly(problem)
    x = result.assignment
    energy, terms = exact.energy(x), exact.terms(x)
    rounding = terms * Fraction(1e-12) + Fraction(5e-320)
    assert problem.is_feasible(x)
    assert abs(Fraction(result.energy) - energy) <= rounding
    if result.status is Status.OPTIMAL:
        assert energy - exact.lowest <= 2 * Fraction(PROVEN_SHARE) * terms + rounding
    if result.lower_bound is not None:
        assert Fraction(result.lower_bound) <= exact.lowest + rounding
    if not problem.free:
        assert energy - exact.best_swap(x) <= rounding


@pytest.mark.gate(42)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", QUICK)
def test_hostile_problems_are_solved_rightly(name, kind):
    for seed, (n, grouped) in enumerate([(8, False), (7, True), (2, False)]):
        problem = hostile(kind, n, seed, grouped)
        assert_right(problem, dispatch.solve(problem, name, time_limit=20.0))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_problems_are_sampled_rightly(kind):
    problem = hostile(kind, 5, 1, False)
    for settings_of in ({"ansatz": "xy"}, {"ansatz": "penalty"}):
        assert_right(problem, dispatch.solve(problem, "qaoa", maxiter=6, layers=1, shots=64, **settings_of))


@pytest.mark.parametrize("name", ["neal", "steepest", "dwave-tabu"])
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_problems_without_counts(name, kind):
    plain = hostile(kind, 7, 2, False)
    problem = BlockQubo(plain.dense(), None, plain.offset)
    result = dispatch.solve(problem, name)
    assert_right(problem, result)
    assert Exactly(problem).energy(result.assignment) <= problem.offset + Exactly(problem).terms(result.assignment)


def test_an_entry_above_all_others_is_decided_and_the_optimum_found():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(8, 8))
    problem = BlockQubo(q + np.diag([1e13] + [0] * 7), 4)
    lowest = float(Exactly(problem).lowest)
    for name in ("cpsat", "exact", "greedy", "tabu"):
        result = dispatch.solve(problem, name)
        assert not result.assignment[0]
        if name in ("cpsat", "exact"):
            assert result.status is Status.OPTIMAL
            assert result.energy == pytest.approx(lowest, rel=1e-9)
            assert result.lower_bound == pytest.approx(lowest, rel=1e-6)
        assert "of 8 variables" in result.info["decided"]


class Loose(Solver):
    """Calls the first assignment that meets the count an optimum, with the bound that it is given."""

    capabilities = dispatch.make_solver("exact").capabilities

    def __init__(self, bound: float | None) -> None:
        self._bound = bound

    def solve(self, request: SolveRequest, /) -> SolveResult:
        x = np.zeros(request.problem.num_variables, dtype=bool)
        x[: sum(request.problem.num_pruned)] = True
        return single_answer(request.problem, x, Status.OPTIMAL, lower_bound=self._bound)


def test_an_optimum_is_believed_only_with_a_bound_that_reaches_it(rng):
    problem = BlockQubo(np.eye(6), 3, 1.0)
    for gap, believed in ((0.0, True), (1e-9, True), (1e-3, False), (1.0, False)):
        result = dispatch.solve(problem, Loose(4.0 - gap))
        assert (result.status is Status.OPTIMAL) == believed
        assert ("leaves a gap" in str(result.info.get("disbelieved"))) != believed
        assert result.lower_bound == 4.0 - gap
    assert dispatch.solve(problem, Loose(None)).status is Status.OPTIMAL


def test_usual_problems_reach_the_solver_as_they_are(rng):
    for n in (1, 2, 5, 40):
        assert reduced(random_problem(rng, n, n // 2)) is None
        assert reduced(BlockQubo(FactorForm(rng.normal(size=n), rng.normal(size=(n, 2))), n // 2)) is None
    assert reduced(BlockQubo(np.zeros((4, 4)), 2)) is None
    assert reduced(BlockQubo(np.zeros((0, 0)), 0)) is None


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1e20, 1e290])
@pytest.mark.parametrize("form", ["dense", "factor"])
def test_scaling_changes_no_digit(rng, scale, form):
    n = 6
    q = rng.normal(size=(n, n)) * scale
    if form == "factor":
        q = FactorForm(rng.normal(size=n) * scale, rng.normal(size=(n, 2)) * scale**0.5)
    problem = BlockQubo(q, 3, scale)
    reduction = reduced(problem)
    assert reduction is not None
    assert reduction.num_decided == 0
    assert USUAL[0] <= np.abs(reduction.problem.dense()).max() <= USUAL[1]
    x = random_feasible(rng, problem)
    assert reduction.back(reduction.forth(x)[None])[0].tolist() == x.tolist()
    mapped = reduction.energy(float(reduction.problem.energy(x)))
    assert mapped == pytest.approx(problem.energy(x), rel=1e-9)
    if form == "dense":
        assert np.array_equal(reduction.problem.dense() * reduction.unit, problem.dense())


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 7), st.integers(0, 2**31), st.integers(0, 16), st.booleans())
def test_decided_variables_have_their_value_in_every_optimum(n, seed, spread, free):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(n, n)) * 10.0 ** rng.integers(-spread, spread + 1, size=n)[:, None]
    labels = rng.integers(0, 2, size=n)
    counts = tuple(int(rng.integers(0, size + 1)) for size in np.bincount(labels, minlength=2))
    problem = BlockQubo(q, None) if free else BlockQubo(q, counts, 0.0, labels)
    value = decided(problem.dense(), None if free else labels, problem.num_pruned)
    exact = Exactly(problem)
    for x in exact.points:
        if exact.energy(x) == exact.lowest:
            assert all(value[i] in (-1, int(x[i])) for i in range(n))


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 8), st.integers(0, 2**31), st.sampled_from(KINDS))
def test_careful_swaps_end_where_no_swap_gains(n, seed, kind):
    problem = hostile(kind, n, seed, False)
    start = random_feasible(np.random.default_rng(seed), problem)
    exact = Exactly(problem)
    settled = careful_swaps(problem, start)
    assert exact.energy(settled) <= exact.energy(start)
    assert exact.energy(settled) - exact.best_swap(settled) <= exact.terms(settled) * Fraction(1e-14)


def test_a_warm_start_against_what_is_decided_is_never_the_answer(rng):
    problem = hostile("one huge", 8, 0, False)
    huge = int(np.abs(problem.diagonal).argmax())
    start = random_feasible(rng, problem)
    start[:] = False
    start[[huge, *[i for i in range(8) if i != huge][:3]]] = True
    for name in ("greedy", "cpsat", "neal"):
        result = dispatch.solve(problem, name, warm_start=start)
        assert not result.assignment[huge]
        assert result.energy < problem.energy(start)
        assert result.ledger is None or result.ledger.start == problem.energy(start)


def test_a_problem_that_is_decided_altogether_asks_no_solver(rng):
    problem = BlockQubo(np.diag([1e13, 1.0, -1e13, 1e20]), 2, 0.5)

    class Never(Loose):
        def solve(self, request: SolveRequest, /) -> SolveResult:
            raise AssertionError("asked")

    result = dispatch.solve(problem, Never(None))
    assert result.assignment.tolist() == [False, True, True, False]
    assert result.status is Status.OPTIMAL
    assert result.energy == problem.energy(result.assignment)


def test_settings_in_units_of_energy_stay_so(rng):
    """A solver that is given a scaled problem is told the unit, and reads its settings in it."""
    plain = random_problem(rng, 8, 4)
    scale = 2.0**100
    big = BlockQubo(plain.dense() * scale, 4, plain.offset * scale)
    for name, of_plain, of_big in (
        ("neal", {"beta_range": (0.1, 10.0)}, {"beta_range": (0.1 / scale, 10.0 / scale)}),
        ("qaoa", {"ansatz": "penalty", "strength": 2.0}, {"ansatz": "penalty", "strength": 2.0 * scale}),
    ):
        more = {} if name == "neal" else {"maxiter": 8, "shots": 32}
        one = dispatch.solve(plain, name, polish=False, **of_plain, **more)
        two = dispatch.solve(big, name, polish=False, **of_big, **more)
        assert np.array_equal(one.assignment, two.assignment)
    assert np.array_equal(
        dispatch.solve(plain, "steepest", penalty=3.0, polish=False).assignment,
        dispatch.solve(big, "steepest", penalty=3.0 * scale, polish=False).assignment,
    )


@pytest.mark.parametrize("name", ["greedy", "tabu", "local", "anneal", "exact"])
def test_rows_of_a_batch_end_where_no_swap_gains(rng, name):
    batch = random_batch(rng, 4, 8, [4])
    linear = batch.linear.clone()
    linear[1, 2], linear[3, 5] = 1e14, -1e14
    batch = BlockBatch(batch.hessian, batch.values, linear, batch.offset, batch.labels, batch.num_pruned)
    start = random_starts(rng, batch)
    start[1, 2] |= True
    start[1] = torch.tensor([False, False, True, True, True, True, False, False])
    answer = dispatch.solve_batch(dispatch.make_solver(name), BatchRequest(batch, start), Handling())
    for row in range(4):
        exact, x = Exactly(batch.problem(row)), answer.assignments[row].numpy()
        assert exact.energy(x) - exact.best_swap(x) <= exact.terms(x) * Fraction(1e-12)


@pytest.mark.parametrize(
    "q", [np.full((3, 3), 1e308), np.diag([1e307] * 3), FactorForm(np.ones(3), np.full((3, 1), 1e200))]
)
def test_entries_whose_sums_overflow_are_refused_in_one_sentence(q):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="range of float64; divide Q and the offset by a power of two"):
            BlockQubo(q, 1)
    with pytest.raises(InputError, match="range of float64"):
        BlockQubo(np.eye(2), 1, 1e308)


def test_what_is_wide_is_seen(rng):
    assert wide(hostile("one huge", 8, 0, False))
    assert wide(hostile("a huge coupling", 8, 0, False))
    assert not wide(random_problem(rng, 8, 4))
