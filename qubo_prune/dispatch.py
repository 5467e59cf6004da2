"""Hands problems to solvers and believes none of them: every answer is re-checked in float64."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo
from qubo_prune.registry import make_solver
from qubo_prune.solver import (
    BatchRequest,
    BatchResult,
    Solver,
    SolveRequest,
    SolveResult,
    Status,
    single_answer,
)


def solve(
    problem: BlockQubo,
    solver: str | Solver = "greedy",
    seed: int = 0,
    time_limit: float | None = None,
    warm_start: ArrayLike | None = None,
    **settings: Any,
) -> SolveResult:
    """Solve one block QUBO and verify the answer.

    Args:
        problem: the block QUBO.
        solver: a registered name, ``package.module:Class``, or a :class:`Solver`.
        seed: every random choice follows from it.
        time_limit: wall-clock seconds, or ``None``.
        warm_start: a feasible assignment ``(n,)``; the result is never worse than it.
        **settings: fields of the solver's class.

    Returns:
        The verified result: counts exact, energies recomputed in float64, best first.

    Raises:
        InputError: unknown solver, infeasible warm start, or more variables than the solver takes.
        SolverError: the solver failed and there is no warm start to fall back on.

    >>> from qubo_prune import BlockQubo, solve
    >>> solve(BlockQubo([[1.0, -2.0], [-2.0, 3.0]], num_pruned=1), solver="exact").energy
    1.0
    """
    chosen = make_solver(solver, **settings)
    name = solver if isinstance(solver, str) else type(chosen).__name__
    check_size(chosen, name, problem.num_variables)
    start = None if warm_start is None else _checked_start(problem, warm_start)
    if time_limit is not None and not time_limit > 0:
        raise InputError(f"time_limit is {time_limit}; pass a positive number of seconds or None.")
    began = time.perf_counter()
    try:
        # the solver gets a copy of the start, which has to survive whatever the solver does to it
        result = chosen.solve(SolveRequest(problem, None if start is None else start.copy(), seed, time_limit))
        feasible = _feasible(problem, result)
    except InputError:
        raise
    except Exception as error:  # a stranger's solver may raise anything
        result = _fallback(problem, start, name, Status.FAILED, f"{type(error).__name__}: {error}", error)
    else:
        result = _verified(problem, start, name, result, feasible)
    return dataclasses.replace(result, solver=name, seconds=time.perf_counter() - began)


def check_size(solver: Solver, name: str, num_variables: int) -> None:
    """Raise :class:`InputError` if the solver does not take blocks of that size."""
    limit = solver.capabilities.max_variables
    if limit is not None and num_variables > limit:
        raise InputError(
            f"The solver {name!r} takes at most {limit} variables and the block has {num_variables}; "
            "use a smaller block or another solver such as 'greedy'."
        )


def _checked_start(problem: BlockQubo, warm_start: ArrayLike) -> NDArray[np.bool_]:
    point = np.asarray(warm_start)
    if not problem.is_feasible(point):
        raise InputError(
            f"warm_start is not feasible: pass {problem.num_variables} values 0 or 1 with exactly "
            f"{list(problem.num_pruned)} ones in the groups."
        )
    return point.astype(bool)


def _feasible(problem: BlockQubo, result: object) -> list[NDArray[np.bool_]]:
    """The answers that are binary and meet every count."""
    if not isinstance(result, SolveResult):
        raise TypeError(f"it answered with a {type(result).__name__} instead of a SolveResult")
    return [np.asarray(x).astype(bool) for x in result.assignments if problem.is_feasible(x)]


def _verified(
    problem: BlockQubo,
    start: NDArray[np.bool_] | None,
    name: str,
    result: SolveResult,
    feasible: list[NDArray[np.bool_]],
) -> SolveResult:
    """Score the feasible answers in float64, order them, fall back on the start."""
    if not feasible:
        return _fallback(problem, start, name, Status.INFEASIBLE, "no answer meets the counts")
    assignments = np.stack(feasible)
    energies = np.asarray(problem.energy(assignments))
    order = np.argsort(energies, kind="stable")
    assignments, energies = assignments[order], energies[order]
    if start is not None and energies[0] > np.float64(problem.energy(start)):
        return _fallback(problem, start, name, Status.NOT_IMPROVED, f"answer had energy {energies[0]:.6g}")
    return dataclasses.replace(result, assignments=assignments, energies=energies)


def _fallback(
    problem: BlockQubo,
    start: NDArray[np.bool_] | None,
    name: str,
    status: Status,
    detail: str,
    cause: Exception | None = None,
) -> SolveResult:
    if start is None:
        raise SolverError(f"The solver {name!r} gave no usable answer ({detail}).") from cause
    return single_answer(problem, start, status, info={"instead": "warm start", "detail": detail})


def solve_batch(solver: Solver, request: BatchRequest) -> BatchResult:
    """Solve one problem per row; rows whose answer is unusable or worse keep their warm start.

    The request's problems and warm start are trusted (the framework emitted them); the answers are
    not. Every row's energy change is recomputed from the problem as emitted, in its own dtype.
    """
    start = request.warm_start
    try:
        # the solver gets a copy of the start, which has to survive whatever the solver does to it
        result = solver.solve_batch(dataclasses.replace(request, warm_start=start.clone()))
        answer = result.assignments.to(start.device)
        if answer.shape != start.shape or answer.dtype != torch.bool:
            raise SolverError(
                f"answer has shape {tuple(answer.shape)} and type {answer.dtype}; "
                f"{tuple(start.shape)} and torch.bool are needed"
            )
    except Exception as error:  # a solver's failure costs this batch, not the run
        everywhere = {row: (Status.FAILED, f"{type(error).__name__}: {error}") for row in range(len(start))}
        return BatchResult(start, everywhere, torch.zeros_like(request.problems.offset))
    counts_met = (request.problems.counts(answer) == request.problems.num_pruned).all(1)
    answer = torch.where(counts_met[:, None], answer, start)
    change = request.problems.energy_change(start, answer)
    # not (change <= 0) also catches NaN
    worse = ~(change <= 0)
    failures = dict(result.failures)
    failures.update(dict.fromkeys(_positions(~counts_met), (Status.INFEASIBLE, "counts are not met")))
    failures.update(dict.fromkeys(_positions(worse), (Status.NOT_IMPROVED, "")))
    answer = torch.where(worse[:, None], start, answer)
    return BatchResult(answer, failures, torch.where(worse, torch.zeros_like(change), change))


def _positions(flags: torch.Tensor) -> list[int]:
    return [int(i) for i in flags.nonzero()[:, 0]]
