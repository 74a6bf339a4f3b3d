"""The pictures of the gallery that notebooks draw, from the committed notebooks.

`python -m pages.gallery` writes them to docs/gallery.
"""

import base64
import json
from typing import NamedTuple

from pages.source import DOCS, ROOT


class Picture(NamedTuple):
    """A picture in a notebook.

    Attributes:
        notebook: the notebook's name.
        number: the picture's place among those of the notebook, from 0.
    """

    notebook: str
    number: int


PICTURES = {"smoothed-loss": Picture("1-why-flat-minima", 0)}


def png(name: str) -> bytes:
    """A picture, as the notebook holds it."""
    picture = PICTURES[name]
    notebook = json.loads(
        (ROOT / "notebooks" / f"{picture.notebook}.ipynb").read_text()
    )
    found = [
        output["data"]["image/png"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    return base64.b64decode(found[picture.number])


def main() -> None:
    """Writes the pictures."""
    for name in PICTURES:
        (DOCS / "gallery" / f"{name}.png").write_bytes(png(name))


if __name__ == "__main__":
    main()
