"""Blocks within the rows of a layer, whatever Hessian they are emitted from."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

from qubo_prune.arguments import text_as_seconds
from qubo_prune.blocks.rows import Descent, DescentResult, MakeState, descend_rows
from qubo_prune.choices import WholeRow
from qubo_prune.errors import InputError
from qubo_prune.masks.keep import Pattern
from qubo_prune.methods.base import Decision, LayerMethod, LayerTask
from qubo_prune.precision import pinned
from qubo_prune.settings import setting
from qubo_prune.solver.dispatch import Handling, check_groups, check_size, handling_of
from qubo_prune.solver.interface import Solver
from qubo_prune.solver.registry import make_solver


@dataclass(frozen=True)
class RowBlocks(LayerMethod):
    """Improves a mask row by row: blocks of weights become QUBOs that a solver decides.

    A subclass says in :meth:`states` which Hessian the blocks come from; the loop over them is the same for all, see
    :mod:`qubo_prune.blocks.rows`.

    Attributes:
        solver: decides the blocks: a name or a :class:`~qubo_prune.Solver`.
        solver_settings: fields of a named solver.
        block_size: weights per block, half of them kept and half pruned; ``"row"`` for a whole row as one block;
            ``None`` for the usual number, or the most that the solver takes if that is less.
        max_sweeps: most blocks that each row takes.
        block_time: wall-clock seconds that the solver has for a block, also as text such as ``"500ms"``, or ``None``.
        polish: swap within the blocks that the solver has decided.
        row_swaps: swap over whole rows after the blocks, whoever decided those, if the Hessian has such swaps.
        workers: processes for solvers that take one block at a time, or a cluster.
    """

    solver: Any = "greedy"
    solver_settings: Mapping[str, Any] = field(default_factory=dict)
    block_size: int | WholeRow | None = None
    max_sweeps: int = 1
    block_time: float | str | None = setting(60.0, above=0)
    polish: bool = True
    row_swaps: bool = True
    workers: int | str | None = field(default=None, repr=False)

    #: Weights per block if that is not said.
    usual_size: ClassVar[int] = 64
    #: Why whole rows are no blocks of this Hessian, and what to do instead; empty if they are.
    no_whole_rows: ClassVar[str] = "whole rows are no blocks of this method; give a number, or the method 'gram'"

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_time", self.limit)

    @property
    def limit(self) -> float | None:
        """Seconds for a block."""
        return text_as_seconds(self.block_time)

    @cached_property
    def made(self) -> Solver:
        """The solver."""
        return make_solver(self.solver, **self.solver_settings)

    @property
    def solver_name(self) -> str:
        """For reports and messages."""
        return self.solver if isinstance(self.solver, str) else type(self.made).__name__

    @property
    def size(self) -> int | WholeRow:
        """Weights per block, or ``"row"``."""
        if self.block_size is not None:
            return self.block_size
        return min(self.usual_size, self.made.capabilities.max_variables or self.usual_size)

    def size_in(self, width: int) -> int:
        """Most weights of a block in rows of so many weights."""
        return width if self.size == "row" else min(self.size, width)

    @cached_property
    def handling(self) -> Handling:
        """What is done around the solver, connected to its cluster if there is one."""
        return handling_of(self.made, self.solver_name, self.workers, self.polish)

    def check(self, pattern: Pattern, density: float) -> None:
        """Raise :class:`InputError` if blocks, solver and pattern do not go together."""
        size = self.size
        if size == "row" and self.no_whole_rows:
            raise InputError(f"block_size is 'row', and {self.no_whole_rows}.")
        if (size != "row" and size < 2) or self.max_sweeps < 0:
            raise InputError(f"block_size is {size} and max_sweeps {self.max_sweeps}; at least 2 and 0 are needed.")
        if size != "row" and size < pattern.of:
            raise InputError(
                f"block_size is {size}, which holds no group of {pattern.name}; give {pattern.of} or more."
            )
        if size != "row":  # of whole rows the layers tell how long they are
            check_size(self.made, self.solver_name, size)
        assert self.handling is not None  # connects to a cluster now

    def check_rows(self, width: int, pattern: Pattern) -> None:
        """Raise :class:`InputError` if blocks are whole rows, and the solver does not take rows of so many weights."""
        if self.size == "row":
            check_size(self.made, self.solver_name, width)
            check_groups(self.made, self.solver_name, width // pattern.of if pattern.of else 1, width)

    @abc.abstractmethod
    def states(self, task: LayerTask) -> MakeState:
        """What makes the state of a layer's rows on the Hessian of these blocks."""

    def descend(self, task: LayerTask, so_far: Decision) -> DescentResult:
        """What blocks make of the mask so far; every budget keeps its count."""
        width = task.weight.shape[1]
        self.check_rows(width, task.pattern)
        settings = Descent(
            self.made,
            width if self.size == "row" else self.size,
            self.max_sweeps,
            row_swaps=self.row_swaps,
            seed=task.run_seed,
            block_time=self.limit,
            handling=replace(self.handling, journal=task.answers),
            whole_rows=self.size == "row",
        )
        stays = task.stays if self.traits.protects else None
        return descend_rows(
            self.states(task), task.weight, task.gram, so_far.keep, task.pattern, settings, task.deadline, stays
        )

    @pinned()
    def decide(self, task: LayerTask, so_far: Decision | None = None) -> Decision:
        """The improved mask; kept weights are the dense ones."""
        assert so_far is not None
        found = self.descend(task, so_far)
        return Decision(keep=found.keep, notes=found.kept_start, search=found)
