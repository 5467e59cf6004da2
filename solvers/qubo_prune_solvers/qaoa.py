"""QAOA on Qiskit primitives, with a mixer that preserves counts or with penalties."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError, did_you_mean
from qubo_prune.problem.penalty import penalised
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.problem.repair import repair
from qubo_prune.settings import setting
from qubo_prune.solver.dispatch import penalties
from qubo_prune.solver.interface import Capabilities, Solver, SolveRequest, SolveResult, Status, ranked_answers
from qubo_prune_solvers._bqm import small_seed
from qubo_prune_solvers._qaoa_circuits import Ansatz, ising, mixer_pairs
from qubo_prune_solvers._qaoa_device import Device
from qubo_prune_solvers._qaoa_simulation import Simulation, assignments

_MAX_VARIABLES = 14

# first angles that are tried; those of later layers go linearly from gamma to beta, as in annealing
_GAMMAS = (0.2, 0.4, 0.8, 1.6)
_BETAS = (-0.05, -0.1, -0.2, -0.4, -0.8)


@dataclass(frozen=True)
class Qaoa(Solver):
    """Sample from a circuit of ``layers`` phase separators and mixers whose angles minimise the mean energy.

    Layer l is ``exp(-i gamma_l H)``, with ``H`` the energy over its standard deviation, and a mixer:

    * ``ansatz="xy"``: ``exp(-i beta_l (XX + YY) / 2)`` over pairs of one group, all of them or those of
      a ring, from a Dicke state of each group: every sample meets the counts.
    * ``ansatz="penalty"``: ``exp(-i beta_l X)`` on every qubit, from ``|+...+>``, on the energy with
      penalties for the counts. Samples may miss them.

    Greedy swaps solve blocks of this size in microseconds; this is for studying the circuits. How much
    more often than uniform feasible sampling they hit the optimum, two layers, median of six blocks of
    12 real weights: 44 times (complete XY mixer, 812 CX), 10 times (ring, 596), 14 times (penalties,
    264, a third of the samples feasible).

    With a time limit the search for angles ends in time, and if the statevector sampler would not, the
    simulation draws the samples. Samplers of one's own, and training on samples, run in a process that
    is ended at the limit.

    ``info`` holds the angles, how many energies and circuits were asked for, gates and depth of the
    transpiled circuit, and of the samples the share that meets the counts, their mean and best energy
    and the best one's share; and ``qpu_seconds``, if the sampler's jobs have ``usage()``, as those of IBM's runtime do.

    Attributes:
        ansatz: see above.
        mixer: pairs of the XY mixer.
        initial: ``"warm_start"`` begins the XY ansatz at the warm start, with one more mixer before the
            layers, in place of Dicke states.
        layers: pairs of angles.
        shots: samples that are drawn in the end (and for each energy, if trained on samples).
        maxiter: energies that the optimiser (COBYLA) may ask for.
        training: what it minimises: the mean energy by an exact simulation without noise, or by
            samples from the sampler, one job each.
        sampler: ``"statevector"`` (exact amplitudes), ``"aer"`` (needs qiskit-aer), or any object with
            the interface of Qiskit's ``SamplerV2``. Circuits are transpiled for its ``backend``, if it
            has one.
        noise: strength of the depolarising noise of two-qubit gates of ``"aer"``; a tenth of it acts
            on single-qubit gates.
        strength: ``lambda`` of the penalty ansatz in units of energy; estimated if ``None``.

    Raises:
        InputError: settings that contradict one another.

    Source: Farhi et al., arXiv:1411.4028; Hadfield et al., arXiv:1709.03489 (XY mixers).
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        anytime=True, max_variables=_MAX_VARIABLES, requires=(("qiskit", "qiskit"), ("scipy", "scipy"))
    )

    ansatz: Literal["xy", "penalty"] = "xy"
    mixer: Literal["complete", "ring"] = "complete"
    initial: Literal["dicke", "warm_start"] = "dicke"
    layers: int = setting(2, least=1)
    shots: int = setting(1024, least=1)
    maxiter: int = setting(100, least=0)
    training: Literal["simulation", "samples"] = "simulation"
    sampler: Any = "statevector"
    noise: float = setting(0.0, least=0, most=1)
    strength: float | None = setting(None, above=0)

    def __post_init__(self) -> None:
        _check("ansatz", self.ansatz, ("xy", "penalty"))
        _check("mixer", self.mixer, ("complete", "ring"))
        _check("initial", self.initial, ("dicke", "warm_start"))
        _check("training", self.training, ("simulation", "samples"))
        if isinstance(self.sampler, str):
            _check("sampler", self.sampler, ("statevector", "aer"))
        if self.noise and self.sampler != "aer":
            raise InputError(f"noise is {self.noise}, which only sampler='aer' has; set it to 0 or take that sampler.")
        if self.initial == "warm_start" and self.ansatz != "xy":
            raise InputError("initial='warm_start' needs ansatz='xy'.")
        if self.layers < 1 or self.shots < 1:
            raise InputError(f"layers is {self.layers} and shots is {self.shots}; pass whole numbers from 1 on.")
        # a job cannot be stopped; of one's own samplers and of training on samples nobody knows how long it is
        own = dataclasses.replace(
            type(self).capabilities, anytime=isinstance(self.sampler, str) and self.training == "simulation"
        )
        object.__setattr__(self, "capabilities", own)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        problem, clock = request.problem, Deadline(request.time_limit)
        if problem.num_variables > _MAX_VARIABLES:
            raise InputError(
                f"'qaoa' simulates at most {_MAX_VARIABLES} qubits and the problem has {problem.num_variables} "
                "variables; use a smaller block or another solver such as 'greedy'."
            )
        if not problem.num_variables:
            return ranked_answers(problem, np.zeros((1, 0)), Status.FEASIBLE)
        if problem.free and self.ansatz == "xy":
            raise InputError("The problem has no counts, which ansatz='xy' needs; take ansatz='penalty'.")
        strength = None if self.strength is None else self.strength / request.unit
        target = _without_counts(problem, request.warm_start, strength)
        points = assignments(problem if self.ansatz == "xy" else target)
        energies = np.asarray(target.energy(points))
        mean, scale = float(np.mean(energies)), _scale(energies)
        ansatz, seed = self._circuit_form(problem, target, scale, request.warm_start), small_seed(request.seed)
        device = Device(ansatz.circuit(), self.sampler, self.noise, self.shots, seed)

        def of_samples(angles: NDArray[np.float64]) -> float:
            return float(np.mean(target.energy(device.sample(angles)) - mean)) / scale

        simulation = Simulation(ansatz, points, (energies - mean) / scale)
        search = _Search(simulation.mean if self.training == "simulation" else of_samples, clock)
        status = Status.FEASIBLE if search.run(_first_angles(ansatz), self.maxiter) else Status.TIME_LIMIT
        info = self._info(ansatz, device, search)
        left = clock.remaining
        if left is not None and device.seconds_foreseen > left:
            info["sampled"] = "from the simulation, for lack of time; it has the same probabilities"
            samples = simulation.sample(search.angles, self.shots, seed)
        else:
            samples = device.sample(search.angles)
        if device.qpu_seconds is not None:
            info["qpu_seconds"] = device.qpu_seconds
        return _answers(problem, samples, status, info | {"circuit_evaluations": device.jobs})

    def _info(self, ansatz: Ansatz, device: Device, search: _Search) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "shots": self.shots,
            "initial": "warm_start" if ansatz.start is not None else "dicke" if self.ansatz == "xy" else "uniform",
            "training": self.training,
            "iterations": search.evaluations,
            "two_qubit_gates": device.two_qubit_gates,
            "depth": device.depth,
            "gammas": search.angles[: self.layers].tolist(),
            "betas": search.angles[self.layers :].tolist(),
        }

    def _circuit_form(
        self, problem: BlockQubo, target: BlockQubo, scale: float, warm_start: NDArray[np.bool_] | None
    ) -> Ansatz:
        exchanging = self.ansatz == "xy"
        fields, couplings = ising(problem if exchanging else target, scale)
        pairs = mixer_pairs(problem.labels, problem.num_pruned, self.mixer) if exchanging else ()
        start = warm_start if self.initial == "warm_start" else None
        return Ansatz(self.ansatz, fields, couplings, self.layers, pairs, start, problem.labels, problem.num_pruned)


