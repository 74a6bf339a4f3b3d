"""What one GPU found in the published setting, from docs/results/lpf-sgd-gpu.json.

`smoothout evidence lpf-sgd --form gpu` writes that file.
"""

import json
from collections.abc import Mapping
from typing import Any

from pages.source import DOCS
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.plans import EXPERIMENTS
from smoothout_jax.experiments.reporting.formats import with_interval

(CASE,) = EXPERIMENTS["lpf-sgd"]["gpu"]


def read() -> Mapping[str, Any]:
    """The figures of the case."""
    path = DOCS / "results" / "lpf-sgd-gpu.json"
    return json.loads(path.read_text())["cases"][CASE.name]


def summary() -> Mapping[str, Any]:
    """Its figures at equal updates, by method."""
    return read()["equal_updates"]["summary"]


def setting() -> str:
    """The network and its batches, and what trained it."""
    return (
        f"a ResNet-18 on CIFAR-10, batch {CASE.batch_size},"
        f" {CASE.training['precision']}, one {read()['machine']['device']}"
    )


def step_times() -> str:
    """A sentence of the time of a step by SGD's."""
    times = ", ".join(
        f"{METHODS[name].label} {row['relative_step_time']:.2f}"
        for name, row in summary().items()
        if name != "sgd"
    )
    return f"Step time / SGD's of {setting()}: {times}."


def verdict() -> str:
    """A sentence of what the setting says of noise with no radius chosen."""
    rows = summary()
    differences = ", ".join(
        f"{METHODS[name].label} {with_interval(rows[name]['difference_to_sgd'])}"
        for name in rows
        if name != "sgd"
    )
    return (
        f"In [a published setting](reproductions.md), {setting()}, shortened to"
        f" {CASE.training['epochs']:g} epochs and {CASE.seeds} seeds, SGD fits"
        f" {rows['sgd']['train_accuracy'][0]:.1f} % of the training images that were"
        f" looked at; the differences are {differences}: too few seeds to decide. It is"
        " counted in no group."
    )
