"""The circuits of QAOA: Dicke states, phase separators, mixers. Qubit i is variable i, |1> prunes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import acos, sqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from qubo_prune.problem.qubo import BlockQubo

if TYPE_CHECKING:
    from qiskit import QuantumCircuit


@dataclass(frozen=True, eq=False)
class Ansatz:
    """Everything that defines the circuit but its angles.

    Layer l applies ``exp(-i gamma_l H)`` and then the mixer with ``beta_l``: for ``"xy"`` the product
    of ``exp(-i beta_l (XX + YY) / 2)`` over ``pairs`` in their order, for ``"penalty"`` that of
    ``exp(-i beta_l X)`` over all qubits.

    Attributes:
        fields: ``h`` of ``H = sum_i h_i Z_i + sum_{i<j} J_ij Z_i Z_j``, the energy over ``scale``.
        couplings: ``J``, ``(n, n)`` symmetric with zero diagonal.
        layers: how many.
        pairs: of the XY mixer; empty for the transverse one.
        start: assignment to begin with; if ``None``, Dicke states of the groups for ``"xy"`` and all
            qubits in ``|+>`` for ``"penalty"``. From an assignment a mixer of its own angle comes
            first, since phases alone would change nothing.
        labels: group of each qubit.
        num_pruned: ones in each group.
    """

    kind: Literal["xy", "penalty"]
    fields: NDArray[np.float64]
    couplings: NDArray[np.float64]
    layers: int
    pairs: tuple[tuple[int, int], ...]
    start: NDArray[np.bool_] | None
    labels: NDArray[np.int64]
    num_pruned: tuple[int, ...]

    @property
    def num_qubits(self) -> int:
        """One for each variable."""
        return len(self.fields)

    @property
    def num_angles(self) -> int:
        """``layers`` gammas, then as many betas, one more of them after an assignment."""
        return 2 * self.layers + (self.start is not None)

    def circuit(self) -> QuantumCircuit:
        """The circuit with its measurement; its parameters in the order of the angles."""
        from qiskit import QuantumCircuit
        from qiskit.circuit import ParameterVector

        angles = ParameterVector("angle", self.num_angles)
        gammas, betas = list(angles[: self.layers]), list(angles[self.layers :])
        circuit = QuantumCircuit(self.num_qubits)
        self._prepare(circuit)
        if self.start is not None:
            self._mix(circuit, betas.pop())
        for gamma, beta in zip(gammas, betas, strict=True):
            self._separate(circuit, gamma)
            self._mix(circuit, beta)
        circuit.measure_all()
        return circuit

    def _prepare(self, circuit: QuantumCircuit) -> None:
        if self.start is not None:
            ones = np.flatnonzero(self.start).tolist()
            if ones:
                circuit.x(ones)
        elif self.kind == "penalty":
            circuit.h(range(self.num_qubits))
        else:
            for group, count in enumerate(self.num_pruned):
                members = np.flatnonzero(self.labels == group).tolist()
                if members:
                    circuit.compose(dicke_state(len(members), count), members, inplace=True)

    def _separate(self, circuit: QuantumCircuit, gamma: object) -> None:
        for i in np.flatnonzero(self.fields).tolist():
            circuit.rz(2 * gamma * float(self.fields[i]), i)  # type: ignore[operator]
        for i, j in np.argwhere(np.triu(self.couplings, 1)).tolist():
            circuit.rzz(2 * gamma * float(self.couplings[i, j]), i, j)  # type: ignore[operator]

    def _mix(self, circuit: QuantumCircuit, beta: object) -> None:
        from qiskit.circuit.library import XXPlusYYGate

        if self.kind == "penalty":
            circuit.rx(2 * beta, range(self.num_qubits))  # type: ignore[operator]
        for pair in self.pairs:
            circuit.append(XXPlusYYGate(2 * beta), pair)  # type: ignore[operator]


def ising(problem: BlockQubo, scale: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fields and couplings of ``E / scale`` without its constant, for ``Z_i = 1 - 2 x_i``.

    ``J_ij = Q_ij / 2`` and ``h_i = -1/2 sum_j Q_ij``.
    """
    q = problem.dense() / scale
    couplings = q / 2
    np.fill_diagonal(couplings, 0.0)
    return -q.sum(axis=1) / 2, couplings


def dicke_state(n: int, ones: int) -> QuantumCircuit:
    """The equal superposition of all n-bit strings with so many ones, from |0...0>.

    Split and cyclic shift unitaries, deterministic, without ancillas, ``O(n ones)`` gates; of more
    than half ones the complement is prepared and flipped.

    Source: Baertschi and Eidenbenz, Deterministic preparation of Dicke states, FCT 2019
    (arXiv:1904.07358), sections 2 and 3.
    """
    from qiskit import QuantumCircuit

    circuit = QuantumCircuit(n)
    fewer = min(ones, n - ones)
    if fewer:
        circuit.x(range(n - fewer, n))
        for length in range(n, 1, -1):
            _split_and_shift(circuit, length, min(fewer, length - 1))
    if fewer < ones:
        circuit.x(range(n))
    return circuit


def _split_and_shift(circuit: QuantumCircuit, length: int, ones: int) -> None:
    """``SCS``: moves the last of the first ``length`` qubits to the front with the right amplitude.

    ``|0..01^l> -> sqrt(l / length) |0..01^l> + sqrt(1 - l / length) |0..1^l 0>`` for l up to ``ones``.
    """
    last = length - 1
    for l_ones in range(1, ones + 1):
        target, angle = last - l_ones, 2 * acos(sqrt(l_ones / length))
        circuit.cx(target, last)
        if l_ones == 1:
            circuit.cry(angle, last, target)
        else:
            _doubly_controlled_ry(circuit, angle, last, target + 1, target)
        circuit.cx(target, last)


def _doubly_controlled_ry(circuit: QuantumCircuit, angle: float, one: int, other: int, target: int) -> None:
    """``RY(angle)`` if both controls are 1, with four CX: the quarter turns add up or cancel."""
    for sign, control in ((1, one), (-1, other), (1, one), (-1, other)):
        circuit.ry(sign * angle / 4, target)
        circuit.cx(control, target)


def mixer_pairs(
    labels: NDArray[np.int64], num_pruned: Sequence[int], mixer: Literal["complete", "ring"]
) -> tuple[tuple[int, int], ...]:
    """Pairs of qubits of one group that the XY mixer couples, disjoint ones next to one another.

    Groups that are all kept or all pruned need none.
    """
    pairs: list[tuple[int, int]] = []
    for group, count in enumerate(num_pruned):
        members = np.flatnonzero(labels == group).tolist()
        if 0 < count < len(members):
            rounds = _all_pairs(len(members)) if mixer == "complete" else _ring(len(members))
            pairs += [(members[i], members[j]) for i, j in rounds]
    return tuple(pairs)


def _all_pairs(n: int) -> list[tuple[int, int]]:
    """Every pair once, as in a tournament: rounds of disjoint pairs keep the circuit shallow."""
    even = n + n % 2
    order, pairs = list(range(even)), []
    for _ in range(even - 1):
        pairs += [(order[i], order[even - 1 - i]) for i in range(even // 2)]
        order = [order[0], order[-1], *order[1:-1]]
    return [(min(pair), max(pair)) for pair in pairs if max(pair) < n]


def _ring(n: int) -> list[tuple[int, int]]:
    closing = [(0, n - 1)] if n > 2 else []
    return [(i, i + 1) for i in range(0, n - 1, 2)] + [(i, i + 1) for i in range(1, n - 1, 2)] + closing
