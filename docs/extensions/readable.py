"""Makes tables, pictures and signatures of the site readable on a narrow screen."""

import re

import jax
import optax
from docutils import nodes
from sphinx.util.osutil import relative_uri
from sphinx.util.typing import stringify_annotation

from smoothout_jax.filters import FilterAxis

# A cell of figures only, such as "+0.37 [+0.21, +0.53]", "96.5 ± 0.1", "0.98 to 1.1".
FIGURES = re.compile(r"[-+±\d.,:/*()[\]% ]*\d( to |[-+±\d.,:/*()[\]% ])*")
# Longer cells have a least width, lest they become a column of words.
LONG = 40
# What belongs together in prose: "[+0.37, +0.53]", "96.5 ± 0.1", "40 %".
TOGETHER = re.compile(
    r"[-+−]?[\d.]+ \[[-+−\d., ]+\]|\[[-+−\d., ]+\]|[\d.]+ ± [\d.]+( %)?|\d %"
)
# Names of types that Sphinx would write out; the last is in the others.
TYPES = {
    "FilterAxis": FilterAxis,
    "Schedule": optax.Schedule,
    "OptState": optax.OptState,
    "ArrayLike": jax.typing.ArrayLike,
}
NAMES = {stringify_annotation(each, "smart"): name for name, each in TYPES.items()}
NAMES["[[...]"] = "[..."
# A page of the documentation, as docstrings name it.
PAGE = re.compile(r"\bdocs/([\w/-]+)\.md\b")


def keep_figures_in_a_line(app, doctree):
    """Marks cells of figures and long cells, and binds figures in prose."""
    for entry in doctree.findall(nodes.entry):
        text = entry.astext()
        if FIGURES.fullmatch(text):
            entry["classes"].append("figures")
        elif len(text) > LONG:
            entry["classes"].append("long")
    for text in list(doctree.findall(nodes.Text)):
        if not isinstance(text.parent, (nodes.literal, nodes.literal_block, nodes.raw)):
            bound = TOGETHER.sub(
                lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text
            )
            if bound != text:
                text.parent.replace(text, nodes.Text(bound))


def drop_links_to_the_page_itself(app, doctree, docname):
    """Leaves the text of a link that leads nowhere, such as to a folder of its name."""
    for link in list(doctree.findall(nodes.reference)):
        if link.get("refuri") in ("", "#"):
            link.replace_self(link.children)


def link_pictures_to_themselves(app, doctree, docname):
    """Lets a picture be opened alone, to be seen at its full size."""
    page = app.builder.get_target_uri(docname)
    links = doctree.findall(nodes.reference)
    linked = {image for link in links for image in link.findall(nodes.image)}
    for image in set(doctree.findall(nodes.image)) - linked:
        if image["uri"] in app.env.images:
            _, name = app.env.images[image["uri"]]
            uri = relative_uri(page, f"_images/{name}")
            link = nodes.reference("", "", internal=True, refuri=uri)
            image.replace_self(link)
            link += image


def shorten_types(app, what, name, obj, options, signature, returns):
    """Names types that Sphinx would write out."""
    texts = [signature, returns]
    for written, name in NAMES.items():
        texts = [text and text.replace(written, name) for text in texts]
    return tuple(texts)


def link_pages(app, what, name, obj, options, lines):
    """Links the pages that a docstring names by their files."""
    lines[:] = [PAGE.sub(r":doc:`/docs/\1`", line) for line in lines]


def setup(app):
    """Connects them."""
    app.connect("autodoc-process-docstring", link_pages)
    app.connect("doctree-read", keep_figures_in_a_line)
    app.connect("doctree-resolved", drop_links_to_the_page_itself)
    app.connect("doctree-resolved", link_pictures_to_themselves)
    app.connect("autodoc-process-signature", shorten_types)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
