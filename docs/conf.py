"""The site: `make docs`. The pages of the rules are written from their docstrings when it is built."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import rulepages
from sphinx.application import Sphinx

import gradscope

project = "gradscope"
version = release = gradscope.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["html_image"]  # pictures keep the form in which GitHub shows them, at their width
myst_heading_anchors = 3

default_role = "code"
add_module_names = False
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
# Types of others, and parts of ours that have no page.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|matplotlib|pathlib|collections|typing|msgspec|contextlib)\..*"),
    (r"py:.*", r"(gradscope\..*|Style|Axes|Path|Tensor|P)"),
]

html_theme = "furo"
html_title = "gradscope"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def keep_matching_globs(app: Sphinx, page: str, source: list[str]) -> None:
    """Leave out the patterns of the index that match no page: such a pattern is there for pages still to come."""
    if page == "index":
        lines = source[0].splitlines(keepends=True)
        here = Path(__file__).parent
        source[0] = "".join(line for line in lines if not line.endswith("*\n") or any(here.glob(line.strip() + ".md")))


def setup(app: Sphinx) -> None:
    """Write the pages of the rules first, and show indented blocks of docstrings as code."""
    app.connect("config-inited", lambda *_: rulepages.write(Path(__file__).parent / "rules"))
    app.connect("source-read", keep_matching_globs)
    app.connect("autodoc-process-docstring", rulepages.mark_code)
