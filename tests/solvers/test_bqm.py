from __future__ import annotations

from itertools import product

import dimod
import numpy as np
import pytest
from qubo_prune_solvers._bqm import assignments_of, beta_range, initial_states, model_of, small_seed
from reference import energy, random_problem

from qubo_prune.errors import InputError
from qubo_prune.problem import BlockQubo
from qubo_prune.solver import SolveRequest


def test_the_model_has_the_energies_of_the_free_problem(rng):
    problem = BlockQubo(rng.normal(size=(4, 4)), None, 2.5)
    model = model_of(problem)
    assert list(model.variables) == [0, 1, 2, 3]
    for x in product((0, 1), repeat=4):
        assert model.energy(dict(enumerate(x))) == pytest.approx(energy(problem, np.array(x)), rel=1e-12)


def test_zero_couplings_are_left_out():
    assert model_of(BlockQubo(np.eye(3), None)).num_interactions == 0


def test_a_problem_with_counts_is_refused(rng):
    with pytest.raises(InputError, match=r"counts.*qubo_prune\.solve"):
        model_of(random_problem(rng, 4, 2))


def test_samples_are_read_whatever_their_order_and_kind():
    wanted = np.array([[True, False, False], [True, True, False]])
    spins = dimod.SampleSet.from_samples(([[-1, 1, -1], [-1, 1, 1]], [2, 0, 1]), vartype="SPIN", energy=[0, 0])
    bits = dimod.SampleSet.from_samples(([[0, 1, 0], [0, 1, 1]], [2, 0, 1]), vartype="BINARY", energy=[0, 0])
    assert np.array_equal(assignments_of(spins, 3), wanted)
    assert np.array_equal(assignments_of(bits, 3), wanted)


def test_initial_states_reach_a_sampler_as_they_are():
    starts = np.array([[True, True, True], [False, False, False], [True, False, True]])
    sampler = dimod.IdentitySampler()
    for vartype in ("BINARY", "SPIN"):
        model = model_of(BlockQubo(np.zeros((3, 3)), None)).change_vartype(vartype, inplace=False)
        for start in starts:
            samples = sampler.sample(model, initial_states=initial_states(start[None, :]))
            assert assignments_of(samples, 3).tolist() == [start.tolist()]


def test_seeds_fit_samplers_and_differ():
    seeds = [small_seed(seed) for seed in (0, 1, 2**62)]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_betas_scale_with_the_energies(rng, scale):
    q = rng.normal(size=(6, 6))
    plain, scaled = (beta_range(SolveRequest(BlockQubo(factor * q, None))) for factor in (1.0, scale))
    assert scaled == pytest.approx(tuple(beta / scale for beta in plain), rel=1e-9)
    assert plain[1] == pytest.approx(1000 * plain[0])


def test_betas_are_those_of_the_request_where_it_has_temperatures():
    assert beta_range(SolveRequest(BlockQubo(np.eye(2), None), temperatures=(4.0, 0.5))) == (0.25, 2.0)


def test_samples_that_miss_a_variable_are_named():
    renamed = dimod.SampleSet.from_samples(([[0, 1]], ["a", "b"]), vartype="BINARY", energy=[0])
    partial = dimod.SampleSet.from_samples(([[0]], [1]), vartype="BINARY", energy=[0])
    with pytest.raises(ValueError, match=r"Mine answered for the variables \['a', 'b'\], without \[0, 1\]"):
        assignments_of(renamed, 2, "Mine")
    with pytest.raises(ValueError, match=r"variables \[1\], without \[0\]; a value for each of 0 to 1"):
        assignments_of(partial, 2, "Mine")


def test_further_variables_are_left_out():
    more = dimod.SampleSet.from_samples(([[1, 0, 1]], ["slack", 1, 0]), vartype="BINARY", energy=[0])
    assert assignments_of(more, 2, "Mine").tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("values", "vartype", "message"),
    [
        ([[-1, 1]], "BINARY", "only 0 and 1"),
        ([[0, 1]], "SPIN", r"only -1 and \+1"),
        ([[2, 1]], "BINARY", "only 0 and 1"),
    ],
)
def test_samples_are_read_by_the_type_that_they_declare(values, vartype, message):
    samples = dimod.SampleSet.from_samples(([[1, 1]], [0, 1]), vartype=vartype, energy=[0])
    samples.record.sample[:] = values
    with pytest.raises(ValueError, match=f"Mine answered with .*{message}"):
        assignments_of(samples, 2, "Mine")
