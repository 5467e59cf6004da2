from __future__ import annotations

import numpy as np
import pytest
from qiskit.quantum_info import Statevector
from qubo_prune_solvers._qaoa_circuits import Ansatz, ising, mixer_pairs
from qubo_prune_solvers._qaoa_simulation import Simulation, assignments
from reference import feasible_points, random_feasible, random_problem

from qubo_prune.problem import BlockQubo


def test_the_assignments_are_all_that_meet_the_counts(rng):
    problem = random_problem(rng, 7, (2, 1, 0), [0, 1, 0, 0, 1, 2, 1])
    assert {tuple(x) for x in assignments(problem)} == {tuple(x) for x in feasible_points(problem)}
    everything = assignments(BlockQubo(np.zeros((3, 3)), None))
    assert everything.shape == (8, 3)
    assert everything[5].tolist() == [True, False, True]


@pytest.mark.parametrize("mixer", ["complete", "ring"])
@pytest.mark.parametrize("warm", [False, True])
def test_xy_probabilities_are_those_of_the_circuit(rng, mixer, warm):
    problem = random_problem(rng, 6, (1, 2), [0, 1, 1, 0, 1, 1])
    fields, couplings = ising(problem, 3.0)
    start = random_feasible(rng, problem) if warm else None
    pairs = mixer_pairs(problem.labels, problem.num_pruned, mixer)
    ansatz = Ansatz("xy", fields, couplings, 2, pairs, start, problem.labels, problem.num_pruned)
    compare(ansatz, problem, 3.0, rng)


def test_penalty_probabilities_are_those_of_the_circuit(rng):
    problem = BlockQubo(rng.normal(size=(5, 5)), None)
    fields, couplings = ising(problem, 2.0)
    compare(Ansatz("penalty", fields, couplings, 2, (), None, problem.labels, ()), problem, 2.0, rng)


def compare(ansatz, problem, scale, rng):
    angles, points = rng.normal(size=ansatz.num_angles), assignments(problem)
    phases = (problem.energy(points) - 7.0) / scale
    simulation = Simulation(ansatz, points, phases)
    circuit = ansatz.circuit().remove_final_measurements(inplace=False).assign_parameters(angles)
    everywhere = Statevector(circuit).probabilities()
    wanted = everywhere[points @ (1 << np.arange(problem.num_variables))]
    assert wanted.sum() == pytest.approx(1, abs=1e-9)
    assert np.allclose(simulation.probabilities(angles), wanted, atol=1e-9)
    assert simulation.mean(angles) == pytest.approx(float(wanted @ phases))
    samples = simulation.sample(angles, 5000, seed=1)
    assert np.array_equal(samples, simulation.sample(angles, 5000, seed=1))
    shares = [(samples == x).all(axis=1).mean() for x in points]
    assert np.abs(np.array(shares) - wanted).max() < 0.03
