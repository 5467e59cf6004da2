"""Simulated annealing with D-Wave's sampler."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from qubo_prune.clock import Deadline
from qubo_prune.settings import setting
from qubo_prune.solver.interface import Capabilities, Solver, SolveRequest, SolveResult, Status, ranked_answers
from qubo_prune_solvers._bqm import assignments_of, beta_range, initial_states, model_of, small_seed
from qubo_prune_solvers._interrupts import interruptible

# so many sweeps tell how long a whole read takes
_PROBE = 20

# an annealing from the warm start begins colder by this factor, or nothing would be left of the start
_COOLER = 10


@dataclass(frozen=True)
class Neal(Solver):
    """Anneal by single flips, ``num_reads`` times, on a geometric ladder of inverse temperatures.

    A flip that raises the energy by ``dE`` is accepted with probability ``exp(-beta dE)``; beta goes
    from ``1 / hot`` to ``1 / cold`` with the temperatures of the request. The sampler's own range of
    beta is not used: it follows the largest terms, which are the penalties.

    The sampler looks at the clock between reads only. With a time limit a short read is timed first,
    and if a full one would not fit, its sweeps are cut down (``info["sweeps"]``).

    Whole rows of 256 weights: from the warm start the excess energy was half of that of random starts,
    in a third of the time.

    Attributes:
        num_reads: how many annealings.
        num_sweeps: passes over all variables in each.
        start: where reads begin: ``"warm"``, at the warm start and a tenth of the hot temperature, or
            ``"random"``, which is also what is done without a warm start.
        beta_range: first and last beta in units of 1/energy, in place of those of the request.

    Source: ``dwave.samplers.SimulatedAnnealingSampler``, formerly dwave-neal.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        cardinality=False, anytime=True, requires=(("dimod", "dimod"), ("dwave.samplers", "dwave-samplers"))
    )

    num_reads: int = setting(10, least=1)
    num_sweeps: int = setting(1000, least=1)
    start: Literal["warm", "random"] = "warm"
    beta_range: tuple[float, float] | None = setting(None, above=0)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        problem, clock = request.problem, Deadline(request.time_limit)
        # the sampler works with spins and would convert the model in every call
        model = model_of(problem).change_vartype("SPIN", inplace=False)
        if not problem.num_variables:
            return ranked_answers(problem, np.zeros((1, 0)), Status.FEASIBLE)
        settings = self._settings(request)
        sweeps = self._affordable_sweeps(model, settings, clock)
        settings["interrupt_function"] = lambda: clock.expired
        samples = interruptible(
            lambda: _sampler().sample(model, num_reads=self.num_reads, num_sweeps=sweeps, **settings), clock.cancel
        )
        cut = len(samples) < self.num_reads or sweeps < self.num_sweeps
        return ranked_answers(
            problem,
            assignments_of(samples, problem.num_variables, "SimulatedAnnealingSampler"),
            Status.TIME_LIMIT if cut else Status.FEASIBLE,
            info={"reads": len(samples), "sweeps": sweeps, "beta_range": settings["beta_range"]},
        )

    def _settings(self, request: SolveRequest) -> dict[str, Any]:
        """Seed, range of beta and initial states of all reads."""
        hot, cold = beta_range(request)
        settings: dict[str, Any] = {"seed": small_seed(request.seed)}
        if self.start == "warm" and request.warm_start is not None:
            hot *= _COOLER
            settings["initial_states"] = initial_states(request.warm_start[None, :])
            settings["initial_states_generator"] = "tile"
        own = None if self.beta_range is None else tuple(beta * request.unit for beta in self.beta_range)
        return settings | {"beta_range": own or (hot, cold)}

    def _affordable_sweeps(self, model: Any, settings: dict[str, Any], clock: Deadline) -> int:
        """The sweeps of a read, fewer if a read would take longer than there is time."""
        if clock.remaining is None:
            return self.num_sweeps
        began, probe = time.perf_counter(), min(self.num_sweeps, _PROBE)
        timing = _sampler().sample(model, num_reads=1, num_sweeps=probe, **settings).info["timing"]
        sampling = timing["sampling_ns"] / 1e9
        # what the call needs besides its sweeps is needed once more
        left = clock.remaining - (time.perf_counter() - began - sampling)
        return max(1, min(self.num_sweeps, int(probe * left / sampling)))


def _sampler() -> Any:
    from dwave.samplers import SimulatedAnnealingSampler

    return SimulatedAnnealingSampler()
