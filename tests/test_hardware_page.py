"""The examples of the page on real hardware, with local stand-ins for what needs an account."""

from __future__ import annotations

import re
import sys
import types
from concurrent.futures import Future
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import dimod
import numpy as np
import pytest
from qiskit.primitives import StatevectorSampler
from qubo_prune_solvers.function import CallableSolver
from reference import minimum, random_problem

from qubo_prune import solve
from qubo_prune.solver.registry import make_solver

PAGE = Path(__file__).parents[1] / "docs" / "hardware.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def block(holding: str) -> str:
    (found,) = [code for code in blocks() if holding in code]
    return found


def module(monkeypatch: pytest.MonkeyPatch, name: str, **names: object) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(names)
    monkeypatch.setitem(sys.modules, name, made)
    return made


class Composite(dimod.Sampler):
    """As an EmbeddingComposite around a processor looks from outside."""

    properties = None
    parameters = None

    def __init__(self, child: object) -> None:
        self.parameters = {"num_reads": [], "annealing_time": [], "chain_strength": []}

    def sample(self, bqm, num_reads=1, **parameters):
        found = dimod.ExactSolver().sample(bqm)
        return dimod.SampleSet.from_samples_bqm(
            (found.record.sample[:2], found.variables),
            bqm,
            chain_break_fraction=[0.0, 0.1],
            info={"timing": {"qpu_access_time": 100.0 * num_reads}},
        )


def test_every_block_of_the_page_is_run_here() -> None:
    assert len(blocks()) == 4


def test_an_annealer_is_named_by_a_function_and_given_as_an_object(monkeypatch, rng, capsys) -> None:
    module(monkeypatch, "dwave.system", DWaveSampler=lambda: None, EmbeddingComposite=Composite)
    exec(block("def embedded"), vars(module(monkeypatch, "my_annealer")))
    problem = random_problem(rng, 6, 3)
    names: dict[str, object] = {"problem": problem}
    exec(block("from my_annealer import embedded"), names)
    result = names["result"]
    assert result.energy == pytest.approx(minimum(problem))
    assert result.qpu_seconds == pytest.approx(0.01)
    assert "0.05" in capsys.readouterr().out
    named = solve(problem, "dimod:my_annealer:embedded", num_reads=100, annealing_time=20)
    assert named.qpu_seconds == pytest.approx(0.01)


class Nonlinear:
    """As LeapHybridNLSampler looks from outside: it leaves states in the model, some that miss a count."""

    def sample(self, model, time_limit=None):
        assert time_limit == 3.0
        (x,) = model.iter_decisions()
        points = np.array(list(product((0, 1), repeat=x.size())))
        model.states.resize(len(points))
        for place, point in enumerate(points):
            x.set_state(place, point)
        done: Future[SimpleNamespace] = Future()
        done.set_result(SimpleNamespace(model=model, info={"timing": {}}))
        return done


@pytest.mark.parametrize(("counts", "labels"), [(3, None), ([1, 2], [0, 0, 1, 1, 1, 0])])
def test_the_function_for_the_nonlinear_solver_is_a_solver(monkeypatch, rng, counts, labels) -> None:
    pytest.importorskip("dwave.optimization", reason="dwave-optimization is not installed")
    module(monkeypatch, "dwave.system", LeapHybridNLSampler=Nonlinear)
    mine = module(monkeypatch, "my_hybrid")
    exec(block("def nonlinear"), vars(mine))
    problem = random_problem(rng, 6, counts, labels)
    assert make_solver("callable:my_hybrid:nonlinear").capabilities.anytime
    result = solve(problem, CallableSolver(mine.nonlinear), time_limit=3.0)
    assert result.energy == pytest.approx(minimum(problem))
    assert 0 < result.ledger.feasible < 1


class Metered:
    """As SamplerV2 of qiskit-ibm-runtime looks from outside."""

    def __init__(self, mode: str) -> None:
        assert mode == "a backend"
        self.inner = StatevectorSampler(seed=1)

    def run(self, pubs, *, shots=None):
        job = self.inner.run(pubs, shots=shots)
        return SimpleNamespace(result=job.result, usage=lambda: 2)


def test_a_sampler_of_ibm_is_handed_to_qaoa(monkeypatch, rng, capsys) -> None:
    service = SimpleNamespace(least_busy=lambda operational, simulator: "a backend")
    module(monkeypatch, "qiskit_ibm_runtime", QiskitRuntimeService=lambda: service, SamplerV2=Metered)
    problem = random_problem(rng, 4, 2)
    names: dict[str, object] = {"problem": problem, "solve": solve}
    exec(block("qiskit_ibm_runtime"), names)
    assert names["result"].qpu_seconds == 2.0
    assert capsys.readouterr().out.rstrip().endswith("1.0 2.0")
