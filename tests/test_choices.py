"""The words that arguments take are those that something stands behind."""

from __future__ import annotations

import subprocess
import sys

from qubo_prune import choices
from qubo_prune.methods.registry import PEERS
from qubo_prune.models import DTYPES


def test_the_words_have_something_behind_them() -> None:
    assert tuple(PEERS) == choices.PEER_NAMES
    assert tuple(DTYPES) == choices.DTYPE_NAMES


def test_reading_them_imports_nothing_large() -> None:
    code = "import sys, qubo_prune.choices; print({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
