"""The examples of the documentation and the notebooks run as printed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # examples write files
    monkeypatch.chdir(tmp_path)


def run_in_order(pieces: list[str], name: str) -> None:
    """Run pieces of code one after another in one namespace."""
    assert pieces, f"{name} holds no code"
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, piece in enumerate(pieces):
        exec(compile(piece, f"{name}[{number}]", "exec"), namespace)


def test_the_tour_runs() -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    run_in_order(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL), "python.md")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_and_hold_no_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    run_in_order(["".join(cell["source"]) for cell in code], path.name)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert os.path.exists(page.parent / target), f"{page.name} links to {target}, which is not there"
