"""The examples of the documentation run as printed; what the pages list is what there is.

Notebooks are executed where the site is built, by ``make docs``, which fails if one raises or warns.
"""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import nbformat
import pytest
import qubo_prune_solvers
import typer

import qubo_prune
from qubo_prune.blocks.loss.descent import LossDescent
from qubo_prune.blocks.loss.trace import LossStep, LossTrace
from qubo_prune.cli import app
from qubo_prune.methods.base import LayerTask, Traits
from qubo_prune.methods.registry import describe_methods
from qubo_prune.solver import Capabilities
from qubo_prune.solver.dispatch import PENALTY_FACTOR
from qubo_prune.solver.registry import available_adapters, describe_solvers, solver_class

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLE, METHODS = DOCS / "examples" / "qubo-prune-openjij", DOCS / "examples" / "qubo-prune-power"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
OURS = {info.name: info for info in describe_solvers() if info.distribution == "qubo-prune"}


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


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), flags=re.DOTALL)


def section(page: Path, heading: str) -> str:
    """What stands under a heading, its own subsections included."""
    level = heading.split()[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text_of(page), re.DOTALL | re.M)
    assert found, f"{page.name} has no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a text whose first cell is in code type."""
    lines = re.findall(r"^\| (`.*) \|$", text, flags=re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


@pytest.mark.parametrize("page", ["python.md", "problem-files.md", "loss.md", "methods.md", "sparsity.md"])
def test_the_examples_of_the_page_run(page: str) -> None:
    run_in_order(blocks(DOCS / page, "python"), page)


def markdown_of(path: Path) -> str:
    """The text of a page, or of the Markdown cells of a notebook."""
    if path.suffix != ".ipynb":
        return text_of(path)
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_notebooks_are_numbered_in_their_order() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number}_" for number in range(1, len(NOTEBOOKS) + 1)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.id
        assert not cell.metadata
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target, _, anchor in (t.partition("#") for t in re.findall(r"\]\((?!https?:)([^)]+)", markdown_of(page))):
        file = page.parent / target if target else page
        assert os.path.exists(file), f"{page.name} links to {target}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", text_of(file), flags=re.M)
            assert anchor in [slug(heading) for heading in headings], f"{page.name} links to {target}#{anchor}"


def test_every_module_has_its_place_in_the_guide() -> None:
    said = section(ROOT / "CONTRIBUTING.md", "## Where things live")
    listed = {name for cells in rows(said) for name in re.findall(r"`([\w.]+)`", cells[0])}
    every = pkgutil.walk_packages(qubo_prune.__path__, "qubo_prune.")
    ours = [m.name.removeprefix("qubo_prune.") for m in every if not m.ispkg and not m.name.endswith("__main__")]
    solvers = [m.name for m in pkgutil.iter_modules(qubo_prune_solvers.__path__)]
    assert listed - {"plot"} == {*ours, *solvers}


def public_modules() -> set[str]:
    """Modules of the package and of its back-ends that people may import, but for the command line."""
    found = set()
    for package in (qubo_prune, qubo_prune_solvers):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            last = module.name.rpartition(".")[2]
            # what qubo_prune.plot gathers is described there
            if module.name.startswith(("qubo_prune.plot.", "qubo_prune.cli")) or last.startswith("_"):
                continue
            # a package only hands on what its modules hold
            if not module.ispkg or module.name == "qubo_prune.plot":
                found.add(module.name)
    return found


def test_every_public_module_is_in_the_reference() -> None:
    listed = re.findall(r"^   (qubo_prune\w*\.[\w.]+)$", text_of(DOCS / "reference" / "python.md"), flags=re.M)
    assert len(listed) == len(set(listed))
    assert set(listed) == public_modules()


def test_every_name_of_the_package_is_in_the_reference() -> None:
    listed = re.findall(r"^   ~qubo_prune\.[\w.]+\.(\w+)$", text_of(DOCS / "reference" / "python.md"), flags=re.M)
    assert sorted(listed) == sorted(set(qubo_prune.__all__) - {"__version__"})


def test_the_picture_of_the_architecture_names_modules_that_are_there() -> None:
    picture = text_of(DOCS / "figures" / "architecture.svg")
    named = " ".join(re.findall(r'class="code">([^<]+)<', picture)).split()
    named += " ".join(re.findall(r"\(([a-z_ ]+)\)", picture)).split()
    assert len(named) > 20
    packages = {m.name for m in pkgutil.walk_packages(qubo_prune.__path__, "qubo_prune.") if m.ispkg}
    assert {f"qubo_prune.{name}" for name in named} <= public_modules() | packages


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# --- the solvers ------------------------------------------------------------------------------------


