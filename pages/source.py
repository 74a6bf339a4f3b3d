"""Where pages and their sources lie, and when the sources were measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def measured_on(results: Mapping[str, Any]) -> str:
    """A sentence that says when and on what the figures were measured."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    versions = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    return f"Measured on {results['date'][:10]}: {machine}; {versions}."
