"""What the benchmarks measured, as tables of Markdown."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.timing import ratio
from smoothout_jax.experiments.reporting.tables import markdown


def costs(measured: Mapping[str, Any]) -> str:
    """What each contender costs on one problem, as ratios to the plain step."""
    plain = measured["contenders"]["plain"]
    rows = [
        (
            contender["label"],
            "{:.2f} [{:.2f}, {:.2f}]".format(*ratios(contender, plain, "seconds")),
            f"{1e3 * np.median(contender['seconds']):.1f}",
            f"{ratios(contender, plain, 'compile_seconds')[0]:.2f}",
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
        times = [ratios(seconds, seconds, way, baseline)[0] for way in ways]
        # Four bytes of each weight are read, and four written.
        bandwidth = 8e-9 * tree["parameters"] / np.median(seconds[baseline])
        rows.append((tree["label"], f"{bandwidth:.1f}", *(f"{r:.2f}" for r in times)))
    return markdown(("parameters", f"{baseline}, GB/s", *ways), rows)


def ratios(row, baseline, name, baseline_name=None) -> tuple[float, float, float]:
    """Ratio of the medians of a quantity, and quartiles of its ratio in each round."""
    return ratio(np.array(row[name]), np.array(baseline[baseline_name or name]))


def _parameters(measured) -> str:
    millions = measured["parameters"] / 1e6
    return f"{millions:.2f} M parameters in {measured['leaves']} leaves"
