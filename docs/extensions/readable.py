"""Makes tables and signatures of the site readable on a narrow screen."""

import re

import optax
from docutils import nodes
from sphinx.util.typing import stringify_annotation

# A cell of figures only, such as "+0.37 [+0.21, +0.53]", "96.5 ± 0.1", "0.98 to 1.1".
FIGURES = re.compile(r"[-+±\d.,:*()[\]% ]*\d( to |[-+±\d.,:*()[\]% ])*")
SCHEDULE = stringify_annotation(optax.Schedule, "smart")


def keep_figures_in_a_line(app, doctree):
    """Marks the cells of figures, which the style sheet does not break."""
    for entry in doctree.findall(nodes.entry):
        if FIGURES.fullmatch(entry.astext()):
            entry["classes"].append("figures")


def drop_links_to_the_page_itself(app, doctree, docname):
    """Leaves the text of a link that leads nowhere, such as to a folder of its name."""
    for link in list(doctree.findall(nodes.reference)):
        if link.get("refuri") in ("", "#"):
            link.replace_self(link.children)


def shorten_types(app, what, name, obj, options, signature, returns):
    """Names types that Sphinx would write out."""
    return tuple(
        text and text.replace(SCHEDULE, "Schedule").replace("[[...]", "[...")
        for text in (signature, returns)
    )


def setup(app):
    """Connects them."""
    app.connect("doctree-read", keep_figures_in_a_line)
    app.connect("doctree-resolved", drop_links_to_the_page_itself)
    app.connect("autodoc-process-signature", shorten_types)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
