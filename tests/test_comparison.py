"""Methods side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny

from qubo_prune.comparison import Entry, compare
from qubo_prune.errors import InputError


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, str]:
    text = tmp_path / "text.txt"
    text.write_text(tiny.text(), encoding="utf-8")
    return str(tiny.save(tmp_path / "model")), str(text)


def test_every_method_starts_from_the_dense_weights(sources: tuple[str, str]) -> None:
    model, text = sources
    settings = {"calibration": text, "text": text, "samples": 4, "eval_samples": 3, "sequence_length": 16}
    both = compare(model, ["magnitude", "wanda"], **settings)
    alone = compare(model, ["wanda"], **settings)
    assert both.row("wanda").perplexity == alone.row("wanda").perplexity
    assert both.row("wanda").layer_error == alone.row("wanda").layer_error
    assert both.row("dense").perplexity == alone.row("dense").perplexity
    assert both.rise("dense") == 0
    expected = math.log(both.row("wanda").perplexity) - math.log(both.row("dense").perplexity)
    assert both.rise("wanda") == pytest.approx(expected)
    assert "Wanda" in str(both)
    assert max(map(len, str(both).splitlines())) <= 80


def test_methods_are_checked_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="did you mean 'wanda'"):
        compare("no-such-model", ["wandda"])
    with pytest.raises(InputError, match="No method is given"):
        compare("no-such-model", [])


def test_settings_and_entries_make_a_row_each(sources: tuple[str, str], tmp_path: Path) -> None:
    model, text = sources
    found = compare(
        model, ["admm+refit", "icbs:compensated"], density=["0.5", 0.25, "2:4"], pattern="layer", calibration=text,
        text=text, samples=4, eval_samples=3, sequence_length=16, output=tmp_path / "out",
    )  # fmt: skip
    assert found.settings == ["0.5 layer", "0.25 layer", "2:4"]
    assert [(row.method, row.setting) for row in found.rows[1:3]] == [
        ("admm+refit", "0.5 layer"), ("icbs:compensated", "0.5 layer"),
    ]  # fmt: skip
    assert [row.density for row in found.rows] == [1.0, 0.5, 0.5, 0.25, 0.25, 0.5, 0.5]
    for setting in found.settings:
        ours, theirs = (found.row(method, setting) for method in ("icbs:compensated", "admm+refit"))
        assert ours.relative_error < theirs.relative_error
    assert all(row.peak_memory_bytes > 2**20 for row in found.rows[1:])
    shown = str(found)
    assert max(map(len, shown.splitlines())) <= 80
    assert "ADMM + refit" in shown
    assert "iCBS compensated" in shown
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5000
    saved = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert len(saved["rows"]) == 7


@pytest.mark.parametrize(
    ("text", "entry", "label"),
    [
        ("wanda", Entry("wanda"), "Wanda"),
        ("admm+refit", Entry("admm", update="refit"), "ADMM + refit"),
        ("icbs", Entry("icbs"), "iCBS blocks"),
        ("icbs:compensated", Entry("icbs", "compensated"), "iCBS compensated"),
        ("icbs:gram+refit", Entry("icbs", update="refit"), "iCBS blocks + refit"),
    ],
)
def test_entries_are_read(text: str, entry: Entry, label: str) -> None:
    assert Entry.parse(text) == entry
    assert entry.label == label
    assert Entry.parse(str(entry)) == entry


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["admm:compensated"]}, "The method 'admm' takes no Hessian"),
        ({"methods": ["icbs:gramm"]}, "did you mean 'gram'"),
        ({"methods": ["wanda+refitt"]}, "did you mean 'refit'"),
        ({"methods": ["wanda"], "density": "half"}, "pattern 'half' is not known"),
        ({"methods": ["wanda"], "density": "1.5"}, "density is 1.5"),
        ({"methods": ["wanda"], "density": "0.3", "pattern": "2:4"}, "keeps 0.5"),
    ],
)
def test_bad_entries_are_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare("no-such-model", **arguments)
