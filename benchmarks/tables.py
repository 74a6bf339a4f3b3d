"""What the benchmarks measured, as tables of Markdown."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from smoothout_jax.experiments.reporting.tables import markdown

HEADER = ("gradient", "step / SGD's [quartiles]", "ms", "compile / SGD's", "MB")


def costs(measured: Mapping[str, Any]) -> str:
    """What each contender costs on one problem, as ratios to the plain step."""
    plain = measured["contenders"]["plain"]
    rows = [
        (
            row["label"],
            "{:.2f} [{:.2f}, {:.2f}]".format(*ratio(row, plain)),
            f"{1e3 * np.median(row['seconds']):.1f}",
            f"{ratio(row, plain, 'compile_seconds')[0]:.2f}",
            f"{row['temporary_bytes'] / 1e6:.1f}",
        )
        for row in measured["contenders"].values()
    ]
    return (
        f"{measured['label']}, {measured['parameters'] / 1e6:.2f} M parameters in"
        f" {measured['leaves']} leaves:\n\n{markdown(HEADER, rows)}"
    )


def noise(measured: list[Mapping[str, Any]]) -> str:
    """Time to perturb parameters, as ratios to the time of adding one."""
    rows = []
    for tree in measured:
        base, *others = map(np.median, tree["seconds"].values())
        # Four bytes of each weight are read, and four written.
        bandwidth = 8e-9 * tree["parameters"] / base
        times = (f"{other / base:.2f}" for other in others)
        rows.append((tree["label"], f"{bandwidth:.1f}", *times))
    baseline, *ways = measured[0]["seconds"]
    return markdown(("parameters", f"{baseline}, GB/s", *ways), rows)


def ratio(
    row: Mapping[str, Any], baseline: Mapping[str, Any], quantity: str = "seconds"
) -> tuple[float, float, float]:
    """Ratio of the medians of a quantity, and quartiles of its ratio in each round."""
    values, others = (np.array(each[quantity]) for each in (row, baseline))
    low, high = np.quantile(values / others, [0.25, 0.75])
    return float(np.median(values) / np.median(others)), float(low), float(high)