def declared(can: Capabilities) -> str:
    """A solver's capabilities as docs/solvers.md gives them."""
    flags = [field.name for field in fields(can) if getattr(can, field.name) is True]
    # who knows no count declares nothing about several
    shown = ", ".join(f"`{flag}`" for flag in flags if flag != "groups" or can.cardinality)
    size = "any size" if can.max_variables is None else f"at most {can.max_variables} variables"
    devices = ", ".join(f"`{device}`" for device in can.devices)
    needs = ", ".join(f"`{package}`" for _, package in can.requires) or "nothing"
    return f"**Declares** {shown}; {size}; on {devices}; needs {needs}."


def test_every_solver_has_its_section() -> None:
    assert set(re.findall(r"^## `(.*)`$", text_of(DOCS / "solvers.md"), flags=re.M)) == set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_the_section_of_a_solver_agrees_with_its_class(name: str) -> None:
    said, cls = section(DOCS / "solvers.md", f"## `{name}`"), solver_class(name)
    assert declared(cls.capabilities) in said.splitlines()
    settings = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(said)}
    assert settings == {field.name: repr(field.default) for field in fields(cls)}


def test_every_adapter_has_its_section() -> None:
    said = section(DOCS / "solvers.md", "## Adapters")
    assert sorted(re.findall(r"^### `(.*):`$", said, flags=re.M)) == available_adapters()


def test_the_overview_lists_every_solver() -> None:
    listed = {cells[0].strip("`"): cells[2:] for cells in rows(section(DOCS / "solvers.md", "## All of them"))}
    yes = {True: "yes", False: "no"}
    expected = {}
    for name in OURS:
        can = solver_class(name).capabilities
        size = "any" if can.max_variables is None else f"up to {can.max_variables}"
        expected[name] = [yes[can.exact], yes[can.cardinality], yes[can.batched], size]
    assert listed == expected


def test_the_capabilities_are_those_of_the_class() -> None:
    said = section(DOCS / "concepts.md", "## What the framework does around a solver").split("###")[0]
    assert [cells[:2] for cells in rows(said)] == [[f"`{f.name}`", f"`{f.default!r}`"] for f in fields(Capabilities)]
    for field in fields(Capabilities):
        assert f"`{field.name}`" in section(DOCS / "plug-in.md", "## 2. Capabilities")


def test_the_penalty_is_the_one_that_is_used() -> None:
    assert rf"\lambda_g = \tfrac1{round(1 / PENALTY_FACTOR)} |\mu_g|" in section(DOCS / "concepts.md", "### Penalties")


def sources(example: Path) -> list[str]:
    """What an example holds."""
    return [text_of(path) for path in example.rglob("*") if path.suffix in (".py", ".toml")]


def test_the_plug_in_page_quotes_its_example() -> None:
    every = [block for language in ("python", "toml") for block in blocks(DOCS / "plug-in.md", language)]
    # the others are files of their own, which tests/test_plug_in_page.py runs
    quoted = [block for block in every if not block.startswith("# my_")]
    assert len(quoted) == 3
    for block in quoted:
        assert any(block in source for source in sources(EXAMPLE)), f"not in the example:\n{block}"
    for name in re.findall(r"[├└]── (\S+)", text_of(DOCS / "plug-in.md")):
        assert (EXAMPLE / name).is_file()


# --- methods ----------------------------------------------------------------------------------------


def test_the_page_on_methods_quotes_its_example_and_the_rest_runs() -> None:
    page, example = DOCS / "own-method.md", "\n".join(sources(METHODS))
    assert all(block in example for block in blocks(page, "toml"))
    python = blocks(page, "python")
    own = [block for block in python if block not in example]
    assert len(python) - len(own) == 3
    run_in_order(own, page.name)
    for name in re.findall(r"[├└]── (\S+)", text_of(page)):
        assert (METHODS / name).is_file()


def test_the_traits_are_those_of_the_class() -> None:
    said = section(DOCS / "own-method.md", "### Traits")
    listed = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(said)}
    given = {field.name: "required" if field.default is MISSING else field.default for field in fields(Traits)}
    assert listed == {
        name: value if value == "required" else repr(value).replace("'", '"') for name, value in given.items()
    }


