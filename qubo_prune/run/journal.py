"""Answers of solvers, kept while a layer is pruned, so that a run that goes on does not ask for them again.

A descent is the same whenever it is given the same answers. So its own state need not be kept: it starts anew from
the warm start, is given the answers that are known, and asks for the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from jaxtyping import Bool
from torch import Tensor

from qubo_prune.files.checksummed import Sealed
from qubo_prune.masks.keep import packed_bits, unpacked_bits
from qubo_prune.run.folder import RunFolder
from qubo_prune.solver.answer_log import Answers
from qubo_prune.solver.interface import Status

#: Seconds from one record of unfinished work to the next.
CHECKPOINT_SECONDS = 120.0


class Keeper:
    """Keeps one record of a run's folder, anew every :data:`CHECKPOINT_SECONDS`.

    Args:
        folder: of the run.
        name: of the record.
    """

    def __init__(self, folder: RunFolder, name: str) -> None:
        self._folder, self._name = folder, name
        self._last = time.monotonic()
        self.past, _ = folder.get_or_lost(name)  # what is damaged is made again

    def put_if_due(self, content: Callable[[], Sealed]) -> None:
        """Keep what ``content`` gives, if it is time to."""
        if time.monotonic() - self._last >= CHECKPOINT_SECONDS:
            self.put(content())

    def put(self, content: Sealed) -> None:
        """Keep this."""
        self._folder.put(self._name, content.info, content.tensors)
        self._last = time.monotonic()


class Journal:
    """The answers to the batches of one layer, in their order, which is always the same.

    Args:
        keeper: of the record that they are kept in.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper, self._batches = keeper, list[Answers]()
        self._past = [] if keeper.past is None else _batches(keeper.past)

    def batch(self, start: Bool[Tensor, "r n"]) -> Answers:
        """What is known of the next batch, to be completed; ``start`` is its warm start."""
        number = len(self._batches)
        answers = Answers.none(start)
        if number < len(self._past) and self._past[number].assignments.shape == start.shape:
            answers = self._past[number]
        self._batches.append(answers)
        return answers

    def written(self) -> None:
        """Some answers were added; they are kept if it is time to."""
        self._keeper.put_if_due(self._content)

    def keep(self) -> None:
        """Keep them now: the descent was interrupted."""
        self._keeper.put(self._content())

    def _content(self) -> Sealed:
        tensors, failures, notes, cut = dict[str, Tensor](), [], [], []
        for number, batch in enumerate(self._batches):
            tensors[f"done.{number}"] = batch.done
            tensors[f"assignments.{number}"] = packed_bits(batch.assignments)
            failures += [[number, row, status.name, detail] for row, (status, detail) in batch.failures.items()]
            notes += [[number, row, said] for row, said in batch.notes.items()]
            cut += [[number, row] for row in sorted(batch.cut)]
        shapes = [list(batch.assignments.shape) for batch in self._batches]
        return Sealed(tensors, {"shapes": shapes, "failures": failures, "notes": notes, "cut": cut})


def _batches(content: Sealed) -> list[Answers]:
    found = [
        Answers(
            content.tensors[f"done.{number}"],
            unpacked_bits(content.tensors[f"assignments.{number}"], tuple(shape)),
        )
        for number, shape in enumerate(content.info["shapes"])
    ]
    for number, row, status, detail in content.info["failures"]:
        found[number].failures[row] = (Status[status], detail)
    for number, row, said in content.info["notes"]:
        found[number].notes[row] = said
    for number, row in content.info.get("cut", ()):
        found[number].cut.add(row)
    return found
