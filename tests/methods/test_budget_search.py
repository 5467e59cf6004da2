"""Budgets between parts: the problem against a slow reference, and the searches on models with a known answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from qubo_prune import InputError, prune
from qubo_prune.clock import Deadline
from qubo_prune.data.losses import NextToken, Objective, Regression
from qubo_prune.data.samples import TensorSamples
from qubo_prune.methods.budget_search import (
    BudgetSearch,
    BudgetTrace,
    Moves,
    Option,
    Part,
    options_of,
    problem_of,
    progression,
    search_by_evolution,
    search_by_qubo,
)
from qubo_prune.methods.part_levels import PartLevels, check_predicts, parts_of
from qubo_prune.models.branches import Branches
from qubo_prune.models.layers import find_layers

PARTS = [Part("a", ("a",), 100), Part("b", ("b",), 200), Part("c", ("c",), 100)]


class Bowl:
    """A divergence that is a quadratic of the kept shares, with its least value at given ones."""

    def __init__(self, parts: Sequence[Part], best: Sequence[float]) -> None:
        self.parts, self.passes = list(parts), 0.0
        self._sizes = np.array([part.size for part in parts], dtype=float)
        rng = np.random.default_rng(0)
        root = rng.normal(size=(len(parts), len(parts)))
        self._matrix, self._best = root @ root.T + np.eye(len(parts)), np.array(best)
        self._root = np.linalg.cholesky(self._matrix)

    def value(self, kept: Sequence[int]) -> float:
        away = np.array(kept) / self._sizes - self._best
        return float(away @ self._matrix @ away)

    def divergence(self, kept: Sequence[int], judge: bool, share: float = 1.0) -> float:
        self.passes += share
        return self.value(kept)

    def moves(self, kept: Sequence[int], options: Sequence[Option]) -> Moves:
        self.passes += 1 + len(options)
        changes, features = [], []
        for part, count in options:
            other = list(kept)
            other[part] = count
            changes.append(self.value(other) - self.value(kept))
            move = (count - kept[part]) / self._sizes[part]
            features.append(np.sqrt(2) * move * self._root[part])
        return Moves(np.array(changes), np.array(features, dtype=np.float32))


def test_options_lie_around_the_present_levels_and_within_the_spread() -> None:
    found = options_of(PARTS, [50, 190, 1], 0.1, 0.5, 0.45)
    assert [each for each in found if each[0] == 0] == [(0, 40), (0, 45), (0, 55), (0, 60)]
    assert [each for each in found if each[0] == 1] == [(1, 170), (1, 180)]  # 0.95 is the most
    assert [each for each in found if each[0] == 2] == [(2, 5), (2, 6), (2, 11)]  # 0.05 is the least


def test_the_energy_is_the_predicted_change_of_every_choice() -> None:
    bowl, kept = Bowl(PARTS, [0.3, 0.7, 0.4]), [50, 100, 50]
    options = options_of(PARTS, kept, 0.2, 0.5, 0.4)
    moves = bowl.moves(kept, options)
    problem, levels = problem_of(PARTS, kept, sum(kept), options, moves)
    assert np.linalg.eigvalsh(problem.q).min() > -1e-9
    allowed = 0
    of_part = [[place for place, (part, _) in enumerate(levels) if part == number] for number in range(3)]
    for choice in itertools.product(*of_part):
        x = np.zeros(len(levels), dtype=bool)
        x[list(choice)] = True
        counts = [levels[place][1] for place in choice]
        assert problem.is_feasible(x) == (sum(counts) <= sum(kept))
        allowed += problem.is_feasible(x)
        # a quadratic's second order is all of it
        assert problem.energy(x) == pytest.approx(bowl.value(counts) - bowl.value(kept), abs=1e-6)
    assert 10 < allowed < 125


@pytest.mark.parametrize("solver", ["tempering", "cpsat", "greedy"])
def test_the_search_finds_the_best_shares_within_the_budget(solver: str) -> None:
    bowl, kept = Bowl(PARTS, [0.3, 0.7, 0.3]), [50, 100, 50]  # which is within the budget: 30 + 140 + 30
    trace = search_by_qubo(
        bowl, kept, 0.5, BudgetSearch(solver=solver, solver_time=0.05, passes=150), 0, Deadline(None)
    )
    assert sum(trace.kept.values()) <= sum(kept)
    assert trace.end == pytest.approx(bowl.value(list(trace.kept.values())))
    assert trace.end < 0.05 * trace.start
    for step in trace.steps:
        assert step.bound is not None
        assert step.bound <= step.predicted + 1e-9
    taken = [step for step in trace.steps if step.taken == 1]
    assert taken
    falls = np.diff([trace.start, *(step.measured for step in trace.steps)])
    assert bool((falls <= 0).all())


def test_it_uses_no_more_passes_than_it_may_and_stops_with_the_clock() -> None:
    how = BudgetSearch(passes=30, solver_time=0.05)
    for search in (search_by_qubo, search_by_evolution):
        trace = search(Bowl(PARTS, [0.3, 0.7, 0.3]), [50, 100, 50], 0.5, how, 0, Deadline(None))
        assert trace.passes <= 30 + 1
        ended = search(Bowl(PARTS, [0.3, 0.7, 0.3]), [50, 100, 50], 0.5, how, 0, Deadline(0.0))
        assert ended.kept == {"a": 50, "b": 100, "c": 50}
        assert ended.end == ended.start


def test_mutations_keep_the_total_and_selection_lowers_the_divergence() -> None:
    bowl = Bowl(PARTS, [0.3, 0.7, 0.3])
    runs = []
    for seed in (1, 1, 2):
        bowl.passes = 0.0
        runs.append(search_by_evolution(bowl, [50, 100, 50], 0.5, BudgetSearch(passes=400), seed, Deadline(None)))
    assert runs[0] == runs[1]
    for trace in runs:
        assert sum(trace.kept.values()) == 200
        assert trace.end < 0.3 * trace.start
    assert BudgetTrace.from_dict(runs[0].to_dict()) == runs[0]


def test_a_progression_falls_evenly_with_depth() -> None:
    blocks = {"x": 0, "y": 0, "z": 1, "w": 2}
    assert progression(blocks, 0.5, 0.2) == pytest.approx({"x": 0.7, "y": 0.7, "z": 0.5, "w": 0.3})
    assert progression({"x": 0}, 0.5, 0.2) == pytest.approx({"x": 0.7})
    with pytest.raises(InputError, match="less than the density"):
        progression(blocks, 0.1, 0.2)


# --- on models ----------------------------------------------------------------------------------------


def test_parts_are_what_stands_together() -> None:
    model = tiny.llama()
    parts = parts_of(model, find_layers(model))
    assert [part.name for part in parts] == [
        f"model.layers.{number}.{half}" for number in range(2) for half in ("self_attn", "mlp")
    ]
    assert [part.block for part in parts] == [0, 0, 1, 1]
    assert sum(part.size for part in parts) == sum(layer.parameter.numel() for layer in find_layers(model))
    assert len(parts_of(model, find_layers(model), singly=True)) == 14
    assert {part.name for part in parts_of(tiny.mlp(), find_layers(tiny.mlp()))} == {"the model"}


def levels_of(model: nn.Module, stack: bool = True) -> PartLevels:
    layers = find_layers(model)
    scores = {layer.name: layer.matrix().abs() for layer in layers}
    objective = Objective(model, NextToken())
    samples = TensorSamples(tiny.tokens(6, 12))
    return PartLevels(objective, layers, scores, parts_of(model, layers), samples, [0, 1, 2], [3, 4])


def divergences(dense: Tensor, found: Tensor) -> float:
    p, q = (logits[:, :-1].double().softmax(-1) for logits in (dense, found))
    return float((p * (p / q).log()).sum(-1).mean())


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.gemma])
def test_what_is_measured_is_the_divergence_of_the_masked_model(make: Any) -> None:
    model, dense = make(), make()
    levels, tokens = levels_of(model), tiny.tokens(6, 12)
    kept = [part.size // 2 for part in levels.parts]
    options = [(0, kept[0] // 2), (3, kept[3] + 20)]
    moves = levels.moves(kept, options)
    judged = levels.divergence(kept, judge=True)
    assert levels.passes == pytest.approx(1 + len(options) + 2 / 3)
    for layer, before in zip(find_layers(model), find_layers(dense), strict=True):  # as it was
        assert torch.equal(layer.matrix(), before.matrix())

    def masked(counts: list[int]) -> nn.Module:
        other, own = make(), levels.layer_counts(counts)
        for part, count in zip(levels.parts, counts, strict=True):
            assert abs(sum(own[name] for name in part.layers) - count) <= len(part.layers)
        for layer in find_layers(other):
            sizes = layer.matrix().abs()
            layer.prune(sizes >= sizes.flatten().sort(descending=True).values[own[layer.name] - 1])
        return other

    with torch.no_grad():
        emitted, judges = tokens[:3], tokens[3:5]
        assert judged == pytest.approx(divergences(dense(judges).logits, masked(kept)(judges).logits), rel=1e-3)
        now = masked(kept)(emitted).logits
        base, ends = divergences(dense(emitted).logits, now), []
        for number, count in options:
            counts = list(kept)
            counts[number] = count
            ends.append(masked(counts)(emitted).logits)
        for measured, end in zip(moves.changes, ends, strict=True):
            assert measured == pytest.approx(divergences(dense(emitted).logits, end) - base, rel=1e-3, abs=1e-6)
        # all predictions of this vocabulary are among the likely ones
        q = now[:, :-1].double().softmax(-1)
        first, second = ((end - now)[:, :-1].double() for end in ends)
        curved = (q * first * second).sum(-1) - (q * first).sum(-1) * (q * second).sum(-1)
        inner = moves.features.astype(float) @ moves.features.astype(float).T
        scale = np.sqrt(inner[0, 0] * inner[1, 1])
        assert abs(inner[0, 1] - float(curved.mean())) < 0.05 * scale + 1e-7


def test_blocks_before_an_option_are_not_run_again() -> None:
    model = tiny.llama()
    levels, ran = levels_of(model), [0, 0]
    handles = [
        block.self_attn.register_forward_hook(lambda *_, at=at: ran.__setitem__(at, ran[at] + 1))
        for at, block in enumerate(model.model.layers)
    ]
    kept = [part.size // 2 for part in levels.parts]
    levels.moves(kept, [(2, 100), (3, 100)])
    for handle in handles:
        handle.remove()
    assert ran == [3, 3 * 3 + 1]  # and once to see that it may be done


def test_branches_replay_what_blocks_gave() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    given, other = torch.randn(2, 3), torch.randn(2, 3)
    branches = Branches(list(model))
    with torch.no_grad():
        with branches.kept(0):
            expected = model(given)
        with branches.after(0, 2):
            assert torch.equal(model(other), expected)
        with branches.after(0, 0):
            assert not torch.equal(model(other), expected)


@pytest.mark.parametrize("allocation", ["qubo", "evolution", "progression"])
@pytest.mark.parametrize("pattern", ["row", "layer"])
def test_a_run_keeps_its_total_with_searched_budgets(allocation: str, pattern: str) -> None:
    model, batches = tiny.llama(), list(torch.split(tiny.tokens(24, 16), 1))
    settings = {} if allocation == "progression" else {"passes": 40, "windows": 3, "judges": 3, "solver_time": 0.05}
    report = prune(
        model,
        batches,
        0.5,
        method="wanda",
        pattern=pattern,
        allocation=allocation,
        allocation_settings=settings,
        loss="next-token",
    )
    totals = report.totals()
    missing = totals["weights"] // 2 - totals["kept"]
    assert 0 <= missing < (1 if pattern == "layer" else 64)
    assert len({layer.density for layer in report.layers}) > 1
    trace = report.budgets
    assert (trace is None) == (allocation == "progression")
    if trace is not None:
        assert trace.end <= trace.start or allocation == "evolution"
        assert trace.steps
        assert report.to_dict()["budgets"]["steps"]
        assert "short passes" in str(report)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allocation": "qubo", "allocation_settings": {"pases": 3}}, "did you mean 'passes'"),
        ({"allocation": "qubo", "allocation_settings": {"solver": "tabo"}}, "did you mean 'tabu'"),
        ({"allocation": "kron", "allocation_settings": {"passes": 3}}, "give the allocation 'qubo' or 'evolution'"),
        ({"allocation": "qubo", "pattern": "2:4"}, "keeps 2 of every 4"),
        ({"allocation": "qubo", "allocation_settings": {"windows": 3, "judges": 60}}, "60 more to judge by"),
    ],
)
def test_what_cannot_be_searched_is_rejected(settings: dict[str, Any], message: str) -> None:
    model = tiny.llama()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(InputError, match=message):
        prune(model, tiny.tokens(8, 16), method="wanda", loss="next-token", **settings)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_predictions_have_to_be_over_classes() -> None:
    with pytest.raises(InputError, match="the loss is Regression"):
        check_predicts(Regression())
