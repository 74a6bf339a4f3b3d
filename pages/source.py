"""Where the documentation lies, the committed figures in it, and tables of them."""

import base64
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smoothout_jax.experiments.reporting.tables import markdown

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@functools.cache
def figures(path: str) -> Any:
    """The figures in a JSON file of the documentation."""
    return json.loads((DOCS / path).read_text())


def measured_on(name: str) -> str:
    """A sentence that says when and on what a benchmark was measured."""
    found = figures(f"performance/{name}.json")
    machine = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    versions = ", ".join(f"{key} {value}" for key, value in found["versions"].items())
    return f"Measured on {found['date'][:10]}: {machine}; {versions}."


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """A table of rows that map columns to cells; missing cells are empty."""
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return markdown(columns, ([row.get(each, "") for each in columns] for row in rows))


def gallery() -> dict[str, bytes]:
    """The picture of each cell whose metadata name it in `gallery`, by that name."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if name := cell["metadata"].get("gallery"):
                data = [output.get("data", {}) for output in cell["outputs"]]
                (png,) = (each["image/png"] for each in data if "image/png" in each)
                found[name] = base64.b64decode(png)
    return found
