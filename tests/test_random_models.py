"""What a report says was measured, for models that are put together at random."""

from __future__ import annotations

import graphs
import pytest
from hypothesis import Phase, given, settings
from measured import measured, weights

from qubo_prune import InputError, prune

#: How far a reported relative error may be from the measured one.
NEAR = 1e-6
#: Examples are small as they are; to make them smaller would take minutes.
PHASES = (Phase.explicit, Phase.generate)


def check(recipe: graphs.Recipe) -> None:
    model = recipe.make()
    dense, message = weights(model), ""
    try:
        report = prune(model, graphs.batches(), 0.5, method="wanda")
    except InputError as error:
        message = str(error)
    if message:
        assert any(repr(name) in message for name in dense), message
        return
    found = measured(model, dense, graphs.batches())
    told = {layer.name: layer.relative_after for layer in report.layers}
    left = {layer.name for layer in report.left_dense}
    assert set(told) <= set(found) <= set(told) | left
    for name, error in told.items():
        assert error == pytest.approx(found[name], abs=NEAR, rel=0), name


@settings(max_examples=10, derandomize=True, deadline=None, phases=PHASES)
@given(graphs.recipes())
def test_reported_errors_of_random_models_are_measured(recipe: graphs.Recipe) -> None:
    check(recipe)


@pytest.mark.slow
@settings(max_examples=60, derandomize=True, deadline=None, phases=PHASES)
@given(graphs.recipes())
def test_reported_errors_of_many_random_models_are_measured(recipe: graphs.Recipe) -> None:
    check(recipe)
