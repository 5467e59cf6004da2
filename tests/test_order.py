"""The order of the packages: what stands above knows nothing of what stands below."""

from __future__ import annotations

import ast
import graphlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import qubo_prune

ROOT = Path(qubo_prune.__file__).parent

#: Modules and packages of the top level; each imports itself and what stands before it, and nothing else.
ORDER = (
    "version",
    "errors",
    "choices",
    "plugins",
    "files",
    "settings",
    "arguments",
    "request",
    "seeds",
    "ranks",
    "precision",
    "devices",
    "clock",
    "tables",
    "checks",
    "progress",
    "events",
    "problem",
    "models",
    "masks",
    "solver",
    "formats",
    "data",
    "hessian",
    "blocks",
    "methods",
    "testing",
    "report",
    "plot",
    "run",
    "bench",
    "cli",
)


def modules() -> dict[str, ast.Module]:
    """All modules by their dotted names."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


TREES = modules()
PACKAGES = {name for name in TREES if any(other.startswith(f"{name}.") for other in TREES)}


def imported(tree: ast.Module) -> Iterator[str]:
    """Our modules that it imports, within functions and for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "qubo_prune":
            for name in node.names:
                inside = f"{node.module}.{name.name}"
                yield inside if inside in TREES else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "qubo_prune")


def test_every_package_has_its_place() -> None:
    assert sorted(ORDER) == sorted({name.split(".")[1] for name in TREES if name != "qubo_prune"})


def test_no_package_imports_one_that_stands_behind_it() -> None:
    place = {name: number for number, name in enumerate(ORDER)}
    against = [
        f"{name} imports {other}"
        for name, tree in TREES.items()
        for other in imported(tree)
        # the names at the very top lead everywhere, so only the command line, the last of all, may use them
        if name != "qubo_prune"
        and (place[name.split(".")[1]] < (place[other.split(".")[1]] if other != "qubo_prune" else len(ORDER) - 1))
    ]
    assert against == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    # what a package hands on is none of its modules' business
    graph = {name: set(imported(tree)) - PACKAGES for name, tree in TREES.items() if name not in PACKAGES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_modules_are_imported_from_where_they_are() -> None:
    """Inside, nothing is taken from a package that only hands it on; the drawings of ``plot`` are its one interface."""
    handing_on = PACKAGES - {"qubo_prune", "qubo_prune.plot", "qubo_prune.bench"}
    taken = [
        f"{name} imports {other}"
        for name, tree in TREES.items()
        for other in imported(tree)
        if other in handing_on and not name.startswith(f"{other}.")
    ]
    assert taken == []


def test_the_framework_looks_up_no_back_end_by_name() -> None:
    calls = [
        (name, node)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("make_solver", "solver_class")
    ]
    assert len(calls) > 5
    named = [
        f"{name}, line {node.lineno}"
        for name, node in calls
        if any(isinstance(value, ast.Constant) for value in itertools.chain(node.args[:1]))
    ]
    assert named == []
    assert not [name for name, tree in TREES.items() if "qubo_prune_solvers" in ast.unparse(tree)]
