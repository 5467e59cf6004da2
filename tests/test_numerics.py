"""Hostile numbers: whatever weights and inputs are, counts are exact and energies those of dense float64 algebra."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hostile import LAYERS, ROWS, WIDTH
from numpy.typing import NDArray
from published import PUBLISHED, UPDATES
from qubo_prune_solvers.greedy import Greedy
from reference import Layer
from torch import Tensor, nn

from qubo_prune.blocks.certificate import block_optima, least_error
from qubo_prune.blocks.compensated_rows import CompensatedDescent, descend_compensated
from qubo_prune.blocks.emission import emit_rows, emit_whole_rows
from qubo_prune.blocks.gram_rows import LayerState, descend
from qubo_prune.blocks.rows import UNFED, Descent
from qubo_prune.errors import InputError
from qubo_prune.hessian import Drift, Gram, GramAccumulator
from qubo_prune.masks import Pattern
from qubo_prune.methods.correction import corrected
from qubo_prune.methods.registry import choose
from qubo_prune.methods.update import update
from qubo_prune.problem.bounds import lower_bounds
from qubo_prune.run.prune import prune
from qubo_prune.solver import BatchRequest, BatchResult, Capabilities, Solver, SolveRequest, SolveResult
from qubo_prune.solver.dispatch import Handling
from qubo_prune.solver.registry import make_solver

PATTERNS = [("row", 0.5), ("layer", 0.4), ("2:4", 0.5)]
DAMPINGS = (0.0, 1e-10, 0.01, 0.3)


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest, rng: np.random.Generator) -> Layer:
    return LAYERS[request.param](rng)


def row_errors(layer: Layer, weight: Tensor) -> NDArray[np.float64]:
    """``||(v_r - w_r) X||^2 / N`` by numpy, from the inputs alone."""
    moved = layer.inputs.numpy() @ (weight.double() - layer.weight.double()).numpy().T
    return (moved**2).sum(0) / len(layer.inputs)


def error(layer: Layer, weight: Tensor) -> float:
    return float(row_errors(layer, weight).sum())


def refitted(layer: Layer, keep: Tensor, damping: float) -> float:
    """The least damped error of a mask, row by row, by least squares with a root of the damped Gram."""
    diagonal = damping * float(layer.gram.diagonal.mean())
    root = np.linalg.cholesky(layer.gram.matrix.numpy() + diagonal * np.eye(layer.gram.matrix.shape[0])).T
    total = 0.0
    for dense, mask in zip(layer.weight.double().numpy(), keep.numpy(), strict=True):
        lost = root[:, ~mask] @ dense[~mask]
        # columns of one length, so that lstsq takes none for zero
        columns = root[:, mask] / np.linalg.norm(root[:, mask], axis=0)
        rest = lost - columns @ np.linalg.lstsq(columns, lost, rcond=1e-15)[0]
        total += float(rest @ rest) / 2
    return total


def same_counts(one: Tensor, other: Tensor, pattern: str) -> bool:
    """Whether two masks hold as many weights, in every group of the pattern."""
    groups = Pattern.parse(pattern).groups
    return bool((groups(one).sum(1) == groups(other).sum(1)).all())


def test_the_gram_is_that_of_dense_algebra(layer: Layer) -> None:
    inputs = layer.inputs.numpy()
    wanted = 2 * inputs.T @ inputs / len(inputs)
    norms = np.sqrt(np.diag(wanted))
    # relative to the norms of the two inputs: the rounding of float32 over the tokens
    assert (np.abs(layer.gram.matrix.numpy() - wanted) <= 1e-6 * np.outer(norms, norms)).all()
    assert layer.gram.dead.tolist() == (norms == 0).tolist()


@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
@pytest.mark.parametrize("kind", ["magnitude", "wanda", "greedy", "random"])
def test_warm_starts_have_exact_counts(layer: Layer, kind: str, pattern: str, density: float) -> None:
    keep = choose(kind, layer.weight, layer.gram, Pattern.parse(pattern), density, 0).keep
    assert Pattern.parse(pattern).violations(keep, density) == 0


@pytest.mark.gate(24)
@pytest.mark.parametrize(
    ("solver", "pattern", "density"),
    [*(("greedy", *each) for each in PATTERNS), ("tabu", "row", 0.5), ("local", "layer", 0.4), ("exact", "2:4", 0.5)],
)
def test_descents_end_at_the_measured_error_and_below_their_start(
    layer: Layer, solver: str, pattern: str, density: float
) -> None:
    keep = choose("wanda", layer.weight, layer.gram, Pattern.parse(pattern), density, 0).keep
    settings = Descent(make_solver(solver), block_size=12, max_sweeps=2, block_time=0.2)
    found = descend(layer.weight, layer.gram, keep, Pattern.parse(pattern), settings)
    before, after = error(layer, layer.weight * keep), error(layer, layer.weight * found.keep)
    assert same_counts(found.keep, keep, pattern) or pattern == "layer"
    assert found.keep.sum() == keep.sum()
    assert after <= before * (1 + 1e-6)
    assert found.trace[0].energy == pytest.approx(before, rel=1e-5, abs=0.0)
    assert found.trace[-1].energy == pytest.approx(after, rel=1e-5, abs=1e-5 * before)
    energies = [point.energy for point in found.trace]
    assert (np.diff(energies) <= 1e-12 * energies[0]).all()
    # nothing but the time of a proof, and a layer that has nothing to decide, is worth a note
    assert all("error" not in note for note in found.kept_start)


@pytest.mark.gate(48)
@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
@pytest.mark.parametrize("damping", DAMPINGS[:3])
def test_compensated_descents_end_below_the_refitted_start(
    layer: Layer, damping: float, pattern: str, density: float
) -> None:
    keep = choose("wanda", layer.weight, layer.gram, Pattern.parse(pattern), density, 0).keep
    settings = CompensatedDescent(Greedy(), block_size=12, max_sweeps=3, damping=damping)
    found = descend_compensated(layer.weight, layer.gram, keep, Pattern.parse(pattern), settings)
    assert same_counts(found.keep, keep, pattern)
    if layer.gram.dead.all():
        assert found.kept_start == {UNFED: 1}
        assert torch.equal(found.keep, keep)
        return
    raised = [float(note.split()[4]) for note in found.kept_start if note.startswith("Damping was raised to")]
    used = max([damping, *raised])
    before, after = refitted(layer, keep, used), refitted(layer, found.keep, used)
    size = error(layer, torch.zeros_like(layer.weight))
    assert after <= before + 1e-6 * before + 1e-12 * size
    # where the rest of a row tells a weight nearly exactly, energies are differences of much larger numbers
    assert found.trace[-1].energy == pytest.approx(after, rel=5e-3, abs=1e-6 * before + 1e-9 * size)


@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
@pytest.mark.parametrize("damping", DAMPINGS)
def test_updates_are_finite_zero_where_pruned_and_a_refit_is_the_best(
    layer: Layer, damping: float, pattern: str, density: float
) -> None:
    keep = choose("wanda", layer.weight, layer.gram, Pattern.parse(pattern), density, 0).keep
    masked, size = error(layer, layer.weight * keep), error(layer, torch.zeros_like(layer.weight))
    for kind in UPDATES:
        found = update(kind, layer.weight, layer.gram, keep, damping)
        assert found.weight.dtype == layer.weight.dtype
        assert torch.isfinite(found.weight).all()
        assert not found.weight[~keep].any()
        if kind == "none":
            assert torch.equal(found.weight, layer.weight * keep)
        elif kind == "refit" and not layer.gram.dead.all():
            # rounding to the dtype of the weights moves the outputs by that share of themselves
            rounding = torch.finfo(layer.weight.dtype).eps ** 2 * WIDTH * size * 10
            assert error(layer, found.weight) <= masked * (1 + 1e-6) + rounding
            if not found.notes and not layer.gram.dead.any():
                moved = (found.weight.double() - layer.weight.double()).square().sum().item()
                damped = error(layer, found.weight) + damping * float(layer.gram.diagonal.mean()) * moved / 2
                best = refitted(layer, keep, found.damping)
                assert damped <= best * (1 + 1e-4) + rounding + 1e-3 * rounding**0.5 * best**0.5


@pytest.mark.gate(84)
@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_methods_have_exact_counts_and_finite_weights(
    layer: Layer, name: str, pattern: str, density: float
) -> None:
    for damping in (0.0, 0.01) if PUBLISHED[name].traits.updates else (0.01,):
        found = choose(name, layer.weight, layer.gram, pattern, density, damping=damping)
        assert Pattern.parse(pattern).violations(found.keep, density) == 0
        if found.weight is not None:
            assert found.weight.dtype == layer.weight.dtype
            assert torch.isfinite(found.weight).all()
            assert not found.weight[~found.keep].any()


@pytest.mark.gate(20)
@pytest.mark.parametrize(
    ("kind", "pattern", "density"),
    [
        ("plain", "row", 0.5),
        ("eigenvalue", "layer", 0.4),
        ("trace", "2:4", 0.5),
        ("trace", "layer", 0.4),
        ("row", "row", 0.5),
        ("semidefinite", "row", 0.5),
        ("semidefinite", "2:4", 0.5),
    ],
)
def test_no_bound_is_above_what_the_descent_finds(layer: Layer, kind: str, pattern: str, density: float) -> None:
    keep = choose("wanda", layer.weight, layer.gram, Pattern.parse(pattern), density, 0).keep
    best = descend(layer.weight, layer.gram, keep, Pattern.parse(pattern), Descent(Greedy(), block_size=12)).keep
    labels = Pattern.parse(pattern).labels(WIDTH)
    x, weight = (~keep).double(), layer.weight.double()
    batch = emit_whole_rows(weight, x, layer.gram.matrix, torch.zeros_like(x), labels, int(labels.max()) + 1)
    together = int(x.sum()) if pattern == "layer" else None
    # bounds hold wherever the optimiser stops, and hostile layers are slow to converge
    found = lower_bounds(batch, kind, total=together, most=30, rounds=1).lower.sum()
    assert torch.isfinite(found)
    assert float(found) <= error(layer, layer.weight * best) * (1 + 1e-6)


def test_the_bound_of_a_layer_is_between_zero_and_what_the_descent_finds(layer: Layer) -> None:
    pattern = Pattern.parse("row")
    keep = choose("wanda", layer.weight, layer.gram, pattern, 0.5, 0).keep
    best = descend(layer.weight, layer.gram, keep, pattern, Descent(Greedy(), block_size=12)).keep
    bound = least_error(layer.weight, layer.gram, keep, pattern, "eigenvalue")
    assert 0 <= bound <= error(layer, layer.weight * best) * (1 + 1e-6)


@pytest.mark.parametrize(("pattern", "density"), PATTERNS)
def test_sampled_blocks_gain_no_more_than_their_rows_lose(layer: Layer, pattern: str, density: float) -> None:
    keep = choose("wanda", layer.weight, layer.gram, Pattern.parse(pattern), density, 0).keep
    found = block_optima(layer.weight, layer.gram, keep, Pattern.parse(pattern), rows=ROWS, size=12)
    assert found.blocks + found.skipped == ROWS
    assert 0 <= found.optimal <= found.proven <= found.blocks
    assert 0 <= found.gain <= error(layer, layer.weight * keep) * (1 + 1e-6)


# what the range of a type cannot hold


def test_a_row_whose_updated_weights_overflow_keeps_its_own_and_a_note_says_so() -> None:
    # the second input is a thousandth of the first, and has to make up for it
    line = torch.tensor([[1.0], [1e-3], [0.0]], dtype=torch.float64)
    gram = Gram(line @ line.T + torch.diag(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)), 3)
    weight = torch.tensor([[1000.0, 1.0, 2.0], [1.0, 1.0, 2.0]]).half()
    keep = torch.tensor([[False, True, True]]).expand(2, 3)
    found = update("refit", weight, gram, keep, 1e-12)
    assert found.notes == {"The updated weights of a row overflow float16, so its kept weights stay as they are.": 1}
    assert found.weight[0].tolist() == [0.0, 1.0, 2.0]
    assert found.weight[1, 1] == pytest.approx(1001, rel=1e-2)
    wide = update("refit", weight.float(), gram, keep, 1e-12)
    assert wide.notes == {}
    assert float(wide.weight[0, 1]) == pytest.approx(1e6, rel=1e-2)


def test_a_correction_that_overflows_leaves_its_row_as_it_was() -> None:
    weight = torch.tensor([[60_000.0, 1.0], [1.0, 1.0]]).half()
    gram = Gram(torch.eye(2, dtype=torch.float64), 3, drift=Drift(torch.eye(2, dtype=torch.float64)))
    notes = Counter[str]()
    target = corrected(weight, gram, 0.5, 0.0, notes)
    assert target.tolist() == [[60_000.0, 1.0], [1.5, 1.5]]
    assert sum(notes.values()) == 1


def test_drifts_of_inputs_beyond_single_precision_are_those_of_dense_algebra(rng: np.random.Generator) -> None:
    now, before = rng.normal(size=(9, 4)) * 1e25, rng.normal(size=(9, 4)) * 1e25
    accumulator = GramAccumulator("layer", own_drift=True)
    given, dense = torch.tensor(now).bfloat16(), torch.tensor(before).bfloat16()
    accumulator.add(given, dense)
    drift = accumulator.finish(4).drift
    assert drift is not None
    # the difference of the inputs is one of float32
    moved = (dense.float() - given.float()).double()
    torch.testing.assert_close(drift.cross, 2 / 9 * moved.T @ given.double(), rtol=1e-12, atol=0)
    assert drift.own is not None
    torch.testing.assert_close(drift.own, 2 / 9 * moved.T @ moved, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float16, torch.inf), (torch.bfloat16, -torch.inf), (torch.float32, torch.nan), (torch.float64, 1e200)],
)
def test_inputs_that_no_gram_can_hold_are_named(dtype: torch.dtype, value: float) -> None:
    inputs = torch.ones(5, 3, dtype=dtype)
    inputs[2, 1] = value
    said = r"layer 'that' hold NaN or infinite values, or some whose squares are beyond 1\.8e308 \(first in feature 1\)"
    with pytest.raises(InputError, match=said):
        GramAccumulator("that").add(inputs)


def test_places_beyond_31_bits_are_gathered_from_a_wide_gram() -> None:
    d = 46_342  # d * d is above 2^31
    try:
        matrix = torch.from_numpy(np.zeros((d, d), dtype=np.float16))  # 4 GiB, of which a few pages are touched
    except MemoryError:
        pytest.skip("no 4 GiB of address space")
    matrix[d - 1, d - 1], matrix[d - 1, 5], matrix[5, d - 1] = 3.0, 2.0, 2.0
    columns = torch.tensor([[5, d - 1]])
    row = torch.ones(1, d, dtype=torch.float16)
    batch = emit_rows(row, row, matrix, row, columns, torch.zeros(2, dtype=torch.long), 1)
    assert batch.hessian.tolist() == [[[0.0, 2.0], [2.0, 3.0]]]


# whole runs


class Stretch(nn.Module):
    """Multiplies its inputs by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor


