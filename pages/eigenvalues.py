"""The page of what leading eigenvalues cost.

`python -m pages.eigenvalues` makes docs/performance/eigenvalues.md from the JSON file
beside it, which `python -m benchmarks.eigenvalues` writes.
"""

import json
from collections.abc import Mapping
from typing import Any

from pages.source import DOCS, measured_on
from smoothout_jax.experiments.reporting.tables import markdown


def page(results: Mapping[str, Any]) -> str:
    """The figures as a page of Markdown."""
    rows = [
        (
            f"{run['examples']}",
            f"{run['products']}",
            f"{run['product_seconds'] / run['products']:.2f}",
            f"{run['seconds'] / run['product_seconds']:.2f}",
        )
        for run in results["runs"]
    ]
    header = "examples", "products", "seconds of one", "whole call / products"
    return "\n\n".join(
        (
            f"# What {results['eigenvalues']} leading eigenvalues cost",
            f"{measured_on(results)} `python -m benchmarks.eigenvalues` repeats it.",
            "Of the Hessian of an MLP of 1.46 M parameters, 5 × 512 units, by"
            " `hessian_eigenvalues` with its default tolerance: the products of the"
            " Hessian with a vector that it takes, and the time of the whole call as a"
            " multiple of theirs. What ARPACK adds to a product, passes over 41 vectors"
            " in memory, does not grow with the examples.",
            markdown(header, rows) + "\n",
        )
    )


def main() -> None:
    """Writes the page."""
    path = DOCS / "performance" / "eigenvalues.json"
    path.with_suffix(".md").write_text(page(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
