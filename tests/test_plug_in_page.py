"""Every command and every file of the page on plug-ins runs as printed, on a tiny model and a tiny suite.

OpenJij is not needed here: a stand-in with its one call anneals by dimod's sampler. The example is built, installed and
run with the real one by ``tests/test_stranger.py``, ``pip install`` included.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_suite
from reference import random_problem
from typer.testing import CliRunner

from qubo_prune.bench.runs import RunTable
from qubo_prune.cli import app
from qubo_prune.files.cache import VARIABLE
from qubo_prune.formats.text import read_problem, write_problem
from qubo_prune.masks.keep import KeepMasks

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "plug-in.md").read_text(encoding="utf-8")
EXAMPLE = DOCS / "examples" / "qubo-prune-openjij"
COMMANDS = re.findall(r"^    (?:PYTHONPATH=\. )?(qubo-prune .*)$", PAGE, flags=re.M)
SOLVERS = [line.replace("\\|", "|") for line in re.findall(r"^\|.*\| `(--solver .*)` \|$", PAGE, flags=re.M)]
#: What is given beside a command of the page.
SMALL = {
    "prune": "--calibration text.txt --samples 2 --sequence-length 16 --block-size 8 --include *.1.mlp.*",
    "bench": "--seeds 1 --workers 1 --backend sequential",
}


#: OpenJij's module, as far as the example calls it.
STAND_IN = """
import dwave.samplers


class SASampler:
    def sample_qubo(self, upper, beta_min, beta_max, **arguments):
        sampler = dwave.samplers.SimulatedAnnealingSampler()
        return sampler.sample_qubo(upper, beta_range=(beta_min, beta_max), **arguments)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng) -> Path:
    """The page's files, the example with its entry point, a problem, a model and a text, in the current folder."""
    import qubo_prune.bench as bench
    from qubo_prune.bench import making, suites

    for code in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        if code.startswith("# my_"):
            (tmp_path / code.split()[1]).write_text(code, encoding="utf-8")
    write_problem(random_problem(rng, 8, 3), tmp_path / "problem.json")
    tiny.save(tmp_path / "tiny-model")
    (tmp_path / "text.txt").write_text(tiny.text(), encoding="utf-8")
    info = tmp_path / "qubo_prune_openjij-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: qubo-prune-openjij\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[qubo_prune.solvers]\nopenjij = qubo_prune_openjij:OpenJij\n")
    (tmp_path / "openjij.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, EXAMPLE):
        monkeypatch.syspath_prepend(str(place))
    for name in ("my_annealer", "my_optimizer", "qubo_prune_openjij", "openjij"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(bench, "CACHE", tmp_path / "cache")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setitem(suites.SUITES, "smoke", tiny_suite.FEW)
    monkeypatch.setattr(
        making, "make_suite", lambda folder, *_, **__: tiny_suite.made(folder, tiny_suite.FEW, proof_time=0.2)
    )
    return tmp_path


def run(line: str) -> str:
    words = shlex.split(line.replace("smollm2-135m", "tiny-model"))[1:]
    result = CliRunner().invoke(app, [*words, *shlex.split(SMALL.get(words[0], ""))])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 0, result.stdout + result.stderr
    return result.stdout


def test_the_page_begins_with_ten_lines_and_ends_with_the_benchmark() -> None:
    first = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[0].splitlines()
    code = [line for line in first if line.strip() and not line.startswith("#")]
    assert len(code) <= 10
    assert code[0] == "import numpy as np"
    assert COMMANDS[-1].startswith("qubo-prune bench solvers --suite smoke --solvers greedy,tabu,")
    assert len(COMMANDS) >= 7
    assert len(SOLVERS) == 4


@pytest.mark.parametrize("given", SOLVERS)
def test_what_the_table_names_solves(here: Path, given: str) -> None:
    printed = run(f"qubo-prune solve problem.json {given} --output answer.json")
    assert "FEASIBLE" in printed or "OPTIMUM" in printed or "TIME_LIMIT" in printed
    assert (here / "answer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run_as_printed(here: Path, line: str) -> None:
    printed = run(line)
    words = shlex.split(line)
    if words[1] == "check-solver":
        assert printed.rstrip().endswith("passed.")
    elif words[1] == "solvers":
        assert "openjij" in printed
    elif words[1] == "prune":
        assert KeepMasks.load(here / "pruned" / "masks.safetensors")
    elif words[1] == "solve":
        assert f"of {read_problem(here / 'problem.json').num_variables}" in printed
    else:
        assert words[1] == "bench"
        rows = RunTable(here / "run").rows()
        assert {"greedy", "tabu", "openjij"} <= {row.solver for row in rows}
        assert not [row for row in rows if row.status == "FAILED"]
        assert (here / "run" / "report.html").is_file()


@pytest.mark.slow
def test_a_function_is_an_entrant_of_the_benchmark_as_the_page_writes_it(here: Path) -> None:
    (entrant,) = re.findall(r"`(callable:\S+\(\S+\))`", PAGE)
    # it does not watch the clock; within so long it ends by itself
    line = COMMANDS[-1].replace("openjij", f"'{entrant}'").replace("100ms,1s", "30s")
    run(line)
    rows: list[Any] = [row for row in RunTable(here / "run").rows() if row.solver == entrant]
    assert rows
    assert not [row for row in rows if row.status == "FAILED"]
