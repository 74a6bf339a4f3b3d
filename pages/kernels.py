"""The page of the kernels that a step starts on a GPU.

`python -m pages.kernels` makes docs/performance/kernels.md from the file beside it,
which `python -m benchmarks.kernels` writes.
"""

import json
from collections.abc import Mapping
from typing import Any

from pages.source import DOCS
from smoothout_jax.experiments.reporting.tables import markdown

PAGE = """\
# Kernels of a step on a GPU

Counted on {date}, by jax {jax}, without a GPU: `python -m benchmarks.kernels` lets XLA
compile for an H100 by its description.

A kernel takes microseconds to start, however little it does, and a network has dozens
of small leaves. This is the update of the 62 leaves of a ResNet-18, in a loop: SGD with
momentum and weight decay, and what is around it.

{table}

Small leaves share one draw of random words. Every step starts the same kernels.
[One setting](../reproductions.md) was timed on a GPU, when `smoothout` started more of
them; none has been timed since.
"""


def page(results: Mapping[str, Any]) -> str:
    """The counts as a page of Markdown."""
    rows = [(name, str(count)) for name, count in results["kernels"].items()]
    return PAGE.format(
        date=results["date"][:10],
        jax=results["versions"]["jax"],
        table=markdown(("optimizer", "kernels"), rows),
    )


def main() -> None:
    """Writes the page."""
    path = DOCS / "performance" / "kernels.json"
    path.with_suffix(".md").write_text(page(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
