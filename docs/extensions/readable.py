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


def shorten_types(app, what, name, obj, options, signature, returns):
    """Names types that Sphinx would write out."""
    return tuple(
        text and text.replace(SCHEDULE, "Schedule").replace("[[...]", "[...")
        for text in (signature, returns)
    )


def setup(app):
    """Connects both."""
    app.connect("doctree-read", keep_figures_in_a_line)
    app.connect("autodoc-process-signature", shorten_types)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
