"""Notes of layers, folded by kind."""

from __future__ import annotations

from qubo_prune.blocks.notes import folded_notes
from qubo_prune.solver import Status


def test_equal_sentences_are_one_line_with_their_number() -> None:
    names = [f"model.layers.{i}.mlp.{kind}" for i in range(3) for kind in ("up", "down", "gate")]
    lines = folded_notes((name, {"it was late": 2}) for name in names)
    assert lines == ["9 layers, 18 times: It was late."]
    assert folded_notes([("a.0", {"It was late.": 1})]) == ["a.0: It was late."]
    assert folded_notes([]) == folded_notes([("a", {})]) == []


def test_names_within_sentences_are_folded() -> None:
    lines = folded_notes((f"layers.{i}.up", {f"Blocks of layers.{i}.up hold all its 8 weights.": 1}) for i in range(4))
    assert lines == ["4 layers (layers.*.up): Blocks of layers.*.up hold all its 8 weights."]


def test_what_the_line_on_lost_blocks_tells_is_not_told_twice() -> None:
    lost = {Status.FAILED.told("OSError: no host"): 3, Status.OVERRAN.value: 1, Status.TIME_LIMIT.value: 2}
    assert folded_notes([("a", {**lost, Status.NOT_IMPROVED.value: 4})]) == [f"a, 4 times: {Status.NOT_IMPROVED.value}"]


def test_many_kinds_of_notes_are_cut_short() -> None:
    lines = folded_notes([("a", {f"Note {i}.": 1 for i in range(40)})])
    assert len(lines) == 13
    assert lines[-1] == "28 more kinds of notes are in the report's layers."
