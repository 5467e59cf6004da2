"""Where what was made once is kept for the next time: one folder for each user."""

from __future__ import annotations

import os
from pathlib import Path

#: The environment variable that names another folder.
VARIABLE = "QUBO_PRUNE_CACHE"


def user_cache() -> Path:
    """``$QUBO_PRUNE_CACHE``; else ``qubo_prune`` in ``$XDG_CACHE_HOME``, which is ``~/.cache`` if unset."""
    own = os.environ.get(VARIABLE)
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qubo_prune"