def net(dtype: torch.dtype, stretch: float = 1.0, dead: bool = False) -> nn.Sequential:
    """Three layers; the last reads features without end, or dead ones, as asked."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 16), Stretch(stretch), nn.ReLU(), nn.Linear(16, 4)
    )
    if dead:
        model[2].weight.data.zero_()
        model[2].bias.data.fill_(-1.0)
    return model.to(dtype)


def batches(dtype: torch.dtype, count: int = 64) -> list[Tensor]:
    inputs = torch.randn(count, 16, generator=torch.Generator().manual_seed(1))
    inputs[:, 3], inputs[:, 4], inputs[:, 5] = inputs[:, 2], 1.0, 0.0  # a duplicate, a constant and a dead one
    return list(inputs.to(dtype).split(16))


RUNS: list[dict[str, Any]] = [
    {},
    {"warm_start": "greedy", "pattern": "layer", "certify": "eigenvalue"},
    {"pattern": "2:4", "solver": "tabu", "max_sweeps": 3},
    {"method": "compensated", "damping": 0.0},
    {"method": "compensated", "pattern": "layer", "correction": 1.0, "damping": 1e-10, "protect": 0.05},
    {"method": "sparsegpt", "damping": 0.0},
    {"method": "alps", "pattern": "layer"},
    {"update": "refit", "damping": 0.0, "guard": 1, "allocation": "owl", "pattern": "layer"},
]


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize(
    ("number", "dtype"), [(number, (torch.float16, torch.bfloat16)[number % 2]) for number in range(len(RUNS))]
)
def test_a_run_on_odd_features_has_exact_counts_and_finite_outputs(number: int, dtype: torch.dtype, dead: bool) -> None:
    model, given = net(dtype, dead=dead), {"density": 0.5, "seed": 0, **RUNS[number]}
    report = prune(model, batches(dtype), **given)
    kept = sum(layer.kept for layer in report.layers)
    assert kept == round(0.5 * sum(layer.shape[0] * layer.shape[1] for layer in report.layers))
    assert report.masks.verify(model) == {}
    for layer in report.layers:
        numbers = [layer.error_before, layer.error_after, layer.output_power, layer.solver_gain, layer.polish_gain]
        assert np.isfinite(numbers).all()
        if "damping" not in given and "method" not in given:
            assert layer.error_after <= layer.error_before * (1 + 1e-6)
    with torch.no_grad():
        assert torch.isfinite(model(batches(dtype)[0])).all()


@pytest.mark.parametrize("settings", [{}, {"method": "compensated"}, {"method": "loss"}, {"method": "sparsegpt"}])
def test_activations_that_overflow_are_named_with_their_layer_and_nothing_changes(settings: dict[str, Any]) -> None:
    model, data = net(torch.float16, stretch=60_000.0), [8 * inputs for inputs in batches(torch.float16)]
    before = [parameter.clone() for parameter in model.parameters()]
    calibration: Any = data
    if settings.get("method") == "loss":
        calibration = [(inputs, torch.arange(16) % 4) for inputs in data]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        # a loss is measured before any layer's inputs are: module 3 is what overflows, layer 5 what reads it
        told = "not finite is that of module '3'" if "loss" in settings.values() else "layer '5' hold NaN or inf"
        with pytest.raises(InputError, match=told) as caught:
            prune(model, calibration, 0.5, **settings)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_the_same_activations_are_pruned_in_a_wider_dtype() -> None:
    report = prune(net(torch.bfloat16, stretch=1e25), batches(torch.bfloat16), 0.5)
    assert [layer.kept / (layer.shape[0] * layer.shape[1]) for layer in report.layers] == [0.5] * 3
    assert report.layers[-1].error_after <= report.layers[-1].error_before
    assert report.layers[-1].output_power > 1e48


# a hundred thousand blocks


@dataclass(frozen=True)
class Nudge(Solver):
    """The one best swap of a block and no more, so that many blocks are accepted one after another."""

    capabilities: ClassVar[Capabilities] = Capabilities(batched=True, stochastic=False, anytime=True)

    def solve(self, request: SolveRequest, /) -> SolveResult:
        raise NotImplementedError

    def solve_batch(self, request: BatchRequest, /) -> BatchResult:
        problems, x = request.problems, request.warm_start
        couplings = problems.values[:, :, None] * problems.hessian * problems.values[:, None, :]
        costs = problems.flip_costs(x)
        change = costs[:, :, None] - costs[:, None, :] - couplings
        best, at = change.masked_fill(x[:, :, None] | ~x[:, None, :], torch.inf).flatten(1).min(1)
        rows, answer = (best < 0).nonzero()[:, 0], x.clone()
        answer[rows, at[rows] // x.shape[1]] = True
        answer[rows, at[rows] % x.shape[1]] = False
        return BatchResult(answer)


@pytest.mark.slow
def test_the_energy_never_rises_over_a_hundred_thousand_accepted_blocks(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, width = 6000, 96
    inputs = rng.normal(size=(2 * width, width)) @ (rng.normal(size=(width, width)) / width**0.5 + np.eye(width) / 2)
    inputs[:, 1], inputs[:, 2], inputs[:, 3], inputs[:, 4] = inputs[:, 0], 1.0, 1e3 * inputs[:, 5], 0.0
    accumulator = GramAccumulator("layer")
    accumulator.add(torch.tensor(inputs))
    gram, weight = accumulator.finish(width), rng.normal(size=(rows, width)).astype(np.float32)
    seen: list[float] = []

    class Watched(LayerState):
        """Measures the layer anew, from its inputs, after every move."""

        def move(self, rows: Tensor, x: Tensor, update_field: bool = True) -> None:
            super().move(rows, x, update_field)
            pruned = ~self.keep_mask().numpy()
            seen.append(float(((inputs @ (weight.astype(np.float64) * pruned).T) ** 2).sum()) / len(inputs))

    monkeypatch.setattr("qubo_prune.blocks.gram_rows.LayerState", Watched)
    keep = choose("random", torch.tensor(weight), gram, Pattern("row"), 0.5, 0).keep
    settings = Descent(Nudge(), block_size=16, max_sweeps=150, patience=3, handling=Handling(polish=False))
    found = descend(torch.tensor(weight), gram, keep, Pattern("row"), settings)
    assert found.accepted > 100_000
    assert len(seen) > 40
    assert (np.diff(seen) <= 1e-13 * np.array(seen[:-1])).all()
    assert found.trace[-1].energy == pytest.approx(seen[-1], rel=1e-9)
    assert (found.keep.sum(1) == width // 2).all()
