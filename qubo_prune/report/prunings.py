"""What the results that hold several prunings have in common."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from qubo_prune.tables import Shown, Table


class Pruning(abc.ABC):
    """One pruned model of a result."""

    @property
    @abc.abstractmethod
    def title(self) -> str:
        """What its warnings begin with."""

    @property
    @abc.abstractmethod
    def warnings(self) -> tuple[str, ...]:
        """How many blocks the solver lost and how many the clock cut, as sentences."""

    @property
    @abc.abstractmethod
    def all_lost(self) -> bool:
        """True if the solver lost every block."""


class Prunings(Shown):
    """A result that holds several prunings: its table, and what their solvers lost."""

    @property
    @abc.abstractmethod
    def prunings(self) -> Sequence[Pruning]:
        """The pruned models, in their order."""

    @abc.abstractmethod
    def table(self) -> Table:
        """The prunings as a table."""

    def warnings(self) -> list[str]:
        """How many blocks solvers lost and how many the clock cut, as sentences with the prunings they are of."""
        return [f"{pruning.title}: {sentence}" for pruning in self.prunings for sentence in pruning.warnings]

    @property
    def all_lost(self) -> bool:
        """True if a solver lost every block of a pruning."""
        return any(pruning.all_lost for pruning in self.prunings)

    def __rich__(self) -> Group:
        return Group(self.table(), *(Text(sentence, style="bold") for sentence in self.warnings()))
