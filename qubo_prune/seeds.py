"""Seeds: which ones a caller may give, and what the parts of a run make of one."""

from __future__ import annotations

import numpy as np

from qubo_prune.errors import InputError

#: The highest seed that a caller may give: it fits every generator that follows from it.
HIGHEST_SEED = 2**63 - 1


def checked_seed(seed: object) -> int:
    """The seed as an ``int``.

    Raises:
        InputError: it is no whole number from 0 to :data:`HIGHEST_SEED`.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= HIGHEST_SEED:
        raise InputError(f"seed is {seed!r}; pass a whole number from 0 to 2**63 - 1.")
    return int(seed)


def derive_seed(seed: int, *path: int) -> int:
    """An independent 63-bit seed for a part of a run, the same for the same ``seed`` and ``path``.

    Raises:
        InputError: the seed is no whole number from 0 to :data:`HIGHEST_SEED`.
    """
    given = checked_seed(seed)
    return int(np.random.SeedSequence(given, spawn_key=path).generate_state(1, np.uint64)[0] >> np.uint64(1))