class _OutOfTime(Exception):
    """The time limit passed during the search for angles."""


class _Search:
    """Angles of the lowest mean energy seen, and how many were asked for."""

    def __init__(self, objective: Callable[[NDArray[np.float64]], float], clock: Deadline) -> None:
        self._objective, self._clock = objective, clock
        self.lowest, self.evaluations = np.inf, 0
        self.angles = np.zeros(0)

    def run(self, first: list[NDArray[np.float64]], maxiter: int) -> bool:
        """Try the first angles, then improve on the best of them; ``False`` if time ran out."""
        from scipy.optimize import minimize

        try:
            for angles in first:
                self._ask(angles)
            if maxiter:
                minimize(self._ask, self.angles, method="COBYLA", options={"maxiter": maxiter, "rhobeg": 0.1})
        except _OutOfTime:
            return False
        return True

    def _ask(self, angles: NDArray[np.float64]) -> float:
        if self.evaluations and self._clock.expired:
            raise _OutOfTime
        value = self._objective(angles)
        self.evaluations += 1
        if value < self.lowest:
            self.lowest, self.angles = value, angles.copy()
        return value


def _first_angles(ansatz: Ansatz) -> list[NDArray[np.float64]]:
    """Ramps as in annealing, gamma rising and beta falling over the layers, of several strengths."""
    time = (np.arange(ansatz.layers) + 0.5) / ansatz.layers
    extra = ansatz.num_angles - 2 * ansatz.layers
    return [
        np.concatenate([2 * gamma * time, 2 * beta * (1 - time), np.full(extra, beta)])
        for gamma, beta in product(_GAMMAS, _BETAS)
    ]


