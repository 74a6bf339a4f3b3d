"""A button under the title of each notebook, to download it."""

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform


class DownloadButton(SphinxTransform):
    """Runs before Sphinx collects the files that a page offers."""

    default_priority = 400

    def apply(self):
        """Adds the button behind the first title."""
        docname = self.env.docname
        title = next(self.document.findall(nodes.title), None)
        if not docname.startswith("notebooks/") or title is None:
            return
        text = nodes.inline("", "Download this notebook")
        target = f"/{docname}.ipynb"
        link = addnodes.download_reference("", "", text, reftarget=target)
        link["refdoc"] = docname
        button = nodes.paragraph("", "", link, classes=["download-notebook"])
        title.parent.insert(title.parent.index(title) + 1, button)


def setup(app):
    """Adds the button to the notebooks."""
    app.add_transform(DownloadButton)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
