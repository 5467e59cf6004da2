"""The report: a page that asks nobody for anything, tables that fit, and verdicts that follow from the numbers."""

from __future__ import annotations

import csv
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_runs import instance, results, row

from qubo_prune.bench.metrics import Results
from qubo_prune.bench.run_report import (
    CLASSES,
    NOTES,
    as_markdown,
    classes_in,
    facts,
    hardness,
    of_class,
    page,
    parts_of,
    verdict,
    write_report,
)

EVIL = "<script>alert('x')</script> --> a|b"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, and tables as rows of cells; fails on a tag that is not closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Three sizes: all proven, half of them, none."""
    instances = [
        instance("a", 8, bound=2.0, optimal=True),
        instance("b", 32, bound=1.9),
        instance("c", 64, bound=2.0, optimal=True),
        instance("d", 128, bound=1.8),
        instance("e", 200, bound=1.5),
        instance("f", 500, bound=1.0),
        instance("g", 576, bound=1.2, whole_row=True),
        instance("unused", 4000),
    ]
    rows = []
    for place, name in enumerate("abcdefg"):
        for solver, energy in (("wanda+swaps", 2.4), ("random+swaps", 2.8), ("good", 2.0), (EVIL, 2.2)):
            for limit in (0.1, 1.0):
                rows.append(row(name, solver, energy + (limit == 0.1) * 0.1 * place, limit))
    # b is proven by the run itself
    rows.append(row("b", "exact", 2.0, lower_bound=2.0, optimal=True, raw=None))
    return results(tmp_path_factory.mktemp("run"), instances, rows)


def test_every_instance_is_in_one_class(found: Results) -> None:
    for n in (1, 8, 32, 33, 128, 129, 512, 513, 4096):
        for whole in (False, True):
            assert sum(chosen.holds(n, "gram", whole) for chosen in CLASSES) == 1
    assert [of_class(found, chosen) for chosen in CLASSES] == [["a", "b"], ["c", "d"], ["e", "f"], [], ["g"]]
    classes = classes_in(found)
    assert [title for title, _ in classes] == ["n up to 32", "33 to 128", "129 to 512", "whole rows"]
    assert sum(len(solves) for _, solves in classes) == len(found.solves)


def test_hardness_is_what_is_proven_and_what_is_left(found: Results) -> None:
    table = hardness(found).set_index("instances")
    assert table["how many"].to_dict() == {"n up to 32": 2, "33 to 128": 2, "129 to 512": 2, "whole rows": 1}
    assert table.proven.to_dict() == {"n up to 32": 2, "33 to 128": 1, "129 to 512": 0, "whole rows": 0}
    assert table["best known to bound"].to_dict() == pytest.approx(
        {"n up to 32": 0.0, "33 to 128": 5.0, "129 to 512": 37.5, "whole rows": 40.0}
    )
    assert table.largest.to_dict() == pytest.approx(
        {"n up to 32": 0.0, "33 to 128": 10.0, "129 to 512": 50.0, "whole rows": 40.0}
    )
    for column, gap in (("Wanda", 50.0), ("wanda+swaps", 20.0), ("random+swaps", 40.0), ("its gap", 0.0)):
        assert table[column].tolist() == pytest.approx([gap] * 4)
    assert table["best solver"].tolist() == ["good"] * 4  # not exact, which does not take all of a class


def test_the_verdict_names_what_is_easy_and_what_is_open(found: Results) -> None:
    easy, nearly, open_, rows = verdict(found)
    assert easy.startswith("Easy: n up to 32. Every optimum is proven")
    assert nearly.startswith("Nearly easy: 33 to 128. 1 of 2 optima are proven")
    assert "at most 10.0 % above" in nearly
    assert open_.startswith("Open: 129 to 512. 0 of 2 optima are proven")
    assert "up to 50.0 % above what is proven, 37.5 % in the mean, and Wanda with single swaps 20.0 %" in open_
    assert rows.startswith("Open: whole rows. 0 of 1")


def test_all_easy_and_all_open(tmp_path: Path) -> None:
    proven = [instance("a", 8, bound=2.0, optimal=True), instance("b", 600, bound=2.0, optimal=True)]
    rows = [row(name, "wanda+swaps", 2.0) for name in "ab"]
    (said,) = verdict(results(tmp_path / "easy", proven, rows))
    assert said.startswith("Easy: n up to 32, above 512. ")
    said = " ".join(verdict(results(tmp_path / "open", [instance("a", 8), instance("b", 600)], rows)))
    assert "Open: n up to 32." in said
    assert "Open: above 512." in said
    assert "asy" not in said


def test_the_page_is_well_formed_and_asks_nobody(found: Results) -> None:
    text = page(found)
    parsed = Page(text)
    assert [tag for tag, _ in parsed.tags].count("svg") == 3
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
                assert value is not None
                assert value.startswith("#")
            for url in re.findall(r"url\(([^)]*)\)", value or ""):
                assert url.startswith("#")
    assert "@import" not in text
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import\()", text)
    assert len(text) < 2_000_000


def test_labels_are_text_wherever_they_stand(found: Results) -> None:
    text = page(found)
    parsed = Page(text)
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert "<script>alert" not in text
    assert any(EVIL in word for word in parsed.words)
    assert any(EVIL in row[0] for table in parsed.tables for row in table)
    assert sum(word == EVIL for word in parsed.words) >= 3 + 1  # a legend of each picture, and a table


def test_the_pages_tables_hold_the_parts(found: Results) -> None:
    parts = parts_of(found)
    tables = Page(page(found)).tables
    assert len(tables) == len(parts) + 1
    for table, part in zip(tables, parts, strict=False):
        assert table[0] == [str(name) for name in part.table.columns]
        assert len(table) == len(part.table) + 1
    assert len(tables[-1]) == len(found.qoblib()) + 1
    assert all(len(row) == len(table[0]) for table in tables for row in table)
    titles = [part.title for part in parts]
    assert titles[:2] == ["Easy and open", "All instances, 1 s a solve"]
    assert len(set(titles)) == len(titles)


def test_the_markdown_has_as_many_cells_as_columns(found: Results) -> None:
    text, tables = as_markdown(found), []
    for line in text.splitlines():
        if line.startswith("|"):
            tables.append(re.split(r"(?<!\\)\|", line.strip()[1:-1]))
        elif tables and tables[-1] is not None:
            tables.append(None)
    groups: list[list[list[str]]] = [[]]
    for cells in tables:
        if cells is None:
            groups.append([])
        else:
            groups[-1].append(cells)
    groups = [group for group in groups if group]
    parts = parts_of(found)
    assert len(groups) == len(parts)
    for group, part in zip(groups, parts, strict=True):
        assert len(group) == len(part.table) + 2
        assert {len(cells) for cells in group} == {len(part.table.columns)}
    for said in [*verdict(found), *NOTES]:
        assert f"* {said}" in text
    for part in parts:
        assert f"## {part.title}\n" in text


def test_numbers_that_are_none_are_dashes(found: Results) -> None:
    text = as_markdown(found)
    assert not re.search(r"\| *(nan|inf|None)\b", text)
    exact = [line for line in text.splitlines() if line.startswith("| exact")]
    assert exact
    assert " - " in exact[0]  # no answer of its own before repair
    assert math.isnan(found.at().set_index("solver").raw_gap["exact"])


def test_the_facts_are_those_of_the_run(found: Results) -> None:
    known = facts(found)
    assert known["suite"] == "by hand version 1, digest 0123"
    assert known["rows"] == "57 solves of 7 instances"
    assert known["machine"] == "a machine"
    assert known["limits"] == "0.1 s, 1 s"
    assert known["sizes"] == "no solver has a limit"


def test_the_report_is_written_and_written_again(found: Results, tmp_path: Path) -> None:
    files = write_report(found, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["report.html", "report.md", "qoblib.csv", "report.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        ".qubo-prune.json",
        *sorted(f.name for f in files),
    ]
    assert files[0].read_text(encoding="utf-8") == page(found)
    assert files[1].read_text(encoding="utf-8") == as_markdown(found)
    assert files[3].read_bytes().startswith(b"\x89PNG")
    with files[2].open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 29
    assert "final % 95 %" in parts_of(found)[1].table.columns
    assert {line["Problem"] for line in lines} == set("abcdefg")
    before = [file.read_bytes() for file in files[:3]]
    assert [file.read_bytes() for file in write_report(found, tmp_path / "new" / "folder")[:3]] == before


FORMULAS = (
    r"$\frac{$",
    "$x$",
    "_hidden",
    "</script><script>alert(1)</script>",
    '" onload="alert(1)',
    "&lt;b&gt;",
    "]]>",
)


def test_every_name_of_a_file_is_text_in_the_page(tmp_path: Path) -> None:
    names = [f"{EVIL} {number}" for number in range(2)]
    rows = [
        row(name, solver, 2.0 + place / 10, machine=EVIL, settings=EVIL, note=EVIL, version=EVIL, status=EVIL)
        for name in names
        for place, solver in enumerate(("wanda+swaps", "random+swaps", *FORMULAS))
    ]
    known = results(
        tmp_path,
        [instance(name, file="a.json", best_by=EVIL, layer=EVIL) for name in names],
        rows,
        suite=EVIL,
        digest=EVIL,
        backend=EVIL,
        versions={EVIL: EVIL},
    )
    text = page(known)
    parsed = Page(text)
    tags = [tag for tag, _ in parsed.tags]
    assert tags.count("script") == 1
    assert "b" not in tags
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    words = " ".join(parsed.words)
    for told in (*FORMULAS, *names):
        assert told in words
    legend = [word.strip() for word in parsed.words]
    for solver in FORMULAS:
        assert legend.count(solver) >= 2, solver  # of the pictures, as it is and not as a formula
    for path in write_report(known, tmp_path / "report"):
        assert path.parent == tmp_path / "report"
