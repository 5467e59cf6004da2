"""Text sources and windows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from qubo_prune.data.text import all_windows, read_text, token_windows
from qubo_prune.errors import InputError


def test_pydoc_halves_are_disjoint_and_complete() -> None:
    from pydoc_data.topics import topics

    halves = [read_text("pydoc", "calibration"), read_text("pydoc", "evaluation")]
    for text in topics.values():
        assert sum(text in half for half in halves) >= 1
    assert abs(len(halves[0]) - len(halves[1])) < 0.5 * sum(map(len, halves))
    assert halves[0] != halves[1]


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second", encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("third", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")
    (tmp_path / "other.bin").write_bytes(b"\xff\xfe")
    assert read_text(str(tmp_path / "b.txt"), "calibration") == "second"
    assert read_text(str(tmp_path), "calibration") == "first\n\nsecond\n\nthird"


def test_a_data_set_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the loader of the data set library takes folders too, so no network is needed
    rows = [{"text": "w1 w2"}, {"text": "w3"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from qubo_prune.data.text import _data_set

    assert _data_set(str(tmp_path)) == "w1 w2\n\nw3"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: str(p / "missing.txt"), "There is no text"),
        (lambda p: str(p / "empty"), "holds no .txt file"),
        (lambda p: str(p / "binary.txt"), "not UTF-8"),
    ],
)
def test_bad_sources(tmp_path: Path, make: object, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=message):
        read_text(make(tmp_path), "calibration")


def test_windows_are_exact_disjoint_and_spread(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text(" ".join(f"w{i}" for i in range(1, 61)), encoding="utf-8")
    windows = token_windows(tiny.tokenizer(), str(file), "calibration", 3, 10)
    assert windows.tokens.tolist() == [list(range(s + 1, s + 11)) for s in (0, 20, 40)]
    described = windows.describe()
    assert described["tokens"] == 30
    assert described["tokens_available"] == 60
    again = token_windows(tiny.tokenizer(), str(file), "calibration", 3, 10)
    assert again.describe()["sha256"] == described["sha256"]


def test_other_draws_are_other_windows_of_the_same_text(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(" ".join(f"w{n * n % 61 + 1}" for n in range(400)), encoding="utf-8")
    every = {tuple(row) for row in all_windows(tiny.tokenizer(), str(file), "calibration", 8).tolist()}
    found = []
    for draw in (0, 1, 1, 2):
        windows = token_windows(tiny.tokenizer(), str(file), "calibration", 6, 8, held_out=3, draw=draw)
        rows = [tuple(row) for row in (*windows.tokens.tolist(), *windows.held_out.tolist())]
        assert len(rows) == 9
        assert set(rows) <= every
        found.append(rows)
    assert found[1] == found[2]
    assert found[0] != found[1] != found[3]
    # a draw takes all there is, held-out ones from what is left
    windows = token_windows(tiny.tokenizer(), str(file), "calibration", 49, 8, held_out=3, draw=5)
    assert len(windows.held_out) == 1


def test_too_little_text_says_how_much_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("w1 w2 w3", encoding="utf-8")
    with pytest.raises(InputError, match=r"has 3 tokens, but 2 windows of 8 need 16"):
        token_windows(tiny.tokenizer(), str(file), "calibration", 2, 8)
    with pytest.raises(InputError, match="samples is 0"):
        token_windows(tiny.tokenizer(), str(file), "calibration", 0, 8)


@pytest.mark.parametrize("length", [1, 7, 10, 60])
def test_all_windows_hold_the_text_in_order_but_for_its_rest(tmp_path: Path, length: int) -> None:
    file = tmp_path / "t.txt"
    file.write_text(" ".join(f"w{i}" for i in range(1, 61)), encoding="utf-8")
    windows = all_windows(tiny.tokenizer(), str(file), "calibration", length)
    assert windows.shape == (60 // length, length)
    assert windows.flatten().tolist() == list(range(1, 60 // length * length + 1))
    with pytest.raises(InputError, match="has 60 tokens, fewer than one window of 61"):
        all_windows(tiny.tokenizer(), str(file), "calibration", 61)


def test_all_windows_of_the_two_halves_of_pydoc_differ() -> None:
    halves = [all_windows(tiny.tokenizer(), "pydoc", purpose, 16) for purpose in ("calibration", "evaluation")]
    assert min(map(len, halves)) > 1000
    assert len(halves[0]) != len(halves[1])
