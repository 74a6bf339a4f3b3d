"""The pictures of the gallery, from the committed notebooks.

`python -m pages.gallery` takes the picture of each cell that has the name of a file as
`gallery` in its metadata, and writes it to docs/gallery.
"""

import base64
import json

from pages.source import DOCS, ROOT


def pictures() -> dict[str, bytes]:
    """The pictures, by the names of their files."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if name := cell["metadata"].get("gallery"):
                (png,) = (
                    output["data"]["image/png"]
                    for output in cell["outputs"]
                    if "image/png" in output.get("data", {})
                )
                found[name] = base64.b64decode(png)
    return found


def main() -> None:
    """Writes the files."""
    for name, content in pictures().items():
        (DOCS / "gallery" / f"{name}.png").write_bytes(content)


if __name__ == "__main__":
    main()
