"""How many blocks a solver was given, how many it lost, and how many the clock cut."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from qubo_prune.solver.interface import BatchResult, SolveResult, Status

#: Reasons that a sentence gives, the most frequent first.
_REASONS = 3
#: Characters of a reason in a sentence.
_LENGTH = 160
#: Reasons that are kept apart; a solver whose every error reads differently must not fill the memory.
_KEPT = 50
_OTHER = "failed otherwise"
#: Numbers, and lists of them, in which reasons of a kind may differ.
_NUMBERS = re.compile(r"[-+]?\d[\d.]*(e[-+]?\d+)?(,? [-+]?\d[\d.]*(e[-+]?\d+)?)*")

#: What became of a block whose solver gave no usable answer.
_LOST = {
    Status.FAILED: "raised {}",
    Status.INFEASIBLE: "gave no feasible answer ({})",
    Status.OVERRAN: "gave no answer by the time limit and was ended",
}
THE_SOLVER = "the solver"
STOPPED, ENDED, LEFT_OUT = "stopped at the time limit", "ended there without an answer", "not begun in time"


@dataclass(frozen=True)
class BlockCounts:
    """What became of the blocks that a solver was given.

    Attributes:
        asked: how many it was given.
        lost: how many of them it gave no usable answer to, by reason; reasons that differ in numbers only are one,
            in the words of the first.
        cut: how many of them the clock cut, by how.
    """

    asked: int = 0
    lost: Mapping[str, int] = field(default_factory=dict)
    cut: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_batch(cls, answer: BatchResult, rows: int) -> BlockCounts:
        """One block for each of so many rows."""
        lost, cut = list[str](), Counter[str]()
        for row in sorted({*answer.failures, *answer.cut}):  # of the others there is nothing to say
            status, detail = answer.failures.get(row, (None, ""))
            lost += _lost(status, detail)
            cut.update(_cut(Status.TIME_LIMIT if row in answer.cut else status, begun=row in answer.cut))
        return cls(rows, by_kind(Counter(lost)), dict(cut))

    @classmethod
    def of_result(cls, result: SolveResult) -> BlockCounts:
        """One block."""
        return cls.of_status(result.status, str(result.info.get("detail", "")))

    @classmethod
    def of_status(cls, status: Status | None, detail: str = "") -> BlockCounts:
        """One block that ended so, with what else is known; ``None`` for an end that nobody knows."""
        return cls(1, dict(Counter(_lost(status, detail))), dict(Counter(_cut(status, begun=True))))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> BlockCounts:
        """What :meth:`to_dict` gave, before or after a way through JSON."""
        return cls(int(plain["asked"]), dict(plain["lost"]), dict(plain["cut"]))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data."""
        return asdict(self)

    def __add__(self, other: BlockCounts) -> BlockCounts:
        cut = Counter(self.cut) + Counter(other.cut)
        return BlockCounts(self.asked + other.asked, by_kind(self.lost, other.lost), dict(cut))

    @property
    def num_lost(self) -> int:
        """Blocks without a usable answer."""
        return sum(self.lost.values())

    @property
    def num_cut(self) -> int:
        """Blocks that the clock cut."""
        return sum(self.cut.values())

    @property
    def all_lost(self) -> bool:
        """True if there were blocks, and the solver lost every one of them."""
        return 0 < self.asked == self.num_lost

    def sentences(self, solver: str = THE_SOLVER) -> list[str]:
        """What people have to know of the solver's blocks; nothing if all is well.

        >>> BlockCounts(640, {"raised TypeError: no floats": 640}).sentences("mine")
        ['mine lost 640 of 640 blocks: 640 x raised TypeError: no floats.']
        """
        said = []
        if self.lost:
            named = "The solver" if solver == THE_SOLVER else solver
            said.append(f"{named} lost {self.num_lost} of {_blocks(self.asked)}: {_reasons(self.lost)}.")
        if self.cut:
            said.append(f"The clock cut {self.num_cut} of {_blocks(self.asked)} of {solver}: {_reasons(self.cut)}.")
        return said


#: No blocks at all.
NONE = BlockCounts()


def _lost(status: Status | None, detail: str) -> list[str]:
    """The reason, if the block was lost."""
    if status not in _LOST:
        return []
    reason = _LOST[status].format(detail or "no reason given")
    # a process that died raised nothing
    return [reason.replace("raised its process", "failed: its process") if status is Status.FAILED else reason]


def _cut(status: Status | None, begun: bool) -> list[str]:
    """How the clock cut the block, if it did."""
    if status is Status.OVERRAN:
        return [ENDED]
    return [STOPPED if begun else LEFT_OUT] if status is Status.TIME_LIMIT else []


def by_kind(*parts: Mapping[str, int]) -> dict[str, int]:
    """Reasons, or notes, with their numbers of blocks: those that differ in numbers only as one, in the words of the
    first, and of very many kinds the rest as one.
    """
    first: dict[str, str] = {}
    counts = Counter[str]()
    for reason, count in (entry for part in parts for entry in part.items()):
        kind = _NUMBERS.sub("#", reason)
        if kind not in first and len(first) >= _KEPT:
            kind = reason = _OTHER
        counts[first.setdefault(kind, reason)] += count
    return dict(counts)


def _reasons(counts: Mapping[str, int]) -> str:
    most = Counter(counts).most_common()
    said = [f"{count} x {_short(reason)}" for reason, count in most[:_REASONS]]
    rest = sum(count for _, count in most[_REASONS:])
    return ", ".join(said) + (f", {rest} for other reasons" if rest else "")


def _short(reason: str) -> str:
    """The reason in one line."""
    line = " ".join(reason.split()).rstrip(".")
    return line if len(line) <= _LENGTH else f"{line[:_LENGTH]}..."


def _blocks(count: int) -> str:
    return f"{count} block" if count == 1 else f"{count} blocks"


def total(counts: Iterable[BlockCounts]) -> BlockCounts:
    """All of them together."""
    return sum(counts, NONE)
