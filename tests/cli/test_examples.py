"""The examples of every ``--help`` run as printed, on tiny models, suites and data of the names that they use.

What makes a command large stands in ``SMALL``, and is given as well: windows of text, blocks, images. Where an example
names the real model of the demo, a tiny one takes its place.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import digits
import numpy as np
import pictures
import pytest
import tiny
import tiny_suite
import typer
from reference import random_problem
from typer.testing import CliRunner

from qubo_prune.bench.suites import Family
from qubo_prune.cli import app
from qubo_prune.files.cache import VARIABLE
from qubo_prune.formats.text import write_problem

TEXTS = "--calibration novel.txt --sequence-length 16 "
DESCENT = "--loss-set samples=8 --loss-set scoring_samples=8 --loss-set block_size=32 "
DIGITS = "--data idx --cache networks --loss-set samples=100 --loss-set scoring_samples=100 --loss-set block_size=64 "
#: What is given beside an example, by command.
SMALL = {
    "prune": TEXTS + "--samples 4",
    "compare": TEXTS + "--samples 4 --eval-samples 3 --text novel.txt",
    "eval": "--text novel.txt --sequence-length 16",
    "bench blocks": TEXTS
    + "--model wide-model --samples 4 --eval-samples 3 --text novel.txt "
    + "--solvers greedy --sizes 8 --block-times 10ms --include *.1.mlp.down_proj",
    "bench solvers": "--solvers greedy,tabu --time-limits 20ms,60ms --seeds 1 --workers 1 --backend sequential",
    "bench garment": DIGITS + "--blocks 3",
    "bench mlpnet": DIGITS + "--blocks 3",
    "bench vit": DESCENT + "--blocks 3",
    "bench tones": DESCENT + "--blocks 3",
    "bench llm": TEXTS + "--model tiny-model --text novel.txt --eval-samples 3 --loss-set max_blocks=3 " + DESCENT,
}
#: Examples that need weights of a real model: the pitch tracker and DINOv2.
REAL = ("bench tones", "bench vit --max-time")
#: Commands that take no more than moments on tiny things.
QUICK = ("solve", "solvers", "methods", "watch", "eval", "instances list", "instances check")
#: Families of a suite whose blocks have the sizes that the examples name.
SIZES = (Family("mlp", "2", "hidden", "fisher", {0.5: (64, 128)}, "across rows"),)

PLUG_IN = """
from dataclasses import dataclass
import numpy as np
from qubo_prune import Capabilities, Solver, Status
from qubo_prune.methods.base import Score, Traits
from qubo_prune.solver import ranked_answers


@dataclass(frozen=True)
class MySolver(Solver):
    capabilities = Capabilities(stochastic=False)

    def solve(self, request, /):
        problem, x = request.problem, np.zeros(request.problem.num_variables, dtype=bool)
        for group, count in enumerate(problem.num_pruned):
            members = np.flatnonzero(problem.labels == group)
            x[members[np.argsort(problem.diagonal[members])[:count]]] = True
        return ranked_answers(problem, x, Status.FEASIBLE)


@dataclass(frozen=True)
class MyMethod(Score):
    traits = Traits("size and norm", protects=True)

    def scores(self, task):
        norms = task.gram.for_rows(task.gram.diagonal.pow(0.25), len(task.weight))
        dead = task.gram.for_rows(task.gram.dead, len(task.weight))
        return (task.weight.abs().double() * norms).masked_fill(dead, -1)
