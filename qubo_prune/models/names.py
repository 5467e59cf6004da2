"""Names of layers: folded by kind, broken at their dots in narrow tables, near ones for a pattern that matches none."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment

from qubo_prune.errors import InputError

#: Kinds of layers that a message lists at most.
_LISTED = 8


def folded(name: str) -> str:
    """The kind of a layer: numbers in its name are left open.

    >>> folded("model.layers.3.mlp.up_proj")
    'model.layers.*.mlp.up_proj'
    """
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


def plain_name(name: str) -> str:
    """The name of a module or parameter without what ``torch.compile`` puts into it.

    >>> plain_name("layers.0._orig_mod.mlp.weight")
    'layers.0.mlp.weight'
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of some shell-style patterns matches a name, capitals and all."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def kinds(names: Iterable[str]) -> list[str]:
    """Every kind once, in the order of the names."""
    return list(dict.fromkeys(map(folded, names)))


def no_match(pattern: str, names: Sequence[str]) -> InputError:
    """What is said of a shell-style pattern that matches none of the layers."""
    near, known = _near(pattern, names), kinds(names)
    meant = f" (did you mean {near!r}?)" if near else ""
    more = f" and {len(known) - _LISTED} other kinds" if len(known) > _LISTED else ""
    return InputError(
        f"The pattern {pattern!r} matches none of the {len(names)} prunable layers{meant}; there are "
        f"{', '.join(known[:_LISTED]) or 'none'}{more}."
    )


def _near(pattern: str, names: Sequence[str]) -> str | None:
    """A pattern that matches some layer, got by putting the nearest known part for each unknown one."""
    parts = {part for name in names for part in name.split(".")}
    given = pattern.split(".")
    corrected = [part if part in parts or "*" in part else _nearest(part, parts) for part in given]
    if None not in corrected:
        found = ".".join(part for part in corrected if part is not None)
        for candidate in (found, f"*.{found}.*", f"*.{found}", f"{found}.*"):
            if fnmatch.filter(names, candidate):
                return candidate
    return _nearest(pattern, kinds(names))


def _nearest(word: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), None)


@dataclass(frozen=True)
class DottedName:
    """A name as a cell of a table: where it is too long for its column, it goes on behind a dot in the next line."""

    name: str

    def __str__(self) -> str:
        return self.name

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widest = max(map(len, self._parts()), default=0)
        return Measurement(min(widest, options.max_width), min(len(self.name), options.max_width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for line in self.lines(options.max_width):
            yield Segment(line)
            yield Segment.line()

    def lines(self, width: int) -> list[str]:
        """The name in lines of at most that width; a part that is longer still is cut."""
        lines = [""]
        for part in self._parts():
            if lines[-1] and len(lines[-1]) + len(part) > width:
                lines.append("")
            lines[-1] += part
        return [line[at : at + width] for line in lines for at in range(0, max(1, len(line)), max(1, width))]

    def _parts(self) -> list[str]:
        return re.findall(r"[^.]*\.?", self.name)[:-1] or [self.name]
