"""Fixtures of all tests. Importing this file also puts ``tests/`` on the path, for ``reference``."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240607)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # the problems of the tests are small; threads would only wait for one another
    torch.set_num_threads(1)
