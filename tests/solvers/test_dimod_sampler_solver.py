from __future__ import annotations

import doctest
import sys
import time
import types
import typing

import dimod
import dwave.samplers
import numpy as np
import pytest
from qubo_prune_solvers import dimod_sampler
from qubo_prune_solvers.dimod_sampler import DimodSampler
from reference import minimum, random_feasible, random_problem

from qubo_prune import plugins, solve
from qubo_prune.errors import InputError, SolverError
from qubo_prune.problem import BlockQubo, FactorForm
from qubo_prune.report.solve import Answer
from qubo_prune.solver import SolveRequest, Status
from qubo_prune.solver.interface import result_facts
from qubo_prune.solver.registry import make_solver
from qubo_prune.testing import SolverContract


class Recording(dimod.Sampler):
    """Takes what it is told to take and notes it; answers with zeros."""

    properties = None
    parameters = None

    def __init__(self, *takes: str) -> None:
        self.parameters = {name: [] for name in takes}
        self.seen: dict[str, object] = {}

    def sample(self, bqm, **parameters):
        self.seen = parameters
        return dimod.SampleSet.from_samples_bqm(np.zeros((1, len(bqm)), dtype=np.int8), bqm)


def request_of(problem, **fields):
    return SolveRequest(BlockQubo(problem.dense(), None), **fields)


