"""Files as a stranger, a bad disk or a bad editor leaves them."""

from __future__ import annotations

from hypothesis import strategies as st

#: What files are damaged with: pieces of syntax and numbers that break those who trust them.
TOKENS = [
    b"1e999",
    b"-1",
    b"NaN",
    b"Infinity",
    b"9" * 400,
    b"1000000000000",
    b"0x10",
    b"null",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"\0",
    b"\xff\xfe",
    b"\r",
    b"\n",
    b",",
    b"../../etc/passwd",
    b"-0",
    b"1e-400",
    b" ",
]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with bits flipped, pieces cut out, doubled, moved, or replaced by tokens."""
    for _ in range(draw(st.integers(1, 4))):
        at, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        kind = draw(st.sampled_from(["flip", "cut", "double", "token", "end"]))
        if kind == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
        elif kind == "cut":
            content = content[:at] + content[end:]
        elif kind == "double":
            content = content[:end] + content[at:end] + content[end:]
        elif kind == "token":
            content = content[:at] + draw(st.sampled_from(TOKENS)) + content[min(len(content), at + 3) :]
        else:
            content = content[:at]
    return content
