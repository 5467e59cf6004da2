"""What ``import qubo_prune`` offers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qubo_prune


def test_the_lists_of_public_names_agree():
    tree = ast.parse(Path(qubo_prune.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f"qubo_prune.{module}" for name, module in qubo_prune._HOME.items()}
    assert set(qubo_prune.__all__) == {*qubo_prune._HOME, "__version__"}


@pytest.mark.parametrize("name", qubo_prune.__all__)
def test_every_public_name_is_there(name):
    assert getattr(qubo_prune, name) is not None


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, qubo_prune; print([name for name in ('numpy', 'torch', 'numba') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SCRIPT = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from qubo_prune import BlockQubo, Budget, Capabilities, Chain, Report, SolveRequest, SolveResult, Solver, Status
from qubo_prune import prune, solve
from qubo_prune.methods import Decision, LayerMethod, LayerTask, Traits
from qubo_prune.methods.gram_blocks import GramBlocks
from qubo_prune.solver import single_answer
from qubo_prune_solvers.tabu import Tabu


@dataclass(frozen=True)
class Mine(Solver):
    capabilities: ClassVar[Capabilities] = Capabilities()
    sweeps: int = 10

    def solve(self, request: SolveRequest, /) -> SolveResult:
        assert request.warm_start is not None
        return single_answer(request.problem, request.warm_start, Status.FEASIBLE)


problem = BlockQubo([[1.0, 0.5], [0.5, 2.0]], num_pruned=1)
energy: float = solve(problem, Mine(sweeps=3)).energy
better: float = solve(problem, Tabu(steps=5), time_limit=1.0).energy
report: Report = prune(torch.nn.Linear(4, 4), torch.zeros(2, 4), density=0.5, solver=Mine())


@dataclass(frozen=True)
class Louder(LayerMethod):
    traits: ClassVar[Traits] = Traits("louder")
    power: float = 2.0

    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        return Decision(keep=task.highest(task.wanda().abs() ** self.power))


chain = Chain([Louder(power=3.0), GramBlocks(solver="tabu")])
again: Report = prune(
    torch.nn.Linear(4, 4), torch.ones(2, 4), method=chain, budget=Budget(pattern="layer"), allocation="uniform"
)
"""


@pytest.mark.slow
def test_a_users_script_is_clean_under_strict_types_and_a_misspelt_keyword_is_found(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed; it comes with the extra 'lint'")
    (tmp_path / "good.py").write_text(SCRIPT)
    (tmp_path / "bad.py").write_text(SCRIPT.replace('allocation="uniform"', 'alocation="uniform"'))
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "good.py", "bad.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "good.py" not in done.stdout
    assert 'Unexpected keyword argument "alocation" for "prune"; did you mean "allocation"?' in done.stdout
    assert done.stdout.strip().endswith("Found 1 error in 1 file (checked 2 source files)")


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'prunee'"):
        _ = qubo_prune.prunee
