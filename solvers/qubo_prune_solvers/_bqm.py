"""What the solvers built on dimod samplers share: models in, assignments out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qubo_prune.errors import InputError
from qubo_prune.penalty import temperature_range
from qubo_prune.problem import BlockQubo
from qubo_prune.solver import SolveRequest, derive_seed

if TYPE_CHECKING:
    import dimod


def model_of(problem: BlockQubo) -> dimod.BinaryQuadraticModel:
    """The energies of a free problem over binary variables 0 to n-1, the offset included.

    Raises:
        InputError: the problem has counts, which such a model cannot hold.
    """
    import dimod

    if not problem.free and problem.num_variables:
        raise InputError(
            "The problem has counts, which this solver does not know; hand it to qubo_prune.solve, which makes "
            "penalties of them, or pass the result of qubo_prune.penalty.penalised."
        )
    # dimod reads a matrix several times faster than vectors of pairs, and leaves zeros out
    model = dimod.BinaryQuadraticModel(problem.dense(), dimod.BINARY)
    model.offset = problem.offset
    return model


def assignments_of(samples: dimod.SampleSet, num_variables: int) -> NDArray[np.bool_]:
    """Every sample over variables 0 to n-1 as a row ``(k, n)``, True = prune; binary or spins."""
    columns = np.empty(num_variables, dtype=np.int64)
    columns[np.fromiter(samples.variables, dtype=np.int64, count=num_variables)] = np.arange(num_variables)
    return np.asarray(samples.record.sample[:, columns] > 0)


def initial_states(starts: NDArray[np.bool_]) -> tuple[NDArray[np.int8], list[int]]:
    """Assignments ``(k, n)`` as samplers take their ``initial_states``."""
    return starts.astype(np.int8), list(range(starts.shape[1]))


def small_seed(seed: int) -> int:
    """A seed below 2^31, which is the most that every sampler takes."""
    return derive_seed(seed) % 2**31


def beta_range(request: SolveRequest) -> tuple[float, float]:
    """Inverse temperatures ``(1 / hot, 1 / cold)`` that suit the problem, in units of 1/energy."""
    hot, cold = request.temperatures or _own_temperatures(request)
    return 1 / hot, 1 / cold


def _own_temperatures(request: SolveRequest) -> tuple[float, float]:
    """For a problem that came without: flips at a random assignment are what an annealing sees first."""
    x = np.random.default_rng(request.seed).random(request.problem.num_variables) < 0.5
    return temperature_range(request.problem, x, request.seed)
