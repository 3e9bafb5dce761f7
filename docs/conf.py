"""The documentation site: `make docs`. Its source is the repository, so that links between pages hold here and on GitHub."""

import logging
from pathlib import Path

from sphinx.application import Sphinx

import iconoclast
from iconoclast.reports.pages.of_audit import audit_page

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # what it cannot load is not used here

project = "ICONOCLAST"
version = release = iconoclast.__version__
copyright = "the ICONOCLAST authors, AGPL-3.0-or-later"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "docs/*.ipynb", "benchmarks/*.md"]
exclude_patterns = ["**/.*", ".*", "*.egg-info", "build", "demo-run", "dist", "findings", "runs", "src", "tests"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook holds what it printed: `make notebook` computes it again
highlight_language = "none"
default_role = "code"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
napoleon_use_ivar = True

html_theme = "furo"
html_title = "ICONOCLAST"
html_favicon = "images/icon.svg"
html_show_sourcelink = False
html_copy_source = False
html_extra_path = ["site"]  # the entry of the site, which leads to docs/index.html

# What can be scrolled is reached by keyboard, and the captions of the contents are headings of a level.
ACCESSIBLE = """document.addEventListener("DOMContentLoaded", () => {
    for (const each of document.querySelectorAll("pre, .table-wrapper")) each.tabIndex = 0;
    for (const each of document.querySelectorAll("[role=heading]")) each.ariaLevel = "2";
});"""
html_js_files = [(None, {"body": ACCESSIBLE})]

EXAMPLE = "examples/audit"
"""The audit of an edited model: a JSON file in the repository, of which the site has the page."""


def link_example(app: Sphinx, name: str, source: list[str]) -> None:
    """Let the link to the audit's file lead to its page."""
    source[0] = source[0].replace(f"[an example]({EXAMPLE}.json)", f'<a href="{EXAMPLE}.html">an example</a>')


def write_example(app: Sphinx, failure: Exception | None) -> None:
    """Write the audit's page, which is one file and needs no theme."""
    if failure is None and app.builder.format == "html":
        page = Path(app.outdir) / "docs" / f"{EXAMPLE}.html"
        page.parent.mkdir(exist_ok=True)
        audit_page(Path(__file__).parent / f"{EXAMPLE}.json").write(page)


def setup(app: Sphinx) -> None:
    """Connect the two."""
    app.connect("source-read", link_example)
    app.connect("build-finished", write_example)
