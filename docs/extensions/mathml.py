"""Formulas as MathML, which browsers draw by themselves: no script, no network."""

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

CONVERTER = LatexToMathML(fancy_error=False)


def mathml(node, displaystyle):
    """A formula's MathML; a formula that cannot be read is a warning."""
    tex = node.astext()
    try:
        return CONVERTER.convert_with_local_state(tex, displaystyle=displaystyle)
    except LatexError as error:
        warn = logging.getLogger(__name__).warning
        warn("formula %r: %s", tex, error, location=node)
        return ""


def visit_inline(translator, node):
    """Writes a formula in a line."""
    translator.body.append(mathml(node, displaystyle=False))
    raise nodes.SkipNode


def visit_block(translator, node):
    """Writes a formula of its own, in a box that scrolls where it is too wide."""
    formula = mathml(node, displaystyle=True)
    translator.body.append(f'<div class="formula">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app):
    """Adds the renderer, which `html_math_renderer = "mathml"` chooses."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
