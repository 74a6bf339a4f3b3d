"""The figures as tables of Markdown, from the raw results.

`python -m benchmarks.report` makes the page beside the results anew.
"""

import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import ratio


def costs(measured: Mapping[str, Any]) -> str:
    """What each contender costs on one problem, as ratios to the plain step."""
    plain = measured["contenders"]["plain"]
    rows = [
        (
            contender["label"],
            "{:.2f} [{:.2f}, {:.2f}]".format(*_ratio(contender, plain, "seconds")),
            f"{1e3 * np.median(contender['seconds']):.1f}",
            f"{_ratio(contender, plain, 'compile_seconds')[0]:.2f}",
            f"{contender['temporary_bytes'] / 1e6:.1f}",
        )
        for contender in measured["contenders"].values()
    ]
    return f"{measured['label']}, {_parameters(measured)}\n\n" + markdown(
        ("gradient", "step / SGD's [quartiles]", "ms", "compile / SGD's", "MB"), rows
    )


def noise(measured: list[Mapping[str, Any]]) -> str:
    """Time to perturb parameters, as ratios to the time of adding one."""
    baseline, *ways = measured[0]["seconds"]
    rows = []
    for tree in measured:
        seconds = tree["seconds"]
        ratios = [_ratio(seconds, seconds, way, baseline)[0] for way in ways]
        # Four bytes of each weight are read, and four written.
        bandwidth = 8e-9 * tree["parameters"] / np.median(seconds[baseline])
        rows.append((tree["label"], f"{bandwidth:.1f}", *(f"{r:.2f}" for r in ratios)))
    return markdown(("parameters", f"{baseline}, GB/s", *ways), rows)


def readme(results: Mapping[str, Any]) -> str:
    """The README's table: step time and compile time of every contender."""
    problems = list(results["problems"].values())
    contenders = [problem["contenders"] for problem in problems]
    rows = [
        (
            contenders[0][name]["label"],
            *itertools.chain.from_iterable(
                (
                    f"{_ratio(c[name], c['plain'], 'seconds')[0]:.2f}",
                    f"{_ratio(c[name], c['plain'], 'compile_seconds')[0]:.1f}",
                )
                for c in contenders
            ),
        )
        for name in contenders[0]
    ]
    header = itertools.chain.from_iterable(
        (f"{problem['label']}: step", "compile") for problem in problems
    )
    return markdown(("gradient", *header), rows)


def page(results: Mapping[str, Any]) -> str:
    """The page of all tables."""
    sections = [
        "# What smoothing costs",
        f"{provenance(results)} `python -m benchmarks` repeats it.",
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
        "Time to add noise to parameters, as a multiple of the time of `params + 1`.",
        noise(results["noise"]),
        "## Number of copies",
        'Whole batch each, `execution="auto"`.',
        costs(results["copies"]),
    ]
    return "\n\n".join(sections) + "\n"


def provenance(results: Mapping[str, Any]) -> str:
    """A sentence of when and on what the figures were measured."""
    machine = ", ".join(f"{key} {value}" for key, value in results["machine"].items())
    versions = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    return f"Measured on {results['date'][:10]}: {machine}; {versions}."


def _ratio(row, baseline, name, baseline_name=None) -> tuple[float, float, float]:
    return ratio(np.array(row[name]), np.array(baseline[baseline_name or name]))


def _parameters(measured) -> str:
    millions = measured["parameters"] / 1e6
    return f"{millions:.2f} M parameters in {measured['leaves']} leaves"


def markdown(header, rows) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(path: str = "docs/performance/cpu.json") -> None:
    """Writes the page of a file of results beside it."""
    results = json.loads(Path(path).read_text())
    Path(path).with_suffix(".md").write_text(page(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
