"""The tables of the README, from the committed results.

`python -m pages.readme` puts each in its place, between `<!-- name -->` and
`<!-- /name -->`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pages import costs, results
from pages.evidence import Result, read
from pages.source import DOCS, ROOT
from smoothout_jax.experiments.commands.sharpness import WHOLE, Row, cells
from smoothout_jax.experiments.methods.table import METHODS
from smoothout_jax.experiments.reporting.formats import with_error, with_interval
from smoothout_jax.experiments.reporting.tables import markdown


def digits(document: Mapping[str, Any]) -> str:
    """Results of `smoothout compare`."""
    rows = [
        (
            METHODS[name].label,
            with_error(row["test_accuracy"]),
            "" if name == "sgd" else with_interval(row["difference_to_sgd"]),
            "{:.2f}".format(row["train_accuracy"][0]),
            with_error(row["loss_rise"], ".3f"),
            "{:.2f}".format(row["relative_step_time"]),
        )
        for name, row in document["summary"].items()
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


def evidence() -> str:
    """Differences to SGD in all cases of the CPU form."""
    return results.batches(_cpu_form())


def radii() -> str:
    """Gains of each strength in these cases."""
    return results.advice(_cpu_form())


def _cpu_form() -> list[Result]:
    return [each for each in read() if each.form == "cpu"]


def _read(path: str) -> Any:
    return json.loads((DOCS / path).read_text())


TABLES = {
    "digits": lambda: digits(_read("digits/results.json")),
    "evidence": evidence,
    "sharpness": lambda: sharpness(_read("sharpness/sharpness.json")),
    "radii": radii,
    "costs": lambda: costs.readme(_read("performance/cpu.json")),
}


def block(name: str) -> str:
    """A table between its marks."""
    return f"<!-- {name} -->\n{TABLES[name]()}\n<!-- /{name} -->"


def main() -> None:
    """Writes the tables into the README."""
    path = ROOT / "README.md"
    text = path.read_text()
    for name in TABLES:
        place = rf"(?s)<!-- {name} -->.*<!-- /{name} -->"
        text, count = re.subn(place, lambda _, name=name: block(name), text)
        if count != 1:
            raise ValueError(f"README.md must have one table {name}, it has {count}")
    path.write_text(text)


if __name__ == "__main__":
    main()
