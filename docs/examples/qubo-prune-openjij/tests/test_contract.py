"""The conformance suite of qubo_prune, run on our solver."""

import pytest
from qubo_prune_openjij import OpenJij

from qubo_prune.testing import SolverContract


class TestOpenJij(SolverContract):
    @pytest.fixture
    def solver(self):
        return OpenJij()
