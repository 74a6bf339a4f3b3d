"""The tables and figures in the README and in hand-written pages, from the results.

`python -m pages.readme` puts each in its place, between `<!-- name -->` and
`<!-- /name -->`.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pages import costs, gap, published, results
from pages.source import DOCS, ROOT
from smoothout_jax.experiments.commands.sharpness import WHOLE, Row, cells
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting.formats import with_error, with_interval
from smoothout_jax.experiments.reporting.tables import markdown


def compared(summary: Mapping[str, Any]) -> str:
    """Results of `smoothout compare`, by method."""
    rows = [
        (
            METHODS[name].label,
            with_error(row["test_accuracy"]),
            "" if name == "sgd" else with_interval(row["difference_to_sgd"]),
            "{:.2f}".format(row["train_accuracy"][0]),
            with_error(row["loss_rise"], ".3f"),
            "{:.2f}".format(row["relative_step_time"]),
        )
        for name, row in summary.items()
    ]
    header = (
        "method",
        "test accuracy %",
        "minus SGD, paired [95 % interval]",
        "train accuracy %",
        "loss rise under noise",
        "step time / SGD's",
    )
    return markdown(header, rows)


def sharpness(document: Mapping[str, Any]) -> str:
    """Results of `smoothout sharpness` for whole networks."""
    rows = [Row(**row) for row in document["rows"]]
    whole = [row for row in rows if row.layer == WHOLE]
    header, *lines = cells(document["settings"]["measures"], whole)
    return markdown(header, lines)


def _read(path: str) -> Any:
    return json.loads((DOCS / path).read_text())


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
    "costs": Table(README, lambda: costs.readme(_read("performance/cpu.json"))),
    "gpu": Table(README, published.step_times),
    "published": Table(REPRODUCTIONS, lambda: compared(published.summary())),
    "digits": Table(COMMAND, lambda: compared(_read("digits/results.json")["summary"])),
    "sharpness": Table(COMMAND, lambda: sharpness(_read("sharpness/sharpness.json"))),
}


def block(name: str) -> str:
    """A table between its marks."""
    return f"<!-- {name} -->\n{TABLES[name].make()}\n<!-- /{name} -->"


def main() -> None:
    """Writes the tables into their pages."""
    for name, table in TABLES.items():
        place = rf"(?s)<!-- {name} -->.*<!-- /{name} -->"
        new = block(name)
        text, count = re.subn(place, lambda _, new=new: new, table.page.read_text())
        if count != 1:
            raise ValueError(f"{table.page} must have one table {name}, it has {count}")
        table.page.write_text(text)


if __name__ == "__main__":
    main()
