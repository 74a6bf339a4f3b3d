"""What commands of `smoothout` find, as tables in hand-written pages."""

from collections.abc import Mapping
from typing import Any

from pages.source import figures, table
from smoothout_jax.experiments.commands.sharpness import WHOLE, Row, cells
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting.formats import with_error, with_interval
from smoothout_jax.experiments.reporting.tables import markdown


def measured(name: str, row: Mapping[str, Any], *forms: str) -> dict[str, str]:
    """What was measured of one method, with the formats of its loss rise."""
    time = {"step time / SGD's": f"{row['relative_step_time']:.2f}"}
    if "test_accuracy" not in row:
        return {"test, %": "diverged"} | time
    difference = "" if name == "sgd" else with_interval(row["difference_to_sgd"])
    return {
        "test, %": with_error(row["test_accuracy"]),
        "minus SGD, paired [95 %]": difference,
        "train, %": f"{row['train_accuracy'][0]:.2f}",
        "loss rise under noise, nats": with_error(row["loss_rise"], *forms),
    } | time


def compared(summary: Mapping[str, Any]) -> str:
    """Results of `smoothout compare`, by method."""
    return table(
        {"method": METHODS[name].label} | measured(name, row, ".3f")
        for name, row in summary.items()
    )


def sharpness() -> str:
    """Results of `smoothout sharpness` for whole networks."""
    document = figures("sharpness/sharpness.json")
    rows = [Row(**row) for row in document["rows"]]
    whole = [row for row in rows if row.layer == WHOLE]
    header, *lines = cells(document["settings"]["measures"], whole)
    return markdown(header, lines)
