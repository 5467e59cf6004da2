"""The folder of the user's cache, by the variables that name it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qubo_prune.files.cache import VARIABLE, user_cache


def test_the_variables_name_it_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert user_cache() == tmp_path / ".cache" / "qubo_prune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache() == tmp_path / "xdg" / "qubo_prune"
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own"))
    assert user_cache() == tmp_path / "own"
    monkeypatch.setenv(VARIABLE, "")  # set to nothing is not set
    assert user_cache() == tmp_path / "xdg" / "qubo_prune"
