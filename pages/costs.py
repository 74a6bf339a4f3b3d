"""The page of what smoothing costs, and the README's table of it.

`python -m pages.costs` makes docs/performance/cpu.md from cpu.json beside it, which
`python -m benchmarks` writes.
"""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.tables import costs, noise, ratios
from pages import published
from pages.source import DOCS, measured_on
from smoothout_jax.experiments.reporting.tables import markdown

# What the README tells of, by the contenders' names in the results.
README = {
    "smoothout": "`smoothout`",
    "held": "`smoothout` with `loss_rise`",
    "split": "4 copies, batch split",
    "sam": "SAM",
}


def readme(results: Mapping[str, Any]) -> str:
    """The README's table, in one row: step times in both networks."""
    problems = results["problems"].values()
    cells = [
        ", ".join(
            f"{ratios(c[name], c['plain'], 'seconds')[0]:.2f}"
            for c in (problem["contenders"] for problem in problems)
        )
        for name in README
    ]
    labels = "; ".join(problem["label"] for problem in problems)
    return markdown(("step time / SGD's", *README.values()), [(labels, *cells)])


def page(results: Mapping[str, Any]) -> str:
    """The page of all tables."""
    sections = [
        "# What smoothing costs",
        f"{measured_on(results)} `python -m benchmarks` repeats it.",
        f"{published.step_times()} That is [all that was measured on an"
        " accelerator](../reproductions.md) yet: `python -m benchmarks.accelerator`"
        " takes nine minutes on one.",
        "Steps are whole training steps with SGD in float32, with donated buffers and"
        " fresh batches, interleaved with the plain step in one process; ratios are of"
        " medians, with the quartiles of the ratios within a round. Compilation"
        " includes tracing. MB: temporary memory of the compiled step. Every"
        " contender's step is checked against a plain loop before it is timed.",
        *(
            part
            for measured in results["problems"].values()
            for part in (f"## {measured['label']}", costs(measured))
        ),
        "## How four copies run",
        '`execution="auto"` takes `unroll` on CPU up to 16 copies, then `scan`.'
        " Convolutions become grouped convolutions under `vmap`, and leave XLA's fast"
        " kernels inside a loop.",
        *map(costs, results["executions"].values()),
        "## Noise alone",
        "Time to add noise to parameters, and to draw the random words that it is made"
        " of, as a multiple of the time of `params + 1`. A copy costs its noise, and no"
        " less: the words, and one pass that reads them and the weights and writes"
        " their sum; relative to filters, the norms of the weights and of the noise"
        " besides.",
        noise(results["noise"]),
        "## Number of copies",
        'Whole batch each, `execution="auto"`.',
        costs(results["copies"]),
    ]
    return "\n\n".join(sections) + "\n"


def main() -> None:
    """Writes the page."""
    path = DOCS / "performance" / "cpu.json"
    path.with_suffix(".md").write_text(page(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
