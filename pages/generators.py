"""The page of what generators of noise cost.

`python -m pages.generators` makes docs/performance/generators.md from the JSON file
beside it, which `python -m benchmarks.generators` writes.
"""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.tables import costs, noise
from pages.source import DOCS, measured_on

PAGE = """\
# Why the package draws its own random bits

{measured_on} `python -m benchmarks.generators` repeats it.

On CPU `jax.random.bits` runs the twenty rounds of Threefry in a loop over arrays in
memory, and draws a word of 32 bits for each integer of 8. Cutting its words into four
avoids the second cost, but not the first. `uniform` writes thirteen rounds out, which
XLA compiles to one pass.

## In a training step

{steps}

Ratios are of medians, with the quartiles of the ratios within a round.

## In adding noise to parameters

As a multiple of the time of `params + 1`.

{noise}
"""


def page(results: Mapping[str, Any]) -> str:
    """The figures as a page of Markdown."""
    return PAGE.format(
        measured_on=measured_on(results),
        steps=costs(results["steps"]),
        noise=noise(results["noise"]),
    )


def main() -> None:
    """Writes the page."""
    path = DOCS / "performance" / "generators.json"
    path.with_suffix(".md").write_text(page(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
