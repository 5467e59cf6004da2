"""Budgets between the parts of a model as one problem: a QUBO over density levels, and its rivals.

A part is what stands together in a block, its attention or its MLP. Around the masks that a model has now, each part
has options: to keep some more or some fewer of its weights, the highest scores first, so that masks of levels are
nested. With ``x_a = 1`` for the option a that a part takes (exactly one, the present level among them), the divergence
of the dense model's predictions from the masked one's changes, to second order in the logits' moves ``v_a(t)``, by

    E(x) = sum_a m_a x_a + sum_{a != b} Q_ab x_a x_b,    Q_ab = 1/2 mean_t v_a(t)' (diag q_t - q_t q_t') v_b(t),

with ``q_t`` the predictions now and ``m_a`` the change that was measured of option a alone, in nats. The whole budget
is linear: ``sum_a c_a x_a >= C``, with ``c_a`` the weights that option a prunes and C those that the model has to
prune. Any solver decides; the answer is taken if the divergence on other windows falls, a half or a quarter of its way
if the whole does not, and a problem is emitted anew from there. Where nothing falls, the options come nearer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from qubo_prune.clock import Deadline
from qubo_prune.errors import InputError
from qubo_prune.problem.budget_bounds import lower_bound
from qubo_prune.problem.qubo import BlockQubo
from qubo_prune.settings import setting
from qubo_prune.solver.dispatch import solve
from qubo_prune.solver.interface import Solver, derive_seed


@dataclass(frozen=True)
class Part:
    """Layers that share a level.

    Attributes:
        name: of the module that holds them.
        layers: their names.
        size: how many weights they have together.
        block: number of the block that they are in; 0 without a stack.
    """

    name: str
    layers: tuple[str, ...]
    size: int
    block: int = 0


Option = tuple[int, int]
"""Number of a part, and how many weights it keeps."""


@dataclass(frozen=True, eq=False)
class Moves:
    """What options do, each alone, to the masked model as it is.

    Attributes:
        changes: by how much the divergence rises, in nats, measured.
        features: rows with ``features_a' features_b = mean_t v_a(t)' (diag q_t - q_t q_t') v_b(t)``.
    """

    changes: Float[NDArray[np.float64], " n"]
    features: Float[NDArray[np.float32], "n f"]


@runtime_checkable
class Landscape(Protocol):
    """A model whose parts keep as many weights as one says."""

    @property
    def parts(self) -> Sequence[Part]:
        """The parts, in the order in which they run."""

    @property
    def passes(self) -> float:
        """Passes so far, over as much text as :meth:`moves` takes for an option."""

    def divergence(self, kept: Sequence[int], judge: bool, share: float = 1.0) -> float:
        """On the windows that judge, or on a share of those that problems are emitted from."""

    def moves(self, kept: Sequence[int], options: Sequence[Option]) -> Moves:
        """What options do from there."""


@dataclass(frozen=True)
class BudgetSearch:
    """How budgets between parts are searched.

    Attributes:
        passes: forward passes in all, each over ``windows`` short windows.
        parts: attention and MLP of each block, or each matrix by itself.
        windows: that problems are emitted from.
        judges: more of them, by which an answer is taken.
        length: tokens of each.
        step: the largest change of a part's kept share to begin with; options are this and half of it, either way.
        spread: how far a part's kept share may be from the whole's.
        solver: who decides; one that knows budgets, or else penalties stand for them.
        solver_time: seconds that it has for a problem.
    """

    passes: int = setting(800, least=1)
    parts: Literal["halves", "matrices"] = "halves"
    windows: int = setting(6, least=1)
    judges: int = setting(8, least=1)
    length: int = setting(128, least=2)
    step: float = setting(0.1, above=0, most=0.5)
    spread: float = setting(0.3, above=0, below=1)
    solver: str | Solver = "tempering"
    solver_time: float = setting(2.0, above=0)


@dataclass(frozen=True)
class BudgetStep:
    """One problem, or one generation.

    Attributes:
        passes: used when it ended.
        predicted: change of the divergence by the problem, nats.
        bound: no choice of levels has a lower predicted change; ``None`` without a problem.
        measured: divergence on the windows that judge, behind the step.
        taken: how much of the answer was taken: 1, 1/2, 1/4 or 0.
        step: the largest change of a share among the options.
        moved: parts whose level changed.
    """

    passes: float
    predicted: float
    bound: float | None
    measured: float
    taken: float
    step: float
    moved: int


@dataclass(frozen=True)
class BudgetTrace:
    """What a search for budgets did.

    Attributes:
        kept: weights that each part keeps, by its name.
        start: divergence on the windows that judge, to begin with.
        end: the same in the end.
        steps: one after another.
        passes: used.
    """

    kept: dict[str, int]
    start: float
    end: float
    steps: tuple[BudgetStep, ...] = field(default=())
    passes: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BudgetTrace:
        """What :meth:`to_dict` gave."""
        return cls(**{**data, "steps": tuple(BudgetStep(**step) for step in data["steps"])})


def options_of(parts: Sequence[Part], kept: Sequence[int], step: float, density: float, spread: float) -> list[Option]:
    """The levels around the present one, without it: a whole and a half step either way, within the spread."""
    found: dict[Option, None] = {}
    for number, (part, count) in enumerate(zip(parts, kept, strict=True)):
        least = max(1, math.ceil((density - spread) * part.size))
        most = min(part.size, math.floor((density + spread) * part.size))
        for share in (-step, -step / 2, step / 2, step):
            level = min(max(round(count + share * part.size), least), max(most, least))
            if level != count:
                found[number, level] = None
    return list(found)


def problem_of(
    parts: Sequence[Part], kept: Sequence[int], total: int, options: Sequence[Option], moves: Moves
) -> tuple[BlockQubo, list[Option]]:
    """The QUBO over the parts' levels, and what its variables stand for; the present levels are among them.

    Q is positive semidefinite: its diagonal is raised alike within a part where a measured change is below that of
    second order, which one choice for each part takes back in the offset.

    Args:
        parts: the parts.
        kept: weights that they keep now.
        total: weights that they may keep together.
        options: other levels.
        moves: what those do.
    """
    levels = sorted([*enumerate(kept), *options], key=lambda level: level[0])
    row = {option: number for number, option in enumerate(options)}
    features = np.zeros((len(levels), moves.features.shape[1]))
    changes = np.zeros(len(levels))
    for number, level in enumerate(levels):
        if level in row:
            features[number], changes[number] = moves.features[row[level]], moves.changes[row[level]]
    labels = np.array([part for part, _ in levels])
    q = features @ features.T / 2
    raised = np.zeros(len(parts))
    np.maximum.at(raised, labels, np.diag(q) - changes)
    np.fill_diagonal(q, changes + raised[labels])
    problem = BlockQubo(
        q,
        [1] * len(parts),
        offset=-float(raised.sum()),
        labels=labels,
        names=levels,
        costs=np.array([float(parts[part].size - count) for part, count in levels]),
        budget=float(sum(part.size for part in parts) - total),
    )
    return problem, levels


def search_by_qubo(
    landscape: Landscape, kept: Sequence[int], density: float, how: BudgetSearch, seed: int, deadline: Deadline
) -> BudgetTrace:
    """Budgets by problems that are emitted, solved and judged in turn.

    Args:
        landscape: the model.
        kept: weights of each part to begin with; their sum stays, or falls by less than an option's step.
        density: kept share of the whole, from which the spread is taken.
        how: settings.
        seed: of the solver.
        deadline: after which nothing new begins.
    """
    parts, present, step = landscape.parts, list(kept), how.step
    now = start = landscape.divergence(present, judge=True)
    steps: list[BudgetStep] = []
    while step >= how.step / 16 and not deadline.expired:
        options = options_of(parts, present, step, density, how.spread)
        if not options or landscape.passes + len(options) + 2 > how.passes:
            break
        problem, levels = problem_of(parts, present, sum(kept), options, landscape.moves(present, options))
        result = solve(
            problem,
            how.solver,
            derive_seed(seed, len(steps)),
            time_limit=how.solver_time,
            warm_start=np.array([count == present[part] for part, count in levels]),
        )
        wanted = dict(level for level, chosen in zip(levels, result.assignment, strict=True) if chosen)
        taken, before = 0.0, present
        for share in (1.0, 0.5, 0.25):
            tried = [count + round(share * (wanted[part] - count)) for part, count in enumerate(before)]
            if tried == before:
                break
            measured = landscape.divergence(tried, judge=True)
            if measured < now:
                taken, now, present = share, measured, tried
                break
        moved = sum(one != other for one, other in zip(before, present, strict=True))
        bound = lower_bound(problem, "eigenvalue", deadline=Deadline(how.solver_time)).lower
        steps.append(BudgetStep(landscape.passes, float(result.energies[0]), bound, now, taken, step, moved))
        step = step if taken == 1 else step / 2
    return BudgetTrace(_named(parts, present), start, now, tuple(steps), landscape.passes)


def _named(parts: Sequence[Part], kept: Sequence[int]) -> dict[str, int]:
    return {part.name: count for part, count in zip(parts, kept, strict=True)}


#: Children of a generation, and those of them that are judged on all windows.
_CHILDREN, _FINALISTS = 16, 3


def search_by_evolution(
    landscape: Landscape, kept: Sequence[int], density: float, how: BudgetSearch, seed: int, deadline: Deadline
) -> BudgetTrace:
    """Budgets by mutation and selection in several rounds, in the manner of EvoPress (arXiv 2410.14649).

    A child moves half a step of weights from one part to another, one to three times. All children are measured on a
    third of the windows that problems are emitted from, the best of them on all, and the best of those replaces its
    parent if it is better there. The passes are counted in the same text.
    """
    parts, present = landscape.parts, list(kept)
    rng = np.random.default_rng(seed)
    start = landscape.divergence(present, judge=True)
    best, steps = landscape.divergence(present, judge=False), list[BudgetStep]()
    while landscape.passes + _CHILDREN / 3 + _FINALISTS < how.passes and not deadline.expired:
        children = [_mutated(parts, present, density, how, rng) for _ in range(_CHILDREN)]
        rough = [landscape.divergence(child, judge=False, share=1 / 3) for child in children]
        finalists = [children[place] for place in np.argsort(rough, kind="stable")[:_FINALISTS]]
        measured = [landscape.divergence(child, judge=False) for child in finalists]
        place = int(np.argmin(measured))
        better = measured[place] < best
        moved = sum(a != b for a, b in zip(finalists[place], present, strict=True)) if better else 0
        if better:
            best, present = measured[place], finalists[place]
        steps.append(BudgetStep(landscape.passes, 0.0, None, best, float(better), how.step / 2, moved))
    end = landscape.divergence(present, judge=True)
    return BudgetTrace(_named(parts, present), start, end, tuple(steps), landscape.passes)


def _mutated(
    parts: Sequence[Part], kept: Sequence[int], density: float, how: BudgetSearch, rng: np.random.Generator
) -> list[int]:
    """A child: weights go from one part to another."""
    child = list(kept)
    for _ in range(min(int(rng.integers(1, 4)), int(rng.integers(1, 4)))):
        for _ in range(100):
            giver, taker = (int(each) for each in rng.choice(len(parts), 2, replace=False))
            count = round(how.step / 2 * min(parts[giver].size, parts[taker].size))
            fewer, more = child[giver] - count, child[taker] + count
            least = max(1, math.ceil((density - how.spread) * parts[giver].size))
            most = min(parts[taker].size, math.floor((density + how.spread) * parts[taker].size))
            if count and fewer >= least and more <= most:
                child[giver], child[taker] = fewer, more
                break
    return child


def progression(blocks: dict[str, int], density: float, spread: float = 0.1) -> dict[str, float]:
    """Densities that fall evenly with depth, from ``density + spread`` in the first block to ``density - spread``.

    Args:
        blocks: number of each layer's block.
        density: mean of the first and the last.
        spread: how far they are from it, at least 0 and below the density.

    Raises:
        InputError: the spread does not fit the density.
    """
    if not 0 <= spread < density:
        raise InputError(
            f"The spread is {spread} and the density {density:g}; give at least 0 and less than the density."
        )
    numbers = sorted(set(blocks.values()))
    place = {number: at / max(1, len(numbers) - 1) for at, number in enumerate(numbers)}
    reach = min(spread, 1 - density)
    return {name: density + reach * (1 - 2 * place[number]) for name, number in blocks.items()}
