"""Fixtures and tiers of all tests. Importing this file also puts ``tests/`` on the path, for ``reference``."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# how long a case takes is the machine's affair
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # the problems of the tests are small; threads would only wait for one another
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--one-each", action="store_true", help="run one case of each test function")
    parser.addoption("--typed", action="store_true", help="check the types and shapes of all calls, in twice the time")


#: Modules whose calls are not checked: numba compiles the first, Typer gives the next a context of its own class, and
#: the last take whatever people give, and say what of it cannot be used.
UNCHECKED = (
    "qubo_prune.solver.swaps.kernels",
    "qubo_prune.solver.swaps.budgets",
    "qubo_prune.solver.swaps.feasible",
    "qubo_prune.masks.channel_order",
    "qubo_prune.cli.app",
    "qubo_prune.cli.block_study",
    "qubo_prune.request",
    "qubo_prune.methods.base",
    "qubo_prune.methods.chain",
)


def pytest_configure(config: pytest.Config) -> None:
    """Have annotations checked from here on, before any of our modules is imported."""
    if config.getoption("--typed"):
        assert "qubo_prune" not in sys.modules
        finder: Any = install_import_hook("qubo_prune", "typecheck.checked").hook
        checks = finder.should_instrument
        finder.should_instrument = lambda name: name not in UNCHECKED and checks(name)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave ``@pytest.mark.gate(n)`` n of a function's cases, evenly spread, and mark the others ``slow``."""
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for own in cases.values():
        marker = own[0].get_closest_marker("gate")
        if marker is not None:
            chosen = spread(own, *marker.args)
            for item in own:
                if item not in chosen:
                    item.add_marker(pytest.mark.slow)
    if config.getoption("--one-each"):
        left = [item for own in cases.values() for item in spread(own, 1)]
        kept = set(left)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = left


def spread(items: list[pytest.Item], count: int) -> set[pytest.Item]:
    """So many of them, from one end to the other."""
    return {items[int((number + 0.5) * len(items) / count)] for number in range(min(count, len(items)))}
