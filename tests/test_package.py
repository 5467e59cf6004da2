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


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'prunee'"):
        _ = qubo_prune.prunee
