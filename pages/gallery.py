"""The pictures of the gallery, from the committed notebooks."""

import base64
import json

from pages.source import ROOT


def pictures() -> dict[str, bytes]:
    """The picture of each cell whose metadata name it in `gallery`, by that name."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if name := cell["metadata"].get("gallery"):
                data = [output.get("data", {}) for output in cell["outputs"]]
                (png,) = (each["image/png"] for each in data if "image/png" in each)
                found[name] = base64.b64decode(png)
    return found
