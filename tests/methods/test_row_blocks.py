"""Settings of blocks within rows: whole rows, swaps over whole rows, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
from qubo_prune_solvers.exact import Exact
from qubo_prune_solvers.greedy import Greedy
from reference import random_layer

from qubo_prune import estimate_run, prune
from qubo_prune.errors import InputError
from qubo_prune.hessian.compensated import Blocks, Curvature, Support
from qubo_prune.masks import Pattern
from qubo_prune.methods.base import LayerTask
from qubo_prune.methods.chain import Entry, chain_of
from qubo_prune.methods.compensated_blocks import CompensatedBlocks
from qubo_prune.methods.gram_blocks import GramBlocks
from qubo_prune.methods.wanda import Wanda
from qubo_prune.request import MethodSettings
from qubo_prune.solver import Capabilities, Solver, SolveRequest, SolveResult

#: 16 inputs each, the down projection 24.
LAYERS = ["*.layers.1.self_attn.q_proj", "*.layers.1.mlp.down_proj"]


@dataclass(frozen=True)
class Narrow(Solver):
    """Greedy for rows of 16 at most, one at a time."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False, max_variables=16)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        return Greedy().solve(request)


@dataclass(frozen=True)
class OneCount(Solver):
    """Greedy that knows one count."""

    capabilities: ClassVar[Capabilities] = Capabilities(anytime=True, stochastic=False, groups=False)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        return Greedy().solve(request)


def run(**settings: Any) -> Any:
    return prune(tiny.llama(), tiny.tokens(), **{"workers": 0, "include": LAYERS, "block_size": "row", **settings})


def test_whole_rows_are_named_in_the_report_and_are_a_block_each() -> None:
    report = run(solver="exact", row_swaps=False)
    assert (report.settings["block_size"], report.settings["row_swaps"]) == ("row", False)
    assert [layer.steps for layer in report.layers] == [layer.shape[0] for layer in report.layers]
    for layer in report.layers:  # the solver's credit is all that there is
        gained = layer.error_before - layer.error_after
        assert layer.solver_gain == pytest.approx(gained, rel=1e-5)
        assert gained > 0
    swapped = run(solver="exact")
    assert swapped.settings["row_swaps"] is True
    assert swapped.relative_error == pytest.approx(report.relative_error, rel=1e-9)  # optima have nothing to swap
    smaller = run(solver="exact", row_swaps=False, block_size=6)
    assert report.relative_error < smaller.relative_error


def test_without_row_swaps_blocks_stay_as_they_were_decided() -> None:
    swapped, plain = (run(block_size=6, polish=False, row_swaps=on) for on in (True, False))
    assert swapped.relative_error < plain.relative_error
    for layer in plain.layers:
        left = layer.error_before - layer.solver_gain
        assert layer.error_after == pytest.approx(left, rel=1e-5)
    assert sum(layer.steps for layer in swapped.layers) == 2 * sum(layer.steps for layer in plain.layers)


@pytest.mark.parametrize("pattern", ["row", "layer", "2:4"])
def test_solvers_of_any_kind_take_whole_rows(pattern: str) -> None:
    before = run(method="wanda", pattern=pattern, block_size=None).relative_error
    for solver in ("greedy", "tabu", "neal", OneCount()):  # in batches, by penalties, one by one
        if pattern == "2:4" and isinstance(solver, OneCount):
            continue
        report = run(solver=solver, pattern=pattern, row_swaps=False)
        assert report.relative_error < before
        assert Pattern.parse(pattern).violations(report.masks["model.layers.1.mlp.down_proj.weight"], 0.5) == 0