def test_the_tasks_fields_stand_on_the_page() -> None:
    said = section(DOCS / "own-method.md", "### What you are given")
    listed = set(re.findall(r"`(\w+)`", " ".join(cells[0] for cells in rows(said))))
    assert listed == {field.name for field in fields(LayerTask)} - {"answers", "mask"}


def test_every_method_and_update_has_its_row() -> None:
    """Scores, blocks, published methods and updates on the page of methods; other distributions' are theirs."""
    ours = [info for info in describe_methods() if info.distribution == "qubo-prune"]
    for heading, role in (("## All methods", "method"), ("## Updates", "update")):
        listed = {
            name for cells in rows(section(DOCS / "methods.md", heading)) for name in re.findall("`([a-z]+)`", cells[0])
        }
        assert listed - {"none"} == {info.name for info in ours if (info.role == "update") == (role == "update")}


# --- the descent on the loss -------------------------------------------------------------------------


def presets(name: str) -> list[str]:
    """A setting of the descent on the loss as docs/loss.md gives it: three kinds of models, and the paper's."""
    kinds = ("classifier", "large", "language")
    ours, paper = ([repr(getattr(LossDescent.preset(k, p), name)) for k in kinds] for p in ("measured", "paper"))
    others = [f", {kind} `{value}`" for kind, value in zip(kinds, paper, strict=True) if value != paper[0]]
    return [f"`{name}`", *(f"`{value}`" for value in ours), "".join([f"`{paper[0]}`", *others])]


def test_the_settings_of_the_loss_are_those_of_the_presets() -> None:
    said = section(DOCS / "loss.md", "## Settings").split("###")[0]
    assert [cells[:5] for cells in rows(said)] == [presets(field.name) for field in fields(LossDescent)]


def test_what_the_loss_reports_stands_on_the_page() -> None:
    said = section(DOCS / "loss.md", "## What the report holds")
    whole, step = ([c[0] for c in rows(part)] for part in said.split("Fields of a step:"))
    named = [set(re.findall(r"`(\w+)`", ", ".join(cells))) for cells in (whole, step)]
    trace = LossTrace({}, (), 0.0, 0.0, "", {}, 0.0)
    assert named == [set(trace.to_dict()), {field.name for field in fields(LossStep)}]


# --- the command line -------------------------------------------------------------------------------


def commands(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that can be run, with its name."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, f"{path} {name}".strip())


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_stand_on_the_page(name: str) -> None:
    said = section(DOCS / "command-line.md", f"## {name}")
    tables = {cells[0].strip("`"): cells[1].strip("`") for cells in rows(said)}
    for param in COMMANDS[name].params:
        option, default = param.opts[0], param.default
        if not option.startswith("--"):
            continue
        assert f"`{option}`" in said, f"{name} {option} is not on the page"
        # a list of every solver is not repeated there
        if option in tables and default not in (None, False) and option != "--solvers":
            assert tables[option] == str(default), f"{name} {option} has the default {default}"


def test_the_table_of_prune_follows_from_the_settings() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "option_tables.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_page_names_no_option_that_is_not_there() -> None:
    own = {"--help", "--version", "--install-completion", "--show-completion"}
    known = {option for command in COMMANDS.values() for param in command.params for option in param.opts}
    assert set(re.findall(r"`(--[\w-]+)`", text_of(DOCS / "command-line.md"))) <= known | own


def test_the_benchmark_takes_every_solver_by_default() -> None:
    (default,) = (param.default for param in COMMANDS["bench solvers"].params if "--solvers" in param.opts)
    assert set(default.split(",")) == set(OURS)


LONG_RUNS = DOCS / "long-runs.md"


def faults() -> list[str]:
    """Lines of the table of faults, without its headings."""
    lines = [line for line in section(LONG_RUNS, "## What may go wrong").splitlines() if line.startswith("| ")]
    return [line for line in lines[1:] if not line.startswith("| **")]


def test_every_fault_of_the_table_has_tests() -> None:
    assert len(faults()) > 30
    for line in faults():
        assert re.search(r"`tests/[a-z_/]+\.py::test_\w+`", line), line


def test_the_tests_of_the_faults_are_there_and_run() -> None:
    for file, name in set(re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", text_of(LONG_RUNS))):
        source = text_of(ROOT / file)
        found = re.search(rf"((?:^@.*\n|^[ )\]].*\n)*)^def {name}\(", source, re.M)
        assert found, f"{file} has no {name}"
        assert "mark.skip" not in found[1], f"{file}::{name} is skipped"
