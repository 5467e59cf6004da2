"""The conformance suite of qubo_prune, run on our methods."""

import pytest
from qubo_prune_power import Power, ShrunkBlocks

from qubo_prune.testing import MethodContract


class TestPower(MethodContract):
    @pytest.fixture
    def method(self):
        return Power()


class TestShrunkBlocks(MethodContract):
    @pytest.fixture
    def method(self):
        return ShrunkBlocks(block_size=8)