def test_a_resumed_run_tells_whole_rows_and_row_swaps_from_others(tmp_path: Path) -> None:
    for asked, other in (({}, {"block_size": 16}), ({"row_swaps": False}, {"row_swaps": True})):
        folder = tmp_path / str(len(asked))
        run(run_folder=folder, **asked)
        with pytest.raises(InputError, match="was begun with another"):
            run(run_folder=folder, resume=True, **{**asked, **other})
        run(run_folder=folder, resume=True, **asked)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"solver": Narrow()}, "'Narrow' takes at most 16 variables and the block has 24; use a smaller block"),
        ({"solver": OneCount(), "pattern": "2:4"}, "'OneCount' takes one count and the block has 4"),
        ({"method": "compensated"}, "block_size is 'row', and compensated blocks need kept weights .* give a number"),
        ({"method": "loss"}, "block_size is 'row', and blocks of the loss .* give a number"),
        ({"block_size": "rows"}, "block_size is 'rows' of type str; give a whole number, such as 64, or 'row'"),
        ({"block_size": 1.5}, "block_size is 1.5 of type float; give a whole number"),
        ({"method": CompensatedBlocks(row_swaps=True), "block_size": None}, "row_swaps is true, and no swaps"),
        ({"method": GramBlocks(), "block_size": None, "row_swaps": False}, "row_swaps is given, and the method"),
        ({"method": GramBlocks(), "block_size": None, "polish": False}, "polish is given, and the method"),
        ({"row_swaps": "no"}, "row_swaps is 'no'; true or false is needed"),
    ],
)
def test_what_whole_rows_do_not_go_with_is_told_before_anything_changes(settings: dict[str, Any], said: str) -> None:
    model = tiny.llama()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = {"workers": 0, "include": LAYERS, "block_size": "row", **settings}
    with pytest.raises(InputError, match=said):
        prune(model, tiny.tokens(), **asked)
    with pytest.raises(InputError, match=said):
        estimate_run(model, tiny.tokens(), **asked)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_rows_that_are_short_enough_are_taken(rng: Any) -> None:
    assert run(solver=Narrow(), include=LAYERS[:1]).layers[0].steps == 32
    layer = random_layer(rng, 3, 20)
    task = LayerTask(layer.weight, layer.gram, Pattern("row"), 0.5)
    with pytest.raises(InputError, match="at most 16 variables and the block has 20"):  # outside of a run, too
        GramBlocks(Narrow(), block_size="row", workers=0).decide(task, Wanda().decide(task))


def test_an_estimate_tells_whole_rows() -> None:
    asked: dict[str, Any] = {"include": LAYERS, "block_size": "row", "solver": "exact", "workers": 0}
    found = estimate_run(tiny.llama(), tiny.tokens(), **asked)
    assert [(group.shape[1], group.block_size) for group in found.groups] == [(16, 16), (24, 24)]
    assert found.settings["block_size"] == "row"
    assert "1 x 24" in str(found)
    assert found.time is not None


def test_words_and_texts_of_the_settings() -> None:
    chain = chain_of(MethodSettings(block_size="row", row_swaps=False))
    assert chain.blocks == GramBlocks(block_size="row", row_swaps=False)
    assert chain_of(MethodSettings(method="compensated", row_swaps=False)).blocks == CompensatedBlocks()
    entry = Entry.parse("gram@block_size=row@row_swaps=false")
    assert entry.words() == {"method": "gram", "block_size": "row", "row_swaps": False}
    loss = chain_of(MethodSettings(method="loss", warm_start="gram", row_swaps=False))
    assert loss.blocks == GramBlocks(row_swaps=False)


def test_a_compensated_block_of_a_whole_row_would_be_the_grams(rng: Any) -> None:
    layer = random_layer(rng, 4, 10)
    keep = layer.random_keep("row", 0.5)
    curvature = Curvature.of(layer.gram, 0.01, torch.float64)
    support = Support.of(layer.weight * curvature.scale, curvature, ~keep)
    kept = keep.nonzero()[:, 1].reshape(4, 5)
    blocks = Blocks.of(support, kept, torch.arange(5).expand(4, 5), torch.zeros(10, dtype=torch.long))
    for row in range(4):  # nothing of the curvature is taken away by weights that adapt
        columns = blocks.columns[row]
        torch.testing.assert_close(blocks.curvature[row], curvature.hessian[columns][:, columns])
        torch.testing.assert_close(blocks.values[row], (layer.weight[row] * curvature.scale)[columns])


def test_exact_whole_rows_are_at_least_as_good_as_any_solvers() -> None:
    found = {name: run(solver=name, row_swaps=False, include=LAYERS[:1]) for name in ("exact", "greedy", "local")}
    best = found["exact"].relative_error
    assert all(best <= other.relative_error * (1 + 1e-9) for other in found.values())
    assert isinstance(GramBlocks(Exact(), block_size="row").size_in(7), int)
