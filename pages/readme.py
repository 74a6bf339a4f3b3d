"""The tables and figures in the README and in hand-written pages, from the results.

Each stands in its place between `<!-- name -->` and `<!-- /name -->`.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pages import gap, performance, published, results
from pages.source import DOCS, ROOT, figures
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


class Table(NamedTuple):
    """A table in a page.

    Attributes:
        page: the page.
        make: makes it.
    """

    page: Path
    make: Callable[[], str]


README = ROOT / "README.md"
COMMAND = DOCS / "command.md"
REPRODUCTIONS = DOCS / "reproductions.md"
TABLES = {
    "gap": Table(README, gap.readme),
    "groups": Table(README, lambda: results.groups(results.main_cases())),
    "costs": Table(README, performance.readme),
    "gpu": Table(README, published.step_times),
    "published": Table(REPRODUCTIONS, lambda: compared(published.result().summary)),
    "digits": Table(
        COMMAND, lambda: compared(figures("digits/results.json")["summary"])
    ),
    "sharpness": Table(COMMAND, sharpness),
}


def block(name: str) -> str:
    """A table between its marks."""
    return f"<!-- {name} -->\n{TABLES[name].make()}\n<!-- /{name} -->"


def write() -> None:
    """Writes the tables into their pages."""
    for name, table in TABLES.items():
        place = rf"(?s)<!-- {name} -->.*<!-- /{name} -->"
        new = block(name)
        text, count = re.subn(place, lambda _, new=new: new, table.page.read_text())
        if count != 1:
            raise ValueError(f"{table.page} must have one table {name}, it has {count}")
        table.page.write_text(text)
