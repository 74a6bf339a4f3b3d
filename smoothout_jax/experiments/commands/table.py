"""The table that `smoothout compare` prints."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from smoothout_jax.experiments.commands.compared import Results, summary
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting.formats import with_error, with_interval
from smoothout_jax.experiments.reporting.tables import terminal_table


def table(results: Results) -> Table:
    """The table that the command prints, at most 80 columns wide."""
    settings, rows = results.settings, summary(results)
    columns = [_RISE, _RADIUS]
    if settings.label_noise:
        columns[0] = _MEMORISED
    if settings.watch_size:
        columns[-1] = _BEST
    return terminal_table(
        settings.title,
        [
            _cells(name, row, fault_of(rows["sgd"]), columns)
            for name, row in rows.items()
        ],
        header=(
            "method",
            "test",
            "difference to SGD",
            "train",
            *(column.heading for column in columns),
            "time",
        ),
        caption="Accuracies in percent, mean ± standard error over the seeds; paired"
        " difference with its 95 % interval. "
        + " ".join(column.explained for column in columns).format(settings)
        + " Time: of a step, relative to SGD's.",
    )


class _Column(NamedTuple):
    """A column that not every table has.

    Attributes:
        heading: its heading.
        explained: what the caption says of it, a format of the settings.
        cell: function of the figures of a method to its text.
    """

    heading: str
    explained: str
    cell: Callable[[dict[str, Any]], str]


_RISE = _Column(
    "rise",
    "Rise: mean rise of the training loss (nats) under uniform noise of"
    " {0.noise_radius:g} times each filter's norm.",
    lambda row: "{:.3g}".format(row["loss_rise"][0]),
)
_RADIUS = _Column(
    "radius",
    "Radius: of the noise at the end, where the rise of the loss decides.",
    lambda row: "{:.2g}".format(row["radius"]) if "radius" in row else "",
)
_MEMORISED = _Column(
    "memorised",
    "Memorised: wrong labels that the network repeats.",
    lambda row: "{:.1f}".format(row["memorised"][0]) if "memorised" in row else "",
)
_BEST = _Column(
    "best",
    "Best: test accuracy when that on the {0.watch_size} watched images was highest.",
    lambda row: "{:.2f}".format(row["best_accuracy"][0]),
)


def fault_of(row: dict[str, Any]) -> str:
    """What stands in the place of the figures of a row; empty if those stand."""
    if "diverged" in row:
        return "diverged"
    return "did not learn" if "did_not_learn" in row else ""


def _cells(
    name: str, row: dict[str, Any], no_baseline: str, columns: Sequence[_Column]
) -> tuple[str, ...]:
    time = "{:.2f}".format(row["relative_step_time"])
    if fault := fault_of(row):
        return (METHODS[name].label, fault, "", "", "", "", time)
    difference = None if no_baseline else row["difference_to_sgd"]
    return (
        METHODS[name].label,
        with_error(row["test_accuracy"]),
        "" if name == "sgd" or difference is None else with_interval(difference),
        "{:.2f}".format(row["train_accuracy"][0]),
        *(column.cell(row) for column in columns),
        time,
    )
