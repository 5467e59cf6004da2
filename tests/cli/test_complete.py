"""Completion, driven as the shells drive it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qubo_prune import choices
from qubo_prune.cli.complete import solver_names, some_of
from qubo_prune.solver.registry import available_solvers

#: Runs the command under its own name, and says which of the large packages came with it.
_RUN = (
    "import sys, atexit\n"
    "atexit.register(lambda: sys.stderr.write(str(sorted({'torch', 'numpy', 'transformers'} & set(sys.modules)))))\n"
    "sys.argv[0] = 'qubo-prune'\n"
    "from qubo_prune.cli import app\n"
    "app(prog_name='qubo-prune')"
)


def shell(*arguments: str, **given: str) -> str:
    """What the command prints in this environment; it must import nothing large."""
    environment = {name: value for name, value in os.environ.items() if "COLOR" not in name} | given
    command = [sys.executable, "-c", _RUN, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert found.stderr == "[]"
    return found.stdout


def in_bash(line: str) -> list[str]:
    """Offers for the last word of a line, or for a new one behind a space."""
    words = line.split()
    at = len(words) if line.endswith(" ") else len(words) - 1
    return shell(_QUBO_PRUNE_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(at)).split()


def in_zsh(line: str) -> str:
    return shell(_QUBO_PRUNE_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line)


def in_fish(line: str) -> list[str]:
    printed = shell(
        _QUBO_PRUNE_COMPLETE="complete_fish", _TYPER_COMPLETE_ARGS=line, _TYPER_COMPLETE_FISH_ACTION="get-args"
    )
    return [offer.split("\t")[0] for offer in printed.splitlines()]


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("qubo-prune pr", ["prune"]),
        ("qubo-prune bench ll", ["llm"]),
        ("qubo-prune prune m --dens", ["--density"]),
        ("qubo-prune prune m --hessian ", ["kron"]),
        ("qubo-prune prune m --method w", ["wanda"]),
        ("qubo-prune prune m --update ", ["none", "admm", "refit", "sparsegpt"]),
        ("qubo-prune prune m --allocation ", list(choices.ALLOCATIONS)),
        ("qubo-prune prune m --certify ", list(choices.BOUNDS)),
        ("qubo-prune prune m --warm-start grad", ["gradient"]),
        ("qubo-prune prune m --dtype bf", ["bfloat16"]),
        ("qubo-prune prune m --weights d", ["disk"]),
        ("qubo-prune prune m --solver ta", ["tabu"]),
        ("qubo-prune prune smol", ["smollm2-135m"]),
        ("qubo-prune compare m --methods wanda,ma", ["wanda,magnitude"]),
        ("qubo-prune solve p --format j", ["json"]),
        ("qubo-prune check-solver gr", ["greedy"]),
        ("qubo-prune bench solvers --solvers tabu,ne", ["tabu,neal"]),
        ("qubo-prune bench solvers --suite ", ["standard", "smoke"]),
        ("qubo-prune bench solvers --families dinov2-out", ["dinov2-out6-gram"]),
        ("qubo-prune bench tones --methods ", list(choices.EXPERIMENT_METHODS)),
        ("qubo-prune instances make x --formats json,q", ["json,qubo"]),
    ],
)
def test_bash_gets_the_values(line: str, offers: list[str]) -> None:
    found = in_bash(line)
    assert set(offers) <= set(found)
    if not line.endswith("dinov2-out"):
        assert len(found) == len(offers)


def test_families_are_those_of_the_suite_that_is_asked_for() -> None:
    found = in_bash("qubo-prune bench solvers --suite smoke --families ")
    assert found == ["crepe-conv3-fisher", "smollm2-short-o14-gram", "smollm2-short-o14-compensated"]
    found = in_bash("qubo-prune bench solvers --suite smoke --families crepe-conv3-fisher")
    assert "crepe-conv3-fisher-n0012-d50" in found


def test_zsh_and_fish_get_them_too() -> None:
    assert '"greedy"' in in_zsh("qubo-prune prune m --solver gr")
    assert in_fish("qubo-prune prune m --pattern ro") == ["row"]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_shells_get_their_scripts(name: str) -> None:
    script = shell("--show-completion", name, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert f"_QUBO_PRUNE_COMPLETE=complete_{name}" in script
    assert "qubo-prune" in script


def test_help_imports_nothing_large() -> None:
    assert "Usage" in shell("--help")
    assert "Usage" in shell("prune", "--help")


def test_solvers_are_found_without_importing_them() -> None:
    assert set(available_solvers()) <= set(solver_names())


def test_a_word_of_a_list_is_offered_once() -> None:
    complete = some_of(["one", "two"])
    assert complete("") == ["one", "two"]
    assert complete("one,") == ["one,two"]
    assert complete("two,o") == ["two,one"]
