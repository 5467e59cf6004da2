"""Multistart tabu search with D-Wave's sampler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qubo_prune.clock import Deadline, shortest
from qubo_prune.settings import setting
from qubo_prune.solver.interface import Capabilities, Solver, SolveRequest, SolveResult, Status, ranked_answers
from qubo_prune_solvers._bqm import assignments_of, initial_states, model_of, small_seed
from qubo_prune_solvers._interrupts import interruptible


@dataclass(frozen=True)
class DwaveTabu(Solver):
    """Flip the best variable that was not flipped lately, ``num_reads`` times with restarts.

    The first read begins at the warm start, the others at random; on whole rows of 1024 correlated
    weights the first is the one that counts (1 % excess energy, 16 to 160 % from random starts). A read
    ends after its restarts, so that a seed decides the answer; with a time limit each read also ends at
    its share of it, and then the answer depends on the machine.

    Attributes:
        num_reads: how many searches.
        num_restarts: of each search; one takes about 10 ms for up to 256 variables, 80 ms for 1024.
        tenure: for how many steps a flipped variable stays; a quarter of the variables, at most 20, if
            ``None``.
        timeout: seconds for a read at most, time limit or not.

    Source: ``dwave.samplers.TabuSampler``; Palubeckis, Annals of Operations Research 131 (2004).
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        cardinality=False, anytime=True, requires=(("dimod", "dimod"), ("dwave.samplers", "dwave-samplers"))
    )

    num_reads: int = setting(2, least=1)
    num_restarts: int = setting(10, least=0)
    tenure: int | None = setting(None, least=0)
    timeout: float | None = setting(None, above=0)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        from dwave.samplers import TabuSampler

        problem, clock = request.problem, Deadline(request.time_limit)
        model = model_of(problem)
        if not problem.num_variables:
            return ranked_answers(problem, np.zeros((1, 0)), Status.FEASIBLE)
        timeout = self._milliseconds(clock)
        settings = {
            "num_reads": self.num_reads,
            "num_restarts": self.num_restarts,
            "tenure": None if self.tenure is None else min(self.tenure, problem.num_variables - 1),
            "timeout": timeout,
            "seed": small_seed(request.seed),
            "initial_states": None if request.warm_start is None else initial_states(request.warm_start[None, :]),
        }
        samples = interruptible(lambda: TabuSampler().sample(model, **settings), clock.cancel)
        restarts = samples.record.num_restarts.tolist()
        cut = timeout is not None and min(restarts) < self.num_restarts
        return ranked_answers(
            problem,
            assignments_of(samples, problem.num_variables, "TabuSampler"),
            Status.TIME_LIMIT if cut else Status.FEASIBLE,
            info={"reads": len(samples), "restarts": restarts},
        )

    def _milliseconds(self, clock: Deadline) -> int | None:
        """What the sampler may use for each read; it uses whole milliseconds."""
        left = clock.remaining
        limit = shortest(self.timeout, None if left is None else left / self.num_reads)
        return None if limit is None else max(1, int(1000 * limit))
