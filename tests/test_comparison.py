"""Methods side by side."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny

from qubo_prune.comparison import compare
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
