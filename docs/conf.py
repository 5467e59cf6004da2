"""How the documentation site is built: ``make docs``.

The source folder is that of the repository, so that links between pages, README and notebooks work on the site as they
do in a checkout.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer

import qubo_prune
from qubo_prune.run.compare import compare
from qubo_prune.run.prune import prune

ROOT = Path(__file__).parents[1]

project = "qubo_prune"
author = "the qubo_prune developers"
project_copyright = "the qubo_prune developers, Apache-2.0"
version = release = qubo_prune.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "notebooks/**", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = ["**/.*", "docs/examples", "docs/_templates"]

# --- pages and notebooks ---------------------------------------------------------------------------------
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4  # as GitHub names them
myst_links_external_new_tab = False
nb_execution_mode = "force"  # `make docs-fast` leaves them as they are
nb_execution_timeout = 900  # seconds of a cell; they take a tenth of it on two quiet cores
nb_output_stderr = "error"  # a notebook shows no warnings and no progress bars of others
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

# --- API reference ---------------------------------------------------------------------------------------
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "none"  # signatures have them
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # shapes such as "*groups d_in" are no markup
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
# what stands in other libraries' documentation is not linked, so that the build needs no network
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!qubo_prune).*"), ("py:class", r".*\._.*")]

# --- looks -----------------------------------------------------------------------------------------------
html_theme = "furo"
html_title = "qubo_prune"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}
templates_path = [str(Path(__file__).parent / "_templates")]
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True
pygments_style = "a11y-light"
pygments_dark_style = "a11y-dark"


def _as_markdown(made: str) -> str:
    """What Typer writes of a command line, with what Markdown would take for something else told apart."""

    def each(pattern: str, replace: Any, text: str) -> str:
        return re.sub(pattern, replace, text, flags=re.MULTILINE)

    # what stands below the options: a heading of rich, and lines as they are
    made = each(r"^\[bold\](.+)\[/\]\n((?:  .*\n)+)", r"**\1**\n\n```text\n\2```\n", made)
    # patterns such as *.mlp.* are no emphasis, and options keep their two hyphens
    made = each(r"^(\* `.*?`: )(.*)$", lambda line: line[1] + line[2].replace("*", r"\*"), made)
    return each(r"^(?!\* `-|  |\$).*$", lambda line: re.sub(r"(?<![`\w-])(--[a-z][\w-]*)", r"`\1`", line[0]), made)


def _write_command_reference(app: Any) -> None:
    """The help of every command, by Typer's own generator."""
    page = Path(app.srcdir) / "docs" / "reference" / "commands.md"
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "typer",
            "qubo_prune.cli",
            "utils",
            "docs",
            "--name",
            "qubo-prune",
            "--title",
            "Commands",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    text = _as_markdown(made)
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def _exported(app: Any, env: Any, node: Any, contents: Any) -> Any:
    """``qubo_prune.solve`` is documented where it lives, as ``qubo_prune.solver.dispatch.solve``."""
    package, _, name = node.get("reftarget", "").rpartition(".")
    home = qubo_prune._HOME.get(name)
    if package != "qubo_prune" or home is None or node.get("refdomain") != "py":
        return None
    target = f"qubo_prune.{home}.{name}"
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, contents)


def setup(app: Any) -> None:
    """Register what is ours."""
    for name in ("coo", "qubo", "lp", "ising"):  # problem files have no lexers of their own
        app.add_lexer(name, TextLexer)
    # autodoc looks for defaults in the source, where those of the settings' fields are not
    for function in (prune, compare):
        vars(function).pop("__signature__", None)
    app.connect("missing-reference", _exported)
    app.connect("builder-inited", _write_command_reference)
