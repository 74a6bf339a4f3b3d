"""Writes the gallery: pictures of the notebooks, as they are committed.

`python notebooks/gallery.py` takes the picture of each cell that has the name of a
file as `gallery` in its metadata.
"""

import base64
from collections.abc import Iterator
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parent
GALLERY = NOTEBOOKS.parent / "docs" / "gallery"


def pictures() -> Iterator[tuple[Path, bytes]]:
    """The files of the gallery, and what is in them."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if name := cell.metadata.get("gallery"):
                (png,) = (
                    output.data["image/png"]
                    for output in cell.outputs
                    if "image/png" in output.get("data", {})
                )
                yield GALLERY / f"{name}.png", base64.b64decode(png)


def main() -> None:
    """Writes the files."""
    GALLERY.mkdir(exist_ok=True)
    for path, content in pictures():
        path.write_bytes(content)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
