"""What is known of answers to a batch of blocks, so that a run that goes on need not ask again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from qubo_prune.solver.interface import Status


@dataclass(eq=False)
class Answers:
    """What is known of the rows of one batch.

    Attributes:
        done: rows that were answered.
        assignments: their answers; where a solver failed, the warm start.
        failures: why a row kept its warm start.
        notes: what was done otherwise than asked, by rows.
        cut: rows whose search the clock ended.
    """

    done: Bool[Tensor, " r"]
    assignments: Bool[Tensor, "r n"]
    failures: dict[int, tuple[Status, str]] = field(default_factory=dict)
    notes: dict[int, list[str]] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)

    @classmethod
    def none(cls, start: Bool[Tensor, "r n"]) -> Answers:
        """Nothing is known; every row has its warm start."""
        return cls(torch.zeros(len(start), dtype=torch.bool), start.cpu().clone())

    def open_rows(self) -> list[int]:
        """Rows that were not answered."""
        return [int(row) for row in (~self.done).nonzero()[:, 0]]


@runtime_checkable
class AnswerLog(Protocol):
    """Where the answers to the batches of one descent are kept, in their order, which is always the same."""

    def batch(self, start: Bool[Tensor, "r n"], /) -> Answers:
        """What is known of the next batch, to be completed; ``start`` is its warm start."""

    def written(self) -> None:
        """Some answers were added."""
