"""The documentation as a web site. `make docs` builds it into docs/_build/html."""

import re

project = "d2kd"
author = copyright = "the d2kd authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "d2kd"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # for links to sections, such as results.md#the-demo

default_role = "code"  # docstrings have Markdown's backticks
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # those of Detectron2 and PyTorch have another markup
napoleon_use_ivar = True
napoleon_use_rtype = False


def to_page(app, name, source):
    """Links to datasets/README.md lead to the site's page with its contents."""
    source[0] = re.sub(r"\]\(\.\./datasets/README\.md", "](datasets.md", source[0])


def setup(app):
    app.connect("source-read", to_page)