@pytest.mark.parametrize(
    "sampler",
    [
        dimod.ExactSolver(),
        dwave.samplers.SimulatedAnnealingSampler(),
        dwave.samplers.TabuSampler(),
        dwave.samplers.SteepestDescentSampler(),
        dwave.samplers.PathIntegralAnnealingSampler(),
        dwave.samplers.TreeDecompositionSolver(),
        dimod.TrackingComposite(dimod.ExactSolver()),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_samplers_of_all_kinds_plug_in(rng, sampler):
    problem = random_problem(rng, 8, 4)
    result = solve(problem, DimodSampler(sampler), seed=2**62)
    assert problem.is_feasible(result.assignment)
    assert result.energy == pytest.approx(minimum(problem), rel=1e-9)


@pytest.mark.parametrize(
    ("n", "counts", "labels"), [(0, 0, None), (1, 0, None), (1, 1, None), (6, 6, None), (8, (2, 1), [0, 1] * 4)]
)
def test_small_problems(rng, n, counts, labels):
    problem = random_problem(rng, n, counts, labels)
    result = solve(problem, DimodSampler(dimod.ExactSolver()))
    assert result.energy == pytest.approx(minimum(problem), rel=1e-9, abs=1e-9)


def test_factor_form_is_solved_alike(rng):
    problem = BlockQubo(FactorForm(rng.normal(size=8), rng.normal(size=(8, 2))), 3)
    assert solve(problem, "dimod:dimod:ExactSolver").energy == pytest.approx(minimum(problem), rel=1e-9)


def test_a_sampler_with_constraints_gets_the_counts(rng):
    problem = random_problem(rng, 7, (1, 2), [0, 0, 0, 1, 1, 1, 1])
    solver = DimodSampler(dimod.ExactCQMSolver())
    assert solver.capabilities.cardinality
    result = solve(problem, solver, polish=False)
    assert result.energy == pytest.approx(minimum(problem), rel=1e-9)


def test_a_sampler_is_passed_what_it_takes(rng):
    problem = random_problem(rng, 5, 2)
    warm = random_feasible(rng, problem)
    everything = ("seed", "num_reads", "beta_range", "beta_min", "beta_max", "initial_states", "time_limit")
    sampler = Recording(*everything, "other")
    DimodSampler(sampler).solve(request_of(problem, warm_start=warm, time_limit=7.0, temperatures=(4.0, 0.5)))
    seen = dict(sampler.seen)
    assert np.array_equal(seen.pop("initial_states")[0], warm[None, :])
    assert 0 <= seen.pop("seed") < 2**31
    wanted = {"num_reads": 10, "beta_range": (0.25, 2.0), "beta_min": 0.25, "beta_max": 2.0, "time_limit": 7.0}
    assert seen == wanted
    few = Recording("seed")
    DimodSampler(few).solve(request_of(problem, warm_start=warm, time_limit=7.0))
    assert set(few.seen) == {"seed"}


def test_settings_come_first(rng):
    sampler = Recording("seed", "num_reads", "beta_min", "beta_max")
    DimodSampler(sampler, {"num_reads": 3, "beta_min": 0.1}).solve(request_of(random_problem(rng, 5, 2)))
    assert set(sampler.seen) == {"seed", "num_reads", "beta_min"}
    assert sampler.seen["num_reads"] == 3


def test_arguments_that_only_the_signature_names_are_found_too(rng):
    class Forgetful:
        def __init__(self):
            self.parameters, self.got = {"beta": []}, None

        def sample(self, bqm, num_reads=1, seed=None, **parameters):
            self.got = (num_reads, seed, parameters)
            return dimod.SampleSet.from_samples_bqm(np.zeros((1, len(bqm)), dtype=np.int8), bqm)

    sampler = Forgetful()
    DimodSampler(sampler, {"beta": 2.0}).solve(request_of(random_problem(rng, 4, 2)))
    assert sampler.got[0] == 10
    assert sampler.got[1] is not None
    assert sampler.got[2] == {"beta": 2.0}


def test_the_time_limit_is_translated():
    tabu, annealer = dwave.samplers.TabuSampler(), dwave.samplers.SimulatedAnnealingSampler()
    assert DimodSampler(tabu)._limit(2.0) == {"timeout": 200}
    assert DimodSampler(tabu, {"num_reads": 4})._limit(2.0) == {"timeout": 500}
    assert list(DimodSampler(annealer)._limit(2.0)) == ["interrupt_function"]
    assert not DimodSampler(annealer)._limit(2.0)["interrupt_function"]()
    assert DimodSampler(annealer)._limit(None) == {}
    assert DimodSampler(Recording("timeout"))._limit(2.0) == {}


def test_capabilities_are_those_of_the_sampler():
    tabu = DimodSampler(dwave.samplers.TabuSampler()).capabilities
    assert (tabu.anytime, tabu.stochastic, tabu.cardinality) == (True, True, False)
    exact = DimodSampler(dimod.ExactSolver()).capabilities
    assert (exact.anytime, exact.stochastic, exact.cardinality) == (False, False, False)
    assert DimodSampler.capabilities.requires == (("dimod", "dimod"),)


def test_a_sampler_that_takes_no_limit_is_ended():
    class Sleeping:
        def sample(self, bqm):
            time.sleep(60)

    start = [True, False, False, True]
    result = solve(BlockQubo(np.eye(4), 2), DimodSampler(Sleeping()), time_limit=0.5, warm_start=start)
    assert result.status is Status.OVERRAN
    assert result.assignment.tolist() == start


def test_the_limit_is_kept_by_those_who_take_it(rng):
    began = time.perf_counter()
    problem = random_problem(rng, 40, 20)
    solve(problem, "dimod:dwave.samplers:TabuSampler", time_limit=0.5, num_reads=5)
    solve(problem, "dimod:dwave.samplers:SimulatedAnnealingSampler", time_limit=0.2, num_reads=10**4)
    assert time.perf_counter() - began < 10


def test_the_seed_decides(rng):
    problem = random_problem(rng, 40, 20)
    path = "dimod:dwave.samplers:SimulatedAnnealingSampler"
    one, same, other = (solve(problem, path, seed=seed, num_sweeps=2, num_answers=5) for seed in (1, 1, 2))
    assert np.array_equal(one.assignments, same.assignments)
    assert not np.array_equal(one.assignments, other.assignments)


def test_settings_go_to_the_constructor_if_it_names_them(monkeypatch, rng):
    class Configured(Recording):
        def __init__(self, region):
            super().__init__("num_reads")
            self.region = region

    stranger = types.ModuleType("stranger")
    stranger.Configured, stranger.made, stranger.number = Configured, Configured("here"), 3
    stranger.make = lambda: Configured("by function")
    monkeypatch.setitem(sys.modules, "stranger", stranger)
    solver = make_solver("dimod:stranger:Configured", region="eu", num_reads=2)
    assert (solver.sampler.region, solver.settings) == ("eu", {"num_reads": 2})
    assert make_solver("dimod:stranger:made", num_reads=2).sampler.region == "here"
    assert make_solver("dimod:stranger:make").sampler.region == "by function"
    with pytest.raises(InputError, match=r"'dimod:stranger:Configured' cannot be made.*region"):
        make_solver("dimod:stranger:Configured")
    with pytest.raises(InputError, match="3 is no dimod sampler"):
        make_solver("dimod:stranger:number")


def test_unknown_settings_give_near_ones():
    with pytest.raises(TypeError, match=r"'dimod:TabuSampler' has no setting 'timeouts' \(did you mean 'timeout'\?\)"):
        make_solver("dimod:dwave.samplers:TabuSampler", timeouts=3)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dwave.samplers", None)
    with pytest.raises(
        SolverError, match=r"'dimod:dwave\.samplers:TabuSampler'.*cannot be loaded: ModuleNotFoundError"
    ):
        make_solver("dimod:dwave.samplers:TabuSampler")
    assert plugins._importable("dimod")


def test_the_example_of_the_documentation_runs():
    assert doctest.testmod(dimod_sampler).failed == 0


class TestContract(SolverContract):
    @pytest.fixture
    def solver(self):
        return DimodSampler(dwave.samplers.SimulatedAnnealingSampler())


class Saying(dimod.Sampler):
    """Answers with what it is given."""

    properties = None
    parameters = None

    def __init__(self, answer) -> None:
        self.parameters, self._answer = {}, answer

    def sample(self, bqm, **parameters):
        return self._answer(bqm)


def from_samples(values, names, vartype="BINARY"):
    return dimod.SampleSet.from_samples((values, names), vartype=vartype, energy=[0.0] * len(values))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda bqm: from_samples(np.zeros((0, 6)), list(range(6))), "Saying answered with no samples"),
        (lambda bqm: from_samples([[0, 1, 1]], [0, 1, 2]), r"Saying answered for the variables .* without \[3, 4, 5\]"),
        (lambda bqm: from_samples([[0] * 6], list("abcdef")), "Saying answered for the variables"),
        (lambda bqm: None, "Saying answered with a NoneType instead of a dimod.SampleSet"),
        (lambda bqm: {0: 1}, "Saying answered with a dict"),
    ],
)
def test_a_sampler_that_gives_no_or_other_answers_is_named(rng, answer, message):
    problem = random_problem(rng, 6, 3)
    with pytest.raises(SolverError, match=message):
        solve(problem, DimodSampler(Saying(answer)))


