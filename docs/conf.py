"""The documentation site: `make docs`. Its source is the repository, so that links between pages hold here and on GitHub."""

import logging

import iconoclast

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