"""


def examples(command: Any = None, path: str = "") -> Iterator[str]:
    """Every line to copy, each once."""
    command = command or typer.main.get_command(app)
    for line in (command.epilog or "").replace("\\[", "[").splitlines():
        if line.strip().startswith("qubo-prune ") and "COMMAND" not in line:
            yield line.strip()
    for name, inner in getattr(command, "commands", {}).items():
        yield from examples(inner, f"{path} {name}".strip())


def command_of(line: str) -> str:
    """The command that an example calls, such as ``bench solvers``."""
    command: Any = typer.main.get_command(app)
    words, found = shlex.split(line)[1:], []
    while words and words[0] in getattr(command, "commands", {}):
        found.append(words.pop(0))
        command = command.commands[found[-1]]
    return " ".join(found)


ALL = list(dict.fromkeys(examples()))


def marked(line: str) -> Any:
    return pytest.param(line, marks=[] if command_of(line) in QUICK else [pytest.mark.slow])


def run(line: str) -> str:
    """What an example prints; it ends well and says nothing that looks like an error."""
    small = SMALL.get(command_of(line), "")
    given = shlex.split(line)[1:]
    # what an example gives itself is not given twice
    parts = shlex.split(small)
    names = {word for word in given if word.startswith("--")} - {"--loss-set"}
    pairs = [(name, value) for name, value in zip(parts[::2], parts[1::2], strict=True) if name not in names]
    kept = [word for pair in pairs for word in pair]
    result = CliRunner().invoke(app, [*given, *kept])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the examples name."""
    folder = tmp_path_factory.mktemp("things")
    rng = np.random.default_rng(0)
    for name, n, count in (("problem.json", 10, 4), ("problem.qubo", 40, 20), ("problem.lp", 8, 3)):
        write_problem(random_problem(rng, n, count), folder / name)
    tiny.save(folder / "my-model")
    tiny.save(folder / "tiny-model")
    # with room for blocks of the sizes that examples name
    tiny.llama(hidden_size=64, intermediate_size=256).save_pretrained(folder / "wide-model")
    tiny.tokenizer().save_pretrained(folder / "wide-model")
    for name in ("novel.txt", "news.txt", "my-texts/one.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(tiny.text(2000), encoding="utf-8")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "my_module.py").write_text(PLUG_IN, encoding="utf-8")
    tiny_suite.made(folder / "trial", tiny_suite.FEW, proof_time=0.2)
    shutil.copytree(folder / "trial", folder / "standard-1")
    pictures.classifier(folder / "my-vit")
    pictures.folder(folder / "train", 12)
    pictures.folder(folder / "test", 3)
    digits.idx_folder(folder / "idx")
    return folder


@pytest.fixture
def here(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in, with a cache of its own."""
    import qubo_prune.bench as bench
    from qubo_prune.bench import making, suites

    def make_suite(folder: Path, name: str, **settings: Any) -> Any:
        return tiny_suite.made(folder, SIZES if name == "standard" else tiny_suite.FEW, proof_time=0.2)

    place = tmp_path / "here"
    shutil.copytree(things, place)
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(bench, "CACHE", tmp_path / "cache")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(making, "make_suite", make_suite)
    monkeypatch.setitem(suites.SUITES, "smoke", tiny_suite.FEW)
    monkeypatch.setitem(suites.SUITES, "standard", SIZES)
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        monkeypatch.delitem(sys.modules, name)
    return place


def prepared(line: str, here: Path) -> str:
    """Do what stands before an example, take away what it is to make, and put the tiny model in its place."""
    line = line.replace("smollm2-135m", "tiny-model")
    command, words = command_of(line), shlex.split(line)
    if command in ("eval", "watch") or "--resume" in words:
        run(f"qubo-prune prune my-model/ --output pruned --run-folder {'run' if '--resume' in words else 'pruned-run'}")
    if "--resume" in words:
        shutil.rmtree(here / "pruned")
    if command == "bench report":
        quick = "--suite trial --solvers greedy --time-limits 10ms --seeds 1 --workers 1 --backend sequential"
        for name in [word for word in words if word.startswith("run")]:
            run(f"qubo-prune bench solvers {quick} --output {name}")
    if command == "instances make":
        shutil.rmtree(here / words[3], ignore_errors=True)
    return line


def test_there_is_an_example_of_every_command() -> None:
    assert len(ALL) > 35
    assert set(SMALL) <= {command_of(line) for line in ALL}
    assert set(QUICK) <= {command_of(line) for line in ALL}


@pytest.mark.parametrize("line", [marked(line) for line in ALL])
def test_the_example_runs_as_printed(line: str, here: Path) -> None:
    if line.startswith(tuple(f"qubo-prune {start}" for start in REAL)):
        pytest.skip("it needs weights of a real model; tests/bench/test_workloads.py runs those")
    printed = run(prepared(line, here))
    if "--json" in line:
        json.loads(printed)
    words = shlex.split(line)
    for at, word in enumerate(words):
        assert word != "--output" or (here / words[at + 1]).exists()
    assert printed.strip()