def test_betas_that_are_set_are_in_the_callers_units(rng):
    sampler = Recording("beta_range", "beta_min")
    scale = 2.0**100
    problem = BlockQubo(rng.normal(size=(4, 4)) * scale, 2)
    solve(problem, DimodSampler(sampler, {"beta_range": [1 / scale, 2 / scale], "beta_min": 1 / scale}))
    seen = dict(sampler.seen)
    unit = seen["beta_min"] * scale
    assert seen["beta_range"] == [unit / scale, 2 * unit / scale]
    assert 2.0**90 < unit < 2.0**110


# --- hardware -------------------------------------------------------------------------------------------


TIMING = {
    "qpu_sampling_time": 1200.0,
    "qpu_anneal_time_per_sample": 20.0,
    "qpu_readout_time_per_sample": 40.0,
    "qpu_access_time": 16500.0,
    "qpu_access_overhead_time": 900.0,
    "qpu_programming_time": 15300.0,
    "qpu_delay_time_per_sample": 20.0,
    "post_processing_overhead_time": 300.0,
    "total_post_processing_time": 300.0,
}


class Processor(dimod.Sampler):
    """Answers as D-Wave's do behind an EmbeddingComposite, in information, fields and repeated reads."""

    properties = None
    parameters: typing.ClassVar = {"num_reads": []}

    def __init__(self, info: dict, bad: bool = False) -> None:
        self.info, self.bad = info, bad

    def sample(self, bqm, num_reads=1):
        found = dimod.ExactSolver().sample(bqm)
        rows = found.record.sample[np.argsort(found.record.energy)][-3:] if self.bad else found.record.sample[:3]
        return dimod.SampleSet.from_samples_bqm(
            (rows, found.variables),
            bqm,
            num_occurrences=[3, 1, 1],
            chain_break_fraction=[0.0, 0.5, 0.25],
            info=self.info,
        )


def test_the_time_of_the_processor_and_broken_chains_are_told(rng):
    problem = random_problem(rng, 5, 2)
    result = solve(problem, DimodSampler(Processor({"timing": TIMING, "problem_id": "an id"})))
    assert result.qpu_seconds == pytest.approx(0.0165)
    assert result.info["timing"] == TIMING
    assert result.info["chain_break_fraction"] == pytest.approx(0.15)
    assert "problem_id" not in result.info
    assert "on hardware" in str(result_facts(result))
    assert Answer(problem, result, "here", {}).to_dict()["qpu_seconds"] == pytest.approx(0.0165)


def test_hybrid_samplers_tell_their_times_without_a_folder(rng):
    info = {"qpu_access_time": 41990, "charge_time": 2991424, "run_time": 2991424, "problem_id": "x", "time_limit": 3}
    result = solve(random_problem(rng, 5, 2), DimodSampler(Processor(info)))
    assert result.qpu_seconds == pytest.approx(0.04199)
    assert result.info["timing"] == {"qpu_access_time": 41990, "charge_time": 2991424, "run_time": 2991424}


def test_time_that_was_used_for_an_answer_that_is_not_taken_is_told_too(rng):
    problem = random_problem(rng, 5, 2)
    best = solve(problem, "exact").assignment
    result = solve(problem, DimodSampler(Processor({"timing": TIMING}, bad=True)), warm_start=best, polish=False)
    assert result.status is Status.NOT_IMPROVED
    assert result.qpu_seconds == pytest.approx(0.0165)


def test_samplers_without_hardware_tell_of_none(rng):
    result = solve(random_problem(rng, 5, 2), DimodSampler(dimod.ExactSolver()))
    assert result.qpu_seconds is None
    assert not {"timing", "chain_break_fraction", "qpu_seconds"} & result.info.keys()
    # the times of a simulation are in seconds, nanoseconds or whatever it likes, and never the processor's
    simulated = DimodSampler(dwave.samplers.SimulatedAnnealingSampler())
    assert solve(random_problem(rng, 5, 2), simulated).qpu_seconds is None
