"""Names of layers, as tables and messages show them."""

from __future__ import annotations

import pytest

from qubo_prune.models.names import DottedName, folded, kinds, no_match
from qubo_prune.tables import rendered

NAMES = [
    f"model.layers.{number}.{part}"
    for number in range(3)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]


def test_numbers_are_left_open() -> None:
    assert folded("h.10.attn.c_attn") == "h.*.attn.c_attn"
    assert folded("0") == "*"
    assert folded("conv2d.x1") == "conv2d.x1"
    assert kinds(NAMES)[:2] == ["model.layers.*.self_attn.q_proj", "model.layers.*.self_attn.o_proj"]
    assert len(kinds(NAMES)) == 4


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("*.mpl.*", "*.mlp.*"),
        ("*.self_atn.*", "*.self_attn.*"),
        ("mlp", "*.mlp.*"),
        ("up_porj", "*.up_proj"),
        ("model.layers.1.mlp.upproj", "model.layers.1.mlp.up_proj"),
    ],
)
def test_a_pattern_without_match_gets_a_near_one_that_matches(pattern: str, near: str) -> None:
    said = str(no_match(pattern, NAMES))
    assert f"{pattern!r} matches none of the 12 prunable layers (did you mean {near!r}?)" in said
    assert "there are model.layers.*.self_attn.q_proj, model" in said


def test_of_many_kinds_some_are_listed() -> None:
    said = str(no_match("zzz", [f"part{chr(97 + n)}" for n in range(12)]))
    assert "did you mean" not in said
    assert said.endswith("parth and 4 other kinds.")
    assert str(no_match("x", [])) == "The pattern 'x' matches none of the 0 prunable layers; there are none."


def test_a_long_name_goes_on_behind_a_dot() -> None:
    name = DottedName("model.layers.*.self_attn.q_proj")
    assert name.lines(80) == [str(name)]
    assert name.lines(25) == ["model.layers.*.self_attn.", "q_proj"]
    assert name.lines(8) == ["model.", "layers.", "*.", "self_att", "n.", "q_proj"]
    assert DottedName("").lines(5) == [""]
    assert rendered(name, 25).splitlines() == ["model.layers.*.self_attn.", "q_proj"]
