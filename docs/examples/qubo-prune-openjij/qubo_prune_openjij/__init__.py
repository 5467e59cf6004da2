"""OpenJij's simulated annealing as a solver of qubo_prune: one class, one entry point."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from qubo_prune import Capabilities, Solver, SolveRequest, SolveResult, Status
from qubo_prune.solver import Deadline, derive_seed, ranked_answers


@dataclass(frozen=True)
class OpenJij(Solver):
    """Anneal by single flips, ``num_reads`` times.

    Attributes:
        num_reads: how many annealings.
        num_sweeps: passes over all variables in each.
    """

    # no counts: the framework turns them into penalties, repairs what still misses one, and re-scores
    capabilities = Capabilities(cardinality=False, anytime=True, requires=(("openjij", "openjij"),))

    num_reads: int = 5
    num_sweeps: int = 300

    def solve(self, request: SolveRequest, /) -> SolveResult:
        """Sample the penalised problem; x = 1 prunes."""
        import openjij

        problem, clock = request.problem, Deadline(request.time_limit)
        # OpenJij's numbers overflow or vanish far from 1, so energies are measured in the hottest temperature
        hot, cold = request.temperatures or (1.0, 1e-3)
        q, n = problem.dense() / hot, problem.num_variables
        samples, began = [np.zeros(n) if request.warm_start is None else request.warm_start], time.monotonic()
        upper = {
            (i, j): (q[i, j] if i == j else 2 * q[i, j]) for i in range(n) for j in range(i, n) if i == j or q[i, j]
        }
        for read in range(self.num_reads if any(upper.values()) else 0):
            # it cannot be interrupted, so another read is begun only if it will end in time
            if clock.remaining is not None and clock.remaining < 2 * (time.monotonic() - began) / max(1, read):
                break
            response = openjij.SASampler().sample_qubo(
                upper,
                beta_min=1.0,
                beta_max=hot / cold,
                num_reads=1,
                num_sweeps=self.num_sweeps,
                seed=derive_seed(request.seed, read) % 2**31,
            )
            sample = response.first.sample
            samples.append(np.array([sample[i] for i in range(n)]))
        return ranked_answers(problem, samples[1:] or samples, Status.FEASIBLE, info={"reads": len(samples) - 1})
