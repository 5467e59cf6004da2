from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
from qiskit.primitives import StatevectorSampler
from qubo_prune_solvers.qaoa import Qaoa
from reference import energy, feasible_points, minimum, random_feasible, random_problem

from qubo_prune import plugins, solve
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.solver import SolveRequest, Status
from qubo_prune.solver.registry import make_solver
from qubo_prune.testing import SolverContract


def gram_problem(n: int, seed: int = 7) -> BlockQubo:
    """Half of n weights to prune on correlated inputs, as in a layer."""
    rng = np.random.default_rng(seed)
    mixing, weights = rng.normal(size=(n // 2, n)), rng.normal(size=n)
    gram = mixing.T @ mixing / n + 0.1 * np.eye(n)
    return BlockQubo(weights[:, None] * gram * weights[None, :] / 2, n // 2)


@pytest.mark.parametrize(
    ("n", "counts", "labels"),
    [
        (0, 0, None),
        (1, 0, None),
        (1, 1, None),
        (2, 1, None),
        (5, 0, None),
        (5, 5, None),
        (6, 3, None),
        (7, (2, 1), [0, 1, 0, 0, 1, 1, 0]),
        (6, (3, 0, 1), [0, 0, 0, 1, 1, 2]),
    ],
)
@pytest.mark.parametrize("ansatz", ["xy", "penalty"])
def test_small_problems_are_solved_to_the_optimum(rng, n, counts, labels, ansatz):
    problem = random_problem(rng, n, counts, labels)
    result = Qaoa(ansatz=ansatz).solve(SolveRequest(problem))
    assert all(problem.is_feasible(x) for x in result.assignments)
    assert result.energy == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("settings", [{}, {"mixer": "ring"}, {"initial": "warm_start"}, {"layers": 1}])
def test_the_xy_ansatz_never_misses_a_count(rng, settings):
    problem = random_problem(rng, 9, (2, 3), [0, 1, 0, 1, 0, 1, 0, 1, 1])
    result = Qaoa(**settings).solve(SolveRequest(problem, random_feasible(rng, problem)))
    assert result.info["feasible"] == 1.0
    assert all(problem.is_feasible(x) for x in result.assignments)


def test_samples_are_much_better_than_random_assignments():
    problem = gram_problem(12)
    energies = np.array([energy(problem, x) for x in feasible_points(problem)])
    result = solve(problem, "qaoa", seed=3, polish=False)
    assert result.info["mean_energy"] < 0.6 * energies.mean()
    assert result.energy == pytest.approx(energies.min())
    assert result.info["best_share"] > 4 / len(energies)


def test_a_ring_mixes_less_than_all_pairs_and_takes_fewer_gates():
    problem = gram_problem(10)
    complete, ring = (Qaoa(mixer=mixer).solve(SolveRequest(problem)).info for mixer in ("complete", "ring"))
    assert complete["mean_energy"] < ring["mean_energy"]
    assert ring["two_qubit_gates"] < complete["two_qubit_gates"]


def test_more_layers_do_not_hurt():
    problem = gram_problem(8)
    means = [Qaoa(layers=p, shots=4000).solve(SolveRequest(problem)).info["mean_energy"] for p in (1, 3)]
    assert means[1] < means[0]


def test_the_penalty_ansatz_beats_random_assignments_where_it_meets_the_counts():
    problem = gram_problem(10)
    energies = np.array([energy(problem, x) for x in feasible_points(problem)])
    info = solve(problem, "qaoa", ansatz="penalty", polish=False).info
    # of all 1024 assignments 252 meet the count, so that chance would be a quarter
    assert 0.05 < info["feasible"] < 1
    assert info["mean_energy"] < 0.7 * energies.mean()


def test_a_large_penalty_drowns_the_energies():
    problem = gram_problem(8)
    estimated, large = (Qaoa(ansatz="penalty", strength=p).solve(SolveRequest(problem)).info for p in (None, 1e4))
    assert estimated["mean_energy"] < large["mean_energy"]


def test_where_no_sample_meets_the_counts_all_are_mended():
    class Empty:
        """Measures nothing but zeros."""

        def run(self, pubs, *, shots):
            circuit = pubs[0][0].remove_final_measurements(inplace=False).copy_empty_like()
            circuit.measure_all()
            return StatevectorSampler(seed=1).run([circuit], shots=shots)

    problem = gram_problem(6)
    result = Qaoa(sampler=Empty(), shots=10).solve(SolveRequest(problem))
    assert problem.is_feasible(result.assignment)
    assert result.info["feasible"] == 0
    assert "repaired" in result.info["instead"]


def test_it_begins_at_the_warm_start_if_told_to(rng):
    problem = gram_problem(8)
    best = feasible_points(problem)[np.argmin([energy(problem, x) for x in feasible_points(problem)])]
    result = Qaoa(initial="warm_start", maxiter=0).solve(SolveRequest(problem, best))
    assert result.info["initial"] == "warm_start"
    assert len(result.info["betas"]) == 3
    assert result.energy == pytest.approx(minimum(problem))
    # and says so if there is none
    assert Qaoa(initial="warm_start").solve(SolveRequest(problem)).info["initial"] == "dicke"


def test_angles_can_be_trained_on_samples_alone():
    problem = gram_problem(6)
    result = Qaoa(training="samples", layers=1, maxiter=10).solve(SolveRequest(problem))
    assert result.info["circuit_evaluations"] == result.info["iterations"] + 1
    assert result.info["iterations"] >= 20
    assert result.energy == pytest.approx(minimum(problem))
    assert Qaoa(layers=1).solve(SolveRequest(problem)).info["circuit_evaluations"] == 1


def test_any_sampler_object_serves():
    problem = gram_problem(6)
    result = Qaoa(sampler=StatevectorSampler(seed=5)).solve(SolveRequest(problem))
    assert result.energy == pytest.approx(minimum(problem))


class Metered:
    """A sampler whose jobs tell their use, as those of IBM's runtime do."""

    def __init__(self, seconds: object) -> None:
        self.inner, self.seconds, self.jobs = StatevectorSampler(seed=5), seconds, 0

    def run(self, pubs, *, shots=None):
        self.jobs += 1
        job = self.inner.run(pubs, shots=shots)
        return SimpleNamespace(result=job.result, usage=lambda: self.seconds)


def test_the_time_of_the_processor_is_the_sum_over_the_jobs():
    sampler = Metered(1.5)
    result = solve(gram_problem(4), Qaoa(sampler=sampler, training="samples", layers=1, maxiter=4, shots=64))
    assert sampler.jobs > 1
    assert result.qpu_seconds == 1.5 * sampler.jobs == 1.5 * result.info["circuit_evaluations"]


@pytest.mark.parametrize("told", [None, "soon"])
def test_jobs_that_tell_no_use_count_for_nothing(told):
    assert Qaoa(sampler=Metered(told), layers=1).solve(SolveRequest(gram_problem(4))).qpu_seconds is None
    assert Qaoa(layers=1).solve(SolveRequest(gram_problem(4))).qpu_seconds is None


def test_noise_makes_samples_worse_and_miss_counts():
    pytest.importorskip("qiskit_aer")
    problem = gram_problem(6)
    clean, noisy = (Qaoa(sampler="aer", noise=noise).solve(SolveRequest(problem)) for noise in (0.0, 0.05))
    assert clean.info["feasible"] == 1.0
    assert noisy.info["feasible"] < 1
    assert clean.info["mean_energy"] < noisy.info["mean_energy"]
    assert all(problem.is_feasible(x) for x in noisy.assignments)


def test_circuits_and_samples_are_described():
    info = Qaoa(layers=2, shots=100).solve(SolveRequest(gram_problem(6))).info
    assert (info["layers"], info["shots"], info["training"]) == (2, 100, "simulation")
    assert len(info["gammas"]) == len(info["betas"]) == 2
    assert info["two_qubit_gates"] > 2 * 2 * 15
    assert info["depth"] > 20
    assert info["best_energy"] <= info["mean_energy"]
    assert 0 < info["best_share"] <= 1


def test_a_seed_decides_the_samples():
    problem = gram_problem(8)
    one, same, other = (Qaoa(shots=50).solve(SolveRequest(problem, seed=seed)) for seed in (2**62, 2**62, 1))
    assert np.array_equal(one.assignments, same.assignments)
    assert one.info == same.info
    assert not np.array_equal(one.assignments, other.assignments)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("ansatz", ["xy", "penalty"])
def test_huge_and_tiny_energies_are_solved_alike(scale, ansatz):
    plain = gram_problem(6)
    result = Qaoa(ansatz=ansatz).solve(SolveRequest(BlockQubo(scale * plain.dense(), 3)))
    assert result.energy == pytest.approx(scale * minimum(plain), rel=1e-9)


@pytest.mark.parametrize("ansatz", ["xy", "penalty"])
def test_equal_energies_are_no_trouble(ansatz):
    for q in (np.zeros((5, 5)), np.eye(5) / 3):
        result = Qaoa(ansatz=ansatz, layers=1).solve(SolveRequest(BlockQubo(q, 2)))
        assert result.energy == pytest.approx(2 * q[0, 0])


def test_factor_form_is_solved_alike(rng):
    problem = BlockQubo(FactorForm(rng.normal(size=6), rng.normal(size=(6, 2))), 3)
    assert solve(problem, "qaoa").energy == pytest.approx(minimum(problem))


def test_a_problem_without_counts_needs_the_penalty_ansatz(rng):
    problem = BlockQubo(rng.normal(size=(5, 5)), None)
    with pytest.raises(InputError, match=r"no counts.*ansatz='penalty'"):
        Qaoa().solve(SolveRequest(problem))
    best = min(minimum(BlockQubo(problem.dense(), m)) for m in range(6))
    assert Qaoa(ansatz="penalty").solve(SolveRequest(problem)).energy == pytest.approx(best)


def test_large_blocks_are_refused_with_advice():
    problem = BlockQubo(np.eye(15), 7)
    for ask in (lambda: solve(problem, "qaoa"), lambda: Qaoa().solve(SolveRequest(problem))):
        with pytest.raises(InputError, match=r"14 .*has 15.*'greedy'"):
            ask()


@pytest.mark.parametrize("ansatz", ["xy", "penalty"])
def test_the_time_limit_ends_the_search_and_spares_the_sampler(ansatz):
    problem = gram_problem(14)
    began = time.perf_counter()
    result = solve(problem, "qaoa", ansatz=ansatz, layers=3, maxiter=10**6, time_limit=0.3, polish=False)
    assert time.perf_counter() - began < 10
    assert result.status is Status.TIME_LIMIT
    assert result.info["iterations"] >= 1
    assert result.info["circuit_evaluations"] == 0
    assert "from the simulation" in result.info["sampled"]
    assert problem.is_feasible(result.assignment)


def test_with_time_enough_the_sampler_has_the_last_word():
    info = solve(gram_problem(6), "qaoa", time_limit=60).info
    assert info["circuit_evaluations"] == 1
    assert "sampled" not in info


def test_whoever_cannot_stop_does_not_declare_to():
    assert Qaoa().capabilities.anytime
    assert Qaoa(sampler="aer").capabilities.anytime
    assert not Qaoa(sampler=StatevectorSampler()).capabilities.anytime
    assert not Qaoa(training="samples").capabilities.anytime


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ansatz": "xyz"}, r"ansatz is 'xyz' \(did you mean 'xy'\?\); it can be xy, penalty"),
        ({"mixer": "completed"}, "did you mean 'complete'"),
        ({"initial": "random"}, "it can be dicke, warm_start"),
        ({"training": "sample"}, "did you mean 'samples'"),
        ({"sampler": "aerial"}, "did you mean 'aer'"),
        ({"noise": 0.1}, "only sampler='aer' has"),
        ({"initial": "warm_start", "ansatz": "penalty"}, "needs ansatz='xy'"),
        ({"layers": 0}, "layers is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Qaoa(**settings)


def test_the_packages_to_install_are_named(monkeypatch):
    found = plugins._importable
    monkeypatch.setattr(plugins, "_importable", lambda module: module not in ("qiskit", "qiskit_aer") and found(module))
    with pytest.raises(SolverError, match="'qaoa' needs a package that is missing: pip install qiskit"):
        make_solver("qaoa")
    with pytest.raises(SolverError, match="pip install qiskit-aer"):
        Qaoa(sampler="aer").solve(SolveRequest(gram_problem(4)))


class TestContract(SolverContract):
    @pytest.fixture
    def solver(self):
        return Qaoa(layers=1, shots=256, maxiter=20)
