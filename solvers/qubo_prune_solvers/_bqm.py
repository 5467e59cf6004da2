"""What the solvers built on dimod samplers share: models in, assignments out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qubo_prune.errors import InputError
from qubo_prune.problem.penalty import temperature_range
from qubo_prune.problem.qubo import BlockQubo, binary
from qubo_prune.solver.interface import SolveRequest, derive_seed

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
            "penalties of them, or pass the result of qubo_prune.problem.penalty.penalised."
        )
    # dimod reads a matrix several times faster than vectors of pairs, and leaves zeros out
    model = dimod.BinaryQuadraticModel(problem.dense(), dimod.BINARY)
    model.offset = problem.offset
    return model


def assignments_of(samples: dimod.SampleSet, num_variables: int, sampler: str = "the sampler") -> NDArray[np.bool_]:
    """Every sample over variables 0 to n-1 as a row ``(k, n)``, True = prune; binary or spins.

    Args:
        samples: what the sampler answered; variables besides those of the problem are left out.
        num_variables: n.
        sampler: its name, for the message.

    Raises:
        ValueError: there are no samples, a variable is missing, or values are none of the sample set's type.
    """
    columns = _columns(samples, num_variables, sampler)
    values = np.asarray(samples.record.sample)
    if not len(values):
        raise ValueError(f"{sampler} answered with no samples; at least one is needed")
    values = values[:, columns]
    if getattr(samples.vartype, "name", "") != "SPIN":
        return binary(values, f"{sampler} answered with")
    if not (np.abs(values) == 1).all():
        found = np.unique(values)[:5].tolist()
        raise ValueError(f"{sampler} answered with spins {found}; only -1 and +1 are allowed, +1 = prune")
    return np.asarray(values > 0)


def hardware_told(samples: dimod.SampleSet) -> dict[str, Any]:
    """What a sample set tells of the hardware it comes from, as entries of a result's ``info``; empty if nothing.

    * ``qpu_seconds``: the ``qpu_access_time``, which D-Wave's samplers give in microseconds, those of its processors
      within ``info["timing"]`` and the hybrid ones beside other entries.
    * ``timing``: all of those times as they came.
    * ``chain_break_fraction``: mean over the reads of the share of chains whose qubits disagreed.
    """
    info = getattr(samples, "info", None) or {}
    within = info.get("timing")
    times = {
        str(name): value
        for name, value in (within if isinstance(within, Mapping) else info).items()
        if str(name).endswith(("_time", "_time_per_sample")) and isinstance(value, (int, float, np.number))
    }
    told: dict[str, Any] = {}
    if "qpu_access_time" in times:
        told["qpu_seconds"] = float(times["qpu_access_time"]) * 1e-6
    if times:
        told["timing"] = {name: float(value) for name, value in times.items()}
    if "chain_break_fraction" in (samples.record.dtype.names or ()):
        reads = np.asarray(samples.record.num_occurrences, dtype=np.float64)
        broken = np.asarray(samples.record.chain_break_fraction, dtype=np.float64)
        told["chain_break_fraction"] = float(np.average(broken, weights=reads))
    return told


def _columns(samples: dimod.SampleSet, num_variables: int, sampler: str) -> list[int]:
    """Where the samples have variable 0, 1, and so on."""
    if not hasattr(samples, "record") or not hasattr(samples, "variables"):
        raise ValueError(f"{sampler} answered with a {type(samples).__name__} instead of a dimod.SampleSet")
    places = {variable: place for place, variable in enumerate(samples.variables)}
    missing = [i for i in range(num_variables) if i not in places]
    if missing:
        raise ValueError(
            f"{sampler} answered for the variables {_listed(list(places))}, without {_listed(missing)}; a value for "
            f"each of 0 to {num_variables - 1}, by the names that its model has, is needed"
        )
    return [places[i] for i in range(num_variables)]


def _listed(things: list[object] | list[int]) -> str:
    return f"[{', '.join(map(repr, things[:4]))}{', ...' if len(things) > 4 else ''}]"


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
