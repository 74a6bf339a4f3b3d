"""Where the documentation lies, and the committed figures in it."""

import functools
import json
from pathlib import Path
from typing import Any

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
