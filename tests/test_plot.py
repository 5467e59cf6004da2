"""Pictures: a file is written, and what it names is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qubo_prune.plot import bar_panels, curves, trade_offs

PANELS = [
    {"iCBS": [(0.0, 0.5), (1.5, 0.8), (4.0, 0.86)], "as published": [(0.0, 0.5), (9.0, 0.7)]},
    {"iCBS": [(0.0, 1.5), (4.0, 0.4)]},
]
LEVELS = [{"dense": 0.9, "magnitude": 0.5}, {}]


def drawn(path: Path, **changes: Any) -> Path:
    settings = {"panels": PANELS, "titles": ["accuracy", "loss"], "x_label": "seconds", "levels": LEVELS, **changes}
    curves(path, **settings)
    return path


def test_a_png_is_a_picture_with_something_in_it(tmp_path: Path) -> None:
    with Image.open(drawn(tmp_path / "curves.png")) as image:
        assert image.format == "PNG"
        assert image.width > 2 * image.height > 500
        colours = image.convert("RGB").getcolors(maxcolors=2**20)
    assert colours is not None
    assert len(colours) > 50
    # the first line in the first colour of the cycle
    assert (31, 119, 180) in {colour for _, colour in colours}


@pytest.mark.parametrize("log_x", [False, True])
def test_lines_levels_and_axes_are_named(tmp_path: Path, log_x: bool) -> None:
    panels = [{name: [(x + 1, y) for x, y in line] for name, line in panel.items()} for panel in PANELS]
    content = drawn(tmp_path / "curves.svg", panels=panels, log_x=log_x).read_text(encoding="utf-8")
    for name in ("iCBS", "as published", "dense", "magnitude", "seconds", "accuracy", "loss"):
        assert f"<!-- {name} -->" in content
    assert content.count("<!-- iCBS -->") == 2


def test_levels_may_be_left_out_and_lines_be_empty(tmp_path: Path) -> None:
    content = drawn(
        tmp_path / "curves.svg", panels=[{"nothing yet": []}], titles=["accuracy"], levels=()
    ).read_text(encoding="utf-8")  # fmt: skip
    assert "<!-- nothing yet -->" in content
    assert "dense" not in content
    assert drawn(tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_every_panel_needs_its_title(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        drawn(tmp_path / "curves.png", titles=["accuracy"])


def test_bars_name_methods_series_and_quantities(tmp_path: Path) -> None:
    panels = {
        "rise": {"0.5": [0.3, 0.2], "2:4": [float("nan"), 0.4]},
        "seconds": {"0.5": [1.0, 300.0], "2:4": [2.0, 1.0]},
    }
    bar_panels(tmp_path / "bars.svg", ["Wanda", "ADMM"], panels)
    content = (tmp_path / "bars.svg").read_text(encoding="utf-8")
    for name in ("Wanda", "ADMM", "0.5", "2:4", "rise", "seconds"):
        assert f"<!-- {name} -->" in content


def test_trade_offs_name_series_kinds_and_levels(tmp_path: Path) -> None:
    panels = [
        {"tabu": [(1.0, 0.4, "of 64"), (0.01, 0.5, "of 12"), (2.0, 0.6, "of 64")], "qaoa": [(3.0, 20.0, "of 12")]},
        {"tabu": [(1.0, float("inf"), "of 12")], "qaoa": []},
    ]
    trade_offs(
        tmp_path / "study.svg", panels, ["error", "perplexity"], ["block seconds", "search seconds"],
        [{"Wanda": 1.0}, {}],
    )  # fmt: skip
    content = (tmp_path / "study.svg").read_text(encoding="utf-8")
    for name in ("tabu", "qaoa", "of 12", "of 64", "Wanda", "error", "perplexity", "block seconds", "search seconds"):
        assert f"<!-- {name} -->" in content
    trade_offs(tmp_path / "study.png", panels, ["error", "perplexity"], ["seconds", "seconds"])
    with Image.open(tmp_path / "study.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=2**20) or ()}
    # the first series in the first colour of the cycle
    assert (31, 119, 180) in colours
