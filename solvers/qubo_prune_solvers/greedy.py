"""The framework's own descent by swaps, as a back-end."""

from qubo_prune.solver.swaps.greedy import Greedy as Greedy
