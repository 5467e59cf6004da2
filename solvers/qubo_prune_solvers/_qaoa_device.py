"""Where QAOA circuits run: Qiskit samplers, and what a circuit costs on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qubo_prune.plugins import check_requirements

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

# what circuits are counted in where no backend says otherwise, and what noise acts on
_BASIS = ("rz", "sx", "x", "cx")

# of the statevector sampler for a gate and an amplitude, on a busy core
_SECONDS = 3e-7


class Device:
    """One circuit on a sampler, transpiled for it.

    Args:
        circuit: with its measurement; its parameters are elements of one vector, the angles.
        sampler: ``"statevector"``, ``"aer"``, or an object with the interface of ``SamplerV2``.
        noise: of ``"aer"``, see :class:`~qubo_prune_solvers.qaoa.Qaoa`.
        shots: samples of a job.
        seed: of the transpiler and of the samplers that are made here.
    """

    def __init__(self, circuit: QuantumCircuit, sampler: Any, noise: float, shots: int, seed: int) -> None:
        from qiskit.transpiler import generate_preset_pass_manager

        self._sampler = _named_sampler(sampler, noise, seed) if isinstance(sampler, str) else sampler
        backend = None if isinstance(sampler, str) else _backend(sampler)
        target = {"basis_gates": list(_BASIS)} if backend is None else {"backend": backend}
        self._transpiled = generate_preset_pass_manager(1, seed_transpiler=seed, **target).run(circuit)
        # a simulation of amplitudes is faster on the few gates as they were written
        self._circuit = circuit if sampler == "statevector" else self._transpiled
        # angles that turn nothing, as with equal energies, are no parameters of the circuit
        self._turning = [parameter.index for parameter in self._circuit.parameters]
        self._shots = shots
        self.jobs = 0
        #: Seconds that the jobs took on a quantum processor, as they say themselves; ``None`` if none says so.
        self.qpu_seconds: float | None = None

    def sample(self, angles: NDArray[np.float64]) -> NDArray[np.bool_]:
        """What was measured, ``(shots, n)``, True = 1 = prune."""
        self.jobs += 1
        job = self._sampler.run([(self._circuit, angles[self._turning])], shots=self._shots)
        result = job.result()
        used = _used(job)
        if used is not None:
            self.qpu_seconds = used + (self.qpu_seconds or 0.0)
        return np.asarray(result[0].data.meas.to_bool_array("little"))

    @property
    def seconds_foreseen(self) -> float:
        """Roughly what a job of the statevector sampler takes; 0 for others, of which nothing is known."""
        if self._circuit is self._transpiled:
            return 0.0
        return float(_SECONDS * self._circuit.size() * 2**self._circuit.num_qubits)

    @property
    def depth(self) -> int:
        """Layers of gates in the transpiled circuit, the measurement not counted."""
        return int(self._transpiled.depth(lambda gate: gate.operation.name not in ("measure", "barrier")))

    @property
    def two_qubit_gates(self) -> int:
        """How many gates of the transpiled circuit act on two qubits."""
        return int(self._transpiled.num_nonlocal_gates())


def _named_sampler(name: str, noise: float, seed: int) -> Any:
    if name == "statevector":
        from qiskit.primitives import StatevectorSampler

        return StatevectorSampler(seed=seed)
    check_requirements("qaoa with sampler='aer'", [("qiskit_aer", "qiskit-aer")])
    from qiskit_aer import AerSimulator
    from qiskit_aer.primitives import SamplerV2

    return SamplerV2.from_backend(AerSimulator(noise_model=_depolarising(noise) if noise else None), seed=seed)


def _depolarising(strength: float) -> Any:
    from qiskit_aer.noise import NoiseModel, depolarizing_error

    model = NoiseModel(basis_gates=list(_BASIS))
    model.add_all_qubit_quantum_error(depolarizing_error(strength, 2), ["cx"])
    model.add_all_qubit_quantum_error(depolarizing_error(strength / 10, 1), ["sx", "x"])
    return model


def _used(job: Any) -> float | None:
    """Seconds for which the processor was locked for a job, as jobs of IBM's runtime have them in ``usage()``."""
    usage = getattr(job, "usage", None)
    seconds = usage() if callable(usage) else None
    return float(seconds) if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) else None


def _backend(sampler: Any) -> Any:
    """The backend of a sampler, an attribute of some and a method of others; ``None`` if it has none."""
    backend = getattr(sampler, "backend", None)
    return backend() if callable(backend) and not hasattr(backend, "target") else backend
