"""Notes of layers, folded by kind: equal sentences of several layers are one line with their number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from qubo_prune.errors import as_sentence
from qubo_prune.models.names import folded, kinds
from qubo_prune.solver.interface import Status

#: Lines that stand under a table at most, and kinds of layers that a line names.
_LINES, _KINDS = 12, 2
#: What the line on the solver's blocks tells already.
_TOLD = tuple(
    status.value.removesuffix(".") for status in (Status.FAILED, Status.INFEASIBLE, Status.OVERRAN, Status.TIME_LIMIT)
)


@dataclass
class _Kind:
    layers: list[str] = field(default_factory=list)
    count: int = 0


def folded_notes(notes: Iterable[tuple[str, Mapping[str, int]]]) -> list[str]:
    """Lines that tell the notes of some layers.

    Args:
        notes: names of layers, each with its sentences and how often each is true of it.

    >>> note = "Damping was raised to 0.1 of the mean diagonal."
    >>> folded_notes([("layers.0.up", {note: 1}), ("layers.1.up", {note: 1})])
    ['2 layers (layers.*.up): Damping was raised to 0.1 of the mean diagonal.']
    """
    found: dict[str, _Kind] = {}
    for layer, own in notes:
        for sentence, count in own.items():
            if not sentence.startswith(_TOLD):
                kind = found.setdefault(as_sentence(sentence.replace(layer, folded(layer))), _Kind())
                kind.layers.append(layer)
                kind.count += count
    lines = [f"{_whose(kind)}: {sentence}" for sentence, kind in found.items()]
    more = len(lines) - _LINES
    return lines if more <= 0 else [*lines[:_LINES], f"{more} more kinds of notes are in the report's layers."]


def _whose(kind: _Kind) -> str:
    names, often = kinds(kind.layers), f", {kind.count} times" if kind.count > len(kind.layers) else ""
    if len(kind.layers) == 1:
        return f"{kind.layers[0]}{often}"
    return f"{len(kind.layers)} layers{_named(names)}{often}"


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if len(names) <= _KINDS else ""
