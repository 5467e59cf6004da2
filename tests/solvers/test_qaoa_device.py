from __future__ import annotations

import sys

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.primitives import BackendSamplerV2, StatevectorSampler
from qiskit.providers.basic_provider import BasicSimulator
from qubo_prune_solvers._qaoa_device import Device

from qubo_prune import plugins
from qubo_prune.errors import SolverError


@pytest.fixture
def circuit() -> QuantumCircuit:
    """Qubit 0 is 1, qubit 1 the sine of an angle, qubits 1 and 2 equal."""
    built = QuantumCircuit(3)
    built.x(0)
    built.ry(ParameterVector("angle", 1)[0], 1)
    built.cx(1, 2)
    built.measure_all()
    return built


@pytest.mark.parametrize("sampler", ["statevector", StatevectorSampler(seed=3), "backend"])
def test_samples_have_the_variables_in_order(circuit, sampler):
    if sampler == "backend":
        sampler = BackendSamplerV2(backend=BasicSimulator())
    device = Device(circuit, sampler, 0.0, 500, seed=1)
    samples = device.sample(np.array([np.pi / 2]))
    assert samples.shape == (500, 3)
    assert samples[:, 0].all()
    assert np.array_equal(samples[:, 1], samples[:, 2])
    assert 0.4 < samples[:, 1].mean() < 0.6
    assert not device.sample(np.array([0.0]))[:, 1].any()
    assert device.jobs == 2


def test_angles_that_turn_nothing_are_left_out():
    angles, built = ParameterVector("angle", 3), QuantumCircuit(2)
    built.ry(angles[2], 1)
    built.measure_all()
    samples = Device(built, "statevector", 0.0, 20, seed=1).sample(np.array([0.5, 0.5, np.pi]))
    assert samples.tolist() == [[False, True]] * 20


def test_gates_are_counted_in_the_transpiled_circuit(circuit):
    device = Device(circuit, "statevector", 0.0, 1, seed=1)
    assert device.two_qubit_gates == 1
    assert 2 <= device.depth <= 8


def test_seeds_decide_the_samples(circuit):
    one, same, other = (Device(circuit, "statevector", 0.0, 50, seed).sample(np.array([1.0])) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_backend_that_is_a_method_is_found_too(circuit):
    class Remote:
        def __init__(self):
            self.inner, self.seen = StatevectorSampler(seed=1), None

        def backend(self):
            return BasicSimulator()

        def run(self, pubs, *, shots):
            self.seen = pubs[0][0]
            return self.inner.run(pubs, shots=shots)

    remote = Remote()
    Device(circuit, remote, 0.0, 10, seed=1).sample(np.array([1.0]))
    assert set(remote.seen.count_ops()) <= {*BasicSimulator().target.operation_names, "barrier"}


def test_aer_is_named_where_it_is_missing(circuit, monkeypatch):
    found = plugins._importable
    monkeypatch.setattr(plugins, "_importable", lambda module: module != "qiskit_aer" and found(module))
    with pytest.raises(SolverError, match="needs a package that is missing: pip install qiskit-aer"):
        Device(circuit, "aer", 0.0, 10, seed=1)
    assert "qiskit_aer.noise" not in sys.modules or found("qiskit_aer")


def test_aer_agrees_without_noise_and_errs_with_it(circuit):
    pytest.importorskip("qiskit_aer")
    clean = Device(circuit, "aer", 0.0, 2000, seed=1).sample(np.array([np.pi / 2]))
    assert np.array_equal(clean[:, 1], clean[:, 2])
    again = Device(circuit, "aer", 0.0, 2000, seed=1).sample(np.array([np.pi / 2]))
    assert np.array_equal(clean, again)
    noisy = Device(circuit, "aer", 0.5, 2000, seed=1).sample(np.array([np.pi / 2]))
    assert 0.05 < (noisy[:, 1] != noisy[:, 2]).mean() < 0.5
