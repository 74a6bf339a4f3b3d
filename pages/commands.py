"""What commands of `smoothout` find, as tables in hand-written pages."""

from collections.abc import Mapping
from typing import Any

from pages.source import figures
from smoothout_jax.experiments.commands.sharpness import WHOLE, Row, cells
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting.formats import with_error, with_interval
from smoothout_jax.experiments.reporting.tables import markdown


def compared(summary: Mapping[str, Any]) -> str:
    """Results of `smoothout compare`, by method."""
    header = (
        "method", "test accuracy %", "minus SGD, paired [95 % interval]",
        "train accuracy %", "loss rise under noise", "step time / SGD's",
    )  # fmt: skip
    rows = [
        (
            METHODS[name].label,
            with_error(row["test_accuracy"]),
            "" if name == "sgd" else with_interval(row["difference_to_sgd"]),
            f"{row['train_accuracy'][0]:.2f}",
            with_error(row["loss_rise"], ".3f"),
            f"{row['relative_step_time']:.2f}",
        )
        for name, row in summary.items()
    ]
    return markdown(header, rows)


def sharpness() -> str:
    """Results of `smoothout sharpness` for whole networks."""
    document = figures("sharpness/sharpness.json")
    rows = [Row(**row) for row in document["rows"]]
    whole = [row for row in rows if row.layer == WHOLE]
    header, *lines = cells(document["settings"]["measures"], whole)
    return markdown(header, lines)
