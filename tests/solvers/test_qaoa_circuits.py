from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from qiskit.quantum_info import Operator, Statevector
from qubo_prune_solvers._qaoa_circuits import Ansatz, _doubly_controlled_ry, dicke_state, ising, mixer_pairs
from reference import random_problem
from scipy.linalg import expm

from qubo_prune.problem import BlockQubo

X, Y, Z = np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])


def bits(n: int) -> np.ndarray:
    """Assignments in the order of qiskit's amplitudes: qubit i is bit i."""
    return (np.arange(2**n)[:, None] >> np.arange(n)) % 2


def on(n: int, *parts: tuple[np.ndarray, int]) -> np.ndarray:
    """The product of one-qubit operators on n qubits, qubit 0 the last factor."""
    matrix = np.eye(1)
    for i in reversed(range(n)):
        matrix = np.kron(matrix, {at: part for part, at in parts}.get(i, np.eye(2)))
    return matrix


@pytest.mark.parametrize(("n", "ones"), [(n, ones) for n in range(1, 8) for ones in range(n + 1)])
def test_a_dicke_state_is_the_equal_superposition(n, ones):
    wanted = (bits(n).sum(axis=1) == ones).astype(float)
    assert np.allclose(Statevector(dicke_state(n, ones)).data, wanted / np.linalg.norm(wanted), atol=1e-12)


def test_a_dicke_state_takes_few_gates():
    # at most 6 CX for each of the O(n ones) pieces, two of them in the doubly controlled rotation's place
    for n in (8, 12, 14):
        pieces = sum(min(n // 2, length - 1) for length in range(2, n + 1))
        assert dicke_state(n, n // 2).decompose(["cry"]).num_nonlocal_gates() <= 6 * pieces


@pytest.mark.parametrize("controls", [0, 1, 2, 3])
def test_a_doubly_controlled_rotation_turns_only_if_both_are_one(controls):
    from qiskit import QuantumCircuit

    circuit = QuantumCircuit(3)
    _doubly_controlled_ry(circuit, 0.7, 0, 1, 2)
    half = 0.35 if controls == 3 else 0.0
    column = Operator(circuit).data[:, controls]
    assert np.allclose(column[[controls, controls + 4]], [np.cos(half), np.sin(half)])


def test_fields_and_couplings_give_the_energies(rng):
    problem = random_problem(rng, 5, 2)
    fields, couplings = ising(problem, scale=2.0)
    x = bits(5)
    z = 1 - 2 * x
    values = z @ fields + ((z @ np.triu(couplings, 1)) * z).sum(axis=1)
    constant = problem.energy(x) / 2.0 - values
    assert np.allclose(constant, constant[0])


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7])
def test_the_complete_mixer_has_every_pair_once_and_the_ring_its_edges(size):
    labels = np.array([1, *[0] * size, 1])
    complete = mixer_pairs(labels, (1, 0), "complete")
    assert Counter(complete) == Counter(combinations(range(1, size + 1), 2))
    ring = mixer_pairs(labels, (1, 0), "ring")
    edges = {frozenset((1 + i, 1 + (i + 1) % size)) for i in range(size)}
    assert {frozenset(pair) for pair in ring} == edges
    assert len(ring) == len(edges)


def test_pairs_stay_within_groups_that_can_change():
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert mixer_pairs(labels, (1, 2, 0), "complete") == ((0, 3),)


@pytest.mark.parametrize("start", [None, np.array([True, False, True])])
def test_a_layer_is_its_formula(rng, start):
    problem = random_problem(rng, 3, 2)
    fields, couplings = ising(problem, 1.5)
    pairs = mixer_pairs(problem.labels, problem.num_pruned, "complete")
    ansatz = Ansatz("xy", fields, couplings, 1, pairs, start, problem.labels, problem.num_pruned)
    angles = [0.6, -0.4, 0.25][: ansatz.num_angles]
    hamiltonian = sum(fields[i] * on(3, (Z, i)) for i in range(3)) + sum(
        couplings[i, j] * on(3, (Z, i), (Z, j)) for i, j in combinations(range(3), 2)
    )

    def mixed(state, beta):
        for i, j in pairs:
            state = expm(-0.5j * beta * (on(3, (X, i), (X, j)) + on(3, (Y, i), (Y, j)))) @ state
        return state

    state = Statevector(dicke_state(3, 2)).data
    if start is not None:
        state = mixed(np.eye(8)[int(start @ [1, 2, 4])], angles[2])
    wanted = mixed(expm(-1j * angles[0] * hamiltonian) @ state, angles[1])
    circuit = ansatz.circuit().remove_final_measurements(inplace=False).assign_parameters(angles)
    assert abs(np.vdot(wanted, Statevector(circuit).data)) == pytest.approx(1, abs=1e-9)


def test_the_transverse_layer_is_its_formula(rng):
    problem = BlockQubo(rng.normal(size=(3, 3)), None)
    fields, couplings = ising(problem, 1.0)
    ansatz = Ansatz("penalty", fields, couplings, 1, (), None, problem.labels, ())
    state = np.full(8, 8**-0.5) * np.exp(-1j * 0.6 * problem.energy(bits(3)))
    for i in range(3):
        state = expm(0.4j * on(3, (X, i))) @ state
    circuit = ansatz.circuit().remove_final_measurements(inplace=False).assign_parameters([0.6, -0.4])
    assert abs(np.vdot(state, Statevector(circuit).data)) == pytest.approx(1, abs=1e-9)
