"""The documentation site: `make docs`. Its source is the repository, so that links between pages hold here and on GitHub."""

import iconoclast

project = "ICONOCLAST"
version = release = iconoclast.__version__
copyright = "the ICONOCLAST authors, AGPL-3.0-or-later"
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "docs/*.ipynb", "benchmarks/*.md"]
exclude_patterns = ["**/.*", ".*", "*.egg-info", "build", "demo-run", "dist", "findings", "runs", "src", "tests"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook holds what it printed: `make notebook` runs it again
highlight_language = "none"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"

html_theme = "furo"
html_title = "ICONOCLAST"
html_show_sourcelink = False
html_copy_source = False
html_extra_path = ["site"]  # the entry of the site, which leads to docs/index.html
