"""What all pages share: the committed figures, and the texts that they go into."""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@functools.cache
def figures(path: str) -> Any:
    """The figures in a JSON file of the documentation."""
    return json.loads((DOCS / path).read_text())


def fill(name: str, values: Mapping[str, Any]) -> str:
    """Fills values into pages/{name}.md, where they stand as in a format string.

    Unlike `str.format`, it leaves other braces alone, such as those of Python code.
    """
    head = f"<!-- Made by python -m pages from pages/{name}.md; do not edit. -->\n\n"
    text = (ROOT / "pages" / f"{name}.md").read_text()
    return head + re.sub(
        r"\{(\w+)(?::([^{}\s]+))?\}",
        lambda match: format(values[match[1]], match[2] or ""),
        text,
    )


def measured_on(results: Mapping[str, Any]) -> str:
    """A sentence that says when and on what figures were measured."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    versions = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    return f"Measured on {results['date'][:10]}: {machine}; {versions}."
