"""Steepest descent by single flips with D-Wave's sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.settings import setting
from qubo_prune.solver.interface import Capabilities, Solver, SolveRequest, SolveResult, Status, ranked_answers
from qubo_prune_solvers._bqm import assignments_of, initial_states, model_of

# descents between two looks at the clock
_CHUNK = 10


@dataclass(frozen=True)
class Steepest(Solver):
    """Flip the variable that lowers the energy most until none does, from ``num_reads`` starts.

    The first start is the warm start, the others are random. A baseline: what an annealer has to beat
    before anything is claimed for it.

    Attributes:
        num_reads: how many descents.

    Source: ``dwave.samplers.SteepestDescentSampler``.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        cardinality=False, anytime=True, requires=(("dimod", "dimod"), ("dwave.samplers", "dwave-samplers"))
    )

    num_reads: int = setting(100, least=1)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        from dwave.samplers import SteepestDescentSampler

        problem, clock = request.problem, Deadline(request.time_limit)
        # the sampler works with spins and would convert the model in every call
        model = model_of(problem).change_vartype("SPIN", inplace=False)
        if not problem.num_variables:
            return ranked_answers(problem, np.zeros((1, 0)), Status.FEASIBLE)
        answers: list[NDArray[np.bool_]] = []
        starts = self._starts(request)
        for at in range(0, len(starts), _CHUNK):
            given = initial_states(starts[at : at + _CHUNK])
            samples = SteepestDescentSampler().sample(model, initial_states=given)
            answers.extend(assignments_of(samples, problem.num_variables, "SteepestDescentSampler"))
            if clock.expired:
                break
        status = Status.TIME_LIMIT if len(answers) < len(starts) else Status.FEASIBLE
        return ranked_answers(problem, np.array(answers), status, info={"reads": len(answers)})

    def _starts(self, request: SolveRequest) -> NDArray[np.bool_]:
        """Assignments to descend from, ``(num_reads, n)``."""
        shape = self.num_reads, request.problem.num_variables
        starts = np.random.default_rng(request.seed).random(shape) < 0.5
        if request.warm_start is not None:
            starts[0] = request.warm_start
        return starts