def _without_counts(problem: BlockQubo, warm_start: NDArray[np.bool_] | None, penalty: float | None) -> BlockQubo:
    """The problem with penalties for its counts, as dispatch makes it for solvers that know none."""
    if problem.free:
        return problem
    strength, mu, _ = penalties(problem, warm_start, penalty)
    return penalised(problem, strength, mu)


def _scale(energies: NDArray[np.float64]) -> float:
    """The standard deviation, so that angles are of the order of 1; something else where there is none."""
    largest, spread = float(np.abs(energies).max()), float(np.std(energies))
    return spread if spread > 1e-9 * largest else largest or 1.0


def _answers(problem: BlockQubo, samples: NDArray[np.bool_], status: Status, info: dict[str, Any]) -> SolveResult:
    """Samples that meet the counts, or repaired ones if none does, and what is worth knowing of them."""
    feasible = np.ones(len(samples), dtype=bool)
    for group, count in enumerate(problem.num_pruned):
        feasible &= samples[:, problem.labels == group].sum(axis=1) == count
    info["feasible"] = float(feasible.mean())
    if not feasible.any():
        info["instead"] = "no sample met the counts; all were repaired"
        return ranked_answers(problem, [repair(problem, x) for x in np.unique(samples, axis=0)], status, info=info)
    energies = np.asarray(problem.energy(samples[feasible]))
    info |= {"mean_energy": float(energies.mean()), "best_energy": float(energies.min())}
    info["best_share"] = float((energies == energies.min()).sum() / len(samples))
    return ranked_answers(problem, samples[feasible], status, info=info)


def _check(name: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise InputError(f"{name} is {given!r}{did_you_mean(given, allowed)}; it can be {', '.join(allowed)}.")
