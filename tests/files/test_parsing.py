from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubo_prune.errors import InputError
from qubo_prune.files.parsing import is_plain, limited_text, one_line, short, strict_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(VALUES)
def test_what_json_writes_is_read_again(value: object) -> None:
    found = strict_json(json.dumps(value), constants=True)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "line 1, column 1: .* this is no JSON"),
        ('{"a": 1,\n"a": 2}', "the key 'a' stands twice"),
        ('[{"b": {"a": 1, "a": 1}}]', "the key 'a' stands twice"),
        ("NaN", "NaN is found"),
        ('{"a": "NaN",\n"b": "\\\\", "c": NaN}', "line 2: NaN is found"),
        ("[1, -Infinity]", "-Infinity is found"),
        ("[" * 100_000, "cannot be read"),
        ('{"a":' * 100_000, "cannot be read"),
        ("9" * 10_000, "cannot be read"),
        (f'{{"{"x" * 999}": 1, "{"x" * 999}": 2}}', r"the key 'x+\.\.\. stands twice"),
    ],
)
def test_what_is_no_strict_json_is_refused_in_one_sentence(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        strict_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_many_keys_are_read_in_no_time() -> None:
    # a look at all keys before each one would take hours
    assert len(strict_json("{" + ",".join(f'"{i}":0' for i in range(200_000)) + "}")) == 200_000


def test_constants_are_read_where_they_are_allowed() -> None:
    assert strict_json("[Infinity, -Infinity]", constants=True) == [float("inf"), float("-inf")]


def test_files_are_read_up_to_their_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one\r\ntwo")
    assert limited_text(file, 8) == "one\ntwo"
    with pytest.raises(InputError, match="has 8 bytes; at most 7 are read"):
        limited_text(file, 7)
    file.write_bytes(b"\xef\xbb\xbfone")
    assert limited_text(file, 8) == "one"
    file.write_bytes("one".encode("utf-16"))
    with pytest.raises(InputError, match="the file is UTF-16 by its byte-order mark; save it as UTF-8"):
        limited_text(file, 8)
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match="byte 0 is not UTF-8"):
        limited_text(file, 7)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading one waits for a writer
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(FileNotFoundError):
            limited_text(path, 100)
    with pytest.raises(InputError, match="cannot be read"):
        limited_text(tmp_path / ("x" * 300), 100)


def test_plain_texts_have_one_line_and_no_control_characters() -> None:
    assert is_plain("a name, with <tags> & 'quotes' äö")
    for text in ("two\nlines", "\x1b[31m", "\0", "x" * 1001, "a\u2028b", 5, None):
        assert not is_plain(text)


@given(st.text())
def test_one_line_of_any_text_is_plain(text: str) -> None:
    assert is_plain(one_line(text, 100))


def test_long_values_are_shortened() -> None:
    assert short("abc") == "'abc'"
    assert short("x" * 100) == "'" + "x" * 39 + "..."
