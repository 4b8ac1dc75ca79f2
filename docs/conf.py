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

# `make links` does not look for sections: GitHub's pages make theirs after they are loaded.
linkcheck_anchors = False
linkcheck_timeout = 20
linkcheck_retries = 2

default_role = "code"  # docstrings have Markdown's backticks
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80  # longer ones have a line for each parameter
autodoc_inherit_docstrings = False  # those of Detectron2 and PyTorch have another markup
napoleon_use_ivar = True
napoleon_use_rtype = False


def to_page(app, name, source):
    """Links to datasets/README.md lead to the site's page with its contents."""
    source[0] = re.sub(r"\]\(\.\./datasets/README\.md", "](datasets.md", source[0])


# Names of 12 characters and more in tables may break after these characters.
LONG_NAME = re.compile(r"[^\s<>\\]{12,}")
BREAKS = re.compile(r"(?<=\w[/_=(])(?=\w)|(?<=[a-z]\.)(?=\w+[.=])")


def make_readable(app, page, template, context, tree):
    """Let long names in tables break, so that they hide no column; link pictures to the files."""
    if "body" not in context:
        return
    body = re.sub(r"(?s)<td.*?</td>", break_names, context["body"])
    context["body"] = re.sub(r'<img [^>]*src="([^"]+)"[^>]*>', r'<a href="\1">\g<0></a>', body)


def break_names(cell):
    """A cell with breaks in its texts. Texts with a backslash are equations and stay whole."""

    def break_text(text):
        return LONG_NAME.sub(lambda name: BREAKS.sub("<wbr>", name[0]), text[0])

    return re.sub(r">[^<\\]+(?=<)", break_text, cell[0])


def shorten_defaults(app, what, name, item, options, signature, returns):
    """Write the default of a dataclass's field as "...": Sphinx cannot parse "<factory>"."""
    return signature and signature.replace("<factory>", "..."), returns


def setup(app):
    app.connect("source-read", to_page)
    app.connect("html-page-context", make_readable)
    app.connect("autodoc-process-signature", shorten_defaults)
